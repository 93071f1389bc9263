"""How well a language model predicts text files: the loss over every token of them."""

import math

import numpy as np
from keras import ops

from keras_seqlm import data
from keras_seqlm.generation.compiled import compiled
from keras_seqlm.generation.score import of_targets

CARRIED_TOKENS = 1024  # tokens of one call where the state is carried


def evaluate(task, files, stride=None, batch_size=32, cache_dir=None, text_field="text"):
    """Loss of the whole of some text files, each token predicted once from all the context that the model reads.

    A recurrent model reads the stream from end to end with its state carried. A Transformer reads windows of its
    context, `stride` tokens apart, and each token counts in the first window that predicts it: a smaller stride costs
    more time and gives every token more context. `bos` ids are read and not counted.

    Args:
        task: a `TextGeneration`.
        files: a path, a glob, a folder, or a list of them.
        stride: tokens between windows, 1 to the context; default the context.
        batch_size: windows of a batch.
        cache_dir: where tokens are kept; see `data.pack`.
        text_field: of a record that holds the text.

    Returns:
        dict with `loss` (nats a token), `bits_per_byte` (of the files' own bytes), `perplexity`, `num_tokens` and
        `num_bytes`.

    Raises:
        ValueError: a stride or batch size out of range, or files without text.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    store = data.pack(files, task.tokenizer, cache_dir=cache_dir, text_field=text_field)
    context = task.model.max_length
    if stride is not None and (context is None or not 1 <= stride <= context):
        wanted = "a Transformer; this model carries its state" if context is None else f"1 to {context}, the context"
        raise ValueError(f"stride is for {wanted}; got {stride}")
    pieces = (
        _carried(task.model, store, task.tokenizer.bos_id)
        if context is None
        else _windows(task.model, store, task.tokenizer.bos_id, context, stride or context, batch_size)
    )
    nats, count = 0.0, 0
    for piece_nats, piece_count in pieces:
        nats, count = nats + piece_nats, count + piece_count
    loss = nats / count
    return {
        "loss": loss,
        "bits_per_byte": nats / math.log(2) / store.num_bytes,
        "perplexity": math.exp(min(loss, 700.0)),
        "num_tokens": count,
        "num_bytes": store.num_bytes,
    }


def _window_nats(model, token_ids, targets, counted):
    hidden, _ = model.hidden_states({"token_ids": token_ids}, training=False)
    return -ops.sum(of_targets(model, hidden, targets) * counted, axis=-1)


def _carried_nats(model, state, token_ids, targets, counted, lengths):
    hidden, state = model.hidden_states({"token_ids": token_ids, "lengths": lengths}, state, training=False)
    return -ops.sum(of_targets(model, hidden, targets) * counted, axis=-1), state


def _windows(model, store, bos_id, context, stride, batch_size):
    run = compiled(model, _window_nats)
    starts = range(0, max(1, len(store) - 1 - (context - stride)), stride)
    for first in range(0, len(starts), batch_size):
        ids = np.zeros((batch_size, context + 1), "int32")
        counted = np.zeros((batch_size, context), "float32")
        for row, start in enumerate(starts[first : first + batch_size]):
            window = store[start : start + context + 1]
            ids[row, : len(window)] = window
            fresh = 0 if start == 0 else context - stride  # what the window before has predicted is context only
            counted[row, fresh : len(window) - 1] = window[1 + fresh :] != bos_id
        nats = run(*(ops.convert_to_tensor(part) for part in (ids[:, :-1], ids[:, 1:], counted)))
        yield float(np.sum(ops.convert_to_numpy(nats), dtype="float64")), int(counted.sum())


def _carried(model, store, bos_id):
    run, state = compiled(model, _carried_nats), model.initial_state(1)
    for start in range(0, len(store) - 1, CARRIED_TOKENS):
        window = store[start : start + CARRIED_TOKENS + 1]
        real = len(window) - 1
        ids = np.zeros((1, CARRIED_TOKENS + 1), "int32")
        ids[0, : len(window)] = window
        counted = np.zeros((1, CARRIED_TOKENS), "float32")
        counted[0, :real] = window[1:] != bos_id
        parts = (ids[:, :-1], ids[:, 1:], counted, np.array([real], "int32"))
        nats, state = run(state, *(ops.convert_to_tensor(part) for part in parts))
        yield float(ops.convert_to_numpy(nats)[0]), int(counted.sum())
