"""Losses that Keras lacks: cross-entropy with label smoothing and z-loss, and without logits in memory."""

from keras_seqlm.losses.cross_entropy import CrossEntropy, FusedCrossEntropy
from keras_seqlm.losses.fused import fused_cross_entropy

__all__ = ["CrossEntropy", "FusedCrossEntropy", "fused_cross_entropy"]
