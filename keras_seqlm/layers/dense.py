"""A linear layer whose gradients are fast and exact under XLA, too."""

import keras

from keras_seqlm.layers.lora import LowRank, effective
from keras_seqlm.products import add_bias, project


@keras.saving.register_keras_serializable("keras_seqlm")
class Dense(keras.layers.Dense):
    """`keras.layers.Dense`, the same numbers; to train it is `products.project` and `add_bias`, differentiable once.

    Attributes:
        kernel: W; with an adapter (`adapt`) W and its update. A call makes the two products of the adapter instead.

    Example:

    >>> tuple(Dense(5)(keras.ops.ones((2, 3, 4))).shape)
    (2, 3, 5)
    """

    def __init__(self, units, **kwargs):
        super().__init__(units, **kwargs)
        self.lora = None  # no attribute of the class, which torch would find before the layer that is set

    def adapt(self, rank, alpha, parts=None, groups=1):
        """Learn a low-rank update in place of the kernel, from the build on; see `LowRank` for the arguments."""
        parts = [("", self.units)] if parts is None else parts
        self.lora = LowRank(rank, alpha, parts, groups, dtype=self.dtype_policy)

    def adapted(self):
        """(kernel, its adapter) of each kernel that has one."""
        return [] if self.lora is None else [(self._kernel, self.lora)]

    def build(self, input_shape):
        super().build(input_shape)
        if self.lora is not None:
            self.lora.build(input_shape)
            for frozen in (self._kernel, self.bias):
                if frozen is not None:
                    frozen.trainable = False  # so that no backend makes its gradient

    @property
    def kernel(self):
        return effective(super().kernel, self.lora)

    def call(self, inputs, training=None):
        # Not by way of our own property, at which torch's compiler would cut the step in two.
        kernel = super().kernel if self.lora_enabled else self._kernel
        if keras.backend.backend() == "torch":  # product and bias in one kernel
            x = _linear(inputs, kernel, self.bias, self.compute_dtype)
        elif training:
            x = project(inputs, kernel)
            x = x if self.bias is None else add_bias(x, self.bias)
        elif self.lora is None:
            return super().call(inputs)
        else:
            x = keras.ops.matmul(inputs, kernel)
            x = x if self.bias is None else keras.ops.add(x, self.bias)
        if self.lora is not None:
            x = x + self.lora.of(keras.ops.cast(inputs, x.dtype), training)
        return x if self.activation is None else self.activation(x)

    def save_own_variables(self, store):
        if self.lora is None:
            super().save_own_variables(store)
        else:  # Keras's would write `kernel`, in which the update is, beside the adapter
            for i, weight in enumerate(self._trainable_variables):
                store[str(i)] = weight

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
