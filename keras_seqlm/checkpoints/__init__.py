"""Checkpoints: the whole state of a training run on disk, each whole or not there at all, and verified when it is read."""

from keras_seqlm.checkpoints.checkpoint import Checkpoint, CheckpointError, Checkpoints

__all__ = ["Checkpoint", "CheckpointError", "Checkpoints"]
