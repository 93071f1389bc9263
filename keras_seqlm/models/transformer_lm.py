"""A decoder-only Transformer language model."""

import keras
from keras import ops

from keras_seqlm.cache import cache_slots, first_cache
from keras_seqlm.layers.attention import as_bias, bias_dtype, visibility, visible_at
from keras_seqlm.layers.dense import Dense
from keras_seqlm.models.language_model import LanguageModel
from keras_seqlm.models.memory import hidden_padding, memory_of
from keras_seqlm.models.presets import count
from keras_seqlm.models.transformer_body import TransformerBody, documents


@keras.saving.register_keras_serializable("keras_seqlm")
class TransformerLM(TransformerBody, LanguageModel):
    """A causal Transformer: embedding, positions, blocks, norm, projection to the vocabulary.

    References: Vaswani et al. 2017, arXiv:1706.03762; Radford et al. 2019 (GPT-2).

    Args:
        vocabulary_size: number of token ids.
        size: "nano", "micro", "tiny", "small" or "base" (GPT-2's 124M shape): sets the parts that are not given.
        max_length: the context, in tokens.
        num_layers, hidden_dim, num_heads: depth, width, attention heads.
        num_kv_heads: key-value heads (grouped-query attention); default `num_heads`.
        head_dim: width of a head; default hidden_dim / num_heads.
        intermediate_dim: width of the feed-forward layers; default 4 * hidden_dim, for a gated unit 8 / 3 of
            hidden_dim, rounded up to a multiple of 32, so that devices divide it.
        activation: "gelu_tanh", "gelu", "relu", "swiglu" or "geglu".
        norm: "layer" or "rms"; norm_first: pre-norm or post-norm; epsilon: of the norms.
        positions: "learned", "sinusoidal" or "rotary".
        rotary_base, rotary_scaling: see `layers.rotary_frequencies`.
        window: how many tokens up to its own each token sees (sliding-window attention, Beltagy et al. 2020,
            arXiv:2004.05150); None for all.
        attention_scale: of the scores; default 1 / sqrt(head_dim).
        tie_embedding: whether the embedding is the output projection, too.
        scale_embedding: whether token vectors are multiplied by sqrt(hidden_dim), as in the paper; default: with
            sinusoidal positions, beside which they would vanish.
        use_bias: whether products have a bias; qkv_bias, output_bias (of the attention) and feed_forward_bias say
            otherwise of one of them.
        dropout: of embeddings and both branches of a block.
        attention_dropout: of the attention probabilities; it costs the fused kernel, see `layers.attend`.
        num_token_types: how many `token_types` its inputs may have, of which a learned vector is added; 0 for none.
        memory_dim: width of the hidden states of a source that every block attends to, too; then it is the decoder of a
            `Seq2SeqLM`, and reads nothing by itself. None for none.
        final_norm: whether a norm stands behind the last block; default: if each of them has its norms first.
        tokenizer_hash: of the tokenizer whose ids it reads; a task checks it.
        name, dtype, trainable: as in `keras.Model`.

    Call arguments:
        inputs, state: see `LanguageModel`. Leaves of the state: `position` (batch,) int32, `kv_cache_k_0`,
        `kv_cache_v_0` ... (batch, num_kv_heads, max_length, head_dim) in the compute dtype.

    Raises:
        ValueError: an unknown size or option, one that the kind of positions does not look at, heads that do not divide
            the width.

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
        head_dim=None,
        intermediate_dim=None,
        activation="gelu_tanh",
        norm="layer",
        norm_first=True,
        epsilon=1e-5,
        positions="learned",
        rotary_base=10000.0,
        rotary_scaling=None,
        window=None,
        attention_scale=None,
        tie_embedding=True,
        scale_embedding=None,
        use_bias=True,
        qkv_bias=None,
        output_bias=None,
        feed_forward_bias=None,
        dropout=0.0,
        attention_dropout=0.0,
        num_token_types=0,
        memory_dim=None,
        final_norm=None,
        tokenizer_hash=None,
        name=None,
        dtype=None,
        trainable=True,
    ):
        super().__init__(
            vocabulary_size,
            size=size,
            max_length=max_length,
            num_layers=num_layers,
            hidden_dim=hidden_dim,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            intermediate_dim=intermediate_dim,
            activation=activation,
            norm=norm,
            norm_first=norm_first,
            epsilon=epsilon,
            positions=positions,
            rotary_base=rotary_base,
            rotary_scaling=rotary_scaling,
            attention_scale=attention_scale,
            scale_embedding=scale_embedding,
            use_bias=use_bias,
            qkv_bias=qkv_bias,
            output_bias=output_bias,
            feed_forward_bias=feed_forward_bias,
            dropout=dropout,
            attention_dropout=attention_dropout,
            num_token_types=num_token_types,
            memory_dim=memory_dim,
            final_norm=final_norm,
            name=name,
            dtype=dtype,
            trainable=trainable,
        )
        self.window = count("window", window)
        self.tie_embedding = tie_embedding
        self.tokenizer_hash = tokenizer_hash
        self.reads = (*self.reads, "token_types") if num_token_types else self.reads
        self.output_projection = None
        if not tie_embedding:
            self.output_projection = Dense(
                vocabulary_size, use_bias=False, name="output_projection", dtype=self.dtype_policy
            )

    def build(self, inputs_shape=None, state_shape=None):
        super().build()
        if self.output_projection is not None:
            self.output_projection.build((None, None, self.hidden_dim))

    def initial_state(self, batch_size, max_length=None):
        room = self.max_length if max_length is None else max_length  # may be a tensor while an export is traced
        shape = (batch_size, self.num_kv_heads, room, self.blocks[0].attention.head_dim)
        names = [f"kv_cache_{kind}_{i}" for i in range(self.num_layers) for kind in "kv"]
        caches = {name: ops.zeros(shape, self.compute_dtype) for name in names}
        return {"position": ops.zeros((batch_size,), "int32"), **caches}

    def read(self, inputs, max_length=None):
        """See `LanguageModel.read`: from its beginning a prompt is read causally, and no query looks at the whole cache."""
        inputs = self.checked_inputs(inputs)
        room = self.max_length if max_length is None else max_length
        return self.hidden_states(inputs, training=False, room=room)[1]

    def memory(self, hidden, lengths=None, training=None):
        """What a source leaves in the state, from its hidden states (sources, source time, memory_dim).

        Args:
            hidden: of an encoder.
            lengths: int32 (sources,), the real tokens of each; None for all.
            training: whether a gradient follows.

        Returns:
            `memory_k_0`, `memory_v_0` ... (sources, num_kv_heads, source time, head_dim), and `memory_lengths` where there
            are lengths.
        """
        pairs = [block.cross_attention.memory(hidden, training) for block in self.blocks]
        leaves = {
            f"memory_{kind}_{i}": leaf for i, pair in enumerate(pairs) for kind, leaf in zip("kv", pair, strict=True)
        }
        return leaves if lengths is None else {**leaves, "memory_lengths": lengths}

    def hidden_states(self, inputs, state=None, training=None, room=None, memory=None):
        """See `LanguageModel`. With `room` and without state the new state is that of prompts from their beginning.

        Without state a decoder is given its `memory`; beside a state it is among the leaves.
        """
        memory = memory_of(self, memory if state is None else state)
        token_ids = inputs["token_ids"]
        time = token_ids.shape[1] if isinstance(token_ids.shape[1], int) else ops.shape(token_ids)[1]
        steps = ops.arange(time, dtype="int32")[None]
        lengths = inputs.get("lengths", ops.zeros_like(token_ids[:, 0]) + time)
        slots = None
        if state is not None:
            position = state["position"]
            positions = position[:, None] + steps
            room = ops.shape(state["kv_cache_k_0"])[2]
            # Row r sees keys up to its own position: what padding wrote behind it is overwritten before it shows.
            distance = positions[:, :, None] - ops.arange(room, dtype="int32")
            seen = visible_at(distance, self.window)[:, None]
            bias = as_bias(seen, bias_dtype(time, self.compute_dtype))  # (batch, 1, time, room)
            seen = {"causal": False, "bias": bias}
            slots = cache_slots(position, lengths, time, room, self.num_kv_heads)
        elif "segment_ids" in inputs:
            same, positions = documents(inputs["segment_ids"])
            seen = visibility(time, self.compute_dtype, same[:, None], self.window)
        else:
            positions = steps
            seen = visibility(time, self.compute_dtype, window=self.window)
        x, turn = self.embedded(token_ids, positions, training, inputs.get("token_types"))
        memory_bias = hidden_padding(memory, self.compute_dtype)
        keeps = state is not None or room is not None
        new_state = {"position": lengths if state is None else position + lengths, **memory} if keeps else None
        for i, block in enumerate(self.blocks):
            names = (f"kv_cache_k_{i}", f"kv_cache_v_{i}")
            cache = None if state is None else tuple(state[name] for name in names)
            x = block(
                x,
                rotation=turn,
                cache=cache,
                slots=slots,
                memory=(memory[f"memory_k_{i}"], memory[f"memory_v_{i}"]) if memory else None,
                memory_bias=memory_bias,
                return_keys=keeps and state is None,
                training=training,
                **seen,
            )
            if keeps:
                x, cache = x
                cache = cache if state is not None else [first_cache(new, room) for new in cache]
                new_state |= dict(zip(names, cache, strict=True))
        return (x if self.output_norm is None else self.output_norm(x)), new_state

    @property
    def of_logits_alone(self):
        return [] if self.output_projection is None else self.output_projection.variables

    def projection(self):
        return self.output_projection or self.token_embedding, None
