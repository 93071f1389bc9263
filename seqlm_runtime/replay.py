"""Ask an exported artifact what it is to be asked, in a process that never imports TensorFlow's Python or Keras.

`python -m seqlm_runtime.replay REQUEST.npz ANSWER.npz` is the artifact's half of `seqlm verify`. The answer holds what
the artifact writes by itself, in every way that it can be asked, and its logits along the reference's own texts.
"""

import json
import sys

import numpy as np

from seqlm_runtime.litert import LiteRTModel
from seqlm_runtime.options import DEFAULTS, OPTIONS
from seqlm_runtime.prompts import read_ids
from seqlm_runtime.saved_model import SavedModel

_AT_ONCE = 2**25  # logits of one answer, 128 MiB
_COLUMNS = 2**20  # of one row
_TYPES = {"max_new_tokens": "int32", **{name: dtype for name, (dtype, _) in OPTIONS.items()}}


def replay_saved_model(request):
    """What a SavedModel answers to every signature but the compiled one; with XLA on to that one alone."""
    xla = bool(request["xla"])
    model = SavedModel(str(request["artifact"]), xla=xla, allow_ops=json.loads(str(request["allow_ops"])))
    asked, answer = json.loads(str(request["asked"])), {}
    for name, signature, rows, with_options in json.loads(str(request["ways"])):
        rows = [asked[mode][row] for mode, row in rows]
        options = {key: np.array([row[key] for row in rows], dtype) for key, dtype in _TYPES.items()}
        result = _answer(model, signature, _texts(rows), **(options if with_options else {}))
        texts = [text.decode("latin-1") for text in result.pop("generated_text")]
        answer |= {f"{name}|texts": json.dumps(texts), **{f"{name}|{key}": value for key, value in result.items()}}
    if xla:
        return answer
    answer["warm_up"] = model.warm_up()
    answer |= _saved_logits(model, request)
    answer["accepted"] = json.dumps(_accepted(model, int(request["columns"]), int(request["vocabulary_size"])))
    texts = [text.encode("latin-1") for text in json.loads(str(request["score_texts"]))]
    for name, rows in (("score", range(len(texts))), ("score, one row", [0]), ("score, one row cut", [len(texts) - 1])):
        scores = _answer(model, "score", [texts[row] for row in rows])
        answer |= {f"{name}|{key}": value for key, value in scores.items()}
    seeds = request["longest_seeds"]
    most = {**DEFAULTS, "max_new_tokens": 2**31 - 1, "temperature": 1e6}
    options = {key: np.full(len(seeds), most[key], dtype) for key, dtype in _TYPES.items()} | {"seed": seeds}
    longest = _answer(model, "generate", _texts([asked["greedy"][0]] * len(seeds)), **options)
    texts = [text.decode("latin-1") for text in longest["generated_text"]]
    return answer | {
        "longest": longest["num_tokens"],
        "longest_ids": longest["token_ids"],
        "longest_texts": json.dumps(texts),
    }


def _texts(rows):
    return [row["text"].encode("latin-1") for row in rows]


def _answer(model, signature, text, **options):
    """One answer, of which every part has a row for each text."""
    result = model.run(signature, text=text, **options)
    rows = {name: value.shape[:1] for name, value in result.items()}
    if set(rows.values()) != {(len(text),)}:
        raise ValueError(f"The signature {signature!r} answers {len(text)} texts with rows of the shapes {rows}.")
    return result


def _saved_logits(model, request):
    """The logits along all texts, read beside each other and, of the longest, alone.

    Returns:
        dict of `MODE_logits_I`, and `beside`: how far the rows reach beyond their texts, or one of them is from itself alone.
    """
    answer, beside = {}, 0.0
    names = [name.removesuffix("_ids") for name in _along(request)]
    names.sort(key=lambda name: len(request[f"{name}_ids"]))
    while names:
        # Texts of about a length together, or most of the work is padding.
        width = max(16, 1 << (len(request[f"{names[0]}_ids"]) - 1).bit_length())
        here = [name for name in names if len(request[f"{name}_ids"]) <= width]
        here = here[: max(1, _AT_ONCE // (width * int(request["vocabulary_size"])))]
        names = names[len(here) :]
        ids = [request[f"{name}_ids"] for name in here]
        # What lies beyond a text changes nothing, even if it is no id.
        batch = np.resize(np.array([-1, 0, request["vocabulary_size"]], "int32"), (len(ids), max(map(len, ids))))
        for row, part in zip(batch, ids, strict=True):
            row[: len(part)] = part
        logits = model.run("logits", token_ids=batch, lengths=np.array([len(part) for part in ids], "int32"))["logits"]
        for name, row, part in zip(here, logits, ids, strict=True):
            answer[_logits_of(name)] = row[int(request[f"{name}_first"]) - 1 : len(part)]
            beside = np.maximum(beside, np.max(np.abs(row[len(part) :]), initial=0.0))  # NaN stays
    alone = model.run("logits", token_ids=ids[-1][None], lengths=np.array([len(ids[-1])], "int32"))["logits"][0]
    return answer | {"beside": np.maximum(beside, np.max(np.abs(alone - logits[-1, : len(ids[-1])])))}


def _accepted(model, columns, vocabulary_size):
    """What `logits` answers, and has to refuse: a list of descriptions."""
    more = columns + 1
    rows = int(more <= _COLUMNS)  # of more than these the numbers alone would fill the memory
    requests = {
        f"{more} columns of token_ids": (np.zeros((rows, more)), [1] * rows),
        "the id -1": ([[-1]], [1]),
        f"the id {vocabulary_size}": ([[vocabulary_size]], [1]),
        "the length -1": ([[0]], [-1]),
        "a length beyond its row": ([[0]], [2]),
    }
    accepted = []
    for said, (token_ids, lengths) in requests.items():
        try:
            model.run("logits", token_ids=np.array(token_ids, "int32"), lengths=np.array(lengths, "int32"))
        except (RuntimeError, ValueError):
            continue
        accepted.append(said)
    return accepted


def _along(request):
    """The names of the texts along which the logits are asked."""
    return [name for name in request if name.endswith("_ids") and f"{name.removesuffix('_ids')}_first" in request]


def _logits_of(name):
    return f"{name}_logits"


def replay_litert(request):
    """What a LiteRT file writes, its logits along the reference a step at a time, and after every signature."""
    model = LiteRTModel(str(request["artifact"]), allow_ops=json.loads(str(request["allow_ops"])))
    asked, answer = json.loads(str(request["asked"])), {}
    for mode, rows in asked.items():
        results = []
        for row, options in enumerate(rows):
            name, text = f"{mode}_{row}", options["text"].encode("latin-1")
            result, logits, state = _generated(model, text, {key: options[key] for key in _TYPES})
            results.append(result)
            if f"{name}_ids" in request:
                ids, first = request[f"{name}_ids"].astype("int32"), int(request[f"{name}_first"])
                along = logits
                if ids[first:].tolist() != result["token_ids"].tolist() or not len(logits):
                    along = _step_by_step(model, ids, first)
                elif len(logits) == len(ids) - first:  # it did not look for what comes after the last one
                    along = np.concatenate([logits, model.step(ids[-1:], state)[0][None]])
                answer[_logits_of(name)] = along
            if mode in ("vectors", "read"):
                answer[f"{name}_own"] = logits
        width = max((len(result["token_ids"]) for result in results), default=0)
        token_ids = np.zeros((len(results), width), "int32")
        for row, result in zip(token_ids, results, strict=True):
            row[: len(result["token_ids"])] = result["token_ids"]
        answer[f"{mode}|token_ids"] = token_ids
        answer[f"{mode}|num_tokens"] = np.array([len(result["token_ids"]) for result in results])
        answer[f"{mode}|truncated"] = np.array([result["truncated"] for result in results])
        answer[f"{mode}|texts"] = json.dumps([result["text"].encode().decode("latin-1") for result in results])
    for row, options in enumerate(asked["greedy"]):
        answer[f"prompt_ids_{row}"] = model.tokenizer.encode(options["text"].encode("latin-1"))
    long_ids = request["long_ids"].astype("int32")
    for place in request["long_places"]:
        signature, count = (int(number) for number in place)
        logits, state = model.run(f"prefill_{signature}", long_ids[:count], model.initial_state())
        rows = [logits]
        for i in long_ids[count : count + 2]:
            logits, state = model.run("decode", [i], state)
            rows.append(logits)
        answer[f"long_{signature}_{count}_logits"] = np.stack(rows)
        answer[f"long_{signature}_{count}_position"] = state["position"]
    return answer


def _generated(model, text, options):
    """What a file writes, the logits (steps, vocabulary) that it chose by, and the last state that it chose from."""
    read, cut = read_ids(model.tokenizer, text, model.max_prompt_tokens)
    logits, state, step = [], None, model.step
    if not len(read):  # there is nothing to write on from, which it says by an error
        result = {"text": "", "token_ids": np.zeros(0, "int32"), "truncated": cut}
        return result, np.zeros((0, model.vocabulary_size), "float32"), state

    def recorded(token_ids, before):
        nonlocal state
        found, state = step(token_ids, before)
        logits.append(found)
        return found, state

    model.step = recorded
    try:
        result = model.generate(text, **options)
    finally:
        del model.step
    return result, np.array(logits).reshape(-1, model.vocabulary_size), state


def _step_by_step(model, ids, first):
    logits, state = model.step(ids[:first], model.initial_state())
    rows = [logits]
    for i in ids[first:]:
        logits, state = model.step([i], state)
        rows.append(logits)
    return np.stack(rows)


def replay(request):
    """The answer to a request, both dicts of arrays.

    Args:
        request: `artifact`, `allow_ops` (JSON), `xla`; `asked` (JSON), mode to rows of `text` (its bytes as Latin-1) and
            options; `ways` (JSON) for a SavedModel, a list of a name, a signature, pairs of a mode and a row, and
            whether options are given; of the reference for rows along which logits are wanted `MODE_I_ids` (the prompt's
            ids and the new ones) and `MODE_I_first` (how many are the prompt's); `score_texts` (JSON); `longest_seeds`;
            `long_ids` with `long_places`, rows of a prefill length and the ids that it reads; `vocabulary_size`; `columns`,
            how many ids `logits` reads.

    Returns:
        For each way of a SavedModel, each mode of a LiteRT file: `WAY|token_ids`, `WAY|num_tokens`, `WAY|truncated` and
        `WAY|texts` (JSON); for each text `MODE_I_logits` (steps + 1, vocabulary): its logits after the prompt and after each
        id of the reference. What else there is, the two functions say.
    """
    return (replay_litert if str(request["artifact"]).endswith(".tflite") else replay_saved_model)(request)


if __name__ == "__main__":
    with np.load(sys.argv[1]) as stored:
        np.savez(sys.argv[2], **replay(dict(stored)))
