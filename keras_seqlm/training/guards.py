"""What watches over a run: losses that are not finite, updates that were left out, losses that jump."""

import collections
import math
import statistics
import sys

import keras
import numpy as np
from keras import ops

from keras_seqlm.checkpoints import state
from keras_seqlm.nesting import nested
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
        self._seen = None

    def on_train_batch_begin(self, batch, logs=None):
        if self._seen is None:  # `Resume` has written by now how many there were before
            self._seen = self.of_optimizer("skipped") or 0

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        skipped = self.of_optimizer("skipped")
        if skipped is None or skipped <= self._seen:  # also of a step in name only, which changes nothing
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

    Steps are counted on: the updates since the checkpoint are undone (weights, slots, averages; gradients that wait for an
    accumulated update are let go of), their batches are not read again, and learning rates go on as they were planned.

    A step's loss is what it adds to the mean that `fit` shows: with `steps_per_execution` the mean over the steps that run
    as one. A loss that is not finite is a jump, too, however few steps were made; that mean then leaves it out, or it
    would be of no use until the epoch ends. A batch that a `SafeOptimizer` left out changed nothing, so it is no jump,
    and no loss in the window.

    Args:
        resume: the `Resume` of this run, which saves the checkpoints.
        factor: a step's loss that is so many times the median of the `window` before is a jump.
        window: steps.
        limit: of going back; the next jump ends the run.

    Raises:
        TrainingStopped: from `fit`.
        ValueError: from `fit`: the model's own `train_step` tells no mean called "loss" of its losses.

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
        self._before = None

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        self._before = None

    def get_state(self):
        """What `Resume` saves of it: the losses in its window, and how often it went back."""
        return {"losses": np.array(self._losses, "float64"), "times": self._times}

    def set_state(self, state):
        """Give back what `get_state` gave."""
        self._losses, self._times = collections.deque(map(float, state["losses"]), maxlen=self.window), state["times"]

    def on_train_batch_begin(self, batch, logs=None):
        if self._before is None:  # `Resume` has written what the epoch's mean held by now
            self._means = [one for one in self.model.metrics if one.name == "loss" and hasattr(one, "total")]
            self._before, self._skipped = self._sums(), self.of_optimizer("skipped") or 0
            if not all(map(math.isfinite, self._before)):
                self._before = [0.0] * len(self._before)
                self._set_sums(self._before)

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        if self.step <= self.run.step_before:
            return
        loss = self._loss_of_step(logs or {})
        if loss is None:
            return
        full = len(self._losses) == self.window
        if not math.isfinite(loss) or (full and loss > self.factor * statistics.median(self._losses)):
            self._go_back(loss)
        else:
            self._losses.append(loss)

    def _sums(self):
        """The numbers behind the mean that `fit` shows: each one's total and count, so far in this epoch."""
        return [self.number(variable) for one in self._means for variable in (one.total, one.count)]

    def _set_sums(self, sums):
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()
        variables = [variable for one in self._means for variable in (one.total, one.count)]
        for variable, value in zip(variables, sums, strict=True):
            variable.assign(value)

    def _loss_of_step(self, logs):
        """The loss of the step that was just made; None where it was left out."""
        sums, before = self._sums(), self._before
        skipped, skipped_before = self.of_optimizer("skipped") or 0, self._skipped
        self._before, self._skipped = sums, skipped
        total, count = (sum(sums[i::2]) - sum(before[i::2]) for i in (0, 1))
        if not math.isfinite(total):
            self._before = before
            self._set_sums(before)
            return None if skipped > skipped_before else total
        if count:
            return total / count
        if not any(sums[1::2]) and math.isfinite(logs.get("loss", 0.0)):
            raise ValueError(
                "RollBack knows the loss of a step from the mean of losses that Keras keeps, and this model's train_step tells "
                'it nothing; call update_state(loss) of a keras.metrics.Mean(name="loss") there that the model\'s metrics list, '
                "or leave RollBack out"
            )
        return None

    def _go_back(self, loss):
        checkpoint = self.resume.finished()
        if checkpoint is None or self._times == self.limit:
            reason = "there is no checkpoint yet" if checkpoint is None else f"it is jump {self._times + 1} of this run"
            raise TrainingStopped(
                f"the loss jumped to {loss:.4g} at step {self.step}, and {reason}; look at the batches"
            )
        self._times += 1
        state.assign(self.model, self._undone(state.read(self.model, checkpoint)))
        if self.chief:
            print(
                f"step {self.step}: the loss jumped to {loss:.4g}; the updates since step {checkpoint.step} are undone",
                file=sys.stderr,
            )

    def _undone(self, arrays):
        """Of a checkpoint's arrays those that undo updates: not what counts steps or says their size."""
        optimizers = list(nested(self.model.optimizer))
        # Slots lie in lists; a number that an optimizer has by itself is of the course of the run.
        numbers = {
            id(value) for one in optimizers for value in vars(one).values() if getattr(value, "shape", None) == ()
        }
        waiting = {id(value) for value in getattr(optimizers[-1], "_accumulated_gradients", ())}
        variables = state.variables_of(self.model)
        return {
            name: np.zeros_like(array) if id(variables[name]) in waiting else array
            for name, array in arrays.items()
            if id(variables[name]) not in numbers
        }


def average_finite_losses(model):
    """Let the loss that a compiled model shows while it trains be the mean over the batches whose loss is finite.

    One NaN would otherwise stay in the mean until the epoch ends. Where no batch of an epoch is left, the mean is NaN, as
    the loss of a validation is that has a NaN in it.
    """
    tracker = model._loss_tracker
    if getattr(tracker, "leaves_out", False):
        return
    update_state, result, train_step = tracker.update_state, tracker.result, model.train_step

    def update_where_finite(values, sample_weight=None):
        finite = ops.isfinite(values)
        weight = ops.cast(1.0 if sample_weight is None else sample_weight, "float32")
        update_state(ops.where(finite, values, 0.0), ops.where(finite, weight, 0.0))

    def step_where_finite(*state_and_data):
        tracker.update_state = update_where_finite
        try:
            return train_step(*state_and_data)
        finally:
            tracker.update_state = update_state

    model.train_step = step_where_finite
    tracker.result = lambda: ops.where(ops.greater(tracker.count, 0), result(), float("nan"))
    tracker.leaves_out = True
    if model.train_function is not None:
        model.make_train_function(force=True)  # the traced one has the other mean in it


def is_out_of_memory(error):
    """Whether an error of any backend, or one that it was raised from, says that memory was not enough."""
    names = ("MemoryError", "ResourceExhaustedError", "OutOfMemoryError")
    signs = ("RESOURCE_EXHAUSTED", "Out of memory", "not enough memory", "can't allocate memory")
    while error is not None:
        if type(error).__name__ in names or any(sign in str(error) for sign in signs):
            return True
        error = error.__cause__
    return False
