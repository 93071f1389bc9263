"""A run's folder: who has it, what it holds, and how one run takes the place of another."""

import errno
import os
import pathlib
import re
import shutil

from keras_seqlm.checkpoints.lock import NAME, FolderLock, is_locked
from keras_seqlm.files import flush, read_json, remove, rename, write_json, write_text

CHECKPOINTS, RECIPE, MODEL, FLAGS = "checkpoints", "recipe.json", "model.keras", "run.toml"
ADAPTERS = "adapters.safetensors"  # in place of a model, where a run learned adapters beside another run's
REPLACED = ".replaced"  # where a run lies while another one takes its place
COMPLETE = ".complete"  # in there: all of the run is
_BEFORE_IT_BEGAN = ("tokenizer", "prompts.json", "task.json", "model.json", FLAGS, CHECKPOINTS)


class RunFolder:
    """The folder of a run, locked before a byte of it is written or deleted.

    `open` takes it; then `holds_run` tells whether a run is there to go on with, `replace` moves that aside, and `begin`
    writes `recipe.json`, which says that all a run is made of is there, and lets go of what was replaced. A process that
    is killed in between leaves a folder in which the next `open` finds the run of before.

    Args:
        path: of the folder; `open` makes it.

    Raises:
        FileExistsError: on `open`: there is something else.
        OSError: on `open`: another process has it, or it cannot be locked.

    Example:

    >>> import tempfile
    >>> with RunFolder(tempfile.mkdtemp() + "/books") as folder:
    ...     folder.holds_run
    ...     folder.begin({"recipe": {"steps": 100}})
    ...     folder.holds_run
    False
    True
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self._lock = FolderLock(self.path)
        self._made = False

    def __enter__(self):
        self.open()
        return self

    def __exit__(self, *_):
        self.close()

    def open(self):
        """Take the folder; what a killed process left half replaced is put back."""
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"{self.path} is a file and no run folder; name another folder")
        if self.path.exists() and not self._is_ours():
            raise FileExistsError(
                f"{self.path} exists and is no run folder, so --overwrite does not delete it; name another one"
            )
        self._made = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock.take()
        if is_locked(self.path / CHECKPOINTS):  # a script of one's own, which has `Resume` alone
            self._lock.release()
            raise OSError(errno.EBUSY, "another process saves checkpoints there; stop it first", str(self.path))
        self._sweep()
        self._settle()

    def close(self):
        """Give the folder back; a new one in which nothing came to be is taken away."""
        if not self._lock.held:
            return
        self._settle()
        if self._made and {path.name for path in self.path.iterdir()} == {NAME}:
            shutil.rmtree(self.path)
        self._lock.release()

    @property
    def holds_run(self):
        """Whether a run has begun here, which may go on."""
        return (self.path / RECIPE).exists()

    def content(self):
        """What `recipe.json` says.

        Raises:
            ValueError: it is damaged.
        """
        return read_json(self.path / RECIPE)

    def replace(self):
        """Move what is here aside, until `begin`."""
        aside = self.path / REPLACED
        aside.mkdir()
        # The recipe first: without it, what is aside is the run.
        for path in sorted(self._entries(), key=lambda path: path.name != RECIPE):
            os.rename(path, aside / path.name)
        write_text(aside / COMPLETE, "")
        flush(self.path)

    def begin(self, content):
        """Write `recipe.json`, also of a run that goes on; what was replaced is deleted."""
        write_json(self.path / RECIPE, content)
        shutil.rmtree(self.path / REPLACED, ignore_errors=True)

    def _sweep(self):
        """Delete what a killed process left half written; what it had moved aside, and no more, comes back."""
        for path in list(self.path.iterdir()):
            found = re.fullmatch(r"\.(part|old)-[0-9]+-(.+)", path.name)
            if found is None:
                continue
            whole = self.path / found[2]
            if found[1] == "old" and not whole.exists():
                rename(path, whole)
            else:
                remove(path)

    def _settle(self):
        aside = self.path / REPLACED
        if not aside.exists():
            return
        if not self.holds_run:
            if (aside / COMPLETE).exists():  # what is here is of the run that did not begin
                for path in self._entries():
                    remove(path)
                (aside / COMPLETE).unlink()
            # The recipe last: with it, what is here is the run, and what is aside goes.
            for path in sorted(aside.iterdir(), key=lambda path: path.name == RECIPE):
                rename(path, self.path / path.name)
        shutil.rmtree(aside)

    def _is_ours(self):
        names = {path.name for path in self._entries()}
        return (
            bool(names & {RECIPE, MODEL, ADAPTERS}) or names <= set(_BEFORE_IT_BEGAN) or (self.path / REPLACED).exists()
        )

    def _entries(self):
        return [
            path for path in self.path.iterdir() if path.name not in (NAME, REPLACED) and not _is_half_written(path)
        ]


def finished_model(folder):
    """The file of the model that a finished run leaves, or of its adapters; None where there is none."""
    found = [path for name in (MODEL, ADAPTERS) if (path := pathlib.Path(folder) / name).is_file()]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def is_older_than_checkpoints(folder):
    """Whether the finished model of a run is that of a shorter one, which was made longer and is not finished again."""
    folder = pathlib.Path(folder)
    saved = [path.stat().st_mtime_ns for path in (folder / CHECKPOINTS).glob("step-*/manifest.json")]
    model = finished_model(folder)
    return bool(saved) and model is not None and model.stat().st_mtime_ns < max(saved)


def _is_half_written(path):
    return path.name.startswith((".part-", ".old-"))
