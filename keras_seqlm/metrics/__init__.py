"""Figures by which tasks are judged, each with the interval that its number of rows allows."""

from keras_seqlm.metrics.classification import accuracy, macro_f1
from keras_seqlm.metrics.intervals import bootstrap

__all__ = ["accuracy", "bootstrap", "macro_f1"]
