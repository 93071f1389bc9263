"""Products and their gradients, under XLA and without."""

import keras
import numpy as np
import pytest
from helpers import array
from keras import ops

from keras_seqlm import products
from keras_seqlm.layers.dense import Dense

pytestmark = pytest.mark.backends
RANDOM = np.random.default_rng(0)


def gradients(function, *arrays):
    """Of the sum of squares of what the function gives; compiled by XLA on TensorFlow and JAX."""
    backend = keras.backend.backend()
    tensors = [ops.convert_to_tensor(array) for array in arrays]
    if backend == "jax":
        import jax

        return jax.jit(jax.grad(lambda *t: ops.sum(ops.square(function(*t))), argnums=tuple(range(len(arrays)))))(
            *tensors
        )
    if backend == "tensorflow":
        import tensorflow as tf

        @tf.function(jit_compile=True)
        def compiled(*tensors):
            with tf.GradientTape() as tape:
                tape.watch(tensors)
                result = ops.sum(ops.square(function(*tensors)))
            return tape.gradient(result, tensors)

        return compiled(*tensors)
    for tensor in tensors:
        tensor.requires_grad_()
    ops.sum(ops.square(function(*tensors))).backward()
    return [tensor.grad for tensor in tensors]


@pytest.mark.parametrize("features, width", [(3, 7), (7, 3)])
def test_the_gradients_are_those_of_the_plain_product(features, width):
    x = RANDOM.standard_normal((2, 5, features)).astype("float32")
    kernel = RANDOM.standard_normal((features, width)).astype("float32")
    y = 2 * x @ kernel
    d_x, d_kernel = gradients(products.project, x, kernel)
    np.testing.assert_allclose(array(d_x), y @ kernel.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(array(d_kernel), np.einsum("bti,btj->ij", x, y), rtol=1e-5, atol=1e-5)


def test_it_knows_what_compiles():
    seen = []

    def function(x):
        seen.append(products.compiled_for_cpu())
        return x

    gradients(function, np.ones(2, "float32"))
    assert seen[0] == (keras.backend.backend() != "torch")
    if keras.backend.backend() == "tensorflow":
        assert not products.compiled_for_cpu()  # not in a function of XLA's
        import tensorflow as tf

        tf.function(function)(tf.ones(2))
        assert seen[-1] is False


@pytest.mark.parametrize("options", [{}, {"use_bias": False}, {"activation": "relu"}, {"dtype": "mixed_bfloat16"}])
def test_dense_is_kerass(options):
    ours, keras_s = Dense(4, **options), keras.layers.Dense(4, **options)
    x = ops.convert_to_tensor(RANDOM.standard_normal((2, 5, 3)).astype("float32"))
    ours.build(x.shape), keras_s.build(x.shape)
    for mine, theirs in zip(keras_s.weights, ours.weights, strict=True):
        mine.assign(theirs)
    for training in (False, True):
        np.testing.assert_array_equal(array(ours(x, training=training)), array(keras_s(x)))


def test_dense_takes_lora_and_int8():
    layer = Dense(4)
    layer.build((None, 3))
    layer.enable_lora(2)
    layer.lora_kernel_b.assign(ops.ones((2, 4)))
    x = ops.ones((5, 3))
    np.testing.assert_allclose(array(layer(x, training=True)), array(layer(x)), rtol=1e-6)
    quantized = Dense(4)
    quantized.build((None, 3))
    before = array(quantized(x))
    quantized.quantize("int8")
    np.testing.assert_allclose(array(quantized(x)), before, atol=0.05)


def test_numbers_are_looked_at_where_nobody_waits_for_them():
    assert products.numbers_of(ops.convert_to_tensor([1, 2])).tolist() == [1, 2]
    if keras.backend.backend() == "torch":
        import torch

        assert (
            products.numbers_of(torch.zeros(2, device="meta")) is None
        )  # as on a GPU: the numbers are not on this side
        return
    seen = []

    def traced(x):
        seen.append(products.numbers_of(x))
        return x

    if keras.backend.backend() == "jax":
        import jax

        jax.jit(traced)(np.ones(2))
    else:
        import tensorflow as tf

        tf.function(traced)(tf.ones(2))
    assert seen == [None]
