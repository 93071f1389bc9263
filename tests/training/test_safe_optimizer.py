"""Updates that are not finite are left out, and counted."""

import keras
import numpy as np
import pytest
from helpers import array

from keras_seqlm.training import SafeOptimizer

pytestmark = pytest.mark.neutral


def model_of(optimizer):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(1)])
    model.compile(optimizer, loss="mse", jit_compile=keras.backend.backend() == "jax")
    return model


def batch(step, spoilt=()):
    random = np.random.default_rng(step)
    x = random.standard_normal((8, 4)).astype("float32")
    y = x.sum(axis=1, keepdims=True)
    if step in spoilt:
        x[0, 0] = np.nan
    return x, y


@pytest.mark.parametrize("scale", [1.0, 2.0**10])
def test_row_25_a_bad_batch_changes_nothing_and_is_counted(scale):
    keras.utils.set_random_seed(1)
    model = model_of(SafeOptimizer(keras.optimizers.Adam(0.01), initial_scale=scale))
    optimizer = model.optimizer
    for step in range(6):
        before = [array(v) for v in (*model.variables, *optimizer.inner_optimizer.variables[2:])]
        model.train_on_batch(*batch(step, spoilt=(2, 3)))
        after = [array(v) for v in (*model.variables, *optimizer.inner_optimizer.variables[2:])]
        same = all((a == b).all() for a, b in zip(before, after, strict=False) if a.size)
        assert same == (step in (2, 3)) or not before[4:]
        counts = [int(array(v)) for v in (optimizer.skipped, optimizer.skipped_in_a_row, optimizer.last_skipped)]
        assert counts == [[0, 0, -1], [0, 0, -1], [1, 1, 2], [2, 2, 3], [2, 0, 3], [2, 0, 3]][step]
        assert int(array(optimizer.iterations)) == step + 1
        assert np.isfinite(array(optimizer.gradient_norm)) == (step not in (2, 3))
    if scale > 1:
        assert float(array(optimizer.dynamic_scale)) == scale / 4


def test_good_batches_train_as_without_it():
    weights = []
    for wrap in (lambda inner: inner, SafeOptimizer):
        keras.utils.set_random_seed(2)
        model = model_of(wrap(keras.optimizers.AdamW(0.01, weight_decay=0.1, global_clipnorm=0.5)))
        for step in range(5):
            model.train_on_batch(*batch(step))
        weights.append([array(v) for v in model.variables])
    for left, right in zip(*weights, strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-7)


def test_the_norm_is_that_of_the_gradient_before_clipping():
    optimizer = SafeOptimizer(keras.optimizers.SGD(0.1, global_clipnorm=1.0))
    weights = [keras.Variable(np.zeros(2, "float32")), keras.Variable(np.zeros((2, 2), "float32"))]
    gradients = [np.array([3.0, 0.0], "float32"), np.array([[0.0, 4.0], [0.0, 0.0]], "float32")]
    optimizer.apply([keras.ops.convert_to_tensor(gradient) for gradient in gradients], weights)
    assert float(array(optimizer.gradient_norm)) == pytest.approx(5.0)
    np.testing.assert_allclose(array(weights[0]), [-0.06, 0.0], atol=1e-6)


def test_accumulated_gradients_leave_a_bad_one_out():
    keras.utils.set_random_seed(3)
    model = model_of(SafeOptimizer(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)))
    for step in range(4):
        model.train_on_batch(*batch(step, spoilt=(0,)))
    assert all(np.isfinite(array(v)).all() for v in model.variables)
    assert int(array(model.optimizer.skipped)) == 1


def test_an_update_whose_last_gradient_is_bad_does_not_go_into_the_next():
    weights = []
    for steps in ((0, 1, 2, 3), (2, 3)):
        keras.utils.set_random_seed(3)
        model = model_of(SafeOptimizer(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)))
        for step in steps:
            model.train_on_batch(*batch(step, spoilt=(1,)))
        weights.append([array(v) for v in model.variables])
    for left, right in zip(*weights, strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-7)


def test_a_file_keeps_it(tmp_path):
    model = model_of(SafeOptimizer(keras.optimizers.Adam(0.01)))
    for step in range(3):
        model.train_on_batch(*batch(step, spoilt=(1,)))
    model.save(tmp_path / "model.keras")
    read = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(read.optimizer, SafeOptimizer) and int(array(read.optimizer.skipped)) == 1
    left, right = (float(m.train_on_batch(*batch(3))) for m in (model, read))
    assert left == pytest.approx(right, rel=1e-6)
