"""What a loss counts in `fit`, `evaluate` and accumulated updates, held against NumPy's float64, by a model of one matrix."""

import functools

import keras
import numpy as np
import pytest
from cases import on_all
from helpers import array
from keras import ops

from keras_seqlm.losses import CrossEntropy, FusedCrossEntropy
from keras_seqlm.models import LanguageModel
from keras_seqlm.training import SafeOptimizer

pytestmark = pytest.mark.neutral

ROWS, TIME, WORDS = 4, 6, 7
KERAS = functools.partial(keras.losses.SparseCategoricalCrossentropy, from_logits=True)
SMALL_CHUNKS = functools.partial(FusedCrossEntropy, chunk_size=8)


@keras.saving.register_keras_serializable("tests")
class Bigram(LanguageModel):
    """The logits of what follows a word are its row of one matrix."""

    def __init__(self, vocabulary_size, name=None, dtype=None, trainable=True):
        super().__init__(name=name, dtype=dtype, trainable=trainable)
        self.vocabulary_size = vocabulary_size
        self.matrix = keras.layers.Dense(vocabulary_size, use_bias=False, dtype=self.dtype_policy)

    def build(self, inputs_shape=None, state_shape=None):
        self.matrix.build((None, None, self.vocabulary_size))
        self.built = True

    def hidden_states(self, inputs, state=None, training=None):
        return ops.one_hot(inputs["token_ids"], self.vocabulary_size, dtype=self.compute_dtype), None

    def projection(self):
        return self.matrix, None


def new_model(loss, optimizer=None, **options):
    model = Bigram(WORDS)
    model.build()
    model.matrix.kernel.assign(np.random.default_rng(1).standard_normal((WORDS, WORDS)))
    jit = keras.backend.backend() == "jax"
    model.compile(optimizer or keras.optimizers.SGD(1.0), loss, jit_compile=jit, **options)
    return model


def batch(seed=0, rows=ROWS, time=TIME):
    random = np.random.default_rng(seed)
    x, y = (random.integers(0, WORDS, (rows, time)).astype("int32") for _ in range(2))
    lengths = random.integers(1, time + 1, rows).astype("int32")
    weights = random.random((rows, time)).astype("float32")
    return x, y, lengths, weights, (np.arange(time) < lengths[:, None]).astype("float64")


def by_hand(matrix, x, y, weights, divisor):
    """The weighted sum of losses over the divisor, and its gradient."""
    logits = matrix.astype("float64")[x]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    weights = weights / divisor
    label = np.eye(WORDS)[np.where(weights > 0, y, 0)]
    d_logits = (np.exp(log_p) - label) * weights[..., None]
    return -((label * log_p).sum(-1) * weights).sum(), np.einsum("btv,btw->vw", np.eye(WORDS)[x], d_logits)


def assert_trains_by_hand(model, inputs, x, y, sample_weight, weights, divisor):
    """The loss of `evaluate`, and the loss and the matrix of an update."""
    before = array(model.matrix.kernel)
    loss, gradient = by_hand(before, x, y, weights, divisor)
    if keras.backend.backend() != "jax":  # where it would be compiled by itself
        assert model.test_on_batch(inputs, y, sample_weight) == pytest.approx(loss, rel=1e-5)
    assert model.train_on_batch(inputs, y, sample_weight) == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(array(model.matrix.kernel), before - gradient, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [CrossEntropy, SMALL_CHUNKS, KERAS])
@pytest.mark.parametrize("ignore_class", on_all([None, 5], 1))
def test_padding_weighs_0_and_the_mean_is_over_real_tokens(kind, ignore_class):
    x, y, lengths, _, real = batch()
    counted = real * (y != ignore_class)
    assert 0 < counted.sum() < real.sum() < real.size or ignore_class is None
    y[real == 0] = 99  # padding may hold anything
    model = new_model(kind(ignore_class=ignore_class))
    inputs = {"token_ids": x, "lengths": lengths}
    assert_trains_by_hand(model, inputs, x, y, None, counted, counted.sum())


@pytest.mark.parametrize("kind", [CrossEntropy, SMALL_CHUNKS, KERAS])
@pytest.mark.parametrize("ignore_class", on_all([None, 0], 1))
def test_targets_of_minus_1_weigh_0(kind, ignore_class):
    """With weights, with lengths, and with neither."""
    x, y, lengths, weights, real = batch()
    y[:, 2], y[3, 0] = -1, -1
    counted = (y != -1) & (y != ignore_class)
    assert_trains_by_hand(new_model(kind(ignore_class=ignore_class)), x, x, y, None, counted, counted.sum())
    model = new_model(kind(ignore_class=ignore_class))
    assert_trains_by_hand(model, x, x, y, weights, counted * weights, counted.sum())
    model, counted = new_model(kind(ignore_class=ignore_class)), counted * real
    assert_trains_by_hand(model, {"token_ids": x, "lengths": lengths}, x, y, None, counted, counted.sum())


@pytest.mark.backends
def test_targets_outside_the_vocabulary_are_refused_for_kerass_loss():
    x, y, *_ = batch()
    y[1, 1] = WORDS
    with pytest.raises(ValueError, match="targets must be ids from 0 to 6, or -1 .*the first of them 7"):
        new_model(KERAS()).compute_loss(x, y, ops.zeros((ROWS, TIME, WORDS)))


@pytest.mark.backends
@pytest.mark.parametrize("kind", [CrossEntropy, KERAS])
def test_a_list_of_one_loss_is_that_loss(kind):
    x, y, lengths, _, real = batch()
    assert_trains_by_hand(new_model([kind()]), {"token_ids": x, "lengths": lengths}, x, y, None, real, real.sum())


@pytest.mark.backends
def test_weighted_metrics_leave_padding_out():
    x, y, lengths, _, real = batch()
    metric = keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="nats")
    model = new_model(CrossEntropy(), keras.optimizers.SGD(0.0), weighted_metrics=[metric])
    expected, _ = by_hand(array(model.matrix.kernel), x, y, real, real.sum())
    found = model.train_on_batch({"token_ids": x, "lengths": lengths}, y, return_dict=True)
    assert found["nats"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", [CrossEntropy, SMALL_CHUNKS, KERAS])
@pytest.mark.parametrize("reduction", ["sum", "mean_with_sample_weight"])
def test_padding_in_other_reductions(kind, reduction):
    x, y, lengths, _, real = batch()
    model = new_model(kind(reduction=reduction))
    divisor = 1 if reduction == "sum" else real.sum()
    assert_trains_by_hand(model, {"token_ids": x, "lengths": lengths}, x, y, None, real, divisor)


@pytest.mark.parametrize("kind", [CrossEntropy, SMALL_CHUNKS, KERAS])
def test_given_weights_alone_say_what_counts(kind):
    x, y, lengths, weights, _ = batch()
    model = new_model(kind())
    assert_trains_by_hand(model, {"token_ids": x, "lengths": lengths}, x, y, weights, weights, x.size)


@pytest.mark.backends
@pytest.mark.parametrize("kind", [CrossEntropy, SMALL_CHUNKS, KERAS])
def test_a_weight_a_row_where_there_are_as_many_rows_as_tokens(kind):
    x, y, _, weights, _ = batch(rows=TIME)
    rows = weights[0]
    weights = rows[:, None] * (y != 5)
    for reduction, divisor in (("sum_over_batch_size", (y != 5).sum()), ("sum", 1)):
        model = new_model(kind(ignore_class=5, reduction=reduction))
        assert_trains_by_hand(model, x, x, y, rows, weights, divisor)


@pytest.mark.parametrize("kind", [CrossEntropy, SMALL_CHUNKS, KERAS])
def test_fit_and_evaluate_know_lengths(kind):
    x, y, lengths, _, real = batch()
    model = new_model(kind(), keras.optimizers.SGD(0.0))
    expected, _ = by_hand(array(model.matrix.kernel), x, y, real, real.sum())
    inputs = {"token_ids": x, "lengths": lengths}
    history = model.fit(inputs, y, batch_size=ROWS, validation_data=(inputs, y), verbose=0).history
    assert [*history["loss"], *history["val_loss"]] == pytest.approx([expected] * 2, rel=1e-5)
    assert model.evaluate(inputs, y, batch_size=ROWS, verbose=0) == pytest.approx(expected, rel=1e-5)


def test_a_loss_of_the_users_own_is_given_what_the_step_was():
    seen = []

    class Own(keras.losses.Loss):
        def __call__(self, y_true, y_pred, sample_weight=None):
            seen.append(sample_weight)
            return super().__call__(y_true, y_pred, sample_weight)

        def call(self, y_true, y_pred):  # one number a row
            return ops.mean(ops.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True), axis=-1)

    x, y, lengths, weights, _ = batch()
    model = new_model(Own(), run_eagerly=True)
    with pytest.warns(UserWarning, match="the loss Own counts padding.*Give sample_weight"):
        model.test_on_batch({"token_ids": x, "lengths": lengths}, y)
    expected = sum(
        by_hand(array(model.matrix.kernel), x[i : i + 1], y[i : i + 1], weights[i, 0], TIME)[0] for i in range(ROWS)
    )
    assert model.test_on_batch(x, y, weights[:, 0]) == pytest.approx(expected / ROWS, rel=1e-5)
    assert seen[-2] is None and tuple(seen[-1].shape) == (ROWS,)


def accumulating(kind=keras.optimizers.SGD, **options):
    return kind(1.0, gradient_accumulation_steps=3, **options)


@pytest.mark.backends
@pytest.mark.parametrize(
    ("loss", "masked_by"),
    [
        (CrossEntropy(), "-1"),
        (CrossEntropy(ignore_class=5), "ignore_class"),
        (SMALL_CHUNKS(), "lengths"),
        (KERAS(ignore_class=5), "lengths"),
        (KERAS(reduction="mean_with_sample_weight"), "weights"),
        (SMALL_CHUNKS(reduction="sum"), "lengths"),
    ],
)
def test_accumulated_batches_are_one(loss, masked_by, tmp_path):
    """Two updates of three batches each, of unequally many tokens that count; the model is read from a file in between."""
    model = new_model(type(loss).from_config(loss.get_config()), accumulating(global_clipnorm=0.3))
    matrix, everything = array(model.matrix.kernel).astype("float64"), []
    for step in range(6):
        x, y, lengths, weights, real = batch(seed=step)
        counted = (y != loss.ignore_class) * (real if masked_by == "lengths" else 1.0)
        inputs = {"token_ids": x, "lengths": lengths} if masked_by == "lengths" else x
        given = counted * weights if masked_by == "weights" else None
        targets = np.where(real > 0, y, -1) if masked_by == "-1" else y
        if masked_by == "-1":
            counted = real
        elif masked_by == "weights":
            counted = given
        if loss.reduction != "sum":
            shown, _ = by_hand(array(model.matrix.kernel), x, y, counted, counted.sum())
            assert model.train_on_batch(inputs, targets, given) == pytest.approx(shown, rel=1e-5)
        else:
            model.train_on_batch(inputs, targets, given)
        everything.append((x, y, counted))
        if step == 3:
            model.save(tmp_path / "model.keras")
            model = keras.saving.load_model(tmp_path / "model.keras")
            model.jit_compile = keras.backend.backend() == "jax"
        if step % 3 == 2:
            x, y, counted = (np.concatenate(parts) for parts in zip(*everything, strict=True))
            _, gradient = by_hand(matrix, x, y, counted, 3 if loss.reduction == "sum" else counted.sum())
            matrix -= gradient * min(1.0, 0.3 / np.linalg.norm(gradient))
            everything = []
        np.testing.assert_allclose(array(model.matrix.kernel), matrix, rtol=0, atol=1e-5)


def test_an_update_left_out_takes_no_part_in_the_mean():
    model = new_model(CrossEntropy(), SafeOptimizer(accumulating()))
    matrix = array(model.matrix.kernel)
    for step in range(3):
        x, y, lengths, _, real = batch(seed=step)
        weights = None if step else np.full((ROWS, TIME), np.inf, "float32")
        model.train_on_batch({"token_ids": x, "lengths": lengths}, y, weights)
    parts = [batch(seed=step) for step in (1, 2)]
    x, y, real = (np.concatenate([part[i] for part in parts]) for i in (0, 1, 4))
    expected = matrix - by_hand(matrix, x, y, real, real.sum())[1]
    np.testing.assert_allclose(array(model.matrix.kernel), expected, rtol=0, atol=1e-5)


@pytest.mark.backends
def test_class_weight_is_refused():
    x, y, *_ = batch()
    model = new_model(CrossEntropy())
    positional = (x, y, 4, 1, 0, None, 0.0, None, True, {1: 2.0})
    for refused in (
        lambda: model.fit(x, y, class_weight={1: 2.0}),
        lambda: model.fit(*positional),
        lambda: model.train_on_batch(x, y, class_weight={1: 2.0}),
    ):
        with pytest.raises(
            ValueError, match=r"class_weight is for one class a row.*sample_weight of shape \(batch, time\)"
        ):
            refused()
    model.train_on_batch(x, y, class_weight=None)


@pytest.mark.backends
@pytest.mark.parametrize(
    "loss",
    [
        "sparse_categorical_crossentropy",
        "SparseCategoricalCrossentropy",
        keras.losses.sparse_categorical_crossentropy,
        keras.losses.SparseCategoricalCrossentropy(),
        keras.losses.CategoricalCrossentropy(),
    ],
)
def test_a_loss_of_probabilities_is_warned_of(loss):
    with pytest.warns(UserWarning, match=r"Bigram gives logits.*SparseCategoricalCrossentropy\(from_logits=True\)"):
        new_model(loss)


def test_other_losses_are_not_warned_of(recwarn):
    def my_crossentropy(y_true, y_pred):
        return ops.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)

    for loss in (KERAS(), CrossEntropy(), SMALL_CHUNKS(), "mse", my_crossentropy, None):
        new_model(loss)
    assert not [warning for warning in recwarn if "logits" in str(warning.message)]


@pytest.mark.backends
@pytest.mark.parametrize("optimizer", ["adam", keras.optimizers.AdamW, keras.optimizers.Nadam])
def test_decay_rates_that_bfloat16_rounds_to_1_are_refused(optimizer):
    """beta_2 is 0.999 in Keras; the weights would never move."""
    model = Bigram(WORDS, dtype="bfloat16")
    optimizer = optimizer if isinstance(optimizer, str) else SafeOptimizer(optimizer(0.1))
    with pytest.raises(ValueError, match="beta_2=0.999, which bfloat16 rounds to 1.*use at most 0.996"):
        model.compile(optimizer, CrossEntropy())
    Bigram(WORDS, dtype="mixed_bfloat16").compile("adam", CrossEntropy())
    model.compile("sgd", CrossEntropy())


@pytest.mark.backends
def test_weights_in_bfloat16_move():
    import ml_dtypes

    adam = keras.optimizers.Adam(0.1, beta_2=0.99)
    model = Bigram(WORDS, dtype="bfloat16")
    model.compile(adam, CrossEntropy(), jit_compile=keras.backend.backend() == "jax")
    x, y, *_ = batch()
    losses = [model.train_on_batch(x, y) for _ in range(6)]
    assert losses[-1] < losses[0] - 0.2
    rounds = [0.996, 0.998, 0.9981, 0.999]  # the border is where ml_dtypes has it
    assert [float(ml_dtypes.bfloat16(beta)) == 1.0 for beta in rounds] == [False, False, True, True]
    for beta, lost in zip(rounds, (False, False, True, True), strict=True):
        optimizer = keras.optimizers.Adam(0.1, beta_2=beta)
        if lost:
            with pytest.raises(ValueError, match="rounds to 1"):
                model.compile(optimizer, CrossEntropy())
        else:
            model.compile(optimizer, CrossEntropy())
