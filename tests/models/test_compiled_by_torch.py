"""`compile(jit_compile=True)` on torch: compiled once, and the numbers of the eager step."""

import functools

import keras
import numpy as np
import pytest
from helpers import ids_of, new_model

from keras_seqlm.losses import FusedCrossEntropy

pytestmark = [
    pytest.mark.backends,
    pytest.mark.skipif(keras.backend.backend() != "torch", reason="torch's compiler"),
]


@pytest.fixture
def traced_only(monkeypatch):
    """torch's compiler up to the point where it would have machine code made, which takes minutes."""
    import torch

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    return torch._dynamo.utils.counters


@pytest.mark.parametrize("name", ["rotary", "learned"])
@pytest.mark.parametrize("fused", [True, False])
def test_a_step_is_traced_once_and_whole(name, fused, traced_only):
    def losses(jit_compile, steps=4):
        keras.utils.set_random_seed(3)
        model = new_model(name)
        loss = FusedCrossEntropy() if fused else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(1e-2), loss=loss, jit_compile=jit_compile)
        batches = [ids_of(4, 13, seed=seed) for seed in range(steps)]
        return [model.train_on_batch(ids[:, :-1], ids[:, 1:]) for ids in batches]

    eager = losses(False)
    assert not traced_only["stats"]
    compiled = losses(True)
    np.testing.assert_allclose(compiled, eager, atol=2e-5)
    assert traced_only["stats"]["unique_graphs"] == 1 and not traced_only["graph_break"]


def test_dropout_is_of_training_alone(traced_only):
    ids, losses = ids_of(4, 13), {}
    for jit_compile in (False, True):
        model = new_model("learned", dropout=0.5)
        model.compile(keras.optimizers.SGD(0.0), loss=FusedCrossEntropy(), jit_compile=jit_compile)
        step = {"train": model.train_on_batch, "test": model.test_on_batch}
        losses[jit_compile] = [step[kind](ids[:, :-1], ids[:, 1:]) for kind in ("test", "train", "train", "test")]
    assert losses[True][0] == losses[True][3] == pytest.approx(losses[False][0], abs=1e-5)
    assert len({round(loss, 3) for loss in losses[True][:3]}) == 3


def test_a_recurrent_model_runs_in_torchs_own_kernels(traced_only):
    model = new_model("lstm")
    model.compile("adam", loss=FusedCrossEntropy(), jit_compile=True)
    ids = ids_of(4, 13)
    assert np.isfinite(model.train_on_batch(ids[:, :-1], ids[:, 1:]))
    assert not traced_only["stats"]
