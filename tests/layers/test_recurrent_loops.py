"""The ways to run a recurrent cell give one result: the scan, its gradient by hand, torch's kernels, the Keras layers."""

import keras
import numpy as np
import pytest
from cases import on_all, some_of
from helpers import array, randomize
from keras import ops

from keras_seqlm.layers import RecurrentStack, recurrent, recurrent_loops
from keras_seqlm.layers.recurrent_loops import run_in_torch, scan, scan_by_hand

pytestmark = pytest.mark.neutral

EVERYWHERE = pytest.mark.backends
BACKEND = keras.backend.backend()
GATES = {"rnn": 1, "gru": 3, "lstm": 4}
BATCH, TIME, FEATURES, HIDDEN = 3, 7, 5, 6
STARTS = np.array([[0, 0, 1, 0, 0, 1, 1], [0] * 7, [1, 0, 0, 0, 0, 0, 1]], bool)
SEGMENTS = np.cumsum(STARTS, axis=1).astype("int32")
LENGTHS = np.array([4, 1, 7], "int32")


def normal(*shape, seed=0):
    return 0.5 * np.random.default_rng([seed, *shape]).standard_normal(shape).astype("float32")


def arguments(cell):
    """x, the leaves of the state, kernel, recurrent kernel and bias."""
    width = GATES[cell] * HIDDEN
    state = [normal(BATCH, HIDDEN, seed=i) for i in range(2 if cell == "lstm" else 1)]
    bias = normal(2, width) if cell == "gru" else normal(width)
    return normal(BATCH, TIME, FEATURES), state, (normal(FEATURES, width), normal(HIDDEN, width), bias)


def value_and_gradients(function, *arrays):
    """`function(*arrays)`, a number, and its gradient by each of them, compiled where the backend compiles."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        @tf.function
        def compute(*tensors):
            with tf.GradientTape() as tape:
                tape.watch(tensors)
                value = function(*tensors)
            return value, tape.gradient(value, tensors)

        value, gradients = compute(*map(tf.constant, arrays))
    elif BACKEND == "jax":
        import jax

        value, gradients = jax.jit(jax.value_and_grad(function, tuple(range(len(arrays)))))(*arrays)
    else:
        import torch

        tensors = [ops.convert_to_tensor(value).clone().requires_grad_() for value in arrays]
        value = function(*tensors)
        gradients = torch.autograd.grad(value, tensors)
        value = value.detach()
    return array(value), [array(gradient) for gradient in gradients]


def loss_of(outputs, state):
    """A number that hangs on every output and on the last state."""
    tensors = (outputs, *state)
    return sum(ops.sum(ops.multiply(tensor, normal(*tensor.shape, seed=5 + i))) for i, tensor in enumerate(tensors))


def loss_by(run, cell, **options):
    """The loss as a function of x, kernels, bias and state, run by one of the loops over time."""
    first = run is scan_by_hand

    def loss(x, kernel, recurrent_kernel, bias, *state):
        x = ops.swapaxes(x, 0, 1) if first else x
        outputs, state = run(cell, x, state, kernel, recurrent_kernel, bias, **options)
        return loss_of(ops.swapaxes(outputs, 0, 1) if first else outputs, state)

    return loss


def assert_equal(found, expected, atol=1e-5):
    np.testing.assert_allclose(found[0], expected[0], atol=atol)
    for gradient, wanted in zip(found[1], expected[1], strict=True):
        assert np.abs(wanted).max() > 0.01
        np.testing.assert_allclose(gradient, wanted, atol=atol)


CASES = {
    "whole": {},
    "padding and borders": {"lengths": np.array([4, 0, 7], "int32"), "starts": STARTS},
    "padding and borders, for a GPU": {"lengths": np.array([4, 0, 7], "int32"), "starts": STARTS, "on_gpu": True},
}


@pytest.mark.parametrize("case", on_all(CASES, "padding and borders"))
@pytest.mark.parametrize("cell", GATES)
def test_gradient_by_hand_is_the_gradient_of_the_scan(cell, case, monkeypatch):
    monkeypatch.setattr(recurrent_loops, "UNROLL", 3)  # which does not divide the steps
    (x, state, weights), options = arguments(cell), CASES[case]
    plain = {name: value for name, value in options.items() if name != "on_gpu"}
    expected = value_and_gradients(loss_by(scan, cell, **plain), x, *weights, *state)
    found = value_and_gradients(loss_by(scan_by_hand, cell, **options), x, *weights, *state)
    assert_equal(found, expected)
    if case == "whole":
        if BACKEND == "torch":
            assert_equal(value_and_gradients(loss_by(run_in_torch, cell), x, *weights, *state), expected)
        again = value_and_gradients(loss_by(scan_by_hand, cell), x, *weights, *state)
        for first, second in zip(found[1], again[1], strict=True):
            np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("cell", on_all(GATES, "gru"))
def test_padding_is_what_torch_packs_away(cell):
    """Outputs, last state and gradients of padded rows are those of `torch.nn` on a `PackedSequence`."""
    torch = pytest.importorskip("torch")
    x, state, (kernel, recurrent_kernel, bias) = arguments(cell)
    real = (np.arange(TIME) < LENGTHS[:, None])[..., None].astype("float32")

    def loss(x, kernel, recurrent_kernel, *state):
        x = ops.swapaxes(x, 0, 1)
        outputs, last = scan_by_hand(cell, x, state, kernel, recurrent_kernel, bias, lengths=LENGTHS)
        return loss_of(ops.multiply(ops.swapaxes(outputs, 0, 1), real), last)

    kind = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell]
    order = {"rnn": [0], "gru": [1, 0, 2], "lstm": [0, 1, 2, 3]}[cell]  # torch's gates: r, z, n for a GRU

    def gates(weight):
        parts = np.split(weight, len(order), axis=-1)
        return np.concatenate([parts[i] for i in order], axis=-1).T

    def tensor(values):
        return torch.tensor(np.ascontiguousarray(values), device="cpu")

    twin = kind(FEATURES, HIDDEN, batch_first=True, device="cpu")
    biases = bias if cell == "gru" else (bias, np.zeros_like(bias))
    with torch.no_grad():
        for name, value in zip(("ih", "hh"), (kernel, recurrent_kernel), strict=True):
            getattr(twin, f"weight_{name}_l0").copy_(tensor(gates(value)))
        for name, value in zip(("ih", "hh"), biases, strict=True):
            getattr(twin, f"bias_{name}_l0").copy_(tensor(gates(value)))
    inputs = [tensor(value).requires_grad_() for value in (x, *state)]
    pack = torch.nn.utils.rnn.pack_padded_sequence(inputs[0], tensor(LENGTHS), True, enforce_sorted=False)
    before = tuple(leaf[None] for leaf in inputs[1:])
    packed, last = twin(pack, before if cell == "lstm" else before[0])
    outputs, _ = torch.nn.utils.rnn.pad_packed_sequence(packed, True, total_length=TIME)
    last = [leaf[0] for leaf in (last if cell == "lstm" else (last,))]
    expected = sum((leaf * tensor(normal(*leaf.shape, seed=5 + i))).sum() for i, leaf in enumerate((outputs, *last)))
    expected.backward()
    value, (d_x, d_kernel, d_recurrent_kernel, *d_state) = value_and_gradients(
        loss, x, kernel, recurrent_kernel, *state
    )
    np.testing.assert_allclose(value, expected.detach(), atol=1e-5)
    for found, wanted in zip((d_x, *d_state), inputs, strict=True):
        np.testing.assert_allclose(found, wanted.grad, atol=1e-5)
    np.testing.assert_allclose(gates(d_kernel), twin.weight_ih_l0.grad, atol=1e-5)
    np.testing.assert_allclose(gates(d_recurrent_kernel), twin.weight_hh_l0.grad, atol=1e-5)


@pytest.mark.parametrize("cell", on_all(GATES, "lstm"))
def test_training_a_stack_is_training_the_keras_layers(cell):
    stack = RecurrentStack(cell, HIDDEN, num_layers=2, use_cudnn=False)
    stack.build((None, None, FEATURES))
    randomize(stack)
    names = sorted(stack.initial_state(1))  # c_0, c_1, h_0, h_1
    state = [normal(BATCH, HIDDEN, seed=20 + i) for i in range(len(names))]

    def by_the_stack(x, leaves):
        outputs, after = stack(x, state=dict(zip(names, leaves, strict=True)), training=True)
        return outputs, [after[name] for name in names]

    def by_the_layers(x, leaves):
        before, after = dict(zip(names, leaves, strict=True)), {}
        for i, layer in enumerate(stack.layers):
            own = [f"{name}_{i}" for name in recurrent.STATE_NAMES[cell]]
            x, *leaves = layer(x, initial_state=[before[name] for name in own])
            after |= zip(own, leaves, strict=True)
        return x, [after[name] for name in names]

    def loss(way):
        def function(x, *rest):
            leaves, values = rest[: len(names)], rest[len(names) :]
            with keras.StatelessScope(zip(stack.trainable_weights, values, strict=True)):
                return loss_of(*way(x, leaves))

        return function

    given = normal(BATCH, TIME, FEATURES), *state, *map(array, stack.trainable_weights)
    assert_equal(value_and_gradients(loss(by_the_stack), *given), value_and_gradients(loss(by_the_layers), *given))


@pytest.mark.parametrize("cell", on_all(GATES, "lstm"))
def test_half_precision(cell):
    """Products in bfloat16, state and gates in float32: near the gradient of float32, and as near as the scan."""
    x, state, weights = arguments(cell)

    def halved(run):
        def loss(x, kernel, recurrent_kernel, bias, *state):
            tensors = [ops.cast(tensor, "bfloat16") for tensor in (x, kernel, recurrent_kernel, bias)]
            return loss_by(run, cell, starts=STARTS)(*tensors, *state)

        return value_and_gradients(loss, x, *weights, *state)[1]

    exact = value_and_gradients(loss_by(scan, cell, starts=STARTS), x, *weights, *state)[1]
    for by_hand, by_scan, wanted in zip(halved(scan_by_hand), halved(scan), exact, strict=True):
        size = np.abs(wanted).max()
        assert 0 < np.abs(by_hand - wanted).max() < 0.03 * size
        assert np.abs(by_hand - wanted).max() < 1.5 * np.abs(by_scan - wanted).max() + 0.003 * size


@EVERYWHERE
@pytest.mark.parametrize("run", [scan, scan_by_hand])
def test_the_gradient_of_a_bias_is_summed_in_single_precision(run):
    """Over 4096 steps; a sum in bfloat16 stands still long before (10% off)."""
    batch, time = 16, 256
    x, kernel = np.full((batch, time, 1), 0.5, "float32"), np.zeros((1, HIDDEN), "float32")
    recurrent_kernel, state = np.zeros((HIDDEN, HIDDEN), "float32"), np.zeros((batch, HIDDEN), "float32")
    weight = 1.0 + normal(batch, time, HIDDEN).clip(-0.9)

    def loss(bias):
        inputs, *kernels = (ops.cast(tensor, "bfloat16") for tensor in (x, kernel, recurrent_kernel))
        first = run is scan_by_hand
        inputs = ops.swapaxes(inputs, 0, 1) if first else inputs
        outputs, _ = run("rnn", inputs, (ops.convert_to_tensor(state),), *kernels, bias)
        return ops.sum(ops.multiply(ops.swapaxes(outputs, 0, 1) if first else outputs, weight))

    _, (found,) = value_and_gradients(loss, np.zeros(HIDDEN, "float32"))
    np.testing.assert_allclose(found, weight.sum((0, 1), "float64"), rtol=1e-5)  # tanh'(0) = 1


@EVERYWHERE
@pytest.mark.skipif(BACKEND != "torch", reason="torch's kernels are of its backend")
@pytest.mark.parametrize("cell", GATES)
def test_torch_in_half_precision(cell):
    """Gradients far below the smallest number of float16 (6e-8), and far above its largest (65504)."""
    x, state, weights = arguments(cell)
    exact = value_and_gradients(loss_by(scan, cell), x, *weights, *state)[1]
    for size in (1e-12, 1.0, 1e9):

        def loss(x, kernel, recurrent_kernel, bias, *state, size=size):
            x, kernel, recurrent_kernel = (ops.cast(tensor, "bfloat16") for tensor in (x, kernel, recurrent_kernel))
            outputs, last = run_in_torch(cell, x, state, kernel, recurrent_kernel, bias)
            assert all("float32" in str(leaf.dtype) for leaf in last)
            return size * loss_of(ops.cast(outputs, "float32"), last)

        for found, wanted in zip(value_and_gradients(loss, x, *weights, *state)[1], exact, strict=True):
            np.testing.assert_allclose(found / size, wanted, atol=0.02 * np.abs(wanted).max())


def spied(monkeypatch):
    """The names of the loops that a stack runs, in order, as they come to be."""
    calls = []
    for function in (scan, scan_by_hand, run_in_torch):

        def spy(*args, function=function, **kwargs):
            calls.append(function.__name__)
            return function(*args, **kwargs)

        monkeypatch.setattr(recurrent, function.__name__, spy)
    return calls


@EVERYWHERE
def test_which_loop_runs(monkeypatch):
    calls = spied(monkeypatch)
    stack, x = RecurrentStack("gru", HIDDEN), normal(BATCH, TIME, FEATURES)
    lengths = np.full(BATCH, TIME, "int32")
    expected = {
        "training": (x, {"training": True}, "scan_by_hand"),
        "not training": (x, {}, "scan"),
        "borders, training": (x, {"segment_ids": SEGMENTS, "training": True}, "scan_by_hand"),
        "borders": (x, {"segment_ids": SEGMENTS}, "scan"),
        "lengths, training": (x, {"lengths": lengths, "training": True}, "scan_by_hand"),
        "lengths": (x, {"lengths": lengths}, "scan"),
        "one step, training": (x[:, :1], {"training": True}, "scan"),
    }
    if BACKEND == "torch":
        expected |= {name: (x, expected[name][1], "run_in_torch") for name in ("training", "not training")}
    for name, (values, options, loop) in expected.items():
        calls.clear()
        stack(values, **options)
        assert calls == [loop], name
    calls.clear()
    RecurrentStack("gru", HIDDEN, dtype="mixed_bfloat16")(x, training=True)
    assert calls == ["scan_by_hand"]  # for the state stays in float32


@pytest.mark.parametrize("cell", on_all(GATES, "lstm"))
def test_a_symbolic_call_knows_the_shapes(cell):
    inputs = keras.Input((None, FEATURES))
    outputs, state = RecurrentStack(cell, HIDDEN, num_layers=2)(inputs, training=True)
    assert outputs.shape == (None, None, HIDDEN)
    assert all(leaf.shape == (None, HIDDEN) for leaf in state.values())


def model_of(cell, borders, **options):
    x, segments = keras.Input((None, FEATURES)), keras.Input((None,), dtype="int32")
    stack = RecurrentStack(cell, HIDDEN, num_layers=2)
    model = keras.Model([x, segments], stack(x, segment_ids=segments if borders else None)[0])
    randomize(model)
    model.compile(keras.optimizers.SGD(0.5), "mse", **options)
    return model


@pytest.mark.tensorflow
@pytest.mark.parametrize("borders", some_of([False, True], 1), ids=["whole", "borders"])
@pytest.mark.parametrize("cell", GATES)
def test_sizes_that_tensorflow_does_not_know(cell, borders):
    """Batch and time unknown while the step is traced; batches of two sizes."""
    import tensorflow as tf

    batches = [
        ((normal(rows, time, FEATURES), SEGMENTS[:rows, :time]), normal(rows, time, HIDDEN))
        for rows, time in ((3, 7), (2, 4))
    ]
    shapes = (
        (tf.TensorSpec((None, None, FEATURES)), tf.TensorSpec((None, None), tf.int32)),
        tf.TensorSpec((None, None, HIDDEN)),
    )
    unknown, known = model_of(cell, borders, jit_compile=False), model_of(cell, borders, run_eagerly=True)
    dataset = tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=shapes)
    unknown.fit(dataset.apply(tf.data.experimental.assert_cardinality(2)), shuffle=False, verbose=0)
    for x, y in batches:
        known.train_on_batch(list(x), y)
    for found, expected in zip(unknown.weights, known.weights, strict=True):
        np.testing.assert_allclose(array(found), array(expected), atol=1e-6)


@pytest.mark.tensorflow
def test_xla_trains_as_the_graph_does():
    trained = []
    for jit_compile in (False, True):
        model = model_of("lstm", True, jit_compile=jit_compile)
        assert model.jit_compile is jit_compile
        for _ in range(2):
            model.train_on_batch([normal(BATCH, TIME, FEATURES), SEGMENTS], normal(BATCH, TIME, HIDDEN))
        trained.append([array(weight) for weight in model.trainable_weights])
    for plain, compiled in zip(*trained, strict=True):
        np.testing.assert_allclose(compiled, plain, atol=1e-5)


@pytest.mark.backends
def test_torch_exports_a_graph_of_plain_operations():
    """Torch's kernels and a gradient by hand stay out of an exported graph."""
    if BACKEND != "torch":
        pytest.skip("torch's exporter")
    import torch

    stack = RecurrentStack("lstm", 4)
    x = torch.randn(2, 3, 5)
    expected = stack(x, training=True)[0]

    class Outputs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stack = stack

        def forward(self, x):
            return self.stack(x, training=True)[0]

    program = torch.export.export(Outputs(), (x,), strict=False)
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert float((program.module()(x) - expected).detach().abs().max()) < 1e-5
    assert "aten.matmul.default" in names or "aten.mm.default" in names
    assert not any("lstm" in name or "rnn" in name for name in names)
