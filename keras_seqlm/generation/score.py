"""How probable a model finds a text."""

import numpy as np
from keras import ops

from keras_seqlm.generation.buckets import bucket
from keras_seqlm.generation.checked_ids import checked_ids
from keras_seqlm.generation.compiled import compiled
from keras_seqlm.generation.sources import checked_sources, padded_sources

LOGITS_AT_ONCE = 2**22  # 16 MiB of float32; TensorFlow's executor may have ten such chunks in work at once
ROWS_AT_ONCE = 32


def log_probabilities(model, token_ids, *source):
    """ln p(id_t | ids before it), float32 (batch, time - 1), for t from 1 on; pure tensors, so that an export shares it."""
    inputs = {"token_ids": token_ids[:, :-1], **dict(zip(("source_ids", "source_lengths"), source, strict=False))}
    hidden, _ = model.hidden_states(inputs, training=False)
    return of_targets(model, hidden, token_ids[:, 1:])


def of_targets(model, hidden, targets):
    """ln p of each target id from the hidden states that predict it, without all logits in memory at once.

    Args:
        model: a language model.
        hidden: (batch, time, width).
        targets: int32 (batch, time).

    Returns:
        float32 (batch, time).
    """
    batch, time = ops.shape(targets)
    tokens = max(1, LOGITS_AT_ONCE // model.vocabulary_size)  # of a chunk; cut along time, as the rows may be few
    steps = max(1, tokens // (targets.shape[0] or ROWS_AT_ONCE))

    def of_chunk(hidden, targets):
        logits = model.logits_of(hidden)
        chosen = ops.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return chosen - ops.logsumexp(logits, axis=-1)

    if isinstance(time, int) and time <= steps:
        return of_chunk(hidden, targets)
    chunks = -(-time // steps)
    filling = chunks * steps - time
    hidden = ops.pad(hidden, ((0, 0), (0, filling), (0, 0)))
    targets = ops.pad(targets, ((0, 0), (0, filling)))
    hidden = ops.transpose(ops.reshape(hidden, (batch, chunks, steps, hidden.shape[-1])), (1, 0, 2, 3))
    targets = ops.transpose(ops.reshape(targets, (batch, chunks, steps)), (1, 0, 2))
    rows = ops.map(lambda pair: of_chunk(*pair), (hidden, targets))  # (chunks, batch, steps)
    return ops.reshape(ops.transpose(rows, (1, 0, 2)), (batch, chunks * steps))[:, :time]


def score(model, sequences, source_ids=None):
    """Log-probabilities, in nats, of every id after the first of each sequence.

    Args:
        model: a language model.
        sequences: sequences of at least two ids, of any lengths.
        source_ids: of an encoder-decoder, the ids of the source of each sequence.

    Returns:
        A list of float32 arrays, each one shorter than its sequence.

    Raises:
        ValueError: a sequence too short, or longer than the model reads; an id outside the vocabulary; a source as in
            `generate`.
    """
    sequences = checked_ids(sequences, model.vocabulary_size)
    if not sequences:
        return []
    sources = checked_sources(model, source_ids, len(sequences))
    lengths = [len(sequence) for sequence in sequences]
    if min(lengths) < 2:
        raise ValueError(f"a sequence needs at least two ids to be scored, got one of {min(lengths)}")
    longest, limit = max(lengths), getattr(model, "max_length", None)
    if limit is not None and longest > limit + 1:
        raise ValueError(f"this model reads {limit} tokens at most, got a sequence of {longest}; cut it into windows")
    width = bucket(longest - 1) if limit is None else min(bucket(longest - 1), limit)
    run, rows = compiled(model, log_probabilities), []
    for first in range(0, len(sequences), ROWS_AT_ONCE):
        part = sequences[first : first + ROWS_AT_ONCE]
        padded = np.zeros((bucket(len(part), 1), width + 1), "int32")  # few sizes, so that few are traced
        for row, sequence in zip(padded, part, strict=False):
            row[: len(sequence)] = sequence
        source = padded_sources(model, sources[first : first + ROWS_AT_ONCE], len(padded)) if sources else ()
        rows.extend(ops.convert_to_numpy(run(ops.convert_to_tensor(padded), *source))[: len(part)])
    return [row[: length - 1] for row, length in zip(rows, lengths, strict=True)]
