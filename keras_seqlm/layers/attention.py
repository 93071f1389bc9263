"""Multi-head self-attention and its key-value cache."""

import math

import keras
from keras import ops

from keras_seqlm.layers.dense import Dense
from keras_seqlm.layers.positions import rotate
from keras_seqlm.layers.quantization import Quantizable

MASKED = -1e9  # finite, so that a row without any visible key still gives numbers


def attend(query, key, value, mask=None, bias=None, dropout=None):
    """Scaled dot-product attention: softmax(Q K^T / sqrt(d_k) + B) V, the softmax in float32.

    Fewer key-value heads than query heads are shared by groups of neighbours (grouped-query attention, Ainslie et al.
    2023, arXiv:2305.13245). All tensors stay at rank 4, which LiteRT's quantiser asks for.

    Args:
        query: (batch, heads, time, head_dim).
        key, value: (batch, key-value heads, keys, head_dim).
        mask: bool (batch or 1, 1, time, keys), true where a key may be seen.
        bias: float (batch or 1, heads or 1, time, keys), added to the scores (T5's and ALiBi's relative positions).
        dropout: a layer applied to the probabilities.

    Returns:
        (batch, heads, time, head_dim) and the probabilities (batch, heads, time, keys).

    Reference: Vaswani et al. 2017, section 3.2.1, arXiv:1706.03762.
    """
    heads, kv_heads, head_dim = query.shape[1], key.shape[1], query.shape[3]
    batch, time, keys = ops.shape(query)[0], ops.shape(query)[2], ops.shape(key)[2]
    grouped = heads != kv_heads
    if grouped:
        query = ops.reshape(query, (batch, kv_heads, (heads // kv_heads) * time, head_dim))
    scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2)))
    if grouped:
        scores = ops.reshape(scores, (batch, heads, time, keys))
    scores = ops.cast(scores, "float32") / math.sqrt(head_dim)
    if bias is not None:
        scores = scores + ops.cast(bias, "float32")
    if mask is not None:
        scores = ops.where(mask, scores, MASKED)
    probabilities = ops.cast(ops.softmax(scores, axis=-1), value.dtype)
    weights = probabilities if dropout is None else dropout(probabilities)
    if grouped:
        weights = ops.reshape(weights, (batch, kv_heads, (heads // kv_heads) * time, keys))
    output = ops.matmul(weights, value)
    if grouped:
        output = ops.reshape(output, (batch, heads, time, head_dim))
    return output, probabilities


def write_cache(cache, new, position, lengths, single="scatter"):
    """Put row r's first `lengths[r]` new keys (or values) into its cache from `position[r]` on; the rest stays.

    Args:
        cache: (batch, heads, max_length, head_dim).
        new: (batch, heads, time, head_dim).
        position, lengths: int32 (batch,).
        single: how one new token is written: "scatter" anywhere, or "slice" for LiteRT at batch 1, where it becomes
            one builtin. (On TensorFlow `slice_update` is an XLA op, which a stock TF Serving binary refuses to run.)

    Returns:
        The new cache, in the dtype of `cache`. What padding would write past the end is dropped.
    """
    new = ops.cast(new, cache.dtype)
    batch, max_length = ops.shape(cache)[0], ops.shape(cache)[2]
    if new.shape[2] == 1:
        # A row that writes nothing (lengths 0) may write all the same: its own next slot, unseen until it is overwritten.
        slot = ops.minimum(position, max_length - 1)
        if single == "slice":
            return ops.slice_update(cache, (0, 0, slot[0], 0), new)
        rows, heads = ops.arange(batch, dtype="int32"), cache.shape[1]
        index = ops.stack(
            [
                ops.repeat(rows, heads),
                ops.tile(ops.arange(heads, dtype="int32"), (batch,)),
                ops.repeat(slot, heads),
            ],
            axis=-1,
        )
        return ops.scatter_update(cache, index, ops.reshape(new, (-1, cache.shape[3])))
    source = ops.arange(max_length, dtype="int32")[None] - position[:, None]  # the new token that each slot would take
    taken = ops.logical_and(source >= 0, source < lengths[:, None])
    source = ops.clip(source, 0, ops.shape(new)[2] - 1)
    moved = ops.take_along_axis(new, source[:, None, :, None], axis=2)
    return ops.where(taken[:, None, :, None], moved, cache)


@keras.saving.register_keras_serializable("keras_seqlm")
class SelfAttention(Quantizable):
    """Multi-head self-attention, causal where no mask is given.

    MultiHead(x) = Concat(head_1, ..., head_h) W_O + b_O, with
    head_i = softmax(Q_i K_i^T / sqrt(d_k)) V_i and [Q, K, V] = x W_QKV + b_QKV in one product.

    Reference: Vaswani et al. 2017, section 3.2.2, arXiv:1706.03762.

    Args:
        hidden_dim: width of input and output.
        num_heads: query heads; must divide `hidden_dim` unless `head_dim` is given.
        num_kv_heads: key-value heads; default `num_heads`, of which it must be a divisor.
        head_dim: width of a head; default `hidden_dim // num_heads`.
        use_bias: whether the products have a bias.
        rotary_base: turns queries and keys by their positions (see `rotate`); None leaves them.
        dropout: of the attention probabilities.
        kernel_initializer: of W_QKV.
        output_initializer: of W_O, which writes to the residual stream.

    Call arguments:
        x: (batch, time, hidden_dim).
        positions: int32 (batch or 1, time), needed by rotary positions.
        attention_mask: bool (batch or 1, 1, time, keys); None means causal, and needs that there is no cache.
        bias: float (batch or 1, heads or 1, time, keys), added to the scores.
        cache: (keys, values), each (batch, key-value heads, max_length, head_dim); the new ones are written into it.
        position, lengths: int32 (batch,): where each row starts to write and how many tokens of it are real.
        return_scores: whether to return the probabilities too.

    Returns:
        (batch, time, hidden_dim); with `cache` also the new cache; with `return_scores` also the probabilities
        (batch, heads, time, keys).

    Raises:
        ValueError: heads that do not divide the width, key-value heads that do not divide the heads, an odd head_dim
            with rotary positions; a call that lacks `positions` there, or `attention_mask` beside a cache.

    Example:

    >>> layer = SelfAttention(hidden_dim=8, num_heads=2)
    >>> tuple(layer(keras.ops.ones((2, 3, 8))).shape)
    (2, 3, 8)
    """

    def __init__(
        self,
        hidden_dim,
        num_heads,
        num_kv_heads=None,
        head_dim=None,
        use_bias=True,
        rotary_base=None,
        dropout=0.0,
        kernel_initializer="glorot_uniform",
        output_initializer="glorot_uniform",
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        if head_dim is None and hidden_dim % num_heads:
            raise ValueError(
                f"num_heads must divide hidden_dim, got hidden_dim={hidden_dim} and num_heads={num_heads}; "
                f"choose one of {[n for n in range(1, hidden_dim + 1) if hidden_dim % n == 0]}, or give head_dim"
            )
        num_kv_heads = num_kv_heads or num_heads
        if num_heads % num_kv_heads:
            raise ValueError(f"num_kv_heads must divide num_heads, got {num_kv_heads} and {num_heads}")
        head_dim = head_dim or hidden_dim // num_heads
        if rotary_base is not None and head_dim % 2:
            raise ValueError(f"rotary positions turn pairs and need an even head_dim, got {head_dim}")
        self.hidden_dim = hidden_dim
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.use_bias = use_bias
        self.rotary_base = rotary_base
        self.dropout = dropout
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.output_initializer = keras.initializers.get(output_initializer)
        self.single_write = "scatter"  # export to LiteRT sets "slice": see write_cache
        common = {"use_bias": use_bias, "dtype": self.dtype_policy}
        width = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        self.qkv = Dense(width, kernel_initializer=self.kernel_initializer, name="qkv", **common)
        self.output_projection = Dense(hidden_dim, kernel_initializer=self.output_initializer, name="output", **common)
        self.probability_dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy) if dropout else None

    def build(self, input_shape=None):
        self.qkv.build((None, None, self.hidden_dim))
        self.output_projection.build((None, None, self.num_heads * self.head_dim))

    def call(
        self,
        x,
        positions=None,
        attention_mask=None,
        bias=None,
        cache=None,
        position=None,
        lengths=None,
        return_scores=False,
        training=None,
    ):
        if self.rotary_base is not None and positions is None:
            raise ValueError("rotary attention needs positions, int32 (batch or 1, time)")
        if cache is not None and attention_mask is None:
            raise ValueError("attention with a cache needs attention_mask, true for each key that a query may see")
        batch, time = ops.shape(x)[0], ops.shape(x)[1]
        widths = [self.num_heads, self.num_kv_heads, self.num_kv_heads]
        projected = ops.split(
            self.qkv(x), [widths[0] * self.head_dim, (widths[0] + widths[1]) * self.head_dim], axis=-1
        )
        query, key, value = (
            ops.reshape(part, (batch, time, heads, self.head_dim))
            for part, heads in zip(projected, widths, strict=True)
        )
        # Without cache, bias, mask or dropout the library's own kernel serves: flash attention where there is one.
        plain = cache is None and attention_mask is None and bias is None and not return_scores
        plain = plain and self.rotary_base is None and self.num_kv_heads == self.num_heads
        if plain and not (training and self.probability_dropout):
            output = ops.dot_product_attention(query, key, value, is_causal=True)  # (batch, time, heads, head_dim)
            return self.output_projection(ops.reshape(output, (batch, time, self.num_heads * self.head_dim)))

        query, key, value = (ops.transpose(part, (0, 2, 1, 3)) for part in (query, key, value))
        if self.rotary_base is not None:
            query, key = (rotate(part, positions, self.rotary_base) for part in (query, key))
        if cache is not None:
            cache = tuple(
                write_cache(old, new, position, lengths, self.single_write)
                for old, new in zip(cache, (key, value), strict=True)
            )
            key, value = (ops.cast(part, query.dtype) for part in cache)
        elif attention_mask is None:
            steps = ops.arange(time, dtype="int32")
            attention_mask = (steps[:, None] >= steps[None, :])[None, None]
        dropout = self.probability_dropout if training else None
        output, scores = attend(query, key, value, attention_mask, bias, dropout)
        output = ops.reshape(ops.transpose(output, (0, 2, 1, 3)), (batch, time, self.num_heads * self.head_dim))
        output = self.output_projection(output)
        extras = (() if cache is None else (cache,)) + ((scores,) if return_scores else ())
        return (output, *extras) if extras else output

    def get_config(self):
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "num_heads": self.num_heads,
            "num_kv_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "use_bias": self.use_bias,
            "rotary_base": self.rotary_base,
            "dropout": self.dropout,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "output_initializer": keras.initializers.serialize(self.output_initializer),
        }
