"""Exact resume: a run that was killed goes on with the losses it would have had."""

import errno
import math
import sys
import warnings

import keras

from keras_seqlm.checkpoints import CheckpointError, Checkpoints, state
from keras_seqlm.checkpoints.shards import Shards
from keras_seqlm.devices import Single, processes
from keras_seqlm.devices.feed import ByStep, Onward
from keras_seqlm.training.agreement import agreed_checkpoint
from keras_seqlm.training.beside import (
    BEGIN_OF_TRAINING,
    Unsaved,
    keep_rows,
    may_change_the_model,
    refuse_others,
    refuse_updates,
    rows_written,
    warn_of_lost_position,
    warn_of_no_list,
    warn_of_optimizers,
)
from keras_seqlm.training.callback_state import CallbackStates
from keras_seqlm.training.callbacks import Run, RunCallback, begin_means, tell_of_run
from keras_seqlm.training.epoch_metrics import build_metrics, kinds_of_metrics, read_metrics
from keras_seqlm.training.replay import InNameOnly
from keras_seqlm.training.running import callbacks_of, fit_of, is_fitting, put_first, put_last
from keras_seqlm.training.signals import EndSignals
from keras_seqlm.training.writer import CheckpointWriter, warn_of_numbers


class Resume(RunCallback):
    """Saves the whole state of training as it goes, and goes on from the newest whole checkpoint.

    Three lines make a script's own `fit` resumable; started again with the same command after a kill at any instant, it
    has the same losses, bit for bit on a CPU (on a GPU with `XLA_FLAGS=--xla_gpu_deterministic_ops=true`, or on torch with
    `torch.use_deterministic_algorithms(True)`; without, sums there are rounded otherwise each time):

        resume = Resume("runs/books/checkpoints")
        model.fit(resume.data(make_batch), epochs=10, steps_per_epoch=100, callbacks=[resume], **resume.fit_arguments())

    A callback alone cannot move the iterator of `fit`, so `make_batch(step)` gives the batch of a step, counted over all
    epochs from 0, and depends on nothing but the step; the data sets of `keras_seqlm.data` are such and are taken as they
    are. With any other data the state is restored, the position is lost, and a warning says so.

    Saved are weights, optimizer (slots, averaged weights, accumulated gradients, loss scale), seed generators, carried
    state, metrics, what the other callbacks remember (see `CallbackStates`) and the position, in one step that is whole
    or not there (see `Checkpoints`). What Keras does not know of is not: a `tf.Variable` or a buffer of torch of a layer's
    own, a plain attribute of a layer or an optimizer, which are named in a warning as soon as training changes them, and the
    generators of `tf.random`. What is not finite is never saved.

    On SIGTERM, SIGUSR1 or ^C the step is finished and saved; the process ends with exit code 143, or by `KeyboardInterrupt`.
    Of several processes (JAX, torch), which share the folder, the first one decides from which checkpoint all of them go on
    and writes what all of them hold, and each one its own parts of what lies spread over them.

    The folder belongs to this process from here on, until `fit` ends, `close()` is called or this object is gone. An
    object serves one `fit`. Wherever it stands among the callbacks, it begins and acts as the last one: what others do at an
    epoch's end is in the checkpoint of that epoch, and what they set as a run that goes on begins is as it was saved. Two of
    Keras's callbacks do not go with it and are refused: `SwapEMAWeights(swap_on_epoch=True)` (`training.ValidateAverage`
    does) and `BackupAndRestore`, which goes on by itself.

    A start goes on with what the run was begun with, or is refused: the batch of step 0, which tells data, batch size and
    seed (with their `content_hash`, where data have one); what the configs of the model and of all layers in it say, but for
    names and seeds, and the numbers that layers of a user's class keep; class and numbers of the optimizer, a learning rate
    that is a number included, the weights that it does not decay, and of the loss, with its weight; `class_weight`; and
    `settings`. A function, as a loss or an activation, is known by what it does (see `training.code`), within one version of
    Python; what `call` and `train_step` of a user's model do is not held. A schedule of the learning rate, or a function, may
    change, and a warning says so. Validation data are held to that only where they are given to `data`, too (as `Recipe.fit`
    gives them), or named in `settings`.

    Args:
        folder: of the checkpoints.
        every: steps between two of them. One is saved at the end of `fit`, too, and at each validation that is the best
            so far.
        keep: how many of the newest stay; so does the one with the lowest validation loss (see `Checkpoints.best`).
        background: whether a thread writes while training goes on; one checkpoint is on its way at most.
        settings: a dict that JSON takes, of what else must not change between two starts. What one start leaves out is named
            in a warning, and kept for the next one.
        monitor: by which number in the logs of an epoch the best validation is known, as `val_accuracy`, and `mode`: whether the
            lowest ("min") or the highest ("max") is best.
        allow_changes: go on although something changed, which is printed, or although a callback had ended the run. The new
            holds; after other settings, data or another loss the best validation loss is looked for anew, by callbacks, too.

    Attributes:
        step_before: steps made before, all told.
        first_step: of the epoch that `fit` starts from. The steps of this epoch that were made before are run through
            again in name only: nothing is computed, and no callback but our own hears of them.
        ended: whether a callback, as `EarlyStopping`, had ended the run before: then `fit` makes no step.

    Raises:
        CheckpointError: no checkpoint is whole, or the newest is of other settings; from `data` and `fit`: of other data,
            another model, an optimizer or a loss with other numbers; `make_batch` gives two batches for one step.
        TypeError: settings that JSON does not take; from `data`: what cannot be asked for a step.
        OSError: the folder is another process's, cannot be written or locked, or (as training begins) has no room.
        ValueError: from `fit`: a callback that does not go with it.

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

    def __init__(
        self,
        folder,
        every=100,
        keep=2,
        background=True,
        settings=None,
        allow_changes=False,
        monitor="val_loss",
        mode="min",
    ):
        super().__init__()
        if every < 1:
            raise ValueError(f"every counts steps and must be at least 1, got {every}")
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {mode!r}")
        self.monitor, self.mode = monitor, mode
        self.checkpoints = Checkpoints(folder, keep)
        self.every = every
        self.background = background
        self._model, self._writer = None, None  # until `fit` begins
        self._checkpoint, self._identity = agreed_checkpoint(
            self.checkpoints, settings, allow_changes, self._works_there
        )
        self.settings = self._identity.settings
        self._seen = self.checkpoints.steps()
        meta = {} if self._checkpoint is None else self._checkpoint.meta
        self.step_before = 0 if self._checkpoint is None else self._checkpoint.step
        self.ended = bool(meta.get("ended")) and not allow_changes
        self._epoch, self._done = meta.get("epoch", 0), meta.get("done", 0)
        self._steps_per_epoch = meta.get("steps_per_epoch")
        # Steps in the metrics, which go on; at an epoch's end they hold its validation.
        self._within_piece = 0 if meta.get("ended") else self._done
        self._train, self._metrics, self._random, self._others = None, {}, {}, None
        self._signals, self._states, self._unsaved, self._used, self._ready = None, None, None, False, False
        self._forget = lambda: None

    @property
    def first_step(self):
        """Step that the epoch began with in which the checkpoint was saved."""
        return self.step_before - self._done

    def of_run(self, **known):
        """The `Run` that goes on from here, for callbacks that show and write it."""
        since = self.step_before - self._within_piece
        # Saved when all steps of an epoch were made, and before its validation, which comes again.
        again = self._done > 0 and (self._done == self._steps_per_epoch or self.step_before == known.get("steps"))
        rows = self.step_before - again
        return Run(self.first_step, step_before=self.step_before, mean_since=since, rows_before=rows, **known)

    def divide(self, steps_per_epoch):
        """Count epochs of another length from here on, if it is another; before `data` and `fit_arguments` are asked."""
        if self._checkpoint is not None and steps_per_epoch != self._steps_per_epoch:
            if self._train is not None:
                raise ValueError("resume.divide comes before resume.data, which has begun at the epoch of before")
            self._epoch, self._done = divmod(self.step_before, steps_per_epoch)
        self._steps_per_epoch = steps_per_epoch

    def data(self, make_batch, strategy=None, validation=None):
        """What `fit` is given as data: the batches of all steps to come, without end.

        Args:
            make_batch: a function of the step, or a data set with `batches(first_step)`, as `data.causal_blocks` gives.
            strategy: of `training.strategy`, whose devices read it; default one device.
            validation: what `fit` is given as `validation_data`, to be held against that of before; what cannot be seen
                without being read away, as a generator or a `tf.data.Dataset`, is not.

        Raises:
            CheckpointError: the data are others than before: the batch of step 0 is, or their `content_hash`; or the
                validation data are.
            TypeError: `make_batch` is neither.
        """
        if not (hasattr(make_batch, "batches") or callable(make_batch)):
            raise TypeError(
                f"expected a function of the step, or data with batches(first_step), got {type(make_batch).__name__}; what cannot "
                "be asked for a step is given to fit itself: the state then goes on, and the position in the data is lost"
            )
        self._train = make_batch if hasattr(make_batch, "batches") else ByStep(make_batch)
        try:
            processes.all_do(lambda: self._identity.hold_data(self._train, validation))
        except ValueError:  # a CheckpointError, of this process or another one
            self.close()
            raise
        return (strategy or Single()).feed(Onward(self._train, self.step_before), self.first_step)

    def fit_arguments(self):
        """What `fit` is given besides: `initial_epoch`, and `shuffle=False`."""
        return {"initial_epoch": sys.maxsize if self.ended else self._epoch, "shuffle": False}

    def restore(self, model):
        """Write the checkpoint's state, if there is one, into a model that is built and compiled; `fit` does it, too.

        Raises:
            CheckpointError: it is another model's, or its optimizer has other numbers; nothing was changed.
        """
        if model.optimizer is not None and not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        self._identity.know(model)
        if self._checkpoint is None:
            refuse_updates(model, self.checkpoints.folder)
            return
        if self._others is not None:
            return
        self._identity.hold_model(model)
        arrays = state.read(model, self._checkpoint)
        self._identity.hold_parts(model)
        others = [name for name in self._checkpoint.shapes if name.startswith(("random/", "callbacks/"))]
        self._others = self._checkpoint.arrays(names=others)
        if self._checkpoint.meta["backend"] != keras.backend.backend():
            warnings.warn(
                f"{self._checkpoint.folder} was written on the {self._checkpoint.meta['backend']} backend, and this is "
                f"{keras.backend.backend()}: training goes on, with other random numbers in dropout",
                stacklevel=2,
            )
        self._random = {name: array for name, array in self._others.items() if name.startswith("random/")}
        state.assign(model, arrays)
        self._identity.set_learning_rate(model)

    def set_model(self, model):
        super().set_model(model)
        self._identity.know(model)
        if fit_of(model) is not None:  # `evaluate` and `predict` give it, too
            self._make_ready()
        if self.run == Run():  # else `Recipe.fit` has told all of them
            self._forget = tell_of_run(callbacks_of(model), self.of_run())  # before any of them begins
        if not model.built and self._train is not None:
            model(self._first_batch()[0])

    def on_train_begin(self, logs=None):
        if not self._ready:
            self._make_ready()
        if not self.model.built:
            raise ValueError("the model has no weights to restore yet; call it once on a batch before fit")
        if (self._done or self._within_piece) and self._train is not None:
            build_metrics(self.model, self._checkpoint, self._first_batch())
        self.restore(self.model)  # before others look at it, as far as they begin after this one
        is_last = put_last(self, self.model)
        if is_last is False:
            return  # Keras comes by here once more, when all others have begun
        if is_last is None:
            warn_of_no_list()
        self._ready = False
        if self._checkpoint is not None and may_change_the_model(callbacks_of(self.model), *BEGIN_OF_TRAINING):
            self._restore_again()  # which all have begun now
        # Nobody but `Recipe.fit` has said yet where the run ends.
        self._identity.tell(self.run.steps is not None, compares=self.checkpoints.best_score(0) < math.inf)
        if self._checkpoint is not None and self._train is None:
            warn_of_lost_position(self.step_before)
        if self._done % self.model.steps_per_execution:
            raise CheckpointError(
                f"{self._checkpoint.folder} was saved {self._done} steps into an epoch, which steps_per_execution="
                f"{self.model.steps_per_execution} cannot begin with; compile the model with the number of before"
            )
        if self._steps_per_epoch not in (None, self.params["steps"]):
            raise CheckpointError(
                f"{self.checkpoints.folder} is of a run with steps_per_epoch={self._steps_per_epoch}, and fit was given "
                f"{self.params['steps']}; give the same, or call resume.divide({self.params['steps']}) first"
            )
        if self._within_piece:
            since = self.step_before - self._within_piece
            another = self._identity.loss_is_another
            self._metrics = read_metrics(self.model, self._checkpoint, since, self.step_before, another)
            if another:
                begin_means(callbacks_of(self.model), self.step_before)
        super().on_train_begin(logs)
        if self.chief:
            self.checkpoints.check_room(state.size_of(self.model))
        self._writer = CheckpointWriter(self.checkpoints, self.background)
        self._saved = self.step_before if self._checkpoint is not None else None
        self._best = (
            self.checkpoints.best_score(self._identity.comparable_from, self.monitor) if self.chief else math.inf
        )
        self._validates, self._before_test, self._several = True, {}, processes.are_several()
        self._stopped_several, self._begins, self._current = False, True, self._epoch
        self._replay, self._unsaved = InNameOnly(self.model), Unsaved(self.model)
        self._states = CallbackStates([one for one in callbacks_of(self.model) if one is not self])
        self._restore_callbacks()  # which all have begun, and forget no more
        state.assign_random(self._random)
        if self.ended:
            print(
                f"the run was ended by a callback at step {self.step_before}: nothing is left to do (allow_changes=True, --allow-changes, goes on)",
                file=sys.stderr,
            )
        self._signals = EndSignals(self.model)
        self._signals.listen(processes.listens_itself())

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        if self._begins and None not in (self._train, self._checkpoint) and epoch != self._epoch:
            raise CheckpointError(
                f"fit begins with epoch {epoch}, counted from 0, and {self.checkpoints.folder} goes on in epoch {self._epoch}; give "
                "fit **resume.fit_arguments()"
            )
        self._current = epoch
        if self._begins and self._done:  # saved after others had heard of the epoch's begin, as they have again
            self._restore_callbacks()
            if may_change_the_model(callbacks_of(self.model), "on_epoch_begin"):
                self._restore_again()
        if self._begins and self._random and not self._done:
            # On torch the making of an iterator draws a number: set back before others begin the step.
            self._random = state.arrays_of(self.model, ("random",))
            put_first(self, self.model)
        self._begins = False
        if self._metrics:  # the rest of an epoch, whose metrics go on
            state.assign(self.model, self._metrics)
            self._metrics = {}
        if self._done:
            self._replay.begin()

    def on_train_batch_begin(self, batch, logs=None):
        if self._random and not self._done:
            self._restore_random()
            put_last(self, self.model)

    def on_train_batch_end(self, batch, logs=None):
        before = self.step
        super().on_train_batch_end(batch, logs)
        done, steps = batch + 1, self.params["steps"]
        whole = (steps is not None and done >= steps) or self.step == self.run.steps
        if self._done:
            if self.step < self.step_before:
                return
            self._done = 0
            self._replay.end()
            self._restore_random()
        # Several processes end after a step, and not within a validation.
        if whole and self._validates and not self._several:
            self._before_test = state.arrays_of(self.model)
        if self._told_to_end(step_is_over=True):
            self._save({"epoch": self._current, "done": done})
            self._end()
        if not whole and self.step > self.step_before and self.step // self.every > before // self.every:
            self._save({"epoch": self._current, "done": done})

    def on_test_batch_end(self, batch, logs=None):
        if self._signals is None:  # in `evaluate`, before any fit
            return
        if self._told_to_end() and self._before_test:
            self._save({"epoch": self._current, "done": self.step - self._piece_start}, before_test=self._before_test)
            self._end()

    def on_epoch_end(self, epoch, logs=None):
        made = self.step - self._piece_start  # of this epoch; fewer than it has where a callback ended it
        super().on_epoch_end(epoch, logs)
        logs = logs or {}
        self._before_test, self._validates = {}, "val_loss" in logs
        loss, figure = logs.get("val_loss"), logs.get(self.monitor)
        score = -figure if figure is not None and self.mode == "max" else figure
        best = self._is_best(score)
        due = self._saved is None or self.step // self.every > self._saved // self.every
        cut = made < (self.params["steps"] or 0) and self.step != self.run.steps
        ended = bool(self.model.stop_training) and (cut or not self._is_last(epoch))
        if due or best or ended or self._is_last(epoch) or self._told_to_end():
            place = {"epoch": epoch, "done": made} if ended and cut else {"epoch": epoch + 1, "done": 0}
            self._save({**place, "validation_loss": loss, "figure": figure, "ended": ended})
        self._best, self._current = score if best else self._best, epoch + 1
        if self._told_to_end():
            self._end()

    def on_train_end(self, logs=None):
        self._writer.wait()
        if self._told_to_end(
            step_is_over=True
        ):  # since the last epoch ended, by other callbacks or while it was written
            self._end()
        self.close()

    def close(self):
        """Let go of the folder and of the signals, after a `fit` that ended by an error; one that ended well has done it."""
        if self._signals is not None:
            self._signals.stop()
        if self._writer is not None:
            self._writer.close()
            self._identity.leave(self._model)
        self._forget()
        self.checkpoints.close()

    def save(self):
        """Save a checkpoint of this moment of a running `fit`, unless there is one of this step."""
        if self._writer is None:
            raise ValueError("resume.save() is for a fit that runs: callbacks may call it when training has begun")
        if self._saved is None or self.step > self._saved:
            self._save({"epoch": self._current, "done": self.step - self._piece_start})

    def finished(self):
        """The newest checkpoint that is whole by now, or None."""
        self._writer.wait()
        if self._several:
            processes.wait_for_all("checkpoint")
        return self.checkpoints.newest()

    def _make_ready(self):
        """What is refused as `fit` begins, before any callback has begun, and has written a file anew."""
        if self._used:
            raise ValueError(
                f"this Resume has served one fit; the next one needs its own: resume = Resume({str(self.checkpoints.folder)!r})"
            )
        self._used = True
        callbacks = callbacks_of(self._model)
        refuse_others(callbacks)
        warn_of_optimizers(self._model)
        if sum(isinstance(one, Resume) for one in callbacks) > 1:
            raise ValueError("fit was given Resume more than once, and each would restore the model; give it one")
        self._take_again()
        if self._train is None:  # the position is lost, see `on_train_begin`: all steps to come are new ones
            self._done = self._within_piece = 0
        if self.step_before:
            keep_rows(callbacks, self._checkpoint.meta.get("written", {}))
        self._ready = True

    def _take_again(self):
        """Have the folder as `fit` begins, also where another `Resume` of this process had it meanwhile."""
        if not processes.is_chief():
            return
        self.checkpoints.open(in_use=self._works_there)
        if self.checkpoints.steps() != self._seen:
            raise OSError(
                errno.EBUSY,
                f"another run saved checkpoints since this Resume was made (now {self.checkpoints.steps()}); make a new one",
                str(self.checkpoints.folder),
            )

    def _works_there(self):
        """Whether its `fit` runs; if not, as after one that failed, what its thread still writes is waited for."""
        if self._model is not None and is_fitting(self._model):
            return True
        if self._writer is not None:
            self._writer.close()
            self._identity.leave(self._model)
        return False

    def _is_last(self, epoch):
        return epoch + 1 == self.params["epochs"] or self.step == self.run.steps

    def _is_best(self, score):
        """Whether a validation is the best so far, which the first process knows: all of them save at the same steps."""
        if score is None:
            return False
        return processes.chief_decides(lambda: bool(math.isfinite(score) and score < self._best))

    def _told_to_end(self, step_is_over=False):
        if self._several:
            if step_is_over and not self._stopped_several:
                self._stopped_several = processes.any_is_told(self._signals.told is not None, self.step)
            return self._stopped_several
        return self._signals.told is not None

    def _restore_callbacks(self):
        if self._checkpoint is not None:
            states = self._identity.callbacks(self._checkpoint.meta.get("callbacks", {}), callbacks_of(self.model))
            self._states.set(states, self._others or {})

    def _save(self, meta, before_test=None):
        self._writer.wait()
        self._unsaved.warn()
        arrays = before_test or state.arrays_of(self.model)  # validation writes to metrics, averaged weights, seeds
        self._saved = self.step
        remembered, more = self._states.get()
        arrays = {**arrays, **more}
        parts = None
        spread = {name: array for name, array in arrays.items() if state.is_spread(array)}
        if spread:  # over several processes, each of which writes its own
            if not state.is_finite(arrays):
                return warn_of_numbers(self.step)
            parts = Shards(self.checkpoints.part(self.step).with_suffix(".shards"), spread)
            arrays = {name: array for name, array in arrays.items() if name not in spread}
        if not self.chief:
            if parts is not None:
                self._writer.run(parts.wait)
            return
        known = state.identity_of(self.model)
        meta = {
            "backend": keras.backend.backend(),
            "keras": keras.__version__,
            **self._identity.meta(self.model, known["model"]),
            "validation_loss": None,
            "monitor": {"name": self.monitor, "mode": self.mode},
            "ended": False,
            "steps_per_epoch": self.params["steps"],
            "callbacks": remembered,
            "written": rows_written(callbacks_of(self.model)),
            **known,
            "metrics": kinds_of_metrics(self.model),
            **meta,
        }
        self._writer.write(self.step, arrays, meta, parts)

    def _end(self):
        self._writer.wait()
        if self.chief:
            written = self._writer.written or self.step_before
            lost = "" if written == self.step else f" (step {self.step} could not be saved)"
            print(
                f"told to end: step {written} is saved{lost}, the same command goes on from there",
                file=sys.stderr,
            )
        signals = self._signals
        self.close()
        signals.end()

    def _restore_again(self):
        state.assign(self.model, state.read(self.model, self._checkpoint))
        self._identity.set_learning_rate(self.model)

    def _restore_random(self):
        state.assign_random(self._random)
        self._random = {}

    def _first_batch(self):
        return next(iter(self._train.batches(self.step_before)))
