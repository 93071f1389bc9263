"""Checkpoints on disk: each a folder that appears whole or not at all, with a SHA-256 of every byte in it."""

import dataclasses
import errno
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
import time
import warnings

from keras_seqlm.checkpoints.lock import FolderLock, LockError
from keras_seqlm.files import flush, refused, remove, rename

FORMAT = 1
STATE, SHARDS, MANIFEST = "state.safetensors", "shards", "manifest.json"
LOSS = "val_loss"  # by which checkpoints are compared, where the run goes by no figure
HOPELESS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)  # errors of storage that no second attempt mends
ATTEMPTS, FIRST_WAIT = 3, 0.2  # of a write that storage refuses, and the seconds before the second one


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, or a folder without any that can; the message says which and why."""


class CheckpointFormatError(CheckpointError):
    """A checkpoint that is whole, and of a format that this version does not read: no older one stands in for it."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One checkpoint whose manifest has been read.

    Args:
        folder: where it lies.
        step: updates made before it was written.
        meta: what the writer said beside the arrays, as JSON takes it.
        shapes: name -> (dtype name, shape) of each array.
        sha256: of its manifest, which holds those of all its files.
    """

    folder: pathlib.Path
    step: int
    meta: dict
    shapes: dict
    sha256: str = ""

    def arrays(self, shardings=None, names=None):
        """The arrays, name -> NumPy array.

        Args:
            names: which of them; default all.
            shardings: name -> `jax.sharding.Sharding`; arrays that several processes wrote in parts are then read so, as
                `jax.Array`.
        """
        from safetensors import safe_open

        wanted = self.shapes if names is None else {name: self.shapes[name] for name in names}
        with safe_open(self.folder / STATE, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys() if name in wanted}
        parted = {name: form for name, form in wanted.items() if name not in arrays}
        if not parted:
            return arrays
        from keras_seqlm.checkpoints.shards import read

        return arrays | read(self.folder / SHARDS, parted, shardings)


class Checkpoints:
    """The checkpoints in a folder, `step-00000100`, `step-00000200` ..., and the rules by which they come and go.

    A checkpoint is written beside, flushed to the disk and renamed, so a process may be killed at any instant; what it
    leaves half done is swept away by the next one. A checkpoint that lost a bit is passed over for the one before.

    Args:
        folder: made if it is not there.
        keep: how many of the newest stay; the one with the lowest `validation_loss` in its meta stays, too, and where
            losses cannot be compared (see `best`) one of each kind.

    Raises:
        ValueError: `keep` is below 1.

    Example:

    >>> import numpy as np, tempfile
    >>> checkpoints = Checkpoints(tempfile.mkdtemp())
    >>> _ = checkpoints.save(100, {"w": np.zeros((2, 3), "float32")})
    >>> found = checkpoints.newest()
    >>> found.step, found.arrays()["w"].shape
    (100, (2, 3))
    """

    def __init__(self, folder, keep=2):
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.folder = pathlib.Path(folder)
        self.keep = keep
        self._lock = FolderLock(self.folder)

    def open(self, in_use=lambda: True):
        """Take the folder for this process: make it, lock it, and sweep away what a killed process left half written.

        Args:
            in_use: see `FolderLock`.

        Raises:
            OSError: another process has the folder (it is named), or it cannot be written or locked.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.in_use = in_use
            self._lock.take()
        except (FileExistsError, NotADirectoryError) as error:
            raise NotADirectoryError(
                f"checkpoints go to the folder {self.folder}, and there is a file in the way"
            ) from error
        except LockError:
            raise
        except OSError as error:
            raise type(error)(
                error.errno, f"checkpoints cannot be written ({error.strerror})", str(self.folder)
            ) from error
        for path in self.folder.glob(".part-*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob(".old-step-*"):  # killed while one was written again
            whole = self.folder / path.name.removeprefix(".old-")
            if whole.exists():
                shutil.rmtree(path, ignore_errors=True)
            else:
                rename(path, whole)

    def check_room(self, size):
        """See that the disk has room for two checkpoints of `size` bytes (OSError)."""
        free = shutil.disk_usage(self.folder).free
        if free < 2 * size:
            raise OSError(
                errno.ENOSPC,
                f"a checkpoint takes {size:,} bytes, twice that must be free, and {free:,} are",
                str(self.folder),
            )

    def close(self):
        """Give the folder back to other processes."""
        self._lock.release()

    def part(self, step):
        """Where a checkpoint is written before it gets its name; `open` sweeps away what was left there."""
        return self.folder / f".part-{step:08d}"

    def save(self, step, arrays, meta=None, parts=None):
        """Write one checkpoint; a write that storage refuses is tried three times. Returns its folder.

        Args:
            step: updates made so far.
            arrays: name -> NumPy array.
            meta: a dict that JSON takes.
            parts: `Shards`, complete, of the arrays that lie spread over several processes.

        Raises:
            OSError: it could not be written; those before are as they were.
        """
        folder = self.folder / f"step-{step:08d}"
        part, old = self.part(step), folder.with_name(f".old-{folder.name}")
        for attempt in range(ATTEMPTS):
            try:
                self._write(part, step, arrays, meta or {}, parts)
                if folder.exists():  # of a run that was damaged here and came by again
                    remove(old)
                    os.rename(folder, old)
                rename(part, folder)
                shutil.rmtree(old, ignore_errors=True)
                break
            except OSError as error:
                if old.exists() and not folder.exists():
                    rename(old, folder)
                if parts is not None:
                    parts.move_back()
                shutil.rmtree(part, ignore_errors=True)
                if error.errno in HOPELESS or attempt == ATTEMPTS - 1:
                    if parts is not None:
                        parts.delete()
                    raise refused(error, folder) from error
                time.sleep(FIRST_WAIT * 2**attempt)
        self._purge(step)
        return folder

    def meta(self, step):
        """What the writer of a checkpoint said beside its arrays; only the manifest is read.

        Raises:
            CheckpointError: it is damaged, incomplete, or of a later format than this version knows.
        """
        return self._manifest(self.folder / f"step-{step:08d}")[0]["meta"]

    def steps(self):
        """The steps of all checkpoints there, in order; none of them has been checked."""
        if not self.folder.is_dir():
            return []
        names = (path.name.removeprefix("step-") for path in self.folder.glob("step-*") if path.is_dir())
        return sorted(int(name) for name in names if name.isdigit())

    def read(self, step):
        """The `Checkpoint` of a step, each byte of it verified.

        Raises:
            CheckpointError: it is damaged, incomplete, or of a later format than this version knows.
        """
        return self._read(self.folder / f"step-{step:08d}")

    def newest(self):
        """The newest checkpoint that is whole, or None where there is none at all; damaged ones are named in a warning.

        Raises:
            CheckpointError: there are checkpoints, and none of them is whole, or one is of a later format.
        """
        damaged = []
        for step in reversed(self.steps()):
            try:
                found = self.read(step)
            except CheckpointFormatError:
                raise
            except CheckpointError as error:
                damaged.append(str(error))
                continue
            for reason in damaged:
                warnings.warn(f"{reason}; going on from {found.folder.name}, the one before", stacklevel=2)
            return found
        if damaged:
            raise CheckpointError(
                f"no checkpoint in {self.folder} is whole: {'; '.join(damaged)}. Restore the folder from a copy, or delete "
                "it to start anew"
            )
        return None

    def best(self):
        """The checkpoint with the lowest validation loss, of those whose losses can be compared with the newest one's; or with
        the best figure, where the run goes by one (`Resume(monitor=...)`): then that of the newest is meant.

        A loss of another text says nothing. Where a run went on with other settings, other data or another loss function, the
        meta of the checkpoints after that says from which step on losses are of the same, as `comparable_from`; what was saved
        before that step does not count.

        Raises:
            CheckpointError: none of them was validated, or it is damaged.
        """
        metas, first = self._metas(), self.comparable_from()
        name = self._monitor(metas)
        scores = {step: _scores(meta).get(name) for step, meta in metas.items()}
        validated = [step for step, score in scores.items() if score is not None]
        if not any(step >= first for step in validated):
            more = f"; those of steps {validated} were, before the run went on with other settings" if validated else ""
            raise CheckpointError(f"no checkpoint in {self.folder} was validated, so there is no best one{more}")
        return self.read(min((step for step in validated if step >= first), key=scores.get))

    def best_loss(self, first=None):
        """The lowest validation loss of the checkpoints from a step on; infinite where none was validated.

        Args:
            first: the step; default that from which on losses are compared with the newest one's, as in `best`.
        """
        return self.best_score(first, LOSS)

    def best_score(self, first=None, monitor=None):
        """The best figure of the checkpoints from a step on, as a number of which the lowest is best; else as `best_loss`.

        Args:
            first: see `best_loss`.
            monitor: its name; default that of the newest checkpoint.
        """
        first = self.comparable_from() if first is None else first
        metas = self._metas()
        monitor = self._monitor(metas) if monitor is None else monitor
        found = (_scores(meta).get(monitor) for step, meta in metas.items() if step >= first)
        return min((score for score in found if score is not None), default=math.inf)

    def comparable_from(self):
        """The step from which on validation losses can be compared with that of the newest checkpoint (see `best`)."""
        for step in reversed(self.steps()):
            try:
                return self.meta(step).get("comparable_from", 0)
            except CheckpointError:
                continue  # damaged: the one before says it
        return 0

    def choose(self, which):
        """The checkpoint that a user means.

        Args:
            which: "newest", "best" (see `best`), or a step.

        Raises:
            CheckpointError: there is no such one, or it is damaged; those that are there are named.
        """
        if which == "best":
            return self.best()
        if which == "newest":
            found = self.newest()
            if found is None:
                raise CheckpointError(f"there is no checkpoint in {self.folder}")
            return found
        if isinstance(which, bool) or not str(which).isdigit():
            raise CheckpointError(f"checkpoint must be 'newest', 'best' or a step, got {which!r}")
        if int(which) not in self.steps():
            raise CheckpointError(
                f"there is no checkpoint of step {which} in {self.folder}; there are {self.steps() or 'none'}"
            )
        return self.read(int(which))

    def _write(self, part, step, arrays, meta, parts):
        import numpy as np
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        whole = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
        try:
            save_file(whole, part / STATE)
        except SafetensorError as error:  # says "os error 28" where Python has an errno
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, str(error), str(part / STATE)) from error
        flush(part / STATE)
        files, shapes = {STATE: part / STATE}, {name: (array.dtype.name, array.shape) for name, array in arrays.items()}
        if parts is not None:
            files |= {f"{SHARDS}/{name}": path for name, path in parts.files().items()}
            shapes |= parts.shapes
        body = {
            "format": FORMAT,
            "step": step,
            "files": {name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for name, path in files.items()},
            "arrays": shapes,
            "meta": meta,
        }
        (part / MANIFEST).write_text(_sealed(body), encoding="utf-8")
        flush(part / MANIFEST)
        if parts is not None:
            parts.move(part / SHARDS)
        flush(part)

    def _read(self, folder):
        body, sha256 = self._manifest(folder)
        for name, expected in body["files"].items():
            try:
                size = (folder / name).stat().st_size
                if size != expected["bytes"]:
                    raise CheckpointError(f"{folder} is damaged: {name} has {size} bytes of {expected['bytes']}")
                if _sha256(folder / name) != expected["sha256"]:
                    raise CheckpointError(f"{folder} is damaged: {name} does not match its SHA-256")
            except OSError as error:
                raise CheckpointError(f"{folder} is damaged: {name} cannot be read ({error})") from error
        shapes = {name: (dtype, tuple(shape)) for name, (dtype, shape) in body["arrays"].items()}
        return Checkpoint(folder, body["step"], body["meta"], shapes, sha256)

    def _manifest(self, folder):
        try:
            text = (folder / MANIFEST).read_text(encoding="utf-8")
            body = json.loads(text)["body"]
            whole = _sealed(body) == text
        except FileNotFoundError:
            raise CheckpointError(f"{folder} is incomplete: it has no {MANIFEST}") from None
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise CheckpointError(f"{folder} is damaged: {MANIFEST} cannot be read ({error})") from error
        if not whole:
            raise CheckpointError(f"{folder} is damaged: {MANIFEST} does not match its own SHA-256")
        if body["format"] != FORMAT:
            raise CheckpointFormatError(
                f"{folder} has format {body['format']}, and this version of keras_seqlm reads format {FORMAT}; use the "
                "version that wrote it"
            )
        return body, json.loads(text)["sha256"]

    def _metas(self):
        """Step -> meta of each checkpoint whose manifest is whole; damaged ones are no candidates."""
        metas = {}
        for step in self.steps():
            try:
                metas[step] = self.meta(step)
            except CheckpointError:
                continue
        return metas

    def _monitor(self, metas):
        """By what the newest checkpoint's run goes."""
        return _monitor_of(metas[max(metas)]) if metas else LOSS

    def _purge(self, saved):
        # What is later than the one just saved was damaged, so that the run went on from before it.
        steps = [step for step in self.steps() if step <= saved]
        kept, best = set(steps[-self.keep :]), {}
        for step, meta in self._metas().items():
            kind = (meta.get("comparable_from", 0), _monitor_of(meta))
            score = _scores(meta).get(kind[1])
            if step <= saved and score is not None and (kind not in best or score < best[kind][0]):
                best[kind] = score, step
        kept |= {step for _, step in best.values()}
        for step in set(self.steps()) - kept:
            try:
                shutil.rmtree(self.folder / f"step-{step:08d}")
            except OSError as error:
                warnings.warn(f"an old checkpoint could not be deleted: {error}", stacklevel=2)


def _monitor_of(meta):
    return (meta.get("monitor") or {}).get("name", LOSS)


def _scores(meta):
    """Name -> number, the lowest of which is best: of the validation loss, and of the figure that the run goes by."""
    monitor = meta.get("monitor") or {}
    scores = {LOSS: meta.get("validation_loss")}
    if (figure := meta.get("figure")) is not None:
        scores[monitor["name"]] = -figure if monitor["mode"] == "max" else figure
    return {name: score for name, score in scores.items() if score is not None and math.isfinite(score)}


def _sealed(body):
    """The manifest's text: its body and the hash of it, in one fixed form, so that any change of a byte is seen."""
    content = json.dumps(body, sort_keys=True)
    return json.dumps({"body": body, "sha256": hashlib.sha256(content.encode()).hexdigest()}, sort_keys=True) + "\n"


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
