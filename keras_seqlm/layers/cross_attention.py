"""Multi-head attention to a memory: what a decoder reads of its source."""

import keras
from keras import ops

from keras_seqlm.layers.attention import attend, head_sizes
from keras_seqlm.layers.dense import Dense, straight
from keras_seqlm.layers.quantization import Quantizable


@keras.saving.register_keras_serializable("keras_seqlm")
class CrossAttention(Quantizable):
    """Multi-head attention whose queries are of a target, and whose keys and values are of a source.

    head_i = softmax(Q_i K_i^T / sqrt(d_k)) V_i, with Q = x W_Q + b_Q and, made once for a source, [K, V] = m W_KV + b_KV;
    MultiHead(x, m) = Concat(head_1, ..., head_h) W_O + b_O.

    The columns of W_KV stand by head: the first one's key, its value, then those of the second.

    Several rows of `x` may be targets of one source, as those of a beam: with rows = sources * targets, in the order of the
    sources, their queries stand one behind the other as if they were one longer target. Nothing of a memory is copied.

    Reference: Vaswani et al. 2017, section 3.2.3, arXiv:1706.03762.

    Args:
        hidden_dim: width of input and output.
        num_heads: of queries; must divide `hidden_dim` unless `head_dim` is given.
        memory_dim: width of what `memory` is given.
        num_kv_heads, head_dim, scale, dropout, kernel_initializer, output_initializer: as in `SelfAttention`.
        use_bias: whether W_Q and W_KV have a bias; output_bias: whether W_O has one, default as `use_bias`.

    Call arguments:
        x: (rows, time, hidden_dim).
        memory: the pair that `self.memory` gives: keys and values (sources, key-value heads, source time, head_dim).
        bias: float (sources, 1, 1, source time), added to the scores: what hides the padding of sources. None for none.

    Returns:
        (rows, time, hidden_dim).

    Raises:
        ValueError: heads that do not divide the width, key-value heads that do not divide the heads.

    Example:

    >>> layer = CrossAttention(hidden_dim=8, num_heads=2, memory_dim=6)
    >>> memory = layer.memory(keras.ops.ones((1, 5, 6)))
    >>> tuple(memory[0].shape), tuple(layer(keras.ops.ones((4, 3, 8)), memory).shape)
    ((1, 2, 5, 4), (4, 3, 8))
    """

    adapts = ("q", "k", "v", "output")

    def __init__(
        self,
        hidden_dim,
        num_heads,
        memory_dim,
        num_kv_heads=None,
        head_dim=None,
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
        self.memory_dim = memory_dim
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.scale = scale
        self.use_bias = use_bias
        self.output_bias = use_bias if output_bias is None else output_bias
        self.dropout = dropout
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.output_initializer = keras.initializers.get(output_initializer)
        read = {"use_bias": use_bias, "kernel_initializer": self.kernel_initializer, "dtype": self.dtype_policy}
        self.query = Dense(num_heads * self.head_dim, name="query", **read)
        self.kv = Dense(2 * num_kv_heads * self.head_dim, name="kv", **read)
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
        if "q" in names:
            self.query.adapt(rank, alpha)
        if set(names) & {"k", "v"}:
            parts = [(name if name in names else None, self.head_dim) for name in ("k", "v")]
            self.kv.adapt(rank, alpha, parts, self.num_kv_heads)
        if "output" in names:
            self.output_projection.adapt(rank, alpha)

    def build(self, input_shape=None):
        self.query.build((None, None, self.hidden_dim))
        self.kv.build((None, None, self.memory_dim))
        self.output_projection.build((None, None, self.num_heads * self.head_dim))

    def memory(self, hidden, training=None):
        """Keys and values (sources, key-value heads, source time, head_dim) of hidden states (sources, source time, memory_dim)."""
        if not self.built:
            self.build()
        both = straight(self.kv, ops.cast(hidden, self.compute_dtype), training=training)
        sources, time = ops.shape(both)[0], ops.shape(both)[1]
        both = ops.transpose(ops.reshape(both, (sources, time, self.num_kv_heads, 2 * self.head_dim)), (0, 2, 1, 3))
        return tuple(ops.split(both, 2, axis=-1))

    def call(self, x, memory, bias=None, training=None):
        rows, time = ops.shape(x)[0], ops.shape(x)[1]
        query = straight(self.query, x, training=training)
        key, value = (ops.cast(part, query.dtype) for part in memory)
        query = fold(query, key, (self.num_heads, self.head_dim))
        attended = attend(
            ops.transpose(query, (0, 2, 1, 3)),
            key,
            value,
            bias=bias,
            scale=self.scale,
            dropout=self.probability_dropout if training else None,
        )
        attended = ops.reshape(ops.transpose(attended, (0, 2, 1, 3)), (rows, time, self.num_heads * self.head_dim))
        return straight(self.output_projection, attended, training=training)

    def get_config(self):
        names = (
            "hidden_dim",
            "num_heads",
            "memory_dim",
            "num_kv_heads",
            "head_dim",
            "scale",
            "use_bias",
            "output_bias",
        )
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in (*names, "dropout")},
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "output_initializer": keras.initializers.serialize(self.output_initializer),
        }


def fold(x, memory, widths):
    """`x` (rows, time, width) as (sources, rows / sources * time, *widths), with as many sources as `memory` has.

    The rows of one source stand side by side, so that no number moves in memory.
    """
    rows, time, sources = ops.shape(x)[0], ops.shape(x)[1], ops.shape(memory)[0]
    known = isinstance(rows, int) and isinstance(sources, int)
    if known and rows % sources:
        raise ValueError(
            f"the rows of a beam are as many for each source: {rows} rows are no multiple of {sources} sources"
        )
    if known or rows is sources:
        return ops.reshape(x, (sources, rows // sources * time, *widths))
    return ops.reshape(x, (sources, -1, *widths))
