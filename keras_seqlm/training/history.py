"""The history of a run: the CSV file it writes, row by row, and the curves of it."""

import csv
import io
import math
import pathlib
import time
import warnings

from keras_seqlm.checkpoints.history import COLUMNS, read_history
from keras_seqlm.files import Log, rename, replacing
from keras_seqlm.training.callbacks import RunCallback


class HistoryCSV(RunCallback):
    """Write a row to a CSV file at each validation point (in a plain `fit`: each epoch), safe from a crash.

    Columns: `step`; `loss`, the mean over the steps since the row before, in nats a token; `validation_loss`;
    `validation_bits_per_byte`; `learning_rate` of that step; `tokens_per_second`, validation and the first step left
    out; `seconds` since the start, those of a run before it went on included; `gradient_norm` of that step, before
    clipping, and `skipped_steps` so far, where the optimizer keeps them. What is unknown stays empty, and so do the bits
    per byte of a loss with label smoothing or z-loss. A run that goes on from step n keeps the rows up to n.

    Args:
        path: of the file.
        bytes_per_token: raw bytes of the validation text for each of its tokens; `Recipe.fit` knows it from the data.
        figures: names of what `Figures` puts into the logs; each has a column, `validation_NAME`.
    """

    async_safe = True

    def __init__(self, path, bytes_per_token=None, figures=()):
        super().__init__()
        self.path = pathlib.Path(path)
        self.figures = {f"validation_{name}": f"val_{name}" for name in figures}
        self.columns = (*COLUMNS, *self.figures)
        self.bytes_per_token = bytes_per_token

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        if not self.chief:
            return
        kept = []
        if self.run.step_before and self.path.exists():
            kept = [row for row in self._read() if row["step"] <= self.run.rows_before]
        self._seconds_before = max((row["seconds"] or 0.0 for row in kept), default=0.0)  # the last row may lack it
        self._log = Log(self.path, _lines([list(self.columns), *map(self._cells, kept)]))

    def _read(self):
        try:
            return read_history(self.path)
        except ValueError as error:
            aside = self.path.with_name(f"{self.path.name}.unreadable")
            rename(self.path, aside)
            warnings.warn(f"{error}; it is kept as {aside}, and the rows of before are missing", stacklevel=2)
            return []

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        if not self.chief:
            return
        logs = logs or {}
        row = {
            "step": self.step,
            "loss": logs.get("loss"),
            "validation_loss": logs.get("val_loss"),
            "validation_bits_per_byte": self._bits_per_byte(logs.get("val_loss")),
            "learning_rate": self.learning_rate(),
            "tokens_per_second": self.tokens_per_second(),
            "seconds": self._seconds_before + time.perf_counter() - self.started,
            "gradient_norm": self.of_optimizer("gradient_norm"),
            "skipped_steps": self.of_optimizer("skipped"),
            **{column: logs.get(name) for column, name in self.figures.items()},
        }
        self._log.add(_lines([self._cells(row)]))

    def _cells(self, row):
        return [_cell(row.get(name)) for name in self.columns]

    def _bits_per_byte(self, loss):
        size = self.bytes_per_token or self.run.bytes_per_token
        more = any(getattr(self.model.loss, name, 0) for name in ("label_smoothing", "z_loss"))
        return None if loss is None or not size or more else loss / math.log(2) / size


class LossPlot(RunCallback):
    """Draw the curves of a `HistoryCSV`, which must stand before it in the list of callbacks.

    Args:
        history: path of the CSV file.
        path: of the PNG file.
        interval: seconds between two drawings; the last is always made.
    """

    async_safe = True

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
        if self.chief and time.perf_counter() - self._drawn >= self.interval:
            self._draw()
            self._drawn = time.perf_counter()

    def on_train_end(self, logs=None):
        if self.chief:
            self._draw()

    def _draw(self):
        try:
            plot_history(self.history, self.path)
        except Exception as error:  # a damaged history, a library of drawing: a run is worth more than a picture of it
            reason = f"{type(error).__name__}: {error}"
            warnings.warn(f"{self.path} could not be drawn ({reason}); training goes on", stacklevel=2)


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
    with replacing(path) as beside:
        figure.savefig(beside, format="png")


def _lines(rows):
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def _cell(value):
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{float(value):.6g}"
