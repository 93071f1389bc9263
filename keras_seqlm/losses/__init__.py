"""Losses that Keras lacks: cross-entropy with label smoothing and z-loss, and without logits in memory; of vectors in a batch."""

from keras_seqlm.losses.cross_entropy import CrossEntropy, FusedCrossEntropy
from keras_seqlm.losses.fused import fused_cross_entropy
from keras_seqlm.losses.in_batch import InBatchNegatives

__all__ = ["CrossEntropy", "FusedCrossEntropy", "InBatchNegatives", "fused_cross_entropy"]
