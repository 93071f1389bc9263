"""What a model is made of and compiled with, beside its weights: what changed between two starts is refused by name, or told."""

import itertools
import warnings

import keras
import numpy as np
import pytest
from training.test_identity import adam, batches, fit

from keras_seqlm.training import CheckpointError, Checkpoints, Resume
from keras_seqlm.training.model_config import config_of


class Total(keras.losses.Loss):
    """Holds a loss, and numbers in a dict and a list, and says it in its config."""

    def __init__(self, parts, weights, **options):
        super().__init__(**options)
        self.parts, self.weights = parts, weights

    def call(self, y_true, y_pred):
        return sum(weight * part(y_true, y_pred) for weight, part in zip(self.weights["all"], self.parts, strict=True))

    def get_config(self):
        parts = [keras.saving.serialize_keras_object(part) for part in self.parts]
        return {**super().get_config(), "parts": parts, "weights": self.weights}


class Silent(keras.losses.Loss):
    """Says nothing of its number."""

    def __init__(self, scale):
        super().__init__()
        self._scale = scale

    def call(self, y_true, y_pred):
        return self._scale * keras.ops.mean(keras.ops.square(y_true - y_pred))


def total(delta=1.0, weight=1.0):
    return Total([keras.losses.Huber(delta), keras.losses.MeanSquaredError()], {"all": [weight, 1.0]})


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (keras.losses.Huber(1.0), keras.losses.Huber(0.1), "the loss's delta was 1 and is 0.1"),
        (Silent(1.0), Silent(2.0), "the loss's scale was 1 and is 2"),
        (total(), total(delta=0.1), "the loss's parts.0.delta was 1 and is 0.1"),
        (total(), total(weight=0.5), r"the loss's weights.all was \[1.0, 1.0\] and is \[0.5, 1.0\]"),
        ("mse", keras.losses.MeanSquaredError("sum"), "the loss's reduction was 'sum_over_batch_size' and is 'sum'"),
        ("huber", keras.losses.Huber(0.1), "the loss's delta was 1 and is 0.1"),
    ],
)
def test_a_number_of_a_loss_that_its_config_does_not_show_is_held(tmp_path, before, now, said):
    fit(tmp_path, 1, loss=before)
    fit(tmp_path, 2, loss=before)
    with pytest.raises(CheckpointError, match=f"other numbers: {said}"):
        fit(tmp_path, 3, loss=now)


@pytest.mark.parametrize(
    "pair", [*itertools.permutations(["mse", "mean_squared_error", keras.losses.MeanSquaredError()], 2)]
)
def test_one_loss_of_keras_is_itself_however_it_is_written(tmp_path, pair):
    fit(tmp_path, 1, loss=pair[0])
    assert int(fit(tmp_path, 2, loss=pair[1]).iterations) == 2


class Start:
    """Builds, compiles and trains a model up to an epoch, in one folder."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, epochs, model, loss_weights=None, callbacks=(), **options):
        if not model.compiled:
            model.compile("sgd", "mse", loss_weights=loss_weights, jit_compile=False)
        resume = Resume(self.folder, background=False, every=1, **options)
        arguments = {"epochs": epochs, "steps_per_epoch": 2, "verbose": 0, **resume.fit_arguments()}
        try:
            model.fit(resume.data(batches()), callbacks=[*callbacks, resume], **arguments)
        finally:
            resume.close()


@pytest.fixture
def start(tmp_path):
    return Start(tmp_path)


def layers(*found, **options):
    return keras.Sequential([keras.Input((3,)), *found, keras.layers.Dense(1)], **options)


@pytest.mark.parametrize(("before", "now", "was"), [(None, 5.0, 1), (1.0, [5.0], 1), ([2.0], 5.0, 2)])
def test_the_weight_of_one_loss_is_held(start, before, now, was):
    start(1, layers(), before)
    with pytest.raises(CheckpointError, match=f"the loss's loss_weights was {was} and is 5"):
        start(2, layers(), now)
    start(2, layers(), [float(was)])


def layers_then_relu():
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(1), keras.layers.Activation("relu")])


def functional(factor=2, skip=True, width=3):
    x = keras.Input((width,), name="x")
    y = keras.layers.Dense(3)(x)
    z = keras.layers.Dense(3)(y)
    return keras.Model(x, keras.layers.Dense(1)((x if skip else y) + factor * z))


def dense(activation="relu", **options):
    return keras.layers.Dense(4, activation=activation, **options)


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (
            lambda: layers(dense()),
            lambda: layers(dense("tanh")),
            "the model's layers.0.activation was 'relu' and is 'tanh'",
        ),
        (
            lambda: layers(keras.layers.Dropout(0.1)),
            lambda: layers(keras.layers.Dropout(0.3)),
            "the model's layers.0.rate was 0.1 and is 0.3",
        ),
        (
            lambda: layers(dense(dtype="float32")),
            lambda: layers(dense(dtype="mixed_bfloat16")),
            "the model's layers.0.dtype was 'float32' and is 'mixed_bfloat16'",
        ),
        (
            layers,
            layers_then_relu,
            "the model's layers.count was 1 and is 2",
        ),
        (functional, lambda: functional(factor=3), "the model's layers.2.inbound_nodes was .*2.* and is .*3"),
        (functional, lambda: functional(skip=False), "the model's layers.3.inbound_nodes was "),
    ],
)
def test_a_part_of_the_model_that_changed_is_refused_by_name(start, before, now, said):
    start(1, before())
    start(2, before())  # with other names: Keras counts them on
    with pytest.raises(CheckpointError, match=f"other parts: .*{said}.*allow_changes=True"):
        start(3, now())
    start(3, now(), allow_changes=True)
    start(4, now())


def test_names_seeds_and_when_a_model_is_built_are_no_part_of_it():
    later = keras.Sequential([dense(), keras.layers.Dropout(0.1, seed=3), keras.layers.Dense(1)], name="other")
    before = config_of(later)
    later.build((4, 3))
    here = keras.Sequential([keras.Input((3,)), dense(kernel_initializer=keras.initializers.HeNormal(seed=1))])
    there = keras.Sequential([keras.Input((3,)), dense(kernel_initializer=keras.initializers.HeNormal(seed=2))])
    assert before == config_of(later) and before["layers.1.rate"] == 0.1 and before["layers.count"] == 3
    assert config_of(here) == config_of(there)
    assert config_of(functional()) == config_of(functional())


@pytest.mark.backends
def test_a_layer_that_a_callback_lets_train_is_no_other_model(start):
    """In a process that starts anew, as in a notebook where the model goes on."""

    class Thaw(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.layers[0].rate = 0.5

    model = layers(keras.layers.Dropout(0.1))
    start(1, model, callbacks=[Thaw()])
    start(2, model)
    start(3, layers(keras.layers.Dropout(0.1)))
    with pytest.raises(CheckpointError, match="the model's layers.0.rate was 0.1 and is 0.2"):
        start(4, layers(keras.layers.Dropout(0.2)))


def slow():
    return 0.0001


def fast():
    return 0.3


@pytest.mark.backends
def test_a_learning_rate_that_is_another_function_is_told(tmp_path):
    rate = 0.01

    def closed():
        return rate

    fit(tmp_path, 1, adam(learning_rate=slow))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit(tmp_path, 2, adam(learning_rate=slow))
    with pytest.warns(
        UserWarning, match="schedule .* is another .*: class was 'slow' and is 'fast'; .*value was 0.0001 and is 0.3"
    ):
        fit(tmp_path, 3, adam(learning_rate=fast))
    with pytest.warns(UserWarning, match="closed"):
        fit(tmp_path, 4, adam(learning_rate=closed))
    rate = 0.02
    with pytest.warns(UserWarning, match="is another than that of .*: value was 0.01 and is 0.02; training"):
        fit(tmp_path, 5, adam(learning_rate=closed))


def test_data_that_give_two_batches_for_one_step_are_refused(tmp_path):
    drawn = np.random.default_rng(0)

    def draws(step):
        return drawn.standard_normal((4, 3)).astype("float32"), np.zeros((4, 1), "float32")

    with pytest.raises(
        CheckpointError, match="asked twice for the batch of step 0, gave two .x of the batch of step 0 holds"
    ):
        fit(tmp_path, 1, data=draws)
    assert Checkpoints(tmp_path).steps() == []
    with pytest.warns(UserWarning, match="must depend on nothing but the step"):
        fit(tmp_path, 1, data=draws, allow_changes=True)


def test_settings_that_are_no_number_are_the_same(tmp_path):
    fit(tmp_path, 1, settings={"threshold": float("nan"), "steps": 3})
    fit(tmp_path, 2, settings={"threshold": float("nan"), "steps": 3.0})
    with pytest.raises(CheckpointError, match="threshold was nan and is 1"):
        fit(tmp_path, 3, settings={"threshold": 1.0, "steps": 3})


def test_the_step_from_which_losses_are_compared_is_kept_by_a_third_start(start):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for epochs, text, options in ((1, "a", {}), (2, "b", {"allow_changes": True}), (3, "b", {}), (4, "b", {})):
            start(epochs, layers(), settings={"text": text}, **options)
    found = Checkpoints(start.folder)
    assert found.steps()[-2:] == [7, 8]
    assert [found.meta(step)["comparable_from"] for step in (7, 8)] == [3, 3]
