"""A linear layer whose gradients are fast and exact under XLA, too."""

import keras

from keras_seqlm.products import add_bias, project


@keras.saving.register_keras_serializable("keras_seqlm")
class Dense(keras.layers.Dense):
    """`keras.layers.Dense`, the same numbers; to train it is `products.project` and `add_bias`, differentiable once.

    Example:

    >>> tuple(Dense(5)(keras.ops.ones((2, 3, 4))).shape)
    (2, 3, 5)
    """

    def call(self, inputs, training=None):
        if not training:
            return super().call(inputs)
        x = project(inputs, self.kernel)
        x = x if self.bias is None else add_bias(x, self.bias)
        return x if self.activation is None else self.activation(x)

    def quantize(self, mode=None, type_check=True, config=None):
        super().quantize(mode, type_check=False, config=config)  # Keras's lets no subclass do it, unless it is told to
