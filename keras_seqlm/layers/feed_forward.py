"""The position-wise half of a Transformer block."""

import keras
from keras import ops

from keras_seqlm.layers.dense import Dense

# name -> (function, gated): a gated unit multiplies the activated half of its input with the other half.
ACTIVATIONS = {
    "relu": (ops.relu, False),
    "gelu": (lambda x: ops.gelu(x, approximate=False), False),
    "gelu_tanh": (lambda x: ops.gelu(x, approximate=True), False),
    "swiglu": (ops.silu, True),
    "geglu": (lambda x: ops.gelu(x, approximate=True), True),
}


@keras.saving.register_keras_serializable("keras_seqlm")
class FeedForward(keras.layers.Layer):
    """FFN(x) = f(x W_1 + b_1) W_2 + b_2, or gated: (f(x W_g) * (x W_u)) W_2.

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
        width = intermediate_dim * (2 if self.gated else 1)
        self.up = Dense(width, kernel_initializer=self.kernel_initializer, name="up", **common)
        self.down = Dense(hidden_dim, kernel_initializer=self.output_initializer, name="down", **common)

    def build(self, input_shape=None):
        self.up.build((None, None, self.hidden_dim))
        self.down.build((None, None, self.intermediate_dim))

    def call(self, x):
        x = self.up(x)
        if self.gated:
            gate, value = ops.split(x, 2, axis=-1)
            return self.down(self.function(gate) * value)
        return self.down(self.function(x))

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
