"""Ask an export of a task that answers rows what it is to be asked, in a process without TensorFlow's Python or Keras.

`python -m seqlm_runtime.replay_rows REQUEST.npz ANSWER.npz` is the artifact's half of `seqlm verify`.
"""

import json
import sys

import numpy as np

from seqlm_runtime.lite_task import LiteRTTask
from seqlm_runtime.saved_model import SavedModel

_AT_ONCE = 2**16  # ids of one request


def replay_saved_model(request, rows, inputs):
    """What a SavedModel answers to rows, in several orders, beside others and alone; and its numbers."""
    model = SavedModel(str(request["artifact"]), allow_ops=json.loads(str(request["allow_ops"])))
    count, answer = len(rows), {}
    some = [0, count // 2, count - 1]
    ways = {"all rows": list(range(count)), "other order": list(reversed(range(count)))}
    ways |= {f"row {row} alone": [row] for row in some}
    for name, chosen in ways.items():
        answer[f"{name}|rows"] = np.array(chosen)
        answer[f"{name}|answers"] = json.dumps(model.predict([rows[row] for row in chosen], batch_size=count))
    bare = [row for row in range(count) if set(rows[row]) <= set(model.task.fields)][:8]  # the others have defaults
    answer |= {
        "fields alone|rows": np.array(bare, int),
        "fields alone|answers": json.dumps(model.predict([rows[row] for row in bare])),
    }
    answer["warm_up"] = model.warm_up()
    numbers = [None] * len(inputs)
    order = sorted(range(len(inputs)), key=lambda row: len(inputs[row]["token_ids"]))
    beside = 0.0
    while order:
        width = len(inputs[order[0]]["token_ids"]) * 2
        here = [row for row in order if len(inputs[row]["token_ids"]) <= width][: max(1, _AT_ONCE // width)]
        order = order[len(here) :]
        for row, found in zip(here, _forward(model, [inputs[row] for row in here]), strict=True):
            numbers[row] = found
        (alone,) = _forward(model, [inputs[here[0]]])
        cut = tuple(map(slice, np.minimum(alone.shape, numbers[here[0]].shape)))
        beside = np.maximum(beside, np.max(np.abs(alone[cut] - numbers[here[0]][cut]), initial=0.0))
    answer |= {f"numbers {row}": found for row, found in enumerate(numbers)}
    accepted = _accepted(model, int(request["room"]), int(request["vocabulary_size"]))
    return answer | {"beside": beside, "accepted": json.dumps(accepted)}


def _forward(model, inputs):
    """The numbers of rows; what lies beyond a row changes nothing, even if it is no id."""
    names = set(model.signatures["forward"].inputs) - {"lengths"}
    sizes = [len(one["token_ids"]) for one in inputs]
    batch = {name: np.full((len(inputs), max(sizes)), -1 if name == "token_ids" else 0, "int32") for name in names}
    for number, one in enumerate(inputs):
        for name in names:
            batch[name][number, : sizes[number]] = one[name]
    found = model.run("forward", lengths=np.array(sizes, "int32"), **batch)
    (numbers,) = found.values()
    if len(numbers) != len(inputs):
        raise ValueError(f"The signature 'forward' answers {len(inputs)} rows with {len(numbers)}.")
    return numbers


def _accepted(model, room, vocabulary_size):
    """What `forward` answers, and has to refuse: a list of descriptions."""
    requests = {
        f"{room + 1} columns of token_ids": (np.zeros((1, room + 1)), [1]),
        "the id -1": ([[-1]], [1]),
        f"the id {vocabulary_size}": ([[vocabulary_size]], [1]),
        "a length beyond its row": ([[0]], [2]),
    }
    accepted = []
    for said, (ids, lengths) in requests.items():
        given = {"token_ids": np.array(ids, "int32"), "lengths": np.array(lengths, "int32")}
        if "token_types" in model.signatures["forward"].inputs:
            given["token_types"] = np.zeros_like(given["token_ids"])
        try:
            model.run("forward", **given)
        except (RuntimeError, ValueError):
            continue
        accepted.append(said)
    return accepted


def replay_litert(request, rows, inputs):
    """What a LiteRT file answers to rows; its numbers, and those of every signature for rows that fit it."""
    model = LiteRTTask(str(request["artifact"]), allow_ops=json.loads(str(request["allow_ops"])))
    answer = {"all rows|rows": np.arange(len(rows)), "all rows|answers": json.dumps(model.predict(rows))}
    answer |= {f"numbers {row}": model.run(one) for row, one in enumerate(inputs)}
    for length in model.lengths:  # the longest row that fits, and the shortest
        fitting = [row for row, one in enumerate(inputs) if len(one["token_ids"]) <= length]
        fitting.sort(key=lambda row: len(inputs[row]["token_ids"]))
        for row in {*fitting[:1], *fitting[-2:]}:
            answer[f"length {length} row {row}"] = model.run(inputs[row], length)
    return answer


def replay(request):
    """The answer to a request, both dicts of arrays.

    Args:
        request: `artifact`, `allow_ops` (JSON), `rows` (JSON, texts as Latin-1), `room`, `vocabulary_size`, and the inputs of
            the model as `keras_seqlm.export.row_reference` packs them.

    Returns:
        For each way of asking `WAY|rows` and `WAY|answers` (JSON); `numbers I` of each input; and what the two functions say.
    """
    rows = [{name: text.encode("latin-1") for name, text in row.items()} for row in json.loads(str(request["rows"]))]
    cuts, names = np.cumsum(request["sizes"])[:-1], [name for name in request if name.startswith("input ")]
    parts = {name.removeprefix("input "): np.split(request[name], cuts) for name in names}
    inputs = [{name: parts[name][row] for name in parts} for row in range(len(request["sizes"]))]
    run = replay_litert if str(request["artifact"]).endswith(".tflite") else replay_saved_model
    return run(request, rows, inputs)


if __name__ == "__main__":
    with np.load(sys.argv[1]) as stored:
        np.savez(sys.argv[2], **replay(dict(stored)))
