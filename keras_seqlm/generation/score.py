"""How probable a model finds a text."""

import numpy as np
from keras import ops

from keras_seqlm.generation.buckets import bucket
from keras_seqlm.generation.compiled import compiled
from keras_seqlm.generation.generate import checked_ids


def log_probabilities(model, token_ids):
    """ln p(id_t | ids before it), float32 (batch, time - 1), for t from 1 on; pure tensors, so that an export shares it."""
    logits = model({"token_ids": token_ids[:, :-1]})
    targets = token_ids[:, 1:, None]
    chosen = ops.take_along_axis(logits, targets, axis=-1)[..., 0]
    return chosen - ops.logsumexp(logits, axis=-1)


def score(model, sequences):
    """Log-probabilities, in nats, of every id after the first of each sequence.

    Args:
        model: a language model.
        sequences: sequences of at least two ids, of any lengths.

    Returns:
        A list of float32 arrays, each one shorter than its sequence.

    Raises:
        ValueError: a sequence too short, or longer than the model reads; an id outside the vocabulary.
    """
    sequences = checked_ids(sequences, model.vocabulary_size)
    if not sequences:
        return []
    lengths = [len(sequence) for sequence in sequences]
    if min(lengths) < 2:
        raise ValueError(f"a sequence needs at least two ids to be scored, got one of {min(lengths)}")
    longest, limit = max(lengths), getattr(model, "max_length", None)
    if limit is not None and longest > limit + 1:
        raise ValueError(f"this model reads {limit} tokens at most, got a sequence of {longest}; cut it into windows")
    width = bucket(longest - 1) if limit is None else min(bucket(longest - 1), limit)
    padded = np.zeros((len(sequences), width + 1), "int32")
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    rows = ops.convert_to_numpy(compiled(model, log_probabilities)(ops.convert_to_tensor(padded)))
    return [row[: length - 1] for row, length in zip(rows, lengths, strict=True)]
