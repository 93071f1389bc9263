"""The thread that writes checkpoints while training goes on."""

import concurrent.futures
import warnings

from keras_seqlm.checkpoints import copies, state

FAILURES = 3  # of saving, in a row, until training stops


class CheckpointWriter:
    """Writes to `Checkpoints`, one checkpoint at a time; a disk that refuses is told of and ends training at the third time.

    Args:
        checkpoints: where to.
        background: whether a thread writes; else `write` returns when it is done.

    Attributes:
        written: step of the last checkpoint that is on the disk, or None.
    """

    def __init__(self, checkpoints, background):
        self.checkpoints = checkpoints
        self.written = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint") if background else None
        self._writing, self._failures = None, 0

    def write(self, step, arrays, meta, parts=None):
        """Save a checkpoint, as `Checkpoints.save` takes it, unless it holds what is not finite."""
        self.run(self._write, step, arrays, meta, parts)

    def run(self, function, *arguments):
        """Call a function when what was begun before is done; an error comes out of the next `wait`."""
        self.wait()
        if self._thread is None:
            function(*arguments)
        else:
            self._writing = self._thread.submit(function, *arguments)

    def wait(self):
        """Until all is written.

        Raises:
            OSError: it could not be, three times in a row.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def close(self):
        """End the thread, when what it writes is written; an error that nobody waited for is told of."""
        if self._thread is not None:
            self._thread.shutdown()
        writing, self._writing = self._writing, None
        error = None if writing is None else writing.exception()
        if error is not None:
            warnings.warn(
                f"the last checkpoint could not be saved ({error}); those before are as they were", stacklevel=2
            )

    def _write(self, step, arrays, meta, parts):
        arrays = copies.to_host(arrays)
        if parts is None and not state.is_finite(arrays):
            return warn_of_numbers(step)
        try:
            if parts is not None:
                parts.wait()
            self.checkpoints.save(step, arrays, meta, parts)
            self._failures, self.written = 0, step
        except OSError as error:
            self._failures += 1
            if self._failures >= FAILURES:
                raise
            warnings.warn(
                f"the checkpoint of step {step} could not be saved ({error}); those before are as they were, and training "
                f"goes on. After {FAILURES} in a row it stops",
                stacklevel=2,
            )


def warn_of_numbers(step):
    """Say that a step has what no checkpoint keeps."""
    warnings.warn(f"step {step} has weights that are not finite; no checkpoint of it is kept", stacklevel=3)
