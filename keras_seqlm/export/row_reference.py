"""The model's half of `verify` for a task that answers rows: what it says of rows, its numbers, and its figures."""

import json
import pathlib
import tempfile

import numpy as np

from keras_seqlm.export.loading import load_reference
from keras_seqlm.export.questions import beyond_the_bytes, text_of
from keras_seqlm.export.row_sidecar import row_facts
from keras_seqlm.export.row_signatures import IN_WINDOWS
from keras_seqlm.tasks import TextEmbedding
from keras_seqlm.tasks.row_task import row_of_texts
from seqlm_runtime.row_tasks.fill_mask import CANDIDATES, MASK
from seqlm_runtime.row_tasks.places import spans_by_window
from seqlm_runtime.seals import folder_hashes

# No text, no UTF-8, and what an encoder might trip over.
_ODD = (b"", b"\xff\xfe", b"caf\xc3", b"\x00a", "\u2581\ufffd e\u0301 \U0001f600".encode(), b"\r\n\t ")
_SOURCE = "It was in the morning, and the cat sat on the mat; 秦川 paid 12 €. "
_BATCH = 16
# The figure that a task is held to, the first of these that it has.
METRICS = ("accuracy", "micro_f1", "pearson", "span_f1", "f1", "recall_at_1", "spearman")
PREFERRED = {"tag": "span_f1", "labels": "micro_f1"}


def write_row_reference(run_folder, rows, path, room, most):
    """Write the reference for artifacts that read `most` ids of a text and `room` of a row, in the clean process.

    Args:
        run_folder: of the model.
        rows: list of dicts, those that are asked; with what is right, where that is known.
        path: the .npz file to write: `rows` (JSON, their texts as Latin-1), `inputs`, `numbers` and `answers`, as
            `seqlm_runtime.replay_rows` gives them; `margins` of the answers; `facts` and `figures` (JSON).
        room, most: those that the model cannot read are a contradiction, which the other half finds.
    """
    task, served = _served(run_folder, room, most)
    asked = [texts for row in rows if (texts := row_of_texts(served, row)) is not None]
    texts = [*asked, *odd_rows(served)]
    reads = [served.read(row) for row in texts]
    inputs = [one for read in reads for one in read.inputs]
    figures, more = _figures_and_inputs(task, served, rows)
    known = {_key(served, one) for one in inputs}
    inputs += [one for key, one in more.items() if key not in known]
    numbers = task.outputs(inputs, _BATCH)
    left = iter(zip(inputs, numbers, strict=True))
    grouped = [[_real(served, *next(left)) for _ in read.inputs] for read in reads]
    answers = [
        {**served.answer(read, own), "truncated": bool(read.truncated)}
        for read, own in zip(reads, grouped, strict=True)
    ]
    beside = [_real(served, *one) for one in left]
    np.savez(
        path,
        rows=json.dumps([_in_latin(row) for row in texts]),
        count=len(asked),
        answers=json.dumps(answers),
        margins=np.array([margin(served, read, own) for read, own in zip(reads, grouped, strict=True)]),
        facts=json.dumps(_facts(task, served)),
        figures=json.dumps(figures),
        vocabulary_size=task.model.vocabulary_size,
        **packed_inputs(inputs),
        **packed_numbers([*(one for own in grouped for one in own), *beside]),
    )


def figures_with(run_folder, rows, path, room, most):
    """The figures of a task if its model gave other numbers, those of an artifact, in the clean process.

    Args:
        path: an .npz file as `write_row_reference` writes it, with the inputs and the artifact's numbers.
    """
    task, served = _served(run_folder, room, most)
    with np.load(path) as stored:
        stored = dict(stored)
    pairs = zip(unpacked_inputs(stored), unpacked_numbers(stored), strict=True)
    known = {_key(served, one): found for one, found in pairs}
    task.outputs = lambda inputs, batch_size=_BATCH: [known[_key(served, one)] for one in inputs]
    return _figures(task, served, rows)


def _served(run_folder, room, most):
    task = load_reference(run_folder)
    task.most_ids = room
    in_windows = task.as_served().verb in IN_WINDOWS
    return task, task.as_served(most if in_windows else min(task.room, most))


def _key(served, inputs):
    return tuple((name, np.asarray(inputs[name], "int32").tobytes()) for name in sorted(inputs) if name in served.reads)


def _figures_and_inputs(task, served, rows):
    """The figures of rows, and what the model was asked for them, by key: more than an export is asked for its answers, as
    the second texts of pairs, or the end of a text of which it reads the beginning."""
    outputs, asked = task.outputs, {}

    def kept(inputs, batch_size=_BATCH):
        for one in inputs:
            read = {name: np.asarray(ids, "int32") for name, ids in one.items() if name in served.reads}
            asked[_key(served, read)] = read
        return outputs(inputs, batch_size)

    task.outputs = kept
    try:
        return _figures(task, served, rows), asked
    finally:
        task.outputs = outputs


def _facts(task, served):
    """What sidecars say of the model; and `shape`, of its numbers, None being a row's length."""
    shape = {
        "classify": lambda model: [1, model.num_classes],
        "embed": lambda model: [1, model.output_width],
        "tag": lambda model: [1, None, model.num_classes],
        "answer": lambda model: [1, 2, None],
        "fill-mask": lambda model: [1, None, model.vocabulary_size],
    }[served.verb](task.model)
    facts = row_facts(served, task.model, "tokenizer")
    return {**facts, "tokenizer_files": _files(task.tokenizer), "shape": shape}


def _files(tokenizer):
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(pathlib.Path(folder) / "tokenizer")
        return folder_hashes(pathlib.Path(folder) / "tokenizer")


def _in_latin(row):
    return {name: (text if isinstance(text, bytes) else text.encode()).decode("latin-1") for name, text in row.items()}


def odd_rows(served):
    """Rows without text, with bytes that are no UTF-8, as long as what is read and longer."""
    tokenizer, longest = served.tokenizer, served.most
    long = [text_of(tokenizer, _SOURCE, count).encode() for count in sorted({served.room - 1, served.room, longest})]
    long += [text_of(tokenizer, _SOURCE, longest + 9).encode(), beyond_the_bytes(tokenizer, _SOURCE, longest).encode()]
    if served.verb == "fill-mask":
        mask = MASK.encode()
        odd = [b"a " + mask + b"b" + text + mask for text in _ODD] + [mask, mask * 3, b"none"]
        return [{"text": text} for text in (*odd, *(mask + b" " + text for text in long))]
    if served.verb == "answer":
        rows = [(question, context) for question, context in zip(_ODD, reversed(_ODD), strict=True)]
        rows += [(b"When?", text) for text in (*_ODD, *long)] + [(long[0], b"In May."), (long[-1], long[-1])]
        return [{"question": question, "context": context} for question, context in rows]
    rows = [{"text": text} for text in (*_ODD, *long)]
    for name in served.optional():
        rows += [{"text": text, name: _ODD[-1 - number]} for number, text in enumerate(_ODD)]
        rows += [{"text": one, name: other} for one, other in ((b"a", long[-1]), (long[0], b"b"), (long[0], long[1]))]
    return rows


def _real(served, inputs, numbers):
    """Numbers without those of padding."""
    if not served.per_token:
        return numbers
    size = len(inputs["token_ids"])
    return numbers[:, :size] if served.verb == "answer" else numbers[:size]


def margin(served, read, numbers):
    """How far an answer is from being another one, in logits or log-probabilities."""
    if served.verb == "classify" and served.kind == "labels":
        gaps = np.abs(np.append(numbers[0], np.inf))
        order = np.diff(np.sort(numbers[0]))
        return float(min(gaps.min(), np.append(order, np.inf).min()))
    if served.verb == "classify" and served.kind == "class":
        return _lead(numbers[0])
    if served.verb == "tag":
        rows = [row for window, odds in zip(read.about[1], numbers, strict=True) for row in odds[window.own_places]]
        return min(map(_lead, rows), default=np.inf)
    if served.verb == "fill-mask":
        ids, special = read.about[0], list(served.special)
        rows = [np.delete(numbers[0][place], special) for place in np.flatnonzero(ids == served.mask_id)]
        return min((float(-np.diff(np.sort(row)[::-1][: CANDIDATES + 1]).max()) for row in rows), default=np.inf)
    return _margin_of_answer(served, read, numbers) if served.verb == "answer" else np.inf


def _lead(odds):
    best = np.sort(np.asarray(odds, "float64"))[-2:]
    return float(best[-1] - best[0]) if len(best) > 1 else np.inf


def _margin_of_answer(served, read, numbers):
    tokens, windows = read.about
    best, nothing = [], np.inf
    for log_p, first, sums in spans_by_window(tokens, windows, numbers, served.longest):
        nothing = min(nothing, log_p)
        for place in np.argsort(-sums, axis=None, kind="stable")[:2]:
            i, j = divmod(int(place), sums.shape[1])
            best.append((float(sums[i, j]), first + i, first + j))
    best.sort(reverse=True)
    score, *span = best[0] if best else (-np.inf, 0, 0)
    others = [other for other, *place in best[1:] if place != span]
    lead = score - others[0] if others else np.inf
    return min(lead, abs(score - nothing)) if served.unanswerable and best else lead


def _figures(task, served, rows):
    """The figures of labelled rows; of fill-mask how often the first candidate is the token that was masked; {} of others."""
    if served.verb == "fill-mask":
        known = [row for row in rows if row.get("token_id") is not None and row_of_texts(served, row)]
        if not known:
            return {}
        reads = [served.read(row_of_texts(served, row)) for row in known]
        numbers = task.outputs([read.inputs[0] for read in reads], _BATCH)
        found = [served.answer(read, [own])["candidates"] for read, own in zip(reads, numbers, strict=True)]
        right = [bool(one) and one[0][0]["token_id"] == row["token_id"] for one, row in zip(found, known, strict=True)]
        return {"count": len(known), "accuracy": float(np.mean(right))}
    known = [row for row in rows if _is_whole(task, row)]
    return task.evaluate(known) if known else {}


def _is_whole(task, row):
    """Whether a row says what is right and is not broken."""
    if isinstance(task, TextEmbedding) and row.get("value") is not None:
        return row.get("text") is not None and row.get("pair") is not None
    try:
        return bool(task.examples_of(row))
    except (KeyError, ValueError):  # as a reader of rows takes it
        return False


def metric_of(served_said, figures):
    """The name of the figure that a task is held to, or None where there is none.

    Args:
        served_said: `task` of the sidecar.
        figures: what `evaluate` gave.
    """
    wanted = PREFERRED.get(served_said["name"]) or PREFERRED.get(served_said["settings"].get("kind"))
    return next((name for name in (wanted, *METRICS) if name in figures), None)


def packed_inputs(inputs):
    """Rows of inputs as flat arrays, for a file."""
    names = sorted({name for one in inputs for name in one})
    return {
        "sizes": np.array([len(one["token_ids"]) for one in inputs]),
        **{f"input {name}": np.concatenate([one[name] for one in inputs]) for name in names},
    }


def unpacked_inputs(stored):
    """The way back."""
    names = [name.removeprefix("input ") for name in stored if name.startswith("input ")]
    cuts = np.cumsum(stored["sizes"])[:-1]
    parts = {name: np.split(stored[f"input {name}"], cuts) for name in names}
    return [{name: parts[name][row] for name in names} for row in range(len(stored["sizes"]))]


def packed_numbers(numbers):
    """Arrays of numbers, each by its place."""
    return {f"numbers {row}": one for row, one in enumerate(numbers)}


def unpacked_numbers(stored):
    """The way back."""
    return [stored[f"numbers {row}"] for row in range(len(stored["sizes"]))]
