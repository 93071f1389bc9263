"""What objectives draw by chance, of `random()` of a generator alone.

NumPy promises the bits of a Philox generator for ever, and not what its other methods make of them; what a run has seen
must not change under it.
"""

import numpy as np

from keras_seqlm.data.permutation import stream_key

LONGEST = 64  # no span drawn of `poisson_lengths` is longer


def generator_of(seed, row):
    """The random numbers of one row of a run: the same in whatever process, order and epoch it is made.

    Args:
        seed: any integer or text.
        row: number of the row, counted over the whole run.

    Returns:
        A `numpy.random.Generator`.

    Example:

    >>> generator_of(1, 7).random() == generator_of(1, 7).random() != generator_of(1, 8).random()
    True
    """
    return np.random.Generator(np.random.Philox(key=stream_key(seed, row, "noise")))


def below(n, size, random):
    """`size` integers from 0 to `n` - 1, each as probable as the others: int64 (size,)."""
    return (random.random(size) * n).astype(np.int64)


def subset(n, size, random):
    """`size` different numbers of `range(n)`, in their order, each set as probable as the others: int64 (size,)."""
    return np.sort(np.argsort(random.random(n), kind="stable")[:size])


def parts_of(total, count, random):
    """`total` cut in `count` parts of at least 1, each way as probable as the others: int64 (count,).

    Example:

    >>> parts_of(5, 5, generator_of(0, 0)).tolist()
    [1, 1, 1, 1, 1]
    """
    cuts = subset(total - 1, count - 1, random) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


def poisson_lengths(mean, total, random):
    """Lengths drawn of a Poisson distribution until they have the sum `total`, the last cut to fit: int64, some of them 0."""
    # p(k) = exp(-mean) mean^k / k!, by its logarithm
    steps = np.arange(LONGEST + 1)
    logs = steps * np.log(mean) - mean - np.concatenate([[0], np.cumsum(np.log(steps[1:]))])
    up_to = np.cumsum(np.exp(logs))
    lengths = np.zeros(0, np.int64)
    while lengths.sum() < total:
        more = np.searchsorted(up_to[:-1], random.random(total), side="right")
        lengths = np.concatenate([lengths, more])
    ends = np.cumsum(lengths)
    last = int(np.searchsorted(ends, total))
    return np.diff(np.minimum(np.concatenate([[0], ends[: last + 1]]), total))
