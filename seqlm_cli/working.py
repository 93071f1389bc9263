"""What is shown while something long is at work: a line that is drawn anew, or a plain line for each stage."""

import contextlib
import threading
import time

PATIENCE = 2.0  # seconds that nothing is said of what is done by then
PAUSE = 0.2  # seconds between two drawings


class Working:
    """A status line on standard error: what is done, what it is at, and for how long it has been.

    Example:

        with Working() as work, work.on("exporting saved_models/books/1"):
            export.saved_model(run, "saved_models/books/1")  # its stages are shown
    """

    def __init__(self):
        from keras_seqlm.status_line import StatusLine

        self._line, self._stages, self._told = StatusLine(), {}, {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self):
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()
        self._line.clear()

    @contextlib.contextmanager
    def on(self, what):
        """Inside of it `what` is at work in this thread; the stages of its exports and comparisons are heard."""
        from keras_seqlm.export.stages import heard_by

        self._stages[what] = ""
        try:
            with heard_by(lambda stage: self._stages.update({what: stage})):
                yield
        finally:
            del self._stages[what]

    def _show(self):
        pause = PAUSE if self._line.redraws else PATIENCE
        while not self._ended.wait(pause):
            seconds, stages = time.monotonic() - self._began, dict(self._stages)
            if not self._line.redraws:
                for what, stage in stages.items():
                    if self._told.get(what) != stage:
                        self._line.keep([f"{what} ..." if not stage else f"{what}: {stage}", f"{seconds:.0f} s"])
                self._told = stages
            elif seconds > PATIENCE / 2:
                self._line.draw(*self._parts(stages, seconds))

    def _parts(self, stages, seconds):
        """The texts of the line and how much each matters."""
        parts = []
        for place, (what, stage) in enumerate(stages.items()):
            parts += [(what, -2 * place - (1 if stage else 0)), *([(stage, -2 * place)] if stage else [])]
        return zip(*parts, (f"{seconds:.0f} s", 1), strict=True)
