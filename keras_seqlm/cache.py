"""The key-value cache: where new keys are written, and how."""

import contextlib
import contextvars

import keras
from keras import ops

WAYS = ("scatter", "slice", "in place")
_WAY = contextvars.ContextVar("way_of_writing_one_token", default="scatter")


@contextlib.contextmanager
def single_tokens_written(way):
    """How a cache takes one new token, for what is called or traced inside.

    Args:
        way: "scatter" serves anywhere; "slice" is for LiteRT at batch 1, where it becomes one builtin (on TensorFlow
            `slice_update` is an XLA op, which a stock TF Serving binary refuses to run); "in place" changes the cache
            itself, on torch, where `scatter` copies it: for who owns the state and reads the old one no more.

    Raises:
        ValueError: an unknown way.
    """
    if way not in WAYS:
        raise ValueError(f"a cache is written by one of {list(WAYS)}, got {way!r}")
    token = _WAY.set(way)
    try:
        yield
    finally:
        _WAY.reset(token)


def cache_slots(position, lengths, time, room, heads):
    """Where the caches of all layers take the next tokens; a model makes it once.

    Args:
        position: int32 (batch,), tokens of each row that its cache holds.
        lengths: int32 (batch,), how many of the new ones are real.
        time: how many there are; 1 if it is the int 1.
        room: slots of a cache.
        heads: of a cache.

    Returns:
        What `write_cache` takes: a tuple of int32 tensors.
    """
    if isinstance(time, int) and time == 1:
        # A row that writes nothing (lengths 0) may write all the same: its own next slot, unseen until it is overwritten.
        # A full cache has none: JAX drops what is written past the end. Elsewhere such a row has ended: nothing is read
        # from its last slot again, while under JAX, on an accelerator, it may go on once it is given room.
        slot = position if keras.backend.backend() == "jax" else ops.minimum(position, room - 1)
        if _WAY.get() == "slice":
            return (slot,)
        rows = ops.arange(ops.shape(position)[0], dtype="int32")
        if _WAY.get() == "in place":
            return rows, slot
        parts = [
            ops.repeat(rows, heads),
            ops.tile(ops.arange(heads, dtype="int32"), (ops.shape(rows)[0],)),
            ops.repeat(slot, heads),
        ]
        return (ops.stack(parts, axis=-1),)  # (batch * heads, 3)
    source = ops.arange(room, dtype="int32")[None] - position[:, None]  # the new token that each slot would take
    taken = ops.logical_and(source >= 0, source < lengths[:, None])
    source = ops.clip(source, 0, time - 1)
    return ops.cast(taken, "int32")[:, None, :, None], source[:, None, :, None]


def write_cache(cache, new, slots):
    """Put row r's first `lengths[r]` new keys (or values) into its cache from `position[r]` on; the rest stays.

    Args:
        cache: (batch, heads, room, head_dim), of a floating type.
        new: (batch, heads, time, head_dim).
        slots: from `cache_slots`.

    Returns:
        The new cache, in the dtype of `cache`. What padding would write past the end is dropped.

    Raises:
        ValueError: a cache of integers, which would need scales.
    """
    dtype = keras.backend.standardize_dtype(cache.dtype)
    if "float" not in dtype:
        raise ValueError(f"a cache holds keys and values as they are, in a floating type; {dtype} would need scales")
    new = ops.cast(new, dtype)
    if new.shape[2] != 1 or len(slots[0].shape) == 4:
        taken, source = slots
        return ops.where(taken > 0, ops.take_along_axis(new, source, axis=2), cache)
    way = _WAY.get()
    if way == "slice":
        return ops.slice_update(cache, (0, 0, slots[0][0], 0), new)
    if way == "in place":
        rows, slot = slots
        cache[rows, :, slot] = new[:, :, 0]
        return cache
    return ops.scatter_update(cache, slots[0], ops.reshape(new, (-1, cache.shape[3])))


def first_cache(new, room):
    """The cache of rows that start with these keys (or values): what `write_cache` makes of an empty one, at position 0.

    Slots that padding fills are overwritten before anyone sees them.

    Args:
        new: (batch, heads, time, head_dim).
        room: slots, at least `time`.
    """
    batch, heads, time, head_dim = ops.shape(new)
    return ops.concatenate([new, ops.zeros((batch, heads, room - time, head_dim), new.dtype)], axis=2)
