"""One process at a time builds a folder of the token cache; the others wait for it, but not for ever."""

import os
import socket
import sys
import time
from pathlib import Path

PATIENCE = 60  # Seconds without a sign of life from the process that builds, after which a waiting one gives up.


class CacheLock:
    """A lock file that the system lets go of when its process dies, so a kill leaves nothing locked.

    The process that has it shows with `beat()` that it lives: a process that hangs holds its lock, and so may one that
    died on another machine of a network file system.

    Args:
        path: the lock file; it stays.
        doing: what the process that has it does, for the message to those that wait.

    Attributes:
        alone: whether this process has the lock. False where the file system knows no locks.

    Raises:
        TimeoutError: on entry, if another process has the lock and gives no sign of life.

    Example:

    >>> import tempfile
    >>> with CacheLock(tempfile.mkdtemp() + "/corpus.lock") as lock:
    ...     lock.alone
    True
    """

    def __init__(self, path, doing="tokenizes the same files"):
        self.path, self.doing = Path(path), doing
        self.alone = False
        self._next_beat = 0.0

    def __enter__(self):
        self._handle = open(self.path, "a+")
        try:
            self.alone = self._acquire()
            if self.alone:
                self._handle.truncate(0)
                self._handle.write(f"process {os.getpid()} on {socket.gethostname()}")
                self._handle.flush()
        except BaseException:
            self._handle.close()
            raise
        return self

    def __exit__(self, *_):
        self._handle.close()

    def beat(self):
        """Show a waiting process that this one lives."""
        now = time.perf_counter()
        if self.alone and now >= self._next_beat:
            self._next_beat = now + 1
            os.utime(self._handle.fileno())

    def _acquire(self):
        last, since = None, 0.0
        while True:
            try:
                import fcntl

                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                beat = os.fstat(self._handle.fileno()).st_mtime_ns
            except (ImportError, OSError) as error:
                print(f"no lock on {self.path} ({error}): two calls at once do the work twice", file=sys.stderr)
                return False
            # What counts is that the time changes: the clock of a file server need not be this machine's.
            if last is None:
                print(f"waiting for {self._owner()}, which {self.doing}", file=sys.stderr)
            if beat != last:
                last, since = beat, time.perf_counter()
            elif time.perf_counter() - since > PATIENCE:
                raise TimeoutError(
                    f"{self._owner()} has locked {self.path} and has done nothing for {PATIENCE} seconds: end it, or, if "
                    f"it is dead, delete that file."
                )
            time.sleep(0.1)

    def _owner(self):
        self._handle.seek(0)
        return self._handle.read() or "another process"


class InUse:
    """Says, as long as it lives, that this process reads a file of the cache; pruning lets such a one alone.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: if the file is not there, or is deleted just now.
    """

    def __init__(self, path):
        self._number = os.open(path, os.O_RDONLY)
        try:
            import fcntl

            fcntl.flock(self._number, fcntl.LOCK_SH)  # Waits for one that looks whether it is in use, or deletes it.
        except (ImportError, OSError):
            return  # No locks here: pruning sees that, too, and deletes nothing.
        if os.fstat(self._number).st_nlink == 0:
            raise FileNotFoundError(f"{path} was pruned just now.")

    def __del__(self):
        if hasattr(self, "_number"):
            os.close(self._number)
