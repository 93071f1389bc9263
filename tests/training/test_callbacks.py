"""What a run shows and writes."""

import csv
import io
import struct

import keras
import numpy as np
import pytest
from training_toy import Batches, compiled, new_model

from keras_seqlm.training import HistoryCSV, LossPlot, Progress, Recipe, SampleWriter, plot_history, read_history
from keras_seqlm.training.callbacks import COLUMNS

RECIPE = Recipe(steps=6, batch_size=4, warmup_steps=2, validate_every=2)


class Terminal(io.StringIO):
    def isatty(self):
        return True


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
    path.write_text(",".join(COLUMNS) + "\n2,3.5,3.6,,0.001,100,1.5\n4,3.1,3")
    assert [row["step"] for row in read_history(path)] == [2]


def test_a_new_run_starts_a_new_file(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("old\n")
    RECIPE.fit(compiled(RECIPE, "bigram"), Batches(), callbacks=[HistoryCSV(path)], progress=False)
    assert [row["step"] for row in read_history(path)] == [2, 4, 6]
    assert [row["validation_loss"] for row in read_history(path)] == [None] * 3


@pytest.mark.backends
def test_callbacks_serve_a_plain_fit(tmp_path):
    model = new_model("bigram")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, jit_compile=keras.backend.backend() == "jax")
    out = io.StringIO()
    callbacks = [HistoryCSV(tmp_path / "history.csv", bytes_per_token=2.0), Progress(stream=out)]
    x, y = Batches(rows=8).batch(0)
    model.fit(x, y, batch_size=4, epochs=2, validation_data=(x, y), callbacks=callbacks, verbose=0)
    rows = read_history(tmp_path / "history.csv")
    assert [row["step"] for row in rows] == [2, 4]
    assert rows[0]["learning_rate"] == pytest.approx(3e-3)
    assert rows[1]["validation_bits_per_byte"] == pytest.approx(rows[1]["validation_loss"] / np.log(2) / 2, rel=1e-4)
    assert "step 4/4" in out.getvalue().splitlines()[-1]


def test_progress_off_a_terminal_gives_plain_lines_at_every_tenth():
    recipe = Recipe(steps=40, batch_size=4, validate_every=40)
    out = io.StringIO()
    recipe.fit(compiled(recipe, "bigram"), Batches(), Batches().batch(50), [Progress(stream=out)])
    lines = out.getvalue().splitlines()
    assert len(lines) == 10 and "\r" not in out.getvalue() and "\x1b" not in out.getvalue()
    assert (
        lines[0].startswith("step  4/40  loss ")
        and " tokens/s  learning rate " in lines[0]
        and lines[0].endswith("left")
    )
    assert lines[-1].startswith("step 40/40  loss ") and "validation loss" in lines[-1] and "0:00:00 left" in lines[-1]


def test_progress_in_a_terminal_redraws_one_line_and_keeps_those_of_the_validations():
    out = Terminal()
    RECIPE.fit(compiled(RECIPE, "bigram"), Batches(), Batches().batch(50), [Progress(stream=out, interval=0.0)])
    assert out.getvalue().count("\r") == 6 + 3
    kept = out.getvalue().split("\n")[:-1]
    assert len(kept) == 3 and all("validation loss" in line for line in kept)


def test_progress_goes_to_standard_error_unless_told_not_to(capsys):
    RECIPE.fit(compiled(RECIPE, "bigram"), Batches())
    shown = capsys.readouterr()
    assert "step 6/6" in shown.err and shown.out == ""
    RECIPE.fit(compiled(RECIPE, "bigram"), Batches(), progress=False)
    assert capsys.readouterr().err == ""


def test_samples_are_written_at_validation_points(tmp_path):
    path = tmp_path / "samples.txt"
    path.write_text("of an older run")
    RECIPE.fit(
        compiled(RECIPE, "bigram"),
        Batches(),
        callbacks=[SampleWriter(lambda model: f"naïve {type(model).__name__}", path, every=2)],
        progress=False,
    )
    text = path.read_text(encoding="utf-8")
    assert text == "--- step 4 ---\nnaïve Sequential\n\n--- step 6 ---\nnaïve Sequential\n\n"
    with pytest.raises(ValueError, match="at least 1"):
        SampleWriter(str, path, every=0)


def write_history(path):
    rows = [
        (step, 1 + 2 / (1 + step / 100), 1.2 + 2 / (1 + step / 90) if step % 200 == 0 else "")
        for step in range(100, 1100, 100)
    ]
    lines = [",".join(COLUMNS), *(f"{step},{loss},{validation},,,," for step, loss, validation in rows)]
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
    monkeypatch.setattr("keras_seqlm.training.callbacks.plot_history", lambda *paths: drawn.append(paths))
    history, path = tmp_path / "history.csv", tmp_path / "loss.png"
    RECIPE.fit(
        compiled(RECIPE, "bigram"),
        Batches(),
        callbacks=[HistoryCSV(history), LossPlot(history, path, interval=3600.0)],
        progress=False,
    )
    assert drawn == [(history, path)] * 2
