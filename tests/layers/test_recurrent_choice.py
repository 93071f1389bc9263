"""Which way a recurrent cell runs: the table, and the step that XLA would get for a GPU."""

import itertools

import keras
import numpy as np
import pytest
from helpers import ids_of

from keras_seqlm.layers import RecurrentStack, recurrent
from keras_seqlm.layers.recurrent_choice import choose, device
from keras_seqlm.losses import FusedCrossEntropy
from keras_seqlm.models import RecurrentLM

BACKEND = keras.backend.backend()
CELLS, HALF = ("rnn", "gru", "lstm"), ("float16", "bfloat16")
# Where there is something faster than a scan: jax.experimental.rnn lowers float32 alone (and has no GRU); CudnnRNNV3 is
# registered for all floats but not for XLA; torch has kernels for all, whose state on a CPU would be in half precision.
KERNELS = {
    **{("tensorflow", "gpu", cell, "float32"): "cudnn" for cell in ("gru", "lstm")},
    ("jax", "gpu", "lstm", "float32"): "cudnn",
    **{("torch", "gpu", cell, dtype): "torch" for cell in CELLS for dtype in ("float32", *HALF)},
    **{("torch", "cpu", cell, "float32"): "torch" for cell in CELLS},
}


def test_the_table():
    backends = [(name, place) for name in ("tensorflow", "jax", "torch") for place in ("gpu", "cpu")] + [("jax", "tpu")]
    for (backend, place), cell, dtype in itertools.product(backends, CELLS, ("float32", *HALF, "float64")):
        where = (cell, backend, place, dtype)
        for training, scan in ((True, "scan_by_hand"), (False, "scan")):
            kernel = KERNELS.get((backend, place, cell, dtype), scan)
            assert choose(*where, training=training) == kernel, where
            assert choose(*where, training=training, whole=False) == scan, where
            assert choose(*where, training=training, plain=True) == "scan", where
            without = kernel if place == "cpu" else scan
            assert choose(*where, use_cudnn=False, training=training) == without, where


@pytest.mark.backends
def test_this_machine():
    assert device() == {"tensorflow": "cpu", "jax": "cpu", "torch": "cpu"}[BACKEND]


@pytest.mark.backends
@pytest.mark.parametrize("cell", CELLS)
def test_only_a_layer_that_runs_in_cudnn_keeps_xla_away(cell, monkeypatch):
    monkeypatch.setattr(recurrent, "device", lambda: "gpu")
    for dtype in ("float32", "mixed_bfloat16", "mixed_float16"):
        (layer,) = RecurrentStack(cell, 8, dtype=dtype).layers
        cudnn = (BACKEND, "gpu", cell, layer.compute_dtype) in KERNELS and BACKEND != "torch"
        assert getattr(layer, "use_cudnn", False) == ("auto" if cudnn else False)


def lowered_for_cuda(dtype):
    """The StableHLO of a training step of a small LSTM language model, as JAX hands it to XLA for a GPU."""
    import jax

    model = RecurrentLM(48, cell="lstm", size="nano", num_layers=2, hidden_dim=16, dtype=dtype)
    model.build()
    model.compile(keras.optimizers.SGD(0.1), FusedCrossEntropy())
    ids = ids_of(4, 25)

    def step(trainable, x, y):
        def loss(trainable):
            logits, _ = model.stateless_call(
                trainable, [v.value for v in model.non_trainable_variables], x, training=True
            )
            return -jax.nn.log_softmax(logits)[..., 0].mean() + 0.0 * y.sum()

        return jax.value_and_grad(loss)(trainable)

    values = [variable.value for variable in model.trainable_variables]
    return jax.export.export(jax.jit(step), platforms=["cuda"])(values, ids[:, :-1], ids[:, 1:]).mlir_module()


@pytest.mark.backends
@pytest.mark.skipif(BACKEND != "jax", reason="JAX alone lowers for a GPU without one")
def test_in_half_precision_the_step_for_a_gpu_has_no_cudnn(monkeypatch):
    monkeypatch.setattr(recurrent, "device", lambda: "gpu")
    for dtype in HALF:
        text = lowered_for_cuda(f"mixed_{dtype}")
        assert "dnn_rnn" not in text and "custom_call" not in text.replace("custom_call @Sharding", "")
        assert text.count("stablehlo.while") == 4  # two layers, forward and backward
        short = {"float16": "f16", "bfloat16": "bf16"}[dtype]
        products = [
            line.split(" : (")[1].split(")")[0] for line in text.splitlines() if "stablehlo.dot_general" in line
        ]
        assert products and all(product.count(f"x{short}>") == 2 for product in products), products


@pytest.mark.slow
@pytest.mark.backends
@pytest.mark.skipif(BACKEND != "torch", reason="torch compiles step by step what another backend compiles as a loop")
def test_torch_compiles_around_the_loop():
    import torch

    stack, names = RecurrentStack("lstm", 6), []
    stack.build((None, None, 5))
    x = torch.tensor(np.random.default_rng(0).standard_normal((3, 40, 5)).astype("float32"))
    lengths = torch.tensor([40, 3, 7], dtype=torch.int32)
    expected, _ = stack(x, lengths=lengths, training=True)

    def note(graph, _):
        names.extend(str(node.target) for node in graph.graph.nodes if node.op.startswith("call"))
        return graph.forward

    outputs = torch.compile(lambda x: 2.0 * stack(x, lengths=lengths, training=True)[0], backend=note)(x)
    np.testing.assert_allclose(outputs.detach(), 2.0 * expected.detach(), atol=1e-6)
    assert names and not any("sigmoid" in name or "tanh" in name for name in names)
