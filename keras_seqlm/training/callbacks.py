"""What a run shows and writes while it trains: progress and samples. Each works in a plain `fit`, too."""

import dataclasses
import datetime
import math
import pathlib
import re
import time

import keras

from keras_seqlm.devices.processes import chief_decides, is_chief
from keras_seqlm.files import Log
from keras_seqlm.nesting import innermost
from keras_seqlm.status_line import StatusLine

HEADER = re.compile(r"^--- step (\d+) ---$", re.MULTILINE)  # over each text of a `SampleWriter`


@dataclasses.dataclass(frozen=True)
class Run:
    """What a callback cannot ask a Keras model for; `Recipe.fit` fills it in.

    Args:
        first_step: steps made before this call of `fit`.
        steps: at which step the run ends, or None.
        tokens_per_step: targets of a training batch, or None.
        targets: what these are, for those who read it: "tokens", or "rows".
        bytes_per_token: raw bytes of text for a validation target, or None.
        step_before: up to which step callbacks see steps again that were made before, in name only, as `Resume` does
            where it goes on within a piece; default `first_step`.
        mean_since: the step after which the losses begin whose mean `fit` shows in its first piece; default `step_before`.
        rows_before: up to which step validation points were told of that do not come again; default `step_before`. A run that
            was saved before the validation of that step has it once more.
    """

    first_step: int = 0
    steps: int | None = None
    tokens_per_step: int | None = None
    bytes_per_token: float | None = None
    step_before: int | None = None
    mean_since: int | None = None
    rows_before: int | None = None
    targets: str = "tokens"

    def __post_init__(self):
        if self.step_before is None:
            object.__setattr__(self, "step_before", self.first_step)
        if self.mean_since is None:
            object.__setattr__(self, "mean_since", self.step_before)
        if self.rows_before is None:
            object.__setattr__(self, "rows_before", self.step_before)


class RunCallback(keras.callbacks.Callback):
    """A callback that knows the step, its learning rate and the speed, in `Recipe.fit` as in `model.fit`.

    A subclass reads `self.step`, `self.learning_rate()`, `self.tokens_per_second()` and `self.of_optimizer(name)`;
    `self.run` is the `Run`, and `self.chief` tells whether this process writes. One that may hear of the end of a batch
    from another thread, while the next step runs, sets `async_safe = True`; if all do, JAX waits for no step's numbers.
    """

    def __init__(self):
        super().__init__()
        self.run = Run()
        self._of_this_fit = None
        self.step = 0
        self.chief = True

    def on_train_begin(self, logs=None):
        self.chief = is_chief()
        self.run = self.told_run()
        if self.run.steps is None and self.params.get("steps") and self.params.get("epochs"):
            self.run = dataclasses.replace(self.run, steps=self.params["steps"] * self.params["epochs"])
            self._of_this_fit = self.run
        self.step = self._piece_start = self.run.first_step
        self._mean_since = self.run.mean_since
        self.started = time.perf_counter()
        # The schedule itself: on JAX the optimizer's step is away while `fit` runs, so its own rate cannot be read.
        rate = getattr(innermost(self.model.optimizer), "_learning_rate", None)
        self._schedule = rate if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule) else None
        self._clock = None

    def told_run(self):
        """The run that this callback was told of, without the number of steps that it took from a `fit` before."""
        return dataclasses.replace(self.run, steps=None) if self.run is self._of_this_fit else self.run

    def on_epoch_begin(self, epoch, logs=None):
        # The first step of a run compiles, so its time would say nothing; later pieces start to count at once.
        self._clock = None if self._clock is None else (self.step, time.perf_counter())

    def on_train_batch_end(self, batch, logs=None):
        self.step = max(self.step, self._piece_start + batch + 1)
        if self._clock is None or self.step <= self.run.step_before:
            self._clock = (self.step, time.perf_counter())
        self._last = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self._piece_start = self._mean_since = self.step

    def steps_in_mean(self):
        """Of how many steps the `loss` in the logs of this step is the mean."""
        return self.step - self._mean_since

    def learning_rate(self):
        """Of the last step; between pieces only, unless a schedule sets it."""
        rate = self.model.optimizer.learning_rate if self._schedule is None else self._schedule(max(self.step - 1, 0))
        return float(keras.ops.convert_to_numpy(rate))

    def of_optimizer(self, name):
        """A number that the optimizer keeps of its last step, as `SafeOptimizer` keeps `gradient_norm`; None without.

        For `on_train_batch_begin` and between pieces: in `on_train_batch_end` JAX may have given it to the next step.
        """
        optimizer = self.model.optimizer
        while not hasattr(optimizer, name):
            if (optimizer := getattr(optimizer, "inner_optimizer", None)) is None:
                return None
        return self.number(getattr(optimizer, name))

    def number(self, variable):
        """What a scalar variable of the optimizer, or of a metric, holds; when it may be asked for: see `of_optimizer`."""
        value = self._within_piece(variable) if keras.backend.backend() == "jax" else None
        # A copy, since NumPy cannot read a mirrored one.
        return float(keras.ops.convert_to_numpy(keras.ops.copy(variable.value if value is None else value)))

    def _within_piece(self, variable):
        """On JAX numbers are in a state that goes from step to step, and the variables are empty meanwhile."""
        if getattr(self.model, "_jax_state_synced", True):
            return None
        places = {"optimizer_variables": self.model.optimizer.variables}
        places["metrics_variables"] = self.model.metrics_variables
        for group, variables in places.items():
            for place, other in enumerate(variables):
                if other is variable:
                    return self.model._jax_state[group][place]
        return None

    def steps_per_second(self):
        """In this piece, validation left out; None before its second step."""
        if self._clock is None or self.step == self._clock[0]:
            return None
        return (self.step - self._clock[0]) / max(self._last - self._clock[1], 1e-9)

    def tokens_per_second(self):
        """In this piece; None where unknown."""
        rate = self.steps_per_second()
        return None if rate is None or self.run.tokens_per_step is None else rate * self.run.tokens_per_step


def tell_of_run(callbacks, run):
    """Give callbacks the `Run` of the `fit` that begins; what it leaves open they know, as far as somebody has told them.

    Args:
        callbacks: of that `fit`; those that are no `RunCallback` need none.
        run: a `Run`.

    Returns:
        A function that takes it back, so that the next `fit` of the same callbacks does not go by it.
    """
    before = []
    for callback in callbacks:
        if isinstance(callback, RunCallback):
            own = callback.told_run()
            before.append((callback, own))
            given = {name: value for name, value in vars(run).items() if value is not None}
            callback.run = dataclasses.replace(own, **given)

    def take_back():
        for callback, own in before:
            callback.run = own

    return take_back


def begin_means(callbacks, step):
    """Tell those that are `RunCallback`s, and have begun, that the means of the losses begin after a step."""
    for callback in callbacks:
        if isinstance(callback, RunCallback):
            callback._mean_since = step


class Progress(RunCallback):
    """One line on standard error: step, loss, tokens a second, learning rate, time left.

    Where the optimizer keeps them also the gradient's norm, of a step a moment ago, and the number of steps that were
    skipped. In a terminal the line is drawn anew in its place, and holds what its width has room for; elsewhere a plain
    line with all of it comes at every tenth of the run. Each validation leaves a line.

    Args:
        stream: where to write; default `sys.stderr`.
        interval: seconds between two drawings in a terminal.
    """

    async_safe = True

    def __init__(self, stream=None, interval=0.25):
        super().__init__()
        self.stream = stream
        self.interval = interval

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._out = StatusLine(self.stream)
        self._terminal = self._out.redraws
        self._drawn, self._printed = -math.inf, self.run.first_step
        self._asked, self._gradient_norm, self._skipped = -math.inf, None, None

    def on_train_batch_begin(self, batch, logs=None):
        if self.chief and batch and time.perf_counter() - self._asked > self.interval:
            self._ask_optimizer()

    def _ask_optimizer(self):
        self._gradient_norm, self._skipped = map(self.of_optimizer, ("gradient_norm", "skipped"))
        self._asked = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        if not self.chief or self.step <= self.run.step_before:
            return
        if self._terminal and time.perf_counter() - self._drawn > self.interval:
            self._drawn = time.perf_counter()
            self._out.draw(*self._parts(logs or {}))
        elif not self._terminal and self._due() and batch + 1 != self.params.get("steps"):
            self._keep(logs or {})

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        if self.chief and (self._terminal or self._due() or "val_loss" in (logs or {})):
            self._ask_optimizer()
            self._keep(logs or {})

    def _due(self):
        return self.step - self._printed >= math.ceil((self.run.steps or 1000) / 10)

    def _keep(self, logs):
        self._printed = self.step
        self._out.keep(*self._parts(logs))

    def _parts(self, logs):
        """What the line says, in its order, and how much each part matters where there is no room for all."""
        total = self.run.steps
        parts = [(f"step {self.step:{len(str(total))}}/{total}" if total else f"step {self.step}", 9)]
        if "loss" in logs:
            parts.append((f"loss {float(logs['loss']):.4f}", 7))
        if "val_loss" in logs:
            parts.append((f"validation loss {float(logs['val_loss']):.4f}", 8))
        parts += [
            (f"{name.removeprefix('val_').replace('_', ' ')} {float(value):.4f}", 7.5)
            for name, value in logs.items()
            if name.startswith("val_") and name != "val_loss"
        ]
        if (speed := self.tokens_per_second()) is not None:
            parts.append((f"{speed:,.0f} {self.run.targets}/s", 4))
        if self._schedule is not None:
            parts.append((f"learning rate {self.learning_rate():.2e}", 3))
        if self._gradient_norm is not None:
            parts.append((f"gradient norm {self._gradient_norm:.3g}", 2))
        if self._skipped:
            parts.append((f"{self._skipped:.0f} skipped", 6))
        if total and (rate := self.steps_per_second()):
            parts.append((f"{datetime.timedelta(seconds=round((total - self.step) / rate))} left", 5))
        return zip(*parts, strict=True)


class ValidateAverage(keras.callbacks.Callback):
    """Validate with the averaged weights that an optimizer with `use_ema=True` keeps, and go on with its own.

    Unlike `keras.callbacks.SwapEMAWeights` it gives the weights back bit for bit on every backend, so that a run does
    not depend on when it is validated.
    """

    def on_test_begin(self, logs=None):
        optimizer = innermost(self.model.optimizer)
        weights, averages = optimizer._trainable_variables, optimizer._model_variables_moving_average
        self._kept = [(weight, keras.ops.copy(weight)) for weight in weights]
        for weight, average in zip(weights, averages, strict=True):
            weight.assign(keras.ops.copy(average))  # a copy, since JAX lets a step overwrite the weights it is given

    def on_test_end(self, logs=None):
        for weight, value in self._kept:
            weight.assign(value)
        self._kept = None


class SampleWriter(RunCallback):
    """Append a text of the model to a file at each validation point, so that one can read how it learns.

    Each text stands under a line `--- step 100 ---`. A run that goes on from step n keeps those up to n, and writes that of n
    where it is due and missing. Where several
    processes train, all of them call the function, since all of them hold the model, and the first one writes.

    Args:
        function: `function(model) -> str`.
        path: of the file.
        every: write at every so many validation points, and at the last one.
        every_steps: write at every so many steps instead, between validations, too.
    """

    async_safe = True

    def __init__(self, function, path, every=1, every_steps=None):
        super().__init__()
        if every < 1:
            raise ValueError(f"every counts validation points and must be at least 1, got {every}")
        if every_steps is not None and every_steps < 1:
            raise ValueError(f"every_steps must be at least 1, or None, got {every_steps}")
        self.function = function
        self.path = pathlib.Path(path)
        self.every = every
        self.every_steps = every_steps

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        # Of the step it goes on from there may be no text yet: the run ended between the checkpoint and the text.
        last = chief_decides(self._take_up)
        self._written = max(last, self.run.step_before - self.model.steps_per_execution)

    def _take_up(self):
        """Keep what was written before, and give the step of the last text."""
        kept = ""
        if self.run.step_before and self.path.exists():
            kept = _up_to(self.path.read_text(encoding="utf-8"), self.run.step_before)
        self._log = Log(self.path, kept)
        return max((int(header[1]) for header in HEADER.finditer(kept)), default=0)

    def on_train_batch_begin(self, batch, logs=None):
        # Here, and not at the end of the step before, the weights can be read on every backend.
        if self.every_steps is not None and batch:
            self._write_if_due(self._piece_start + batch)

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        if self.step == self.run.steps:
            self._sample(self.step)
        elif self.every_steps is not None:
            self._write_if_due(self.step)
        elif (epoch + 1) % self.every == 0:
            self._sample(self.step)

    def _write_if_due(self, step):
        if step // self.every_steps > self._written // self.every_steps:
            self._sample(step)

    def _sample(self, step):
        if step <= self._written:
            return
        self._written = step
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()
        text = self.function(self.model)
        if self.chief:
            self._log.add(f"--- step {step} ---\n{text}\n\n")


def _up_to(samples, step):
    """The sections of a `SampleWriter` file up to a step, without one that a crash cut short."""
    whole = samples[: samples.rfind("\n\n") + 2] if "\n\n" in samples else ""
    for header in HEADER.finditer(whole):
        if int(header[1]) > step:
            return whole[: header.start()]
    return whole
