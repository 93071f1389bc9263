"""Gradients that are sums over thousands of tokens are summed in float32, whatever the activations are."""

import keras
import numpy as np
import pytest
from helpers import array
from keras import ops

from keras_seqlm.layers import LearnedPositions, TokenEmbedding
from keras_seqlm.layers.dense import Dense

pytestmark = pytest.mark.backends
TOKENS = 4096
RATE = 2.0**-10  # of plain gradient descent: a power of two, so that nothing is rounded on the way


class Last(keras.layers.Layer):
    """sum(x * weights) of each row in float32, the weights being what comes in second."""

    def __init__(self):
        super().__init__(dtype="float32")

    def call(self, x, weights):
        return ops.sum(ops.cast(x, "float32") * weights, axis=(1, 2))


def gradient(layer, ids, weights, first=None):
    """What a step of training makes of d sum(layer(ids) * weights) / d weights of the layer, by name."""
    inputs, factors = keras.Input(ids.shape[1:], dtype="int32"), keras.Input(weights.shape[1:])
    model = keras.Model([inputs, factors], Last()(layer(inputs if first is None else first(inputs)), factors))
    model.compile(
        keras.optimizers.SGD(RATE), loss=lambda y, y_pred: y_pred, jit_compile=keras.backend.backend() == "jax"
    )
    before = {weight.name: array(ops.cast(weight, "float32")).astype("float64") for weight in layer.weights}
    model.train_on_batch([ids, weights], np.zeros((len(ids), 1), "float32"))
    return {weight.name: (before[weight.name] - array(ops.cast(weight, "float32"))) / RATE for weight in layer.weights}


@pytest.fixture
def weights():
    """Numbers that bfloat16 holds exactly, whose sums it does not: of one sign, in steps of 1/64."""
    return (np.random.default_rng(0).integers(64, 128, (1, TOKENS, 8)) / 64).astype("float32")


@pytest.mark.parametrize("kind", ["tokens", "positions"])
def test_a_row_that_is_read_by_many_tokens(kind, weights):
    table = TokenEmbedding(5, 8, initializer="zeros", dtype="mixed_bfloat16")
    if kind == "positions":
        table = LearnedPositions(5, 8, initializer="zeros", dtype="mixed_bfloat16")
    ids = np.full((1, TOKENS), 3, "int32")
    ids[0, 0] = 1
    found = gradient(table, ids, weights)["table"]
    np.testing.assert_allclose(found[3], weights[0, 1:].sum(0), rtol=1e-6)
    np.testing.assert_allclose(found[1], weights[0, 0], rtol=1e-6)


def test_a_bias(weights):
    dense = Dense(8, kernel_initializer="zeros", dtype="mixed_bfloat16")
    found = gradient(dense, np.zeros((1, TOKENS), "int32"), weights, first=TokenEmbedding(2, 4, dtype="mixed_bfloat16"))
    np.testing.assert_allclose(found["bias"], weights[0].sum(0), rtol=2**-8)  # rounded to bfloat16 once, at the end
