"""Any task as a run folder on disk, which is what a clean process can read."""

import contextlib
import pathlib
import shutil
import tempfile

from keras_seqlm.files import read_json
from keras_seqlm.tasks import Task, task_class

PROMPTS, EXAMPLES = "prompts.json", "examples.json"


@contextlib.contextmanager
def as_run_folder(task):
    """The folder of `task`: the path itself, or a temporary folder that the task is saved to.

    A task of a run folder keeps the prompts and rows of that folder.
    """
    if not isinstance(task, Task):
        yield pathlib.Path(task)
        return
    with tempfile.TemporaryDirectory() as folder:
        task.save(folder)
        for name in (PROMPTS, EXAMPLES) if task.folder is not None else ():
            if (task.folder / name).is_file():
                shutil.copy(task.folder / name, folder)
        yield pathlib.Path(folder)


def verb_in(folder):
    """The verb of the task in a run folder, as "classify"; None of one that writes text."""
    path = folder / "task.json"
    name = read_json(path).get("task", "TextGeneration") if path.exists() else "TextGeneration"
    served = getattr(task_class(name), "served", None)
    return None if served is None else served.verb
