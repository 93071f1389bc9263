"""The position-wise half of a Transformer block."""

import math

import keras
from keras import ops

from keras_seqlm.layers.dense import Dense, straight
from keras_seqlm.layers.quantization import Quantizable

# gelu_tanh(x) = x s(a x + b x^3), with s the logistic function: what 1 + tanh says with twice the argument.
GELU_A = 2 * math.sqrt(2 / math.pi)
GELU_B = 0.044715 * GELU_A


def gelu_tanh(x, training=False):
    """GELU by tanh, 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).

    To train on TensorFlow and JAX its gradient is by hand: TensorFlow raises to a power there and back, without XLA in
    a dozen passes over memory, and JAX keeps a second tensor of the size of x. Reference: Hendrycks and Gimpel 2016,
    arXiv:1606.08415.
    """
    if not training or keras.backend.backend() == "torch":
        return ops.gelu(x, approximate=True)

    @ops.custom_gradient
    def by_hand(x):
        half = keras.backend.standardize_dtype(x.dtype) == "float16"
        z = ops.clip(x, -30.0, 30.0) if half else x  # where s has long been 0 or 1, and the square of 257 overflows
        share = ops.sigmoid(z * (GELU_A + GELU_B * (z * z)))
        y = x * share

        def gradient(upstream):
            return upstream * (share + y * (1.0 - share) * (GELU_A + 3.0 * GELU_B * (z * z)))

        return y, gradient

    return by_hand(x)


# name -> (function, gated): a gated unit multiplies the activated half of its input with the other half.
ACTIVATIONS = {
    "relu": (lambda x, training: ops.relu(x), False),
    "gelu": (lambda x, training: ops.gelu(x, approximate=False), False),
    "gelu_tanh": (gelu_tanh, False),
    "swiglu": (lambda x, training: ops.silu(x), True),
    "geglu": (gelu_tanh, True),
}


@keras.saving.register_keras_serializable("keras_seqlm")
class FeedForward(Quantizable):
    """FFN(x) = f(x W_u + b_u) W_d + b_d, or gated: (f(x W_g + b_g) * (x W_u + b_u)) W_d + b_d.

    Gate and up are kernels of their own: a cut by columns over devices leaves each of them both parts of a unit, and no
    activation has to be taken apart.

    References: Vaswani et al. 2017, arXiv:1706.03762; gated units: Shazeer 2020, arXiv:2002.05202.

    Args:
        hidden_dim: width of input and output.
        intermediate_dim: width between the two products.
        activation: "relu", "gelu" (exact, BERT's), "gelu_tanh" (GPT-2's), "swiglu" or "geglu".
        use_bias: whether the products have a bias.
        kernel_initializer: of the first product.
        output_initializer: of the second, which writes to the residual stream.

    Call arguments:
        x: (batch, time, hidden_dim).

    Returns:
        The shape of `x`.

    Raises:
        ValueError: unknown activation.

    Example:

    >>> layer = FeedForward(hidden_dim=8, intermediate_dim=32, activation="swiglu")
    >>> tuple(layer(keras.ops.ones((2, 3, 8))).shape)
    (2, 3, 8)
    """

    adapts = ("feed_forward",)

    def __init__(
        self,
        hidden_dim,
        intermediate_dim,
        activation="gelu_tanh",
        use_bias=True,
        kernel_initializer="glorot_uniform",
        output_initializer="glorot_uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {activation!r}")
        self.hidden_dim = hidden_dim
        self.intermediate_dim = intermediate_dim
        self.activation = activation
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.output_initializer = keras.initializers.get(output_initializer)
        self.function, self.gated = ACTIVATIONS[activation]
        common = {"use_bias": use_bias, "dtype": self.dtype_policy}
        wide = {"kernel_initializer": self.kernel_initializer, **common}
        self.gate = Dense(intermediate_dim, name="gate", **wide) if self.gated else None
        self.up = Dense(intermediate_dim, name="up", **wide)
        self.down = Dense(hidden_dim, kernel_initializer=self.output_initializer, name="down", **common)

    def adapt(self, rank, alpha, names):
        """Learn low-rank updates in place of the kernels; see `LowRank`."""
        for layer in (self.gate, self.up, self.down):
            if layer is not None:
                layer.adapt(rank, alpha)

    def build(self, input_shape=None):
        for layer in (self.gate, self.up):
            if layer is not None:
                layer.build((None, None, self.hidden_dim))
        self.down.build((None, None, self.intermediate_dim))

    def call(self, x, training=None):
        up = straight(self.up, x, training=training)
        if self.gate is None:
            return straight(self.down, self.function(up, training), training=training)
        gate = self.function(straight(self.gate, x, training=training), training)
        return straight(self.down, gate * up, training=training)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "intermediate_dim": self.intermediate_dim,
            "activation": self.activation,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "output_initializer": keras.initializers.serialize(self.output_initializer),
        }
