"""How well spans are found: names, dates, slots. A span is right if its label and both of its ends are."""

import numpy as np

from seqlm_runtime.spans import OUTSIDE, prefix_and_label, spans_of_tags

__all__ = [
    "OUTSIDE",
    "has_prefixes",
    "prefix_and_label",
    "span_counts",
    "span_f1",
    "span_precision",
    "span_recall",
    "spans_of_tags",
]


def has_prefixes(tags):
    """Whether tags name spans: each is "O", or a prefix of IOB, IOBES or BILOU before a label."""
    return all(tag == OUTSIDE or (tag[:2] in ("B-", "I-", "E-", "S-", "L-", "U-") and len(tag) > 2) for tag in tags)


def span_counts(truth, found):
    """Of each text how many spans are right, how many there are, and how many were found: int (texts, 3).

    Args:
        truth, found: a list of texts, each a list of (start, end, label); one that stands twice counts once.
    """
    if len(truth) != len(found):
        raise ValueError(f"each text needs its truth and what was found, got {len(truth)} and {len(found)}")
    pairs = [({*map(tuple, a)}, {*map(tuple, b)}) for a, b in zip(truth, found, strict=True)]
    return np.array([(len(a & b), len(a), len(b)) for a, b in pairs], "int64").reshape(-1, 3)


def span_f1(counts):
    """F1 = 2 TP / (truth + found) over all texts and labels together, from `span_counts`; 0 where there are no spans.

    >>> span_f1(span_counts([[(0, 2, "time")], [(3, 4, "date")]], [[(0, 2, "time")], [(3, 5, "date")]]))
    0.5
    """
    right, truth, found = np.asarray(counts).sum(axis=0)
    return float(2 * right / (truth + found)) if truth + found else 0.0


def span_precision(counts):
    """The share of the spans found that are right; 0 where none was found."""
    right, _, found = np.asarray(counts).sum(axis=0)
    return float(right / found) if found else 0.0


def span_recall(counts):
    """The share of the spans there are that were found; 0 where there are none."""
    right, truth, _ = np.asarray(counts).sum(axis=0)
    return float(right / truth) if truth else 0.0
