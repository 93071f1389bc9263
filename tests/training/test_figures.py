"""Figures in the logs: what stands behind them goes by them; of averaged weights where those are validated."""

import keras
import numpy as np
import pytest
from helpers import array

from keras_seqlm.checkpoints import Checkpoints
from keras_seqlm.training import Figures, HistoryCSV, Resume, ValidateAverage, read_history

pytestmark = pytest.mark.neutral

X, Y = np.ones((8, 2), "float32"), np.zeros((8, 1), "float32")


def compiled(**options):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
    model.compile(keras.optimizers.SGD(0.05, **options), "mse", jit_compile=False)
    return model


def weight_of(model):
    return lambda: {"weight": float(array(model.layers[-1].kernel)[0, 0])}


@pytest.mark.backends
def test_early_stopping_history_and_checkpoints_go_by_it(tmp_path):
    """The figure is best at the second validation, and the loss at the last."""
    model, said = compiled(), iter([0.5, 0.9, 0.7, 0.9, 1.0])
    resume = Resume(tmp_path / "checkpoints", monitor="val_score", mode="max", keep=1)
    callbacks = [
        Figures(lambda: {"score": next(said)}),
        HistoryCSV(tmp_path / "history.csv", figures=("score",)),
        keras.callbacks.EarlyStopping("val_score", mode="max", patience=2),
        resume,
    ]
    batch = lambda step: (X, Y)  # noqa: E731
    options = {"steps_per_epoch": 2, "validation_data": (X, Y), "verbose": 0, "callbacks": callbacks}
    history = model.fit(resume.data(batch), epochs=5, **options, **resume.fit_arguments()).history
    assert history["val_score"] == [0.5, 0.9, 0.7, 0.9] and history["val_loss"][-1] == min(history["val_loss"])
    rows = read_history(tmp_path / "history.csv")
    assert [row["validation_score"] for row in rows] == [0.5, 0.9, 0.7, 0.9]
    assert Checkpoints(tmp_path / "checkpoints").best().step == 4


@pytest.mark.backends
def test_they_are_of_the_averaged_weights():
    model, own = compiled(use_ema=True, ema_momentum=0.9), []

    class Own(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            own.append(weight_of(self.model)()["weight"])

    callbacks = [ValidateAverage(), Figures(weight_of(model)), Own()]
    found = model.fit(X, Y, validation_data=(X, Y), epochs=3, verbose=0, callbacks=callbacks).history["val_weight"]
    average = own[0]  # as Keras's begins
    for weight, figure in zip(own[1:], found[1:], strict=True):  # one step an epoch
        average = 0.9 * average + 0.1 * weight
        assert figure == pytest.approx(average, abs=1e-5) and figure > weight + 0.01


def test_without_validation_nothing_is_asked():
    model = compiled()
    model.fit(X, Y, verbose=0, callbacks=[Figures(lambda: 1 / 0)])
