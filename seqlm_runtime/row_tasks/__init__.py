"""Tasks that answer rows of texts, as exports of them are read and answer: on NumPy alone."""

from seqlm_runtime.row_tasks.fill_mask import FillMask
from seqlm_runtime.row_tasks.places import Answer, Tag
from seqlm_runtime.row_tasks.reading import RowTask
from seqlm_runtime.row_tasks.whole_texts import Classify, Embed

__all__ = ["ROW_TASKS", "Answer", "Classify", "Embed", "FillMask", "RowTask", "Tag"]

# Fields of a sidecar's "task", and of what kind each is.
_SAID = {"name": str, "inputs": list, "settings": dict, "room": int, "reads": list, "numbers": str, "text_bytes": list}

ROW_TASKS = {task.verb: task for task in (Classify, Tag, Answer, Embed, FillMask)}


def task_of(sidecar, tokenizer=None):
    """The task that a sidecar describes.

    Raises:
        ValueError: it describes none, or one that cannot be.
    """
    said, most = sidecar.get("task"), sidecar.get("max_prompt_tokens")
    wrong = [name for name, kind in _SAID.items() if not isinstance(said, dict) or not isinstance(said.get(name), kind)]
    if wrong or said["name"] not in ROW_TASKS:
        raise ValueError(f"the sidecar describes no task that answers rows: {wrong or said['name']}.")
    kind, names = ROW_TASKS[said["name"]], set(said["settings"])
    if any(type(number) is not int or not 0 < number < 2**31 for number in (said["room"], most)):
        raise ValueError(f"the sidecar is damaged: a room of {said['room']!r} ids, and max_prompt_tokens {most!r}.")
    if any(name.startswith("_") or not hasattr(kind, name) or callable(getattr(kind, name)) for name in names):
        raise ValueError(f"the sidecar is damaged: {said['name']} has no settings {sorted(names)}.")
    return kind(tokenizer, said["room"], said["reads"], most, **said["settings"])
