"""Whether a model is right as often as it says that it is."""

import numpy as np


def reliability(confidence, right, bins=10):
    """What was said and what came, in bins of equal width: the points of a reliability diagram.

    Args:
        confidence: (rows,), the probability that was given to each answer, 0 to 1.
        right: (rows,), whether it was right.
        bins: how many.

    Returns:
        float64 (bins, 3): of each bin the mean confidence, the share that was right and the count; NaN, NaN, 0 where there is none.

    Example:

    >>> reliability([0.2, 0.9, 0.8], [0, 1, 0], bins=2).tolist()
    [[0.2, 0.0, 1.0], [0.8500000000000001, 0.5, 2.0]]

    Reference: Niculescu-Mizil and Caruana 2005; Guo et al. 2017, arXiv:1706.04599.
    """
    confidence, right = np.asarray(confidence, "float64"), np.asarray(right, "float64")
    places = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(places, minlength=bins).astype("float64")
    sums = np.stack([np.bincount(places, column, minlength=bins) for column in (confidence, right)])
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return np.column_stack([*means, counts])


def calibration_error(confidence, right, bins=10):
    """Expected calibration error: the mean over rows of |share right - mean confidence| of their bin.

    >>> round(calibration_error([0.2, 0.9, 0.8], [0, 1, 0], bins=2), 4)  # (0.2 + 2 * 0.35) / 3
    0.3
    """
    said, came, counts = reliability(confidence, right, bins).T
    return float(np.nansum(np.abs(said - came) * counts) / counts.sum())
