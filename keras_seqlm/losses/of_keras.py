"""Keras's own losses under a language model: what they must be given, so that they mean what ours do."""

import warnings

import keras
from keras import ops

from keras_seqlm.losses.targets import as_weights, of_tokens, real_tokens, share_of

# Those of Keras's losses that give one number a token. What a loss of the user's own gives is not known.
OF_TOKENS = (
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.CategoricalCrossentropy,
    keras.losses.CategoricalFocalCrossentropy,
)


def warn_of_probabilities(losses, model):
    """Warn of losses that expect probabilities: of logits they make numbers, too, and wrong ones."""
    for loss in losses:
        name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
        by_name = isinstance(loss, str) or getattr(loss, "__module__", "").startswith("keras.")
        named = by_name and ("crossentropy" in name.lower() or name == "ce")
        # A loss by its name, or as a function, takes probabilities; an instance says what it takes.
        if not getattr(loss, "from_logits", not named):
            warnings.warn(
                f"{type(model).__name__} gives logits, and the loss {name!r} expects probabilities as it was given: it would "
                "train on wrong numbers. Write loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), or "
                "loss=keras_seqlm.losses.CrossEntropy()",
                stacklevel=3,
            )


def token_weights(loss, y, inputs, sample_weight):
    """The sample weights for one of Keras's losses, where those that the step was given would not do.

    Weights (batch,) are one a row, which Keras would lay along time; tokens from `lengths` on weigh 0, where there are no
    weights; and the mean is over the tokens that count, of all replicas, where Keras's is over each replica's own.
    """
    if not isinstance(loss, OF_TOKENS) or len(y.shape) not in (2, 3):
        return sample_weight
    counted, seen = counted_and_seen(loss, y, inputs, sample_weight)
    if sample_weight is None and counted is seen and getattr(loss, "ignore_class", None) is None:
        return None
    weights = counted if sample_weight is None else counted * as_weights(sample_weight, seen)
    if loss.reduction in ("sum_over_batch_size", "mean"):
        # Keras divides by the tokens that this replica sees, less those that it is told to ignore.
        weights = weights * ops.divide_no_nan(ops.mean(seen), share_of(counted))
    return weights


def counted_and_seen(loss, y, inputs, sample_weight):
    """float32 (batch, time), 1 at tokens that should count, and at those that count for Keras: all but `ignore_class`."""
    tokens, ignore_class = of_tokens(y), getattr(loss, "ignore_class", None)
    if ignore_class is None:
        seen = ops.ones(ops.shape(tokens), "float32")
    else:
        seen = ops.cast(ops.not_equal(ops.cast(tokens, "int32"), ignore_class), "float32")
    real = real_tokens(y, inputs) if sample_weight is None else None
    return seen if real is None else seen * ops.cast(real, "float32"), seen
