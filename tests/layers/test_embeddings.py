import keras
import numpy as np
import pytest
from helpers import array
from keras import ops

from keras_seqlm.layers import LearnedPositions, TokenEmbedding, lookup

pytestmark = pytest.mark.backends


def test_rows_of_the_table_and_its_transpose():
    embedding = TokenEmbedding(vocabulary_size=7, hidden_dim=4)
    ids = np.array([[0, 6, 3], [3, 3, 1]], "int32")
    rows = embedding(ids)
    table = array(embedding.table)
    np.testing.assert_array_equal(array(rows), table[ids])
    np.testing.assert_allclose(array(embedding.project(rows)), table[ids] @ table.T, atol=1e-6)


def test_lookup_takes_ids_of_any_rank():
    table = np.arange(12, dtype="float32").reshape(4, 3)
    for ids in (np.int32(2), np.array([1, 1], "int32"), np.array([[[3], [0]]], "int32")):
        np.testing.assert_array_equal(
            array(lookup(ops.convert_to_tensor(table), ops.convert_to_tensor(ids))), table[ids]
        )


def test_float_ids_in_half_precision_are_not_rounded():
    embedding = TokenEmbedding(vocabulary_size=300, hidden_dim=4, dtype="mixed_bfloat16")
    rows = ops.cast(embedding(np.array([[259.0, 257.0]], "float32")), "float32")
    np.testing.assert_allclose(array(rows)[0], array(embedding.table)[[259, 257]], rtol=2**-7)


def adam(table, gradients, rate=0.01, beta_1=0.9, beta_2=0.999, epsilon=1e-7):
    """Kingma and Ba 2015, with the bias corrections in the rate as Keras writes them."""
    table, m, v = table.astype("float64"), 0.0, 0.0
    for t, g in enumerate(gradients, start=1):
        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g * g
        table = table - rate * np.sqrt(1 - beta_2**t) / (1 - beta_1**t) * m / (np.sqrt(v) + epsilon)
    return table


@pytest.mark.parametrize("kind", [TokenEmbedding, LearnedPositions])
def test_adam_trains_repeated_ids_by_the_sum_of_their_gradients(kind):
    layer = kind(6, 3)
    model = keras.Sequential([layer])
    model.build((2, 5))
    before = array(layer.table)
    # A loss linear in the rows: the gradient of a row is the mean over all places of the weights where its id stands.
    model.compile(keras.optimizers.Adam(0.01), loss=lambda w, rows: ops.sum(w * rows, -1), jit_compile=False)
    random = np.random.default_rng(0)
    ids = np.array([[1, 1, 1, 4, 0], [4, 1, 2, 1, 5]], "int32")  # 1 five times, 3 never
    gradients = []
    for _ in range(3):
        weights = random.standard_normal((2, 5, 3)).astype("float32")
        gradient = np.zeros((6, 3))
        np.add.at(gradient, ids, weights / ids.size)
        gradients.append(gradient)
        model.train_on_batch(ids, weights)
    np.testing.assert_allclose(array(layer.table), adam(before, gradients), atol=1e-6)
    np.testing.assert_array_equal(array(layer.table)[3], before[3])
