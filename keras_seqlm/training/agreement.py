"""From which checkpoint a run goes on: the first process decides, and all of them read the same one or leave."""

from keras_seqlm.checkpoints import CheckpointError
from keras_seqlm.checkpoints.lock import LockError
from keras_seqlm.devices import processes
from keras_seqlm.devices.cluster import started_as_several
from keras_seqlm.training.identity import Identity


def agreed_checkpoint(checkpoints, settings, allow_changes, in_use):
    """Take the folder of `checkpoints`, in the first process, and read the newest one, in all of them.

    Args:
        checkpoints: `Checkpoints`.
        settings: what must not have changed.
        allow_changes: go on although it has.
        in_use: see `FolderLock`.

    Returns:
        `(checkpoint, identity)`: the `Checkpoint`, or None where there is none, and the `Identity` of the run.

    Raises:
        CheckpointError: none is whole, it is of other settings, or another one is seen here than in the first process.
        OSError: the folder is another's, cannot be written or locked.
    """

    def decide():
        checkpoints.open(in_use)
        found = checkpoints.newest()
        return None if found is None else [found.step, found.sha256]

    try:
        checkpoint = _read(checkpoints, processes.chief_decides(decide))
        identity = []
        processes.all_do(lambda: identity.append(Identity(checkpoint, settings, allow_changes)))
        return checkpoint, identity[0]
    except LockError as error:
        if processes.are_several() or not started_as_several():
            raise
        raise LockError(
            error.errno,
            f"{error.strerror}; or, if this is one of the processes of one run, have them joined before a Resume is "
            "made: enter recipe.scope(), or call training.strategy(name)",
            error.filename,
        ) from error
    except BaseException:
        checkpoints.close()
        raise


def _read(checkpoints, decided):
    if decided is None:
        return None
    step, sha256 = decided
    found = []

    def read():
        one = checkpoints.read(step)
        if one.sha256 != sha256:
            raise CheckpointError(f"{one.folder} is another one here than in the first process; is the folder shared?")
        found.append(one)

    processes.all_do(read)
    return found[0]
