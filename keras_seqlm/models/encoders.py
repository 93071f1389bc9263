"""Encoders: a hidden state of every token that knows what stands before it and behind it."""

import keras
from keras import ops

from keras_seqlm.layers.attention import as_bias, bias_dtype
from keras_seqlm.layers.embeddings import TokenEmbedding
from keras_seqlm.layers.recurrent import RecurrentStack
from keras_seqlm.models.presets import RECURRENT_SIZES, count, parts_of
from keras_seqlm.models.sequence_model import SequenceModel
from keras_seqlm.models.transformer_body import TransformerBody, documents


@keras.saving.register_keras_serializable("keras_seqlm")
class TransformerEncoder(TransformerBody):
    """A Transformer whose tokens see each other in both directions.

    As it stands it is pre-norm, which trains from scratch without care. The shapes of checkpoints:

        BERT      norm_first=False, embedding_norm=True, epsilon=1e-12, num_token_types=2
        RoBERTa   norm_first=False, embedding_norm=True, num_token_types=1, position_offset=2

    References: Devlin et al. 2018 (BERT), arXiv:1810.04805; Liu et al. 2019 (RoBERTa), arXiv:1907.11692.

    Args:
        vocabulary_size, size, max_length, num_layers, hidden_dim, num_heads, num_kv_heads, head_dim, intermediate_dim,
            activation, norm, norm_first, epsilon, positions, rotary_base, rotary_scaling, attention_scale,
            scale_embedding, use_bias, qkv_bias, output_bias, feed_forward_bias, dropout, attention_dropout,
            tokenizer_hash: as in `TransformerLM`. The default activation is the exact "gelu", as BERT's.
        position_offset: rows of learned positions before the first that is used.
        embedding_norm: whether a norm stands behind the sum of the embeddings.
        num_token_types: how many `token_types` there are, of which a learned vector is added; 0 for none.
        final_norm: as in `TransformerLM`.
        name, dtype, trainable: as in `keras.Model`.

    Call arguments:
        inputs: token ids (batch, time), or a dict of int32 tensors: `token_ids`; `lengths` (batch,), padding stands
            behind them and is not seen; `segment_ids` (batch, time), packed documents, which do not see each other;
            with `num_token_types` also `token_types` (batch, time), zeros where there are none.

    Returns:
        (batch, time, hidden_dim) in the compute dtype.

    Raises:
        ValueError: as in `TransformerLM`.

    Example:

    >>> encoder = TransformerEncoder(vocabulary_size=260, size="nano", max_length=32)
    >>> tuple(encoder(keras.ops.ones((2, 8), "int32")).shape)
    (2, 8, 96)
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
        activation="gelu",
        norm="layer",
        norm_first=True,
        epsilon=1e-5,
        positions="learned",
        position_offset=0,
        rotary_base=10000.0,
        rotary_scaling=None,
        embedding_norm=False,
        num_token_types=0,
        attention_scale=None,
        scale_embedding=None,
        use_bias=True,
        qkv_bias=None,
        output_bias=None,
        feed_forward_bias=None,
        dropout=0.0,
        attention_dropout=0.0,
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
            position_offset=position_offset,
            rotary_base=rotary_base,
            rotary_scaling=rotary_scaling,
            embedding_norm=embedding_norm,
            num_token_types=num_token_types,
            attention_scale=attention_scale,
            scale_embedding=scale_embedding,
            use_bias=use_bias,
            qkv_bias=qkv_bias,
            output_bias=output_bias,
            feed_forward_bias=feed_forward_bias,
            dropout=dropout,
            attention_dropout=attention_dropout,
            final_norm=final_norm,
            name=name,
            dtype=dtype,
            trainable=trainable,
        )
        self.tokenizer_hash = tokenizer_hash
        self.reads = (*self.reads, "token_types") if num_token_types else self.reads

    def hidden_states(self, inputs, state=None, training=None):
        """See `SequenceModel`."""
        token_ids = inputs["token_ids"]
        time = token_ids.shape[1] if isinstance(token_ids.shape[1], int) else ops.shape(token_ids)[1]
        positions, seen = ops.arange(time, dtype="int32")[None], None
        if "lengths" in inputs:
            seen = (positions < inputs["lengths"][:, None])[:, None, None]  # (batch, 1, 1, time)
        if "segment_ids" in inputs:
            same, positions = documents(inputs["segment_ids"])
            seen = same[:, None] if seen is None else ops.logical_and(same[:, None], seen)
        bias = None if seen is None else as_bias(seen, bias_dtype(time, self.compute_dtype))
        x, turn = self.embedded(token_ids, positions, training, inputs.get("token_types"))
        for block in self.blocks:
            x = block(x, rotation=turn, bias=bias, training=training)
        return (x if self.output_norm is None else self.output_norm(x)), None


@keras.saving.register_keras_serializable("keras_seqlm")
class RecurrentEncoder(SequenceModel):
    """Embedding and a stack of recurrent layers, each read forwards and backwards: hidden states of both, side by side.

    References: Schuster and Paliwal 1997; Graves and Schmidhuber 2005 (bidirectional LSTM).

    Args:
        vocabulary_size, cell, size, num_layers, embedding_dim, use_cudnn, tokenizer_hash: as in `RecurrentLM`.
        num_token_types: as in `TransformerEncoder`.
        bidirectional: whether every layer is read backwards, too. Without it a token knows what stands before it alone.
        hidden_dim: width of a layer in one direction; a hidden state of both is twice as wide.
        dropout: of the embeddings and of every layer's output.
        name, dtype, trainable: as in `keras.Model`.

    Call arguments:
        inputs: token ids (batch, time), or a dict of int32 tensors: `token_ids`; `lengths` (batch,), the padding behind
            them is not seen; `segment_ids` (batch, time), packed documents, which do not see each other; with
            `num_token_types` also `token_types` (batch, time), zeros where there are none.

    Returns:
        (batch, time, 2 * hidden_dim) in the compute dtype, of one direction half as wide.

    Raises:
        ValueError: an unknown cell or size.

    Example:

    >>> encoder = RecurrentEncoder(vocabulary_size=260, cell="lstm", size="nano")
    >>> tuple(encoder(keras.ops.ones((2, 8), "int32")).shape)
    (2, 8, 320)
    """

    torch_compiles = False  # as RecurrentLM

    def __init__(
        self,
        vocabulary_size,
        cell="lstm",
        size="tiny",
        bidirectional=True,
        num_layers=None,
        hidden_dim=None,
        embedding_dim=None,
        dropout=0.0,
        use_cudnn="auto",
        num_token_types=0,
        tokenizer_hash=None,
        name=None,
        dtype=None,
        trainable=True,
    ):
        super().__init__(name=name, dtype=dtype, trainable=trainable)
        parts = parts_of(size, RECURRENT_SIZES)
        self.vocabulary_size = count("vocabulary_size", vocabulary_size)
        self.cell = cell
        self.size = size
        self.bidirectional = bidirectional
        self.num_layers = count("num_layers", num_layers, parts["num_layers"])
        self.hidden_dim = count("hidden_dim", hidden_dim, parts["hidden_dim"])
        self.embedding_dim = count("embedding_dim", embedding_dim, self.hidden_dim)
        self.dropout = dropout
        self.use_cudnn = use_cudnn
        self.num_token_types = num_token_types
        self.tokenizer_hash = tokenizer_hash
        self.causal = not bidirectional
        self.reads = (*self.reads, "token_types") if num_token_types else self.reads

        policy = {"dtype": self.dtype_policy}
        self.token_embedding = TokenEmbedding(vocabulary_size, self.embedding_dim, name="token_embedding", **policy)
        self.type_embedding = None
        if num_token_types:
            self.type_embedding = TokenEmbedding(num_token_types, self.embedding_dim, name="token_types", **policy)
        self.embedding_dropout = keras.layers.Dropout(dropout, **policy) if dropout else None

        def stacks(name):
            return [
                RecurrentStack(cell, self.hidden_dim, 1, dropout, use_cudnn, name=f"{name}_{i}", **policy)
                for i in range(self.num_layers)
            ]

        self.forward_layers = stacks("forward")
        self.backward_layers = stacks("backward") if bidirectional else []

    def build(self, inputs_shape=None):
        if not self.token_embedding.built:  # it may be another model's, too
            self.token_embedding.build()
        if self.type_embedding is not None:
            self.type_embedding.build()
        features = self.embedding_dim
        for i, layer in enumerate(self.forward_layers):
            for one in (layer, *self.backward_layers[i : i + 1]):
                one.build((None, None, features))
            features = self.width
        self.built = True

    def floors(self):
        layers = zip(self.forward_layers, self.backward_layers or self.forward_layers, strict=True)
        tables = [table for table in (self.token_embedding, self.type_embedding) if table is not None]
        return [tables, *(list(pair) for pair in layers)]

    @property
    def width(self):
        return self.hidden_dim * (2 if self.bidirectional else 1)

    def hidden_states(self, inputs, state=None, training=None):
        """See `SequenceModel`."""
        # As in RecurrentLM: the table starts small, and what is read starts at unit scale.
        token_ids = inputs["token_ids"]
        x = self.token_embedding(token_ids)
        if self.type_embedding is not None:
            types = inputs.get("token_types")
            x = x + self.type_embedding(ops.zeros_like(token_ids) if types is None else types)
        x = x * self.embedding_dim**0.5
        if self.embedding_dropout is not None:
            x = self.embedding_dropout(x, training=training)
        segment_ids, lengths = inputs.get("segment_ids"), inputs.get("lengths")
        # Backwards the real tokens come first, too, so that neither direction has seen padding when it reads them.
        turned_ids = None if segment_ids is None else reverse(segment_ids, lengths)
        for i, layer in enumerate(self.forward_layers):
            read = layer(x, segment_ids=segment_ids, training=training)[0]
            if self.bidirectional:
                back = self.backward_layers[i](reverse(x, lengths), segment_ids=turned_ids, training=training)[0]
                read = ops.concatenate([read, reverse(back, lengths)], axis=-1)
            x = read
        return x, None


def reverse(x, lengths=None):
    """Each row backwards: (batch, time, ...), and of it the first `lengths` (batch,) alone, where there are some.

    Example:

    >>> keras.ops.convert_to_numpy(reverse(keras.ops.array([[1, 2, 3, 0]]), keras.ops.array([3]))).tolist()
    [[3, 2, 1, 0]]
    """
    if lengths is None:
        return ops.flip(x, axis=1)
    steps = ops.arange(ops.shape(x)[1], dtype="int32")[None]
    places = lengths[:, None] - 1 - steps
    places = ops.where(places >= 0, places, steps)  # (batch, time)
    places = ops.reshape(places, (*ops.shape(places), *[1] * (len(x.shape) - 2)))
    return ops.take_along_axis(x, ops.broadcast_to(places, ops.shape(x)) if len(x.shape) > 2 else places, axis=1)
