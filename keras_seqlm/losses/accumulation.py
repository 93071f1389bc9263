"""Accumulated gradients as those of one large batch, where batches hold unequally many tokens that count."""

import contextlib
import contextvars

import keras
from keras import ops

from keras_seqlm.losses.cross_entropy import CrossEntropy
from keras_seqlm.losses.of_keras import OF_TOKENS, counted_and_seen
from keras_seqlm.losses.targets import as_weights, counted_tokens, of_tokens, share_of, without_padding
from keras_seqlm.nesting import innermost

# What the mean of the batch in work was taken over, as a share of its tokens. A thread's own, as replicas have threads.
_SHARE = contextvars.ContextVar("share", default=None)


def weigh_batches(optimizer):
    """Make an optimizer that accumulates gradients weigh the batch of each by the tokens that its loss counted.

    Keras takes the mean of the batches' means, so that a token counts the more, the fewer there are in its batch. Here
    each gradient is scaled by its batch's share of tokens that count, and their sum by that of the shares. Batches that
    count all their tokens are averaged as before. The optimizer is changed in place; it is saved as what it was, with one
    variable more.

    Args:
        optimizer: any Keras optimizer; one that wraps another is changed inside. Calling twice does no harm.
    """
    optimizer = innermost(optimizer)
    steps = getattr(optimizer, "gradient_accumulation_steps", None)
    if not steps or hasattr(optimizer, "sum_of_shares"):
        return
    optimizer.sum_of_shares = optimizer.add_variable((), dtype="float32", name="sum_of_shares")
    apply, clip = optimizer.apply, optimizer._clip_gradients

    def weigh_and_apply(grads, trainable_variables=None):
        share = _SHARE.get()
        share = 1.0 if share is None else share
        is_last = ops.equal((ops.convert_to_tensor(optimizer._iterations) + 1) % steps, 0)
        optimizer.sum_of_shares.assign_add(share)
        apply(_scaled(grads, share), trainable_variables)
        optimizer.sum_of_shares.assign(ops.where(is_last, 0.0, ops.convert_to_tensor(optimizer.sum_of_shares)))

    def divide_and_clip(means):
        return clip(_scaled(means, ops.divide_no_nan(float(steps), ops.convert_to_tensor(optimizer.sum_of_shares))))

    optimizer.apply, optimizer._clip_gradients = weigh_and_apply, divide_and_clip


def batch_weighed(model, data):
    """The context of a training step on `data`: there an optimizer of `weigh_batches` knows the batch's share."""
    if not hasattr(innermost(model.optimizer), "sum_of_shares"):
        return contextlib.nullcontext()
    vocabulary_size = getattr(model, "vocabulary_size", 2**31 - 1)
    return _weighed(_share(model.loss, vocabulary_size, *keras.utils.unpack_x_y_sample_weight(data)))


@contextlib.contextmanager
def _weighed(share):
    token = _SHARE.set(share)
    try:
        yield
    finally:
        _SHARE.reset(token)


def _scaled(gradients, scale):
    return [None if each is None else ops.multiply(each, ops.cast(scale, each.dtype)) for each in gradients]


def _share(loss, vocabulary_size, x, y, sample_weight):
    means = getattr(loss, "reduction", None) in ("sum_over_batch_size", "mean", "mean_with_sample_weight")
    if not means or not isinstance(loss, (CrossEntropy, *OF_TOKENS)):
        return None
    if isinstance(loss, CrossEntropy):
        targets = ops.cast(of_tokens(y if sample_weight is not None else without_padding(y, x)), "int32")
        counted = ops.cast(counted_tokens(targets, vocabulary_size, loss.ignore_class), "float32")
    else:
        _, counted, _ = counted_and_seen(loss, y, x, sample_weight)
    if loss.reduction == "mean_with_sample_weight" and sample_weight is not None:
        counted = counted * as_weights(sample_weight, counted)
    return share_of(counted)
