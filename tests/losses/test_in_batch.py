"""The loss of vectors in a batch against its formula in float64, in value and gradient."""

import keras
import numpy as np
import pytest

from keras_seqlm.losses import InBatchNegatives

BACKEND = keras.backend.backend()


def by_the_formula(ids, z, temperature):
    """Losses of the rows, row by row; NaN where a row has no other of its id."""
    found = []
    for i, id_ in enumerate(ids):
        others = [k for k in range(len(ids)) if k != i and ids[k] != -1]
        same = [k for k in others if ids[k] == id_ and id_ != -1]
        denominator = sum(np.exp(z[i] @ z[k] / temperature) for k in others)
        terms = [-np.log(np.exp(z[i] @ z[k] / temperature) / denominator) for k in same]
        found.append(np.mean(terms) if terms else np.nan)
    return np.array(found)


def problem(ids, seed=0):
    z = np.random.default_rng(seed).standard_normal((len(ids), 5))
    return np.array(ids, "int32"), z / np.linalg.norm(z, axis=1, keepdims=True)


IDS = {
    "pairs": [0, 0, 1, 1, 2, 2],
    "classes": [3, 1, 3, 3, 1, 1, 3],
    "one is alone": [0, 0, 5, 1, 1],
    "one is not there": [0, 0, -1, -1, 1, 1],
    "a single class": [4, 4, 4],
}


@pytest.mark.backends
@pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
def test_value_and_gradient_are_those_of_the_formula(ids):
    ids, z = problem(ids)
    for temperature in (0.05, 0.5):
        expected = np.nanmean(by_the_formula(ids, z, temperature))
        value, gradient = value_and_gradient(InBatchNegatives(temperature), ids, z.astype("float32"))
        assert value == pytest.approx(expected, rel=1e-4, abs=1e-6)
        for place in [(0, 0), (1, 3), (2, 1)]:
            step = np.zeros_like(z)
            step[place] = 1e-6
            ahead, behind = (np.nanmean(by_the_formula(ids, z + d, temperature)) for d in (step, -step))
            assert gradient[place] == pytest.approx((ahead - behind) / 2e-6, rel=1e-2, abs=1e-4)


def value_and_gradient(loss, ids, z):
    z = keras.ops.convert_to_tensor(z)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(z)
            value = loss(ids, z)
        return float(value), tape.gradient(value, z).numpy()
    if BACKEND == "jax":
        import jax

        value, gradient = jax.value_and_grad(lambda z: loss(ids, z))(z)
        return float(value), np.asarray(gradient)
    z = z.detach().requires_grad_()
    value = loss(ids, z)
    value.backward()
    return float(value.detach()), z.grad.cpu().numpy()


@pytest.mark.backends
def test_rows_that_weigh_nothing_are_not_there():
    ids, z = problem([0, 0, 1, 1, 1, 0])
    loss = InBatchNegatives()
    weighed = loss(ids, z.astype("float32"), sample_weight=np.array([1, 1, 1, 1, 0, 0], "float32"))
    assert float(weighed) == pytest.approx(by_the_formula(ids[:4], z[:4], 0.05).mean(), rel=1e-4)
    doubled = loss(ids[:4, None], z[:4].astype("float32"), sample_weight=np.array([2, 2, 0.5, 0.5], "float32"))
    expected = (by_the_formula(ids[:4], z[:4], 0.05) * [2, 2, 0.5, 0.5]).mean()
    assert float(doubled) == pytest.approx(expected, rel=1e-4)


@pytest.mark.backends
def test_without_any_of_one_id_it_is_0():
    ids, z = problem([0, 1, 2])
    value, gradient = value_and_gradient(InBatchNegatives(), ids, z.astype("float32"))
    assert value == 0 and (gradient == 0).all()
    sums = InBatchNegatives(reduction="sum")(*(lambda a: (a[0], a[1].astype("float32")))(problem(IDS["pairs"])))
    assert float(sums) == pytest.approx(by_the_formula(*problem(IDS["pairs"]), 0.05).sum(), rel=1e-4)


def test_config_and_what_is_refused():
    loss = keras.losses.deserialize(keras.losses.serialize(InBatchNegatives(0.1)))
    assert loss.temperature == 0.1
    with pytest.raises(ValueError, match="temperature"):
        InBatchNegatives(0)
