"""Both losses against Keras's own and against their formula in float64; the fused one without a tensor of all logits."""

import re

import keras
import numpy as np
import pytest
from helpers import array, cut_products
from keras import ops

from keras_seqlm.losses import CrossEntropy, FusedCrossEntropy, fused, fused_cross_entropy
from keras_seqlm.losses.fused import _num_chunks

BACKEND = keras.backend.backend()
ROWS, TIME, WIDTH, VOCABULARY = 3, 7, 5, 11


def problem(seed=0, rows=ROWS, time=TIME, width=WIDTH, vocabulary=VOCABULARY):
    random = np.random.default_rng(seed)
    hidden, table = random.standard_normal((rows, time, width)), random.standard_normal((vocabulary, width))
    targets, weights = random.integers(0, vocabulary, (rows, time)), random.random((rows, time))
    bias = random.standard_normal(vocabulary)
    return [a.astype("float32") for a in (hidden, table, bias)], targets.astype("int32"), weights.astype("float32")


def reference(hidden, table, bias, targets, weights, e=0.0, z=0.0):
    """Losses (batch, time) and the gradients of their weighted sum in hidden, table and bias, in float64."""
    hidden, table, bias = (a.astype("float64") for a in (hidden, table, bias))
    logits = hidden @ table.T + bias
    log_sum = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)) + logits.max(
        -1, keepdims=True
    )
    log_p, label = logits - log_sum, np.eye(len(table))[targets]
    losses = -((1 - e) * (label * log_p).sum(-1) + e * log_p.mean(-1)) + z * log_sum[..., 0] ** 2
    d_logits = (1 + 2 * z * log_sum) * np.exp(log_p) - (1 - e) * label - e / len(table)
    d_logits *= weights[..., None]
    return losses, (d_logits @ table, np.einsum("btv,btw->vw", d_logits, hidden), d_logits.sum((0, 1)))


def value_and_gradients_of(function, *tensors):
    """The scalar `function(*tensors)` and its gradients in all of them, by the backend's own differentiation."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = function(*tensors)
        return value, tape.gradient(value, tensors)
    if BACKEND == "jax":
        import jax

        return jax.value_and_grad(function, argnums=tuple(range(len(tensors))))(*tensors)
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    value = function(*leaves)
    value.backward()
    return value.detach(), [leaf.grad for leaf in leaves]


def value_and_gradients(function, *arrays):
    """The same of arrays, as float and arrays."""
    if BACKEND == "jax":
        import jax

        value, gradients = jax.jit(lambda *tensors: value_and_gradients_of(function, *tensors))(*arrays)
    else:
        value, gradients = value_and_gradients_of(function, *map(ops.convert_to_tensor, arrays))
    return float(value), [array(gradient) for gradient in gradients]


def run(function, *arrays):
    """`function(*arrays)`, eager but on JAX, where every operation would be compiled by itself."""
    if BACKEND == "jax":
        import jax

        return jax.jit(function)(*arrays)
    return function(*map(ops.convert_to_tensor, arrays))


def logits_of(hidden, table, bias):
    return ops.add(ops.matmul(hidden, ops.transpose(table)), bias)


def assert_near(found, expected, relative=1e-6):
    """Within `relative` of the largest element; a sum of a hundred products is not exact to the last bit of each."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=relative * np.abs(expected).max())


def reduced(losses, counted, weights, reduction):
    """The weighted sum of the losses of the tokens that count, by what the reduction says, in float64."""
    total = (losses * counted * weights).sum()
    return total / {"sum": 1, "mean_with_sample_weight": (counted * weights).sum()}.get(reduction, counted.sum())


@pytest.mark.backends
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean", "sum", "mean_with_sample_weight"])
@pytest.mark.parametrize("ignore_class", [None, 3, -100])
def test_reductions(reduction, ignore_class):
    """Of the plain loss and of both forms of the fused one; ignored tokens and those of -1 weigh 0."""
    (hidden, table, bias), targets, weights = problem()
    losses, _ = reference(hidden, table, bias, targets, weights)
    targets[1, 5:] = -1
    targets[2, :2] = 3 if ignore_class is None else ignore_class
    losses[2, :2] = reference(hidden, table, bias, np.full_like(targets, 3), weights)[0][2, :2]
    counted = (targets >= 0) & (targets != ignore_class)
    shapes = (None, (ROWS, TIME), (ROWS,), (ROWS, 1), (ROWS, TIME, 1))
    given = [None if shape is None else np.random.default_rng(1).random(shape).astype("float32") for shape in shapes]
    expected = []
    for one in given:
        whole = np.ones((ROWS, TIME)) if one is None else one.reshape((*one.shape, 1)[:2]) * np.ones((ROWS, TIME))
        expected += [reduced(losses, counted, whole, reduction)] * 4

    def found(hidden, table, bias):
        logits, options = logits_of(hidden, table, bias), {"ignore_class": ignore_class, "reduction": reduction}
        plain, fused = CrossEntropy(**options), FusedCrossEntropy(chunk_size=6, **options)
        results = []
        for one in given:
            of_hidden = [
                fused.of_hidden(hidden, table, bias, True, targets, one, training) for training in (True, False)
            ]
            results.append(plain(targets, logits, one))
            results += [fused(targets, number) for number in (fused.of_logits(logits, targets, one), *of_hidden)]
        return ops.stack(results)

    np.testing.assert_allclose(array(run(found, hidden, table, bias)), expected, rtol=1e-6)


@pytest.mark.backends
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight"])
@pytest.mark.parametrize("ignore_class", [None, 3, -1])
def test_reductions_are_kerass(reduction, ignore_class):
    (hidden, table, bias), targets, weights = problem()
    if ignore_class == -1:
        targets[:, 5:] = -1
    logits, options = logits_of(hidden, table, bias), {"ignore_class": ignore_class, "reduction": reduction}
    for given in (None, weights):
        kerass = keras.losses.SparseCategoricalCrossentropy(from_logits=True, **options)(targets, logits, given)
        assert float(CrossEntropy(**options)(targets, logits, given)) == pytest.approx(float(kerass), rel=1e-6)


@pytest.mark.backends
def test_a_weight_a_row_where_there_are_as_many_rows_as_tokens():
    (hidden, table, bias), targets, _ = problem(rows=TIME)
    rows = np.random.default_rng(1).random(TIME).astype("float32")
    losses, _ = reference(hidden, table, bias, targets, np.ones(targets.shape))
    expected, logits = (losses * rows[:, None]).mean(), logits_of(hidden, table, bias)
    assert abs(expected - (losses * rows[None]).mean()) > 0.01
    assert float(CrossEntropy()(targets, logits, rows)) == pytest.approx(expected, rel=1e-6)
    loss = FusedCrossEntropy(chunk_size=14)
    assert float(loss.of_hidden(hidden, table, bias, True, targets, rows)[0]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.backends
@pytest.mark.parametrize("shape", [(TIME,), (ROWS, TIME + 1), (ROWS, TIME, 2)])
def test_weights_of_another_shape_are_refused(shape):
    (hidden, table, bias), targets, _ = problem()
    message = rf"sample_weight must be one a row, \(batch,\).*\(3, 7\); got shape {re.escape(str(shape))}"
    with pytest.raises(ValueError, match=message):
        CrossEntropy()(targets, logits_of(hidden, table, bias), np.ones(shape, "float32"))
    with pytest.raises(ValueError, match=message):
        FusedCrossEntropy().of_hidden(hidden, table, bias, True, targets, np.ones(shape, "float32"))


@pytest.mark.backends
@pytest.mark.parametrize("wrong", [VOCABULARY, -2, -100, 2**31 - 1])
def test_targets_outside_the_vocabulary_are_refused(wrong):
    (hidden, table, bias), targets, _ = problem()
    targets[2, 3] = wrong
    message = f"ids from 0 to 10, or -1 .*1 of 21 are not, the first of them {wrong}.*ignore_class"
    logits, fused = logits_of(hidden, table, bias), FusedCrossEntropy()
    for refused in (
        lambda: CrossEntropy()(targets, logits),
        lambda: fused.of_logits(logits, targets),
        lambda: fused.of_hidden(hidden, table, bias, True, targets),
        lambda: fused.of_hidden(hidden, np.ascontiguousarray(table.T), bias, False, targets, training=False),
    ):
        with pytest.raises(ValueError, match=message):
            refused()


def compiled(function, monkeypatch):
    """`function` as a compiled step has it, which sees no numbers; torch's compiler would take longer than all tests."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function, autograph=False)
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    import torch

    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    return lambda *arrays: function(*map(torch.tensor, arrays))


@pytest.mark.backends
@pytest.mark.parametrize("wrong", [VOCABULARY, -2, 2**31 - 1])
def test_targets_outside_the_vocabulary_weigh_0_in_a_compiled_step(wrong, monkeypatch):
    (hidden, table, bias), targets, weights = problem()
    losses, _ = reference(hidden, table, bias, targets, weights)
    targets[0], targets[2, 3] = -1, wrong
    counted = (targets >= 0) & (targets < VOCABULARY)
    expected = (losses * weights * counted).sum() / counted.sum()
    known = np.where(counted, targets, 0)
    d_expected = reference(hidden, table, bias, known, weights * counted / counted.sum(), 0.0, 0.0)[1]

    def fused(hidden, table, bias, targets, weights):
        loss = FusedCrossEntropy(chunk_size=6)
        return loss(targets, loss.of_hidden(hidden, table, bias, True, targets, weights))

    def plain(hidden, table, bias, targets, weights):
        return CrossEntropy()(targets, logits_of(hidden, table, bias), weights)

    for loss in (fused, plain):

        def step(hidden, table, bias, targets, weights, loss=loss):
            return value_and_gradients_of(lambda *arrays: loss(*arrays, targets, weights), hidden, table, bias)

        value, gradients = compiled(step, monkeypatch)(hidden, table, bias, targets, weights)
        assert float(value) == pytest.approx(expected, rel=1e-6)
        for found, d in zip(gradients, d_expected, strict=True):
            assert_near(array(found), d)


@pytest.mark.backends
def test_what_does_not_count_may_have_an_infinite_loss():
    """As where the logit of id 0, which a mask stands for, is kept at -inf."""
    (hidden, table, bias), targets, _ = problem()
    targets, bias[0] = np.maximum(targets, 1), -np.inf
    targets[1] = -1
    losses, _ = reference(hidden, table[1:], bias[1:], targets - 1 + (targets < 0), np.ones(targets.shape))
    expected = losses[[0, 2]].mean()
    loss = FusedCrossEntropy(chunk_size=6)
    value, gradients = value_and_gradients(lambda *a: loss.of_hidden(*a, True, targets)[0], hidden, table, bias)
    assert value == pytest.approx(expected, rel=1e-6)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.backends
@pytest.mark.parametrize("rows, time", [(0, TIME), (ROWS, 0)])
def test_a_batch_of_nothing(rows, time):
    (hidden, table, bias), targets, weights = problem(rows=rows, time=time)
    loss = FusedCrossEntropy(chunk_size=6)
    for given in (None, weights):
        assert float(CrossEntropy()(targets, logits_of(hidden, table, bias), given)) == 0.0
        value, gradients = value_and_gradients(
            lambda *a, given=given: loss.of_hidden(*a, True, targets, given)[0], hidden, table, bias
        )
        assert value == 0.0
        assert [gradient.shape for gradient in gradients] == [hidden.shape, table.shape, bias.shape]
        assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.backends
def test_losses_of_tokens_with_smoothing_and_z_loss():
    (hidden, table, bias), targets, weights = problem()
    loss = CrossEntropy(label_smoothing=0.2, z_loss=0.01)
    expected, d_expected = reference(hidden, table, bias, targets, weights, 0.2, 0.01)
    found = loss.call(ops.convert_to_tensor(targets), ops.convert_to_tensor(logits_of(hidden, table, bias)))
    assert_near(array(found), expected)

    def weighted_sum(*arrays):
        return CrossEntropy(0.2, 0.01, reduction="sum")(targets, logits_of(*arrays), weights)

    value, gradients = value_and_gradients(weighted_sum, hidden, table, bias)
    assert value == pytest.approx((expected * weights).sum(), rel=1e-6)
    for found, d in zip(gradients, d_expected, strict=True):
        assert_near(found, d)
    assert abs(expected.mean() - reference(hidden, table, bias, targets, weights)[0].mean()) > 0.05


@pytest.mark.backends
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("chunk_size", "e", "z"), [(None, 0.0, 0.0), (3, 0.0, 0.0), (6, 0.1, 1e-2), (12, 0.1, 0.0)])
def test_gradients_of_the_fused_loss(tied, with_bias, chunk_size, e, z):
    """Chunks of 1, 2 and 4 of the 7 tokens of a row: 2 and 4 do not divide."""
    (hidden, table, bias), targets, weights = problem()

    def weighted_sum(hidden, kernel, bias=None):
        return fused_cross_entropy(hidden, kernel, bias, targets, weights, tied, e, z, chunk_size)

    arrays = [hidden, table if tied else np.ascontiguousarray(table.T), *([bias] if with_bias else [])]
    value, gradients = value_and_gradients(weighted_sum, *arrays)
    losses, expected = reference(hidden, table, bias if with_bias else 0 * bias, targets, weights, e, z)
    assert value == pytest.approx((losses * weights).sum(), rel=1e-6)
    if not tied:
        gradients[1] = gradients[1].T
    for found, d in zip(gradients, expected, strict=False):
        assert_near(found, d)
    without = fused_cross_entropy(
        *arrays[:2], arrays[2] if with_bias else None, targets, weights, tied, e, z, chunk_size, gradients=False
    )
    assert float(without) == pytest.approx(value, rel=1e-6)


@pytest.mark.backends
def test_gradients_are_those_of_kerass_loss():
    arrays, targets, weights = problem(rows=4, time=32, width=16, vocabulary=300)

    def plain(*arrays):
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)(targets, logits_of(*arrays), weights)

    def fused(*arrays):
        loss = FusedCrossEntropy(chunk_size=20)
        return loss(targets, loss.of_hidden(*arrays, True, targets, weights))

    expected, d_expected = value_and_gradients(plain, *arrays)
    value, gradients = value_and_gradients(fused, *arrays)
    assert value == pytest.approx(expected, rel=1e-6)
    for found, d in zip(gradients, d_expected, strict=True):
        assert_near(found, d)


@pytest.mark.backends
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype):
    """Hidden states in half precision, weights in float32: their gradient comes in float32, and near."""
    (hidden, table, bias), targets, weights = problem(rows=4, time=32, width=16, vocabulary=300)
    hidden = array(ops.cast(ops.cast(hidden, dtype), "float32"))
    table = array(ops.cast(ops.cast(table, dtype), "float32"))
    scale = 1024.0  # a scaled loss over 128 tokens

    def mean(hidden, table, bias):
        return scale / 128 * fused_cross_entropy(ops.cast(hidden, dtype), table, bias, targets, weights, chunk_size=16)

    value, gradients = value_and_gradients(mean, hidden, table, bias)
    losses, expected = reference(hidden, table, bias, targets, weights)
    assert value == pytest.approx(scale * (losses * weights).mean(), rel=5e-3)
    for found, d in zip(gradients, expected, strict=True):
        assert_near(found, d * scale / 128, 1e-2 * cut_products(dtype))


@pytest.mark.backends
@pytest.mark.parametrize("smallest", [1.0, 1e-7, 1e-12])
@pytest.mark.parametrize("tied", [True, False])
def test_no_weight_is_too_small_for_float16(smallest, tied):
    """Half of the tokens weigh a thousandth of the others; the upstream gradient makes up for the size of all."""
    (hidden, table, bias), targets, weights = problem(rows=4, time=32, width=16, vocabulary=300)
    hidden, table = (array(ops.cast(ops.cast(a, "float16"), "float32")) for a in (hidden, table))
    weights = (0.1 + weights) * smallest * np.where(np.arange(32) % 2, 1e-3, 1.0).astype("float32")

    def weighed(hidden, kernel, bias):
        hidden = ops.cast(hidden, "float16")
        return fused_cross_entropy(hidden, kernel, bias, targets, weights, tied, chunk_size=16) / smallest

    value, gradients = value_and_gradients(weighed, hidden, table if tied else np.ascontiguousarray(table.T), bias)
    losses, expected = reference(hidden, table, bias, targets, weights.astype("float64") / smallest)
    assert value == pytest.approx((losses * (weights / smallest)).sum(), rel=5e-3)
    gradients[1] = gradients[1] if tied else gradients[1].T
    for found, d in zip(gradients, expected, strict=True):
        assert_near(found, d, 1e-2)
    assert_near(gradients[0][:, 1::2], expected[0][:, 1::2], 1e-2)  # of the small ones alone


@pytest.mark.backends
def test_no_sum_is_too_large_for_float16():
    """Of 50,000 words that are all as likely, of embeddings around 3: their sum is 150,000."""
    hidden, table = np.tile(np.array([2.0, -2.0], "float32"), (2, 3, 1)), np.full((50000, 2), 3.0, "float32")
    table[:, 1] += np.arange(50000) % 2 * 0.5 - 0.25  # nearly the same logit for all of them
    hidden[..., 1] = 0.0
    targets, weights = np.arange(6, dtype="int32").reshape(2, 3), np.full((2, 3), 0.5, "float32")

    def weighed(hidden, table):
        return fused_cross_entropy(ops.cast(hidden, "float16"), table, None, targets, weights)

    _, (d_hidden, d_table) = value_and_gradients(weighed, hidden, table)
    # p is 1 / 50,000: d_hidden is w (mean of E - E_y), d_table w p h for each token, less w h for its target
    np.testing.assert_allclose(d_hidden[..., 0], 0.0, atol=5e-3)
    np.testing.assert_allclose(d_hidden[..., 1], -0.5 * (table[:6, 1] - 3.0).reshape(2, 3), atol=5e-3)
    np.testing.assert_allclose(d_table[6:, 0], 6 * 0.5 * 2.0 / 50000, rtol=1e-2)
    np.testing.assert_allclose(d_table[:6, 0], -0.5 * 2.0, rtol=1e-3)


@pytest.mark.backends
def test_all_labels_ignored():
    (hidden, table, bias), targets, _ = problem()
    targets[:] = -1
    options = {"ignore_class": -1, "label_smoothing": 0.1, "z_loss": 1e-3}
    assert float(CrossEntropy(**options)(targets, logits_of(hidden, table, bias))) == 0.0
    loss = FusedCrossEntropy(chunk_size=6, **options)
    value, gradients = value_and_gradients(lambda *a: loss.of_hidden(*a, True, targets)[0], hidden, table, bias)
    assert value == 0.0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.backends
def test_targets_may_be_floats_or_columns():
    (hidden, table, bias), targets, _ = problem()
    logits = logits_of(hidden, table, bias)
    expected = float(CrossEntropy()(targets, logits))
    assert float(CrossEntropy()(targets.astype("float32")[..., None], logits)) == expected
    loss = FusedCrossEntropy()
    assert float(loss.of_hidden(hidden, table, bias, True, targets[..., None])[0]) == pytest.approx(expected, rel=1e-6)


def test_ids_are_not_rounded_where_floatx_is_half():
    logits = np.zeros((1, 1, 300), "float32")
    logits[0, 0, 257] = 20.0
    keras.config.set_floatx("bfloat16")
    try:
        assert float(CrossEntropy()(np.array([[257]]), logits)) < 1e-4
    finally:
        keras.config.set_floatx("float32")


def test_large_logits_do_not_overflow():
    hidden, table = np.full((1, 2, 1), 300.0, "float32"), np.array([[1.0], [0.5], [-1.0]], "float32")
    targets = np.array([[0, 1]], "int32")
    value, gradients = value_and_gradients(lambda h, t: fused_cross_entropy(h, t, None, targets), hidden, table)
    assert value == pytest.approx(150.0)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def sizes_of_jaxpr(jaxpr):
    """Number of elements of everything that a jaxpr computes, inner ones included."""
    import jax

    for equation in jaxpr.eqns:
        yield from (int(np.prod(variable.aval.shape)) for variable in equation.outvars)
        for parameter in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from sizes_of_jaxpr(inner)


def sizes_of_graph(function):
    """Number of elements of everything that a concrete function of TensorFlow computes, bodies of loops included."""
    definition = function.graph.as_graph_def(add_shapes=True)
    for nodes in (definition.node, *(inner.node_def for inner in definition.library.function)):
        for node in nodes:
            for shape in node.attr["_output_shapes"].list.shape:
                yield 0 if shape.unknown_rank else int(np.prod([dimension.size for dimension in shape.dim]))


def largest_computed(function, *arrays):
    """Number of elements of the largest tensor that `function(*arrays)` computes."""
    if BACKEND == "jax":
        import jax

        return max(sizes_of_jaxpr(jax.make_jaxpr(function)(*arrays).jaxpr))
    if BACKEND == "tensorflow":
        import tensorflow as tf

        function = tf.function(function, autograph=False)
        return max(sizes_of_graph(function.get_concrete_function(*map(tf.constant, arrays))))
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Sizes(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            result = operation(*args, **(kwargs or {}))
            sizes = [leaf.numel() for leaf in keras.tree.flatten(result) if isinstance(leaf, torch.Tensor)]
            self.largest = max([self.largest, *sizes])
            return result

    with Sizes() as sizes:
        function(*map(torch.tensor, arrays))
    return sizes.largest


@pytest.mark.backends
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_no_tensor_of_all_logits(tied, training):
    (hidden, table, bias), targets, _ = problem(rows=2, time=640, width=4, vocabulary=2000)
    arrays = hidden, table if tied else np.ascontiguousarray(table.T), bias
    loss = FusedCrossEntropy(label_smoothing=0.1, z_loss=1e-4, chunk_size=128)

    def fused(hidden, kernel, bias):
        return loss.of_hidden(hidden, kernel, bias, tied, targets, None, training)[0]

    def plain(hidden, kernel, bias):
        return CrossEntropy()(targets, logits_of(hidden, kernel if tied else ops.transpose(kernel), bias))

    def largest(function):
        if not training:
            return largest_computed(function, *arrays)
        return largest_computed(lambda *tensors: value_and_gradients_of(function, *tensors), *arrays)

    assert largest(plain) >= 1280 * 2000
    assert largest(fused) == 128 * 2000


def test_default_chunks():
    """16 MiB of logits, 128 to 4096 tokens, 32 chunks at most; 32 rows are assumed where their number is not known."""
    chunks = {
        (16, 256, 8192, None): 8,
        (16, 256, 50257, None): 32,
        (64, 1024, 50257, None): 32,
        (16, 256, 260, None): 1,
        (64, 1024, 260, None): 16,
        (None, 256, 8192, None): 16,
        (16, None, 8192, None): 8,
        (16, 256, 8192, 4096): 1,
        (16, 256, 8192, 1): 256,
        (1000, 3, 8192, None): 3,
        (0, 256, 8192, None): 1,
    }
    assert {case: _num_chunks(*case) for case in chunks} == chunks


def test_default_chunks_of_an_accelerator():
    """2 GiB of logits, which are more than 8,192 tokens of a vocabulary of 50,304, whatever the batch's size."""
    chunks = {
        (16, 256, 8192, None): 1,
        (8, 1024, 50304, None): 1,
        (16, 1024, 50304, None): 2,
        (64, 1024, 50304, None): 7,
        (512, 1024, 50304, None): 52,
        (16, 1024, 250000, None): 8,
        (16, 1024, 50304, 512): 32,
        (16, None, 50304, None): 8,
    }
    assert {case: _num_chunks(*case, accelerator=True) for case in chunks} == chunks


@pytest.mark.backends
def test_the_device_decides(monkeypatch):
    """A model on an accelerator, or that says so, makes logits of all 2,048 tokens at once, and on a processor of 512."""
    (hidden, table, bias), targets, _ = problem(rows=2, time=1024, width=4, vocabulary=8192)

    def largest():
        return largest_computed(
            lambda *a: FusedCrossEntropy().of_hidden(*a, True, targets, None)[0], hidden, table, bias
        )

    assert largest() == 512 * 8192
    monkeypatch.setattr(fused, "_on_accelerator", lambda tensor: True)
    assert largest() == 2048 * 8192


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the other backends know every length")
@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("shape", [(None, None), (None, TIME), (ROWS, None)])
def test_lengths_that_are_not_known_before(shape, jit):
    import tensorflow as tf

    (hidden, table, bias), targets, weights = problem()

    @tf.function(jit_compile=jit, autograph=False)
    def step(hidden, targets, weights):
        kernel = tf.constant(table)
        with tf.GradientTape() as tape:
            tape.watch((hidden, kernel))
            value = fused_cross_entropy(hidden, kernel, bias, targets, weights, chunk_size=3)
        return value, *tape.gradient(value, (hidden, kernel))

    specs = [tf.TensorSpec((*shape, WIDTH)), tf.TensorSpec(shape, tf.int32), tf.TensorSpec(shape)]
    step = step.get_concrete_function(*specs)
    for time in (TIME, 2) if shape[1] is None else (TIME,):  # 2: fewer tokens than chunks
        parts = hidden[:, :time], targets[:, :time], weights[:, :time]
        losses, expected = reference(parts[0], table, bias, *parts[1:])
        value, *gradients = step(*map(tf.constant, parts))
        assert float(value) == pytest.approx((losses * parts[2]).sum(), rel=1e-6)
        for found, d in zip(gradients, expected, strict=False):
            assert_near(array(found), d)


def test_what_cannot_be_is_refused():
    for options in ({"label_smoothing": 1.0}, {"label_smoothing": -0.1}, {"z_loss": -1.0}, {"z_loss": float("inf")}):
        with pytest.raises(ValueError, match=next(iter(options))):
            CrossEntropy(**options)
    with pytest.raises(ValueError, match="chunk_size"):
        FusedCrossEntropy(chunk_size=0)
    with pytest.raises(ValueError, match="give a reduction"):
        FusedCrossEntropy(reduction=None)
    assert array(CrossEntropy(reduction=None)(np.zeros((2, 3), "int32"), np.zeros((2, 3, 4), "float32"))).shape == (
        2,
        3,
    )


@pytest.mark.backends
def test_a_model_that_is_no_language_model_is_refused():
    model = keras.Sequential([keras.layers.Embedding(20, 4), keras.layers.Dense(20)])
    model.compile("sgd", loss=FusedCrossEntropy(), jit_compile=False)
    ids = np.zeros((2, 3), "int32")
    with pytest.raises(ValueError, match=r"\(2, 3, 20\).*compile\(loss=CrossEntropy"):
        model.train_on_batch(ids, ids)
    with pytest.raises(ValueError, match=r"\(2, 3, 20\).*compile\(loss=CrossEntropy"):
        FusedCrossEntropy()(ids, np.zeros((2, 3, 20), "float32"))


def test_configs():
    loss = FusedCrossEntropy(0.1, 1e-4, ignore_class=2, chunk_size=64, reduction="sum", name="mine")
    twin = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(twin) is FusedCrossEntropy and twin.get_config() == loss.get_config()
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(CrossEntropy(0.1)))
    assert type(twin) is CrossEntropy and twin.get_config() == CrossEntropy(0.1).get_config()
