"""How much the examples of each class weigh in the loss."""

import math

import numpy as np


def class_weights_of(wanted, names, targets, means=None):
    """A weight for each class, float32 (classes,).

    Args:
        wanted: "balanced", where a class with fewer examples weighs more, so that those of all weigh the same together: n / (k
            n_c) of n examples, of which n_c are of one of the k classes that there are; or a dict name -> weight, 1 for others.
        names: of the classes, in their order.
        targets: int, numbers of the classes of all examples; below 0 is none.
        means: name -> names of the classes that it stands for, beside those of their own.

    Raises:
        ValueError: a name of no class, a weight that is no finite number of at least 0.

    Example:

    >>> class_weights_of("balanced", ["cash", "card"], np.array([0, 1, 1, 1])).tolist()
    [2.0, 0.6666666865348816]
    >>> class_weights_of({"cash": 3}, ["cash", "card"], np.array([0, 1])).tolist()
    [3.0, 1.0]
    """
    found = np.ones(len(names), "float32")
    if isinstance(wanted, str):
        if wanted != "balanced":
            raise ValueError(f"class_weights must be 'balanced' or a dict of names and weights, got {wanted!r}")
        counts = np.bincount(targets[targets >= 0], minlength=len(names))
        there = counts > 0
        found[there] = counts.sum() / (there.sum() * counts[there])
        return found
    means = {**(means or {}), **{name: [name] for name in names}}
    places = {name: place for place, name in enumerate(names)}
    for name, weight in wanted.items():
        if name not in means:
            shown = ", ".join(list(means)[:20]) + (", ..." if len(means) > 20 else "")
            raise ValueError(f"class_weights name {name!r}, which is no class; there are {shown}")
        if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise ValueError(f"the weight of {name!r} must be a number of at least 0, got {weight!r}")
        found[[places[one] for one in means[name]]] = weight
    if not found.any():
        raise ValueError("all class_weights are 0, so that nothing would be learned")
    return found
