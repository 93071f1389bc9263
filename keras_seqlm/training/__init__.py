"""Training: recipes, learning rates, devices, and what a run shows and writes. Plain `compile` and `fit` need none of it."""

from keras_seqlm.checkpoints import Checkpoint, CheckpointError, CheckpointFormatError, Checkpoints, RunFolder
from keras_seqlm.checkpoints.history import read_history
from keras_seqlm.checkpoints.run_folder import CHECKPOINTS
from keras_seqlm.checkpoints.runs import list_runs
from keras_seqlm.devices import STRATEGIES, strategy
from keras_seqlm.devices.processes import chief_decides, is_chief
from keras_seqlm.nesting import innermost
from keras_seqlm.training.callbacks import Progress, Run, RunCallback, SampleWriter, ValidateAverage
from keras_seqlm.training.figures import Figures
from keras_seqlm.training.guards import RollBack, StopAfterSkipped, TrainingStopped
from keras_seqlm.training.history import HistoryCSV, LossPlot, plot_history
from keras_seqlm.training.optimizers import clip_after_all_reduce
from keras_seqlm.training.recipe import Recipe
from keras_seqlm.training.resume import Resume
from keras_seqlm.training.safe_optimizer import SafeOptimizer
from keras_seqlm.training.schedules import WarmupSchedule
from keras_seqlm.training.tensorboard import TensorBoardScalars

__all__ = [
    "CHECKPOINTS",
    "STRATEGIES",
    "Checkpoint",
    "CheckpointError",
    "CheckpointFormatError",
    "Checkpoints",
    "Figures",
    "HistoryCSV",
    "LossPlot",
    "Progress",
    "Recipe",
    "Resume",
    "RollBack",
    "Run",
    "RunCallback",
    "RunFolder",
    "SafeOptimizer",
    "SampleWriter",
    "TensorBoardScalars",
    "ValidateAverage",
    "StopAfterSkipped",
    "TrainingStopped",
    "WarmupSchedule",
    "chief_decides",
    "clip_after_all_reduce",
    "innermost",
    "is_chief",
    "list_runs",
    "plot_history",
    "read_history",
    "strategy",
]
