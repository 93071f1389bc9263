"""What long work is at: told where it is done, heard by whoever waits for it, in another process, too."""

import contextlib
import contextvars
import pathlib
import threading

_HEARD_BY = contextvars.ContextVar("heard by", default=None)
_PAUSE = 0.1  # seconds between two looks at what the other process has told


def tell(stage):
    """Say what comes now, in a few words."""
    listener = _HEARD_BY.get()
    if listener is not None:
        listener(stage)


@contextlib.contextmanager
def heard_by(listener):
    """Inside of it, and in this thread alone, `listener(stage)` hears of each stage.

    Example:

    >>> heard = []
    >>> with heard_by(heard.append):
    ...     tell("reading the model")
    >>> heard
    ['reading the model']
    """
    before = _HEARD_BY.set(listener)
    try:
        yield
    finally:
        _HEARD_BY.reset(before)


@contextlib.contextmanager
def passed_on_to(path):
    """Inside of it each stage is a line of a file, which `followed` reads in another process."""
    with open(path, "a", encoding="utf-8") as file:

        def write(stage):
            file.write(f"{stage}\n")
            file.flush()

        with heard_by(write):
            yield


@contextlib.contextmanager
def followed(path):
    """Inside of it the lines of a file are told here as they come."""
    listener, path = _HEARD_BY.get(), pathlib.Path(path)
    if listener is None:
        yield
        return
    path.touch()
    ended = threading.Event()

    def follow():
        with open(path, encoding="utf-8") as file:
            line = ""
            while True:
                last = ended.is_set()
                line += file.read()
                *stages, line = line.split("\n")
                for stage in stages:
                    listener(stage)
                if last:
                    return
                ended.wait(_PAUSE)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
