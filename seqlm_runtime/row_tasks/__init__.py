"""Tasks that answer rows of texts, as exports of them are read and answer: on NumPy alone."""

from seqlm_runtime.row_tasks.fill_mask import FillMask
from seqlm_runtime.row_tasks.places import Answer, Tag
from seqlm_runtime.row_tasks.reading import RowTask
from seqlm_runtime.row_tasks.whole_texts import Classify, Embed

__all__ = ["ROW_TASKS", "Answer", "Classify", "Embed", "FillMask", "RowTask", "Tag"]

ROW_TASKS = {task.verb: task for task in (Classify, Tag, Answer, Embed, FillMask)}
