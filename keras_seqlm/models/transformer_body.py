"""What the Transformers share: embedding, positions, blocks and the norm behind them."""

import keras
from keras import ops

from keras_seqlm.layers.blocks import TransformerBlock
from keras_seqlm.layers.embeddings import TokenEmbedding
from keras_seqlm.layers.normalization import normalization
from keras_seqlm.layers.positions import LearnedPositions, SinusoidalPositions, rotary_frequencies, rotation
from keras_seqlm.models.presets import TRANSFORMER_SIZES, count, parts_of
from keras_seqlm.models.sequence_model import SequenceModel

POSITIONS = ("learned", "sinusoidal", "rotary")


class TransformerBody(SequenceModel):
    """The layers of `TransformerLM` and `TransformerEncoder`, whose docstrings say what the arguments are."""

    def __init__(
        self,
        vocabulary_size,
        size,
        max_length,
        num_layers,
        hidden_dim,
        num_heads,
        num_kv_heads,
        head_dim,
        intermediate_dim,
        activation,
        norm,
        norm_first,
        epsilon,
        positions,
        rotary_base,
        rotary_scaling,
        attention_scale,
        scale_embedding,
        use_bias,
        qkv_bias,
        output_bias,
        feed_forward_bias,
        dropout,
        attention_dropout,
        position_offset=0,
        embedding_norm=False,
        num_token_types=0,
        memory_dim=None,
        final_norm=None,
        name=None,
        dtype=None,
        trainable=True,
    ):
        super().__init__(name=name, dtype=dtype, trainable=trainable)
        parts = parts_of(size, TRANSFORMER_SIZES)
        if positions not in POSITIONS:
            raise ValueError(f"positions must be one of {list(POSITIONS)}, got {positions!r}")
        if positions != "rotary" and (rotary_base != 10000.0 or rotary_scaling is not None):
            raise ValueError(f"rotary_base and rotary_scaling are of positions='rotary', and these are {positions!r}")
        if positions != "learned" and position_offset:
            raise ValueError(f"position_offset is of positions='learned', and these are {positions!r}")
        self.vocabulary_size = count("vocabulary_size", vocabulary_size)
        self.size = size
        self.max_length = count("max_length", max_length, parts["max_length"])
        self.num_layers = count("num_layers", num_layers, parts["num_layers"])
        self.hidden_dim = count("hidden_dim", hidden_dim, parts["hidden_dim"])
        self.num_heads = count("num_heads", num_heads, parts["num_heads"])
        self.num_kv_heads = count("num_kv_heads", num_kv_heads, self.num_heads)
        self.head_dim = count("head_dim", head_dim)
        gated = activation in ("swiglu", "geglu")
        self.intermediate_dim = count(
            "intermediate_dim", intermediate_dim, -(-8 * self.hidden_dim // 96) * 32 if gated else 4 * self.hidden_dim
        )
        self.activation = activation
        self.norm = norm
        self.norm_first = norm_first
        self.epsilon = epsilon
        self.positions = positions
        self.rotary_base = rotary_base
        self.rotary_scaling = rotary_scaling
        self.attention_scale = attention_scale
        self.scale_embedding = positions == "sinusoidal" if scale_embedding is None else scale_embedding
        self.use_bias = use_bias
        self.qkv_bias = qkv_bias
        self.output_bias = output_bias
        self.feed_forward_bias = feed_forward_bias
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.position_offset = position_offset
        self.embedding_norm = embedding_norm
        self.num_token_types = num_token_types
        self.memory_dim = count("memory_dim", memory_dim)
        self.final_norm = norm_first if final_norm is None else final_norm

        policy = {"dtype": self.dtype_policy}
        self.token_embedding = TokenEmbedding(vocabulary_size, self.hidden_dim, name="token_embedding", **policy)
        self.position_embedding = None
        if positions == "learned":
            self.position_embedding = LearnedPositions(
                self.max_length, self.hidden_dim, position_offset, name="positions", **policy
            )
        if positions == "sinusoidal":
            self.position_embedding = SinusoidalPositions(self.hidden_dim, name="positions", **policy)
        self.type_embedding = self.norm_of_embedding = None
        if num_token_types:
            self.type_embedding = TokenEmbedding(num_token_types, self.hidden_dim, name="token_types", **policy)
        if embedding_norm:
            self.norm_of_embedding = normalization(norm, epsilon, name="embedding_norm", **policy)
        self.embedding_dropout = keras.layers.Dropout(dropout, **policy) if dropout else None
        self.blocks = [
            TransformerBlock(
                self.hidden_dim,
                self.num_heads,
                self.intermediate_dim,
                num_kv_heads=self.num_kv_heads,
                head_dim=head_dim,
                causal=self.causal,
                activation=activation,
                norm=norm,
                norm_first=norm_first,
                epsilon=epsilon,
                dropout=dropout,
                attention_dropout=attention_dropout,
                attention_scale=attention_scale,
                use_bias=use_bias,
                qkv_bias=qkv_bias,
                output_bias=output_bias,
                feed_forward_bias=feed_forward_bias,
                memory_dim=memory_dim,
                residual_branches=(2 if memory_dim is None else 3) * self.num_layers,
                name=f"block_{i}",
                **policy,
            )
            for i in range(self.num_layers)
        ]
        self.frequencies = None
        if positions == "rotary":
            frequencies = rotary_frequencies(self.blocks[0].attention.head_dim, rotary_base, rotary_scaling)
            self.frequencies = tuple(frequencies.tolist())
        self.output_norm = normalization(norm, epsilon, name="output_norm", **policy) if self.final_norm else None

    def build(self, inputs_shape=None):
        for layer in (self.token_embedding, self.position_embedding, self.type_embedding, *self.blocks):
            if layer is not None and not layer.built:  # an embedding may be another model's, too
                layer.build()
        for layer in (self.norm_of_embedding, self.output_norm):
            if layer is not None:
                layer.build((None, None, self.hidden_dim))
        self.built = True

    @property
    def width(self):
        return self.hidden_dim

    def floors(self):
        embeddings = (self.token_embedding, self.position_embedding, self.type_embedding, self.norm_of_embedding)
        *below, last = self.blocks
        floors = [embeddings, *([block] for block in below), [last, self.output_norm]]
        return [[layer for layer in floor if layer is not None] for floor in floors]

    def embedded(self, token_ids, positions, training, token_types=None):
        """What the first block reads (batch, time, hidden_dim), and how queries and keys are turned, or None.

        Args:
            token_ids: int32 (batch, time).
            positions: int32 (batch or 1, time).
            training: whether to drop out.
            token_types: int32 (batch, time), zeros where None, if there are `num_token_types`.
        """
        x = self.token_embedding(token_ids)  # (batch, time, hidden)
        if self.scale_embedding:
            x = x * self.hidden_dim**0.5
        if self.position_embedding is not None:
            x = x + self.position_embedding(positions)
        if self.type_embedding is not None:
            x = x + self.type_embedding(ops.zeros_like(token_ids) if token_types is None else token_types)
        if self.norm_of_embedding is not None:
            x = self.norm_of_embedding(x)
        if self.embedding_dropout is not None:
            x = self.embedding_dropout(x, training=training)
        return x, None if self.frequencies is None else rotation(positions, self.frequencies)


def documents(segment_ids):
    """Of packed documents: which tokens are of one, bool (batch, time, time), and each token's place in its own."""
    steps = ops.arange(ops.shape(segment_ids)[1], dtype="int32")
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    before = ops.logical_and(same, steps[:, None] >= steps[None, :])
    return same, ops.sum(ops.cast(before, "int32"), axis=-1) - 1
