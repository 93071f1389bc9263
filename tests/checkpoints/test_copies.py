"""Copies of the state that stay on the accelerator until a thread has brought them to the host."""

import types

import keras
import numpy as np
import pytest

from keras_seqlm.checkpoints import Checkpoints, copies, state
from keras_seqlm.training import Resume

pytestmark = pytest.mark.backends


def make_batch(step):
    x = np.random.default_rng([7, step]).standard_normal((4, 3)).astype("float32")
    return x, x.sum(axis=1, keepdims=True)


def trained(folder, steps=6):
    """A run of that many steps that saves each second one; what the optimizer's steps and weights are at its checkpoints."""
    keras.utils.set_random_seed(5)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.1), "mse")
    resume = Resume(folder, every=2, keep=steps)
    model.fit(
        resume.data(make_batch),
        epochs=1,
        steps_per_epoch=steps,
        verbose=0,
        callbacks=[resume],
        **resume.fit_arguments(),
    )
    return {step: Checkpoints(folder).read(step).arrays() for step in Checkpoints(folder).steps()}


def test_what_is_copied_beside_is_the_state_of_its_step(tmp_path, monkeypatch):
    """Steps that are made before the thread has read the copy do not show in it."""
    expected = trained(tmp_path / "host")
    there = []

    def beside(arrays):
        there.append(len(arrays))
        return {name: keras.ops.copy(array) for name, array in arrays.items()}

    monkeypatch.setattr(copies, "beside", beside)
    found = trained(tmp_path / "beside")
    assert list(found) == list(expected) == [2, 4, 6] and len(there) >= 3
    for step, arrays in expected.items():
        assert set(arrays) == set(found[step])
        for name, array in arrays.items():
            if not name.startswith("random/"):  # those that belong to no model, as Python's
                np.testing.assert_array_equal(found[step][name], array, err_msg=f"{step}: {name}")
    assert not np.array_equal(expected[4]["model/00000"], expected[6]["model/00000"])


def test_the_host_has_arrays_of_its_own():
    """On a CPU at once: what `convert_to_numpy` gives there may be a view of memory that the next step writes to."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    kernel = model.trainable_variables[0]
    before = np.array(keras.ops.convert_to_numpy(kernel))
    arrays = state.arrays_of(model, ("model",))
    kernel.assign(before + 1.0)
    np.testing.assert_array_equal(copies.to_host(arrays)["model/00000"], before)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="each backend counts memory in its own way: JAX here")
def test_a_device_without_room_for_twice_the_state_is_left_alone_on_jax():
    import jax.numpy as jnp

    class Device:
        platform = "gpu"

        def memory_stats(self):
            return self.stats

    device = Device()

    def beside(limit, peak):
        device.stats = {"bytes_limit": limit, "peak_bytes_in_use": peak}

        class Array:
            addressable_shards = [types.SimpleNamespace(device=device, data=types.SimpleNamespace(nbytes=400))]

            def __jax_array__(self):
                return jnp.arange(100)

        return copies.beside({"a": Array(), "b": Array()})

    assert beside(2000, 1300) is None
    found = beside(2000, 1200)
    np.testing.assert_array_equal(found["b"], np.arange(100))


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="each backend counts memory in its own way: torch here")
def test_a_device_without_room_for_twice_the_state_is_left_alone_on_torch(monkeypatch):
    import torch

    class Array:
        is_cuda, nbytes = True, 400

        def detach(self):
            return torch.arange(100)

    def beside(free, reserved, most):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 80000))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: reserved)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: most)
        return copies.beside({"a": Array(), "b": Array()})

    assert beside(300, 1000, 501) is None
    assert torch.equal(beside(300, 1000, 500)["b"], torch.arange(100))
