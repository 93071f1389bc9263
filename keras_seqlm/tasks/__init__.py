"""Applications: a model and a tokenizer that know what goes in and what comes out."""

from keras_seqlm.tasks.evaluation import evaluate
from keras_seqlm.tasks.task import Task, load
from keras_seqlm.tasks.text_generation import Text, TextGeneration

__all__ = ["Task", "Text", "TextGeneration", "evaluate", "load"]
