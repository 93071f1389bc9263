"""Exact resume: a run that is stopped anywhere goes on with the losses, and ends with the weights, it would have had."""

import dataclasses
import errno
import os
import signal
import threading
import time

import keras
import numpy as np
import pytest
from cases import on_all
from helpers import array
from training_toy import Batches, compiled, new_model

from keras_seqlm.checkpoints import checkpoint as rooms_file
from keras_seqlm.checkpoints import copies, state
from keras_seqlm.training import (
    CheckpointError,
    HistoryCSV,
    Recipe,
    Resume,
    list_runs,
    read_history,
)

pytestmark = pytest.mark.neutral

RUN = Recipe(steps=10, batch_size=4, warmup_steps=2, learning_rate=0.01, validate_every=4)
VALIDATION = Batches().batch(1000)


class Killed(Exception):
    """In place of a `kill -9`: nothing of the package sees it."""


class KillAt(keras.callbacks.Callback):
    """Ends the run at the end of a step, or within the validation after it."""

    def __init__(self, step, where="step", kill=None):
        super().__init__()
        self.step, self.where = step, where
        self.kill = kill

    def _now(self):
        if self.kill is not None:
            self.kill()
        else:
            raise Killed

    def get_state(self):
        return {}  # nothing that a run that goes on needs

    def set_state(self, state):
        assert state == {}

    def on_train_begin(self, logs=None):
        self.made = None

    def on_train_batch_end(self, batch, logs=None):
        batches = keras.ops.convert_to_numpy(innermost_batches(self.model))
        self.made = int(batches)
        if self.where == "step" and self.made == self.step:
            self._now()

    def on_test_batch_end(self, batch, logs=None):
        if self.where == "validation" and self.made == self.step:
            self._now()


def innermost_batches(model):
    if keras.backend.backend() == "jax":
        model.jax_state_sync()
    optimizer = model.optimizer
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer._iterations


def run(folder, recipe=RUN, name="tied", kill=(), every=3, validation=VALIDATION, wrap=None, **options):
    """Train, or go on, in `folder`; gives the model, its history's rows without the clock, and its weights."""
    model = compiled(recipe, name, **options)
    resume = Resume(folder / "checkpoints", every=every)
    history = HistoryCSV(folder / "history.csv")
    recipe.fit(
        model,
        Batches(recipe.batch_size),
        validation,
        callbacks=[history, *kill],
        progress=False,
        resume=resume,
    )
    rows = [
        (row["step"], row["loss"], row["validation_loss"], row["learning_rate"]) for row in read_history(history.path)
    ]
    return rows, [array(variable) for variable in (*model.variables, *model.optimizer.variables)]


def assert_same_run(left, right):
    assert left[0] == right[0]
    for a, b in zip(left[1], right[1], strict=True):
        np.testing.assert_array_equal(a, b)


HALF = "mixed_bfloat16" if keras.backend.backend() == "jax" else "mixed_float16"  # JAX on a CPU has no float16
CASES = {
    "dropout": ("tied", {}, {"dropout": 0.2}),
    "carried state": ("lstm", {}, {"stateful_batch_size": 4, "dropout": 0.1}),
    "accumulated, averaged": ("tied", {"accumulate": 2, "ema": 0.9}, {"dropout": 0.1}),
    "half precision": ("tied", {"precision": HALF}, {"dropout": 0.1}),
}


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
    """`left_alone(case)` is the run of that case that nobody stops."""
    made = {}

    def get(case):
        if case not in made:
            name, fields, options = CASES[case]
            made[case] = run(tmp_path_factory.mktemp("left_alone"), dataclasses.replace(RUN, **fields), name, **options)
        return made[case]

    return get


@pytest.mark.parametrize("case", on_all(CASES, "accumulated, averaged", "carried state"))
def test_row_16_and_17_killed_and_gone_on_with(tmp_path, left_alone, case):
    """Killed between two checkpoints, in the middle of a piece, and again in a validation: three processes' worth."""
    name, fields, options = CASES[case]
    recipe = dataclasses.replace(RUN, **fields)
    assert [row[0] for row in left_alone(case)[0]] == [4, 8, 10]
    for kill in (KillAt(7), KillAt(8, "validation")):
        with pytest.raises(Killed):
            run(tmp_path / "killed", recipe, name, kill=[kill], **options)
    assert_same_run(run(tmp_path / "killed", recipe, name, **options), left_alone(case))


@pytest.mark.backends
def test_a_carried_state_goes_on_within_the_first_piece(tmp_path):
    """Which begins with step 0, as a run does whose state is to be cleared."""
    recipe = dataclasses.replace(RUN, validate_every=10)
    alone = run(tmp_path / "alone", recipe, "lstm", stateful_batch_size=4)
    with pytest.raises(Killed):
        run(tmp_path / "killed", recipe, "lstm", kill=[KillAt(5)], stateful_batch_size=4)
    assert_same_run(run(tmp_path / "killed", recipe, "lstm", stateful_batch_size=4), alone)


@pytest.mark.parametrize("step, where", on_all([(6, "step"), (8, "validation"), (10, "step")], 1))
def test_row_14_sigterm_saves_and_ends_with_143(tmp_path, left_alone, step, where):
    terminate = KillAt(step, where, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        run(tmp_path / "told", kill=[terminate], every=100, dropout=0.2)
    assert ended.value.code == 143
    assert rooms_file.Checkpoints(tmp_path / "told" / "checkpoints").steps()[-1] == step  # no step is lost
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert_same_run(run(tmp_path / "told", every=100, dropout=0.2), left_alone("dropout"))


def test_row_15_sigint_saves_the_step_as_sigterm_does(tmp_path, capsys):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in a shell's background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, kill=[KillAt(7, kill=lambda: os.kill(os.getpid(), signal.SIGINT))])
    finally:
        signal.signal(signal.SIGINT, before)
    assert rooms_file.Checkpoints(tmp_path / "checkpoints").newest().step == 7
    assert "step 7 is saved, the same command goes on" in capsys.readouterr().err


@pytest.mark.backends
def test_a_finished_run_has_nothing_left_to_do_and_a_longer_one_goes_on(tmp_path):
    rows, weights = run(tmp_path)
    again = run(tmp_path)
    assert_same_run(again, (rows, weights))
    longer, _ = run(tmp_path, dataclasses.replace(RUN, steps=14))
    assert [row[0] for row in longer] == [4, 8, 10, 14] and longer[:3] == rows


@pytest.mark.backends
def test_three_lines_in_a_users_own_fit(tmp_path):
    def train(folder, epochs, kill=()):
        keras.utils.set_random_seed(4)
        model = new_model("bigram")
        model.add(keras.layers.Dropout(0.2))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss, metrics=["accuracy"], jit_compile=keras.backend.backend() == "jax")
        resume = Resume(folder, every=2)
        history = model.fit(
            resume.data(Batches().batch),
            epochs=epochs,
            steps_per_epoch=5,
            callbacks=[*kill, resume],
            verbose=0,
            **resume.fit_arguments(),
        )
        return history.history, [array(variable) for variable in model.variables]

    whole, weights = train(tmp_path / "whole", 3)
    with pytest.raises(Killed):
        train(tmp_path / "killed", 3, [KillAt(8)])
    rest, same = train(tmp_path / "killed", 3)
    assert len(rest["loss"]) in (2, 3)  # from step 6, or from step 4, where the last one was still on its way
    assert rest == {name: values[-len(rest["loss"]) :] for name, values in whole.items()}
    for left, right in zip(weights, same, strict=True):
        np.testing.assert_array_equal(left, right)


def test_with_another_iterator_the_position_is_lost_and_that_is_said(tmp_path):
    model = compiled(RUN, "bigram")
    x, y = Batches().batch(0)
    model.fit(x, y, batch_size=4, epochs=2, verbose=0, callbacks=[Resume(tmp_path)])
    again = compiled(RUN, "bigram")
    with pytest.warns(UserWarning, match="state of step 2 was restored, and the position in the data is lost"):
        again.fit(x, y, batch_size=4, epochs=1, verbose=0, callbacks=[Resume(tmp_path)])
    assert int(array(again.optimizer.iterations)) == 3


def test_row_6_and_20_to_22_what_does_not_fit_is_refused_and_changes_nothing(tmp_path):
    run(tmp_path, name="tied")
    for change, reason in (
        ({"hidden_dim": 32}, "token_embedding/table is float32 .* here and float32 .* there"),
        ({"num_layers": 2}, "is not in the checkpoint"),
        ({"tie_embedding": False}, "is not in the checkpoint|here and"),
    ):
        model = compiled(RUN, "tied", **change)
        before = model.get_weights()
        with pytest.raises(CheckpointError, match=reason):
            Resume(tmp_path / "checkpoints").restore(model)
        for left, right in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(left, right)
    run(tmp_path / "more", name="tied", num_layers=2)
    with pytest.raises(CheckpointError, match="block_1.* is in the checkpoint alone|here and"):
        Resume(tmp_path / "more" / "checkpoints").restore(compiled(RUN, "tied"))


def test_row_24_a_shape_bomb_is_refused_before_it_is_read(tmp_path, monkeypatch):
    model = compiled(RUN, "bigram")
    resume = Resume(tmp_path)
    resume.restore(model)
    arrays = copies.to_host(state.arrays_of(model))
    rooms_file.Checkpoints(tmp_path).save(1, arrays, {"backend": keras.backend.backend()})
    found = rooms_file.Checkpoints(tmp_path).newest()
    bomb = dataclasses.replace(found, shapes=found.shapes | {"model/00000": ("float32", (1 << 20, 1 << 20))})
    monkeypatch.setattr(rooms_file.Checkpoint, "arrays", lambda *_: pytest.fail("it was read"))
    with pytest.raises(CheckpointError, match=r"\(1048576, 1048576\) there"):
        state.read(model, bomb)


def test_row_18_another_backend_is_allowed_and_said(tmp_path):
    run(tmp_path)
    checkpoints = rooms_file.Checkpoints(tmp_path / "checkpoints")
    found = checkpoints.newest()
    checkpoints.save(found.step, found.arrays(), {**found.meta, "backend": "another"})
    with pytest.warns(UserWarning, match="was written on the another backend"):
        run(tmp_path)


def test_row_19_other_settings_are_refused_unless_allowed(tmp_path):
    model = compiled(RUN, "bigram")
    fit = {"epochs": 1, "steps_per_epoch": 2, "verbose": 0}
    resume = Resume(tmp_path, settings={"batch_size": 4, "data": "a"})
    model.fit(resume.data(Batches().batch), callbacks=[resume], **fit, **resume.fit_arguments())
    with pytest.raises(CheckpointError, match="batch_size was 4 and is 8; data was 'a' and is 'b'.*allow_changes=True"):
        Resume(tmp_path, settings={"batch_size": 8, "data": "b"})
    with pytest.warns(UserWarning, match="settings name more: data was 'a'"):
        assert Resume(tmp_path, settings={"batch_size": 8}, allow_changes=True).step_before == 2


@pytest.mark.parametrize("background", [True, False])
def test_row_7_training_goes_on_while_the_disk_is_full_and_stops_after_three(tmp_path, monkeypatch, background):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    resume = Resume(tmp_path, every=1, background=background)
    model = compiled(RUN, "bigram")
    fit = {"steps_per_epoch": 20, "verbose": 0, "callbacks": [resume], **resume.fit_arguments()}
    monkeypatch.setattr(rooms_file, "flush", full)
    with (
        pytest.warns(UserWarning, match="could not be saved.*training goes on") as said,
        pytest.raises(OSError, match="space"),
    ):
        model.fit(resume.data(Batches().batch), **fit)
    assert len([one for one in said if "could not be saved" in str(one.message)]) == 2
    assert int(array(model.optimizer.iterations)) <= 5
    assert not list(tmp_path.glob("step-*")) and not list(tmp_path.glob(".part-*"))


def test_row_10_a_slow_disk_does_not_hold_up_the_steps(tmp_path, monkeypatch):
    flush, waits = rooms_file.flush, threading.Event()
    monkeypatch.setattr(rooms_file, "flush", lambda path: (waits.wait(60), flush(path)))
    times = []

    class Clock(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            times.append(time.perf_counter())
            if batch == 8:
                waits.set()

    resume = Resume(tmp_path, every=5)  # the first one is on its way while steps 6 to 9 are made
    model = compiled(RUN, "bigram")
    model.fit(
        resume.data(Batches().batch),
        steps_per_epoch=9,
        verbose=0,
        callbacks=[Clock(), resume],
        **resume.fit_arguments(),
    )
    assert len(times) == 9 and times[7] - times[4] < 30
    assert rooms_file.Checkpoints(tmp_path).steps() == [5, 9]


def test_row_27_what_is_not_finite_is_never_saved(tmp_path):
    class Spoil(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 4:
                self.model.weights[0].assign(np.full(self.model.weights[0].shape, np.nan))

    resume = Resume(tmp_path, every=3, background=False)
    model = compiled(RUN, "bigram")
    with pytest.warns(UserWarning, match="step 5 has weights that are not finite"):
        model.fit(
            resume.data(Batches().batch),
            steps_per_epoch=5,
            verbose=0,
            callbacks=[Spoil(), resume],
            **resume.fit_arguments(),
        )
    assert rooms_file.Checkpoints(tmp_path).newest().step == 3


def test_every_counts_steps():
    with pytest.raises(ValueError, match="every counts steps"):
        Resume("runs/none", every=0)


def test_runs_are_listed(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        list_runs(tmp_path / "none")
    assert list_runs(tmp_path) == []
    RUN.to_json(tmp_path / "a" / "b" / "recipe.json")
    run(tmp_path / "a" / "b")
    (found,) = list_runs(tmp_path)
    assert (found["name"], found["step"], found["steps"], found["state"]) == (os.path.join("a", "b"), 10, 10, "stopped")
    assert found["validation_loss"] >= found["best_validation_loss"] > 0
    checkpoints = rooms_file.Checkpoints(tmp_path / "a" / "b" / "checkpoints")
    checkpoints.open()
    assert list_runs(tmp_path)[0]["state"] == "running"
    checkpoints.close()
    (tmp_path / "a" / "b" / "model.keras").write_text("")
    assert list_runs(tmp_path)[0]["state"] == "finished"
