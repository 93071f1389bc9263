"""How sure a figure is: intervals by the bootstrap."""

import numpy as np

SAMPLES = 1000


def bootstrap(metric, *columns, samples=SAMPLES, seed=0, level=0.95):
    """The 95% interval of a figure, by the percentiles of what samples of the rows give.

    Args:
        metric: a function of as many arrays as `columns`, each of n rows, to a number.
        *columns: arrays of the same n rows, n at least 1.
        samples: how many times n rows are drawn, with replacement.
        seed: of the draws.
        level: share of the samples that the interval holds.

    Returns:
        (low, high), floats.

    Raises:
        ValueError: no rows.

    Example:

    >>> low, high = bootstrap(np.mean, np.array([0.0, 1.0] * 50))
    >>> round(low, 1), round(high, 1)
    (0.4, 0.6)

    Reference: Efron 1979, "Bootstrap methods: another look at the jackknife".
    """
    columns = [np.asarray(column) for column in columns]
    rows = len(columns[0])
    if rows == 0:
        raise ValueError("there are no rows to draw from")
    draws = np.random.default_rng(seed)
    found = np.empty(samples)
    for i in range(samples):
        chosen = draws.integers(rows, size=rows)
        found[i] = metric(*(column[chosen] for column in columns))
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def with_interval(name, metric, *columns):
    """`{name, name_low, name_high}` of a figure, as an evaluation gives it; see `bootstrap`."""
    low, high = bootstrap(metric, *columns)
    return {name: float(metric(*columns)), f"{name}_low": low, f"{name}_high": high}
