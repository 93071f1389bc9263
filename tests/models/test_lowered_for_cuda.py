"""What a training step on a GPU would run, seen in the program that JAX lowers for one on a CPU."""

import re

import keras
import numpy as np
import pytest

from keras_seqlm import products
from keras_seqlm.losses import FusedCrossEntropy
from keras_seqlm.models import TransformerLM

pytestmark = [
    pytest.mark.backends,
    pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX alone lowers for another machine than this one"),
]
TIME, LAYERS = 192, 2  # a length that no other axis has
SCORES = rf"tensor<[\dx]*{TIME}x{TIME}xf32>"
CASES = {
    "causal": {},
    "rotary": {"positions": "rotary"},
    "grouped": {"num_kv_heads": 2},
    "one key-value head": {"num_kv_heads": 1},
    "packed": {"packed": True},
    "packed, rotary and grouped": {"packed": True, "positions": "rotary", "num_kv_heads": 2},
    "window": {"window": 16},
    "dropout of residuals": {"dropout": 0.1},
}


@pytest.fixture
def a_gpu_stands_by(monkeypatch):
    cudnn = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda *capability: True)
    monkeypatch.setattr(products, "on_accelerator", lambda: True)


def lowered_step(packed=False, **options):
    """The text of the program that a training step in bfloat16 becomes."""
    import jax

    model = TransformerLM(
        256, num_layers=LAYERS, hidden_dim=256, num_heads=4, max_length=TIME, dtype="mixed_bfloat16", **options
    )
    model.build()
    model.compile("adamw", loss=FusedCrossEntropy())
    model.optimizer.build(model.trainable_variables)
    ids = np.ones((4, TIME), "int32")
    x = {"token_ids": ids}
    if packed:
        x["segment_ids"] = np.repeat(np.arange(TIME)[None] // 50, 4, axis=0).astype("int32")
    model._symbolic_build(data_batch=(x, ids))
    names = ("trainable_variables", "non_trainable_variables", "optimizer_variables", "metrics_variables")
    state = model._get_jax_state(**dict.fromkeys(names, True))
    step = jax.jit(lambda state, batch: model.train_step(state, batch))
    return step.trace(state, (x, ids)).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("name", CASES)
def test_attention_is_the_fused_kernel(name, a_gpu_stands_by):
    text = lowered_step(**CASES[name])
    kernels = re.findall(r"@__cudnn\$(fmha\w+)", text)
    forward = [kernel for kernel in kernels if not kernel.endswith("Backward")]
    assert len(forward) == LAYERS and len(kernels) == 2 * LAYERS
    assert len(re.findall(r"mask_type\\22: \\22CAUSAL", text)) == 2 * LAYERS  # what lies behind a query is not computed
    assert not re.findall(SCORES, text)


def test_dropped_probabilities_are_made(a_gpu_stands_by):
    """What the test above looks for is there where scores are made: it could be seen."""
    text = lowered_step(attention_dropout=0.1)
    assert re.findall(SCORES, text) and "fmha" not in text
