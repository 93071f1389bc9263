"""The sources that an encoder-decoder reads before it writes or scores: checked, and padded to buckets."""

import numpy as np
from keras import ops

from keras_seqlm.generation.buckets import bucket
from keras_seqlm.generation.checked_ids import checked_ids


def reads_sources(model):
    """Whether a model writes after a source: `Seq2SeqLM`."""
    return "source_ids" in getattr(model, "reads", ())


def checked_sources(model, source_ids, rows):
    """The source of each row as an int32 array; None for a model that reads none.

    Args:
        model: a language model.
        source_ids: None, or a sequence of ids for each row; of one row also the ids alone.
        rows: how many there are.

    Raises:
        ValueError: a source that the model does not read, one that it lacks, or one that is empty, too long, or not of its ids.
    """
    if not reads_sources(model):
        if source_ids is not None:
            raise ValueError(
                f"source_ids are for an encoder-decoder, and {type(model).__name__} reads no source: leave them out"
            )
        return None
    if source_ids is None:
        raise ValueError(
            f"{type(model).__name__} writes after a source: give source_ids, one sequence of ids for each row"
        )
    if rows == 1 and len(source_ids) > 0 and np.ndim(source_ids[0]) == 0:
        source_ids = [source_ids]
    if len(source_ids) != rows:
        raise ValueError(f"source_ids must be one sequence for each of {rows} rows, got {len(source_ids)}")
    sources = checked_ids(source_ids, model.source_vocabulary_size, "source")
    longest, limit = max(map(len, sources), default=0), model.max_source_length
    if limit is not None and longest > limit:
        row = next(row for row, ids in enumerate(sources) if len(ids) > limit)
        raise ValueError(f"source {row} has {len(sources[row])} ids, and the encoder reads {limit} at most: cut it")
    return sources


def padded_sources(model, sources, batch):
    """`source_ids` (batch, source time) and `source_lengths` (batch,) as tensors; rows that are none have one id.

    Args:
        model: an encoder-decoder.
        sources: from `checked_sources`.
        batch: rows of the batch, at least as many as there are sources.
    """
    limit, width = model.max_source_length, bucket(max(map(len, sources)))
    ids = np.zeros((batch, width if limit is None else min(width, limit)), "int32")
    lengths = np.ones(batch, "int32")
    for row, source in enumerate(sources):
        ids[row, : len(source)], lengths[row] = source, len(source)
    return ops.convert_to_tensor(ids), ops.convert_to_tensor(lengths)
