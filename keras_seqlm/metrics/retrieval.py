"""How well vectors find what means the same."""

import numpy as np

BLOCK = 1024  # queries whose likenesses stand in memory at once


def nearest(queries, keys, itself=False):
    """For each query the key of largest inner product, int (queries,); of several the first.

    Args:
        queries: (queries, width).
        keys: (keys, width).
        itself: whether query i is key i, and must find another one.

    Example:

    >>> nearest(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0], [2.0, 0.0]])).tolist()
    [1]
    """
    queries, keys = np.asarray(queries), np.asarray(keys)
    if len(keys) < 1 + itself:
        raise ValueError(f"to find another among {len(keys)} keys takes one more")
    found = []
    for start in range(0, len(queries), BLOCK):
        likeness = queries[start : start + BLOCK] @ keys.T
        if itself:
            rows = np.arange(len(likeness))
            likeness[rows, start + rows] = -np.inf
        found.append(likeness.argmax(axis=1))
    return np.concatenate(found) if found else np.zeros(0, int)


def recall_at_1(queries, keys, query_ids, key_ids, itself=False):
    """For each query whether the nearest key has its id, bool (queries,); the mean is recall@1.

    Args:
        queries, keys, itself: see `nearest`.
        query_ids, key_ids: of each.
    """
    return np.asarray(key_ids)[nearest(queries, keys, itself)] == np.asarray(query_ids)


def spearman(a, b):
    """The correlation of the ranks of two columns of numbers, equal ones sharing the mean of theirs; 0 if one is constant.

    >>> spearman([1, 2, 3, 4], [10, 20, 40, 30])
    0.8
    """
    a, b = _ranks(a), _ranks(b)
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / size) if size else 0.0


def _ranks(numbers):
    _, groups, counts = np.unique(np.asarray(numbers, "float64"), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[groups]
