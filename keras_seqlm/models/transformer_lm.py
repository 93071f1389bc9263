"""A decoder-only Transformer language model."""

import keras
from keras import ops

from keras_seqlm.layers.blocks import TransformerBlock, normalization
from keras_seqlm.layers.dense import Dense
from keras_seqlm.layers.embeddings import TokenEmbedding
from keras_seqlm.layers.layouts import ATTENTION, FEED_FORWARD, VOCABULARY, layout_map
from keras_seqlm.layers.positions import LearnedPositions, SinusoidalPositions
from keras_seqlm.models.language_model import LanguageModel
from keras_seqlm.models.presets import TRANSFORMER_SIZES, parts_of

POSITIONS = ("learned", "sinusoidal", "rotary")


@keras.saving.register_keras_serializable("keras_seqlm")
class TransformerLM(LanguageModel):
    """A causal Transformer: embedding, positions, blocks, norm, projection to the vocabulary.

    References: Vaswani et al. 2017, arXiv:1706.03762; Radford et al. 2019 (GPT-2).

    Args:
        vocabulary_size: number of token ids.
        size: "nano", "micro", "tiny", "small" or "base" (GPT-2's 124M shape): sets the parts that are not given.
        max_length: the context, in tokens.
        num_layers, hidden_dim, num_heads: depth, width, attention heads.
        num_kv_heads: key-value heads (grouped-query attention); default `num_heads`.
        intermediate_dim: width of the feed-forward layers; default 4 * hidden_dim, for a gated unit 8 / 3 of it.
        activation: "gelu_tanh", "gelu", "relu", "swiglu" or "geglu".
        norm: "layer" or "rms"; norm_first: pre-norm or post-norm.
        positions: "learned", "sinusoidal" or "rotary".
        tie_embedding: whether the embedding is the output projection, too.
        use_bias: whether products have a bias.
        dropout: of embeddings, both branches of a block and attention probabilities.
        tokenizer_hash: of the tokenizer whose ids it reads; a task checks it.
        name, dtype, trainable: as in `keras.Model`.

    Call arguments:
        inputs, state: see `LanguageModel`. Leaves of the state: `position` (batch,) int32, `kv_cache_k_0`,
        `kv_cache_v_0` ... (batch, num_kv_heads, max_length, head_dim) float32.

    Raises:
        ValueError: an unknown size or option, heads that do not divide the width.

    Example:

    >>> model = TransformerLM(vocabulary_size=260, size="nano", max_length=32)
    >>> tuple(model(keras.ops.ones((2, 8), "int32")).shape)
    (2, 8, 260)
    >>> len(model.generate([1, 72, 101], max_new_tokens=5, eos_id=None))
    5
    """

    def __init__(
        self,
        vocabulary_size,
        size="tiny",
        max_length=None,
        num_layers=None,
        hidden_dim=None,
        num_heads=None,
        num_kv_heads=None,
        intermediate_dim=None,
        activation="gelu_tanh",
        norm="layer",
        norm_first=True,
        positions="learned",
        tie_embedding=True,
        use_bias=True,
        dropout=0.0,
        tokenizer_hash=None,
        name=None,
        dtype=None,
        trainable=True,
    ):
        super().__init__(name=name, dtype=dtype, trainable=trainable)
        parts = parts_of(size, TRANSFORMER_SIZES)
        if positions not in POSITIONS:
            raise ValueError(f"positions must be one of {list(POSITIONS)}, got {positions!r}")
        self.vocabulary_size = vocabulary_size
        self.size = size
        self.max_length = max_length or parts["max_length"]
        self.num_layers = num_layers or parts["num_layers"]
        self.hidden_dim = hidden_dim or parts["hidden_dim"]
        self.num_heads = num_heads or parts["num_heads"]
        self.num_kv_heads = num_kv_heads or self.num_heads
        gated = activation in ("swiglu", "geglu")
        self.intermediate_dim = intermediate_dim or (8 * self.hidden_dim // 3 if gated else 4 * self.hidden_dim)
        self.activation = activation
        self.norm = norm
        self.norm_first = norm_first
        self.positions = positions
        self.tie_embedding = tie_embedding
        self.use_bias = use_bias
        self.dropout = dropout
        self.tokenizer_hash = tokenizer_hash

        policy = {"dtype": self.dtype_policy}
        self.token_embedding = TokenEmbedding(vocabulary_size, self.hidden_dim, name="token_embedding", **policy)
        self.position_embedding = None
        if positions == "learned":
            self.position_embedding = LearnedPositions(self.max_length, self.hidden_dim, name="positions", **policy)
        if positions == "sinusoidal":
            self.position_embedding = SinusoidalPositions(self.hidden_dim, name="positions", **policy)
        self.embedding_dropout = keras.layers.Dropout(dropout, **policy) if dropout else None
        self.blocks = [
            TransformerBlock(
                self.hidden_dim,
                self.num_heads,
                self.intermediate_dim,
                num_kv_heads=self.num_kv_heads,
                activation=activation,
                norm=norm,
                norm_first=norm_first,
                dropout=dropout,
                use_bias=use_bias,
                rotary_base=10000.0 if positions == "rotary" else None,
                residual_branches=2 * self.num_layers,
                name=f"block_{i}",
                **policy,
            )
            for i in range(self.num_layers)
        ]
        self.output_norm = normalization(norm, name="output_norm", **policy) if norm_first else None
        self.output_projection = None
        if not tie_embedding:
            self.output_projection = Dense(vocabulary_size, use_bias=False, name="output_projection", **policy)

    def build(self, inputs_shape=None, state_shape=None):
        self.token_embedding.build()
        if self.position_embedding is not None:
            self.position_embedding.build()
        for block in self.blocks:
            block.build()
        for layer in (self.output_norm, self.output_projection):
            if layer is not None:
                layer.build((None, None, self.hidden_dim))
        self.built = True

    def initial_state(self, batch_size, max_length=None):
        room = self.max_length if max_length is None else max_length  # may be a tensor while an export is traced
        shape = (batch_size, self.num_kv_heads, room, self.hidden_dim // self.num_heads)
        names = [f"kv_cache_{kind}_{i}" for i in range(self.num_layers) for kind in "kv"]
        caches = {name: ops.zeros(shape, "float32") for name in names}
        return {"position": ops.zeros((batch_size,), "int32"), **caches}

    def hidden_states(self, inputs, state=None, training=None):
        token_ids = inputs["token_ids"]
        x = self.token_embedding(token_ids)  # (batch, time, hidden)
        time = ops.shape(token_ids)[1]
        steps = ops.arange(time, dtype="int32")[None]
        mask, caching = None, {}
        if state is not None:
            position = state["position"]
            lengths = inputs.get("lengths", ops.zeros_like(position) + time)
            positions = position[:, None] + steps
            keys = ops.arange(ops.shape(state["kv_cache_k_0"])[2], dtype="int32")
            # Row r sees keys up to its own position: what padding wrote behind it is overwritten before it shows.
            mask = (keys[None, None, :] <= positions[:, :, None])[:, None]  # (batch, 1, time, keys)
            caching = {"position": position, "lengths": lengths}
        elif "segment_ids" in inputs:
            segment_ids = inputs["segment_ids"]
            same = segment_ids[:, :, None] == segment_ids[:, None, :]
            visible = ops.logical_and(same, steps[:, :, None] >= steps[:, None, :])  # (batch, time, time)
            positions = ops.sum(ops.cast(visible, "int32"), axis=-1) - 1  # they start anew in each document
            mask = visible[:, None]
        else:
            positions = steps
        if self.position_embedding is not None:
            x = x + self.position_embedding(positions)
        if self.embedding_dropout is not None:
            x = self.embedding_dropout(x, training=training)
        new_state = None if state is None else {"position": position + lengths}
        for i, block in enumerate(self.blocks):
            names = (f"kv_cache_k_{i}", f"kv_cache_v_{i}")
            cache = None if state is None else tuple(state[name] for name in names)
            x = block(x, positions=positions, attention_mask=mask, cache=cache, training=training, **caching)
            if state is not None:
                x, cache = x
                new_state |= dict(zip(names, cache, strict=True))
        return (x if self.output_norm is None else self.output_norm(x)), new_state

    def projection(self):
        return self.output_projection or self.token_embedding, None

    def layout_map(self, mesh):
        """How the weights are cut over a mesh with an axis "model", for `keras.distribution.ModelParallel` (JAX).

        `Recipe(distribution="model-parallel")` does all of this. By hand, before the weights are made:

            distribution = keras.distribution.ModelParallel(layout_map=model.layout_map(mesh), batch_dim_name="batch")
            with distribution.scope():
                model.build()
        """
        return layout_map(mesh, {**ATTENTION, **FEED_FORWARD, **VOCABULARY}, self.vocabulary_size)
