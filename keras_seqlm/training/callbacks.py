"""What a run shows and writes while it trains: progress, history, curves, samples. Each works in a plain `fit`, too."""

import csv
import dataclasses
import datetime
import math
import os
import pathlib
import sys
import time

import keras

COLUMNS = (
    "step",
    "loss",
    "validation_loss",
    "validation_bits_per_byte",
    "learning_rate",
    "tokens_per_second",
    "seconds",
)


@dataclasses.dataclass(frozen=True)
class Run:
    """What a callback cannot ask a Keras model for; `Recipe.fit` fills it in.

    Args:
        first_step: steps made before this call of `fit`.
        steps: at which step the run ends, or None.
        tokens_per_step: targets of a training batch, or None.
        bytes_per_token: raw bytes of text for a validation target, or None.
    """

    first_step: int = 0
    steps: int | None = None
    tokens_per_step: int | None = None
    bytes_per_token: float | None = None


class RunCallback(keras.callbacks.Callback):
    """A callback that knows the step, its learning rate and the speed, in `Recipe.fit` as in `model.fit`.

    A subclass reads `self.step`, `self.learning_rate()` and `self.tokens_per_second()`; `self.run` is the `Run`.
    """

    async_safe = True  # JAX need not wait for a step's numbers: a step is told by its batch, not by counting calls

    def __init__(self):
        super().__init__()
        self.run = Run()
        self.step = 0

    def on_train_begin(self, logs=None):
        if self.run.steps is None and self.params.get("steps") and self.params.get("epochs"):
            self.run = dataclasses.replace(self.run, steps=self.params["steps"] * self.params["epochs"])
        self.step = self._piece_start = self.run.first_step
        self.started = time.perf_counter()
        # The schedule itself: on JAX the optimizer's step is away while `fit` runs, so its own rate cannot be read.
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        rate = getattr(optimizer, "_learning_rate", None)
        self._schedule = rate if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule) else None
        self._clock = None

    def on_epoch_begin(self, epoch, logs=None):
        # The first step of a run compiles, so its time would say nothing; later pieces start to count at once.
        self._clock = None if self._clock is None else (self.step, time.perf_counter())

    def on_train_batch_end(self, batch, logs=None):
        self.step = max(self.step, self._piece_start + batch + 1)
        if self._clock is None:
            self._clock = (self.step, time.perf_counter())
        self._last = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self._piece_start = self.step

    def learning_rate(self):
        """Of the last step; between pieces only, unless a schedule sets it."""
        rate = self.model.optimizer.learning_rate if self._schedule is None else self._schedule(max(self.step - 1, 0))
        return float(keras.ops.convert_to_numpy(rate))

    def steps_per_second(self):
        """In this piece, validation left out; None before its second step."""
        if self._clock is None or self.step == self._clock[0]:
            return None
        return (self.step - self._clock[0]) / max(self._last - self._clock[1], 1e-9)

    def tokens_per_second(self):
        """In this piece; None where unknown."""
        rate = self.steps_per_second()
        return None if rate is None or self.run.tokens_per_step is None else rate * self.run.tokens_per_step


class Progress(RunCallback):
    """One line on standard error: step, loss, tokens a second, learning rate, time left.

    In a terminal the line is drawn anew in its place; elsewhere a plain line comes at every tenth of the run. Each
    validation leaves a line.

    Args:
        stream: where to write; default `sys.stderr`.
        interval: seconds between two drawings in a terminal.
    """

    def __init__(self, stream=None, interval=0.25):
        super().__init__()
        self.stream = stream
        self.interval = interval

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._out = sys.stderr if self.stream is None else self.stream
        self._terminal = self._out.isatty()
        self._drawn, self._printed = -math.inf, self.run.first_step

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        if self._terminal and time.perf_counter() - self._drawn > self.interval:
            self._drawn = time.perf_counter()
            self._out.write(f"\r{self._line(logs or {})}\x1b[K")
            self._out.flush()
        elif not self._terminal and self._due() and batch + 1 != self.params.get("steps"):
            self._print(self._line(logs or {}))

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        if self._terminal or self._due() or "val_loss" in (logs or {}):
            self._print(self._line(logs or {}))

    def _due(self):
        return self.step - self._printed >= math.ceil((self.run.steps or 1000) / 10)

    def _print(self, line):
        self._printed = self.step
        self._out.write(f"\r{line}\x1b[K\n" if self._terminal else f"{line}\n")
        self._out.flush()

    def _line(self, logs):
        total = self.run.steps
        parts = [f"step {self.step:{len(str(total))}}/{total}" if total else f"step {self.step}"]
        if "loss" in logs:
            parts.append(f"loss {float(logs['loss']):.4f}")
        if "val_loss" in logs:
            parts.append(f"validation loss {float(logs['val_loss']):.4f}")
        if (speed := self.tokens_per_second()) is not None:
            parts.append(f"{speed:,.0f} tokens/s")
        if self._schedule is not None:
            parts.append(f"learning rate {self.learning_rate():.2e}")
        if total and (rate := self.steps_per_second()):
            parts.append(f"{datetime.timedelta(seconds=round((total - self.step) / rate))} left")
        return "  ".join(parts)


class HistoryCSV(RunCallback):
    """Write a row to a CSV file at each validation point (in a plain `fit`: each epoch), safe from a crash.

    Columns: `step`; `loss`, the mean over the steps since the row before, in nats a token; `validation_loss`;
    `validation_bits_per_byte`; `learning_rate` of that step; `tokens_per_second`, validation and the first step left
    out; `seconds` since the start. What is unknown stays empty. A run that goes on from step n keeps the rows up to n.

    Args:
        path: of the file.
        bytes_per_token: raw bytes of the validation text for each of its tokens; `Recipe.fit` knows it from the data.
    """

    def __init__(self, path, bytes_per_token=None):
        super().__init__()
        self.path = pathlib.Path(path)
        self.bytes_per_token = bytes_per_token

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        kept = []
        if self.run.first_step and self.path.exists():
            kept = [row for row in read_history(self.path) if row["step"] <= self.run.first_step]
        self._seconds_before = (kept[-1]["seconds"] or 0.0) if kept else 0.0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(self.path.name + ".new")
        self._append(beside, [list(COLUMNS), *([_cell(row[name]) for name in COLUMNS] for row in kept)], mode="w")
        os.replace(beside, self.path)

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        logs = logs or {}
        validation, size = logs.get("val_loss"), self.bytes_per_token or self.run.bytes_per_token
        row = {
            "step": self.step,
            "loss": logs.get("loss"),
            "validation_loss": validation,
            "validation_bits_per_byte": None if validation is None or not size else validation / math.log(2) / size,
            "learning_rate": self.learning_rate(),
            "tokens_per_second": self.tokens_per_second(),
            "seconds": self._seconds_before + time.perf_counter() - self.started,
        }
        self._append(self.path, [[_cell(row[name]) for name in COLUMNS]])

    @staticmethod
    def _append(path, rows, mode="a"):
        with open(path, mode, newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
            file.flush()
            os.fsync(file.fileno())


class LossPlot(RunCallback):
    """Draw the curves of a `HistoryCSV`, which must stand before it in the list of callbacks.

    Args:
        history: path of the CSV file.
        path: of the PNG file.
        interval: seconds between two drawings; the last is always made.
    """

    def __init__(self, history, path, interval=10.0):
        super().__init__()
        self.history = history
        self.path = path
        self.interval = interval

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._drawn = -math.inf

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        if time.perf_counter() - self._drawn >= self.interval:
            plot_history(self.history, self.path)
            self._drawn = time.perf_counter()

    def on_train_end(self, logs=None):
        plot_history(self.history, self.path)


class SampleWriter(RunCallback):
    """Append a text of the model to a file at each validation point, so that one can read how it learns.

    Args:
        function: `function(model) -> str`.
        path: of the file.
        every: write at every so many validation points, and at the last one.
    """

    def __init__(self, function, path, every=1):
        super().__init__()
        if every < 1:
            raise ValueError(f"every counts validation points and must be at least 1, got {every}")
        self.function = function
        self.path = pathlib.Path(path)
        self.every = every

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.run.first_step == 0:
            self.path.write_text("", encoding="utf-8")

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        if (epoch + 1) % self.every and self.step != self.run.steps:
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(f"--- step {self.step} ---\n{self.function(self.model)}\n\n")


def read_history(path):
    """The rows of a `HistoryCSV` file: a list of dicts, `step` an int, the rest floats or None.

    A last line that a crash cut short is left out.
    """
    rows = []
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if None in row.values():
                continue
            numbers = {name: float(value) if value else None for name, value in row.items()}
            rows.append({**numbers, "step": int(row["step"])})
    return rows


def plot_history(history, path):
    """Draw training and validation loss over the steps.

    Args:
        history: path of a `HistoryCSV` file.
        path: of the PNG file, which is replaced at once.

    Raises:
        FileNotFoundError: there is no such history.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_history(history)
    figure = Figure(figsize=(7.0, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display, whatever backend the user's session has
    axes = figure.add_subplot()
    for name, label, style in (
        ("loss", "training", {"color": "#7a8ca3", "linewidth": 1.6}),
        ("validation_loss", "validation", {"color": "#c8442f", "linewidth": 1.8}),
    ):
        points = [(row["step"], row[name]) for row in rows if row[name] is not None and math.isfinite(row[name])]
        if not points:
            continue
        best = min(points, key=lambda point: point[1])
        label = f"{label}: {points[-1][1]:.3f}" + (f", best {best[1]:.3f}" if best is not points[-1] else "")
        axes.plot(*zip(*points, strict=True), label=label, marker="o", markersize=3 if len(points) > 1 else 6, **style)
        axes.legend(frameon=False)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.set_xlim(left=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".new")
    figure.savefig(beside, format="png")
    os.replace(beside, path)


def _cell(value):
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{float(value):.6g}"
