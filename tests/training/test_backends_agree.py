"""Three AdamW steps on a token embedding whose ids repeat: the same numbers on every backend.

Keras's own Embedding fails this on TensorFlow, whose sparse gradient reaches Adam with its repeated rows unsummed.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """
import json, sys
import keras
import numpy as np
from keras_seqlm.layers import TokenEmbedding
from keras_seqlm.training import Recipe

table = np.random.default_rng(1).normal(size=(6, 3)).astype("float32")
x = np.array([[1, 1, 1, 4], [4, 1, 0, 5]], "int32")
y = np.random.default_rng(2).integers(0, 3, (2, 4)).astype("int32")
layer = keras.layers.Embedding(6, 3) if sys.argv[1] == "keras" else TokenEmbedding(6, 3)
model = keras.Sequential([keras.Input((4,), dtype="int32"), layer])
layer.set_weights([table])
recipe = Recipe(steps=3, batch_size=2, learning_rate=0.1, warmup_steps=1, clip_norm=None)  # clipping would hide it: it makes gradients dense
recipe.compile(model)
model.jit_compile = keras.backend.backend() == "jax"
for _ in range(3):
    model.train_on_batch(x, y)
print(json.dumps(np.asarray(layer.get_weights()[0], "float64").tolist()))
"""


def tables(*runs):
    """The trained table of each (backend, kind of layer), all made at the same time."""
    processes = []
    for backend, kind in runs:
        environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", PROGRAM, kind]
        processes.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    results = []
    for process in processes:
        out, err = process.communicate(timeout=180)
        assert process.returncode == 0, err[-2000:]
        results.append(np.array(json.loads(out.splitlines()[-1])))
    return results


def test_adamw_on_repeated_ids_agrees_on_the_three_backends():
    pytest.importorskip("jax")
    pytest.importorskip("torch")
    tensorflow, jax, torch, wrong = tables(
        ("tensorflow", "ours"), ("jax", "ours"), ("torch", "ours"), ("tensorflow", "keras")
    )
    np.testing.assert_allclose(tensorflow, jax, rtol=0, atol=1e-6)
    np.testing.assert_allclose(torch, jax, rtol=0, atol=1e-6)
    assert np.abs(wrong - jax).max() > 1e-3, "Keras's own embedding is right now: ours has no reason left"
