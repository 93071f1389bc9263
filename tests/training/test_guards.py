"""What watches over a run: updates that are left out, losses that jump."""

import dataclasses

import keras
import numpy as np
import pytest
from helpers import array
from training_toy import Batches, compiled

from keras_seqlm.training import Recipe, Resume, RollBack, SafeOptimizer, StopAfterSkipped, TrainingStopped

RUN = Recipe(steps=12, batch_size=4, warmup_steps=2, learning_rate=0.01, validate_every=12, stop_after_skipped=3)


class Spoilt(Batches):
    """Batches of which some have weights, and so a loss, of `factor` times the size; NaN by default."""

    def __init__(self, steps, factor=np.nan):
        super().__init__()
        self.steps, self.factor = steps, factor

    def batch(self, step):
        x, y = super().batch(step)
        return x, y, np.full(y.shape, self.factor if step in self.steps else 1.0, "float32")


class Weights(keras.callbacks.Callback):
    """The weights after each step."""

    def on_train_begin(self, logs=None):
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()
        self.seen.append([array(variable).copy() for variable in self.model.trainable_variables])


@pytest.mark.backends
def test_row_25_a_bad_batch_is_left_out_and_named(capsys):
    model, weights = compiled(RUN, "bigram"), Weights()
    history = RUN.fit(model, Spoilt({4, 5, 8}), callbacks=[weights], progress=False).history
    same = [
        all((a == b).all() for a, b in zip(before, after, strict=True))
        for before, after in zip(weights.seen, weights.seen[1:], strict=False)
    ]
    assert [step + 1 for step, equal in enumerate(same) if equal] == [4, 5, 8]
    assert isinstance(model.optimizer, SafeOptimizer) and int(array(model.optimizer.skipped)) == 3
    assert np.isfinite(history["loss"]).all()  # the mean over the batches that counted
    said = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert len(said) == 3 and "step 5: " in said[0] and "3 in all; it is batch 8" in said[2]


@pytest.mark.backends
def test_row_26_many_in_a_row_end_the_run(tmp_path):
    model = compiled(RUN, "bigram")
    with pytest.raises(TrainingStopped, match="3 updates in a row .* the last one at step 10"):
        RUN.fit(model, Spoilt(range(7, 100)), resume=Resume(tmp_path, every=2), progress=False)
    assert all(np.isfinite(array(variable)).all() for variable in model.variables)
    assert Resume(tmp_path).step_before == 8


def test_without_the_guard_keras_trains_on_as_it_does():
    recipe = dataclasses.replace(RUN, stop_after_skipped=0)
    model = compiled(recipe, "bigram")
    assert not isinstance(model.optimizer, SafeOptimizer)
    recipe.fit(model, Spoilt({4}), progress=False)
    assert not all(np.isfinite(array(variable)).all() for variable in model.trainable_variables)


@pytest.mark.backends
def test_row_28_a_jump_of_the_loss_is_undone(tmp_path, capsys):
    recipe = Recipe(optimizer="sgd", learning_rate=1.0, clip_norm=None, steps=100, batch_size=4, validate_every=100)
    held = Batches().batch(10**6)
    clean = recipe.fit(compiled(recipe, "bigram"), Batches(), held, progress=False).history["val_loss"][-1]
    spoilt = Spoilt({60}, factor=1000.0)
    ruined = recipe.fit(compiled(recipe, "bigram"), spoilt, held, progress=False).history["val_loss"][-1]
    careful = dataclasses.replace(recipe, roll_back_factor=3.0)
    resume = Resume(tmp_path, every=5)
    saved = careful.fit(compiled(careful, "bigram"), spoilt, held, resume=resume, progress=False).history["val_loss"][
        -1
    ]
    assert "the updates since step 60 are undone" in capsys.readouterr().err
    assert saved == pytest.approx(clean, rel=0.02) and ruined > 2 * clean


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match="limit must be at least 1"):
        StopAfterSkipped(0)
    with pytest.raises(ValueError, match="factor must be above 1"):
        RollBack(None, factor=1.0)
    with pytest.raises(ValueError, match="resume=Resume"):
        dataclasses.replace(RUN, roll_back_factor=2.0).fit(compiled(RUN, "bigram"), Batches())
    with pytest.raises(TrainingStopped, match="there is no checkpoint yet"):
        careful = dataclasses.replace(RUN, roll_back_factor=2.0, steps=80, validate_every=80)
        spoilt = Spoilt(range(60, 70), factor=1000.0)
        careful.fit(compiled(careful, "bigram"), spoilt, resume=Resume(tmp_path, every=1000), progress=False)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes"), ValueError("mine")]
)
def test_row_40_out_of_memory_says_what_helps(tmp_path, error):
    class Fail(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 6:
                raise error

    wanted = (ValueError, "mine") if isinstance(error, ValueError) else (MemoryError, "4 rows does not fit.*accumulate")
    with pytest.raises(wanted[0], match=wanted[1]):
        resume = Resume(tmp_path, every=3)
        RUN.fit(compiled(RUN, "bigram"), Batches(), callbacks=[Fail()], resume=resume, progress=False)
    assert Resume(tmp_path).step_before in (3, 6)
