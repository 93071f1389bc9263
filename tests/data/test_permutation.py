"""The keyed permutation: one to one, well mixed, flat in memory, and the same for ever."""

import tracemalloc

import numpy as np
import pytest

from keras_seqlm.data.permutation import permute, stream_key


@pytest.mark.parametrize("n", [*range(1, 70), 255, 256, 257, 1000, 4097, 100_003])
@pytest.mark.parametrize("key", [0, 1, 2**64 - 1])
def test_is_one_to_one(n, key):
    places = permute(np.arange(n), n, key)
    assert places.dtype == np.int64
    np.testing.assert_array_equal(np.sort(places), np.arange(n))


def test_one_index_equals_many():
    places = permute(np.arange(12).reshape(3, 4), 1000, 7)
    assert places.shape == (3, 4)
    assert [permute(i, 1000, 7) for i in range(12)] == places.ravel().tolist()
    assert isinstance(permute(3, 10, 0), int)


def test_numbers_never_change():
    # A resumed run must see the blocks of the run that was killed: a change here breaks every checkpoint's data order.
    assert permute(np.arange(8), 8, 1).tolist() == [3, 2, 5, 1, 0, 4, 7, 6]
    assert permute(np.arange(3), 10**12, 5).tolist() == [997172181779, 850229661711, 928872332585]
    assert stream_key(1, 0, "order") == 10874558225549576502


def test_another_key_gives_another_order():
    orders = {tuple(permute(np.arange(50), 50, key)) for key in range(200)}
    assert len(orders) == 200


@pytest.mark.parametrize("n", [5, 16, 37])
def test_each_place_is_equally_likely(n):
    counts = np.bincount([permute(2, n, stream_key(key)) for key in range(4000)], minlength=n)
    expected = 4000 / n
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < (n - 1) + 5 * np.sqrt(2 * (n - 1))


def test_neighbours_are_torn_apart():
    places = permute(np.arange(10_000), 10_000, 3).astype(np.float64)
    assert abs(np.corrcoef(np.arange(10_000), places)[0, 1]) < 0.05
    assert np.mean(np.abs(np.diff(places))) > 3000  # a random order has a third of n


def test_flat_memory_at_a_million_million():
    n = 10**12
    indices = np.concatenate([np.arange(500), n - 1 - np.arange(500)])
    tracemalloc.start()
    places = permute(indices, n, 11)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
    assert len(set(places.tolist())) == 1000 and 0 <= places.min() and places.max() < n


@pytest.mark.parametrize("index, n", [(0, 0), (5, 5), (-1, 5), (0.5, 5), (0, 2**63)])
def test_refuses_what_is_out_of_range(index, n):
    with pytest.raises(ValueError, match=r"permute\(\) takes"):
        permute(index, n, 0)
