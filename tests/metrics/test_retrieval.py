"""Nearest vectors and rank correlation, by brute force and against SciPy's."""

import numpy as np
import pytest

from keras_seqlm.metrics import retrieval
from keras_seqlm.metrics.retrieval import nearest, recall_at_1, spearman


@pytest.mark.parametrize("block", [1, 7, 1024])
def test_the_nearest_is_that_of_brute_force(monkeypatch, block):
    monkeypatch.setattr(retrieval, "BLOCK", block)
    draws = np.random.default_rng(0)
    queries, keys = draws.standard_normal((30, 4)), draws.standard_normal((20, 4))
    assert nearest(queries, keys).tolist() == [max(range(20), key=lambda k: q @ keys[k]) for q in queries]
    others = [max((k for k in range(30) if k != i), key=lambda k: queries[i] @ queries[k]) for i in range(30)]
    assert nearest(queries, queries, itself=True).tolist() == others
    ids = draws.integers(0, 3, 30)
    assert recall_at_1(queries, queries, ids, ids, True).tolist() == [ids[i] == ids[k] for i, k in enumerate(others)]


def test_another_one_takes_two():
    assert nearest(np.zeros((0, 3)), np.zeros((1, 3))).tolist() == []
    with pytest.raises(ValueError, match="takes one more"):
        nearest(np.ones((1, 3)), np.ones((1, 3)), itself=True)


def test_spearman_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    draws = np.random.default_rng(0)
    for ties in (3, 1000):
        a, b = draws.integers(0, ties, 50), draws.standard_normal(50)
        assert spearman(a, a + b) == pytest.approx(stats.spearmanr(a, a + b).statistic)
    assert spearman([1, 1], [1, 2]) == 0 and spearman([3, 1, 2], [9, -4, 0]) == pytest.approx(1)
