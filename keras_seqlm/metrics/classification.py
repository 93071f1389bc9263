"""How often a class is right."""

import numpy as np


def accuracy(truth, predicted):
    """The share of rows whose class is right.

    >>> accuracy([0, 1, 1, 2], [0, 1, 2, 2])
    0.75
    """
    return float(np.mean(np.asarray(truth) == np.asarray(predicted)))


def macro_f1(truth, predicted):
    """The mean over classes of F1 = 2 TP / (2 TP + FP + FN); a class counts that is in the truth or was predicted.

    Args:
        truth, predicted: int (rows,), classes from 0 on.

    Example:

    >>> round(macro_f1([0, 1, 1, 2], [0, 1, 2, 2]), 4)  # 1, 2/3 and 2/3
    0.7778
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    classes = int(max(truth.max(), predicted.max())) + 1
    right = np.bincount(truth[truth == predicted], minlength=classes)
    both = np.bincount(truth, minlength=classes) + np.bincount(predicted, minlength=classes)
    return float(np.mean(2 * right[both > 0] / both[both > 0]))


def confusion(truth, predicted, classes):
    """int (classes, classes): how many rows of class i were given class j."""
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    return np.bincount(truth * classes + predicted, minlength=classes * classes).reshape(classes, classes)
