"""Two devices train as one does: each strategy in a process of its own, with two logical devices of the CPU."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from training_toy import Batches, new_model

from keras_seqlm.training import Recipe
from keras_seqlm.training.distribution import strategy

HERE = pathlib.Path(__file__).parent


def run(backend, distribution):
    environment = {
        **os.environ,
        "KERAS_BACKEND": backend,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": str(HERE.parents[1]),
    }
    command = [sys.executable, str(HERE / "training_toy.py"), distribution]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check_losses(result):
    assert result["replicas"] == 2
    for case, (one, both) in result["losses"].items():
        assert len(one) == len(both) == 10
        assert one[-1] < one[0], f"{case} learned nothing, so that equal losses would say little"
        np.testing.assert_allclose(both, one, rtol=0, atol=1e-5, err_msg=case)


@pytest.mark.slow
def test_mirrored_strategy_trains_as_one_device_does():
    result = run("tensorflow", "mirrored")
    check_losses(result)
    refused = result["refused"]
    assert "with recipe.scope():\n        model = " in refused["outside"]
    assert "stateful_batch_size=None" in refused["carried"]
    assert "use precision='mixed_bfloat16'" in refused["half"]
    assert "multiple of 2" in refused["odd"]
    assert "multiple of 2" in refused["odd scope"]


@pytest.mark.slow
def test_data_parallel_trains_as_one_device_does():
    pytest.importorskip("jax")
    result = run("jax", "data-parallel")
    check_losses(result)
    # On JAX carried state and half precision are right, because the program sees the whole batch.
    assert set(result["refused"]) == {"outside", "odd", "odd scope"}


@pytest.mark.backends
@pytest.mark.parametrize("name, needed", [("mirrored", "tensorflow"), ("data-parallel", "jax")])
def test_a_strategy_of_another_backend_is_refused_with_the_way_out(name, needed):
    if keras.backend.backend() == needed:
        pytest.skip("it is this backend's")
    with pytest.raises(ValueError, match=f"KERAS_BACKEND={needed}"), Recipe(distribution=name).scope():
        pass


def test_an_unknown_strategy_is_refused():
    with pytest.raises(ValueError, match="must be one of"):
        strategy("horovod")


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.distribute")
def test_mirrored_settings_that_fail_in_keras_are_named():
    from keras_seqlm.training.distribution import _refuse_in_mirrored

    model = new_model("tied")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")
    optimizer = keras.optimizers.Adam(use_ema=True, gradient_accumulation_steps=2)
    model.compile(optimizer, loss, steps_per_execution=2, jit_compile=True)
    with pytest.raises(ValueError) as caught:
        _refuse_in_mirrored(model)
    for word in ("gradient_accumulation", "use_ema", "steps_per_execution", "jit_compile", "mean_with_sample_weight"):
        assert word in str(caught.value)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.distribute")
def test_a_mirrored_model_saves_as_a_plain_keras_optimizer(tmp_path):
    recipe = Recipe(steps=2, batch_size=4, distribution="mirrored", clip_norm=0.3)
    with recipe.scope():
        model = new_model("tied")
    recipe.fit(model, Batches(), progress=False)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert type(again.optimizer) is keras.optimizers.AdamW
    assert again.optimizer.global_clipnorm == pytest.approx(0.3)
    for ours, theirs in zip(model.optimizer.variables, again.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
