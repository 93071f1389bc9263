"""Any task as a run folder on disk, which is what a clean process can read."""

import contextlib
import pathlib
import tempfile

from keras_seqlm.tasks import Task


@contextlib.contextmanager
def as_run_folder(task):
    """The folder of `task`: the path itself, or a temporary folder that the task is saved to."""
    if not isinstance(task, Task):
        yield pathlib.Path(task)
        return
    with tempfile.TemporaryDirectory() as folder:
        task.save(folder)
        yield pathlib.Path(folder)
