"""Spans of tags and their F1, against what seqeval 1.2.2 gave for the same tags (equal on 3000 random trials, too)."""

import numpy as np
import pytest

from keras_seqlm.metrics.intervals import with_interval
from keras_seqlm.metrics.spans import (
    has_prefixes,
    span_counts,
    span_f1,
    span_precision,
    span_recall,
    spans_of_tags,
)

SEQEVAL = [  # truth, found, F1
    (
        [
            "O I-b S-b S-a E-b I-b S-a",
            "I-a S-b B-b I-b B-b B-a",
            "S-b B-b I-b B-a B-a",
            "S-a S-b B-a E-a E-b E-a",
        ],
        [
            "I-a S-a S-b S-a E-b O S-a",
            "O E-a B-b I-b I-a I-a",
            "S-b S-b I-b B-a B-a",
            "S-a B-a B-a E-a E-b E-a",
        ],
        0.6153846154,
    ),
    (["I-a O I-b I-a B-b", "B-b B-a B-a B-a"], ["I-a B-b I-b I-a B-a", "O I-b I-b B-a"], 0.4285714286),
    (["I-b I-a I-b B-b", "I-a B-b O B-b I-b O I-a I-b"], ["B-a I-a O B-b", "B-b B-b O B-a I-b O I-b O"], 0.25),
    (["I-a B-a"], ["I-a B-a"], 1.0),
    (["I-a B-a", "O"], ["I-a B-b", "O"], 0.5),
    (["O O"], ["O O"], 0.0),
]


@pytest.mark.parametrize("truth, found, f1", SEQEVAL)
def test_f1_is_that_of_seqeval(truth, found, f1):
    spans = [[spans_of_tags(row.split()) for row in rows] for rows in (truth, found)]
    assert round(span_f1(span_counts(*spans)), 10) == f1


@pytest.mark.parametrize(
    "tags, spans",
    [
        ("I-a I-a O I-a", [(0, 2, "a"), (3, 4, "a")]),  # IOB1
        ("B-a B-a I-a I-b", [(0, 1, "a"), (1, 3, "a"), (3, 4, "b")]),
        ("S-a S-a B-b I-b E-b I-b", [(0, 1, "a"), (1, 2, "a"), (2, 5, "b"), (5, 6, "b")]),
        ("U-a B-b L-b", [(0, 1, "a"), (1, 3, "b")]),
        ("B-first-name I-first-name", [(0, 2, "first-name")]),
        ("", []),
    ],
)
def test_spans_of_tags(tags, spans):
    assert spans_of_tags(tags.split()) == spans


def test_precision_and_recall_have_their_own_divisors():
    counts = span_counts([[(0, 1, "a"), (2, 3, "a")], []], [[(0, 1, "a")], [(0, 1, "b"), (1, 2, "b")]])
    assert counts.tolist() == [[1, 2, 1], [0, 0, 2]]
    assert (span_precision(counts), span_recall(counts), span_f1(counts)) == (1 / 3, 1 / 2, 0.4)
    assert span_precision(counts * 0) == span_recall(counts * 0) == span_f1(counts * 0) == 0
    with pytest.raises(ValueError, match="each text"):
        span_counts([[]], [])


def test_the_interval_holds_the_figure():
    draws = np.random.default_rng(0)
    truth = [[(0, 1, "a"), (3, 4, "b")]] * 200
    found = [[(0, 1, "a")] if draws.random() < 0.5 else row for row in truth]
    figures = with_interval("span_f1", span_f1, span_counts(truth, found))
    assert figures["span_f1_low"] < figures["span_f1"] < figures["span_f1_high"]
    assert 0.02 < figures["span_f1_high"] - figures["span_f1_low"] < 0.08


def test_which_tags_name_spans():
    assert has_prefixes(["O", "B-x", "L-y"]) and not has_prefixes(["O", "NOUN"]) and not has_prefixes(["B-"])
