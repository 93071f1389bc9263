"""What watches over a run: updates that are left out, losses that jump."""

import collections
import contextlib
import dataclasses

import keras
import numpy as np
import pytest
from cases import on_all
from helpers import array
from training_toy import Batches, compiled, new_model

from keras_seqlm.training import Recipe, Resume, RollBack, SafeOptimizer, StopAfterSkipped, TrainingStopped
from keras_seqlm.training.guards import is_out_of_memory

pytestmark = pytest.mark.neutral

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


@pytest.mark.backends
def test_what_was_left_out_before_is_not_told_again(tmp_path, capsys):
    class Kill(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 7:
                raise InterruptedError

    for kill in ([Kill()], []):
        capsys.readouterr()
        with pytest.raises(InterruptedError) if kill else contextlib.nullcontext():
            model, resume = compiled(RUN, "bigram"), Resume(tmp_path, every=2)
            model.fit(
                resume.data(Spoilt({2, 3, 9})),
                steps_per_epoch=12,
                verbose=0,
                callbacks=[resume, StopAfterSkipped(), *kill],
                **resume.fit_arguments(),
            )
    assert resume.step_before in (4, 6)
    said = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert len(said) == 1 and "3 in all; it is batch 9" in said[0]


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


STILL = Recipe(optimizer="sgd", learning_rate=1e-9, clip_norm=None, steps=12, batch_size=4, validate_every=12)


def losses_of(model, data, steps):
    """The loss of each batch, which a model that stands still has at any step; NaN where a weight is."""
    return [float(array(model.test_on_batch(*data.batch(step)))) for step in steps]


@pytest.mark.parametrize("options", on_all([{}, {"accumulate": 2}, {"steps_per_execution": 2}], 1, 2))
def test_a_roll_back_knows_the_loss_of_each_step(tmp_path, options):
    """Also after batches that were left out, the first of a piece among them, and where the run goes on within a piece."""
    if "steps_per_execution" in options and keras.backend.backend() == "torch":
        pytest.skip("Keras on torch makes one step at a time")
    recipe = dataclasses.replace(STILL, **options)
    spoilt = Spoilt({0, 5, 8})
    model = compiled(recipe, "bigram")
    wanted = losses_of(model, Spoilt({}), range(12))
    assert np.std(wanted) > 0.01
    together = recipe.steps_per_execution
    pieces = [[wanted[i] for i in range(j, j + together) if i not in spoilt.steps] for j in range(0, 12, together)]
    guards = []
    for last in (8, 12):  # killed at 8 of 12, and gone on from 6
        resume = Resume(tmp_path, every=6, background=False)
        guards.append(RollBack(resume, window=50))
        stop = [StopAt(last)] if last < 12 else []
        again = compiled(recipe, "bigram") if guards[1:] else model
        with pytest.raises(Killed) if stop else contextlib.nullcontext():
            recipe.fit(again, spoilt, callbacks=[guards[-1], *stop], resume=resume, progress=False)
        expected = [np.mean(piece) for piece in pieces[: last // together] if piece]
        np.testing.assert_allclose(list(guards[-1]._losses), expected, rtol=1e-4)


class Killed(Exception):
    """In place of a `kill -9`."""


class StopAt(keras.callbacks.Callback):
    """Ends the run as a kill does."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if batch + 1 == self.step:
            raise Killed


@pytest.mark.backends
def test_a_loss_that_is_not_finite_is_a_jump_where_nothing_else_guards(tmp_path, capsys):
    recipe = dataclasses.replace(RUN, stop_after_skipped=0, steps=8, validate_every=8)
    resume = Resume(tmp_path, every=3)
    model = compiled(recipe, "bigram")
    guard = RollBack(resume)
    losses = recipe.fit(model, Spoilt({4, 6}), callbacks=[guard], resume=resume, progress=False).history["loss"]
    said = capsys.readouterr().err
    assert "step 5: the loss jumped to nan; the updates since step 3 are undone" in said
    assert "step 7: the loss jumped to nan; the updates since step " in said and guard._times == 2
    assert all(np.isfinite(array(variable)).all() for variable in (*model.variables, *model.optimizer.variables))
    # And the mean of the piece is that of the six others.
    assert losses[0] == pytest.approx(np.mean(guard._losses), rel=1e-5) and len(guard._losses) == 6


def test_a_loss_that_is_not_finite_before_the_first_checkpoint_ends_the_run(tmp_path):
    recipe = dataclasses.replace(RUN, stop_after_skipped=0, roll_back_factor=2.0)
    with pytest.raises(TrainingStopped, match="the loss jumped to nan at step 3, and there is no checkpoint yet"):
        recipe.fit(compiled(recipe, "bigram"), Spoilt({2}), resume=Resume(tmp_path, every=100), progress=False)


@pytest.mark.backends
def test_what_a_safe_optimizer_left_out_in_a_plain_fit_is_no_jump(tmp_path, capsys):
    model, resume = new_model("bigram"), Resume(tmp_path, every=2)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(SafeOptimizer(keras.optimizers.SGD(1e-9)), loss, jit_compile=keras.backend.backend() == "jax")
    wanted = losses_of(model, Spoilt({}), (0, 1, 2, 5))
    guard, fit = RollBack(resume), {"steps_per_epoch": 6, "verbose": 0, **resume.fit_arguments()}
    history = model.fit(resume.data(Spoilt({3, 4})), callbacks=[guard, resume], **fit).history
    assert guard._times == 0 and capsys.readouterr().err == ""
    np.testing.assert_allclose(list(guard._losses), wanted, rtol=1e-4)
    assert history["loss"] == [pytest.approx(np.mean(wanted), rel=1e-4)]


@pytest.mark.backends
def test_going_back_undoes_the_slots_and_nothing_that_counts(tmp_path):
    class Look(keras.callbacks.Callback):
        """What the optimizer holds when its steps 4 and 6 are over; the rate is lowered as a callback may."""

        def on_train_batch_end(self, batch, logs=None):
            if keras.backend.backend() == "jax":
                self.model.jax_state_sync()
            self.seen[batch + 1] = {one.path: array(one).copy() for one in self.model.optimizer.variables}
            if batch == 4:
                self.model.optimizer.learning_rate = 0.001

        seen = {}

    look, resume = Look(), Resume(tmp_path, every=4, background=False)
    model = new_model("bigram")
    optimizer = keras.optimizers.Adam(0.01, gradient_accumulation_steps=3)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(SafeOptimizer(optimizer), loss, jit_compile=keras.backend.backend() == "jax")
    guard = RollBack(resume, factor=3.0, window=2)
    fit = {"steps_per_epoch": 6, "verbose": 0, **resume.fit_arguments()}
    model.fit(resume.data(Jump({5}, nan={4})), callbacks=[guard, look, resume], **fit)
    assert guard._times == 1
    before, after = look.seen[4], look.seen[6]
    for path, value in after.items():
        name = path.rpartition("/")[2]
        if value.ndim and "accumulator" in name:
            assert before[path].any() and not value.any()  # else an update could have seven gradients of three
        elif value.ndim:
            assert before[path].any() and (before[path] == value).all(), path
        elif name == "iteration":
            assert value in (0, before[path] + 2)
    found = {path.rpartition("/")[2]: value for path, value in after.items()}
    assert found["skipped"] == 1 and found["last_skipped"] == 4 and found["learning_rate"] == np.float32(0.001)


class Jump(Spoilt):
    """Batches of which some have a loss a thousand times the size, and some a NaN."""

    def __init__(self, steps, nan):
        super().__init__(steps, 1000.0)
        self.nan = nan

    def batch(self, step):
        x, y, weights = super().batch(step)
        return x, y, weights * np.float32(np.nan) if step in self.nan else weights


def test_a_train_step_of_ones_own_tells_its_losses_or_is_refused(tmp_path):
    class Own(keras.Model):
        tells = True

        def __init__(self):
            super().__init__()
            self.dense, self.mean = keras.layers.Dense(1), keras.metrics.Mean(name="loss")

        def call(self, x):
            return self.dense(x)

        @property
        def metrics(self):
            return [self.mean] if self.tells else []

        def train_step(self, data):
            loss = keras.ops.mean(self(data[0]) ** 2)
            self.mean.update_state(loss)
            return {"loss": self.mean.result() if self.tells else loss}

    def fit(tells, folder):
        model, resume = Own(), Resume(folder)
        model.tells = tells
        model.compile("sgd")
        guard = RollBack(resume)
        batch = (np.ones((2, 3), "float32"), np.ones((2, 1), "float32"))
        fit = {"steps_per_epoch": 3, "verbose": 0, **resume.fit_arguments()}
        model.fit(resume.data(lambda step: batch), callbacks=[guard, resume], **fit)
        return list(guard._losses)

    assert len(fit(True, tmp_path / "a")) == 3
    with pytest.raises(ValueError, match="this model's train_step tells it nothing; call update_state"):
        fit(False, tmp_path / "b")


@pytest.mark.backends
def test_the_mean_leaves_out_what_is_not_finite_and_tells_where_nothing_is_left(tmp_path):
    """In training; a model that has made a step before learns of it, too. A validation says what it found."""
    recipe = dataclasses.replace(STILL, steps=6, validate_every=2)
    model = compiled(recipe, "bigram")
    wanted = losses_of(model, Spoilt({}), range(6))
    model.make_train_function()

    class Held(keras.utils.PyDataset):
        """A batch that has a NaN, and one that has none."""

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return Spoilt({6}).batch(6 + index)

    history = recipe.fit(model, Spoilt({1, 2, 3}), Held(), progress=False).history
    np.testing.assert_allclose(history["loss"], [wanted[0], np.nan, np.mean(wanted[4:])], rtol=1e-4)
    assert np.isnan(history["val_loss"]).all()


def test_going_back_is_counted_over_starts():
    class Fake:
        """In place of a `Resume` that has a checkpoint."""

        def finished(self):
            return object()

    first, second = RollBack(Fake(), limit=2), RollBack(Fake(), limit=2)
    for guard in (first, second):
        guard.set_model(new_model("bigram"))
        guard.set_params({})
        guard.model.compile("sgd")
        guard.on_train_begin()
    first._losses.extend([1.0, 2.0])
    first._times = 2
    second.set_state(first.get_state())
    assert list(second._losses) == [1.0, 2.0] and second._losses.maxlen == 50
    with pytest.raises(TrainingStopped, match="it is jump 3 of this run"):
        second._go_back(9.0)


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


class Fed(RollBack):
    """A `RollBack` that is given what a step adds to the mean, and how many updates were left out."""

    def __init__(self, window):
        super().__init__(None, factor=2.0, window=window)
        self.jumps, self._piece_start, self._clock = [], 0, None
        self._losses, self._means = collections.deque(maxlen=window), []
        self._before, self._skipped, self.sums, self.skipped = [0.0, 0.0], 0, [0.0, 0.0], 0

    def _sums(self):
        return list(self.sums)

    def _set_sums(self, sums):
        self.sums = list(sums)

    def of_optimizer(self, name):
        return self.skipped

    def _go_back(self, loss):
        self.jumps.append(loss)

    def feed(self, loss, skipped=0):
        self.sums, self.skipped = [self.sums[0] + loss, self.sums[1] + 1], self.skipped + skipped
        self.on_train_batch_end(self.step)


def test_no_finite_loss_is_a_jump_before_the_window_is_full():
    guard = Fed(window=3)
    for loss in (1.0, 1.0, 100.0):
        guard.feed(loss)
    assert guard.jumps == [] and list(guard._losses) == [1.0, 1.0, 100.0]
    guard.feed(100.0)
    assert guard.jumps == [100.0]


def test_only_an_update_that_this_step_left_out_excuses_its_loss():
    guard = Fed(window=3)
    guard.feed(np.inf, skipped=1)
    assert guard.jumps == []
    guard.feed(np.inf)  # one was left out before, and this one was made
    assert guard.jumps == [np.inf]


def test_an_error_that_was_raised_from_one_of_memory_is_one():
    def raised(error, cause):
        error.__cause__ = cause
        return error

    plain = ValueError("of ours")
    assert is_out_of_memory(raised(plain, raised(RuntimeError("of a library"), MemoryError())))
    assert not is_out_of_memory(raised(ValueError("of ours"), KeyError("a")))


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
