"""Resume beside callbacks that change the model, save by themselves, serve twice or are told to end late."""

import errno
import os
import signal

import keras
import numpy as np
import pytest
from cases import on_all
from helpers import array
from training.test_resume_callbacks import Killed, OfTheTest, batch, fit, toy
from training_toy import Batches, compiled

from keras_seqlm.checkpoints import checkpoint as rooms_file
from keras_seqlm.training import Checkpoints, HistoryCSV, Recipe, Resume, SampleWriter, read_history
from keras_seqlm.training.callbacks import Run, RunCallback

pytestmark = [pytest.mark.neutral, pytest.mark.usefixtures("eager_steps")]


def rate_of(model):
    return float(array(model.optimizer.learning_rate))


def halve(model):
    model.optimizer.learning_rate = rate_of(model) / 2


class AsItBegins(OfTheTest):
    """Sets weights and the learning rate as training begins, and halves the rate as an epoch ends."""

    def on_train_begin(self, logs=None):
        self.model.set_weights([np.full_like(weight, 0.5) for weight in self.model.get_weights()])
        self.model.optimizer.learning_rate = 0.25

    def on_epoch_end(self, epoch, logs=None):
        halve(self.model)


class AsItIsGiven(OfTheTest):
    """The same as it is given its model."""

    def set_model(self, model):
        super().set_model(model)
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        AsItBegins.on_train_begin(self)

    def on_epoch_end(self, epoch, logs=None):
        halve(self.model)


def as_a_function_of_the_users(model):
    def begin(logs=None):
        model.set_weights([np.full_like(weight, 0.5) for weight in model.get_weights()])

    return keras.callbacks.LambdaCallback(on_train_begin=begin)


def assert_same(left, right):
    assert rate_of(left) == rate_of(right)
    for one, other in zip(left.get_weights(), right.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("make", [lambda model: AsItBegins(), lambda model: AsItIsGiven(), as_a_function_of_the_users])
@pytest.mark.parametrize("kill", on_all([3, 4], 0))
def test_what_a_callback_sets_as_training_begins_is_set_once(tmp_path, make, first, kill):
    def go(name, kill=None):
        model = toy()
        callbacks = [make(model), None] if first else [None, make(model)]
        return fit(tmp_path / name, callbacks, 3, kill=kill, model=model)

    whole = go("whole")
    with pytest.raises(Killed):
        go("killed", kill=kill)
    assert_same(go("killed"), whole)


@pytest.mark.backends
def test_what_a_callback_sets_as_a_recipe_begins_is_set_once(tmp_path):
    recipe = Recipe(steps=6, batch_size=4, warmup_steps=2, learning_rate=0.01, validate_every=3)

    class Begins(OfTheTest):
        def __init__(self, kill):
            super().__init__()
            self.kill, self.made = kill, 0

        def on_train_begin(self, logs=None):
            self.model.set_weights([np.full_like(weight, 0.5) for weight in self.model.get_weights()])

        def on_train_batch_end(self, batch, logs=None):
            self.made += 1
            if self.made == self.kill:
                raise Killed

    def go(name, kill=None):
        model = compiled(recipe, "bigram")
        resume = Resume(tmp_path / name, every=1, background=False)
        recipe.fit(model, Batches(4), callbacks=[Begins(kill)], resume=resume, progress=False)
        return model

    whole = go("whole")
    with pytest.raises(Killed):
        go("killed", kill=5)
    assert_same(go("killed"), whole)


@pytest.mark.parametrize("kill", [2, 3])
def test_a_function_that_halves_the_rate_as_an_epoch_begins_does_so_once(tmp_path, kill):
    def go(name, kill=None):
        model = toy()
        halves = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: halve(model))
        return fit(tmp_path / name, [halves, None], 3, kill=kill, model=model)

    whole = go("whole")
    with pytest.raises(Killed):
        go("killed", kill=kill)
    assert_same(go("killed"), whole)


def test_a_rate_is_halved_once_in_an_epoch_that_a_callback_had_ended(tmp_path):
    class Halve(OfTheTest):
        def on_epoch_begin(self, epoch, logs=None):
            halve(self.model)

    class EndAt(OfTheTest):
        def __init__(self, epoch):
            super().__init__()
            self.at = epoch

        def on_train_batch_end(self, batch, logs=None):
            if (self.epoch, batch) == (self.at, 1):
                self.model.stop_training = True

    def go(end=None, **options):
        model, resume = toy(), Resume(tmp_path, every=100, background=False, **options)
        arguments = {"epochs": 4, "steps_per_epoch": 3, "verbose": 0, **resume.fit_arguments()}
        model.fit(resume.data(batch), callbacks=[Halve(), EndAt(end), resume], **arguments)
        return rate_of(model), int(model.optimizer.iterations)

    assert go(end=1) == (0.5 / 4, 5)
    assert go(allow_changes=True) == (0.5 / 16, 12)


@pytest.mark.parametrize("when", on_all(["on_epoch_begin", "on_epoch_end", "on_train_batch_begin"], "on_epoch_end"))
@pytest.mark.parametrize("validates", [True, False])
def test_a_save_of_another_callbacks_is_of_its_moment(tmp_path, when, validates):
    """Killed right after; what is gone on with makes the steps that are missing, and no loss of before is written over."""

    class Saves(OfTheTest):
        def __init__(self, resume, kill):
            super().__init__()
            self.resume, self.kill, self.calls = resume, kill, 0

    def act(self, *arguments, **options):
        if when == "on_epoch_begin":
            OfTheTest.on_epoch_begin(self, *arguments)
        self.calls += 1
        if self.calls <= 2:
            self.resume.save()
        if self.kill and self.calls == 2:
            raise Killed

    setattr(Saves, when, act)

    def go(name, kill=False):
        model, resume = toy(), Resume(tmp_path / name, every=100, background=False)
        arguments = {"epochs": 3, "steps_per_epoch": 2, "verbose": 0, **resume.fit_arguments()}
        validation = batch(99) if validates else None
        model.fit(resume.data(batch), callbacks=[resume, Saves(resume, kill)], validation_data=validation, **arguments)
        return model

    whole = go("whole")
    with pytest.raises(Killed):
        go("killed", kill=True)
    saved = Checkpoints(tmp_path / "killed")
    losses = [saved.meta(step)["validation_loss"] for step in saved.steps()]
    assert any(losses) == (validates and when != "on_train_batch_begin")
    again = go("killed")
    assert int(again.optimizer.iterations) == 6
    assert_same(again, whole)


def test_a_save_before_training_has_begun_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is for a fit that runs"):
        Resume(tmp_path).save()


def test_the_same_callbacks_serve_a_second_fit_of_one_process(tmp_path):
    class Sees(RunCallback):
        def get_state(self):
            return {}

        def on_epoch_end(self, epoch, logs=None):
            super().on_epoch_end(epoch, logs)
            self.seen = self.step, self.run.steps, self.run.step_before

    history, sees = HistoryCSV(tmp_path / "history.csv"), Sees()
    writer = SampleWriter(lambda model: "text", tmp_path / "samples.txt")
    for epochs in (1, 2, 4):
        fit(tmp_path / "checkpoints", [history, writer, sees, None], epochs, steps=3)
        assert sees.seen == (3 * epochs, 3 * epochs, {1: 0, 2: 3, 4: 6}[epochs])
    assert [row["step"] for row in read_history(history.path)] == [3, 6, 9, 12]
    headers = [line for line in writer.path.read_text().splitlines() if line.startswith("---")]
    assert headers == [f"--- step {step} ---" for step in (3, 6, 9, 12)]
    with pytest.raises(Killed):
        fit(tmp_path / "other", [sees, None], 3, kill=5)
    fit(tmp_path / "other", [sees, None], 4)
    assert sees.seen == (8, 8, 5)
    data = batch(0)
    for epochs in (2, 3):  # by itself, and of another run
        toy().fit(*data, epochs=epochs, batch_size=4, verbose=0, callbacks=[sees])
        assert sees.seen == (epochs, epochs, 0)


def test_what_a_recipe_tells_a_callback_is_of_that_fit_alone(tmp_path):
    sees = RunCallback()
    sees.run = Run(bytes_per_token=2.0)
    recipe = Recipe(steps=4, batch_size=4, warmup_steps=1, learning_rate=0.01, validate_every=2)
    model = compiled(recipe, "bigram")
    recipe.fit(model, Batches(4), callbacks=[sees], progress=False)
    assert sees.step == 4 and sees.run == Run(bytes_per_token=2.0)
    fit(tmp_path, [sees, None], 2, steps=3)
    assert sees.step == 6 and sees.run == Run(bytes_per_token=2.0)


@pytest.fixture
def signals_as_python_has_them():
    """As they are where no fit before has failed, and nobody started this in the background."""
    own = {signal.SIGTERM: signal.SIG_DFL, signal.SIGUSR1: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in own.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize("when", ["other callbacks end", "the last one is written"])
def test_a_signal_after_the_last_epoch_is_not_lost(
    tmp_path, monkeypatch, capsys, signals_as_python_has_them, number, when
):
    class Told(OfTheTest):
        def on_train_end(self, logs=None):
            if when == "other callbacks end":
                os.kill(os.getpid(), number)

    save = rooms_file.Checkpoints.save

    def told(self, step, *arguments, **options):
        if step == 4 and when == "the last one is written":
            os.kill(os.getpid(), number)
        return save(self, step, *arguments, **options)

    monkeypatch.setattr(rooms_file.Checkpoints, "save", told)
    error = KeyboardInterrupt if number == signal.SIGINT else SystemExit
    with pytest.raises(error) as ended:
        fit(tmp_path, [Told(), None], 2)
    assert number == signal.SIGINT or ended.value.code == 143
    assert Checkpoints(tmp_path).steps()[-1] == 4
    assert "told to end: step 4 is saved, the same command goes on from there" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.filterwarnings("ignore:the checkpoint of step 4 could not be saved")
def test_a_step_that_could_not_be_saved_is_not_said_to_be(tmp_path, monkeypatch, capsys, signals_as_python_has_them):
    class Told(OfTheTest):
        def on_train_batch_end(self, batch, logs=None):
            if (self.epoch, batch) == (1, 1):
                os.kill(os.getpid(), signal.SIGTERM)

    save = rooms_file.Checkpoints.save

    def full(self, step, *arguments, **options):
        if step == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(self, step, *arguments, **options)

    monkeypatch.setattr(rooms_file.Checkpoints, "save", full)
    with pytest.raises(SystemExit):
        fit(tmp_path, [Told(), None], 3)
    said = capsys.readouterr().err
    assert "told to end: step 3 is saved (step 4 could not be saved), the same command goes on from there" in said
    assert Checkpoints(tmp_path).steps()[-1] == 3
