"""Norms of the residual stream."""

import keras
from keras import ops

from keras_seqlm.products import in_memory, value_of

NORMS = ("layer", "rms")


def normalization(norm, epsilon=1e-5, **kwargs):
    """A `LayerNormalization` ("layer") or `keras.layers.RMSNormalization` ("rms") over the last axis.

    Raises:
        ValueError: another name, an epsilon that is not above 0.
    """
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {list(NORMS)}, got {norm!r}")
    if not epsilon > 0:
        raise ValueError(f"epsilon must be above 0, got {epsilon!r}")
    kind = LayerNormalization if norm == "layer" else keras.layers.RMSNormalization
    return kind(epsilon=epsilon, **kwargs)


@keras.saving.register_keras_serializable("keras_seqlm")
class LayerNormalization(keras.layers.LayerNormalization):
    """`keras.layers.LayerNormalization` over the last axis; on JAX in a form that XLA makes one kernel of.

    y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) * gamma + beta, in float32 whatever x is. Keras takes the
    variance as mean(x^2) - mean(x)^2, which costs XLA five kernels in place of one, and digits where the mean is large.
    The gradient is by hand and has no gradient of its own: call the layer without `training` to differentiate twice.

    Reference: Ba et al. 2016, arXiv:1607.06450.

    Example:

    >>> tuple(LayerNormalization()(keras.ops.ones((2, 3, 4))).shape)
    (2, 3, 4)
    """

    def call(self, inputs, training=None):
        last = self.axis in (-1, [-1], len(inputs.shape) - 1, [len(inputs.shape) - 1])
        if keras.backend.backend() != "jax" or not last or self.gamma is None or self.beta is None:
            return super().call(inputs)
        normalize = normalized_by_hand if training else normalized
        gamma, beta = (ops.cast(value_of(weight), "float32") for weight in (self.gamma, self.beta))
        return normalize(inputs, gamma, beta, self.epsilon)


def normalized(x, gamma, beta, epsilon):
    """The layer norm of `x` (..., width) in its dtype, with gamma and beta float32 (width,)."""
    return ops.cast(_standard(x, *_moments(x, epsilon)) * gamma + beta, x.dtype)


def normalized_by_hand(x, gamma, beta, epsilon):
    """`normalized`, whose gradient is written out: d x = (g - mean(g) - h mean(g h)) / sigma, with h standard, g = gamma d y.

    Mean and deviation are computed once and kept, so that the sums over all rows read x and d y alone, and once.
    """

    @ops.custom_gradient
    def function(x, gamma, beta):
        mean, inverse = (in_memory(moment) for moment in _moments(x, epsilon))

        def gradient(upstream):
            standard, d_y = _standard(x, mean, inverse), ops.cast(upstream, "float32")
            g = d_y * gamma
            d_x = g - ops.mean(g, -1, keepdims=True) - standard * ops.mean(g * standard, -1, keepdims=True)
            return ops.cast(inverse * d_x, x.dtype), *_sums_over_rows(d_y * standard, d_y)

        return ops.cast(_standard(x, mean, inverse) * gamma + beta, x.dtype), gradient

    return function(x, gamma, beta)


def _moments(x, epsilon):
    """The mean of x along the last axis and one over its standard deviation, both (..., 1) in float32."""
    x = ops.cast(x, "float32")
    mean = ops.mean(x, axis=-1, keepdims=True)
    return mean, ops.rsqrt(ops.mean(ops.square(x - mean), axis=-1, keepdims=True) + epsilon)


def _standard(x, mean, inverse):
    """x with mean 0 and variance 1 along the last axis; float32."""
    return (ops.cast(x, "float32") - mean) * inverse


def _sums_over_rows(*tensors):
    """Each (..., width) -> (width,), in one pass over all of them."""
    import jax

    rows = tuple(range(len(tensors[0].shape) - 1))
    return jax.lax.reduce(tensors, (0.0,) * len(tensors), lambda a, b: tuple(map(jax.lax.add, a, b)), rows)
