"""What a model is made of and compiled with, beside its weights: what changed between two starts is refused by name, or told."""

import functools
import itertools
import warnings

import keras
import numpy as np
import pytest
from training.test_identity import adam, batches, fit

from keras_seqlm.training import CheckpointError, Checkpoints, Resume
from keras_seqlm.training.code import code_of
from keras_seqlm.training.model_config import config_of

pytestmark = [pytest.mark.neutral, pytest.mark.usefixtures("eager_steps")]


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


def squares(scale, power=2):
    def loss(y_true, y_pred):
        """Which holds a number, and calls another."""
        return scale * keras.ops.mean(raised(y_true - y_pred, power), axis=-1)

    return loss


def raised(x, power):
    return x**power


class Calls:
    """No function, and no `Loss`."""

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, y_true, y_pred):
        return self.scale * keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1)


def weighed(values):
    return squares(keras.ops.convert_to_tensor(values))


class Halves(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return keras.ops.mean(keras.ops.square(y_true - y_pred)) / 2


class Thirds(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return keras.ops.mean(keras.ops.square(y_true - y_pred)) / 3


Thirds.__name__ = "Halves"  # as its code is changed in the file


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (squares(1.0), squares(2.0)),
        (squares(1.0), squares(1.0, power=4)),
        (lambda y_true, y_pred: y_true - y_pred, lambda y_true, y_pred: abs(y_true - y_pred)),
        (functools.partial(squares(1.0)), functools.partial(squares(2.0))),
        (Calls(1.0), Calls(2.0)),
        (weighed([1.0, 2.0, 3.0, 4.0]), weighed([1.0, 2.0, 3.0, 5.0])),
        (Halves(), Thirds()),
    ],
    ids=["a number", "a power", "lambda", "partial", "an object", "a tensor", "a class"],
)
def test_another_function_of_one_name_is_another_loss(tmp_path, before, now):
    fit(tmp_path, 1, loss=before)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message=".*lambda.*")
        fit(tmp_path, 2, loss=before)
    with pytest.raises(
        CheckpointError, match="other numbers: the loss's code in Python .* was .* and is .*allow_changes=True"
    ):
        fit(tmp_path, 3, loss=now)


def test_a_function_is_known_by_what_it_does_and_not_by_its_place():
    def made(text, **known):
        namespace = {"keras": keras, "__name__": "script", **known}
        exec(text, namespace)
        return code_of(namespace["loss"])

    first = "def loss(y, p):\n    return SCALE * helper(y - p)\ndef helper(x):\n    return x * x\n"
    same = "# A comment.\n\n\ndef loss(y, p):\n    return SCALE * helper(y - p)\n\n\ndef helper(x):\n    return x * x  # here, too\n"
    assert made(first, SCALE=1.0) == made(same, SCALE=1.0) != {}
    assert made(first, SCALE=1.0) != made(first, SCALE=2.0)
    assert made(first, SCALE=1.0) != made(first.replace("x * x", "x * x * x"), SCALE=1.0)
    assert code_of(keras.losses.mean_squared_error) == code_of(Halves) == code_of(3) == {}

    def itself(x):
        return itself(x - 1) if x else again

    again = [itself]
    again.append(again)
    assert len(code_of(itself)) == 1


class Decays(keras.optimizers.SGD):
    """Says nothing of its number."""

    def __init__(self, scale):
        super().__init__(0.01)
        self._scale = scale


def left_out(*names):
    optimizer = keras.optimizers.AdamW(0.01)
    optimizer.exclude_from_weight_decay(var_names=names)
    return optimizer


@pytest.mark.backends
@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (lambda: Decays(1.0), lambda: Decays(2.0), "scale was 1 and is 2"),
        (left_out, lambda: left_out("bias"), "it does not decay dense/bias any more"),
    ],
)
def test_a_number_of_an_optimizer_that_its_config_does_not_show_is_held(tmp_path, before, now, said):
    fit(tmp_path, 1, before())
    fit(tmp_path, 2, before())
    with pytest.raises(CheckpointError, match=f"other numbers: (the optimizer's|of the optimizer,) {said}"):
        fit(tmp_path, 3, now())


class Start:
    """Builds, compiles and trains a model up to an epoch, in one folder."""

    def __init__(self, folder):
        self.folder, self.data = folder, batches()

    def __call__(self, epochs, model, loss_weights=None, callbacks=(), class_weight=None, **options):
        if not model.compiled:
            model.compile("sgd", "mse", loss_weights=loss_weights, jit_compile=False)
        resume = Resume(self.folder, background=False, every=1, **options)
        arguments = {"epochs": epochs, "steps_per_epoch": 2, "verbose": 0, "class_weight": class_weight}
        arguments |= resume.fit_arguments()
        try:
            model.fit(resume.data(self.data), callbacks=[*callbacks, resume], **arguments)
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


def test_weights_of_classes_are_held(start):
    """Of whole numbers, as labels are."""

    def to_labels(step):
        x, y = batches()(step)
        return x, (y > 0).astype("int32")

    start.data = to_labels
    start(1, layers(), class_weight={0: 1.0, 1: 2.0})
    start(2, layers(), class_weight={1: 2, 0: 1})
    with pytest.raises(CheckpointError, match="fit's class_weight was {'0': 1.0, '1': 2.0} and is {}"):
        start(3, layers())


class Block(keras.layers.Layer):
    """Of a user's: its config says nothing of what it holds."""

    def __init__(self, rate=0.1, power=1.0, active="relu", parts=1):
        super().__init__()
        self.parts = [keras.layers.Dense(3, activation=active) for _ in range(parts)]
        self.drops = {"first": keras.layers.Dropout(rate)}
        self._power, self.steps, self.seed_of_mine = power, 0, np.random.randint(1000)

    def call(self, x, training=None):
        self.steps += 1
        for part in self.parts:
            x = part(x)
        return self.drops["first"](x, training=training) * self._power + 0 * self.seed_of_mine

    def get_config(self):
        return {}


def frozen(layer):
    layer.parts[0].trainable = False
    return layer


def wave(x):
    return keras.ops.sin(x)


def fast_wave(x):
    return keras.ops.sin(2 * x)


fast_wave.__name__ = "wave"


@pytest.mark.backends
@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (Block, lambda: Block(rate=0.5), "layers.0.drops.first.rate was 0.1 and is 0.5"),
        (Block, lambda: Block(power=2.0), "layers.0.power was 1 and is 2"),
        (Block, lambda: Block(active="tanh"), "layers.0.parts.0.activation was 'relu' and is 'tanh'"),
        (Block, lambda: frozen(Block()), "layers.0.parts.0.trainable was True and is False"),
        (lambda: Block(active=wave), lambda: Block(active=fast_wave), "layers.0.parts.0.activation.code in"),
        (lambda: dense(wave), lambda: dense(fast_wave), "layers.0.activation.code in Python"),
        (
            lambda: keras.layers.Lambda(lambda x: 2 * x),
            lambda: keras.layers.Lambda(lambda x: 3 * x),
            "layers.0.function.code",
        ),
        (
            lambda: keras.layers.Dense(3, activation=lambda x: 2 * x),
            lambda: keras.layers.Dense(3, activation=lambda x: 3 * x),
            "layers.0.activation.code",
        ),
    ],
    ids=["rate", "number", "activation", "frozen", "function within", "function", "Lambda", "lambda"],
)
def test_what_a_config_does_not_say_of_a_model_is_held(start, before, now, said):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*lambda.*")
        start(1, layers(before()))
        start(2, layers(before()))
        with pytest.raises(CheckpointError, match=f"other parts: the model's {said}"):
            start(3, layers(now()))


def test_a_model_of_a_users_class_is_held_by_its_layers(start):
    class Model(keras.Model):
        def __init__(self, rate):
            super().__init__()
            self.drop, self.out = keras.layers.Dropout(rate), keras.layers.Dense(1)

        def call(self, x, training=None):
            return self.out(self.drop(x, training=training))

    start(1, Model(0.1))
    start(2, Model(0.1))
    with pytest.raises(CheckpointError, match="other parts: the model's drop.rate was 0.1 and is 0.5. Give"):
        start(3, Model(0.5))


def test_what_training_changes_of_a_users_layer_is_no_other_model(start):
    class Thaw(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.layers[0].drops["first"].rate = 0.5
            self.model.layers[0]._power = 3.0

    model = layers(Block())
    with pytest.warns(UserWarning, match=r"_power.*: changed by training, and not in the checkpoints"):
        start(1, model, callbacks=[Thaw()])
    model.predict(np.ones((2, 3)), verbose=0)  # which counts its steps, too
    start(2, model)
    start(3, layers(Block()))
    with pytest.raises(CheckpointError, match="layers.0.power was 1 and is 2"):
        start(4, layers(Block(power=2.0)))


def test_a_function_without_a_name_may_stand_on_another_line(start):
    """Keras writes the code of a lambda with the number of its line."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*lambda.*")
        start(1, layers(keras.layers.Dense(3, activation=lambda x: 2 * x)))
        start(2, layers(keras.layers.Dense(3, activation=lambda x: 2 * x)))


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
