"""The event files that TensorBoard draws."""

import dataclasses

import keras
import numpy as np
import pytest
from training_toy import Batches, compiled, new_model

from keras_seqlm.training import HistoryCSV, Recipe, Run, TensorBoardScalars, read_history
from keras_seqlm.training.history import COLUMNS
from keras_seqlm.training.safe_optimizer import SafeOptimizer

pytestmark = [pytest.mark.neutral, pytest.mark.usefixtures("eager_steps")]

RECIPE = Recipe(steps=7, batch_size=4, warmup_steps=2, validate_every=4)


def points(folder):
    """name -> {step: number}, as TensorBoard reads a folder: a start at a step drops what there is from it on."""
    import tensorflow as tf

    found = {}
    for path in sorted(folder.iterdir()):
        events = [tf.compat.v1.Event.FromString(record.numpy()) for record in tf.data.TFRecordDataset(str(path))]
        assert events[0].file_version == "brain.Event:2"
        for event in events[1:]:
            if event.session_log.status == tf.compat.v1.SessionLog.START:
                for steps in found.values():
                    for step in [step for step in steps if step >= event.step]:
                        del steps[step]
            for value in event.summary.value:
                assert event.step not in found.setdefault(value.tag, {}), "a point twice"
                found[value.tag][event.step] = value.simple_value
    return {name: dict(sorted(steps.items())) for name, steps in found.items()}


@pytest.mark.backends
def test_points_are_those_of_their_steps(tmp_path):
    every_step = dataclasses.replace(RECIPE, validate_every=1)
    losses = every_step.fit(compiled(every_step, "bigram"), Batches(), progress=False).history["loss"]
    history = HistoryCSV(tmp_path / "history.csv")
    callbacks = [history, TensorBoardScalars(tmp_path / "board", every=3)]
    RECIPE.fit(compiled(RECIPE, "bigram"), Batches(), Batches().batch(50), callbacks, progress=False)
    board, rows = points(tmp_path / "board"), read_history(history.path)
    assert set(board) == {"loss", "validation_loss", *COLUMNS[4:6], *COLUMNS[7:]}
    assert list(board["loss"]) == [3, 4, 6, 7]  # at every third and at the end of a piece
    expected = [np.mean(losses[:3]), losses[3], np.mean(losses[4:6]), losses[6]]
    np.testing.assert_allclose(list(board["loss"].values()), expected, rtol=1e-5)
    assert board["validation_loss"] == pytest.approx({row["step"]: row["validation_loss"] for row in rows}, rel=1e-5)
    rates = {step: float(RECIPE.learning_rate_schedule()(step - 1)) for step in (3, 4, 6, 7)}
    assert board["learning_rate"] == pytest.approx(rates, rel=1e-5)
    assert all(speed > 0 for speed in board["tokens_per_second"].values())


@pytest.mark.backends
def test_norm_and_skipped_steps_of_the_optimizer(tmp_path):
    model = new_model("bigram")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(SafeOptimizer(keras.optimizers.SGD(0.1)), loss, jit_compile=False)
    x, y = Batches(rows=20).batch(0)
    weight = np.ones(y.shape, "float32")
    weight[14] = np.nan  # in step 4
    callbacks = [TensorBoardScalars(tmp_path, every=2)]
    model.fit(x, y, sample_weight=weight, batch_size=4, shuffle=False, callbacks=callbacks, verbose=0)
    board = points(tmp_path)
    assert board["skipped_steps"] == {2: 0, 4: 1, 5: 1}
    norms = board["gradient_norm"]
    assert 0 < norms[2] < 10 and np.isnan(norms[4]) and 0 < norms[5] < 10


def test_a_run_that_goes_on_takes_back_what_came_after(tmp_path):
    board, recipe = TensorBoardScalars(tmp_path, every=1), dataclasses.replace(RECIPE, steps=6)
    recipe.fit(compiled(recipe, "bigram"), Batches(), callbacks=[board], progress=False)
    first = points(tmp_path)["loss"]
    model = compiled(recipe, "bigram")
    for step in range(4):
        model.train_on_batch(*Batches().batch(step + 10))
    recipe.fit(model, Batches(), callbacks=[board], first_step=4, progress=False)
    both = points(tmp_path)["loss"]
    assert list(both) == [1, 2, 3, 4, 5, 6] and len(list(tmp_path.iterdir())) == 2
    assert [both[step] == first[step] for step in both] == [True] * 4 + [False] * 2


def test_steps_that_are_run_through_again_are_not_drawn(tmp_path):
    board = TensorBoardScalars(tmp_path, every=2)
    board.run = Run(steps=8, step_before=5)
    x, y = Batches(rows=32).batch(0)
    compiled(RECIPE, "bigram").fit(x, y, batch_size=4, callbacks=[board], verbose=0)
    assert list(points(tmp_path)["loss"]) == [6, 8]


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        TensorBoardScalars(tmp_path, every=0)


def test_a_process_that_is_not_the_first_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("keras_seqlm.training.callbacks.is_chief", lambda: False)
    board = TensorBoardScalars(tmp_path / "board")
    RECIPE.fit(compiled(RECIPE, "bigram"), Batches(), callbacks=[board], progress=False)
    assert not (tmp_path / "board").exists()


def test_a_full_disk_ends_no_run(tmp_path):
    import tensorflow as tf

    class Full:
        def write(self, record):
            raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

        close = flush = lambda self: None

    class Fills(TensorBoardScalars):
        def on_epoch_begin(self, epoch, logs=None):
            super().on_epoch_begin(epoch, logs)
            self._file = Full()

    model = compiled(Recipe(steps=4, batch_size=4, validate_every=2), "bigram")
    with pytest.warns(UserWarning, match="could not be written.*No space left.*training goes on") as said:
        model.fit(*Batches(4).batch(0), batch_size=4, epochs=2, verbose=0, callbacks=[Fills(tmp_path, every=1)])
    assert len([one for one in said if "could not be written" in str(one.message)]) == 1
