"""What tells a run to end: SIGTERM, Slurm's SIGUSR1, and ^C. The step is finished and saved first."""

import os
import signal
import threading

from keras_seqlm.training.running import fit_of

TERMINATED, INTERRUPTED = 143, 130  # what a shell says of a process that ended on SIGTERM, and on ^C


class EndSignals:
    """Listens while `fit` runs, and no longer: after a `fit` that failed a signal does again what it did before.

    Args:
        model: whose `fit` it is.

    Attributes:
        told: the signal that came, or None. A second one ends the process at once.
    """

    def __init__(self, model):
        self.model = model
        self.told = None
        self._before = {}

    def listen(self, hand_on=False):
        """Take over the signals that would end the process; in the main thread alone, as Python has it.

        Args:
            hand_on: of several processes of JAX: there JAX itself listens for SIGTERM, so that all of them end after the
                same step, and SIGUSR1 is handed on to it.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        ours = [signal.SIGUSR1] if hand_on else [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]
        for number in ours:
            other = getattr(signal.getsignal(number), "__self__", None)
            if isinstance(other, EndSignals) and fit_of(other.model) is None:  # it failed, and nobody told it
                other.stop()
            if number == signal.SIGTERM or signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                self._before[number] = signal.signal(number, self._hand_on if hand_on else self._hear)

    def stop(self):
        """Give the signals back to who had them."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def end(self):
        """Leave, as the signal has it: exit code 143, or `KeyboardInterrupt` for ^C."""
        self.stop()
        if self.told == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(TERMINATED)

    def _hear(self, number, frame):
        if fit_of(self.model, frame) is None:  # it failed, and nobody told us
            self.stop()
            os.kill(os.getpid(), number)
        elif self.told is None:
            self.told = number
        elif number == signal.SIGINT:
            self.stop()
            raise KeyboardInterrupt
        else:
            os._exit(TERMINATED)

    def _hand_on(self, number, frame):
        os.kill(os.getpid(), signal.SIGTERM)
