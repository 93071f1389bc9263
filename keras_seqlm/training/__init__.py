"""Training: recipes, learning rates, devices, and what a run shows and writes. Plain `compile` and `fit` need none of it."""

from keras_seqlm.training.callbacks import (
    HistoryCSV,
    LossPlot,
    Progress,
    Run,
    RunCallback,
    SampleWriter,
    plot_history,
    read_history,
)
from keras_seqlm.training.distribution import STRATEGIES, clip_after_all_reduce
from keras_seqlm.training.recipe import Recipe
from keras_seqlm.training.schedules import WarmupSchedule

__all__ = [
    "STRATEGIES",
    "HistoryCSV",
    "LossPlot",
    "Progress",
    "Recipe",
    "Run",
    "RunCallback",
    "SampleWriter",
    "WarmupSchedule",
    "clip_after_all_reduce",
    "plot_history",
    "read_history",
]
