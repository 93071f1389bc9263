"""Which tokens of a batch a loss counts, and with what weight."""

import contextlib
import contextvars

import keras
from keras import ops

from keras_seqlm.products import numbers_of

UNCOUNTED = -1  # the target of a token that a loss leaves out
# What sums a tensor over the processes that share a batch, in a step that torch makes in several of them.
_SUM = contextvars.ContextVar("sum_over_processes", default=None)


def as_targets(y_true, y_pred):
    """int32 (batch, time) of targets that may have come as floats, or with a last axis of length 1."""
    if len(y_true.shape) == len(y_pred.shape) and y_true.shape[-1] == 1:
        y_true = ops.squeeze(y_true, axis=-1)
    return ops.cast(y_true, "int32")


def of_tokens(y):
    """(batch, time) of what has a last axis more, a column of ids or a distribution: its first element."""
    return y if len(y.shape) == 2 else y[..., 0]


def without_padding(targets, inputs):
    """int32 targets with `UNCOUNTED` from `inputs["lengths"]` on, where there are such."""
    real = real_tokens(targets, inputs)
    if real is None:
        return targets
    real = ops.reshape(real, (*ops.shape(real), *[1] * (len(targets.shape) - 2)))
    return ops.where(real, ops.cast(targets, "int32"), UNCOUNTED)


def real_tokens(targets, inputs):
    """Bool (batch, time): the tokens before `inputs["lengths"]`; None where there are no lengths."""
    lengths = inputs.get("lengths") if isinstance(inputs, dict) else None
    if lengths is None:
        return None
    places = ops.arange(ops.shape(targets)[1], dtype="int32")
    return ops.less(places[None], ops.cast(lengths, "int32")[:, None])


def counted_tokens(targets, vocabulary_size, ignore_class=None):
    """Bool (batch, time): where the target is an id of the vocabulary, and not `ignore_class`."""
    counted = ops.logical_and(ops.greater_equal(targets, 0), ops.less(targets, vocabulary_size))
    return counted if ignore_class is None else ops.logical_and(counted, ops.not_equal(targets, ignore_class))


def check_targets(targets, vocabulary_size, ignore_class=None):
    """Refuse targets that are neither an id of the vocabulary nor a mark of tokens that do not count.

    Only where the numbers are there to be looked at, see `products.numbers_of`.
    """
    numbers = numbers_of(targets)
    if numbers is None:
        return
    strange = ((numbers < 0) | (numbers >= vocabulary_size)) & (numbers != UNCOUNTED)
    if ignore_class is not None:
        strange &= numbers != ignore_class
    if strange.any():
        raise ValueError(
            f"targets must be ids from 0 to {vocabulary_size - 1}, or {UNCOUNTED} (or ignore_class, which is "
            f"{ignore_class}) for tokens that do not count; {int(strange.sum())} of {numbers.size} are not, the first of "
            f"them {int(numbers[strange][0])}. Check the vocabulary_size of the model, or give ignore_class"
        )


def as_weights(sample_weight, targets):
    """float32 (batch, time) of sample weights: (batch, time), (batch, time, 1), or one a row, (batch,) or (batch, 1)."""
    weights = ops.cast(ops.convert_to_tensor(sample_weight), "float32")
    if len(weights.shape) == len(targets.shape) + 1 and weights.shape[-1] == 1:
        weights = ops.squeeze(weights, axis=-1)
    while len(weights.shape) < len(targets.shape):
        weights = ops.expand_dims(weights, axis=-1)
    sizes = zip(weights.shape, targets.shape, strict=False)
    if len(weights.shape) > len(targets.shape) or any(
        given not in (1, wanted) for given, wanted in sizes if None not in (given, wanted)
    ):
        raise ValueError(
            f"sample_weight must be one a row, (batch,), or one a token, (batch, time), for targets of shape "
            f"{tuple(targets.shape)}; got shape {tuple(sample_weight.shape)}"
        )
    return ops.broadcast_to(weights, ops.shape(targets))


def share_of(counted):
    """The mean of 0s and 1s, over all replicas of a `tf.distribute` strategy, or processes of torch, which see their own rows."""
    numbers = ops.stack([ops.sum(counted), ops.cast(ops.size(counted), "float32")])
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        replica = tf.distribute.get_replica_context()
        if replica is not None and replica.num_replicas_in_sync > 1:
            numbers = replica.all_reduce(tf.distribute.ReduceOp.SUM, numbers)
    elif (sum_ := _SUM.get()) is not None:
        numbers = sum_(numbers)
    return ops.divide_no_nan(numbers[0], numbers[1])


@contextlib.contextmanager
def summed_over_processes(sum_):
    """The context of a step of torch that is made on rows of one batch in several processes.

    Args:
        sum_: takes a tensor and gives its sum over all of them.
    """
    token = _SUM.set(sum_)
    try:
        yield
    finally:
        _SUM.reset(token)
