"""The model's half of `verify`: what it writes, its logits along that, and how probable it finds texts."""

import functools
import json
import pathlib
import tempfile

import numpy as np

from keras_seqlm.export.loading import load_reference
from keras_seqlm.export.questions import (
    MOST_TOKENS,
    as_json,
    beyond_the_bytes,
    longest_texts,
    questions,
    saved_ways,
    text_of,
)
from keras_seqlm.export.sidecar import description
from keras_seqlm.export.signatures import prefill_lengths
from keras_seqlm.export.vectors import of_tokenizer
from keras_seqlm.generation.generate import prompt_room
from seqlm_runtime.prompts import MAX_PROMPT_TOKENS, has_text, read_ids
from seqlm_runtime.sampler import sample
from seqlm_runtime.seals import folder_hashes

_AT_ONCE = 2**25  # logits in memory, 128 MiB
_PART = 64  # tokens of one turn of a recurrent model, whatever a text's length: one shape is traced


def write_reference(run_folder, prompts, path, limit, max_prompt_tokens=None):
    """Write the reference for artifacts that write at most `limit` tokens, in the clean process.

    Args:
        run_folder: of the model.
        prompts: list of texts; those that this tokenizer makes no id of are left out.
        path: the .npz file to write: what `seqlm_runtime.replay` asks for; for each row that is asked what the model
            writes, and its logits along that; `facts` (JSON), what a sidecar says of the model; what `score` gives.
        limit: most tokens that are asked for.
        max_prompt_tokens: most ids of a prompt that are read; None for all that the model can read.
    """
    task = load_reference(run_folder)
    model, tokenizer = task.model, task.tokenizer
    prompts = [prompt for prompt in prompts if len(task.ids_of(prompt))]  # without bos an empty one is none
    if not prompts:
        raise ValueError("all prompts are empty, and the tokenizer has no bos to begin a text with: give others")
    # What is no number of this model is a contradiction, which the other half finds.
    numbers = (prompt_room(model), max_prompt_tokens)
    most = min((number for number in numbers if number is not None), default=MAX_PROMPT_TOKENS)
    asked = questions(tokenizer, model.max_length, prompts, limit, most)
    written = _written(task, {mode: asked[mode] for mode in asked if mode != "read"}, limit, most)
    written |= _read(task, asked["read"], most)
    lengths = {mode: [int(written[f"{mode}_{row}_first"]) for row in range(len(asked[mode]))] for mode in asked}
    seeds, longest, least, greatest = longest_texts(
        tokenizer, model.vocabulary_size, lengths["greedy"][0], _most_new(model, lengths["greedy"][0], limit)
    )
    ways = {xla: saved_ways(asked, lengths, xla) for xla in (False, True)}
    content = {
        "asked": as_json(asked),
        "ways": json.dumps([_as_list(way) for way in ways[False]]),
        "xla_ways": json.dumps([_as_list(way) for way in ways[True]]),
        "facts": json.dumps(_facts(model, tokenizer, most)),
        "limit": limit,
        "most": most,
        "columns": most + limit if model.max_length is None else model.max_length,
        "vocabulary_size": model.vocabulary_size,
        "eos_id": -1 if tokenizer.eos_id is None else tokenizer.eos_id,
        "suppressed_ids": np.array(tokenizer.suppressed_ids, "int32"),
        "longest_seeds": seeds,
        "longest": longest,
        "longest_least": least,
        "longest_greatest": greatest,
        **{f"prompt_ids_{row}": tokenizer.encode(prompt) for row, prompt in enumerate(prompts)},
        **written,
        **_scores(task, asked, written, most),
        **_long(model, written, len(prompts)),
    }
    np.savez(path, **content)


def _as_list(way):
    return [way.name, way.signature, way.rows, way.options]


def _most_new(model, read, limit):
    """How many tokens a text may get at most, as far as that is looked at."""
    left = limit if model.max_length is None else max(1, model.max_length - read)
    return min(limit, left, MOST_TOKENS)


def _written(task, asked, limit, most):
    """What the model writes on after every row, all in one batch, and the logits along it.

    Returns:
        dict of `MODE_I_ids` (the prompt's and the new ones, as far as the model reads), `_first` (how many are the prompt's), `_new`, `_ended` (by the
        end id), `_text` (its bytes), `_truncated`, and `_logits` after the prompt and after each new id.
    """
    rows = {f"{mode}_{row}": dict(options) for mode in asked for row, options in enumerate(asked[mode])}
    texts = {name: options.pop("text") for name, options in rows.items()}
    read = {name: read_ids(task.tokenizer, text, most) for name, text in texts.items()}
    content = {}
    for name, (ids, cut) in read.items():
        content[f"{name}_first"], content[f"{name}_truncated"] = len(ids), cut
        if not len(ids):  # nothing is written after no id
            content |= {f"{name}_new": np.zeros(0, "int32"), f"{name}_ended": False}
            content |= {
                f"{name}_text": np.zeros(0, "uint8"),
                f"{name}_logits": np.zeros((0, task.model.vocabulary_size)),
            }
    names = [name for name in rows if len(read[name][0])]
    columns = {key: [rows[name][key] for name in names] for key in rows[names[0]]}
    counts = [min(count, limit) for count in columns.pop("max_new_tokens")]
    results = task.write([texts[name] for name in names], counts, max_prompt_tokens=most, **columns)
    for name, result in zip(names, results, strict=True):
        new = content[f"{name}_new"] = np.asarray(result.token_ids, "int32")
        # With a context of 1 an id is written that no model reads.
        content[f"{name}_ids"] = np.concatenate([read[name][0], new])[: task.model.max_length]
        content[f"{name}_ended"] = result.stop_reason == "eos"
        content[f"{name}_text"] = np.frombuffer(result.text.encode(), "uint8")
    for name, logits in zip(names, logits_along(task.model, [content[f"{name}_ids"] for name in names]), strict=True):
        content[f"{name}_logits"] = logits[len(read[name][0]) - 1 :]
    return content


def _read(task, rows, most):
    """The first id after texts as long as the model reads, from its logits alone: what `_written` gives, but one step."""
    read, last, content = [read_ids(task.tokenizer, row["text"], most) for row in rows], {}, {}
    for row, start, logits in _pieces(task.model, [ids for ids, _ in read]):
        if start + len(logits) == len(read[row][0]):
            last[row] = logits[-1:].copy()
    for row, (found, cut) in enumerate(read):
        (chosen,) = sample(last[row], {"temperature": 0.0}, suppressed_ids=task.tokenizer.suppressed_ids)
        ended = chosen == task.tokenizer.eos_id
        new = np.array([] if ended else [chosen], "int32")
        content |= {f"read_{row}_first": len(found), f"read_{row}_truncated": cut}
        content |= {f"read_{row}_new": new, f"read_{row}_ended": ended}
        text = task.tokenizer.decode(new, has_text(task.tokenizer, found, cut))
        content[f"read_{row}_text"] = np.frombuffer(text.encode(), "uint8")
        content[f"read_{row}_logits"] = last[row]
    return content


def logits_along(model, texts):
    """The logits (time, vocabulary) of each text: a list."""
    found = [[] for _ in texts]
    for row, _, logits in _pieces(model, texts):
        found[row].append(logits)
    return [np.concatenate(parts) for parts in found]


def _pieces(model, texts):
    """The logits along texts, as many at a time as fit.

    Yields:
        The number of a text, the place where a piece of it starts, and the logits (piece, vocabulary) after its ids. The
        pieces of a text come one after another.
    """
    order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
    context = getattr(model, "max_length", None)
    while order:
        width = len(texts[order[0]]) if context is not None else _PART
        rows = max(1, _AT_ONCE // (width * model.vocabulary_size))
        here, order = order[:rows], order[rows:]
        padded = np.zeros((len(here), -(-len(texts[here[0]]) // width) * width), "int32")
        for place, row in enumerate(here):
            padded[place, : len(texts[row])] = texts[row]
        if context is not None:
            for row, logits in zip(here, np.asarray(model(padded)), strict=True):
                yield row, 0, logits[: len(texts[row])]
            continue
        state = model.initial_state(len(here))
        for start in range(0, padded.shape[1], width):
            here = [row for row in here if len(texts[row]) > start]  # the longest come first
            state = {name: leaf[: len(here)] for name, leaf in state.items()}
            logits, state = _reader(model)(padded[: len(here), start : start + width], state)
            for row, along in zip(here, np.asarray(logits), strict=True):
                yield row, start, along[: len(texts[row]) - start]


@functools.cache
def _reader(model):
    """`model` for a part of any number of texts, traced once: step by step it would take a hundred times as long."""
    import tensorflow as tf

    state = model.initial_state(1)
    specs = {name: tf.TensorSpec([None, *leaf.shape[1:]], leaf.dtype) for name, leaf in state.items()}

    @tf.function(input_signature=[tf.TensorSpec([None, _PART], tf.int32), specs], autograph=False)
    def read(token_ids, state):
        return model({"token_ids": token_ids}, state=state)

    return read


def _facts(model, tokenizer, most):
    """What is said of the model in the sidecars of its exports: dict of field to value; and the tokenizer's `files`."""
    state = {
        name: {"shape": list(leaf.shape), "dtype": str(np.asarray(leaf).dtype)}
        for name, leaf in model.initial_state(1).items()
    }
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(pathlib.Path(folder) / "tokenizer")
        files = folder_hashes(pathlib.Path(folder) / "tokenizer")
    return {
        "format": 1,
        "model": type(model).__name__,
        "max_length": model.max_length,
        "max_prompt_tokens": most,
        "vocabulary_size": model.vocabulary_size,
        "tokenizer_hash": tokenizer.hash,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "suppressed_ids": list(tokenizer.suppressed_ids),
        "state": state,
        "prefill_lengths": prefill_lengths(model.max_length),
        "tokenizer_files": files,
        **description(model, tokenizer, {}, "tokenizer", most),
        "test_vectors": of_tokenizer(tokenizer),
    }


def _scores(task, asked, written, most):
    """How probable the model finds texts: from its logits, in float64 and by NumPy alone.

    The texts are each prompt with what is written after it, odd ones, and as long as what is read and longer.
    """
    model, tokenizer = task.model, task.tokenizer
    longest = (most if model.max_length is None else model.max_length) + 1
    texts = [row["text"] + written[f"greedy_{i}_text"].tobytes() for i, row in enumerate(asked["greedy"])]
    source = b" ".join([*texts[:3], b"and so on "]).decode()
    texts += [row["text"] for row in asked["odd"]]
    texts += [text_of(tokenizer, source, longest + more).encode() for more in (0, 1)]
    texts.append(beyond_the_bytes(tokenizer, source, longest).encode())
    read = [read_ids(tokenizer, text, longest, end=False) for text in texts]
    ids, sums = [ids for ids, _ in read], np.zeros(len(read))
    # The last id is predicted and not read; without bos an empty text has no id at all.
    for row, start, logits in _pieces(model, [row[:-1] if len(row) > 1 else np.zeros(1, "int32") for row in ids]):
        targets = ids[row][start + 1 : start + 1 + len(logits)]
        sums[row] += log_probabilities(logits, targets).sum()
    return {
        "score_texts": json.dumps([text.decode("latin-1") for text in texts]),
        "score_log_probability": sums,
        "score_num_tokens": np.array([max(0, len(row) - 1) for row in ids]),
        "score_truncated": np.array([cut for _, cut in read]),
    }


def log_probabilities(logits, targets):
    """ln p of each target id, float64 (time,), from the logits (time, vocabulary) that predict it.

    Example:

    >>> log_probabilities(np.zeros((1, 4)), np.array([2])).round(3).tolist()
    [-1.386]
    """
    logits = np.asarray(logits, "float64")[: len(targets)]
    best = logits.max(axis=-1, keepdims=True, initial=-np.inf)
    totals = np.log(np.exp(logits - best).sum(axis=-1)) + best[:, 0]
    return np.take_along_axis(logits, np.asarray(targets, "int64")[:, None], axis=-1)[:, 0] - totals


def _long(model, written, rows):
    """A text as long as the longest prefill of a LiteRT file, and the model's logits after every prefill of it."""
    lengths = prefill_lengths(model.max_length)
    some = np.concatenate([written[f"greedy_{row}_ids"] for row in range(rows)])
    most = max(lengths, default=1) + 2
    ids = np.resize(some, most if model.max_length is None else min(most, model.max_length))
    (logits,) = logits_along(model, [ids])
    found, places = {}, sorted({(length, count) for length in lengths for count in (length, length // 2 + 1)})
    for length, count in places:
        found[f"long_{length}_{count}_logits"] = logits[count - 1 : count + 2]
    return {"long_ids": ids, "long_places": np.array(places), **found}
