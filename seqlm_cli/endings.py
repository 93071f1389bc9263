"""The exit codes, which tell a supervisor whether to start a command again."""

import errno

DISAGREES, USAGE, STOPPED, TRY_AGAIN, INTERRUPTED = 1, 2, 3, 75, 130  # 75 is EX_TEMPFAIL of sysexits.h
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
LOST_PEER = ("DEADLINE_EXCEEDED", "UNAVAILABLE", "Connection closed by peer", "Connection reset by peer", "heartbeat")


def exit_code(error):
    """The exit code that an error ends a command with; None for one that is a fault of ours and shows its traceback."""
    if type(error).__name__ == "TrainingStopped":
        return STOPPED
    if isinstance(error, MemoryError | ConnectionError) or is_lost_peer(error) or is_no_room(error):
        return TRY_AGAIN
    return USAGE if isinstance(error, ValueError | OSError | ImportError) else None


def is_no_room(error):
    """Whether an error says that the disk is full."""
    return isinstance(error, OSError) and error.errno in NO_ROOM


def is_lost_peer(error):
    """Whether an error of the backend says that another process of the run is gone."""
    of_backend = type(error).__module__.partition(".")[0] in ("jax", "jaxlib", "torch") or isinstance(
        error, RuntimeError
    )
    return of_backend and any(sign in str(error) for sign in LOST_PEER)
