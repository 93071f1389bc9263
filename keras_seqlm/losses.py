"""Cross-entropy of next tokens: from logits, and fused with the projection that makes them, so that they never stand in memory."""

from typing import NamedTuple

import keras
from keras import ops

CHUNK_ELEMENTS = 2**22  # of one chunk's logits: 16 MiB in float32, which a processor's caches and memory bear well
SMALLEST_CHUNK, LARGEST_CHUNK = 128, 4096  # tokens
MOST_CHUNKS = 32
CHUNKS_OF_UNKNOWN_TIME = 8
ROWS_OF_UNKNOWN_BATCH = 32  # Keras's own batch size


@keras.saving.register_keras_serializable("keras_seqlm")
class CrossEntropy(keras.losses.Loss):
    """-ln p of the next token from logits, with label smoothing and z-loss.

        loss = (1 - e) * (-ln p_y) + e * mean_v(-ln p_v) + z * (ln sum_v exp(logit_v))^2

    Without smoothing and z-loss it is `keras.losses.SparseCategoricalCrossentropy(from_logits=True)`. The softmax is
    computed in float32, whatever the model's precision.

    References: label smoothing: Szegedy et al. 2016, arXiv:1512.00567; z-loss: Chowdhery et al. 2022 (PaLM),
    arXiv:2204.02311.

    Args:
        label_smoothing: e, the share of the target's probability that is spread over the whole vocabulary.
        z_loss: z, the weight of the squared logarithm of the softmax's denominator; PaLM's is 1e-4.
        ignore_class: tokens with this target have loss 0, and the mean is over the others.
        reduction: as in `keras.losses.Loss`.
        name: of the loss.

    Call arguments:
        y_true: integer targets (batch, time).
        y_pred: logits (batch, time, vocabulary).
        sample_weight: None, or what multiplies with (batch, time).

    Raises:
        ValueError: a label smoothing that is not in [0, 1), a negative z-loss.

    Example:

    >>> model = keras.Sequential([keras.layers.Embedding(50, 8), keras.layers.Dense(50)])
    >>> model.compile("adam", loss=CrossEntropy(label_smoothing=0.1))
    >>> loss = CrossEntropy(ignore_class=0)(keras.ops.array([[2, 0]]), keras.ops.zeros((1, 2, 50)))
    >>> round(float(loss), 3)  # ln 50: the one token that counts
    3.912
    """

    def __init__(
        self,
        label_smoothing=0.0,
        z_loss=0.0,
        ignore_class=None,
        reduction="sum_over_batch_size",
        name="cross_entropy",
    ):
        # float32 under any `floatx`, because a half precision would round the targets' ids, too
        super().__init__(name=name, reduction=reduction, dtype="float32")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be at least 0 and below 1, got {label_smoothing!r}")
        if not 0 <= z_loss < float("inf"):
            raise ValueError(f"z_loss must be a number of at least 0, got {z_loss!r}")
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss
        self.ignore_class = ignore_class

    def __call__(self, y_true, y_pred, sample_weight=None):
        y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
        targets = _targets(y_true, y_pred)
        return super().__call__(targets, y_pred, self.weights(targets, sample_weight))

    def call(self, y_true, y_pred):
        """The loss of each token, float32 (batch, time)."""
        targets = _targets(y_true, y_pred)
        counted = None if self.ignore_class is None else ops.not_equal(targets, self.ignore_class)
        if counted is not None:
            targets = ops.where(counted, targets, 0)
        losses = ops.sparse_categorical_crossentropy(targets, y_pred, from_logits=True)
        if self.label_smoothing:
            of_target = ops.take_along_axis(y_pred, targets[..., None], axis=-1)[..., 0]
            losses += self.label_smoothing * (of_target - ops.mean(y_pred, axis=-1))
        if self.z_loss:
            losses += self.z_loss * ops.square(ops.logsumexp(y_pred, axis=-1))
        return losses if counted is None else ops.where(counted, losses, 0.0)

    def weights(self, targets, sample_weight=None):
        """`sample_weight` with 0 at ignored tokens and the mean taken over the others, as Keras applies a mask; or None."""
        if sample_weight is not None:
            sample_weight = ops.cast(ops.convert_to_tensor(sample_weight), "float32")
            if len(sample_weight.shape) == 3 and sample_weight.shape[-1] == 1:
                sample_weight = sample_weight[..., 0]
        if self.ignore_class is None:
            return sample_weight
        counted = ops.cast(ops.not_equal(targets, self.ignore_class), "float32")
        if self.reduction in ("sum_over_batch_size", "mean"):
            counted = ops.divide_no_nan(counted, ops.mean(counted))
        return counted if sample_weight is None else counted * sample_weight

    def get_config(self):
        return {
            **super().get_config(),
            "label_smoothing": self.label_smoothing,
            "z_loss": self.z_loss,
            "ignore_class": self.ignore_class,
        }


@keras.saving.register_keras_serializable("keras_seqlm")
class FusedCrossEntropy(CrossEntropy):
    """`CrossEntropy` of a `LanguageModel` without its logits: they are made, used and dropped a chunk of tokens at a time.

    The numbers are those of `CrossEntropy`. The gradient is made with the loss, chunk by chunk, so that a step needs
    three products with the projection and the memory of one chunk's logits: with a large vocabulary it is faster than
    the plain loss, and longer batches fit. Metrics of `compile` would need the logits and are refused.

    Args:
        label_smoothing, z_loss, ignore_class, reduction, name: as in `CrossEntropy`.
        chunk_size: tokens whose logits stand in memory at once; by default about 16 MiB of them. Chunks are cut along
            time, so a chunk has at least one token of each row.

    Raises:
        ValueError: no reduction, a chunk size below 1; in training a model that is no `LanguageModel`.

    Example:

    >>> from keras_seqlm.models import TransformerLM
    >>> model = TransformerLM(vocabulary_size=260, size="nano", max_length=32)
    >>> model.compile("adam", loss=FusedCrossEntropy(z_loss=1e-4))
    """

    def __init__(
        self,
        label_smoothing=0.0,
        z_loss=0.0,
        ignore_class=None,
        chunk_size=None,
        reduction="sum_over_batch_size",
        name="fused_cross_entropy",
    ):
        super().__init__(label_smoothing, z_loss, ignore_class, reduction, name)
        if reduction in (None, "none"):
            raise ValueError("FusedCrossEntropy gives one number for the batch; give a reduction, or use CrossEntropy")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, or None, got {chunk_size!r}")
        self.chunk_size = chunk_size

    def __call__(self, y_true, y_pred, sample_weight=None):
        if tuple(y_pred.shape) != (1,):
            raise ValueError(
                f"FusedCrossEntropy is computed by a LanguageModel that is compiled with it, from hidden states; here it was "
                f"given an output of shape {tuple(y_pred.shape)}. For any other model, compile(loss=CrossEntropy(...))"
            )
        return keras.losses.Loss.__call__(self, y_true, y_pred)

    def call(self, y_true, y_pred):
        """Hand on the number that `of_hidden` or `of_logits` made: Keras adds its weights, its share of a replica."""
        return y_pred

    def of_hidden(self, hidden, kernel, bias, vocabulary_first, targets, sample_weight=None, training=True):
        """The reduced loss, float32 (1,), of hidden states (batch, time, width); the rest as in `fused_cross_entropy`."""
        targets = _targets(targets, hidden)
        weights = self.weights(targets, sample_weight)
        counted = None if self.ignore_class is None else ops.not_equal(targets, self.ignore_class)
        total = fused_cross_entropy(
            hidden,
            kernel,
            bias,
            targets if counted is None else ops.where(counted, targets, 0),
            weights,
            vocabulary_first=vocabulary_first,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            chunk_size=self.chunk_size,
            gradients=training,
        )
        return self._divided(total, targets, weights)

    def of_logits(self, logits, targets, sample_weight=None):
        """The same number, float32 (1,), of logits (batch, time, vocabulary), where a step of one's own makes them."""
        targets = _targets(targets, logits)
        weights = self.weights(targets, sample_weight)
        losses = super().call(targets, ops.cast(logits, "float32"))
        return self._divided(ops.sum(losses if weights is None else losses * weights), targets, weights)

    def _divided(self, total, targets, weights):
        if self.reduction == "mean_with_sample_weight" and weights is not None:
            total = ops.divide_no_nan(total, ops.sum(weights))
        elif self.reduction != "sum":
            rows, time = ops.shape(targets)
            total = ops.divide_no_nan(total, ops.cast(rows * time, "float32"))
        return ops.reshape(total, (1,))

    def get_config(self):
        return {**super().get_config(), "chunk_size": self.chunk_size}


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
        targets: int32 (batch, time).
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
    hidden, kernel = _value(hidden), _value(kernel)
    bias = () if bias is None else (_value(bias),)
    targets = ops.cast(targets, "int32")
    weights = ops.broadcast_to(1.0 if weights is None else weights, ops.shape(targets))
    how = _How(vocabulary_first, label_smoothing, z_loss, gradients)
    chunks = _num_chunks(*hidden.shape[:2], kernel.shape[0 if vocabulary_first else 1], chunk_size)
    if not gradients:
        return _all_chunks(hidden, kernel, bias, targets, weights, chunks, how)[0]

    @ops.custom_gradient
    def weighted_sum(hidden, kernel, *bias):
        total, *parts = _all_chunks(hidden, kernel, bias, targets, weights, chunks, how)
        dtypes = [tensor.dtype for tensor in (hidden, kernel, *bias)]

        def gradient(*args, upstream=None):
            upstream = args[0] if upstream is None else upstream
            # Scaled in float32: the upstream gradient holds 1 / tokens and a mixed_float16 policy's scale of the loss.
            scaled = [upstream * ops.cast(part, "float32") for part in parts]
            return tuple(ops.cast(part, dtype) for part, dtype in zip(scaled, dtypes, strict=True))

        return total, gradient

    return weighted_sum(hidden, kernel, *bias)


class _How(NamedTuple):
    vocabulary_first: bool
    label_smoothing: float
    z_loss: float
    gradients: bool


def _num_chunks(batch, time, vocabulary, chunk_size):
    """Chunks are cut along time: along tokens they would cut a batch that lies spread over devices."""
    if time is None:  # TensorFlow alone
        return CHUNKS_OF_UNKNOWN_TIME
    tokens = (ROWS_OF_UNKNOWN_BATCH if batch is None else batch) * time
    if chunk_size is None:
        chunk_size = min(max(CHUNK_ELEMENTS // vocabulary, SMALLEST_CHUNK), LARGEST_CHUNK)
        chunk_size = max(chunk_size, -(-tokens // MOST_CHUNKS))
    steps = max(1, chunk_size * time // max(1, tokens))
    return max(1, -(-time // steps))


def _all_chunks(hidden, kernel, bias, targets, weights, chunks, how):
    """[sum of losses], with gradients [sum, d_hidden, d_kernel, d_bias if there is one]."""
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
    """Of tokens h (..., width), y and w (..., 1): [loss, d_kernel, d_bias] and d_h; d_kernel and d_bias lack the labels."""
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
    total = ops.sum(losses * w)
    if not how.gradients:
        return [total], None
    share = w * (1.0 + 2.0 * z * log_sum) / denominator  # powers * share: the softmax's part of the logits' gradient
    d_bias = [_product(share, powers, transpose_a=True)[0]] if bias else []
    powers = ops.cast(powers, h.dtype)
    d_h = ops.cast(_product(powers, table, transpose_b=not how.vocabulary_first), "float32")
    d_h *= share
    row = ops.take(table, y[:, 0], axis=0) if how.vocabulary_first else ops.transpose(ops.take(table, y[:, 0], axis=1))
    row = ops.cast(row, "float32")
    if e:
        row = (1.0 - e) * row + e * ops.transpose(even[0])
    d_h -= w * row
    scaled = ops.cast(share * ops.cast(h, "float32"), h.dtype)
    left, right = (powers, scaled) if how.vocabulary_first else (scaled, powers)
    d_table = ops.cast(_product(left, right, transpose_a=True), "float32")
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


def _value(tensor):
    """The number that a variable holds: a custom gradient takes no variable of TensorFlow's."""
    tensor = ops.convert_to_tensor(tensor)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.convert_to_tensor(tensor)
    return tensor


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


def _targets(y_true, y_pred):
    """int32 (batch, time) of targets that may have come as floats, or with a last axis of length 1."""
    if len(y_true.shape) == len(y_pred.shape) and y_true.shape[-1] == 1:
        y_true = ops.squeeze(y_true, axis=-1)
    return ops.cast(y_true, "int32")
