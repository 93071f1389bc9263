"""One vector for a row of hidden states."""

from keras import ops

from keras_seqlm.layers.attention import lowest

POOLINGS = ("first", "last", "mean", "max")


def pool(hidden, lengths=None, pooling="mean"):
    """From (batch, time, width) to (batch, width), padding left out.

    Args:
        hidden: (batch, time, width).
        lengths: int32 (batch,), the real tokens of each row; None for all. A row without any gives its first state, or 0.
        pooling: "first", "last", "mean" or "max". Mean and maximum are computed in float32.

    Returns:
        (batch, width) in the dtype of `hidden`.

    Example:

    >>> hidden = ops.reshape(ops.arange(6.0), (1, 3, 2))
    >>> ops.convert_to_numpy(pool(hidden, ops.array([2]), "last")).tolist()
    [[2.0, 3.0]]
    """
    if pooling == "first":
        return hidden[:, 0]
    if lengths is None:
        lengths = ops.zeros_like(hidden[:, 0, 0], "int32") + ops.shape(hidden)[1]
    steps = ops.arange(ops.shape(hidden)[1], dtype="int32")
    if pooling == "last":
        last = steps[None] == ops.maximum(lengths, 1)[:, None] - 1
        return ops.sum(ops.where(last[..., None], hidden, 0.0), axis=1)
    real = (steps[None] < lengths[:, None])[..., None]  # (batch, time, 1)
    exact = ops.cast(hidden, "float32")
    if pooling == "mean":
        total = ops.sum(ops.where(real, exact, 0.0), axis=1)
        return ops.cast(total / ops.cast(ops.maximum(lengths, 1), "float32")[:, None], hidden.dtype)
    highest = ops.max(ops.where(real, exact, lowest("float32")), axis=1)
    return ops.cast(ops.where(lengths[:, None] > 0, highest, 0.0), hidden.dtype)
