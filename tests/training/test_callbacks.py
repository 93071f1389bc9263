"""What a run shows and writes."""

import dataclasses
import io
import json
import os
import pathlib
import signal
import socket
import sys
import time

import keras
import numpy as np
import pytest
from cases import on_all
from helpers import array
from training_toy import Batches, compiled, new_model

from keras_seqlm.training import HistoryCSV, Progress, Recipe, Resume, Run, RunCallback, SampleWriter, read_history
from keras_seqlm.training.callbacks import _up_to
from keras_seqlm.training.safe_optimizer import SafeOptimizer

pytestmark = pytest.mark.neutral

ROOT = pathlib.Path(__file__).parents[2]
RECIPE = Recipe(steps=6, batch_size=4, warmup_steps=2, validate_every=2)


class Terminal(io.StringIO):
    def isatty(self):
        return True


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


def total(model):
    return f"{sum(np.abs(weight).sum() for weight in model.get_weights()):.3f}"


def sections(path):
    """step -> text of a `SampleWriter` file."""
    parts = path.read_text(encoding="utf-8").split("--- step ")[1:]
    return {int(part.split(" ---\n")[0]): part.split(" ---\n")[1].removesuffix("\n\n") for part in parts}


@pytest.mark.backends
def test_samples_between_validations_are_of_the_weights_of_their_step(tmp_path):
    looped, expected = compiled(RECIPE, "bigram"), {}
    for step in range(6):
        looped.train_on_batch(*Batches().batch(step))
        expected[step + 1] = total(looped)
    recipe = dataclasses.replace(RECIPE, validate_every=4)
    model = compiled(recipe, "bigram")
    recipe.fit(model, Batches(), callbacks=[SampleWriter(total, tmp_path / "1", every_steps=1)], progress=False)
    assert sections(tmp_path / "1") == pytest.approx(expected)
    np.testing.assert_allclose(float(total(model)), float(total(looped)), rtol=1e-5)
    recipe.fit(
        compiled(recipe, "bigram"),
        Batches(),
        callbacks=[SampleWriter(str, tmp_path / "5", every_steps=5)],
        progress=False,
    )
    assert list(sections(tmp_path / "5")) == [5, 6]
    with pytest.raises(ValueError, match="every_steps must be at least 1"):
        SampleWriter(str, tmp_path / "0", every_steps=0)


def test_a_run_that_goes_on_takes_back_the_samples_after_its_first_step(tmp_path):
    path = tmp_path / "samples.txt"
    whole = "--- step 2 ---\n'a' -> '\n\nb'\n\n--- step 4 ---\nfour\n\n"
    path.write_text(whole + "--- step 6 ---\nsix\n\n", encoding="utf-8")
    model = compiled(RECIPE, "bigram")
    for step in range(4):
        model.train_on_batch(*Batches().batch(step))
    writer = SampleWriter(lambda model: "anew", path)
    RECIPE.fit(model, Batches(), callbacks=[writer], first_step=4, progress=False)
    assert path.read_text(encoding="utf-8") == whole + "--- step 6 ---\nanew\n\n"


@pytest.mark.parametrize("every_steps, within_validation", on_all([(None, True), (2, True), (2, False)], 1))
def test_the_sample_of_the_step_that_a_run_ended_at_is_written_as_it_goes_on(tmp_path, every_steps, within_validation):
    """Told to end within a validation, or killed after a checkpoint and before the text of its step."""

    class End(keras.callbacks.Callback):
        def get_state(self):
            return {}

        def set_state(self, state):
            pass

        def on_test_batch_begin(self, batch, logs=None):
            if within_validation and int(array(self.model.optimizer.iterations)) == 4:
                os.kill(os.getpid(), signal.SIGTERM)

        def on_train_batch_begin(self, batch, logs=None):
            if not within_validation and batch == 2:
                raise InterruptedError

    def go(folder, end=()):
        model = compiled(RECIPE, "bigram")
        recipe = dataclasses.replace(RECIPE, steps=8, validate_every=4)
        resume = Resume(folder / "checkpoints", every=2, background=False)
        samples = SampleWriter(total, folder / "samples.txt", every_steps=every_steps)
        options = {"progress": False, "resume": resume, "callbacks": [*end, samples]}
        recipe.fit(model, Batches(), Batches().batch(50), **options)
        return sections(folder / "samples.txt")

    alone = go(tmp_path / "alone")
    with pytest.raises((SystemExit, InterruptedError)):
        go(tmp_path / "ended", [End()])
    assert go(tmp_path / "ended") == alone and 4 in alone


def test_a_sample_that_a_crash_cut_short_is_taken_back():
    whole = "--- step 2 ---\ntwo\n\n"
    assert _up_to(whole + "--- step 4 ---\nfo", 9) == _up_to(whole + "--- ste", 9) == whole
    assert _up_to(whole, 1) == _up_to("", 9) == ""


@pytest.mark.backends
def test_the_optimizers_numbers_are_those_of_the_step_before():
    def fresh():
        keras.utils.set_random_seed(3)
        model = new_model("bigram")
        optimizer = SafeOptimizer(keras.optimizers.SGD(0.1))
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
        return model

    class Watch(RunCallback):
        seen = ()

        def on_train_batch_begin(self, batch, logs=None):
            self.seen += (self.of_optimizer("gradient_norm"),)

        def on_epoch_end(self, epoch, logs=None):
            self.seen += (self.of_optimizer("gradient_norm"),)

    looped, norms = fresh(), []
    x, y = Batches(rows=12).batch(0)
    for start in (0, 4, 8):
        looped.train_on_batch(x[start : start + 4], y[start : start + 4])
        norms.append(float(keras.ops.convert_to_numpy(looped.optimizer.gradient_norm)))
    watch = Watch()
    fresh().fit(x, y, batch_size=4, shuffle=False, callbacks=[watch], verbose=0)
    assert not watch.seen[0]
    np.testing.assert_allclose(watch.seen[1:], norms, rtol=1e-5)


@pytest.mark.backends
def test_progress_shows_the_gradients_norm_and_what_was_skipped():
    model = new_model("bigram")
    optimizer = SafeOptimizer(keras.optimizers.SGD(0.1))
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    x, y = Batches(rows=12).batch(0)
    weight = np.ones(y.shape, "float32")
    weight[5] = np.nan
    out = Terminal()
    callbacks = [Progress(stream=out, interval=0.0), RunCallback()]  # the second one makes JAX wait for each step
    model.fit(x, y, sample_weight=weight, batch_size=4, shuffle=False, callbacks=callbacks, verbose=0)
    first, second, third, last = out.getvalue().split("\r")[1:]
    assert "gradient norm" not in first and "gradient norm 0." in second and "skipped" not in second
    assert "gradient norm nan  1 skipped" in third
    assert "gradient norm 0." in last and "1 skipped" in last


def test_steps_that_are_run_through_again_are_neither_timed_nor_shown(tmp_path):
    class Slow(RunCallback):
        """Steps up to the fourth pass in no time, those after it take theirs."""

        def on_train_batch_begin(self, batch, logs=None):
            time.sleep(0.05 * (batch >= 4))

    out = io.StringIO()
    callbacks = [Slow(), Progress(stream=out), SampleWriter(lambda model: "", tmp_path / "samples.txt", every_steps=1)]
    for callback in callbacks:
        callback.run = Run(steps=8, step_before=4)
    model = compiled(RECIPE, "bigram")
    x, y = Batches(rows=32).batch(0)
    model.fit(x, y, batch_size=4, callbacks=callbacks, verbose=0)
    assert [int(line.split("/")[0].split()[1]) for line in out.getvalue().splitlines()] == [5, 6, 7, 8]
    assert list(sections(tmp_path / "samples.txt")) == [4, 5, 6, 7, 8]  # that of 4 was not there
    assert 5 < callbacks[1].steps_per_second() < 20


def test_a_process_that_is_not_the_first_makes_samples_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("keras_seqlm.training.callbacks.is_chief", lambda: False)
    monkeypatch.setattr("keras_seqlm.training.callbacks.chief_decides", lambda decide: 0)  # as the first one says
    made = []
    writer = SampleWriter(lambda model: made.append(1) or "", tmp_path / "samples.txt")
    RECIPE.fit(compiled(RECIPE, "bigram"), Batches(), callbacks=[writer])
    assert len(made) == 3 and list(tmp_path.iterdir()) == [] and capsys.readouterr().err == ""


CHIEF = """
import json, sys
import jax
from keras_seqlm.training.callbacks import is_chief
alone = is_chief()
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))  # fails where JAX has started its devices
print(json.dumps([alone, is_chief()]))
"""


def test_of_several_processes_the_first_one_writes(forks):
    pytest.importorskip("jax")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    jax = forks("jax")
    processes = [jax.Popen([sys.executable, "-c", CHIEF, address, str(i)], stdout=jax.PIPE) for i in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    answers = [json.loads(process.stdout.read().splitlines()[-1]) for process in processes]
    assert answers == [[True, True], [True, False]]
