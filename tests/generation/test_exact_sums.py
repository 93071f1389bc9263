"""Sums in whole numbers against Python's integers, which have no last bit to differ in."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_seqlm.generation import exact_sums

pytestmark = pytest.mark.backends


def compiled(function):
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    return function


def call(function, *arrays):
    return ops.convert_to_numpy(compiled(function)(*(ops.convert_to_tensor(array) for array in arrays)))


def weights_of(rng, rows, count):
    """Weights of every size, some of them 0 and some too small to count."""
    weights = np.exp2(-rng.uniform(0, 50, (rows, count))) * (rng.random((rows, count)) < 0.8)
    weights[np.arange(rows), rng.integers(0, count, rows)] = 1.0
    return weights.astype("float32")


def whole(weights):
    return [int(weight) for weight in np.float64(weights) * 2.0**43]


def first(numbers, enough):
    """The index at which the sum of the numbers so far is enough."""
    total = 0
    for index, number in enumerate(numbers):
        total += number
        if enough(total):
            return index
    raise AssertionError("it never is")


@pytest.mark.parametrize(("rows", "count"), [(20, 1), (20, 65), (20, 600), (3, 5000)])
def test_draws_to_the_last_bit(rows, count):
    rng = np.random.default_rng(count)
    weights = weights_of(rng, rows, count)
    parts = (rng.integers(0, 2**24, rows) * 2.0**-24).astype("float32")
    parts[:2] = 0.0, 1 - 2.0**-24
    ids = call(exact_sums.draw, weights, parts)
    for row, part, found in zip(weights, parts, ids, strict=True):
        amounts = whole(row)
        border = sum(amounts) * int(part * 2**30)
        assert found == first(amounts, lambda total, border=border: total * 2**30 > border)


@pytest.mark.parametrize(("rows", "count"), [(20, 65), (3, 5000)])
def test_keys_to_the_last_bit(rows, count):
    rng = np.random.default_rng(count)
    weights = weights_of(rng, rows, count)
    weights[0] = 0.5  # so that a half is reached exactly
    keys = rng.integers(0, 2 ** rng.integers(1, 25, (rows, 1)), (rows, count)).astype("float32")
    keys[0] = np.arange(count) % 2
    parts = rng.random(rows).astype("float32")
    parts[:2] = 0.5, 1.0
    indices = rng.integers(0, count, rows).astype("int32")
    of_parts = call(lambda k, w, p: exact_sums.key_of_part(exact_sums.keys_of(k), w, p), keys, weights, parts)[:, 0]
    at_indices = call(lambda k, i: exact_sums.key_of_index(exact_sums.keys_of(k), i), keys, indices)[:, 0]
    for row in range(rows):
        order = np.argsort(keys[row], kind="stable")
        amounts = whole(weights[row][order])
        border = sum(amounts) * int(parts[row] * 2**30)
        assert of_parts[row] == keys[row][order][first(amounts, lambda n, border=border: n * 2**30 >= border)]
        assert at_indices[row] == keys[row][order][indices[row]]


def test_keys_end_at_the_last():
    keys = call(exact_sums.keys_of, np.array([[0.0, 0.99, 7.5, 2.0**24 - 1, 2.0**24, 1e30, np.inf]], "float32"))
    assert keys.tolist() == [[0, 0, 7, 2**24 - 1, 2**24 - 1, 2**24 - 1, 2**24 - 1]]


def test_the_largest_vocabulary_of_equals():
    count = exact_sums.VOCABULARIES - 1
    weights = np.ones((2, count), "float32")
    parts = np.array([0.25, 1 - 2.0**-24], "float32")
    assert call(exact_sums.draw, weights, parts).tolist() == [int(np.floor(part * count)) for part in np.float64(parts)]
    keys = (np.arange(count) % 1000).astype("float32")[None]
    found = call(lambda k, w, p: exact_sums.key_of_part(exact_sums.keys_of(k), w, p), keys, weights[:1], parts[1:])
    assert found.tolist() == [[999]]
