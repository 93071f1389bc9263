"""Cross-entropy of next tokens as losses for `compile`: from logits, and of a model that makes none."""

import keras
from keras import ops

from keras_seqlm.losses.fused import fused_cross_entropy


@keras.saving.register_keras_serializable("keras_seqlm")
class CrossEntropy(keras.losses.Loss):
    """-ln p of the next token from logits, with label smoothing and z-loss.

        loss = (1 - e) * (-ln p_y) + e * mean_v(-ln p_v) + z * (ln sum_v exp(logit_v))^2

    Without smoothing and z-loss it is `keras.losses.SparseCategoricalCrossentropy(from_logits=True)`. The softmax is
    computed in float32, whatever the model's precision.

    References: label smoothing: Szegedy et al. 2016, arXiv:1512.00567; z-loss: Chowdhery et al. 2022 (PaLM),
    arXiv:2204.02311.

    Args:
        label_smoothing: e, the share of the target's probability that is spread over the whole vocabulary.
        z_loss: z, the weight of the squared logarithm of the softmax's denominator; PaLM's is 1e-4.
        ignore_class: tokens with this target have loss 0, and the mean is over the others.
        reduction: as in `keras.losses.Loss`.
        name: of the loss.

    Call arguments:
        y_true: integer targets (batch, time).
        y_pred: logits (batch, time, vocabulary).
        sample_weight: None, or what multiplies with (batch, time).

    Raises:
        ValueError: a label smoothing that is not in [0, 1), a negative z-loss.

    Example:

    >>> model = keras.Sequential([keras.layers.Embedding(50, 8), keras.layers.Dense(50)])
    >>> model.compile("adam", loss=CrossEntropy(label_smoothing=0.1))
    >>> loss = CrossEntropy(ignore_class=0)(keras.ops.array([[2, 0]]), keras.ops.zeros((1, 2, 50)))
    >>> round(float(loss), 3)  # ln 50: the one token that counts
    3.912
    """

    def __init__(
        self,
        label_smoothing=0.0,
        z_loss=0.0,
        ignore_class=None,
        reduction="sum_over_batch_size",
        name="cross_entropy",
    ):
        # float32 under any `floatx`, because a half precision would round the targets' ids, too
        super().__init__(name=name, reduction=reduction, dtype="float32")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be at least 0 and below 1, got {label_smoothing!r}")
        if not 0 <= z_loss < float("inf"):
            raise ValueError(f"z_loss must be a number of at least 0, got {z_loss!r}")
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss
        self.ignore_class = ignore_class

    def __call__(self, y_true, y_pred, sample_weight=None):
        y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
        targets = _targets(y_true, y_pred)
        return super().__call__(targets, y_pred, self.weights(targets, sample_weight))

    def call(self, y_true, y_pred):
        """The loss of each token, float32 (batch, time)."""
        targets = _targets(y_true, y_pred)
        counted = None if self.ignore_class is None else ops.not_equal(targets, self.ignore_class)
        if counted is not None:
            targets = ops.where(counted, targets, 0)
        losses = ops.sparse_categorical_crossentropy(targets, y_pred, from_logits=True)
        if self.label_smoothing:
            of_target = ops.take_along_axis(y_pred, targets[..., None], axis=-1)[..., 0]
            losses += self.label_smoothing * (of_target - ops.mean(y_pred, axis=-1))
        if self.z_loss:
            losses += self.z_loss * ops.square(ops.logsumexp(y_pred, axis=-1))
        return losses if counted is None else ops.where(counted, losses, 0.0)

    def weights(self, targets, sample_weight=None):
        """`sample_weight` with 0 at ignored tokens and the mean taken over the others, as Keras applies a mask; or None."""
        if sample_weight is not None:
            sample_weight = ops.cast(ops.convert_to_tensor(sample_weight), "float32")
            if len(sample_weight.shape) == 3 and sample_weight.shape[-1] == 1:
                sample_weight = sample_weight[..., 0]
        if self.ignore_class is None:
            return sample_weight
        counted = ops.cast(ops.not_equal(targets, self.ignore_class), "float32")
        if self.reduction in ("sum_over_batch_size", "mean"):
            counted = ops.divide_no_nan(counted, ops.mean(counted))
        return counted if sample_weight is None else counted * sample_weight

    def get_config(self):
        return {
            **super().get_config(),
            "label_smoothing": self.label_smoothing,
            "z_loss": self.z_loss,
            "ignore_class": self.ignore_class,
        }


@keras.saving.register_keras_serializable("keras_seqlm")
class FusedCrossEntropy(CrossEntropy):
    """`CrossEntropy` of a `LanguageModel` without its logits: they are made, used and dropped a chunk of tokens at a time.

    The numbers are those of `CrossEntropy`. The gradient is made with the loss, chunk by chunk, so that a step needs
    three products with the projection and the memory of one chunk's logits: with a large vocabulary it is faster than
    the plain loss, and longer batches fit. Metrics of `compile` would need the logits and are refused.

    Args:
        label_smoothing, z_loss, ignore_class, reduction, name: as in `CrossEntropy`.
        chunk_size: tokens whose logits stand in memory at once; by default about 16 MiB of them. Chunks are cut along
            time, so a chunk has at least one token of each row.

    Raises:
        ValueError: no reduction, a chunk size below 1; in training a model that is no `LanguageModel`.

    Example:

    >>> from keras_seqlm.models import TransformerLM
    >>> model = TransformerLM(vocabulary_size=260, size="nano", max_length=32)
    >>> model.compile("adam", loss=FusedCrossEntropy(z_loss=1e-4))
    """

    def __init__(
        self,
        label_smoothing=0.0,
        z_loss=0.0,
        ignore_class=None,
        chunk_size=None,
        reduction="sum_over_batch_size",
        name="fused_cross_entropy",
    ):
        super().__init__(label_smoothing, z_loss, ignore_class, reduction, name)
        if reduction in (None, "none"):
            raise ValueError("FusedCrossEntropy gives one number for the batch; give a reduction, or use CrossEntropy")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, or None, got {chunk_size!r}")
        self.chunk_size = chunk_size

    def __call__(self, y_true, y_pred, sample_weight=None):
        if tuple(y_pred.shape) != (1,):
            raise ValueError(
                f"FusedCrossEntropy is computed by a LanguageModel that is compiled with it, from hidden states; here it was "
                f"given an output of shape {tuple(y_pred.shape)}. For any other model, compile(loss=CrossEntropy(...))"
            )
        return keras.losses.Loss.__call__(self, y_true, y_pred)

    def call(self, y_true, y_pred):
        """Hand on the number that `of_hidden` or `of_logits` made: Keras adds its weights, its share of a replica."""
        return y_pred

    def of_hidden(self, hidden, kernel, bias, vocabulary_first, targets, sample_weight=None, training=True):
        """The reduced loss, float32 (1,), of hidden states (batch, time, width); the rest as in `fused_cross_entropy`."""
        targets = _targets(targets, hidden)
        weights = self.weights(targets, sample_weight)
        counted = None if self.ignore_class is None else ops.not_equal(targets, self.ignore_class)
        total = fused_cross_entropy(
            hidden,
            kernel,
            bias,
            targets if counted is None else ops.where(counted, targets, 0),
            weights,
            vocabulary_first=vocabulary_first,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            chunk_size=self.chunk_size,
            gradients=training,
        )
        return self._divided(total, targets, weights)

    def of_logits(self, logits, targets, sample_weight=None):
        """The same number, float32 (1,), of logits (batch, time, vocabulary), where a step of one's own makes them."""
        targets = _targets(targets, logits)
        weights = self.weights(targets, sample_weight)
        losses = super().call(targets, ops.cast(logits, "float32"))
        return self._divided(ops.sum(losses if weights is None else losses * weights), targets, weights)

    def _divided(self, total, targets, weights):
        if self.reduction == "mean_with_sample_weight" and weights is not None:
            total = ops.divide_no_nan(total, ops.sum(weights))
        elif self.reduction != "sum":
            rows, time = ops.shape(targets)
            total = ops.divide_no_nan(total, ops.cast(rows * time, "float32"))
        return ops.reshape(total, (1,))

    def get_config(self):
        return {**super().get_config(), "chunk_size": self.chunk_size}


def _targets(y_true, y_pred):
    """int32 (batch, time) of targets that may have come as floats, or with a last axis of length 1."""
    if len(y_true.shape) == len(y_pred.shape) and y_true.shape[-1] == 1:
        y_true = ops.squeeze(y_true, axis=-1)
    return ops.cast(y_true, "int32")
