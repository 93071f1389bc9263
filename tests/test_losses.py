"""Both losses against Keras's own and against their formula in float64; the fused one without a tensor of all logits."""

import keras
import numpy as np
import pytest
from helpers import array
from keras import ops

from keras_seqlm.losses import CrossEntropy, FusedCrossEntropy, fused_cross_entropy
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


def logits_of(hidden, table, bias):
    return ops.add(ops.matmul(hidden, ops.transpose(table)), bias)


def assert_near(found, expected, relative=1e-6):
    """Within `relative` of the largest element; a sum of a hundred products is not exact to the last bit of each."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=relative * np.abs(expected).max())


@pytest.mark.backends
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight"])
@pytest.mark.parametrize("ignore_class", [None, 3, -1])
def test_reductions_are_kerass(reduction, ignore_class):
    (hidden, table, bias), targets, _ = problem()
    if ignore_class == -1:
        targets[:, 5:] = -1
    logits = logits_of(hidden, table, bias)
    options = {"ignore_class": ignore_class, "reduction": reduction}
    for shape in (None, (ROWS, TIME), (ROWS, 1), (TIME,), (ROWS, TIME, 1)):
        weights = None if shape is None else np.random.default_rng(1).random(shape).astype("float32")
        whole = weights
        if weights is not None and ignore_class is not None:  # Keras on torch wants them of full size there
            whole = np.broadcast_to(weights.reshape(shape[:2]), (ROWS, TIME)).copy()
        expected = float(
            keras.losses.SparseCategoricalCrossentropy(from_logits=True, **options)(targets, logits, whole)
        )
        assert float(CrossEntropy(**options)(targets, logits, weights)) == pytest.approx(expected, rel=1e-6)
        fused = FusedCrossEntropy(chunk_size=6, **options)
        of_logits = fused.of_logits(logits, targets, weights)
        assert float(fused(targets, of_logits)) == pytest.approx(expected, rel=1e-6)
        of_hidden = fused.of_hidden(hidden, table, bias, True, targets, weights, training=False)
        assert float(fused(targets, of_hidden)) == pytest.approx(expected, rel=1e-6)


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
        assert_near(found, d * scale / 128, 1e-2)


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
    }
    assert {case: _num_chunks(*case) for case in chunks} == chunks


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
