import math

import keras
import numpy as np
import pytest
from helpers import array, randomize
from keras import ops

from keras_seqlm.layers import FeedForward, feed_forward

pytestmark = pytest.mark.backends


def relu(x):
    return np.maximum(x, 0)


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x):
    return x / (1 + np.exp(-x))


FUNCTIONS = {"relu": relu, "gelu": gelu, "gelu_tanh": gelu_tanh, "swiglu": silu, "geglu": gelu_tanh}


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("activation", FUNCTIONS)
def test_formula(activation, use_bias):
    layer = FeedForward(6, 10, activation, use_bias=use_bias)
    layer.build()
    randomize(layer)
    x = 2 * np.random.default_rng(0).standard_normal((2, 3, 6)).astype("float32")
    weights = {weight.path.split("/")[-2] + "/" + weight.name: array(weight) for weight in layer.weights}

    def product(name, x):
        return x @ weights[f"{name}/kernel"] + weights.get(f"{name}/bias", 0.0)

    function = FUNCTIONS[activation]
    if activation in ("swiglu", "geglu"):
        middle = function(product("gate", x)) * product("up", x)
    else:
        middle = function(product("up", x))
    assert len(weights) == (3 if activation in ("swiglu", "geglu") else 2) * (2 if use_bias else 1)
    np.testing.assert_allclose(array(layer(x)), product("down", middle), atol=1e-5)


def test_the_two_gelus_of_the_layer_differ():
    """Each is nearer to its own formula than to the other one by far."""
    x = np.linspace(-3, 3, 50).astype("float32")
    for name, own, other in (("gelu", gelu, gelu_tanh), ("gelu_tanh", gelu_tanh, gelu)):
        function, _ = feed_forward.ACTIVATIONS[name]
        y = array(function(keras.ops.convert_to_tensor(x), training=False))
        assert np.abs(y - own(x)).max() < 2e-6 < 1e-4 < np.abs(y - other(x)).max()


def test_unknown_activation():
    with pytest.raises(ValueError, match="activation must be one of .*swiglu.*got 'tanhh'"):
        FeedForward(6, 10, "tanhh")


def test_config_round_trip():
    layer = FeedForward(6, 10, "geglu", use_bias=False)
    twin = FeedForward.from_config(layer.get_config())
    assert twin.get_config() == layer.get_config()


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_training_computes_the_same(activation):
    layer = FeedForward(6, 10, activation)
    x = 3 * np.random.default_rng(1).standard_normal((2, 3, 6)).astype("float32")
    np.testing.assert_allclose(array(layer(x, training=True)), array(layer(x)), rtol=1e-5, atol=1e-6)


def gelu_slopes(x, jit_compile):
    """d gelu_tanh(x) / dx as the backend at hand computes it to train."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        function = tf.function(
            lambda x: tf.gradients(feed_forward.gelu_tanh(x, training=True), x)[0], jit_compile=jit_compile
        )
        return function(tf.constant(x)).numpy()
    import jax

    function = jax.grad(lambda x: feed_forward.gelu_tanh(x, training=True).sum())
    return np.array((jax.jit(function) if jit_compile else function)(x))


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="by hand on TensorFlow and JAX")
def test_the_gradient_of_gelu_in_float16_beyond_its_square():
    x = np.array([-6e4, -1000.0, -257.0, -20.0, 20.0, 257.0, 300.0, 6e4], "float16")
    np.testing.assert_array_equal(gelu_slopes(x, False), [0, 0, 0, 0, 1, 1, 1, 1])
    y = array(feed_forward.gelu_tanh(ops.convert_to_tensor(x), training=True))
    np.testing.assert_array_equal(y, np.where(x > 0, x, 0))


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="by hand on TensorFlow and JAX")
@pytest.mark.parametrize("jit_compile", [False, True])
def test_the_gradient_by_hand_of_gelu(jit_compile):
    x = np.concatenate([np.linspace(-12.0, 12.0, 2001), [-1e4, -0.0, 1e4]]).astype("float32")
    exact = x.astype("float64")
    inner, slope = (math.sqrt(2 / math.pi) * part for part in (exact + 0.044715 * exact**3, 1 + 0.134145 * exact**2))
    t = np.tanh(inner)
    expected = 0.5 * (1 + t) + 0.5 * exact * (1 - t) * (1 + t) * slope
    np.testing.assert_allclose(gelu_slopes(x, jit_compile), expected, rtol=1e-5, atol=1e-6)
