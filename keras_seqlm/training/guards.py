"""What watches over a run: losses that are not finite, updates that were left out, losses that jump."""

import collections
import statistics
import sys

import keras
import numpy as np

from keras_seqlm.checkpoints import state
from keras_seqlm.nesting import innermost
from keras_seqlm.training.callbacks import RunCallback


class TrainingStopped(ValueError):
    """Training was given up; the message says at which step and why, and what the weights are now."""


class StopAfterSkipped(RunCallback):
    """Ends the run when a `SafeOptimizer` left out `limit` updates in a row: the weights are those before the first one.

    Args:
        limit: how many.

    Raises:
        TrainingStopped: from `fit`.
    """

    def __init__(self, limit=10):
        super().__init__()
        if limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        self.limit = limit

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._seen = self.of_optimizer("skipped") or 0

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        skipped = self.of_optimizer("skipped")
        if skipped is None or skipped <= self._seen or self.step <= self.run.step_before:
            return
        if self.chief:
            print(
                f"step {self.step}: the gradient is not finite, so the update is left out, as {skipped:.0f} in all; it is "
                f"batch {self.of_optimizer('last_skipped'):.0f}",
                file=sys.stderr,
            )
        self._seen, in_a_row = skipped, self.of_optimizer("skipped_in_a_row")
        if in_a_row >= self.limit:
            raise TrainingStopped(
                f"{in_a_row:.0f} updates in a row had a gradient that is not finite, the last one at step {self.step}; the "
                "weights are as they were before. Look at the batches, or lower the learning rate"
            )


class RollBack(RunCallback):
    """Goes back to the last checkpoint when the loss jumps, and on with the batches after those that made it jump.

    Steps are counted on: the updates since the checkpoint are undone, their batches are not read again, and learning
    rates go on as they were planned.

    A batch that `SafeOptimizer` left out is not in the mean that `fit` shows, so that in the rest of its piece a loss is taken
    for more or less than it was.

    Args:
        resume: the `Resume` of this run, which saves the checkpoints.
        factor: a step's loss that is so many times the median of the `window` before is a jump.
        window: steps.
        limit: of going back; the next jump ends the run.

    Raises:
        TrainingStopped: from `fit`.

    Reference: Chowdhery et al. 2022 (PaLM), section 5.1, arXiv:2204.02311.
    """

    def __init__(self, resume, factor=2.0, window=50, limit=5):
        super().__init__()
        if factor <= 1 or window < 2:
            raise ValueError(f"factor must be above 1 and window at least 2, got factor={factor} and window={window}")
        self.resume = resume
        self.factor = factor
        self.window = window
        self.limit = limit

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._losses, self._times = collections.deque(maxlen=self.window), 0
        self._mean, self._count = 0.0, 0

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        self._mean, self._count = 0.0, 0

    def get_state(self):
        """What `Resume` saves of it: the losses in its window, and how often it went back."""
        losses = np.array(self._losses, "float64")
        return {"losses": losses, "times": self._times, "mean": self._mean, "count": self._count}

    def set_state(self, state):
        """Give back what `get_state` gave; within an epoch `Resume` does so after the epoch has begun."""
        self._losses, self._times = collections.deque(state["losses"].tolist(), maxlen=self.window), state["times"]
        if self.run.mean_since < self.run.step_before:  # the mean that `fit` shows goes on
            self._mean, self._count = state["mean"], state["count"]

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        if self.step <= self.run.step_before:
            return
        mean, count = float(logs["loss"]), self.steps_in_mean()  # over the epoch so far
        loss = (mean * count - self._mean * self._count) / (count - self._count)
        self._mean, self._count = mean, count
        if len(self._losses) == self.window and loss > self.factor * statistics.median(self._losses):
            self._go_back(loss)
        else:
            self._losses.append(loss)

    def _go_back(self, loss):
        checkpoint = self.resume.finished()
        if checkpoint is None or self._times == self.limit:
            reason = "there is no checkpoint yet" if checkpoint is None else f"it is jump {self._times + 1} of this run"
            raise TrainingStopped(
                f"the loss jumped to {loss:.4g} at step {self.step}, and {reason}; look at the batches"
            )
        self._times += 1
        counts = innermost(self.model.optimizer)._iterations
        names = {name for name, variable in state.variables_of(self.model).items() if variable is counts}
        kept = {
            name: array
            for name, array in state.read(self.model, checkpoint).items()
            if name not in names and name.startswith(("model/", "optimizer/"))
        }
        state.assign(self.model, kept)
        print(
            f"step {self.step}: the loss jumped to {loss:.4g}; the updates since step {checkpoint.step} are undone",
            file=sys.stderr,
        )


def average_finite_losses(model):
    """Let the loss that a compiled model shows be the mean over the batches whose loss is finite.

    One NaN would otherwise stay in the mean until the epoch ends.
    """
    tracker = model._loss_tracker
    if getattr(tracker, "leaves_out", False):
        return
    update_state = tracker.update_state

    def update_where_finite(values, sample_weight=None):
        finite = keras.ops.isfinite(values)
        weight = keras.ops.cast(1.0 if sample_weight is None else sample_weight, "float32")
        update_state(keras.ops.where(finite, values, 0.0), keras.ops.where(finite, weight, 0.0))

    tracker.update_state = update_where_finite
    tracker.leaves_out = True


def is_out_of_memory(error):
    """Whether an error of any backend, or one that it was raised from, says that memory was not enough."""
    names = ("MemoryError", "ResourceExhaustedError", "OutOfMemoryError")
    signs = ("RESOURCE_EXHAUSTED", "Out of memory", "not enough memory", "can't allocate memory")
    while error is not None:
        if type(error).__name__ in names or any(sign in str(error) for sign in signs):
            return True
        error = error.__cause__
    return False
