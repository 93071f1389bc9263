"""A run that goes on within an epoch: what its layers carry has moved no further, and its metrics are those of the whole epoch."""

import json

import keras
import numpy as np
import pytest
from helpers import array

from keras_seqlm.training import Checkpoints, Resume, RollBack
from keras_seqlm.training.callbacks import RunCallback
from keras_seqlm.training.epoch_metrics import kinds_of_metrics

pytestmark = [pytest.mark.neutral, pytest.mark.usefixtures("eager_steps")]


class Killed(Exception):
    """In place of a `kill -9`."""


class KillAt(keras.callbacks.Callback):
    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def get_state(self):
        return {}

    def set_state(self, state):
        pass

    def on_train_batch_end(self, batch, logs=None):
        if batch + 1 == self.batch:
            raise Killed


class Counts(keras.layers.Layer):
    """As a codebook or a running mean, in inference, too."""

    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.calls.assign(self.calls + 1.0)
        return x * (1 + 0.01 * self.calls)


class AlwaysDrops(keras.layers.Dropout):
    def call(self, x, training=None):
        return super().call(x, training=True)


def batch(step):
    x = np.random.default_rng([7, step]).standard_normal((4, 5)).astype("float32")
    return x, x.sum(axis=1, keepdims=True)


def batch_of_two(step):
    x, y = batch(step)
    return x, {"p": y, "q": -y}


def one_output(*layers):
    return keras.Sequential([keras.Input((5,)), *layers, keras.layers.Dense(1)])


def two_outputs():
    inputs = keras.Input((5,))
    return keras.Model(inputs, {name: keras.layers.Dense(1, name=name)(inputs) for name in ("p", "q")})


def stateful():
    """Keras's own layers, whose states are not among `model.variables`."""
    steps, layer = keras.layers.Reshape((5, 1)), keras.layers.Bidirectional(keras.layers.LSTM(3, stateful=True))
    layer.trainable = keras.backend.backend() != "torch"  # where Keras itself cannot train it
    return keras.Sequential([keras.Input((5,), batch_size=4), steps, layer, keras.layers.Dense(1)])


def go(folder, build, compiled, kill=None, data=batch, by_hand=False):
    """Train three epochs of ten steps in `folder`, or go on; gives the row of each epoch, and the weights."""
    keras.utils.set_random_seed(3)
    model = build()
    model.compile("sgd", **compiled)
    resume, rows = Resume(folder, every=5, background=False), {}
    if by_hand:
        resume.restore(model)
    row = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: rows.update({epoch: logs}))
    fit = {"epochs": 3, "steps_per_epoch": 10, "verbose": 0, **resume.fit_arguments()}
    try:
        model.fit(resume.data(data), callbacks=[*([] if kill is None else [KillAt(kill)]), row, resume], **fit)
    except Killed:
        resume.close()
    return rows, [array(variable) for variable in model.variables]


def same(left, right):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "build, compiled, data",
    [
        (lambda: one_output(Counts()), {"loss": "mse", "metrics": ["mae"]}, batch),
        (lambda: one_output(AlwaysDrops(0.3)), {"loss": "mse", "metrics": ["mae"]}, batch),
        (stateful, {"loss": "mse", "metrics": ["mae"]}, batch),
        (two_outputs, {"loss": {"p": "mse", "q": "mae"}}, batch_of_two),
        (two_outputs, {"loss": {"p": "mse", "q": "mae"}, "metrics": {"p": ["mse"], "q": ["mse"]}}, batch_of_two),
    ],
    ids=[
        "a layer that counts",
        "dropout in inference, too",
        "LSTM(stateful=True)",
        "two losses",
        "two losses with metrics",
    ],
)
def test_a_run_that_goes_on_within_an_epoch_is_the_one_left_alone(tmp_path, build, compiled, data):
    rows, weights = go(tmp_path / "alone", build, compiled, data=data)
    go(tmp_path / "killed", build, compiled, kill=7, data=data)
    again, ended = go(tmp_path / "killed", build, compiled, data=data)
    assert len(rows) == 3 and again == rows
    same(ended, weights)
    if build is not two_outputs:
        go(tmp_path / "by hand", build, compiled, kill=7, data=data)
        again, ended = go(tmp_path / "by hand", build, compiled, data=data, by_hand=True)
        assert again == rows
        same(ended, weights)


def test_states_that_an_older_checkpoint_does_not_hold_are_named(tmp_path):
    go(tmp_path, stateful, {"loss": "mse"}, kill=7)
    checkpoints = Checkpoints(tmp_path)
    found = checkpoints.newest()
    arrays = {name: held for name, held in found.arrays().items() if not name.startswith("carried/")}
    assert len(arrays) == len(found.shapes) - 4
    checkpoints.save(found.step, arrays, found.meta)
    with pytest.warns(UserWarning, match=r"did not save .*lstm.*rnn_state.*zero when the run goes on"):
        go(tmp_path, stateful, {"loss": "mse"})


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX has no variables of its own")
def test_what_layers_keep_in_the_backends_own_way_is_named_where_it_changes(tmp_path, recwarn):
    class Keeps(keras.layers.Layer):
        def __init__(self, counts):
            super().__init__(name="keeps")
            self.counts = counts
            if keras.backend.backend() == "torch":
                import torch

                self.register_buffer("seen", torch.zeros(()))
                self.register_buffer("angles", torch.ones(3))
            else:
                import tensorflow as tf

                self.seen, self.angles = tf.Variable(0.0), tf.Variable([1.0, 1.0, 1.0])

        def call(self, x):
            if self.counts:
                self.seen.add_(1.0) if keras.backend.backend() == "torch" else self.seen.assign_add(1.0)
            return x * self.angles[0]

    go(tmp_path / "still", lambda: one_output(Keeps(False)), {"loss": "mse"})
    assert not [one for one in recwarn if "keeps" in str(one.message)]
    with pytest.warns(UserWarning, match=r"keeps\.seen: changed by training, and not in the checkpoints"):
        go(tmp_path / "counts", lambda: one_output(Keeps(True)), {"loss": "mse"})


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX calls a metric while it compiles")
def test_what_a_metric_keeps_in_a_list_is_named(tmp_path):
    class Lists(keras.metrics.Metric):
        def __init__(self):
            super().__init__(name="lists")
            self.seen = []

        def update_state(self, y_true, y_pred, sample_weight=None):
            self.seen.append(float(keras.ops.convert_to_numpy(y_pred)[0, 0]))

        def reset_state(self):
            self.seen = []

        def result(self):
            return float(np.mean(self.seen or [0.0]))

    compiled = {"loss": "mse", "metrics": [Lists()], "run_eagerly": True}
    with pytest.warns(UserWarning, match=r"lists\.seen: changed by training, and not in the checkpoints"):
        go(tmp_path, one_output, compiled)


def test_what_keras_lists_is_not_named(tmp_path, recwarn):
    class Lists(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)
            self.draws, self.mean = keras.random.SeedGenerator(1), keras.metrics.Mean()
            self.kept = {"count": self.add_weight(shape=(), initializer="zeros", trainable=False)}

        def call(self, x):
            self.count.assign(self.count + 1.0)
            self.kept["count"].assign(self.count)
            if keras.backend.backend() != "jax":  # there Keras cannot run a metric within a layer
                self.mean.update_state(1.0)
            return x + 0.1 * keras.random.normal(keras.ops.shape(x), seed=self.draws)

    go(tmp_path, lambda: one_output(Lists()), {"loss": "mse"})
    assert not [one for one in recwarn if "changed by training" in str(one.message)]


def test_optimizers_in_containers_and_in_layers_are_named(tmp_path):
    class Trains(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="trains")
            self.own = keras.optimizers.SGD()

        def call(self, x):
            return x

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner, self.out = Trains(), keras.layers.Dense(1)
            self.steps = {"critic": keras.optimizers.SGD()}
            self.more = [keras.optimizers.SGD()]

        def call(self, x):
            return self.out(self.inner(x))

    with pytest.warns(UserWarning, match=r"the model's more\.0, steps\.critic, trains\.own are not in the checkpoints"):
        go(tmp_path, Model, {"loss": "mse"})


def test_a_number_that_a_callback_sets_on_an_optimizer_is_named(tmp_path):
    class Clips(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.optimizer.clipnorm = 0.1

    keras.utils.set_random_seed(3)
    model = one_output()
    model.compile("sgd", "mse")
    resume = Resume(tmp_path, background=False)
    fit = {"epochs": 2, "steps_per_epoch": 2, "verbose": 0, **resume.fit_arguments()}
    with pytest.warns(UserWarning, match=r"SGD\.clipnorm: changed by training.*as training begins"):
        model.fit(resume.data(batch), callbacks=[Clips(), resume], **fit)


def test_the_mean_of_another_loss_begins_where_it_does(tmp_path):
    """Five steps of ten were made with a loss that is a thousandth of it."""

    def tiny(y_true, y_pred):
        return 1e-3 * keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1)

    go(tmp_path, one_output, {"loss": tiny, "metrics": ["mae"]}, kill=7)
    first = Checkpoints(tmp_path).newest()
    heard = {}

    class Counts(RunCallback):
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            heard[self.step] = self.steps_in_mean(), dict(logs)

    model = one_output()
    model.compile("sgd", "mse", metrics=["mae"])
    resume = Resume(tmp_path, background=False, allow_changes=True)
    fit = {"epochs": 1, "steps_per_epoch": 10, "verbose": 0, **resume.fit_arguments()}
    with pytest.warns(UserWarning, match="the metric loss, .*of the loss of before: .* counts the steps after 5 alone"):
        history = model.fit(resume.data(batch), callbacks=[Counts(), resume], **fit).history
    assert first.step == 5 and [heard[step][0] for step in range(6, 11)] == [1, 2, 3, 4, 5]
    losses = [heard[6][1]["loss"]]
    losses += [n * heard[5 + n][1]["loss"] - (n - 1) * heard[4 + n][1]["loss"] for n in range(2, 6)]
    np.testing.assert_allclose(history["loss"], np.mean(losses), rtol=1e-4)
    assert history["loss"][0] > 1 and len(history["mae"]) == 1


def test_a_roll_back_does_not_hold_losses_of_before_against_another_loss(tmp_path, capsys):
    def tiny(y_true, y_pred):
        return 1e-3 * keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1)

    def train(loss, epochs, **options):
        keras.utils.set_random_seed(3)
        model = one_output()
        model.compile(keras.optimizers.SGD(1e-3), loss)
        resume = Resume(tmp_path, background=False, **options)
        guard = RollBack(resume, factor=50.0, window=4)
        fit = {"epochs": epochs, "steps_per_epoch": 5, "verbose": 0, **resume.fit_arguments()}
        model.fit(resume.data(batch), callbacks=[guard, resume], **fit)
        return guard

    train(tiny, 1)
    guard = train("mse", 2, allow_changes=True)
    assert guard._times == 0 and "jumped" not in capsys.readouterr().err and min(guard._losses) > 0.1


@pytest.mark.parametrize(
    "before, now",
    [
        ({"metrics": ["mae"]}, {"metrics": ["mse"]}),
        ({}, {"metrics": ["mse"]}),
        ({"metrics": [keras.metrics.MeanSquaredError]}, {"weighted_metrics": [keras.metrics.MeanSquaredError]}),
    ],
    ids=["another one", "one where there was none", "weighted"],
)
def test_a_metric_that_is_new_within_an_epoch_is_named_and_right_after_it(tmp_path, before, now):
    def compiled(metrics):
        made = {name: [one() if isinstance(one, type) else one for one in listed] for name, listed in metrics.items()}
        return {"loss": "mse", **made}

    rows, weights = go(tmp_path / "alone", one_output, compiled(now))
    go(tmp_path / "killed", one_output, compiled(before), kill=7)
    with pytest.warns(
        UserWarning, match="holds nothing of the metric .*m.*began after step 0, it counts the steps after 5 alone"
    ):
        again, ended = go(tmp_path / "killed", one_output, compiled(now))
    assert again[0]["loss"] == rows[0]["loss"]
    assert again[1] == rows[1] and again[2] == rows[2]
    same(ended, weights)


def test_metrics_left_out_or_in_another_order_are_no_news(tmp_path):
    rows, _ = go(tmp_path / "alone", one_output, {"loss": "mse", "metrics": ["mse", "mae"]})
    go(tmp_path / "killed", one_output, {"loss": "mse", "metrics": ["mae", "mse", "mape"]}, kill=7)
    again, _ = go(tmp_path / "killed", one_output, {"loss": "mse", "metrics": ["mse", "mae"]})
    assert again == rows


def test_a_metric_of_one_name_that_counts_otherwise_is_another_one():
    def kinds(*metrics):
        model = one_output()
        model.compile("sgd", "mse", metrics=list(metrics))
        model.train_on_batch(*batch(0))
        return list(kinds_of_metrics(model).values())

    half, most = (keras.metrics.BinaryAccuracy(threshold=threshold) for threshold in (0.5, 0.9))
    assert kinds("mae") == kinds("mae") and kinds(half)[2:] != kinds(most)[2:]


def test_a_checkpoint_that_does_not_say_its_metrics_is_gone_on_with(tmp_path):
    compiled = {"loss": "mse", "metrics": ["mae"]}
    rows, _ = go(tmp_path / "alone", one_output, compiled)
    go(tmp_path / "killed", one_output, compiled, kill=7)
    checkpoints = Checkpoints(tmp_path / "killed")
    found = checkpoints.newest()
    meta = {name: value for name, value in found.meta.items() if name != "metrics"}
    checkpoints.save(found.step, found.arrays(), json.loads(json.dumps(meta)))
    again, _ = go(tmp_path / "killed", one_output, compiled)
    assert again == rows
