"""How a file of ours appears: written beside, flushed to the disk, renamed, and its name flushed, too.

A process that is killed, or a machine that loses power, leaves the file of before or the new one, whole; never a piece.
"""

import contextlib
import errno
import json
import os
import pathlib
import shutil
import warnings

# What storage itself refuses, so that an error that names no file is of the one that is being written.
_OF_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE)


@contextlib.contextmanager
def replacing(path):
    """The path of a new file (or folder) beside `path`, to be written inside of the `with`; it then takes its place.

    A folder that is there goes aside first, as no system replaces one at once: a process that is killed between the two
    renames leaves it under `.old-PID-NAME`. A link stays, and what it leads to is written: so a run may lie on another disk.

    Args:
        path: of the file or folder; the folder that it lies in is made if it is not there.

    Raises:
        OSError: it could not be written; what was there before stands as it was.

    Example:

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "numbers.txt")
    >>> with replacing(path) as beside:
    ...     _ = beside.write_text("1 2 3")
    >>> path.read_text()
    '1 2 3'
    """
    path = pathlib.Path(path)
    if path.is_symlink():
        path = pathlib.Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".part-{os.getpid()}-{path.name}")  # Keras goes by the ending
    old = path.with_name(f".old-{os.getpid()}-{path.name}")
    replaces = False  # a folder
    remove(beside)
    try:
        yield beside
        if path.is_dir() and not beside.is_dir():
            raise IsADirectoryError(errno.EISDIR, "there is a folder where a file is to be written", str(path))
        for file in [*beside.rglob("*"), beside]:
            flush(file)
        if path.is_dir():  # which no system replaces at once
            remove(old)  # of a process of the same number, which was killed
            replaces = True
            os.rename(path, old)
        os.replace(beside, path)
    except BaseException as error:
        if replaces and not path.exists():
            os.rename(old, path)
        remove(beside)
        if isinstance(error, OSError) and _is_of(error, beside):
            raise refused(error, path) from error
        raise
    flush(path.parent)
    if replaces:
        try:
            remove(old)
        except OSError as error:
            warnings.warn(
                f"{path} is written; what stood there before lies in {old}: delete it ({error})", stacklevel=3
            )


def _is_of(error, beside):
    """Whether an error is of the file that is being written, which it need not name."""
    if not isinstance(error.filename, str | bytes | os.PathLike):
        return error.errno in _OF_STORAGE
    return pathlib.Path(os.fsdecode(error.filename)).is_relative_to(beside)


def refused(error, path):
    """The OSError of a write that failed, with the file that was to appear in it, and what helps.

    Args:
        error: that of the system or of a library, which often names no file, or one that is gone.
        path: of the file or folder.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "free some room, and give the same command again"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        advice = "see that it may be written to, or name another place"
    else:
        advice = "look at the disk, or name another place"
    cause = str(error) if error.errno is None else os.strerror(error.errno)
    reason = f"{cause}, so that this is not written; what stood there before is as it was: {advice}"
    return OSError(error.errno, reason, str(path))


def remove(path):
    """Delete a file, or a folder and all in it; of a link: the link. What is not there is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path, text):
    """Write a text file, as UTF-8, with the line ends that it has."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8", newline="")


def write_json(path, content):
    """Write `content` as JSON."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


class Log:
    """A text file that grows, piece by piece, each on the disk before the next; a disk that refuses does not end the work.

    What could not be written is kept, and written with the next piece; a warning says so, once until it works again.

    Args:
        path: of the file, which is replaced.
        start: what it holds at first.
    """

    def __init__(self, path, start=""):
        self.path = pathlib.Path(path)
        self._text, self._warned, self._whole = start, False, False
        self.add("")

    def add(self, text):
        """Add to the end."""
        self._text += text
        try:
            if self._whole and self.path.exists():
                with open(self.path, "a", encoding="utf-8", newline="") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
            else:  # at first, where a piece may have been cut short, and where somebody took the file away
                write_text(self.path, self._text)
            self._whole, self._warned = True, False
        except OSError as error:
            self._whole = False
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"{self.path} could not be written ({error.strerror or error}); training goes on, and it is completed when "
                    "that works again",
                    stacklevel=3,
                )


def rename(old, new):
    """Give a file or a folder another name, and have the name on the disk."""
    os.rename(old, new)
    flush(pathlib.Path(new).parent)


def flush(path):
    """From the system's buffers to the disk; of a folder: the names in it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path):
    """The dict in a JSON file; ValueError where it holds none."""
    try:
        content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: expected an object, got {type(content).__name__}")
    return content
