"""Resume in a fit that its user wrote: what another call of `fit`, or another kind of data, would make of the steps."""

import keras
import numpy as np
import pytest
from helpers import array
from test_resume_callbacks import Killed, batch, fit, toy

from keras_seqlm.training import CheckpointError, Checkpoints, Resume

pytestmark = pytest.mark.neutral


class StopAt(keras.callbacks.Callback):
    """Ends training within an epoch, as a callback does that looks at the clock."""

    def __init__(self, epoch, step):
        super().__init__()
        self.place, self.epoch = (epoch, step), None

    def get_state(self):
        return {}

    def set_state(self, state):
        assert state == {}

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, step, logs=None):
        if (self.epoch, step) == self.place:
            self.model.stop_training = True


def updates(model):
    return int(array(model.optimizer.iterations))


@pytest.mark.backends
@pytest.mark.parametrize("epochs", [2, 3])
def test_a_run_that_was_stopped_within_an_epoch_goes_on_there_if_it_is_told_to(tmp_path, capsys, epochs):
    """Whether or not the epoch is the last one, it is no finished run."""
    alone = fit(tmp_path / "alone", [None], epochs, steps=4)
    assert updates(fit(tmp_path / "stopped", [None, StopAt(1, 1)], epochs, steps=4)) == 6
    assert updates(fit(tmp_path / "stopped", [None], epochs, steps=4)) == 6
    assert "ended by a callback at step 6" in capsys.readouterr().err
    model = toy()
    resume = Resume(tmp_path / "stopped", every=1, allow_changes=True)
    model.fit(
        resume.data(batch), epochs=epochs, steps_per_epoch=4, verbose=0, callbacks=[resume], **resume.fit_arguments()
    )
    assert updates(model) == 4 * epochs
    for left, right in zip(alone.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.tensorflow
def test_steps_that_run_as_one_must_begin_where_the_checkpoint_lies(tmp_path):
    def compiled(steps):
        model = toy()
        model.compile(keras.optimizers.SGD(0.5), "mse", jit_compile=False, steps_per_execution=steps)
        return model

    with pytest.raises(Killed):
        fit(tmp_path, [None], 1, steps=12, kill=4, model=compiled(4))
    with pytest.raises(CheckpointError, match="4 steps into an epoch, which steps_per_execution=3 cannot begin"):
        fit(tmp_path, [None], 1, steps=12, model=compiled(3))
    assert updates(fit(tmp_path, [None], 1, steps=12, model=compiled(2))) == 12


def test_a_fit_that_begins_with_another_epoch_is_refused(tmp_path):
    fit(tmp_path, [None], 2)
    resume = Resume(tmp_path)
    with pytest.raises(CheckpointError, match=r"begins with epoch 0.* goes on in epoch 2; give fit \*\*resume"):
        toy().fit(resume.data(batch), epochs=2, steps_per_epoch=2, verbose=0, callbacks=[resume])
    resume.close()
    assert Checkpoints(tmp_path).steps()[-1] == 4


@pytest.mark.backends
def test_with_data_of_fits_own_a_checkpoint_is_named_after_the_updates_in_it(tmp_path):
    x, y = (np.concatenate(parts) for parts in zip(*map(batch, range(5)), strict=True))

    def train(epochs, *callbacks):
        model, resume = toy(), Resume(tmp_path, every=1, background=False)
        options = {"batch_size": 4, "epochs": epochs, "verbose": 0}
        model.fit(x, y, callbacks=[resume, *callbacks], **options, **resume.fit_arguments())
        return model

    class Kill(keras.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            if step == 2:
                raise Killed

    with pytest.raises(Killed):
        train(1, Kill())
    made = Checkpoints(tmp_path).steps()[-1]
    assert made in (2, 3)
    with pytest.warns(UserWarning, match="position in the data is lost"):
        model = train(2)
    newest = Checkpoints(tmp_path).newest()
    assert newest.step == updates(model) == made + 10
    assert int(newest.arrays()["optimizer/00000"]) == newest.step


def test_epochs_are_divided_before_the_data_are_asked(tmp_path):
    fit(tmp_path, [None], 1, steps=3)
    resume = Resume(tmp_path)
    resume.data(batch)
    with pytest.raises(ValueError, match="divide comes before resume.data"):
        resume.divide(4)
    resume.close()


def test_data_that_cannot_be_asked_for_a_step_are_named(tmp_path):
    resume = Resume(tmp_path)
    with pytest.raises(TypeError, match=r"expected a function of the step.*got tuple.*given to fit itself"):
        resume.data(batch(0))
    toy().evaluate(*batch(0), verbose=0, callbacks=[resume])  # hears of it, and has nothing to do
    resume.close()


def test_optimizers_of_a_train_step_of_ones_own_are_named(tmp_path):
    class Two(keras.Sequential):
        def __init__(self):
            super().__init__([keras.Input((3,)), keras.layers.Dense(1)])
            self.second_optimizer = keras.optimizers.Adam(0.1)

    model = Two()
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    with pytest.warns(UserWarning, match="model's second_optimizer is not in the checkpoints"):
        fit(tmp_path, [None], 1, model=model)


def test_a_learning_rate_that_is_set_back_between_two_fits_is_told_of(tmp_path):
    model = toy()
    model.compile(keras.optimizers.SGD(0.5), "mse", jit_compile=False)

    def cell(epochs):
        resume = Resume(tmp_path, every=2)
        halves = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.25 if epoch == 1 else rate)
        fit = {"epochs": epochs, "steps_per_epoch": 2, "verbose": 0, "callbacks": [halves, resume]}
        model.fit(resume.data(batch), **fit, **resume.fit_arguments())

    cell(2)
    cell(3)  # nothing was set by hand, and nothing is said
    model.optimizer.learning_rate = 0.5
    with pytest.warns(
        UserWarning, match=r"learning rate was set to 0\.5 since the last fit, and that of .* goes on, 0\.25"
    ):
        cell(4)
    assert float(array(model.optimizer.learning_rate)) == 0.25
