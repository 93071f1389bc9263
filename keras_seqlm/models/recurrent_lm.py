"""A recurrent language model: SimpleRNN, GRU or LSTM."""

import keras
from keras import ops

from keras_seqlm.layers.attentive_stack import AttentiveStack
from keras_seqlm.layers.dense import Dense
from keras_seqlm.layers.embeddings import TokenEmbedding
from keras_seqlm.layers.recurrent import RecurrentStack
from keras_seqlm.models.language_model import LanguageModel
from keras_seqlm.models.memory import hidden_padding, memory_of
from keras_seqlm.models.presets import RECURRENT_SIZES, count, parts_of


@keras.saving.register_keras_serializable("keras_seqlm")
class RecurrentLM(LanguageModel):
    """Embedding, a stack of recurrent layers, projection to the vocabulary. It reads and writes without limit.

    Reference: Mikolov et al. 2010; Sundermeyer et al. 2012 (LSTM).

    Args:
        vocabulary_size: number of token ids.
        cell: "rnn", "gru" or "lstm".
        size: "nano", "micro", "tiny", "small" or "base": sets the parts that are not given.
        num_layers, hidden_dim: depth and width of the stack.
        embedding_dim: width of a token's vector; default `hidden_dim`.
        tie_embedding: whether the embedding is the output projection, too; between unequal widths a linear layer stands.
        dropout: of the embeddings and of every layer's output.
        use_cudnn: see `RecurrentStack`.
        stateful_batch_size: train by truncated back-propagation through time: the state at the end of a training
            batch of this many rows is kept in variables and starts the next one (`data.causal_blocks(contiguous=True)`).
            Padding behind `lengths` leaves it as it is. With `segment_ids` it is read only by rows that start with
            segment 0, which says that the document goes on from the batch before; a row that starts with another
            number starts from zero. Validation neither reads nor changes it; `reset_state()` clears it.
        memory_dim: width of the hidden states of a source that it attends to at every step; then it is the decoder of a
            `Seq2SeqLM`, and reads nothing by itself. None for none.
        attention: of such a decoder, "additive" (Bahdanau) or "general" (Luong); see `layers.AttentiveStack`.
        tokenizer_hash: of the tokenizer whose ids it reads; a task checks it.
        name, dtype, trainable: as in `keras.Model`.

    Call arguments:
        inputs, state: see `LanguageModel`. Leaves of the state: `position` (batch,) int32, `h_0` ... and for an LSTM
        `c_0` ... (batch, hidden_dim) float32.

    Raises:
        ValueError: an unknown cell, size or attention, an attention without `memory_dim`; a training batch of another size than `stateful_batch_size`.

    Example:

    >>> model = RecurrentLM(vocabulary_size=260, cell="lstm", size="nano")
    >>> tuple(model(keras.ops.ones((2, 8), "int32")).shape)
    (2, 8, 260)
    """

    torch_compiles = False  # a loop over time that it would write out, where torch's own kernels run

    def __init__(
        self,
        vocabulary_size,
        cell="lstm",
        size="tiny",
        num_layers=None,
        hidden_dim=None,
        embedding_dim=None,
        tie_embedding=True,
        dropout=0.0,
        use_cudnn="auto",
        stateful_batch_size=None,
        memory_dim=None,
        attention=None,
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
        self.num_layers = count("num_layers", num_layers, parts["num_layers"])
        self.hidden_dim = count("hidden_dim", hidden_dim, parts["hidden_dim"])
        self.embedding_dim = count("embedding_dim", embedding_dim, self.hidden_dim)
        self.tie_embedding = tie_embedding
        self.dropout = dropout
        self.use_cudnn = use_cudnn
        self.stateful_batch_size = count("stateful_batch_size", stateful_batch_size)
        self.memory_dim = count("memory_dim", memory_dim)
        if memory_dim is None and attention is not None:
            raise ValueError(f"attention is of a decoder, and memory_dim is None; leave out attention={attention!r}")
        if memory_dim is not None and stateful_batch_size is not None:
            raise ValueError(
                "a decoder begins anew with every source, and carries no state from batch to batch: leave out "
                "stateful_batch_size, or memory_dim"
            )
        self.attention = "additive" if memory_dim is not None and attention is None else attention
        self.tokenizer_hash = tokenizer_hash

        policy = {"dtype": self.dtype_policy}
        self.token_embedding = TokenEmbedding(vocabulary_size, self.embedding_dim, name="token_embedding", **policy)
        self.embedding_dropout = keras.layers.Dropout(dropout, **policy) if dropout else None
        of_all = {
            "num_layers": self.num_layers,
            "dropout": dropout,
            "use_cudnn": use_cudnn,
            "name": "recurrent",
            **policy,
        }
        if memory_dim is None:
            self.recurrent = RecurrentStack(cell, self.hidden_dim, **of_all)
        else:
            self.recurrent = AttentiveStack(cell, self.hidden_dim, memory_dim, attention=self.attention, **of_all)
        self.bridge = None
        if tie_embedding and self.embedding_dim != self.hidden_dim:
            self.bridge = Dense(self.embedding_dim, name="bridge", **policy)
        self.output_projection = None
        if not tie_embedding:
            self.output_projection = Dense(vocabulary_size, name="output_projection", **policy)
        self.output_bias = None
        self.carried = {}

    def build(self, inputs_shape=None, state_shape=None):
        if not self.token_embedding.built:  # it may be another model's, too
            self.token_embedding.build()
        self.recurrent.build((None, None, self.embedding_dim))
        for layer in (self.bridge, self.output_projection):
            if layer is not None:
                layer.build((None, None, self.hidden_dim))
        if self.tie_embedding:
            self.output_bias = self.add_weight(name="output_bias", shape=(self.vocabulary_size,), initializer="zeros")
        if self.stateful_batch_size is not None:
            for name, leaf in self.recurrent.initial_state(self.stateful_batch_size).items():
                self.carried[name] = self.add_weight(
                    name=f"carried_{name}", shape=leaf.shape, initializer="zeros", trainable=False, dtype="float32"
                )
        self.built = True

    @property
    def width(self):
        return self.hidden_dim if self.bridge is None else self.embedding_dim

    def floors(self):
        floors = [[self.token_embedding], *self.recurrent.floors()]
        floors[-1] += [self.bridge] if self.bridge is not None else []
        return floors

    def initial_state(self, batch_size, max_length=None):
        return {"position": ops.zeros((batch_size,), "int32"), **self.recurrent.initial_state(batch_size)}

    def reset_state(self):
        """Set the state that training carries from batch to batch to zero."""
        for variable in self.carried.values():
            variable.assign(ops.zeros(variable.shape, variable.dtype))

    def memory(self, hidden, lengths=None, training=None):
        """What a source leaves in the state, from its hidden states (sources, source time, memory_dim).

        Args:
            hidden: of an encoder.
            lengths: int32 (sources,), the real tokens of each; None for all.
            training: whether a gradient follows.

        Returns:
            `memory_k`, `memory_v` (sources, source time, width), `memory_lengths` where there are lengths, and the first
            `h_0` ..., `c_0` ...
        """
        keys, values = self.recurrent.memory(hidden, training)
        leaves = {"memory_k": keys, "memory_v": values, **self.recurrent.first_state(hidden, lengths, training)}
        return leaves if lengths is None else {**leaves, "memory_lengths": lengths}

    def hidden_states(self, inputs, state=None, training=None, memory=None):
        """See `LanguageModel`. Without state a decoder is given its `memory`; beside a state it is among the leaves."""
        given = memory if state is None else state
        memory = memory_of(self, given)
        of_source = {}
        if memory:
            pair = (memory["memory_k"], memory["memory_v"])
            of_source = {"memory": pair, "bias": hidden_padding(memory, self.compute_dtype)}
        token_ids = inputs["token_ids"]
        # The table starts small, since it is the output projection, too; what is read starts at unit scale.
        x = self.token_embedding(token_ids) * self.embedding_dim**0.5
        if self.embedding_dropout is not None:
            x = self.embedding_dropout(x, training=training)
        lengths, segment_ids = inputs.get("lengths"), inputs.get("segment_ids")
        if memory and state is None:
            first = {name: given[name] for name in given if name not in memory}
            return self._bridged(self.recurrent(x, state=first, training=training, **of_source)[0]), None
        if state is None:
            carrying = training and self.stateful_batch_size is not None
            if carrying and token_ids.shape[0] not in (None, self.stateful_batch_size):
                raise ValueError(
                    f"this model carries the state of {self.stateful_batch_size} rows from batch to batch, "
                    f"and got a training batch of {token_ids.shape[0]}; use that batch size, or set stateful_batch_size=None"
                )
            if not carrying:  # what stands before padding does not hang on it, and nobody sees the state behind it
                return self._bridged(self.recurrent(x, segment_ids=segment_ids, training=training)[0]), None
            # Copies, because the assignment below writes in place, and torch's backward pass still needs the old numbers.
            before = {name: ops.copy(variable) for name, variable in self.carried.items()}
            if segment_ids is not None:
                goes_on = segment_ids[:, :1] == 0
                if lengths is not None:  # a row of padding alone begins nothing
                    goes_on = ops.logical_or(goes_on, lengths[:, None] == 0)
                before = {name: ops.where(goes_on, leaf, 0.0) for name, leaf in before.items()}
            x, after = self.recurrent(x, state=before, lengths=lengths, segment_ids=segment_ids, training=training)
            for name, variable in self.carried.items():
                variable.assign(ops.stop_gradient(after[name]))
            return self._bridged(x), None
        leaves = {name: leaf for name, leaf in state.items() if name != "position" and name not in memory}
        x, leaves = self.recurrent(x, state=leaves, lengths=lengths, training=training, **of_source)
        read = ops.shape(token_ids)[1] if lengths is None else lengths
        return self._bridged(x), {"position": state["position"] + read, **leaves, **memory}

    def _bridged(self, hidden):
        return hidden if self.bridge is None else self.bridge(hidden)

    @property
    def of_logits_alone(self):
        own = [] if self.output_bias is None else [self.output_bias]
        return own if self.output_projection is None else [*own, *self.output_projection.variables]

    def projection(self):
        return self.output_projection or self.token_embedding, self.output_bias
