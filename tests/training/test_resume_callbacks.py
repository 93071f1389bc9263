"""Resume beside other callbacks: it acts last wherever it stands, and what each of them remembers comes back to it."""

import errno
import os
import random
import shutil
import signal
import threading
import types

import keras
import numpy as np
import pytest
from cases import on_all
from helpers import array
from training_toy import Batches, new_model

from keras_seqlm.checkpoints import checkpoint as rooms_file
from keras_seqlm.checkpoints import state
from keras_seqlm.training import CheckpointError, Checkpoints, HistoryCSV, Resume, RollBack, read_history
from keras_seqlm.training.callbacks import RunCallback

pytestmark = [pytest.mark.neutral, pytest.mark.usefixtures("eager_steps")]


class Killed(Exception):
    """In place of a `kill -9`."""


class OfTheTest(keras.callbacks.Callback):
    """Knows the epoch, and has nothing to save."""

    def get_state(self):
        return {}

    def set_state(self, state):
        raise AssertionError("there is none")

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch


class KillAt(OfTheTest):
    """Ends the run before a step, counted from 0 over all epochs."""

    def __init__(self, step, steps):
        super().__init__()
        self.step, self.steps, self.epoch = step, steps, None

    def on_train_batch_begin(self, batch, logs=None):
        if self.epoch * self.steps + batch == self.step:
            raise Killed


class Validates(keras.callbacks.Callback):
    """In place of a validation: the losses are given."""

    def __init__(self, **losses):
        super().__init__()
        self.losses = losses

    def on_epoch_end(self, epoch, logs=None):
        logs.update({name: values[min(epoch, len(values) - 1)] for name, values in self.losses.items()})


def toy(optimizer=None):
    keras.utils.set_random_seed(5)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)], name="toy")
    model.compile(optimizer or keras.optimizers.SGD(0.5), "mse", jit_compile=False)
    return model


def batch(step):
    x = np.random.default_rng([3, step]).standard_normal((4, 3)).astype("float32")
    return x, x.sum(axis=1, keepdims=True)


def fit(folder, callbacks, epochs, steps=2, kill=None, model=None, every=1, **arguments):
    """Train, or go on; a None among the callbacks stands for Resume. Gives the model."""
    model = model or toy()
    resume = Resume(folder, every=every, background=False)
    callbacks = [resume if one is None else one for one in callbacks]
    arguments = {"epochs": epochs, "steps_per_epoch": steps, "verbose": 0, **arguments, **resume.fit_arguments()}
    kills = [] if kill is None else [KillAt(kill, steps)]
    model.fit(resume.data(batch), callbacks=[*kills, *callbacks], **arguments)
    return model


PLATEAU = [3.0, 2.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("place", on_all([0, 2, 4], 2))
def test_it_acts_last_wherever_it_stands(tmp_path, place):
    """Killed after epoch 4: with the states of before they reacted, each would be late by an epoch."""

    def go(name, kill=None):
        folder = tmp_path / name
        early = keras.callbacks.EarlyStopping(patience=4)
        slower = keras.callbacks.ReduceLROnPlateau(patience=3, factor=0.5)
        best = keras.callbacks.ModelCheckpoint(
            str(folder / "{epoch}.weights.h5"), save_best_only=True, save_weights_only=True
        )
        callbacks = [Validates(val_loss=PLATEAU), early, slower, best]
        callbacks.insert(place, None)
        model = fit(folder / "checkpoints", callbacks, 9, kill=kill)
        files = sorted(path.name for path in folder.glob("*.h5"))
        return early.stopped_epoch, early.wait, slower.wait, float(array(model.optimizer.learning_rate)), files

    whole = go("whole")
    assert whole == (5, 4, 1, 0.25, ["1.weights.h5", "2.weights.h5"])
    with pytest.raises(Killed):
        go("killed", kill=8)
    assert go("killed") == whole
    assert Resume(tmp_path / "killed" / "checkpoints").ended


def test_it_hears_of_each_event_once_and_last(tmp_path):
    heard = []

    class Listens(Resume):
        def on_epoch_begin(self, epoch, logs=None):
            heard.append(("resume", "epoch begins", epoch))
            super().on_epoch_begin(epoch, logs)

        def on_epoch_end(self, epoch, logs=None):
            heard.append(("resume", "epoch ends", epoch))
            super().on_epoch_end(epoch, logs)

        def on_train_end(self, logs=None):
            heard.append(("resume", "end", None))
            super().on_train_end(logs)

    class Other(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            heard.append(("other", "begin", None))

        def on_epoch_begin(self, epoch, logs=None):
            heard.append(("other", "epoch begins", epoch))

        def on_epoch_end(self, epoch, logs=None):
            heard.append(("other", "epoch ends", epoch))

        def on_train_end(self, logs=None):
            heard.append(("other", "end", None))

    resume = Listens(tmp_path, background=False)
    toy().fit(resume.data(batch), steps_per_epoch=1, callbacks=[resume, Other()], verbose=0, **resume.fit_arguments())
    two = [(name, what, 0) for what in ("epoch begins", "epoch ends") for name in ("other", "resume")]
    assert heard == [("other", "begin", None), *two, ("other", "end", None), ("resume", "end", None)]


def test_where_it_does_not_find_itself_it_says_so(tmp_path):
    class Holds(keras.callbacks.Callback):
        def __init__(self, resume):
            super().__init__()
            self.resume = resume

        def set_model(self, model):
            super().set_model(model)
            self.resume.set_model(model)

        def on_train_begin(self, logs=None):
            self.resume.set_params(self.params)
            self.resume.on_train_begin(logs)

        def on_train_end(self, logs=None):
            self.resume.close()

    resume = Resume(tmp_path)
    with pytest.warns(UserWarning, match="does not find itself in the list.*Give it to model.fit itself"):
        toy().fit(resume.data(batch), steps_per_epoch=1, callbacks=[Holds(resume)], verbose=0)


def test_a_list_of_callbacks_that_was_made_before(tmp_path):
    model, resume = toy(), Resume(tmp_path, background=False)
    early = keras.callbacks.EarlyStopping(monitor="loss", patience=9)
    given = keras.callbacks.CallbackList([resume, early], model=model, epochs=1, steps=2, add_history=True)
    model.fit(resume.data(batch), steps_per_epoch=2, callbacks=given, verbose=0, **resume.fit_arguments())
    meta = Checkpoints(tmp_path).newest().meta
    assert "EarlyStopping" in meta["callbacks"] and given.callbacks[-1] is resume
    with pytest.raises(ValueError, match="has served one fit"):
        model.fit(resume.data(batch), steps_per_epoch=2, callbacks=given, verbose=0, **resume.fit_arguments())


def test_a_resume_that_has_served_is_refused_before_others_write(tmp_path):
    from keras_seqlm.training import HistoryCSV, read_history

    model, resume, path = toy(), Resume(tmp_path / "a", background=False), tmp_path / "history.csv"
    arguments = {"steps_per_epoch": 2, "verbose": 0, **resume.fit_arguments()}
    model.fit(resume.data(batch), callbacks=[HistoryCSV(path), resume], **arguments)
    with pytest.raises(ValueError, match="has served one fit"):
        model.fit(resume.data(batch), callbacks=[HistoryCSV(path), resume], **arguments)
    assert [row["step"] for row in read_history(path)] == [2]


class Draws(keras.callbacks.Callback):
    """Draws where a user's callback may, from every generator without a seed of its own."""

    def __init__(self):
        super().__init__()
        self.drawn, self.epoch = {}, None

    def get_state(self):
        return {}

    def set_state(self, state):
        raise AssertionError("there is none")

    def _draw(self, *place):
        self.drawn[place] = (float(array(keras.random.normal((1,)))[0]), np.random.normal(), random.gauss(0, 1))
        if keras.backend.backend() == "torch":
            import torch

            self.drawn[place] += (float(torch.rand(1)),)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self._draw("epoch", epoch)

    def on_train_batch_begin(self, batch, logs=None):
        self._draw("begin", self.epoch, batch)

    def on_train_batch_end(self, batch, logs=None):
        self._draw("end", self.epoch, batch)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kill", on_all([2, 3], 1))
def test_what_others_draw_as_an_epoch_or_a_step_begins_goes_on(tmp_path, first, kill):
    def go(name, kill=None):
        draws = Draws()
        fit(tmp_path / name, [None, draws] if first else [draws, None], 3, kill=kill)
        return draws.drawn

    whole = go("whole")
    with pytest.raises(Killed):
        go("killed", kill=kill)
    rest = go("killed")
    if kill == 3:
        del rest["epoch", 1]  # drawn anew: it was heard of in the process before
    assert len(rest) >= 7 and rest == {place: whole[place] for place in rest}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kill", [3, 5])
def test_what_an_epoch_begins_anew_is_neither_lost_within_it_nor_brought_back_after_it(tmp_path, first, kill):
    class Steps(keras.callbacks.Callback):
        """The steps of this epoch, and of each one that has ended."""

        def __init__(self):
            super().__init__()
            self.ended = []

        def get_state(self):
            return {"ended": self.ended, "steps": self.steps}

        def set_state(self, state):
            self.ended, self.steps = state["ended"], state["steps"]

        def on_train_begin(self, logs=None):
            self.ended = []

        def on_epoch_begin(self, epoch, logs=None):
            self.steps = []

        def on_train_batch_end(self, batch, logs=None):
            self.steps.append(batch)

        def on_epoch_end(self, epoch, logs=None):
            self.ended.append(list(self.steps))

    def go(kill=None):
        steps = Steps()
        fit(tmp_path, [None, steps] if first else [steps, None], 3, steps=3, kill=kill)
        return steps.ended

    with pytest.raises(Killed):
        go(kill)
    assert go() == [[0, 1, 2]] * 3


@pytest.mark.parametrize("kill", [2, 3, 5])
def test_a_learning_rate_that_an_epoch_sets_as_it_begins_is_set_once(tmp_path, kill):
    """Of two steps each: the epoch in which the run goes on begins again, and so would halve the rate again."""

    def halved():
        return keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)

    alone = fit(tmp_path / "alone", [halved(), None], 4)
    with pytest.raises(Killed):
        fit(tmp_path / "killed", [halved(), None], 4, kill=kill)
    again = fit(tmp_path / "killed", [halved(), None], 4)
    assert float(array(again.optimizer.learning_rate)) == float(array(alone.optimizer.learning_rate)) == 0.5 / 2**4
    for left, right in zip(alone.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


def test_the_second_normal_number_of_a_pair_is_saved():
    """NumPy and Python draw two at once and keep one."""
    model = toy()
    for _ in range(2):  # with a kept one, and without
        np.random.normal(), random.gauss(0, 1)
        arrays = state.arrays_of(model, ("random",))
        next_ones = [(np.random.normal(), random.gauss(0, 1)) for _ in range(3)]
        state.assign_random(arrays)
        assert [(np.random.normal(), random.gauss(0, 1)) for _ in range(3)] == next_ones


def test_the_cooldown_of_a_plateau_goes_on(tmp_path):
    """Reduced after epoch 3, with three epochs to wait, and killed after one of them."""

    def go(name, kill=None):
        slower = keras.callbacks.ReduceLROnPlateau(patience=2, cooldown=3, factor=0.5)
        model = fit(tmp_path / name, [Validates(val_loss=[1.0]), slower, None], 6, kill=kill)
        return slower.cooldown_counter, slower.wait, float(array(model.optimizer.learning_rate))

    assert go("whole") == (0, 1, 0.25)
    with pytest.raises(Killed):
        go("killed", kill=8)
    assert go("killed") == (0, 1, 0.25)


@pytest.mark.parametrize("kill", [4, 6])
def test_the_batches_that_a_model_checkpoint_has_seen_go_on(tmp_path, kill):
    def go(name, kill=None):
        path = str(tmp_path / name / "{epoch}-{batch}.weights.h5")
        saves = keras.callbacks.ModelCheckpoint(path, save_freq=3, save_weights_only=True, monitor="loss")
        fit(tmp_path / name / "checkpoints", [saves, None], 3, steps=4, kill=kill)
        return sorted(file.name.partition(".")[0] for file in (tmp_path / name).glob("*.h5"))

    assert go("whole") == ["1-3", "2-2", "3-1", "3-4"]
    with pytest.raises(Killed):
        go("killed", kill=kill)
    assert go("killed") == ["1-3", "2-2", "3-1", "3-4"]


def test_two_of_one_class_keep_their_states_in_another_order(tmp_path):
    def go(name, swapped=False, kill=None):
        by_loss = keras.callbacks.EarlyStopping(monitor="val_loss", patience=4)
        by_error = keras.callbacks.EarlyStopping(monitor="val_error", patience=7, mode="min")
        both = [by_error, by_loss] if swapped else [by_loss, by_error]
        losses = Validates(val_loss=[3.0, 2.0, 2.0], val_error=[0.5, 0.4, 0.3, 0.3])
        fit(tmp_path / name, [losses, *both, None], 9, kill=kill)
        return [(one.wait, one.best, one.best_epoch, one.stopped_epoch) for one in (by_loss, by_error)]

    whole = go("whole")
    assert whole == [(4, 2.0, 1, 5), (3, 0.3, 2, 0)]
    with pytest.raises(Killed):
        go("killed", kill=8)
    assert go("killed", swapped=True) == whole


def test_what_a_subclass_of_kerass_adds_is_named_and_the_rest_saved(tmp_path):
    class Patient(keras.callbacks.EarlyStopping):
        """With a memory of its own."""

        def __init__(self, **arguments):
            super().__init__(**arguments)
            self.seen = []

        def on_epoch_end(self, epoch, logs=None):
            super().on_epoch_end(epoch, logs)
            self.seen.append(epoch)

    class Saves(Patient):
        def get_state(self):
            return {"seen": self.seen}

        def set_state(self, state):
            self.seen = state["seen"]

    def go(kind, epochs):
        callback = kind(patience=9, min_delta=0.1)
        fit(tmp_path / kind.__name__, [Validates(val_loss=[1.0]), callback, None], epochs)
        return callback

    for epochs in (2, 4):
        with pytest.warns(
            UserWarning, match=r"the callback Patient has no get_state.*\(seen\) is not in the check"
        ) as said:
            patient = go(Patient, epochs)
        assert sum("Patient" in str(one.message) for one in said) == 1
    assert (patient.wait, patient.seen) == (3, [2, 3])
    go(Saves, 2)
    again = go(Saves, 4)
    assert (again.wait, again.seen) == (3, [0, 1, 2, 3])


@pytest.mark.parametrize("kind", ["swap", "subclass", "backup", "another"])
def test_callbacks_that_do_not_go_with_it_are_refused_before_training(tmp_path, kind):
    class Swap(keras.callbacks.SwapEMAWeights):
        pass

    callback, reason = {
        "swap": lambda: (keras.callbacks.SwapEMAWeights(swap_on_epoch=True), "training.ValidateAverage"),
        "subclass": lambda: (Swap(swap_on_epoch=True), "training.ValidateAverage"),
        "another": lambda: (Resume(tmp_path / "another"), "more than once"),
        "backup": lambda: (keras.callbacks.BackupAndRestore(str(tmp_path / "backup")), "leave it out"),
    }[kind]()
    model = toy(keras.optimizers.SGD(0.1, use_ema=True))
    with pytest.raises(ValueError, match=reason):
        fit(tmp_path / "checkpoints", [None, callback], 1, model=model)
    assert int(array(model.optimizer.iterations)) == 0


class WithinValidation(OfTheTest):
    """Does something in the middle of a validation, once."""

    def __init__(self, epoch, action):
        super().__init__()
        self.wanted, self.action = epoch, action

    def on_test_batch_end(self, batch, logs=None):
        if self.epoch == self.wanted:
            self.action()


def die():
    raise Killed


@pytest.mark.backends
def test_averages_that_are_swapped_in_for_validation_are_never_saved_as_weights(tmp_path):
    def go(name, *more):
        model = toy(keras.optimizers.SGD(0.1, momentum=0.5, use_ema=True, ema_momentum=0.5))
        callbacks = [None, keras.callbacks.SwapEMAWeights()]
        losses = keras.callbacks.History()
        held = tuple(map(np.concatenate, zip(batch(99), batch(98), strict=True)))
        fit(tmp_path / name, [*callbacks, *more, losses], 4, model=model, validation_data=held, validation_batch_size=4)
        return [array(variable) for variable in (*model.variables, *model.optimizer.variables)], losses.history

    weights, losses = go("whole")
    with pytest.raises(Killed):
        go("killed", WithinValidation(1, die))
    with pytest.raises(SystemExit):
        go("killed", WithinValidation(2, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    again, rest = go("killed")
    assert rest == {name: values[2:] for name, values in losses.items()}
    for left, right in zip(weights, again, strict=True):
        np.testing.assert_array_equal(left, right)


def test_rows_of_a_csv_logger_that_begins_anew_are_kept_and_that_is_said(tmp_path):
    path = tmp_path / "log.csv"

    def epochs():
        return [line.partition(",")[0] for line in path.read_text().splitlines()]

    fit(tmp_path / "checkpoints", [keras.callbacks.CSVLogger(str(path)), None], 2)
    with pytest.warns(
        UserWarning, match=r"CSVLogger\(append=False\) would wipe.*say CSVLogger\(filename, append=True\)"
    ):
        fit(tmp_path / "checkpoints", [None, keras.callbacks.CSVLogger(str(path))], 3)
    assert epochs() == ["epoch", "0", "1", "2"]
    fit(tmp_path / "checkpoints", [keras.callbacks.CSVLogger(str(path), append=True), None], 4)
    assert epochs() == ["epoch", "0", "1", "2", "3"]
    written = path.read_text()
    with open(path, "a") as file:
        file.write("4,1.0\n5,1.")  # killed between a row and its checkpoint, and within a row
    fit(tmp_path / "checkpoints", [keras.callbacks.CSVLogger(str(path), append=True), None], 6)
    assert epochs() == ["epoch", "0", "1", "2", "3", "4", "5"] and path.read_text().startswith(written)
    fit(tmp_path / "anew", [keras.callbacks.CSVLogger(str(path)), None], 1)  # another run
    assert epochs() == ["epoch", "0"]


def test_a_validation_that_comes_again_has_one_row(tmp_path):
    """Told to end within a validation; killed after the row of it, before the next checkpoint; gone on with."""

    class EndIn(OfTheTest):
        def on_test_batch_end(self, batch, logs=None):
            if self.epoch == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    def go(name, callbacks=(), kill=None):
        history = HistoryCSV(tmp_path / f"{name}.csv")
        held = batch(99)
        fit(tmp_path / name, [*callbacks, history, None], 4, kill=kill, every=100, validation_data=held)
        return [(row["step"], row["loss"], row["validation_loss"]) for row in read_history(history.path)]

    whole = go("whole")
    with pytest.raises(SystemExit):
        go("killed", [EndIn()])
    assert Checkpoints(tmp_path / "killed").steps()[-1] == 4
    worse = Validates(val_loss=[99.0])  # which is no reason to save
    with pytest.raises(Killed):
        go("killed", [worse], kill=5)
    assert [row["step"] for row in read_history(tmp_path / "killed.csv")] == [2, 4]
    assert Checkpoints(tmp_path / "killed").steps()[-1] == 4
    assert go("killed") == whole


@pytest.mark.parametrize("to_schedule", [True, False])
def test_a_learning_rate_that_became_a_schedule_is_named_as_that(tmp_path, to_schedule):
    def rates():
        schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
        return (0.1, schedule) if to_schedule else (schedule, 0.1)

    before, now = rates()
    fit(tmp_path, [None], 1, model=toy(keras.optimizers.Adam(before)))
    was, is_ = ("a number", "a schedule") if to_schedule else ("a schedule", "a number")
    with pytest.raises(CheckpointError, match=f"learning rate is {is_} here and was {was} there") as error:
        Resume(tmp_path).restore(toy(keras.optimizers.Adam(now)))
    assert "learning_rate is" not in str(error.value) and "compile" in str(error.value)


class SlowDisk:
    """Holds up what is written until it is told not to."""

    def __init__(self, monkeypatch):
        self.begun, self.goes_on, self.flush = threading.Event(), threading.Event(), rooms_file.flush
        monkeypatch.setattr(rooms_file, "flush", self._flush)

    def _flush(self, path):
        self.begun.set()
        self.goes_on.wait(20)
        self.flush(path)


@pytest.mark.parametrize("error", [Killed, KeyboardInterrupt])
def test_what_a_fit_that_failed_still_writes_is_waited_for(tmp_path, monkeypatch, error):
    """As in a notebook, where the process lives on: the thread of the failed fit is in the middle of a checkpoint."""
    disk = SlowDisk(monkeypatch)

    class Fails(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 2:
                assert disk.begun.wait(20)
                raise error

    first = Resume(tmp_path, every=2)
    with pytest.raises(error):
        toy().fit(first.data(batch), steps_per_epoch=4, callbacks=[Fails(), first], verbose=0, **first.fit_arguments())
    threading.Timer(0.5, disk.goes_on.set).start()
    second = Resume(tmp_path)
    assert disk.goes_on.is_set() and second.step_before == 2 and not list(tmp_path.glob(".part-*"))
    toy().fit(second.data(batch), steps_per_epoch=4, callbacks=[second], verbose=0, **second.fit_arguments())
    assert Checkpoints(tmp_path).steps() == [2, 4]


def test_a_last_write_that_failed_is_told_of(tmp_path, monkeypatch):
    resume = Resume(tmp_path, every=1)

    class Fails(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 1:
                raise Killed

    def broken(*_):
        raise RuntimeError("as a fault of ours would be")

    monkeypatch.setattr(Checkpoints, "save", broken)
    with pytest.raises(Killed):
        toy().fit(resume.data(batch), steps_per_epoch=4, callbacks=[Fails(), resume], verbose=0)
    with pytest.warns(UserWarning, match="the last checkpoint could not be saved.*as a fault of ours would be"):
        resume.close()


class Means(RunCallback):
    """Of how many steps each loss is the mean."""

    def __init__(self):
        super().__init__()
        self.counts = {}

    def get_state(self):
        return {}

    def set_state(self, state):
        raise AssertionError("there is none")

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        if self.step > self.run.step_before:
            self.counts[self.step] = (self.steps_in_mean(), logs["loss"])


def test_the_mean_of_an_epoch_that_goes_on_is_of_all_its_steps(tmp_path):
    def go(name, kill=None, steps=4, epochs=3):
        means = Means()
        fit(tmp_path / name, [means, None], epochs, steps=steps, kill=kill)
        return means.counts

    whole = go("whole")
    assert [whole[step][0] for step in (4, 5, 6, 7, 8)] == [4, 1, 2, 3, 4]
    with pytest.raises(Killed):
        go("killed", kill=6)
    assert Resume(tmp_path / "killed").of_run().mean_since == 4
    divided = Resume(tmp_path / "killed")
    divided.divide(3)
    assert (divided.first_step, divided.of_run().mean_since) == (6, 4)  # the mean that was saved goes on
    divided.close()
    assert go("killed") == {step: whole[step] for step in range(7, 13)}
    assert Resume(tmp_path / "killed").of_run().mean_since == 12


def test_the_window_of_a_roll_back_is_that_of_the_run_left_alone(tmp_path):
    """Killed within an epoch, with others to come, whose first losses are means of one step."""

    def go(name, kill=None, steps=4):
        keras.utils.set_random_seed(2)
        model = new_model("bigram")
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
        resume = Resume(tmp_path / name, every=1, background=False)
        guard = RollBack(resume, factor=9.0, window=20)
        kills = [] if kill is None else [KillAt(kill, 4)]
        fit = {"steps_per_epoch": steps, "epochs": 12 // steps, "verbose": 0, **resume.fit_arguments()}
        model.fit(resume.data(Batches(4)), callbacks=[*kills, guard, resume], **fit)
        return guard.get_state()["losses"]

    whole = go("whole", steps=12)
    np.testing.assert_allclose(go("epochs"), whole, rtol=1e-5)
    with pytest.raises(Killed):
        go("killed", kill=6)
    np.testing.assert_allclose(go("killed"), whole, rtol=1e-5)


def test_epochs_of_another_length_are_refused(tmp_path):
    fit(tmp_path, [None], 1, steps=2)
    with pytest.raises(CheckpointError, match="a run with steps_per_epoch=2, and fit was given 3; give the same"):
        fit(tmp_path, [None], 2, steps=3)


def test_a_run_that_was_stopped_in_its_last_epoch_goes_on_when_it_is_made_longer(tmp_path):
    def go(epochs):
        early = keras.callbacks.EarlyStopping(patience=2)
        return int(array(fit(tmp_path, [Validates(val_loss=PLATEAU), early, None], epochs).optimizer.iterations))

    assert go(4) == 8  # of the losses 3, 2, 2, 2 the fourth ends it, and it had ended
    assert not Resume(tmp_path).ended
    assert go(6) > 8


def test_a_disk_without_room_is_told_before_a_step_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(total=1, used=1, free=0))
    with pytest.raises(OSError) as refused:
        fit(tmp_path, [None], 1)
    assert refused.value.errno == errno.ENOSPC and not list(tmp_path.glob("step-*"))


def test_a_disk_that_fails_now_and_then_does_not_stop_a_run(tmp_path, monkeypatch):
    save = Checkpoints.save

    def fails(self, step, *rest, **named):
        if step in (1, 3, 5):
            raise OSError(errno.EIO, "now and then")
        return save(self, step, *rest, **named)

    monkeypatch.setattr(Checkpoints, "save", fails)
    with pytest.warns(UserWarning, match="could not be saved.*training goes on") as said:
        fit(tmp_path, [None], 3)
    assert len([one for one in said if "could not be saved" in str(one.message)]) == 3
    assert Checkpoints(tmp_path).steps()[-1] == 6


def test_a_fit_in_a_thread_of_ones_own_saves_too(tmp_path):
    thread = threading.Thread(target=fit, args=(tmp_path, [None], 1))
    thread.start()
    thread.join()
    assert Checkpoints(tmp_path).steps()[-1] == 2
