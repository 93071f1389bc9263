"""Cross-entropy fused with the projection that makes the logits, so that these never stand in memory all at once."""

from typing import NamedTuple

import keras
from keras import ops

from keras_seqlm.losses.targets import counted_tokens
from keras_seqlm.products import outer_products, value_of

CHUNK_ELEMENTS = 2**22  # of one chunk's logits: 16 MiB in float32, which a processor's caches and memory bear well
SMALLEST_CHUNK, LARGEST_CHUNK = 128, 4096  # tokens
MOST_CHUNKS = 32
# 2 GiB, 10,672 tokens of GPT-2's vocabulary: an H100 trains with chunks of 8,192 as fast as without any (512: 0.85x)
CHUNK_ELEMENTS_OF_ACCELERATOR = 2**29
CHUNKS_OF_UNKNOWN_TIME = 8
ROWS_OF_UNKNOWN_BATCH = 32  # Keras's own batch size


def fused_cross_entropy(
    hidden,
    kernel,
    bias,
    targets,
    weights=None,
    vocabulary_first=True,
    label_smoothing=0.0,
    z_loss=0.0,
    chunk_size=None,
    gradients=True,
):
    """The weighted sum of the tokens' `CrossEntropy` from hidden states, differentiable in hidden, kernel and bias.

    With p the softmax of the logits h E^T of one token, its gradients are (p - y) E and (p - y)^T h. Products with the
    label y are a gather and a sum of rows; those with the uniform distribution of label smoothing need the sum of E's
    and of h's rows alone.

    Args:
        hidden: (batch, time, width), in whose dtype the products are made; softmax and sums are in float32.
        kernel: (vocabulary, width), or, if not `vocabulary_first`, (width, vocabulary).
        bias: (vocabulary,) or None.
        targets: int32 (batch, time); tokens whose target is outside the vocabulary, as -1, weigh 0.
        weights: of the tokens' losses: None for 1, or float32 that multiplies with (batch, time).
        vocabulary_first: the order of the kernel's axes.
        label_smoothing, z_loss: as in `CrossEntropy`.
        chunk_size: as in `FusedCrossEntropy`. Where the time is not known before it runs, there are 8 chunks.
        gradients: False computes the loss only.

    Returns:
        float32 scalar.

    Example:

    >>> hidden, table = keras.ops.ones((2, 5, 8)), keras.ops.zeros((50, 8))
    >>> round(float(fused_cross_entropy(hidden, table, None, keras.ops.ones((2, 5), "int32"))), 3)  # 10 ln 50
    39.12
    """
    hidden, kernel = value_of(hidden), value_of(kernel)
    bias = () if bias is None else (value_of(bias),)
    targets = ops.cast(targets, "int32")
    counted = counted_tokens(targets, kernel.shape[0 if vocabulary_first else 1])
    targets, weights = ops.where(counted, targets, 0), ops.where(counted, 1.0 if weights is None else weights, 0.0)
    how = _How(vocabulary_first, label_smoothing, z_loss, chunk_size, gradients)
    if not gradients:
        return _on_all_devices(hidden, kernel, bias, targets, weights, how)[0]

    @ops.custom_gradient
    def weighted_sum(hidden, kernel, *bias):
        total, *parts = _on_all_devices(hidden, kernel, bias, targets, weights, how)

        def gradient(*args, upstream=None):
            upstream = args[0] if upstream is None else upstream
            # In float32: the upstream gradient holds 1 / tokens and a mixed_float16 policy's scale of the loss, and
            # float16 has no room for small weights, so that d_hidden comes without them.
            scales = [upstream * weights[..., None], *[upstream] * (1 + len(bias))]
            scaled = [scale * ops.cast(part, "float32") for scale, part in zip(scales, parts, strict=True)]
            dtypes = [tensor.dtype for tensor in (hidden, kernel, *bias)]
            return tuple(ops.cast(part, dtype) for part, dtype in zip(scaled, dtypes, strict=True))

        return total, gradient

    return weighted_sum(hidden, kernel, *bias)


class _How(NamedTuple):
    vocabulary_first: bool
    label_smoothing: float
    z_loss: float
    chunk_size: int | None
    gradients: bool


def _num_chunks(batch, time, vocabulary, chunk_size, accelerator=False):
    """Chunks are cut along time: along tokens they would cut a batch that lies spread over devices."""
    if time is None:  # TensorFlow alone
        return CHUNKS_OF_UNKNOWN_TIME
    tokens = (ROWS_OF_UNKNOWN_BATCH if batch is None else batch) * time
    if chunk_size is None and accelerator:
        chunk_size = max(CHUNK_ELEMENTS_OF_ACCELERATOR // vocabulary, SMALLEST_CHUNK)
    elif chunk_size is None:
        chunk_size = min(max(CHUNK_ELEMENTS // vocabulary, SMALLEST_CHUNK), LARGEST_CHUNK)
        chunk_size = max(chunk_size, -(-tokens // MOST_CHUNKS))
    steps = max(1, chunk_size * time // max(1, tokens))
    return max(1, -(-time // steps))


def _on_accelerator(tensor):
    """Whether a tensor lies on one, or will, where it is only being traced."""
    backend = keras.backend.backend()
    if backend == "torch":
        return tensor.device.type not in ("cpu", "meta")
    if backend == "jax":
        import jax

        return jax.default_backend() != "cpu"
    import tensorflow as tf

    return bool(tf.config.get_visible_devices("GPU"))


def _on_all_devices(hidden, kernel, bias, targets, weights, how):
    """`_all_chunks`; where JAX's devices share a batch, each makes the chunks of its own rows, and sums are exchanged once.

    The compiler, left alone, would exchange the kernel's gradient inside the loop, once a chunk. A kernel that is itself
    cut over the mesh's other axis stays so, and is left to the compiler.
    """
    tensors = (hidden, kernel, bias, targets, weights)
    mesh, axis = _mesh_of_rows(hidden)
    if mesh is None:
        return _all_chunks(*tensors, how)
    import jax
    from jax.sharding import PartitionSpec

    def of_own_rows(*tensors):
        total, *parts = _all_chunks(*tensors, how)
        total, *sums = jax.lax.psum([total, *parts[1:]], axis)
        return [total, *parts[:1], *sums]

    rows, whole = PartitionSpec(axis), PartitionSpec()
    ins, outs = (
        (rows, whole, whole, rows, rows),
        [whole, rows, *[whole] * (1 + len(bias))] if how.gradients else [whole],
    )
    return jax.shard_map(of_own_rows, mesh=mesh, in_specs=ins, out_specs=outs, axis_names={axis}, check_vma=False)(
        *tensors
    )


def _mesh_of_rows(hidden):
    """The mesh of JAX devices over which `keras.distribution` spreads the rows that are traced now, and its axis; or None."""
    distribution = keras.distribution.distribution() if keras.backend.backend() == "jax" else None
    if distribution is None or distribution.batch_dim_name is None:
        return None, None
    import jax

    mesh, axis = distribution.device_mesh.backend_mesh, distribution.batch_dim_name
    spread = isinstance(hidden, jax.core.Tracer) and mesh.shape[axis] > 1 and hidden.shape[0] % mesh.shape[axis] == 0
    return (mesh, axis) if spread else (None, None)


def _all_chunks(hidden, kernel, bias, targets, weights, how):
    """[sum of losses], with gradients [sum, d_hidden, d_kernel, d_bias if there is one]; d_hidden lacks the weights."""
    if 0 in hidden.shape[:2]:  # no token, of which Keras would refuse to take a maximum
        parts = (hidden, kernel, *bias) if how.gradients else ()
        return [ops.zeros((), "float32"), *map(ops.zeros_like, parts)]
    vocabulary = kernel.shape[0 if how.vocabulary_first else 1]
    chunks = _num_chunks(*hidden.shape[:2], vocabulary, how.chunk_size, _on_accelerator(hidden))
    table = ops.cast(kernel, hidden.dtype)
    bias = [ops.cast(vector, "float32") for vector in bias]
    even = None  # the mean row and the mean bias: what label smoothing takes of every id
    if how.label_smoothing:
        row = ops.mean(ops.cast(kernel, "float32"), axis=0 if how.vocabulary_first else 1)
        even = row[:, None], ops.mean(bias[0]) if bias else 0.0

    def one_chunk(h, y, w):
        return _one_chunk(h, y, w, table, bias, even, how)

    tensors = hidden, targets[..., None], weights[..., None]
    if chunks == 1:
        sums, d_hidden = one_chunk(*tensors)
    else:
        shapes = [(), *(weight.shape for weight in (kernel, *bias) if how.gradients)]
        sums, d_hidden = _loop(one_chunk, tensors, shapes, chunks, how.gradients)
    if not how.gradients:
        return sums
    total, *sums = sums
    return [total, d_hidden, *_with_labels(sums, hidden, targets, weights, how)]


def _loop(one_chunk, tensors, shapes, chunks, gradients):
    """What `one_chunk(*tensors)` gives, made chunk by chunk: sums of these shapes, and d_hidden.

    The loop is the backend's, since XLA makes the chunks of an unrolled one all at once, with all logits in memory.
    """
    stacks = [_stack(tensor, chunks) for tensor in tensors]
    sums = tuple(ops.zeros(shape, "float32") for shape in shapes)
    rows = (ops.zeros_like(stacks[0]),) if gradients else ()

    def body(i, carried):
        # TensorFlow's executor, too, does what it can at once, if it is not told to wait.
        new, d_h = one_chunk(*(stack[i] for stack in _after(carried, stacks)))
        sums, rows = carried
        return tuple(map(_plus, sums, new)), tuple(_put(stack, i, d_h) for stack in rows)

    sums, rows = ops.fori_loop(0, chunks, body, (sums, rows))
    if not gradients:
        return sums, None
    d_hidden = ops.transpose(rows[0], (1, 0, 2, 3))  # (batch, chunks, time of a chunk, width)
    d_hidden = ops.reshape(d_hidden, (*_whole_shape(tensors[0], chunks), d_hidden.shape[-1]))
    return sums, d_hidden[:, : ops.shape(tensors[0])[1]]


def _one_chunk(h, y, w, table, bias, even, how):
    """Of tokens h (..., width), y and w (..., 1): [loss, d_kernel, d_bias], which lack the labels, and d_h without w."""
    shape, e, z = ops.shape(h), how.label_smoothing, how.z_loss
    h, y, w = (ops.reshape(tensor, (-1, tensor.shape[-1])) for tensor in (h, y, w))
    logits = ops.cast(_product(h, table, transpose_b=how.vocabulary_first), "float32")  # (tokens, vocabulary)
    if bias:
        logits += bias[0]
    of_target = ops.take_along_axis(logits, y, axis=1)
    peak = ops.max(logits, axis=1, keepdims=True)
    logits -= peak
    powers = _exp(logits)
    denominator = ops.sum(powers, axis=1, keepdims=True)
    log_sum = ops.log(denominator) + peak
    losses = log_sum - (1.0 - e) * of_target  # (tokens, 1)
    if e:
        losses -= e * (ops.matmul(ops.cast(h, "float32"), even[0]) + even[1])
    if z:
        losses += z * ops.square(log_sum)
    total = ops.sum(ops.where(ops.equal(w, 0.0), 0.0, losses * w))  # what does not count may be infinite
    if not how.gradients:
        return [total], None
    share = (1.0 + 2.0 * z * log_sum) / denominator  # powers * share: the softmax's part of the logits' gradient
    is_float16 = keras.backend.standardize_dtype(h.dtype) == "float16"
    if is_float16:  # sums of powers could be larger than float16's numbers: 256 p takes their place
        powers *= 256.0 / denominator
        share *= denominator / 256.0
    d_bias = [_product(w * share, powers, transpose_a=True)[0]] if bias else []
    powers = ops.cast(powers, h.dtype)
    d_h = ops.cast(_product(powers, table, transpose_b=not how.vocabulary_first), "float32")
    d_h *= share
    row = ops.take(table, y[:, 0], axis=0) if how.vocabulary_first else ops.transpose(ops.take(table, y[:, 0], axis=1))
    row = ops.cast(row, "float32")
    if e:
        row = (1.0 - e) * row + e * ops.transpose(even[0])
    d_h -= row
    scaled = w * share * ops.cast(h, "float32")
    if is_float16:  # in a unit in which no weight is too small, and no sum too large
        unit = ops.maximum(ops.sum(ops.max(ops.abs(scaled), axis=1)), 1e-30) / 64.0
        scaled /= unit
    scaled = ops.cast(scaled, h.dtype)
    left, right = (powers, scaled) if how.vocabulary_first else (scaled, powers)
    d_table = ops.cast(outer_products(left, right), "float32")
    if is_float16:
        d_table *= unit
    return [total, d_table, *d_bias], ops.reshape(ops.cast(d_h, h.dtype), shape)


def _with_labels(sums, hidden, targets, weights, how):
    """[d_kernel, d_bias] less what the labels take: sums of rows of h, and of weights."""
    e, ids, weights = how.label_smoothing, ops.reshape(targets, (-1,)), ops.reshape(weights, (-1, 1))
    rows = weights * ops.cast(ops.reshape(hidden, (-1, hidden.shape[-1])), "float32")
    results = []
    for softmax, data in zip(sums, (rows, weights), strict=False):
        transposed = len(softmax.shape) == 2 and not how.vocabulary_first
        vocabulary = softmax.shape[1 if transposed else 0]
        label = _sum_rows(data, ids, vocabulary)
        if e:
            label = (1.0 - e) * label + e / vocabulary * ops.sum(data, axis=0)
        label = ops.transpose(label) if transposed else ops.reshape(label, softmax.shape)
        results.append(softmax - label)
    return results


def _whole_shape(tensor, chunks):
    """(batch, time), the time rounded up to a multiple of `chunks`."""
    batch, time = ops.shape(tensor)[:2]
    return batch, -(-time // chunks) * chunks


def _stack(tensor, chunks):
    """(batch, time, d) cut along time: (chunks, batch, time / chunks, d); zeros fill the last chunk up."""
    (batch, time), width = _whole_shape(tensor, chunks), tensor.shape[-1]
    filling = time - ops.shape(tensor)[1]
    if not isinstance(filling, int) or filling:
        tensor = ops.concatenate([tensor, ops.zeros((batch, filling, width), tensor.dtype)], axis=1)
    return ops.transpose(ops.reshape(tensor, (batch, chunks, time // chunks, width)), (1, 0, 2, 3))


def _product(a, b, transpose_a=False, transpose_b=False):
    return ops.matmul(ops.transpose(a) if transpose_a else a, ops.transpose(b) if transpose_b else b)


def _plus(a, b):
    a += b  # in place on torch, whose tensors can be changed
    return a


def _exp(x):
    """exp(x), in place on torch."""
    return x.exp_() if keras.backend.backend() == "torch" else ops.exp(x)


def _sum_rows(rows, ids, vocabulary):
    """For every id the sum of the rows that bear it: (vocabulary, width)."""
    if keras.backend.backend() == "torch":  # where Keras's copies every id once for each column
        return rows.new_zeros((vocabulary, rows.shape[1])).index_add_(0, ids, rows)
    return ops.segment_sum(rows, ids, num_segments=vocabulary)


def _put(stack, i, rows):
    """`stack` with `rows` as its element `i`, in place on torch."""
    if keras.backend.backend() == "torch":
        stack[i] = rows
        return stack
    return ops.scatter_update(stack, ops.reshape(i, (1, 1)), rows[None])


def _after(done, tensors):
    """`tensors`, to be had when `done` is."""
    if keras.backend.backend() != "tensorflow":
        return tensors
    import tensorflow as tf

    with tf.control_dependencies(tf.nest.flatten(done)):
        return [tf.identity(tensor) for tensor in tensors]
