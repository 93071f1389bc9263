"""Any task as a run folder on disk, which is what a clean process can read."""

import contextlib
import pathlib
import shutil
import tempfile

from keras_seqlm.tasks import Task

PROMPTS = "prompts.json"


@contextlib.contextmanager
def as_run_folder(task):
    """The folder of `task`: the path itself, or a temporary folder that the task is saved to.

    A task of a run folder keeps the prompts of that folder.
    """
    if not isinstance(task, Task):
        yield pathlib.Path(task)
        return
    with tempfile.TemporaryDirectory() as folder:
        task.save(folder)
        if task.folder is not None and (task.folder / PROMPTS).is_file():
            shutil.copy(task.folder / PROMPTS, folder)
        yield pathlib.Path(folder)
