"""Exact resume: a run that was killed goes on with the losses it would have had."""

import concurrent.futures
import os
import signal
import sys
import threading
import warnings

import keras
import numpy as np

from keras_seqlm.checkpoints import state
from keras_seqlm.checkpoints.checkpoint import CheckpointError, Checkpoints
from keras_seqlm.checkpoints.shards import Shards
from keras_seqlm.devices import Single, processes
from keras_seqlm.devices.feed import ByStep, Onward
from keras_seqlm.training.callbacks import Run, RunCallback

TERMINATED = 143  # what a shell says of a process that ended on SIGTERM
FAILURES = 3  # of saving, in a row, until training stops


class Resume(RunCallback):
    """Saves the whole state of training as it goes, and goes on from the newest whole checkpoint.

    Three lines make a script's own `fit` resumable; started again with the same command after a kill at any instant, it
    has the same losses, bit for bit on a CPU:

        resume = Resume("runs/books/checkpoints")
        model.fit(resume.data(make_batch), epochs=10, steps_per_epoch=100, callbacks=[resume], **resume.fit_arguments())

    A callback alone cannot move the iterator of `fit`, so `make_batch(step)` gives the batch of a step, counted over all
    epochs from 0, and depends on nothing but the step; the data sets of `keras_seqlm.data` are such and are taken as they
    are. With any other data the state is restored, the position is lost, and a warning says so.

    Saved are weights, optimizer (slots, averaged weights, accumulated gradients, loss scale), seed generators, carried
    state, metrics and position, in one step that is whole or not there (see `Checkpoints`). What is not finite is never
    saved. On SIGTERM the step is finished, a checkpoint saved, and the process ends with exit code 143. Of several
    processes (JAX, torch), which share the folder, the first one writes what all of them hold, and each one its own parts
    of what lies spread over them.

    Args:
        folder: of the checkpoints.
        every: steps between two of them. One is saved at the end of `fit`, too.
        keep: how many of the newest stay; so does the one with the lowest validation loss.
        background: whether a thread writes while training goes on; one checkpoint is on its way at most.
        settings: a dict that JSON takes, of what must not change between two starts, such as the batch size.
        allow_changes: go on although the settings changed.

    Attributes:
        step_before: steps made before, all told.
        first_step: of the epoch that `fit` starts from. The steps of this epoch that were made before are run through
            again in name only: nothing is computed, and callbacks see the numbers that were saved.

    Raises:
        CheckpointError: no checkpoint is whole, or the newest is of other settings.
        OSError: the folder is another process's, cannot be written, or has no room; raised as training begins.

    Example:

    >>> import numpy as np, tempfile
    >>> def make_batch(step):
    ...     x = np.random.default_rng([7, step]).standard_normal((4, 3)).astype("float32")
    ...     return x, x.sum(axis=1, keepdims=True)
    >>> folder = tempfile.mkdtemp()
    >>> for epochs in (1, 2):  # the second time it goes on where the first one ended
    ...     model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    ...     model.compile("adam", "mse")
    ...     resume = Resume(folder, every=5)
    ...     _ = model.fit(resume.data(make_batch), epochs=epochs, steps_per_epoch=10, verbose=0, callbacks=[resume],
    ...                   **resume.fit_arguments())
    ...     int(model.optimizer.iterations)
    10
    20
    """

    def __init__(self, folder, every=100, keep=2, background=True, settings=None, allow_changes=False):
        super().__init__()
        if every < 1:
            raise ValueError(f"every counts steps and must be at least 1, got {every}")
        self.checkpoints = Checkpoints(folder, keep)
        self.every = every
        self.background = background
        self.settings = settings or {}
        self._checkpoint = self.checkpoints.newest()
        if self._checkpoint is not None and not allow_changes:
            self._check_settings()
        meta = {} if self._checkpoint is None else self._checkpoint.meta
        self.step_before = 0 if self._checkpoint is None else self._checkpoint.step
        self._epoch, self._done = meta.get("epoch", 0), meta.get("done", 0)
        self._steps_per_epoch = meta.get("steps_per_epoch")
        self._train, self._metrics, self._random, self._restored = None, {}, {}, False
        self._writer, self._handler_before = None, None

    @property
    def first_step(self):
        """Step that the epoch began with in which the checkpoint was saved."""
        return self.step_before - self._done

    def divide(self, steps_per_epoch):
        """Count epochs of another length from here on, if it is another; before `data` and `fit_arguments` are asked."""
        if self._checkpoint is not None and steps_per_epoch != self._steps_per_epoch:
            self._epoch, self._done = divmod(self.step_before, steps_per_epoch)
        self._steps_per_epoch = steps_per_epoch

    def data(self, make_batch, strategy=None):
        """What `fit` is given as data: the batches of all steps to come, without end.

        Args:
            make_batch: a function of the step, or a data set with `batches(first_step)`, as `data.causal_blocks` gives.
            strategy: of `training.strategy`, whose devices read it; default one device.
        """
        self._train = make_batch if hasattr(make_batch, "batches") else ByStep(make_batch)
        return (strategy or Single()).feed(Onward(self._train, self.step_before), self.first_step)

    def fit_arguments(self):
        """What `fit` is given besides: `initial_epoch`, and `shuffle=False`."""
        return {"initial_epoch": self._epoch, "shuffle": False}

    def restore(self, model):
        """Write the checkpoint's state, if there is one, into a model that is built and compiled; `fit` does it, too.

        Raises:
            CheckpointError: it is another model's; nothing was changed.
        """
        if model.optimizer is not None and not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        if self._checkpoint is None or self._restored:
            return
        state.check(model, self._checkpoint)
        if self._checkpoint.meta["backend"] != keras.backend.backend():
            warnings.warn(
                f"{self._checkpoint.folder} was written on the {self._checkpoint.meta['backend']} backend, and this is "
                f"{keras.backend.backend()}: training goes on, with other random numbers in dropout",
                stacklevel=2,
            )
        arrays = self._checkpoint.arrays(state.shardings_of(model))
        self._metrics = {name: array for name, array in arrays.items() if name.startswith("metrics/")}
        self._random = {name: array for name, array in arrays.items() if name.startswith("random/")}
        state.assign(model, {name: array for name, array in arrays.items() if name not in self._metrics})
        self._restored = True

    def set_model(self, model):
        super().set_model(model)
        if not model.built and self._train is not None:
            model(self._first_batch()[0])

    def on_train_begin(self, logs=None):
        if not self.model.built:
            raise ValueError("the model has no weights to restore yet; call it once on a batch before fit")
        self.restore(self.model)
        if self._checkpoint is not None and self._train is None:
            self._done = 0
            warnings.warn(
                f"the state of step {self.step_before} was restored, and the position in the data is lost: an iterator "
                "cannot be moved. Give fit resume.data(make_batch), where make_batch(step) makes the batch of a step",
                stacklevel=2,
            )
        if self._steps_per_epoch not in (None, self.params["steps"]):
            raise CheckpointError(
                f"{self.checkpoints.folder} is of a run with steps_per_epoch={self._steps_per_epoch}, and fit was given "
                f"{self.params['steps']}; give the same, or call resume.divide({self.params['steps']}) first"
            )
        if not self.run.first_step:
            self.run = Run(first_step=self.first_step, steps=self.run.steps, step_before=self.step_before)
        if any(name not in state.variables_of(self.model) for name in self._metrics):
            self._build_metrics()
        super().on_train_begin(logs)
        if self.chief:
            self.checkpoints.open(state.size_of(self.model))
        self._writer = concurrent.futures.ThreadPoolExecutor(1, "checkpoint") if self.background else None
        self._writing, self._failures = None, 0
        self._saved = self.step_before if self._checkpoint is not None else None
        self._before_test, self._told_to_end, self._several = {}, False, processes.are_several()
        self._asked_to_end = False
        self._listen()

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        self._current = epoch
        if self._done:  # the rest of an epoch, whose metrics go on, too
            state.assign(self.model, self._metrics)
            self._run_through()

    def on_train_batch_begin(self, batch, logs=None):
        if not self._done:
            self._restore_random()  # not before: on torch the making of an iterator draws a number

    def on_train_batch_end(self, batch, logs=None):
        before = self.step
        super().on_train_batch_end(batch, logs)
        done = batch + 1
        whole = done >= self.params["steps"] or self.step == self.run.steps
        if self._done:
            if self.step < self.step_before:
                return
            self.model.train_function, self._done = self._train_function, 0
            self._restore_random()
        if whole and not self._several:  # several processes end after a step, and not within the validation
            self._before_test = state.arrays_of(self.model)
        if self._several:
            self._told_to_end = processes.any_is_told(self._asked_to_end, self.step)
        if self._told_to_end:
            self._save({"epoch": self._current, "done": done})
            self._end()
        if not whole and self.step > self.step_before and self.step // self.every > before // self.every:
            self._save({"epoch": self._current, "done": done})

    def on_test_batch_end(self, batch, logs=None):
        if self._told_to_end:
            self._save({"epoch": self._current, "done": self.step - self._piece_start}, before_test=self._before_test)
            self._end()

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        self._before_test, logs = {}, logs or {}
        due = self._saved is None or self.step // self.every > self._saved // self.every
        last = epoch + 1 == self.params["epochs"] or self.model.stop_training or self.step == self.run.steps
        if due or last or self._told_to_end:
            self._save({"epoch": epoch + 1, "done": 0, "validation_loss": logs.get("val_loss")})
        if self._told_to_end:
            self._end()

    def on_train_end(self, logs=None):
        self._wait()
        self.close()

    def close(self):
        """Let go of the folder and of SIGTERM, after a `fit` that ended by an error; one that ended well has done it."""
        self._stop_listening()
        if self._writer is not None:
            self._writer.shutdown()
        self.checkpoints.close()

    def save(self):
        """Save a checkpoint of this moment, between two batches of a running `fit`."""
        self._save({"epoch": self._current, "done": self.step - self._piece_start})

    def finished(self):
        """The newest checkpoint that is whole by now, or None."""
        self._wait()
        if self._several:
            processes.wait_for_all("checkpoint")
        return self.checkpoints.newest()

    def _save(self, meta, before_test=None):
        self._wait()
        arrays = before_test or state.arrays_of(self.model)  # validation writes to metrics, averaged weights, seeds
        self._saved = self.step
        parts = None
        spread = {name: array for name, array in arrays.items() if not isinstance(array, np.ndarray)}
        if spread:  # over several processes, each of which writes its own
            if not state.is_finite(arrays):
                return _warn_of_numbers(self.step)
            parts = Shards(self.checkpoints.part(self.step).with_suffix(".shards"), spread)
            arrays = {name: array for name, array in arrays.items() if name not in spread}
        if not self.chief:
            if parts is not None:
                self._in_background(parts.wait)
            return
        paths = {name: variable.path for name, variable in state.variables_of(self.model).items()}
        meta = {
            "backend": keras.backend.backend(),
            "keras": keras.__version__,
            "settings": self.settings,
            "validation_loss": None,
            "steps_per_epoch": self.params["steps"],
            "paths": paths,
            **meta,
        }
        self._in_background(self._write, self.step, arrays, meta, parts)

    def _in_background(self, function, *arguments):
        if self._writer is None:
            function(*arguments)
        else:
            self._writing = self._writer.submit(function, *arguments)

    def _write(self, step, arrays, meta, parts):
        if parts is None and not state.is_finite(arrays):
            return _warn_of_numbers(step)
        try:
            if parts is not None:
                parts.wait()
            self.checkpoints.save(step, arrays, meta, parts)
            self._failures = 0
        except OSError as error:
            self._failures += 1
            if self._failures >= FAILURES:
                raise
            warnings.warn(
                f"the checkpoint of step {step} could not be saved ({error}); those before are as they were, and training "
                f"goes on. After {FAILURES} in a row it stops",
                stacklevel=2,
            )

    def _wait(self):
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _listen(self):
        # Several processes must end after the same step: JAX listens, and tells all of them; those of torch ask each other.
        if threading.current_thread() is threading.main_thread() and not processes.listens_itself():
            self._handler_before = signal.signal(signal.SIGTERM, self._on_signal)

    def _stop_listening(self):
        if self._handler_before is not None:
            signal.signal(signal.SIGTERM, self._handler_before)
            self._handler_before = None

    def _on_signal(self, number, frame):
        self._asked_to_end = True
        if not self._several:
            self._told_to_end = True
        signal.signal(signal.SIGTERM, lambda *_: os._exit(TERMINATED))  # a second one ends the process at once

    def _end(self):
        self._wait()
        self.close()
        if self.chief:
            print(f"told to end: step {self.step} is saved, the same command goes on from there", file=sys.stderr)
        raise SystemExit(TERMINATED)

    def _restore_random(self):
        state.assign_random(self._random)
        self._random = {}

    def _run_through(self):
        """Let the train function read its batches, hand out the saved numbers and change nothing."""
        logs = {name: float(value) for name, value in self.model.get_metrics_result().items()}
        self._train_function = self.model.train_function

        def in_name_only(*arguments):
            if not isinstance(arguments[-1], list):  # torch gets a list of batches, the others an iterator
                for _ in range(self.model.steps_per_execution):
                    next(arguments[-1])
            return logs if len(arguments) == 1 else (logs, arguments[0])  # JAX hands its state in and out

        self.model.train_function = in_name_only

    def _first_batch(self):
        return next(iter(self._train.batches(self.step_before)))

    def _build_metrics(self):
        """TensorFlow makes the variables of metrics in the first step, and they are restored before it."""
        if self._train is not None:
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(self._first_batch())
            self.model.compute_metrics(x, y, self.model(x, training=False), sample_weight)
            self.model.reset_metrics()

    def _check_settings(self):
        before = self._checkpoint.meta.get("settings", {})
        changed = [
            f"{name} was {before[name]!r} and is {self.settings[name]!r}"
            for name in sorted(before.keys() & self.settings.keys())
            if before[name] != self.settings[name]
        ]
        if changed:
            raise CheckpointError(
                f"{self._checkpoint.folder} is of a run with other settings: {'; '.join(changed)}. Give the same, name another "
                "folder, or go on all the same with allow_changes=True"
            )


def _warn_of_numbers(step):
    warnings.warn(f"step {step} has weights that are not finite; no checkpoint of it is kept", stacklevel=3)
