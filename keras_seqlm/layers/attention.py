"""Multi-head self-attention: the one way in which queries meet keys."""

import math

import keras
from keras import ops

from keras_seqlm import products
from keras_seqlm.cache import write_cache
from keras_seqlm.layers.dense import Dense, straight
from keras_seqlm.layers.positions import rotate
from keras_seqlm.layers.quantization import Quantizable


def attend(query, key, value, causal=False, mask=None, bias=None, scale=None, dropout=None, return_scores=False):
    """Scaled dot-product attention: softmax(scale * Q K^T + B) V.

    The library (`keras.ops.dot_product_attention`) computes it wherever the backend has a fused kernel for it: under
    JAX on an accelerator, and under torch. There no scores stand in memory. Elsewhere, and where the scores are asked
    for or dropped out, they are made here, in float32 whatever the operands are: TensorFlow has no such kernel, and
    under JAX on a CPU this is the faster way (benchmarks/RESULTS.md).

    Fewer key-value heads than query heads are shared by groups of neighbours (grouped-query attention, Ainslie et al.
    2023, arXiv:2305.13245). All tensors stay at rank 4, which LiteRT's quantiser asks for.

    Args:
        query: (batch, heads, time, head_dim).
        key, value: (batch, key-value heads, keys, head_dim).
        causal: whether query t sees the keys up to the t-th alone; then there are as many keys as queries. No mask is
            needed beside it, but one may narrow it further.
        mask: bool (batch or 1, 1 or heads, time or 1, keys), true where a key may be seen.
        bias: float, of the same shapes, added to the scores (T5's and ALiBi's relative positions; `as_bias(mask)`).
        scale: of the scores; default 1 / sqrt(head_dim). T5 has 1.
        dropout: a function applied to the probabilities.
        return_scores: whether to return the probabilities, too.

    Returns:
        (batch, heads, time, head_dim) in the dtype of `value`; with `return_scores` also the probabilities, float32
        (batch, heads, time, keys). A query without any visible key gets numbers, and no NaN.

    Example:

    >>> query, key = keras.ops.ones((1, 4, 3, 8)), keras.ops.ones((1, 2, 3, 8))
    >>> tuple(attend(query, key, key, causal=True).shape)
    (1, 4, 3, 8)

    Reference: Vaswani et al. 2017, section 3.2.1, arXiv:1706.03762.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if dropout is None and not return_scores and fused_kernel_serves(query.shape[2]):
        return _by_library(query, key, value, causal, mask, bias, scale)
    heads, kv_heads, head_dim = query.shape[1], key.shape[1], query.shape[3]
    batch, time, keys = ops.shape(query)[0], ops.shape(query)[2], ops.shape(key)[2]
    query = ops.cast(query, "float32") * scale  # scaled first: a product of float16 that overflows is of no use later
    if heads != kv_heads:
        query = ops.reshape(query, (batch, kv_heads, (heads // kv_heads) * time, head_dim))
    scores = products.matmul_in_float32(query, ops.transpose(key, (0, 1, 3, 2)))
    if heads != kv_heads:
        scores = ops.reshape(scores, (batch, heads, time, keys))
    if bias is not None:
        scores = scores + ops.cast(bias, "float32")
    if mask is not None:
        scores = ops.where(mask, scores, lowest("float32"))
    if causal:
        scores = scores + as_bias(causal_mask(time), "float32")
    probabilities = ops.softmax(scores, axis=-1)
    weights = probabilities if dropout is None else dropout(probabilities)
    if heads != kv_heads:
        weights = ops.reshape(weights, (batch, kv_heads, (heads // kv_heads) * time, keys))
    output = ops.cast(products.matmul_in_float32(weights, value), value.dtype)
    if heads != kv_heads:
        output = ops.reshape(output, (batch, heads, time, head_dim))
    return (output, probabilities) if return_scores else output


def fused_kernel_serves(time):
    """Whether the library has a kernel here that makes no scores: always under torch, under JAX on an accelerator.

    A single query makes one row of scores, which needs no such kernel.
    """
    return keras.backend.backend() == "torch" or (products.on_accelerator() and time != 1)


def visibility(time, dtype, mask=None, window=None):
    """What each query of whole sequences sees: `causal` and `bias`, as `attend` takes them, for all layers of a model.

    A kernel that knows of causality by itself is told so, and skips what is not seen. Elsewhere all goes into one bias.

    Args:
        time: tokens of a sequence, an int or a scalar tensor.
        dtype: of queries and keys.
        mask: bool (batch or 1, 1, time, time), true where a key may be seen; None for all.
        window: how many keys up to its own a query sees; None for all.

    Returns:
        A dict of `causal`, a bool, and `bias`, (batch or 1, 1, time, time) or None.
    """
    backend = keras.backend.backend()
    told = fused_kernel_serves(time) and (backend == "jax" or (mask is None and window is None))
    if mask is None and window is None and told:
        return {"causal": True, "bias": None}
    seen = causal_mask(time, window)
    return {
        "causal": told,
        "bias": as_bias(seen if mask is None else ops.logical_and(seen, mask), bias_dtype(time, dtype)),
    }


def bias_dtype(time, dtype):
    """In which dtype a bias is added to the scores of so many queries: by hand in float32, whatever the operands are."""
    return dtype if fused_kernel_serves(time) else "float32"


def _by_library(query, key, value, causal, mask, bias, scale):
    """`keras.ops.dot_product_attention`; under torch the function that it calls there.

    Keras's own way to that function copies queries, keys and values, and asks a question that torch.compile cannot trace.
    """
    if keras.backend.backend() == "torch":
        return _by_torch(query, key, value, causal, mask, bias, scale)
    query, key, value = (ops.transpose(part, (0, 2, 1, 3)) for part in (query, key, value))  # heads behind the time
    output = ops.dot_product_attention(query, key, value, bias=bias, mask=mask, scale=scale, is_causal=causal)
    return ops.transpose(output, (0, 2, 1, 3))


def _by_torch(query, key, value, causal, mask, bias, scale):
    from torch.nn.functional import scaled_dot_product_attention

    if mask is not None or (bias is not None and causal):  # it takes one of bias and `is_causal`
        seen = True if mask is None else ops.convert_to_tensor(mask, "bool")
        seen = ops.logical_and(causal_mask(query.shape[2]), seen) if causal else seen
        bias, causal = ops.where(seen, 0.0 if bias is None else ops.convert_to_tensor(bias), lowest(query.dtype)), False
    if bias is not None:
        bias = ops.cast(bias, query.dtype)
    (batch, heads, time, head_dim), (kv_heads, keys) = query.shape, key.shape[1:3]
    if kv_heads == heads:
        return scaled_dot_product_attention(query, key, value, attn_mask=bias, is_causal=causal, scale=scale)
    shared = heads // kv_heads  # its fast kernels know nothing of shared heads where there is a bias
    if time == 1 and (bias is None or bias.shape[1] == 1):  # queries that share a key-value head as queries of one head
        query = query.reshape(batch, kv_heads, shared, head_dim)
        attended = scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
        return attended.reshape(batch, heads, 1, head_dim)
    key, value = (
        part[:, :, None].expand(batch, kv_heads, shared, keys, head_dim).reshape(batch, heads, keys, head_dim)
        for part in (key, value)
    )
    return scaled_dot_product_attention(query, key, value, attn_mask=bias, is_causal=causal, scale=scale)


def _cut(x, at):
    """The first `at` of axis 3, and the rest."""
    if keras.backend.backend() == "tensorflow":  # whose gradient of a slice is as large as what it was cut from
        return ops.split(x, [at], axis=3)
    return x[:, :, :, :at], x[:, :, :, at:]  # Keras on torch would make tensors of the places


def causal_mask(time, window=None):
    """bool (1, 1, time, time): query t sees the keys up to t, of them the last `window` where that is given."""
    steps = ops.arange(time, dtype="int32")
    distance = steps[:, None] - steps[None, :]
    return visible_at(distance, window)[None, None]


def visible_at(distance, window=None):
    """Whether a query sees a key that stands so far before it: not one behind it, and none `window` or more before."""
    seen = distance >= 0
    return seen if window is None else ops.logical_and(seen, distance < window)


def as_bias(mask, dtype):
    """A mask as what is added to the scores. A model makes it once, where every layer would do so with a mask."""
    return ops.cast(ops.logical_not(mask), dtype) * lowest(dtype)


def lowest(dtype):
    """What is added to the score of a key that is not seen: finite, so that a row without any still gives numbers.

    In float16, where a fused kernel takes a bias, it hides a key whose score is up to 65504 above those that are seen.
    """
    return {"float16": -65504.0, "bfloat16": -1e30, "float32": -1e30, "float64": -1e30}[
        keras.backend.standardize_dtype(dtype)
    ]


def head_sizes(hidden_dim, num_heads, num_kv_heads=None, head_dim=None, scale=None):
    """The number of key-value heads, and the width of a head, of attention with these options.

    Raises:
        ValueError: heads that do not divide what they share, a scale that is not above 0.

    >>> head_sizes(16, 4), head_sizes(16, 4, num_kv_heads=2, head_dim=8)
    ((4, 4), (2, 8))
    """
    if head_dim is None and hidden_dim % num_heads:
        raise ValueError(
            f"num_heads must divide hidden_dim, got hidden_dim={hidden_dim} and num_heads={num_heads}; "
            f"choose one of {[n for n in range(1, hidden_dim + 1) if hidden_dim % n == 0]}, or give head_dim"
        )
    num_kv_heads = num_kv_heads or num_heads
    if num_heads % num_kv_heads:
        raise ValueError(f"num_kv_heads must divide num_heads, got {num_kv_heads} and {num_heads}")
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(f"scale must be a finite number above 0, or None for 1 / sqrt(head_dim), got {scale!r}")
    return num_kv_heads, head_dim or hidden_dim // num_heads


@keras.saving.register_keras_serializable("keras_seqlm")
class SelfAttention(Quantizable):
    """Multi-head self-attention.

    MultiHead(x) = Concat(head_1, ..., head_h) W_O + b_O, with
    head_i = softmax(Q_i K_i^T / sqrt(d_k)) V_i and [Q, K, V] = x W_QKV + b_QKV in one product.

    The columns of W_QKV stand by key-value head: the queries that share the first one, its key, its value, then those of
    the second. So a cut by columns over devices leaves each of them whole heads (see `layouts`).

    Reference: Vaswani et al. 2017, section 3.2.2, arXiv:1706.03762.

    Args:
        hidden_dim: width of input and output.
        num_heads: query heads; must divide `hidden_dim` unless `head_dim` is given.
        num_kv_heads: key-value heads; default `num_heads`, of which it must be a divisor.
        head_dim: width of a head; default `hidden_dim // num_heads`.
        causal: whether a query sees no key behind it, where a call does not say otherwise.
        scale: of the scores; default 1 / sqrt(head_dim).
        use_bias: whether W_QKV has a bias; output_bias: whether W_O has one, default as `use_bias`.
        dropout: of the attention probabilities. It needs them in memory, and so costs the fused kernel.
        kernel_initializer: of W_QKV.
        output_initializer: of W_O, which writes to the residual stream.

    Call arguments:
        x: (batch, time, hidden_dim).
        rotation: the pair that `positions.rotation` gives turns queries and keys; None leaves them.
        causal: in place of the layer's own. Beside a cache it has no meaning: mask or bias say what is seen.
        attention_mask: bool (batch or 1, 1, time, keys), true where a key may be seen, beside what `causal` says.
        bias: float (batch or 1, heads or 1, time, keys), added to the scores.
        cache: (keys, values), each (batch, key-value heads, room, head_dim); the new ones are written into it, and the
            keys are those of the cache.
        slots: where they are written, from `cache.cache_slots`; needed beside a cache, as is a mask or a bias.
        return_keys: whether to return the keys and values of `x`, turned, as (batch, key-value heads, time, head_dim).
        return_scores: whether to return the probabilities.

    Returns:
        (batch, time, hidden_dim); then, where there is a cache or with `return_keys`, the pair of keys and values; then,
        with `return_scores`, the probabilities, float32 (batch, heads, time, keys).

    Raises:
        ValueError: heads that do not divide the width, key-value heads that do not divide the heads; a call that lacks
            slots, or a mask or bias, beside a cache.

    Example:

    >>> layer = SelfAttention(hidden_dim=8, num_heads=2)
    >>> tuple(layer(keras.ops.ones((2, 3, 8))).shape)
    (2, 3, 8)
    """

    adapts = ("q", "k", "v", "output")

    def __init__(
        self,
        hidden_dim,
        num_heads,
        num_kv_heads=None,
        head_dim=None,
        causal=True,
        scale=None,
        use_bias=True,
        output_bias=None,
        dropout=0.0,
        kernel_initializer="glorot_uniform",
        output_initializer="glorot_uniform",
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        num_kv_heads, head_dim = head_sizes(hidden_dim, num_heads, num_kv_heads, head_dim, scale)
        self.hidden_dim = hidden_dim
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.causal = causal
        self.scale = scale
        self.use_bias = use_bias
        self.output_bias = use_bias if output_bias is None else output_bias
        self.dropout = dropout
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.output_initializer = keras.initializers.get(output_initializer)
        self.qkv = Dense(
            (num_heads + 2 * num_kv_heads) * self.head_dim,
            use_bias=use_bias,
            kernel_initializer=self.kernel_initializer,
            dtype=self.dtype_policy,
            name="qkv",
        )
        self.output_projection = Dense(
            hidden_dim,
            use_bias=self.output_bias,
            kernel_initializer=self.output_initializer,
            dtype=self.dtype_policy,
            name="output",
        )
        # float32, in which the probabilities are
        self.probability_dropout = keras.layers.Dropout(dropout, dtype="float32") if dropout else None

    def adapt(self, rank, alpha, names):
        """Learn low-rank updates in place of the kernels of these names, each its own; see `LowRank`."""
        sizes = {"q": self.num_heads // self.num_kv_heads * self.head_dim, "k": self.head_dim, "v": self.head_dim}
        if set(names) & set(sizes):
            parts = [(name if name in names else None, size) for name, size in sizes.items()]
            self.qkv.adapt(rank, alpha, parts, self.num_kv_heads)
        if "output" in names:
            self.output_projection.adapt(rank, alpha)

    def build(self, input_shape=None):
        self.qkv.build((None, None, self.hidden_dim))
        self.output_projection.build((None, None, self.num_heads * self.head_dim))

    def call(
        self,
        x,
        rotation=None,
        causal=None,
        attention_mask=None,
        bias=None,
        cache=None,
        slots=None,
        return_keys=False,
        return_scores=False,
        training=None,
    ):
        if cache is not None and (slots is None or (attention_mask is None and bias is None)):
            raise ValueError(
                "attention with a cache needs slots, where the new keys are written, and attention_mask or bias to say "
                "which keys a query may see"
            )
        batch, time = ops.shape(x)[0], ops.shape(x)[1]
        query, key, value = self._split(straight(self.qkv, x, training=training), rotation)
        query, key, value = (ops.transpose(part, (0, 2, 1, 3)) for part in (query, key, value))
        kept = (key, value)
        if cache is not None:
            kept = tuple(write_cache(old, new, slots) for old, new in zip(cache, kept, strict=True))
            key, value = (ops.cast(part, query.dtype) for part in kept)
        attended = attend(
            query,
            key,
            value,
            causal=cache is None and (self.causal if causal is None else causal),
            mask=attention_mask,
            bias=bias,
            scale=self.scale,
            dropout=self.probability_dropout if training else None,
            return_scores=return_scores,
        )
        attended, *scores = attended if return_scores else (attended,)
        attended = ops.reshape(ops.transpose(attended, (0, 2, 1, 3)), (batch, time, self.num_heads * self.head_dim))
        output = straight(self.output_projection, attended, training=training)
        extras = [kept] * (cache is not None or return_keys) + scores
        return (output, *extras) if extras else output

    def _split(self, projected, rotation):
        """Queries, keys and values, each (batch, time, heads of its own, head_dim), the first two turned."""
        batch, time = ops.shape(projected)[0], ops.shape(projected)[1]
        shared = self.num_heads // self.num_kv_heads
        parts = ops.reshape(projected, (batch, time, self.num_kv_heads, shared + 2, self.head_dim))
        turned, value = _cut(parts, shared + 1)
        if rotation is not None:
            turned = rotate(turned, [part[:, :, None] for part in rotation])
        query, key = _cut(turned, shared)
        query = ops.reshape(query, (batch, time, self.num_heads, self.head_dim))
        return query, ops.squeeze(key, axis=3), ops.squeeze(value, axis=3)

    def get_config(self):
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "num_heads": self.num_heads,
            "num_kv_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "causal": self.causal,
            "scale": self.scale,
            "use_bias": self.use_bias,
            "output_bias": self.output_bias,
            "dropout": self.dropout,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "output_initializer": keras.initializers.serialize(self.output_initializer),
        }
