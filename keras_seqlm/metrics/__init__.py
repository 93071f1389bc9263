"""Figures by which tasks are judged, each with the interval that its number of rows allows."""

from keras_seqlm.metrics.answers import answer_f1, exact_match
from keras_seqlm.metrics.calibration import calibration_error, reliability
from keras_seqlm.metrics.classification import accuracy, macro_f1
from keras_seqlm.metrics.intervals import bootstrap
from keras_seqlm.metrics.retrieval import recall_at_1, spearman
from keras_seqlm.metrics.spans import span_counts, span_f1, spans_of_tags

__all__ = [
    "accuracy",
    "answer_f1",
    "bootstrap",
    "calibration_error",
    "exact_match",
    "macro_f1",
    "recall_at_1",
    "reliability",
    "span_counts",
    "span_f1",
    "spans_of_tags",
    "spearman",
]
