"""What else belongs to a run's state: what callbacks remember, generators, rows of the history, and who is told what."""

import dataclasses
import random
import signal
import sys
import textwrap

import keras
import numpy as np
import pytest
from helpers import array
from training_toy import LENGTH, Batches, compiled, new_model

from keras_seqlm.checkpoints import state
from keras_seqlm.nesting import innermost
from keras_seqlm.training import Checkpoints, HistoryCSV, Recipe, Resume, RollBack, read_history
from keras_seqlm.training.callback_state import CallbackStates

pytestmark = [pytest.mark.neutral, pytest.mark.usefixtures("eager_steps")]

RUN = Recipe(steps=20, batch_size=4, warmup_steps=2, learning_rate=0.05, validate_every=2)
VALIDATION = Batches().batch(1000)


class Killed(Exception):
    """In place of a `kill -9`."""


class KillAfter(keras.callbacks.Callback):
    """Ends the run as an epoch ends, before a checkpoint of it is saved."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 == self.epoch:
            raise Killed


def train(folder, recipe=RUN, callbacks=(), data=None, every=2, **options):
    """Train, or go on, in `folder`; gives the weights, and the rows of the history without the clock."""
    model = compiled(recipe, "bigram")
    resume = Resume(folder / "checkpoints", every=every, **options)
    history = HistoryCSV(folder / "history.csv")
    arguments = {"progress": False, "resume": resume}
    recipe.fit(model, data or Batches(recipe.batch_size), VALIDATION, callbacks=[history, *callbacks], **arguments)
    rows = [(row["step"], row["loss"], row["validation_loss"]) for row in read_history(history.path)]
    return [array(variable) for variable in model.variables], rows


def assert_same(left, right):
    assert left[1] == right[1]
    for a, b in zip(left[0], right[0], strict=True):
        np.testing.assert_array_equal(a, b)


def keras_callbacks(folder):
    early = keras.callbacks.EarlyStopping(patience=3, min_delta=0.02, restore_best_weights=True)
    slower = keras.callbacks.ReduceLROnPlateau(patience=1, min_delta=0.02, factor=0.5)
    best = keras.callbacks.ModelCheckpoint(folder / "best.keras", save_best_only=True)
    return [early, slower, best]


def test_what_keras_callbacks_remember_goes_on(tmp_path):
    """A plateau that begins before the kill is counted on: without its state the run would go on for longer."""

    def go(name, kill=()):
        (tmp_path / name).mkdir(exist_ok=True)
        keras.utils.set_random_seed(1)
        model = new_model("bigram")
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.05), loss)  # a number, as ReduceLROnPlateau needs it
        remembered = keras_callbacks(tmp_path / name)
        resume = Resume(tmp_path / name / "checkpoints", every=2, background=False)
        arguments = {"steps_per_epoch": 2, "epochs": 30, "verbose": 0, "validation_data": VALIDATION}
        model.fit(
            resume.data(Batches(4)), callbacks=[*remembered, *kill, resume], **arguments, **resume.fit_arguments()
        )
        return [array(variable) for variable in model.variables], remembered, resume

    weights, remembered, _ = go("whole")
    stopped = remembered[0].stopped_epoch
    assert stopped > 5 and remembered[1].best is not None
    for epoch in (3, stopped - 1, stopped):
        with pytest.raises(Killed):
            go("killed", [KillAfter(epoch)])
    again, same, _ = go("killed")
    assert same[0].stopped_epoch == stopped and same[2].best == remembered[2].best
    for left, right in zip(weights, again, strict=True):
        np.testing.assert_array_equal(left, right)

    ended, once_more, resume = go(
        "killed"
    )  # which EarlyStopping ended: nothing is left to do, and the best weights stay
    assert resume.ended and once_more[0].best == same[0].best
    for left, right in zip(weights, ended, strict=True):
        np.testing.assert_array_equal(left, right)
    assert not Resume(tmp_path / "killed" / "checkpoints", allow_changes=True).ended


def test_an_early_stopping_that_stands_after_resume_ends_the_run_too(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 2

    model = compiled(RUN, "bigram")
    resume = Resume(tmp_path, every=100)
    fit = {"steps_per_epoch": 2, "epochs": 9, "verbose": 0}
    model.fit(resume.data(Batches(4)), callbacks=[resume, Stop()], **fit, **resume.fit_arguments())
    assert Checkpoints(tmp_path).newest().step == 6 and Resume(tmp_path).ended


class Poisoned(Batches):
    """One batch that no language has."""

    def batch(self, step):
        x, y = super().batch(step)
        return (x, np.zeros_like(y) + step % 23) if step == 16 else (x, y)


def test_the_window_of_a_roll_back_goes_on(tmp_path, capsys):
    recipe = dataclasses.replace(RUN, steps=18, validate_every=6)

    def go(folder, kill=()):
        model = compiled(recipe, "bigram")
        resume = Resume(folder, every=4, background=False)
        guard = RollBack(resume, factor=1.15, window=8)
        recipe.fit(model, Poisoned(4), VALIDATION, callbacks=[guard, *kill], progress=False, resume=resume)
        return [array(variable) for variable in model.variables]

    class KillAt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if int(array(self.model.optimizer.iterations)) == 14 and not self.done:
                raise Killed

        done = False

    whole = go(tmp_path / "whole")
    assert "the loss jumped to" in capsys.readouterr().err
    with pytest.raises(Killed):
        go(tmp_path / "killed", [KillAt()])
    again = go(tmp_path / "killed")
    assert "the loss jumped to" in capsys.readouterr().err
    for left, right in zip(whole, again, strict=True):
        np.testing.assert_array_equal(left, right)


def test_what_cannot_be_saved_is_named():
    class Counts(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.seen, self.name = 0, "constant"

    class Saves(Counts):
        def get_state(self):
            return {"seen": self.seen, "table": np.arange(3), "best": [np.float32(0.5), None]}

        def set_state(self, state):
            self.state = state

    counts, saves = Counts(), Saves()
    states = CallbackStates([counts, saves, keras.callbacks.TerminateOnNaN()])
    states.get()
    counts.seen = saves.seen = 3
    with pytest.warns(UserWarning, match=r"the callback Counts has no get_state.*\(seen\) is not in the checkpoints"):
        meta, arrays = states.get()
    CallbackStates([saves]).set(meta, arrays)
    assert saves.state["seen"] == 3 and saves.state["best"] == [0.5, None]
    np.testing.assert_array_equal(saves.state["table"], np.arange(3))
    with pytest.warns(UserWarning, match="holds the state of the callback Saves, and fit was given none"):
        CallbackStates([counts]).set(meta, arrays)


@pytest.mark.backends
def test_the_generators_that_belong_to_no_model_go_on(tmp_path):
    class Draws(keras.callbacks.Callback):
        """Noise in the weights, without a seed of its own, as a callback of the user's may have it."""

        def on_epoch_end(self, epoch, logs=None):
            noise = array(keras.random.normal((1,)))[0] + np.random.normal() + random.random()
            self.model.weights[0].assign_add(keras.ops.full(self.model.weights[0].shape, 1e-3 * noise))

    whole = train(tmp_path / "whole", callbacks=[Draws()])
    with pytest.raises(Killed):
        train(tmp_path / "killed", callbacks=[Draws(), KillAfter(5)])
    keras.utils.set_random_seed(99)
    assert_same(train(tmp_path / "killed", callbacks=[Draws()]), whole)


def test_a_longer_run_keeps_every_row_and_mixes_no_metric(tmp_path):
    """20 steps have ten pieces of two, 21 have seven of three: the last piece begins before step 20."""
    recipe = dataclasses.replace(RUN, validate_every=None)
    _, rows = train(tmp_path, recipe)
    _, longer = train(tmp_path, dataclasses.replace(recipe, steps=21))
    assert longer[: len(rows)] == rows and [row[0] for row in longer][-2:] == [20, 21]
    alone = compiled(recipe, "bigram")
    resume = Resume(tmp_path / "checkpoints")
    resume.restore(alone)
    assert resume.step_before == 21
    # The loss of row 21 is that of batch 20 alone, before its update.
    before = compiled(recipe, "bigram")
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=9)
    state.assign(before, state.read(before, checkpoints.read(20), ("model",)))
    x, y = Batches(4).batch(20)
    wanted = float(before.test_on_batch(x, y))
    assert longer[-1][1] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.backends
def test_steps_in_name_only_reach_no_callback_of_the_users(tmp_path):
    class Listens(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.heard = []

        def get_state(self):
            return {}

        def set_state(self, state):
            raise AssertionError("there is none")

        def on_train_batch_begin(self, batch, logs=None):
            self.heard.append(("begin", batch))

        def on_train_batch_end(self, batch, logs=None):
            self.heard.append(("end", batch))
            if batch == 6 and not self.again:
                raise Killed

    recipe = dataclasses.replace(RUN, validate_every=10, steps=10)
    first, second = Listens(), Listens()
    first.again, second.again = False, True
    with pytest.raises(Killed):
        train(tmp_path, recipe, [first], every=3)
    train(tmp_path, recipe, [second], every=3)
    begun = second.heard[0][1]
    assert begun in (3, 6) and second.heard == [(what, i) for i in range(begun, 10) for what in ("begin", "end")]


def test_a_resume_serves_one_fit_and_a_model_that_has_learned_is_refused(tmp_path):
    model = compiled(RUN, "bigram")
    resume = Resume(tmp_path / "a")
    fit = {"steps_per_epoch": 2, "verbose": 0}
    model.fit(resume.data(Batches(4)), callbacks=[resume], **fit, **resume.fit_arguments())
    with pytest.raises(ValueError, match="has served one fit; the next one needs its own"):
        model.fit(resume.data(Batches(4)), callbacks=[resume], **fit, **resume.fit_arguments())
    other = Resume(tmp_path / "b")
    with pytest.raises(
        ValueError, match="optimizer has made 2 steps, and .* has no checkpoint.*compile the model anew"
    ):
        model.fit(other.data(Batches(4)), callbacks=[other], **fit, **other.fit_arguments())


@pytest.mark.backends
def test_data_of_unknown_size_is_trained_on_and_warned_of(tmp_path):
    def batches():
        return (Batches(4).batch(step) for step in range(3))

    model = compiled(RUN, "bigram")
    model.fit(batches(), verbose=0, callbacks=[Resume(tmp_path, every=2)])
    assert Checkpoints(tmp_path).newest().step == 3
    again = compiled(RUN, "bigram")
    with pytest.warns(UserWarning, match="state of step 3 was restored, and the position in the data is lost"):
        again.fit(batches(), verbose=0, callbacks=[Resume(tmp_path, every=2)])
    assert int(array(again.optimizer.iterations)) == 6 and Checkpoints(tmp_path).newest().step == 6


def test_history_of_a_plain_fit_keeps_its_rows(tmp_path):
    for epochs in (2, 4):
        model = compiled(RUN, "bigram")
        resume = Resume(tmp_path / "checkpoints")
        history = HistoryCSV(tmp_path / "history.csv")
        fit = {"steps_per_epoch": 3, "epochs": epochs, "verbose": 0, **resume.fit_arguments()}
        model.fit(resume.data(Batches(4)), callbacks=[history, resume], **fit)
    assert [row["step"] for row in read_history(tmp_path / "history.csv")] == [3, 6, 9, 12]


AFTER_A_FIT_THAT_FAILED = """
    import os, signal, sys, time
    import keras, numpy as np
    from keras_seqlm.training import Resume

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    class Fails(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise RuntimeError("as a user's callback may")
    resume = Resume(sys.argv[1])
    batch = lambda step: (np.ones((2, 3), "float32"), np.ones((2, 1), "float32"))
    try:
        model.fit(resume.data(batch), steps_per_epoch=3, callbacks=[Fails(), resume], verbose=0)
    except RuntimeError:
        print("failed", flush=True)
    other = Resume(sys.argv[1])  # and the folder is free again
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""


def test_after_a_fit_that_failed_sigterm_kills_again(forks, tmp_path):
    words = [sys.executable, "-c", textwrap.dedent(AFTER_A_FIT_THAT_FAILED), str(tmp_path)]
    done = forks("tensorflow").run(words, timeout=120)
    assert done.returncode == -signal.SIGTERM and done.stdout.strip() == "failed", done.stderr[-2000:]


def test_equal_layers_that_change_places_keep_their_weights(tmp_path):
    def build(names):
        keras.utils.set_random_seed(3)
        layers = {name: keras.layers.Dense(LENGTH, name=name) for name in ("first", "second")}
        inputs = keras.Input((LENGTH,))
        model = keras.Model(inputs, layers[names[1]](layers[names[0]](inputs)), name="pair")
        model.compile("adam", "mse")
        return model

    def fit(model):
        resume = Resume(tmp_path)
        x = np.random.default_rng(0).standard_normal((4, LENGTH)).astype("float32")
        model.fit(
            resume.data(lambda step: (x, x)), steps_per_epoch=2, verbose=0, callbacks=[resume], **resume.fit_arguments()
        )

    trained = build(("first", "second"))
    fit(trained)
    swapped = build(("second", "first"))
    Resume(tmp_path).restore(swapped)
    for name in ("first", "second"):
        for left, right in zip(
            trained.get_layer(name).get_weights(), swapped.get_layer(name).get_weights(), strict=True
        ):
            np.testing.assert_array_equal(left, right)
    slots = {variable.path: array(variable) for variable in trained.optimizer.variables}
    for variable in swapped.optimizer.variables:
        path = variable.path.replace(swapped.optimizer.name, trained.optimizer.name)
        np.testing.assert_array_equal(array(variable), slots[path], err_msg=path)


def test_the_best_validation_is_kept(tmp_path):
    """Between two checkpoints of the schedule, too; and a loss that is not finite is no best one."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step, loss in ((1, float("nan")), (2, 2.0), (3, 3.0), (4, float("inf"))):
        checkpoints.save(step, {"model/w": np.ones(2, "float32")}, {"validation_loss": loss})
    assert checkpoints.steps() == [2, 4] and checkpoints.best().step == 2

    rising = dataclasses.replace(RUN, learning_rate=3.0, schedule="constant", warmup_steps=0, weight_decay=0.0)
    _, rows = train(tmp_path / "run", rising, every=100)
    best = min(rows, key=lambda row: row[2])
    assert Checkpoints(tmp_path / "run" / "checkpoints").best().step == best[0]


def test_a_new_model_of_another_count_is_the_same_model(tmp_path):
    new_model("bigram")
    train(tmp_path)
    for _ in range(3):
        new_model("bigram")
    again = compiled(RUN, "bigram")
    Resume(tmp_path / "checkpoints").restore(again)
    assert int(array(again.optimizer.iterations)) == 20


def test_two_of_one_process_do_not_mix(tmp_path):
    """The second one has the folder while it trains; the first one, made before, does not go on from what is no more."""
    first, second = Resume(tmp_path), Resume(tmp_path)
    model, fit = compiled(RUN, "bigram"), {"steps_per_epoch": 2, "verbose": 0}
    model.fit(second.data(Batches(4)), callbacks=[second], **fit, **second.fit_arguments())
    other = compiled(RUN, "bigram")
    with pytest.raises(OSError, match=r"another run saved checkpoints since this Resume was made \(now \[2\]\)"):
        other.fit(first.data(Batches(4)), callbacks=[first], **fit, **first.fit_arguments())

    class Opens(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            with pytest.raises(OSError, match="this process itself trains there"):
                Resume(tmp_path)

    third = Resume(tmp_path)
    again = compiled(RUN, "bigram")
    again.fit(third.data(Batches(4)), epochs=2, callbacks=[Opens(), third], **fit, **third.fit_arguments())
    assert Checkpoints(tmp_path).newest().step == 4


def test_metrics_of_a_longer_run_that_begins_within_a_piece(tmp_path):
    for epochs, steps in ((2, 4), (3, 3)):
        model = new_model("bigram")
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss, metrics=["accuracy"])
        resume = Resume(tmp_path)
        resume.divide(steps)
        fit = {"steps_per_epoch": steps, "epochs": epochs, "verbose": 0, **resume.fit_arguments()}
        model.fit(resume.data(Batches(4)), callbacks=[resume], **fit)
    assert Checkpoints(tmp_path).newest().step == 9


@pytest.mark.tensorflow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.distribute")
def test_a_mirrored_run_is_saved_and_restored(tmp_path):
    """One replica has the kinds of variables that several have."""
    recipe = dataclasses.replace(RUN, distribution="mirrored", steps=3, validate_every=3)
    model = compiled(recipe, "bigram")
    recipe.fit(model, Batches(4), progress=False, resume=Resume(tmp_path, every=2))
    again = compiled(recipe, "bigram")
    with recipe.scope():
        Resume(tmp_path).restore(again)
    for left, right in zip(
        model.variables + model.optimizer.variables, again.variables + again.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(array(left), array(right), err_msg=left.path)
    assert int(array(innermost(again.optimizer)._iterations)) == 3
