"""The examples in the docstrings of the room run and say what they show."""

import doctest

import pytest

from keras_seqlm.data import cache_folder, cache_lock, causal, mixtures, packing, permutation


@pytest.mark.parametrize(
    "module", [cache_folder, cache_lock, causal, mixtures, packing, permutation], ids=lambda module: module.__name__
)
def test_examples(module):
    failed, tried = doctest.testmod(module)
    assert failed == 0 and tried > 0
