"""What a run is made of: other data, numbers of the optimizer, settings or loss are seen, refused or told, and never mixed."""

import dataclasses
import functools
import warnings

import keras
import numpy as np
import pytest
from helpers import array
from training_toy import Batches, compiled

from keras_seqlm.data import causal_blocks
from keras_seqlm.tokenizers import ByteTokenizer
from keras_seqlm.training import CheckpointError, Checkpoints, Recipe, Resume, SafeOptimizer, WarmupSchedule, list_runs
from keras_seqlm.training.identity_of_data import data_changes, identity_of_data, identity_of_validation

pytestmark = [pytest.mark.neutral, pytest.mark.usefixtures("eager_steps")]

RUN = Recipe(steps=4, batch_size=4, warmup_steps=2, learning_rate=0.05, validate_every=2)


def batches(rows=4, seed=7, width=3, dtype="float32", name=None):
    def make_batch(step):
        x = np.random.default_rng([seed, step]).standard_normal((rows, width)).astype(dtype)
        return ({name: x} if name else x), x.sum(axis=1, keepdims=True)

    return make_batch


def fit(folder, steps, optimizer="adam", data=None, loss="mse", callbacks=(), validation=None, every=1, **options):
    """Train a layer up to `steps`, an epoch each, or go on; gives its optimizer."""
    model = keras.Sequential([keras.Input((3,), name="x"), keras.layers.Dense(1)])
    model.compile(optimizer, loss, jit_compile=False)
    resume = Resume(folder, background=False, every=every, **options)
    fit = {"epochs": steps, "steps_per_epoch": 1, "verbose": 0, "validation_data": validation}
    feed = resume.data(data or batches())
    model.fit(feed, callbacks=[*callbacks, resume], **fit, **resume.fit_arguments())
    return model.optimizer


def adam(**numbers):
    return keras.optimizers.Adam(**{"learning_rate": 0.01, **numbers})


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            {"rows": 8},
            r"x of the batch of step 0 was float32 \(4, 3\) and is float32 \(8, 3\); y of the batch of .*\(8, 1\)",
        ),
        ({"seed": 8}, "x of the batch of step 0 holds something else; y of the batch of step 0 holds something else"),
        ({"dtype": "float16"}, r"x of the batch of step 0 was float32 \(4, 3\) and is float16 \(4, 3\)"),
        (
            {"name": "x"},
            r"x of the batch of step 0 is in .*; x\['x'\] of the batch|x is in the batch of step 0 only there",
        ),
    ],
)
def test_other_data_are_refused_and_the_folder_is_free_and_as_it_was(tmp_path, data, said):
    fit(tmp_path, 1)
    before = Checkpoints(tmp_path).newest().sha256
    with pytest.raises(CheckpointError, match=f"other data: .*{said}.*its batch size or its seed.*allow_changes=True"):
        fit(tmp_path, 2, data=batches(**data))
    assert Checkpoints(tmp_path).newest().sha256 == before
    assert int(fit(tmp_path, 2).iterations) == 2


def test_data_that_were_allowed_to_change_are_those_of_the_run(tmp_path, capsys):
    fit(tmp_path, 1)
    fit(tmp_path, 2, data=batches(seed=8), allow_changes=True)
    assert "changed since the run began: x of the batch of step 0 holds something else" in capsys.readouterr().err
    fit(tmp_path, 3, data=batches(seed=8))
    with pytest.raises(CheckpointError, match="other data"):
        fit(tmp_path, 4)


def test_other_validation_data_that_can_be_seen_are_refused(tmp_path):
    def train(validation, steps=1, **options):
        recipe = dataclasses.replace(RUN, steps=steps, validate_every=1)
        arguments = {"progress": False, "resume": Resume(tmp_path, background=False, **options)}
        recipe.fit(compiled(recipe, "bigram"), Batches(), validation, **arguments)

    train(Batches().batch(1000))
    with pytest.raises(CheckpointError, match="other data: y of validation holds something else"):
        x, y = Batches().batch(1000)
        train((x, y[::-1]))
    with pytest.raises(CheckpointError, match=r"other data: x of validation was int32 \(4, 8\) and is int32 \(8, 8\)"):
        train(Batches(8).batch(1000))
    train(None)  # what is not there, or cannot be seen, as a generator, is not held against anything
    with pytest.raises(CheckpointError, match="other data: x of validation"):
        train(Batches(8).batch(1000))
    with pytest.warns(UserWarning, match="not compared, since x of validation was"):
        train(Batches(8).batch(1000), steps=2, allow_changes=True)
    train(Batches(8).batch(1000), steps=2)


def test_what_validation_data_are(tmp_path):
    class Rows(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return Batches().batch(index)

    text = tmp_path / "a.txt"
    text.write_text("some words. " * 200)
    made = [
        causal_blocks(text, ByteTokenizer(), 8, 4, validation_fraction=share, cache_dir=tmp_path)
        for share in (0.1, 0.2)
    ]
    (_, tenth), (_, fifth) = made
    said = data_changes(identity_of_validation(tenth), identity_of_validation(fifth), "validation")
    assert f"validation has {fifth.num_targets} targets, and had {tenth.num_targets}" in said
    form = ["int32", [None, None]]  # rows may be padded to the longest one of their batch
    assert identity_of_validation(Rows()) == {"x": form, "y": form, "batches": 3}
    assert identity_of_validation(Batches().batch(0)) != identity_of_validation(Batches().batch(1))
    for unseen in (None, (one for one in ()), 3):
        assert identity_of_validation(unseen) is None


def test_a_text_and_weights_that_data_know_of_are_part_of_them():
    class Known(Batches):
        content_hash, weights = "a", {"books": 0.75, "letters": 0.25}

    known, other = Known(), Known()
    other.content_hash, other.weights = "b", {"books": 0.7, "letters": 0.3}
    said = data_changes(identity_of_data(known), identity_of_data(other))
    assert said == ["their text is another", "the weights of their texts are others"]
    assert (
        data_changes(identity_of_data(known), identity_of_data(Batches())) == []
    )  # what is not known is not held against
    array = Batches()
    array.content_hash = None  # as of blocks of an array
    assert "content" not in identity_of_data(array)


@pytest.mark.backends
def test_arrays_of_any_kind_tell_data_apart():
    class Made:
        def __init__(self, *batch):
            self.batch = batch

        def batches(self, first_step):
            yield self.batch

    texts = np.array([["a"], [b"b"]], object)
    same = [Made({"text": texts, "ids": [1, 2]}, keras.ops.ones((2,)), None) for _ in range(2)]
    first, second = map(identity_of_data, same)
    assert first == second and list(first) == ["x['ids'][0]", "x['ids'][1]", "x['text']", "y"]
    half = identity_of_data(
        Made(keras.ops.ones((2,), "bfloat16"), np.array(["a", "b"]), np.zeros((0, 3)), np.float32(1))
    )
    assert [one[:2] for one in half.values()] == [
        ["bfloat16", [2]],
        ["str32", [2]],
        ["float64", [0, 3]],
        ["float32", []],
    ]
    other = identity_of_data(Made({"text": texts[::-1], "ids": [1, 2]}, keras.ops.ones((2,)), None))
    assert data_changes(first, other) == ["x['text'] of the batch of step 0 holds something else"]


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (adam, {"learning_rate": 0.1}, "learning_rate was 0.01 and is 0.1"),
        (adam, {"beta_1": 0.5}, "beta_1 was 0.9 and is 0.5"),
        (adam, {"clipnorm": 1.0}, "clipnorm was None and is 1"),
        (adam, {"weight_decay": 0.1}, "weight_decay was None and is 0.1"),
        (
            lambda **more: keras.optimizers.SGD(**{"momentum": 0.5, **more}),
            {"momentum": 0.25},
            "momentum was 0.5 and is 0.25",
        ),
        (
            lambda **more: adam(**{"use_ema": True, "ema_momentum": 0.9, **more}),
            {"ema_momentum": 0.8},
            "ema_momentum was 0.9 and is 0.8",
        ),
        (lambda **more: SafeOptimizer(adam(**more)), {"beta_2": 0.5}, "beta_2 was 0.999 and is 0.5"),
    ],
)
def test_a_number_of_the_optimizer_that_changed_is_refused_by_name(tmp_path, before, now, said):
    fit(tmp_path, 1, before())
    with pytest.raises(CheckpointError, match=f"other numbers: the optimizer's {said}.*allow_changes=True"):
        fit(tmp_path, 2, before(**now))
    fit(tmp_path, 2, before(**now), allow_changes=True)
    fit(tmp_path, 3, before(**now))  # and these are the run's from here on
    with pytest.raises(CheckpointError, match="the optimizer's"):
        fit(tmp_path, 4, before())


def test_another_optimizer_of_the_same_slots_is_refused(tmp_path):
    fit(tmp_path, 1, adam(name="one"))
    with pytest.raises(CheckpointError, match="class was 'Adam' and is 'Nadam'"):
        fit(tmp_path, 2, keras.optimizers.Nadam(0.01, name="one"))


@pytest.mark.backends
@pytest.mark.parametrize("wrap", [lambda optimizer: optimizer, SafeOptimizer, keras.optimizers.LossScaleOptimizer])
def test_a_learning_rate_that_was_allowed_to_change_holds(tmp_path, wrap):
    fit(tmp_path, 1, wrap(adam()))
    after = fit(tmp_path, 2, wrap(adam(learning_rate=0.5)), allow_changes=True)
    assert float(array(after.learning_rate)) == 0.5
    assert float(array(fit(tmp_path, 3, wrap(adam(learning_rate=0.5))).learning_rate)) == 0.5


@pytest.mark.backends
def test_a_learning_rate_that_a_callback_lowered_is_no_change(tmp_path):
    class Lower(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.optimizer.learning_rate = 0.01 / 2 ** (epoch + 1)

    assert float(array(fit(tmp_path, 1, adam(), callbacks=[Lower()]).learning_rate)) == pytest.approx(0.005)
    lowered = fit(tmp_path, 2, adam(), callbacks=[Lower()])  # the script says the same as before
    assert float(array(lowered.learning_rate)) == pytest.approx(0.0025)
    # One who says what it is by now says no other number either; nor does one who allows what did not change.
    assert float(array(fit(tmp_path, 3, adam(learning_rate=0.0025)).learning_rate)) == pytest.approx(0.0025)
    assert float(array(fit(tmp_path, 4, adam(), allow_changes=True).learning_rate)) == pytest.approx(0.0025)


@pytest.mark.backends
def test_a_schedule_of_other_numbers_is_told_and_goes_on(tmp_path):
    def optimizer(**numbers):
        return adam(learning_rate=WarmupSchedule("cosine", **{"peak": 0.1, "steps": 10, **numbers}))

    fit(tmp_path, 1, optimizer())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit(tmp_path, 2, optimizer())
    with pytest.warns(
        UserWarning, match="schedule of the learning rate is another.*: peak was 0.1 and is 0.2; steps was 10"
    ):
        fit(tmp_path, 3, optimizer(peak=0.2, steps=20))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit(tmp_path, 4, optimizer(peak=0.2, steps=20))
    with pytest.warns(UserWarning, match="class was 'WarmupSchedule' and is 'CosineDecay'"):
        fit(tmp_path, 5, adam(learning_rate=keras.optimizers.schedules.CosineDecay(0.1, 9)))


def test_a_schedule_that_does_not_say_its_numbers_is_told(tmp_path):
    class Silent(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 0.1

    with pytest.warns(UserWarning, match="Adam does not say its numbers, or its learning-rate schedule"):
        fit(tmp_path, 1, adam(learning_rate=Silent()))
    assert Checkpoints(tmp_path).newest().meta["optimizer"] is None


def test_a_longer_run_of_a_recipe_says_nothing_and_another_rate_is_told(tmp_path):
    def train(**fields):
        recipe = dataclasses.replace(RUN, **fields)
        recipe.fit(compiled(recipe, "bigram"), Batches(), progress=False, resume=Resume(tmp_path, background=False))

    train()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train(steps=6, warmup_steps=1)  # the default warm-up of `seqlm train` is a tenth of the steps
    with pytest.warns(
        UserWarning, match=r"schedule .* is another than that .*: final was 0.005 and is 0.01; peak was 0.05"
    ):
        train(steps=8, warmup_steps=1, learning_rate=0.1)
    with pytest.raises(
        CheckpointError, match="beta_1 was 0.9 and is 0.5; the optimizer's global_clipnorm was 1 and is 2"
    ):
        train(steps=8, warmup_steps=1, learning_rate=0.1, beta_1=0.5, clip_norm=2.0)


def test_another_loss_is_refused(tmp_path):
    squares = keras.losses.MeanSquaredError
    fit(tmp_path, 1, loss=squares(reduction="sum"))
    with pytest.raises(CheckpointError, match="the loss's reduction was 'sum' and is 'mean'"):
        fit(tmp_path, 2, loss=squares(reduction="mean"))
    with pytest.raises(CheckpointError, match="the loss's reduction was 'sum' and is 'sum_over_batch_size'"):
        fit(tmp_path, 2, loss="mse")
    fit(tmp_path, 2, loss="mse", allow_changes=True)
    with pytest.raises(CheckpointError, match="the loss's class was 'mean_squared_error' and is 'mean_absolute_error'"):
        fit(tmp_path, 3, loss=keras.losses.MeanAbsoluteError())
    fit(tmp_path, 3, loss=squares())  # which is what "mse" is short for


def test_a_checkpoint_of_a_version_before_goes_on(tmp_path):
    fit(tmp_path, 1, adam())
    checkpoints = Checkpoints(tmp_path)
    found = checkpoints.newest()
    new = ("data", "optimizer", "loss", "comparable_from")
    checkpoints.save(1, found.arrays(), {name: value for name, value in found.meta.items() if name not in new})
    after = fit(tmp_path, 2, adam(learning_rate=0.5), data=batches(seed=8), loss="mae")
    assert float(array(after.learning_rate)) == pytest.approx(0.01)  # as before; that it is another cannot be known
    with pytest.raises(CheckpointError, match="other data"):
        fit(tmp_path, 3, adam(learning_rate=0.5), loss="mae")


def test_a_setting_that_one_start_leaves_out_is_named_and_held_in_the_next_one(tmp_path):
    fit(tmp_path, 1, settings={"text": "a", "shape": (4, 3)})
    fit(tmp_path, 2, settings={"text": "a", "shape": (4, 3)})  # a tuple is what JSON gives back as a list
    for settings, named in (({"shape": [4, 3]}, "text was 'a'"), (None, r"shape was \[4, 3\]; text was 'a'")):
        with pytest.warns(UserWarning, match=f"whose settings name more: {named}. It is kept"):
            resume = Resume(tmp_path, settings=settings)
        assert resume.settings == {"text": "a", "shape": [4, 3]}
        resume.close()
    with pytest.warns(UserWarning, match="settings name more"):
        fit(tmp_path, 3)
    with pytest.raises(CheckpointError, match="other settings: text was 'a' and is 'b'"):
        Resume(tmp_path, settings={"text": "b", "shape": [4, 3]})
    with pytest.raises(TypeError, match="settings must be a dict that JSON takes"):
        Resume(tmp_path / "new", settings={"text": object()})


VALIDATION = batches()(1000)
EASY = (np.zeros((4, 3), "float32"), np.zeros((4, 1), "float32"))  # its loss is near 0


@pytest.mark.parametrize("changed", ["settings", "data", "loss"])
def test_a_best_loss_of_another_validation_does_not_count(tmp_path, changed):
    """The easy text's losses are lower than any of the other one: the best of that would stay for ever."""
    before = {"validation": EASY, "settings": {"validation": "easy"}, "data": batches(seed=8), "loss": "mae"}
    now = {**before, "validation": VALIDATION, "allow_changes": True}
    now[changed] = {"settings": {"validation": "hard"}, "data": batches(), "loss": "mse"}[changed]
    first = [keras.callbacks.EarlyStopping(patience=9), keras.callbacks.ModelCheckpoint(str(tmp_path / "a.keras"))]
    first[1].save_best_only = True
    fit(tmp_path, 3, adam(), callbacks=first, **before)
    easy = Checkpoints(tmp_path).best_loss()
    assert first[0].best == first[1].best == easy < 0.1 and Checkpoints(tmp_path).best().step <= 3
    early, best = (
        keras.callbacks.EarlyStopping(patience=9),
        keras.callbacks.ModelCheckpoint(str(tmp_path / "best.keras"), save_best_only=True),
    )
    with pytest.warns(
        UserWarning, match="are not compared, since .*: the best one, .* is looked for anew from step 4 on"
    ):
        fit(tmp_path, 5, adam(), callbacks=[early, best], **now)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.best().step > 3 and checkpoints.best_loss() > easy
    assert min(checkpoints.steps()) <= 3  # the best of before stays, too
    assert early.best > easy and best.best > easy and (tmp_path / "best.keras").exists()
    # Going on with what is the run's by now compares again.
    found, now = checkpoints.best_loss(), {**now, "allow_changes": False}
    again = keras.callbacks.EarlyStopping(patience=9)
    fit(
        tmp_path,
        6,
        adam(),
        callbacks=[again, keras.callbacks.ModelCheckpoint(str(tmp_path / "c.keras"), save_best_only=True)],
        **now,
    )
    assert Checkpoints(tmp_path).best_loss() <= found and again.best <= found


def test_what_early_stopping_remembers_stays_where_nothing_changed(tmp_path):
    first, second = (keras.callbacks.EarlyStopping(patience=9) for _ in range(2))
    fit(tmp_path, 2, adam(), validation=EASY, callbacks=[first])
    fit(tmp_path, 3, adam(), validation=VALIDATION, callbacks=[second], allow_changes=True)  # which nobody can know
    assert second.best == first.best


def test_the_first_loss_of_another_validation_is_saved_as_the_best_so_far(tmp_path):
    diverges = functools.partial(keras.optimizers.SGD, 5.0)
    fit(tmp_path, 1, diverges(), validation=EASY, settings={"validation": "easy"})
    with pytest.warns(UserWarning, match="not compared"):
        options = {"settings": {"validation": "hard"}, "allow_changes": True, "every": 100}
        fit(tmp_path, 4, diverges(), validation=VALIDATION, **options)
    losses = {step: Checkpoints(tmp_path).meta(step)["validation_loss"] for step in Checkpoints(tmp_path).steps()}
    assert list(losses) == [1, 2, 4] and losses[1] < losses[2] < losses[4]


def test_a_best_loss_of_other_training_data_does_not_count_either(tmp_path):
    easy, late = (keras.callbacks.EarlyStopping("loss", patience=9) for _ in range(2))
    fit(tmp_path, 1, adam(), data=lambda step: EASY, callbacks=[easy])
    with pytest.warns(UserWarning, match="not compared, since x of the batch .* looked for anew from step 2 on"):
        fit(tmp_path, 2, adam(), callbacks=[late], allow_changes=True)
    assert late.best > easy.best


def test_no_checkpoint_since_the_validation_changed_has_a_loss(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"w": np.ones(2, "float32")}, {"validation_loss": 1.0})
    checkpoints.save(2, {"w": np.ones(2, "float32")}, {"validation_loss": None, "comparable_from": 2})
    with pytest.raises(
        CheckpointError, match=r"no best one; those of steps \[1\] were, before the run went on with other"
    ):
        checkpoints.best()
    assert checkpoints.best_loss() == float("inf") and checkpoints.best_loss(0) == 1.0


def test_the_list_of_runs_compares_what_can_be_compared(tmp_path):
    RUN.to_json(tmp_path / "a" / "recipe.json")
    (tmp_path / "a" / "history.csv").write_text("step,loss,validation_loss\n2,1.0,0.5\n4,1.0,0.9\n6,1.0,0.8\n")
    checkpoints = Checkpoints(tmp_path / "a" / "checkpoints")
    checkpoints.folder.mkdir()
    for first, best in ((0, 0.5), (3, 0.8)):
        checkpoints.save(6, {"w": np.ones(2, "float32")}, {"validation_loss": 0.8, "comparable_from": first})
        assert list_runs(tmp_path)[0]["best_validation_loss"] == best


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"loss": {"a": "mae", "b": "mse"}},
            "the loss's a.class was 'mean_squared_error' and is 'mean_absolute_error'",
        ),
        ({"loss_weights": {"a": 5.0, "b": 0.1}}, "the loss's loss_weights was "),
    ],
)
def test_each_of_several_losses_and_their_weights_are_held(tmp_path, change, said):
    def train(**options):
        x = keras.Input((3,), name="x")
        model = keras.Model(x, {name: keras.layers.Dense(1, name=name)(x) for name in ("a", "b")})
        model.compile("sgd", **{"loss": {"a": "mse", "b": "mse"}, **options}, jit_compile=False)
        make, resume = batches(), Resume(tmp_path, background=False)
        data = resume.data(lambda step: (make(step)[0], dict.fromkeys(("a", "b"), make(step)[1])))
        model.fit(data, epochs=1, steps_per_epoch=1, verbose=0, callbacks=[resume], **resume.fit_arguments())

    train()
    train()
    with pytest.raises(CheckpointError, match=said):
        train(**change)


def test_numbers_of_an_optimizer_within_another_are_held(tmp_path):
    def wrapped(momentum):
        return SafeOptimizerLike(keras.optimizers.SGD(0.1, momentum=momentum))

    class SafeOptimizerLike(keras.optimizers.SGD):
        def __init__(self, other):
            super().__init__(0.1)
            self.other = keras.saving.serialize_keras_object(other)

        def get_config(self):
            return {**super().get_config(), "other": self.other}

    fit(tmp_path, 1, wrapped(0.9))
    with pytest.raises(CheckpointError, match=r"optimizer's other.momentum was 0.9 and is 0.1"):
        fit(tmp_path, 2, wrapped(0.1))


@pytest.mark.backends
def test_what_a_callback_set_before_a_fit_failed_is_not_the_users(tmp_path):
    """In a notebook the same model goes on; a number that the user sets by hand is one that changed."""

    class Lower(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.optimizer.learning_rate = 0.003
            raise InterruptedError

    model = keras.Sequential([keras.Input((3,), name="x"), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.01), "mse", jit_compile=False)

    def train(epochs, *callbacks):
        resume = Resume(tmp_path, background=False, every=1)
        arguments = {"epochs": epochs, "steps_per_epoch": 2, "verbose": 0, **resume.fit_arguments()}
        try:
            model.fit(resume.data(batches()), callbacks=[*callbacks, resume], **arguments)
        finally:
            resume.close()

    train(1)
    with pytest.raises(InterruptedError):
        train(2, Lower())
    train(2)
    assert float(array(model.optimizer.learning_rate)) == pytest.approx(0.01)
    model.optimizer.learning_rate = 0.02
    with pytest.raises(CheckpointError, match="learning_rate was 0.01 and is 0.02"):
        train(3)


def test_what_is_drawn_or_of_another_width_is_no_other_data():
    class Drawn(keras.utils.PyDataset):
        def __init__(self, width):
            super().__init__()
            self.width = width

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return np.zeros((4, self.width), "float32"), np.zeros((4, 1), "int32")

    here, there = (identity_of_validation(Drawn(width)) for width in (5, 6))
    assert data_changes(here, there, "validation") == []

    def ids(dtype):
        return identity_of_data(Batched(np.arange(6).reshape(2, 3).astype(dtype)))

    class Batched:
        def __init__(self, x):
            self.x = x

        def batches(self, first_step=0):
            yield (self.x,)

    assert data_changes(ids("int32"), ids("int64")) == []
    assert data_changes(ids("int32"), ids("float32")) != []
