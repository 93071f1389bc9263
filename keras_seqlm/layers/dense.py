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
        if keras.backend.backend() == "torch":  # product and bias in one kernel
            x = _linear(inputs, self.kernel, self.bias, self.compute_dtype)
        elif training:
            x = project(inputs, self.kernel)
            x = x if self.bias is None else add_bias(x, self.bias)
        else:
            return super().call(inputs)
        return x if self.activation is None else self.activation(x)

    def quantize(self, mode=None, type_check=True, config=None):
        super().quantize(mode, type_check=False, config=config)  # Keras's lets no subclass do it, unless it is told to


def _linear(x, kernel, bias, dtype):
    from torch.nn.functional import linear

    kernel, bias = (None if weight is None else keras.ops.cast(weight, dtype) for weight in (kernel, bias))
    return linear(keras.ops.cast(x, dtype), kernel.t(), bias)


def straight(layer, *arguments, **options):
    """`layer(...)`; on torch its `call` alone, since there Keras's way to it takes longer than a GPU's kernels.

    For layers of our own layers, which are built, take what they are given and cast by themselves.
    """
    if keras.backend.backend() != "torch" or layer.quantization_mode is not None:
        return layer(*arguments, **options)
    return layer.call(*arguments, **options)
