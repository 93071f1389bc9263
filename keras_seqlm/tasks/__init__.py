"""Applications: a model and a tokenizer that know what goes in and what comes out."""

from keras_seqlm.tasks.classification import Classification, TextClassification
from keras_seqlm.tasks.evaluation import evaluate
from keras_seqlm.tasks.row_task import RowTask, write_figures
from keras_seqlm.tasks.task import Task, load, settings_in
from keras_seqlm.tasks.text_generation import Text, TextGeneration

__all__ = [
    "Classification",
    "RowTask",
    "Task",
    "Text",
    "TextClassification",
    "TextGeneration",
    "evaluate",
    "load",
    "settings_in",
    "write_figures",
]
