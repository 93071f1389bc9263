"""Keras's own losses under a language model: what they must be given, so that they mean what ours do."""

import warnings

import keras
from keras import ops

from keras_seqlm.losses.targets import UNCOUNTED, as_weights, of_tokens, real_tokens, share_of

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


def targets_and_weights(loss, y, inputs, sample_weight):
    """What one of Keras's losses must be given in place of the targets and sample weights of a step.

    Weights (batch,) are one a row, which Keras would lay along time; targets of -1 weigh 0, as do tokens from `lengths`
    on, where there are no weights; and the mean is over the tokens that count, of all replicas, where Keras's is over
    each replica's own. Another loss is given what the step was given, and a warning says so where there are lengths.
    """
    if not isinstance(loss, OF_TOKENS) or len(y.shape) not in (2, 3):
        if sample_weight is None and isinstance(inputs, dict) and inputs.get("lengths") is not None:
            warnings.warn(
                f"the loss {getattr(loss, '__name__', type(loss).__name__)} counts padding: what it gives for a token is not "
                "known, so that lengths cannot mask it. Give sample_weight, or loss=keras_seqlm.losses.CrossEntropy()",
                stacklevel=2,
            )
        return y, sample_weight
    y, counted, seen = counted_and_seen(loss, y, inputs, sample_weight)
    weights = counted if sample_weight is None else counted * as_weights(sample_weight, seen)
    if loss.reduction in ("sum_over_batch_size", "mean"):
        # Keras divides by the tokens that this replica sees, less those that it is told to ignore.
        weights = weights * ops.divide_no_nan(ops.mean(seen), share_of(counted))
    return y, weights


def counted_and_seen(loss, y, inputs, sample_weight):
    """Targets that are ids wherever Keras looks one up; which tokens should count; which count for Keras.

    The last two are float32 (batch, time), 1 at such tokens. For Keras all count but those of `ignore_class`.
    """
    ignore_class = getattr(loss, "ignore_class", None)
    counts = ops.ones(ops.shape(of_tokens(y)), "bool")
    if isinstance(loss, keras.losses.SparseCategoricalCrossentropy) and ignore_class != UNCOUNTED:
        counts = ops.not_equal(ops.cast(of_tokens(y), "int32"), UNCOUNTED)
    real = real_tokens(y, inputs) if sample_weight is None else None
    counts = counts if real is None else ops.logical_and(counts, real)
    if isinstance(loss, keras.losses.SparseCategoricalCrossentropy):
        y = ops.where(
            counts if len(y.shape) == 2 else counts[..., None], y, 0 if ignore_class is None else ignore_class
        )
    counts = ops.cast(counts, "float32")
    if ignore_class is None:
        return y, counts, ops.ones_like(counts)
    seen = ops.cast(ops.not_equal(ops.cast(of_tokens(y), "int32"), ignore_class), "float32")
    return y, counts * seen, seen
