"""Whose numbers are whose: a checkpoint's variables are known by their paths, and what is not finite is seen."""

import keras
import ml_dtypes
import numpy as np
import pytest
from helpers import array

from keras_seqlm.checkpoints import Checkpoints, copies, state

pytestmark = pytest.mark.backends


class Stack(keras.Model):
    """Two dense layers of the same shape for each name, made in this order; layers of one name have the same paths."""

    def __init__(self, names, **options):
        super().__init__(**options)
        self.dense = [keras.layers.Dense(3, name=name) for name in names for _ in range(2)]
        self.build((None, 3))

    def build(self, shape):
        for layer in self.dense:
            layer.build(shape)
        self.built = True

    def call(self, x):
        for layer in self.dense:
            x = layer(x)
        return x


def stack(*names):
    model = Stack(names, name="stack")
    model.compile(keras.optimizers.Adam(0.1, name="adam"), "mse", jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    return model


def numbered(model):
    """Gives each variable of a model and of its optimizer numbers of its own; the two lists of them."""
    for number, variable in enumerate([*model.variables, *model.optimizer.variables]):
        if len(variable.shape):
            variable.assign(np.full(variable.shape, number + 1.0, "float32"))
    return model


def saved(folder, model):
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, copies.to_host(state.arrays_of(model)), state.identity_of(model))
    return checkpoints.read(1)


def by_layer(model, name):
    """The numbers of the two layers of a name, in their order: each weight, and the slots of it."""
    return [
        [
            float(array(variable).mean())
            for variable in [*model.variables, *model.optimizer.variables]
            if part in variable.path
        ]
        for part in (f"{name}/kernel", f"{name}/bias", f"{name}_kernel", f"{name}_bias")
    ]


def test_variables_are_known_by_their_paths_and_those_of_one_path_by_their_order(tmp_path):
    """Twice two layers: where "a" and "b" change places, each keeps its own, the first of a name the first one's."""
    model = numbered(stack("a", "b"))
    paths = [variable.path for variable in model.variables]
    assert len(set(paths)) == 4 and len(paths) == 8
    found = saved(tmp_path, model)
    for names in (("a", "b"), ("b", "a")):
        again = stack(*names)
        state.assign(again, state.read(again, found))
        for name in names:
            assert by_layer(again, name) == by_layer(model, name), (names, name)
            assert all(len(set(numbers)) == len(numbers) > 1 for numbers in by_layer(again, name))


def test_a_variable_of_another_name_is_no_other_ones(tmp_path):
    """As many variables of the same shapes in the same order are no reason."""
    found = saved(tmp_path, numbered(stack("a", "b")))
    other = stack("a", "c")
    before = [array(variable).copy() for variable in other.variables]
    with pytest.raises(
        ValueError, match="stack/c/kernel is not in the checkpoint.*stack/b/kernel is in the checkpoint alone"
    ):
        state.assign(other, state.read(other, found))
    assert all((array(variable) == value).all() for variable, value in zip(other.variables, before, strict=True))


@pytest.mark.parametrize("name", ["model/00000", "optimizer/00002"])
@pytest.mark.parametrize("dtype", ["float32", ml_dtypes.bfloat16])
def test_what_is_not_finite_is_seen_in_weights_and_in_slots(name, dtype):
    arrays = {"model/00000": np.ones(3, dtype), "optimizer/00002": np.ones((2, 2), dtype), "metrics/00000": np.ones(2)}
    assert state.is_finite(arrays)
    for value in (np.nan, np.inf, -np.inf):
        bad = arrays[name].copy()
        bad.flat[-1] = value
        assert not state.is_finite({**arrays, name: bad})
    # The norm of a gradient that was left out, and a mean of losses, may be what they are.
    assert state.is_finite(
        {**arrays, "optimizer/00003": np.asarray(np.nan, "float32"), "metrics/00000": np.full(2, np.nan)}
    )
    assert state.is_finite({**arrays, "optimizer/00004": np.asarray([1, 2])})
