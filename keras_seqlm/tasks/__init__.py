"""Applications: a model and a tokenizer that know what goes in and what comes out."""

from keras_seqlm.tasks.classification import Classification, TextClassification
from keras_seqlm.tasks.embedding import TextEmbedding
from keras_seqlm.tasks.evaluation import evaluate
from keras_seqlm.tasks.fill_mask import Candidate, FilledMask, FillMask
from keras_seqlm.tasks.question_answering import Answer, QuestionAnswering
from keras_seqlm.tasks.row_task import RowTask, write_figures
from keras_seqlm.tasks.tagging import Span, Tagging, TokenTagging
from keras_seqlm.tasks.task import Task, load, settings_in, task_class
from keras_seqlm.tasks.text_generation import Text, TextGeneration
from keras_seqlm.tasks.text_to_text import TextToText, Written

__all__ = [
    "Answer",
    "Candidate",
    "Classification",
    "FillMask",
    "FilledMask",
    "QuestionAnswering",
    "RowTask",
    "Span",
    "Tagging",
    "Task",
    "Text",
    "TextClassification",
    "TextEmbedding",
    "TextGeneration",
    "TextToText",
    "TokenTagging",
    "Written",
    "evaluate",
    "load",
    "settings_in",
    "task_class",
    "write_figures",
]
