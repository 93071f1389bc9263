"""Products of many rows with a kernel, and their gradients in the forms that XLA computes fast on a CPU.

There a product whose left side lies transposed runs at two thirds of the speed of others (measured: 130 of 190 GFLOP/s,
benchmarks/RESULTS.md), and the gradient of every kernel is such a product. So its parts are turned in memory first.
"""

import keras
import numpy as np
from keras import ops


def project(x, kernel):
    """x W, differentiable once, with x (..., features) and W (features, width).

    Example:

    >>> tuple(project(keras.ops.ones((2, 3, 4)), keras.ops.ones((4, 5))).shape)
    (2, 3, 5)
    """
    if not compiled_for_cpu():
        return ops.matmul(x, kernel)

    @ops.custom_gradient
    def product(x, kernel):
        def gradient(*args, upstream=None):
            d = args[0] if upstream is None else upstream
            return ops.matmul(d, ops.transpose(kernel)), outer_products(x, d)

        return ops.matmul(x, kernel), gradient

    return product(value_of(x), value_of(kernel))


def add_bias(x, bias):
    """x + b, differentiable once; the gradient of b, a sum over all rows of x, is made in float32.

    XLA makes it in the dtype of x: over 4096 rows in bfloat16 it is a tenth off. torch sums in float32 by itself.

    Example:

    >>> tuple(add_bias(keras.ops.ones((2, 3, 4)), keras.ops.ones((4,))).shape)
    (2, 3, 4)
    """
    if keras.backend.backend() == "torch" or keras.backend.standardize_dtype(x.dtype) == "float32":
        return ops.add(x, bias)

    @ops.custom_gradient
    def add(x, bias):
        def gradient(*args, upstream=None):
            d = args[0] if upstream is None else upstream
            rows = tuple(range(len(x.shape) - 1))
            return d, ops.cast(ops.sum(ops.cast(d, "float32"), axis=rows), bias.dtype)

        return ops.add(x, bias), gradient

    return add(x, ops.cast(value_of(bias), x.dtype))


def outer_products(a, b):
    """The sum over all rows of a_i b_i^T: (m, n) for a (..., m) and b (..., n).

    Example:

    >>> tuple(outer_products(keras.ops.ones((2, 3, 4)), keras.ops.ones((2, 3, 5))).shape)
    (4, 5)
    """
    a, b = (ops.reshape(rows, (-1, rows.shape[-1])) for rows in (a, b))
    if not compiled_for_cpu():
        return ops.matmul(ops.transpose(a), b)
    if a.shape[1] <= b.shape[1]:  # the narrower one is turned; the result, if need be, too
        return ops.matmul(in_memory(ops.transpose(a)), b)
    return ops.transpose(in_memory(ops.matmul(in_memory(ops.transpose(b)), a)))


def matmul_in_float32(a, b):
    """A B with operands of any floating type, its sums and its result in float32.

    A product in half precision rounds its result, too: a score of 800 to the next multiple of 4 in bfloat16, and one
    above 65504 to infinity in float16.

    Example:

    >>> large = keras.ops.full((1, 64), 40.0, "float16")
    >>> float(matmul_in_float32(large, keras.ops.transpose(large))[0, 0])
    102400.0
    """
    if keras.backend.backend() == "jax":
        import jax.numpy as jnp

        return jnp.matmul(a, b, preferred_element_type="float32")  # the operands are not copied
    return ops.matmul(ops.cast(a, "float32"), ops.cast(b, "float32"))


def value_of(tensor):
    """The number that a variable holds: a custom gradient takes no variable of TensorFlow's."""
    tensor = ops.convert_to_tensor(tensor)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.convert_to_tensor(tensor)
    return tensor


def numbers_of(tensor):
    """The numbers of `tensor` as NumPy; None where there are none yet, or where the host would wait for them.

    There are none while a step is traced, in another process's part of an array there are others, and on torch's
    accelerators a look makes the host wait for the device.

    Example:

    >>> numbers_of(keras.ops.array([1, 2])).tolist()
    [1, 2]
    """
    backend = keras.backend.backend()
    if backend == "tensorflow" and not isinstance(tensor, np.ndarray) and not hasattr(tensor, "numpy"):
        return None
    if backend == "jax":
        import jax

        if isinstance(tensor, jax.core.Tracer) or not getattr(tensor, "is_fully_addressable", True):
            return None
    if backend == "torch":
        import torch

        if torch.compiler.is_compiling() or (isinstance(tensor, torch.Tensor) and tensor.device.type != "cpu"):
            return None
    return np.asarray(ops.convert_to_numpy(tensor))


def on_accelerator():
    """Whether JAX computes on a GPU or TPU."""
    if keras.backend.backend() != "jax":
        return False
    import jax

    return jax.default_backend() != "cpu"


def compiled_for_cpu():
    """Whether XLA compiles, for a CPU, what is traced now."""
    backend = keras.backend.backend()
    if backend == "jax":
        return not on_accelerator()
    if backend == "tensorflow":
        import tensorflow as tf
        from tensorflow.python.ops import control_flow_util

        by_xla = control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())
        return by_xla and not tf.config.get_visible_devices("GPU")
    return False


def in_memory(tensor):
    """The same, which XLA computes by itself: it would take a transposition into the product that follows."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.lax.optimization_barrier(tensor)
    from tensorflow.compiler.tf2xla.python import xla

    return xla.optimization_barrier(tensor)[0]
