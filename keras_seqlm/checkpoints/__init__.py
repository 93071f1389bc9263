"""Checkpoints and run folders: the whole state of a run on disk, whole or not there, locked, and verified when it is read."""

from keras_seqlm.checkpoints.checkpoint import Checkpoint, CheckpointError, CheckpointFormatError, Checkpoints
from keras_seqlm.checkpoints.run_folder import RunFolder

__all__ = ["Checkpoint", "CheckpointError", "CheckpointFormatError", "Checkpoints", "RunFolder"]
