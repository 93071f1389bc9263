"""The model's half of `verify`: what it writes, its logits along that, and how probable it finds texts."""

import json

import numpy as np

from keras_seqlm.export.loading import load_reference
from keras_seqlm.export.signatures import RECURRENT_PREFILLS
from keras_seqlm.generation.buckets import buckets
from keras_seqlm.generation.generate import prompt_room
from seqlm_runtime.prompts import read_ids
from seqlm_runtime.replay import MODES, MOST_TOKENS, columns_of_longest, options_of

_AT_ONCE = 2**25  # logits in memory, 128 MiB


def write_reference(run_folder, prompts, path, limit, max_prompt_tokens=None):
    """Write the reference for artifacts that write at most `limit` tokens, in the clean process.

    Args:
        run_folder: of the model.
        prompts: list of texts; those that this tokenizer makes no id of are left out.
        path: the .npz file to write: for each mode and prompt what `seqlm_runtime.replay` asks for, and the logits;
            `facts` (JSON), what a sidecar says of the model; `score_texts` and their `score_log_probability`.
        limit: most tokens that are asked for.
        max_prompt_tokens: most ids of a prompt that are read; None for all that the model can read.
    """
    task = load_reference(run_folder)
    model, tokenizer = task.model, task.tokenizer
    prompts = [prompt for prompt in prompts if len(task.ids_of(prompt))]  # without bos an empty one is none
    if not prompts:
        raise ValueError("all prompts are empty, and the tokenizer has no bos to begin a text with: give others")
    room = prompt_room(model)
    # What is no number of this model is a contradiction, which the other half finds.
    most = min((number for number in (room, max_prompt_tokens) if number is not None), default=None)
    content = {
        "prompts": json.dumps(prompts),
        "facts": json.dumps(_facts(model, tokenizer)),
        "limit": limit,
        "eos_id": -1 if tokenizer.eos_id is None else tokenizer.eos_id,
        "suppressed_ids": np.array(tokenizer.suppressed_ids, "int32"),
    }
    for row, prompt in enumerate(prompts):
        content[f"prompt_ids_{row}"] = tokenizer.encode(prompt)
    for mode in MODES:
        options = [options_of(mode, row) for row in range(len(prompts))]
        columns = {name: [row[name] for row in options] for name in options[0]}
        counts = [min(count, limit) for count in columns.pop("max_new_tokens")]
        texts = []
        for row, result in enumerate(task.write(prompts, counts, max_prompt_tokens=most, **columns)):
            ids, _ = read_ids(tokenizer, prompts[row], most)
            texts.append(np.concatenate([ids, np.asarray(result.token_ids, "int32")]))
            content[f"{mode}_ids_{row}"] = texts[row]
            content[f"{mode}_first_{row}"] = len(ids)
            content[f"{mode}_ended_{row}"] = result.stop_reason == "eos"
            content[f"{mode}_text_{row}"] = result.text
            content[f"{mode}_truncated_{row}"] = result.truncated
        for row, logits in enumerate(logits_along(model, texts)):
            content[f"{mode}_logits_{row}"] = logits[content[f"{mode}_first_{row}"] - 1 :]
    options = {name: column.tolist() for name, column in columns_of_longest(min(limit, MOST_TOKENS)).items()}
    several = prompts[:1] * len(options["seed"])
    longest = task.write(several, options.pop("max_new_tokens"), max_prompt_tokens=most, **options)
    content["longest"] = np.array([len(text.token_ids) for text in longest])
    np.savez(path, **content, **_scores(task, prompts, content, most), **_long(model, content, len(prompts)))


def logits_along(model, texts):
    """The logits (time, vocabulary) of each text, all read in one pass without state, padded on the right."""
    width = max(map(len, texts))
    rows = max(1, _AT_ONCE // (width * model.vocabulary_size))
    for first in range(0, len(texts), rows):
        part = texts[first : first + rows]
        padded = np.zeros((len(part), width), "int32")
        for row, text in zip(padded, part, strict=True):
            row[: len(text)] = text
        for logits, text in zip(np.asarray(model(padded)), part, strict=True):
            yield logits[: len(text)]


def _facts(model, tokenizer):
    state = {
        name: {"shape": list(leaf.shape), "dtype": str(np.asarray(leaf).dtype)}
        for name, leaf in model.initial_state(1).items()
    }
    return {
        "model": type(model).__name__,
        "max_length": model.max_length,
        "vocabulary_size": model.vocabulary_size,
        "tokenizer_hash": tokenizer.hash,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "suppressed_ids": list(tokenizer.suppressed_ids),
        "state": state,
        "prefill_lengths": list(RECURRENT_PREFILLS if model.max_length is None else buckets(model.max_length)),
    }


def _scores(task, prompts, content, most):
    """How probable the model finds each prompt with its greedy text: from its logits, in float64 and by NumPy alone."""
    texts, most = [], most or np.inf
    for row, prompt in enumerate(prompts):
        text = prompt + str(content[f"greedy_text_{row}"])
        while text and len(task.ids_of(text)) > most:
            text = text[: len(text) // 2]
        texts.append(text)
    ids = [task.ids_of(text) for text in texts]
    # Without bos an empty text has no id at all.
    logits = logits_along(task.model, [row if len(row) else np.zeros(1, "int32") for row in ids])
    sums = [log_probabilities(along[:-1], row[1:]).sum() for along, row in zip(logits, ids, strict=True)]
    return {
        "score_texts": json.dumps(texts),
        "score_log_probability": np.array(sums),
        "score_num_tokens": np.array([max(0, len(row) - 1) for row in ids]),
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


def _long(model, content, rows):
    """A text as long as the longest prefill of a LiteRT file, and the model's logits after every prefill of it."""
    lengths = list(RECURRENT_PREFILLS if model.max_length is None else buckets(model.max_length))
    some = np.concatenate([content[f"greedy_ids_{row}"] for row in range(rows)])
    most = max(lengths) + 2
    ids = np.resize(some, most if model.max_length is None else min(most, model.max_length))
    (logits,) = logits_along(model, [ids])
    found, places = {}, sorted({(length, count) for length in lengths for count in (length, length // 2 + 1)})
    for length, count in places:
        found[f"long_logits_{length}_{count}"] = logits[count - 1 : count + 2]
    return {"long_ids": ids, "long_places": np.array(places), **found}
