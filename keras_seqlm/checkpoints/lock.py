"""One process, and in it one `fit`, at a time has a folder."""

import errno
import fcntl
import os
import pathlib
import socket
import time
import weakref

NAME = ".lock"
_HELD = weakref.WeakValueDictionary()  # folder -> the `FolderLock` of this process that has it
LOOKS, BETWEEN_LOOKS = 8, 0.01  # seconds
_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


class LockError(OSError):
    """A folder that another one has, or that cannot be locked."""


class FolderLock:
    """The lock of a folder; the system lets go of it when the process dies, so that a kill leaves nothing locked.

    Args:
        folder: it must be there.
        in_use: says whether the holder in this process still works there; one that does not, as after a `fit` that
            failed, loses the lock to the next one of this process. Before it says no, nothing of it writes there any more.

    Raises:
        LockError: on `take`: another one has the folder (which, is named), or the file system cannot lock (why, is named).

    Example:

    >>> import tempfile
    >>> lock = FolderLock(tempfile.mkdtemp())
    >>> lock.take()
    >>> lock.held
    True
    >>> lock.release()
    """

    def __init__(self, folder, in_use=lambda: True):
        self.folder = pathlib.Path(folder)
        self.in_use = in_use
        self._file = None

    @property
    def held(self):
        """Whether this object has the folder."""
        return self._file is not None

    def take(self):
        """Take the folder, or raise at once; taking it twice does no harm."""
        if self.held:
            return
        other = _HELD.get(self.folder.resolve())
        if other is not None:
            if other.in_use():
                raise self._taken("this process itself")
            other.release()
        looks = LOOKS
        while not self.held:
            file = open(self.folder / NAME, "a+", encoding="utf-8")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in _TAKEN and (looks := looks - 1):
                    file.close()
                    time.sleep(BETWEEN_LOOKS)  # `is_locked` of another process has it for an instant
                    continue
                file.seek(0)
                owner = file.read().strip() or "another process"
                file.close()
                raise self._taken(owner) if error.errno in _TAKEN else _no_locks(self.folder, error) from error
            if _is_there(file, self.folder / NAME):  # else the folder was deleted or renamed meanwhile
                self._file = file
            else:
                file.close()
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._file.flush()
        _HELD[self.folder.resolve()] = self

    def release(self):
        """Give the folder back."""
        if self.held:
            _HELD.pop(self.folder.resolve(), None)
            self._file.close()
            self._file = None

    def _taken(self, owner):
        return LockError(errno.EBUSY, f"{owner} trains there; stop it, or name another folder", str(self.folder))


def is_locked(folder):
    """Whether a process works in a folder; takes nothing and writes nothing. One whose lock may not be opened counts as free."""
    try:
        file = open(pathlib.Path(folder) / NAME, encoding="utf-8")
    except (FileNotFoundError, PermissionError):
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in _TAKEN
    return False


def _no_locks(folder, error):
    name = errno.errorcode.get(error.errno, error.errno)
    return LockError(
        error.errno,
        f"its file system cannot lock files ({name}: {error.strerror}), and without a lock two processes could write one "
        "run; name a folder on another one, or have it mounted with locks (NFS: lockd running, or local_lock=flock; Lustre: "
        "flock)",
        str(folder),
    )


def _is_there(file, path):
    try:
        return os.fstat(file.fileno()).st_ino == os.stat(path).st_ino
    except FileNotFoundError:
        return False
