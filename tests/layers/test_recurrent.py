import keras
import numpy as np
import pytest
from cases import on_all
from helpers import array, arrays, randomize
from keras import ops

from keras_seqlm.layers import RecurrentStack
from keras_seqlm.layers.recurrent import STATE_NAMES
from keras_seqlm.layers.recurrent_loops import scan

pytestmark = pytest.mark.neutral

EVERYWHERE = pytest.mark.backends
CELLS = ("rnn", "gru", "lstm")
FEATURES, HIDDEN = 5, 6


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def rnn(x, h, W, U, b):
    return (np.tanh(x @ W + h @ U + b),)


def gru(x, h, W, U, b):
    (W_z, W_r, W_g), (U_z, U_r, U_g) = np.split(W, 3, 1), np.split(U, 3, 1)
    (b_z, b_r, b_g), (d_z, d_r, d_g) = np.split(b[0], 3), np.split(b[1], 3)
    z = sigmoid(x @ W_z + b_z + h @ U_z + d_z)
    r = sigmoid(x @ W_r + b_r + h @ U_r + d_r)
    g = np.tanh(x @ W_g + b_g + r * (h @ U_g + d_g))
    return (z * h + (1 - z) * g,)


def lstm(x, h, c, W, U, b):
    (W_i, W_f, W_g, W_o), (U_i, U_f, U_g, U_o), (b_i, b_f, b_g, b_o) = (np.split(w, 4, -1) for w in (W, U, b))
    i, f, o = (sigmoid(x @ w + h @ u + d) for w, u, d in ((W_i, U_i, b_i), (W_f, U_f, b_f), (W_o, U_o, b_o)))
    g = np.tanh(x @ W_g + h @ U_g + b_g)
    c = f * c + i * g
    return o * np.tanh(c), c


STEPS = {"rnn": rnn, "gru": gru, "lstm": lstm}


def over_time(cell, x, state, weights, lengths=None, segment_ids=None):
    """Row by row and step by step; the state of a row goes through its real steps, anew at the borders between them."""
    batch, time, _ = x.shape
    outputs, last = np.zeros((batch, time, HIDDEN)), [leaf.astype("float64") for leaf in state]
    for row in range(batch):
        now = [leaf[row] for leaf in last]
        for t in range(time):
            if lengths is None or t < lengths[row]:
                if segment_ids is not None and t and segment_ids[row, t] != segment_ids[row, t - 1]:
                    now = [np.zeros(HIDDEN) for _ in now]
                now = STEPS[cell](x[row, t], *now, *weights)
            outputs[row, t] = now[0]
        for leaf, value in zip(last, now, strict=True):
            leaf[row] = value
    return outputs, last


def random_stack(cell, **options):
    stack = RecurrentStack(cell, HIDDEN, use_cudnn=False, **options)
    stack.build((None, None, FEATURES))
    randomize(stack)
    return stack


def weights_of(stack, i=0):
    return [array(weight) for weight in stack.layers[i].weights]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def random_state(cell, rows, layers=1):
    names = [f"{name}_{i}" for i in range(layers) for name in STATE_NAMES[cell]]
    return {name: 0.5 * normal(rows, HIDDEN, seed=9 + i) for i, name in enumerate(names)}


LENGTHS = np.array([4, 0, 7], "int32")
SEGMENTS = np.array([[0, 0, 1, 1, 1, 2, 3], [5] * 7, [1, 0, 0, 0, 0, 0, 1]], "int32")
CASES = {
    "plain": {},
    "lengths": {"lengths": LENGTHS},
    "borders": {"segment_ids": SEGMENTS},
    "both": {"lengths": LENGTHS, "segment_ids": SEGMENTS},
}


@pytest.mark.parametrize("case", on_all(["lengths", "borders", "plain", "both"], "both"))
@pytest.mark.parametrize("cell", CELLS)
def test_formula(cell, case):
    stack, x, state = random_stack(cell), normal(3, 7, FEATURES), random_state(cell, 3)
    expected, last = over_time(cell, x, list(state.values()), weights_of(stack), **CASES[case])
    for training in (False, True):  # by another loop
        output, new_state = stack(x, state=state, training=training, **CASES[case])
        np.testing.assert_allclose(array(output), expected, atol=1e-5)
        for name, leaf in zip(state, last, strict=True):
            np.testing.assert_allclose(array(new_state[name]), leaf, atol=1e-5)


@pytest.mark.parametrize("cell", on_all(CELLS, "lstm"))
def test_one_step_at_a_time(cell):
    stack, x, state = random_stack(cell, num_layers=2), normal(3, 4, FEATURES), random_state(cell, 3, layers=2)
    whole, last = stack(x, state=state)
    for t in range(4):
        output, state = stack(x[:, t : t + 1], state=state)
        np.testing.assert_allclose(array(output)[:, 0], array(whole)[:, t], atol=1e-6)
    for name, leaf in arrays(last).items():
        np.testing.assert_allclose(array(state[name]), leaf, atol=1e-6)


@pytest.mark.parametrize("cell", ["rnn", "gru", pytest.param("lstm", marks=EVERYWHERE)])
def test_a_length_that_is_not_known_beforehand(cell):
    stack, x = random_stack(cell, num_layers=2), normal(3, 7, FEATURES)
    inputs = [keras.Input((None, FEATURES)), keras.Input((), dtype="int32"), keras.Input((None,), dtype="int32")]
    model = keras.Model(inputs, stack(inputs[0], lengths=inputs[1], segment_ids=inputs[2])[0])
    expected, _ = stack(x, lengths=LENGTHS, segment_ids=SEGMENTS)
    found = model.predict([x, LENGTHS, SEGMENTS], verbose=0)
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(found[row, :length], array(expected)[row, :length], atol=1e-5)


@pytest.mark.parametrize("cell", on_all(CELLS, "lstm"))
def test_an_idle_row_keeps_its_state_to_the_bit(cell):
    stack, state = random_stack(cell), random_state(cell, 2)
    for time in (1, 3):
        _, new_state = stack(normal(2, time, FEATURES), state=state, lengths=np.array([0, 1], "int32"))
        for name, leaf in arrays(new_state).items():
            np.testing.assert_array_equal(leaf[0], state[name][0])
            assert np.abs(leaf[1] - state[name][1]).max() > 1e-3


@EVERYWHERE
@pytest.mark.parametrize("cell", CELLS)
def test_scan_is_what_the_keras_layers_compute(cell):
    stack, x, state = random_stack(cell, num_layers=2), normal(3, 7, FEATURES), random_state(cell, 3, layers=2)
    output, new_state = stack(x, state=state)
    y, after = x, {}
    for i, layer in enumerate(stack.layers):
        names = [f"{name}_{i}" for name in STATE_NAMES[cell]]
        y, *leaves = layer(y, initial_state=[ops.convert_to_tensor(state[name]) for name in names])
        after |= dict(zip(names, leaves, strict=True))
    np.testing.assert_allclose(array(output), array(y), atol=1e-5)
    assert sorted(new_state) == sorted(after)
    for name, leaf in arrays(new_state).items():
        np.testing.assert_allclose(leaf, array(after[name]), atol=1e-5)


def as_torch(cell, stack):
    """The same weights in `torch.nn.RNN`, `GRU` or `LSTM`: transposed, torch's gate order, two biases."""
    import torch

    kind = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell]
    twin = kind(FEATURES, HIDDEN, num_layers=stack.num_layers, batch_first=True).to("cpu")
    # Keras writes a GRU's gates z, r, h and torch r, z, n; an LSTM's stand as i, f, g, o in both.
    order = {"rnn": [0], "gru": [1, 0, 2], "lstm": [0, 1, 2, 3]}[cell]

    def gates(weight):
        parts = np.split(weight, len(order), axis=-1)
        return torch.tensor(np.concatenate([parts[i] for i in order], axis=-1).T.copy())

    with torch.no_grad():
        for i in range(stack.num_layers):
            kernel, recurrent_kernel, bias = weights_of(stack, i)
            biases = bias if cell == "gru" else (bias, np.zeros_like(bias))
            for name, value in zip(("ih", "hh"), (kernel, recurrent_kernel), strict=True):
                getattr(twin, f"weight_{name}_l{i}").copy_(gates(value))
            for name, value in zip(("ih", "hh"), biases, strict=True):
                getattr(twin, f"bias_{name}_l{i}").copy_(gates(value))
    return twin


@pytest.mark.parametrize("cell", on_all(CELLS, "lstm"))
def test_torch_computes_the_same(cell):
    torch = pytest.importorskip("torch")
    stack, x, state = random_stack(cell, num_layers=2), normal(3, 7, FEATURES), random_state(cell, 3, layers=2)
    output, new_state = stack(x, state=state)
    names = STATE_NAMES[cell]
    before = [torch.tensor(np.stack([state[f"{name}_{i}"] for i in range(2)])) for name in names]
    with torch.no_grad():
        expected, after = as_torch(cell, stack)(torch.tensor(x), tuple(before) if cell == "lstm" else before[0])
    after = after if cell == "lstm" else (after,)
    np.testing.assert_allclose(array(output), expected.numpy(), atol=1e-5)
    for name, leaves in zip(names, after, strict=True):
        for i in range(2):
            np.testing.assert_allclose(array(new_state[f"{name}_{i}"]), leaves[i].numpy(), atol=1e-5)


@pytest.mark.parametrize("cell", on_all(["rnn", "gru", "lstm"], "gru"))
def test_gradients_are_those_of_torch(cell):
    """Through a training step of plain SGD, since Keras has no gradient of its own; borders and padding aside."""
    torch = pytest.importorskip("torch")
    stack, x, target = random_stack(cell), normal(3, 7, FEATURES), normal(3, 7, HIDDEN, seed=4)
    twin = as_torch(cell, stack)
    inputs = keras.Input((7, FEATURES))
    model = keras.Model(inputs, stack(inputs)[0])
    model.compile(keras.optimizers.SGD(0.5), loss=lambda y, output: ops.sum(y * output, -1), jit_compile=False)
    model.train_on_batch(x, target)
    (twin(torch.tensor(x))[0] * torch.tensor(target)).sum(-1).mean().backward()
    with torch.no_grad():
        for weight in twin.parameters():
            weight -= 0.5 * weight.grad
        expected = twin(torch.tensor(x))[0].numpy()
    if cell == "gru":
        np.testing.assert_allclose(array(stack(x)[0]), expected, atol=1e-5)
    else:  # torch trains two biases where Keras has one: the kernels alone are compared
        mine, theirs = weights_of(stack), weights_of_torch(twin)
        np.testing.assert_allclose(mine[0], theirs[0], atol=1e-5)
        np.testing.assert_allclose(mine[1], theirs[1], atol=1e-5)


def weights_of_torch(twin):
    return [weight.detach().numpy().T for weight in (twin.weight_ih_l0, twin.weight_hh_l0)]


@pytest.mark.parametrize("cell", on_all(CELLS, "lstm"))
def test_half_precision_carries_the_state_in_float32(cell):
    stack = random_stack(cell, dtype="mixed_bfloat16")
    state = {name: np.full((2, HIDDEN), 1.001, "float32") for name in random_state(cell, 2)}
    output, new_state = stack(normal(2, 3, FEATURES), state=state, lengths=np.array([0, 3], "int32"))
    assert "bfloat16" in str(output.dtype)
    for leaf in new_state.values():
        assert "float32" in str(leaf.dtype)
        np.testing.assert_array_equal(array(leaf)[0], np.float32(1.001))


@EVERYWHERE
def test_a_leaf_comes_back_in_the_type_it_came_in():
    stack = random_stack("lstm")
    state = {name: ops.cast(leaf, "float16") for name, leaf in random_state("lstm", 2).items()}
    _, new_state = stack(normal(2, 3, FEATURES), state=state)
    assert all("float16" in str(leaf.dtype) for leaf in new_state.values())


def test_scan_of_another_width_is_refused_by_the_product():
    with pytest.raises(Exception, match="(?i)shape|size|dimension|contract"):
        scan("rnn", ops.ones((1, 2, 3)), (ops.zeros((1, 4)),), ops.ones((5, 4)), ops.ones((4, 4)), ops.zeros((4,)))


@EVERYWHERE
def test_dropout_between_layers_in_training_only():
    stack, x = random_stack("gru", num_layers=2, dropout=0.5), normal(3, 7, FEATURES)
    calm = array(stack(x)[0])
    np.testing.assert_array_equal(array(stack(x, training=False)[0]), calm)
    assert (array(stack(x, training=True)[0]) == 0).mean() == pytest.approx(0.5, abs=0.2)


def test_unknown_cell():
    with pytest.raises(ValueError, match=r"cell must be one of \['gru', 'lstm', 'rnn'\], got 'LSTM'"):
        RecurrentStack("LSTM", 4)


def test_config_round_trip():
    stack = RecurrentStack("gru", 6, num_layers=3, dropout=0.1, use_cudnn=False)
    assert RecurrentStack.from_config(stack.get_config()).get_config() == stack.get_config()
