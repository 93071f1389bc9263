"""Cross-entropy of next tokens as losses for `compile`: from logits, and of a model that makes none."""

import keras
from keras import ops

from keras_seqlm.losses.fused import fused_cross_entropy
from keras_seqlm.losses.targets import as_targets, as_weights, check_targets, counted_tokens, share_of


@keras.saving.register_keras_serializable("keras_seqlm")
class CrossEntropy(keras.losses.Loss):
    """-ln p of the next token from logits, with label smoothing and z-loss.

        loss = (1 - e) * (-ln p_y) + e * mean_v(-ln p_v) + z * (ln sum_v exp(logit_v))^2

    Without smoothing and z-loss it is `keras.losses.SparseCategoricalCrossentropy(from_logits=True)`. The softmax is
    computed in float32, whatever the model's precision.

    Tokens whose target is -1 or `ignore_class` weigh 0, and so do those from `lengths` on, where a `LanguageModel` is
    given lengths and no sample weights. The mean ("sum_over_batch_size") is over the tokens that are left, of all
    devices together; sample weights multiply with the losses and leave the divisor, as in Keras.

    References: label smoothing: Szegedy et al. 2016, arXiv:1512.00567; z-loss: Chowdhery et al. 2022 (PaLM),
    arXiv:2204.02311.

    Args:
        label_smoothing: e, the share of the target's probability that is spread over the whole vocabulary.
        z_loss: z, the weight of the squared logarithm of the softmax's denominator; PaLM's is 1e-4.
        ignore_class: tokens with this target weigh 0; it need not be an id of the vocabulary.
        reduction: as in `keras.losses.Loss`.
        name: of the loss.

    Call arguments:
        y_true: integer targets (batch, time).
        y_pred: logits (batch, time, vocabulary).
        sample_weight: None, one weight a token, (batch, time), or one a row, (batch,).

    Raises:
        ValueError: a label smoothing that is not in [0, 1), a negative z-loss; sample weights of another shape; any
            other target outside the vocabulary. In a compiled step, where numbers cannot be looked at (and on torch's
            accelerators, which a look would hold up), such a token weighs 0, too.

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
        classes = _classes_of(y_pred)
        targets = self._checked(y_true, y_pred, classes)
        return super().__call__(targets, y_pred, self.weights(targets, classes, sample_weight))

    def call(self, y_true, y_pred):
        """The loss of each token, float32 (batch, time)."""
        targets = as_targets(y_true, y_pred)
        counted = counted_tokens(targets, _classes_of(y_pred), self.ignore_class)
        targets = ops.where(counted, targets, 0)
        losses = ops.sparse_categorical_crossentropy(targets, y_pred, from_logits=True)
        if self.label_smoothing:
            of_target = ops.take_along_axis(y_pred, targets[..., None], axis=-1)[..., 0]
            losses += self.label_smoothing * (of_target - ops.mean(y_pred, axis=-1))
        if self.z_loss:
            losses += self.z_loss * ops.square(ops.logsumexp(y_pred, axis=-1))
        return ops.where(counted, losses, 0.0)

    def weights(self, targets, vocabulary_size, sample_weight=None):
        """float32 (batch, time): `sample_weight` with 0 at tokens that do not count, larger where the mean is over the others."""
        counted = ops.cast(counted_tokens(targets, vocabulary_size, self.ignore_class), "float32")
        weights = counted if sample_weight is None else counted * as_weights(sample_weight, targets)
        if self.reduction in ("sum_over_batch_size", "mean"):
            weights = ops.divide_no_nan(weights, share_of(counted))
        return weights

    def _checked(self, y_true, y_pred, vocabulary_size):
        targets = as_targets(y_true, y_pred)
        check_targets(targets, vocabulary_size, self.ignore_class)
        return targets

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
        chunk_size: tokens whose logits stand in memory at once on a device; by default as many as fit 16 MiB on a
            processor and 2 GiB on an accelerator, which wants large products. Chunks are cut along time, so a chunk has
            at least one token of each row.

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
        vocabulary_size = kernel.shape[0 if vocabulary_first else 1]
        targets = self._checked(ops.convert_to_tensor(targets), hidden, vocabulary_size)
        weights = self.weights(targets, vocabulary_size, sample_weight)
        total = fused_cross_entropy(
            hidden,
            kernel,
            bias,
            targets,
            weights,
            vocabulary_first=vocabulary_first,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            chunk_size=self.chunk_size,
            gradients=training,
        )
        return self._divided(total, weights)

    def of_logits(self, logits, targets, sample_weight=None):
        """The same number, float32 (1,), of logits (batch, time, vocabulary), where a step of one's own makes them."""
        targets = self._checked(ops.convert_to_tensor(targets), logits, logits.shape[-1])
        weights = self.weights(targets, logits.shape[-1], sample_weight)
        losses = super().call(targets, ops.cast(logits, "float32"))
        return self._divided(ops.sum(losses * weights), weights)

    def _divided(self, total, weights):
        if self.reduction == "mean_with_sample_weight":
            total = ops.divide_no_nan(total, ops.sum(weights))
        elif self.reduction != "sum":
            total = ops.divide_no_nan(total, ops.cast(ops.size(weights), "float32"))
        return ops.reshape(total, (1,))

    def get_config(self):
        return {**super().get_config(), "chunk_size": self.chunk_size}


def _classes_of(y_pred):
    """How many classes there are; a tensor where they are places of rows whose width is left open."""
    return ops.shape(y_pred)[-1]
