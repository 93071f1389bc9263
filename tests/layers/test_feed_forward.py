import math

import numpy as np
import pytest
from helpers import array, randomize

from keras_seqlm.layers import FeedForward

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
    weights = [array(weight) for weight in layer.weights]
    w_1, b_1, w_2, b_2 = weights if use_bias else (weights[0], 0.0, weights[1], 0.0)
    inner = x @ w_1 + b_1
    function = FUNCTIONS[activation]
    gated = activation in ("swiglu", "geglu")
    assert inner.shape[-1] == (20 if gated else 10)
    middle = function(inner[..., :10]) * inner[..., 10:] if gated else function(inner)
    np.testing.assert_allclose(array(layer(x)), middle @ w_2 + b_2, atol=1e-5)


def test_the_two_gelus_differ():
    x = np.linspace(-3, 3, 50)
    assert 1e-5 < np.abs(gelu(x) - gelu_tanh(x)).max()


def test_unknown_activation():
    with pytest.raises(ValueError, match="activation must be one of .*swiglu.*got 'tanhh'"):
        FeedForward(6, 10, "tanhh")


def test_config_round_trip():
    layer = FeedForward(6, 10, "geglu", use_bias=False)
    twin = FeedForward.from_config(layer.get_config())
    assert twin.get_config() == layer.get_config()
