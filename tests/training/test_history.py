"""The CSV file of a run, and the curves of it."""

import contextlib
import csv
import dataclasses
import struct

import keras
import numpy as np
import pytest
from training_toy import Batches, compiled, new_model

from keras_seqlm.nesting import innermost
from keras_seqlm.training import HistoryCSV, LossPlot, Recipe, Run, plot_history, read_history
from keras_seqlm.training.history import COLUMNS
from keras_seqlm.training.safe_optimizer import SafeOptimizer

pytestmark = [pytest.mark.neutral, pytest.mark.usefixtures("eager_steps")]

RECIPE = Recipe(steps=6, batch_size=4, warmup_steps=2, validate_every=2)


class Crash(keras.callbacks.Callback):
    """Stops the run as an error would, in the middle of a piece."""

    def __init__(self, step):
        super().__init__()
        self.step, self.seen = step, 0

    def on_train_batch_end(self, batch, logs=None):
        self.seen += 1
        if self.seen == self.step:
            raise MemoryError("crash")


@pytest.mark.backends
def test_rows_survive_a_crash(tmp_path):
    path = tmp_path / "run" / "history.csv"
    with pytest.raises(MemoryError):
        RECIPE.fit(
            compiled(RECIPE, "bigram"), Batches(), Batches().batch(50), [HistoryCSV(path), Crash(5)], progress=False
        )
    with open(path, newline="") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == COLUMNS
    assert [row[0] for row in rows] == ["2", "4"]
    for row in read_history(path):
        assert 0 < row["loss"] < 10 and 0 < row["validation_loss"] < 10
        assert row["tokens_per_second"] > 0 and row["seconds"] > 0
        assert row["validation_bits_per_byte"] is None
        assert row["learning_rate"] == pytest.approx(float(RECIPE.learning_rate_schedule()(row["step"] - 1)), rel=1e-5)


def test_a_line_cut_short_is_left_out(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text(",".join(COLUMNS) + "\n2,3.5,3.6,,0.001,100,1.5,0.5,0\n4,3.1,3")
    assert [row["step"] for row in read_history(path)] == [2]
    path.write_text(",".join(COLUMNS) + "\n2,3.5,3.6,,0.001,100,1.5,0.5,0\n4,3.1,3.2,,0.001,100,2.5,0.4,1")
    assert [row["step"] for row in read_history(path)] == [2], "the last number may be cut short, too"


def test_a_history_that_cannot_be_read_is_kept_aside_as_the_run_goes_on(tmp_path):
    history = HistoryCSV(tmp_path / "history.csv")
    history.run = Run(first_step=2, steps=4)
    history.path.write_text("garbage")
    model = compiled(Recipe(steps=4, batch_size=4), "bigram")
    with pytest.warns(UserWarning, match=r"is no history of a run: .*it is kept as .*history.csv.unreadable"):
        model.fit(*Batches(4).batch(0), batch_size=2, callbacks=[history], verbose=0)
    assert [row["step"] for row in read_history(history.path)] == [4]
    assert (tmp_path / "history.csv.unreadable").read_text() == "garbage"


def test_a_new_run_starts_a_new_file(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("old\n")
    RECIPE.fit(compiled(RECIPE, "bigram"), Batches(), callbacks=[HistoryCSV(path)], progress=False)
    assert [row["step"] for row in read_history(path)] == [2, 4, 6]
    assert [row["validation_loss"] for row in read_history(path)] == [None] * 3


def test_the_seconds_go_on_over_starts(tmp_path):
    """From the last that are known: an older row may lack them, or a later one."""
    path, recipe = tmp_path / "history.csv", dataclasses.replace(RECIPE, validate_every=1)
    path.write_text(",".join(COLUMNS) + "\n1,3.5,,,,,1500,,\n2,3.1,,,,,,,\n3,3.0,,,,,9000,,\n")
    for first_step in (2, 4):
        model = compiled(recipe, "bigram")
        innermost(model.optimizer).iterations.assign(first_step)
        stop = [Crash(3)] if first_step == 2 else []
        with pytest.raises(MemoryError) if stop else contextlib.nullcontext():
            recipe.fit(model, Batches(), callbacks=[HistoryCSV(path), *stop], first_step=first_step, progress=False)
    rows = read_history(path)
    seconds = [row["seconds"] for row in rows if row["seconds"] is not None]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert seconds == sorted(seconds) and seconds[0] == 1500 < seconds[1] < seconds[-1] < 1600


OLD = COLUMNS[:7]  # before gradient norms and skipped steps


def test_a_file_of_before_its_last_columns_is_read_and_grows_them(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text(",".join(OLD) + "\n2,3.5,3.6,,0.001,100,1.5\n4,3.1,3.2,,0.001,100,2.5\n")
    assert read_history(path)[0] == {
        **dict(zip(OLD, (2, 3.5, 3.6, None, 0.001, 100, 1.5), strict=True)),
        **dict.fromkeys(COLUMNS[7:]),
    }
    model = compiled(RECIPE, "bigram")
    for step in range(2):
        model.train_on_batch(*Batches().batch(step))
    RECIPE.fit(model, Batches(), callbacks=[HistoryCSV(path)], first_step=2, progress=False)
    header, first, *rest = path.read_text().splitlines()
    assert header == ",".join(COLUMNS) and first == "2,3.5,3.6,,0.001,100,1.5,,"
    assert [line.split(",")[0] for line in rest] == ["4", "6"]


@pytest.mark.backends
def test_gradient_norm_and_skipped_steps_are_the_optimizers(tmp_path):
    model = new_model("bigram")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(SafeOptimizer(keras.optimizers.SGD(0.1)), loss, jit_compile=keras.backend.backend() == "jax")
    x, y = Batches(rows=8).batch(0)
    weight = np.ones(y.shape, "float32")
    weight[2] = np.nan  # in the first batch of four
    model.fit(
        x, y, sample_weight=weight, batch_size=4, shuffle=False, verbose=0, callbacks=[HistoryCSV(tmp_path / "h.csv")]
    )
    (row,) = read_history(tmp_path / "h.csv")
    assert row["skipped_steps"] == 1
    assert row["gradient_norm"] == pytest.approx(float(model.optimizer.gradient_norm), rel=1e-4)
    assert 0 < row["gradient_norm"] < 10


def test_a_loss_with_more_than_nats_in_it_gives_no_bits_per_byte(tmp_path):
    recipe, path = Recipe(steps=1, batch_size=4, label_smoothing=0.1), tmp_path / "history.csv"
    history = HistoryCSV(path, bytes_per_token=2.0)
    recipe.fit(compiled(recipe, "bigram"), Batches(), Batches().batch(50), [history], progress=False)
    (row,) = read_history(path)
    assert row["validation_loss"] > 0 and row["validation_bits_per_byte"] is None


def test_a_process_that_is_not_the_first_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("keras_seqlm.training.callbacks.is_chief", lambda: False)
    history, path = tmp_path / "history.csv", tmp_path / "loss.png"
    callbacks = [HistoryCSV(history), LossPlot(history, path)]
    RECIPE.fit(compiled(RECIPE, "bigram"), Batches(), Batches().batch(50), callbacks, progress=False)
    assert list(tmp_path.iterdir()) == []


def write_history(path):
    rows = [
        (step, 1 + 2 / (1 + step / 100), 1.2 + 2 / (1 + step / 90) if step % 200 == 0 else "")
        for step in range(100, 1100, 100)
    ]
    lines = [",".join(COLUMNS), *(f"{step},{loss},{validation},,,,,," for step, loss, validation in rows)]
    path.write_text("\n".join(lines) + "\n")


def test_plot_has_both_curves_and_its_axes_named(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kwargs: figures.append(self) or open(args[0], "w").close()
    )
    write_history(tmp_path / "history.csv")
    plot_history(tmp_path / "history.csv", tmp_path / "loss.png")
    (axes,) = figures[0].axes
    assert axes.get_xlabel() == "step" and axes.get_ylabel() == "loss (nats per token)"
    assert [len(line.get_xdata()) for line in axes.lines] == [10, 5]
    assert [text.get_text().split(":")[0] for text in axes.get_legend().get_texts()] == ["training", "validation"]


def test_plot_is_a_png_and_replaces_the_old_one(tmp_path):
    write_history(tmp_path / "history.csv")
    (tmp_path / "loss.png").write_text("old")
    plot_history(tmp_path / "history.csv", tmp_path / "loss.png")
    data = (tmp_path / "loss.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert struct.unpack(">II", data[16:24]) == (1050, 630)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.csv", "loss.png"]


def test_plot_of_a_run_that_has_just_begun(tmp_path):
    (tmp_path / "history.csv").write_text(",".join(COLUMNS) + "\n")
    plot_history(tmp_path / "history.csv", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").exists()


def test_the_curves_are_drawn_during_the_run_and_at_its_end(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("keras_seqlm.training.history.plot_history", lambda *paths: drawn.append(paths))
    history, path = tmp_path / "history.csv", tmp_path / "loss.png"
    RECIPE.fit(
        compiled(RECIPE, "bigram"),
        Batches(),
        callbacks=[HistoryCSV(history), LossPlot(history, path, interval=3600.0)],
        progress=False,
    )
    assert drawn == [(history, path)] * 2


def test_a_history_that_is_taken_away_while_the_run_goes_is_whole_again_and_ends_nothing(tmp_path):
    class TakeAway(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                (tmp_path / "history.csv").unlink()

    plot = LossPlot(tmp_path / "history.csv", tmp_path / "loss.png", interval=0.0)
    callbacks = [HistoryCSV(tmp_path / "history.csv"), plot, TakeAway()]
    RECIPE.fit(compiled(RECIPE, "bigram"), Batches(), callbacks=callbacks, progress=False)
    assert [row["step"] for row in read_history(tmp_path / "history.csv")] == [2, 4, 6]


def test_a_plot_never_ends_a_run(tmp_path):
    class Spoil(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            (tmp_path / "history.csv").write_text("2,3.5,3.6\n4,3.1,3.2\n")

    plot = LossPlot(tmp_path / "history.csv", tmp_path / "loss.png", interval=0.0)
    with pytest.warns(
        UserWarning, match="loss.png could not be drawn .ValueError: .* is no history of a run.*training goes on"
    ):
        RECIPE.fit(
            compiled(RECIPE, "bigram"),
            Batches(),
            callbacks=[HistoryCSV(tmp_path / "history.csv"), Spoil(), plot],
            progress=False,
        )


def test_what_is_no_history_is_told_by_name(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("epoch,loss\n1,2.0\n")
    with pytest.raises(ValueError, match='history.csv is no history of a run: its first line names no column "step"'):
        read_history(path)
    path.write_text("")
    assert read_history(path) == []
