"""Recurrent layers that attend to a memory: the decoders of Bahdanau and of Luong."""

import types

import keras
from keras import ops

from keras_seqlm.layers.attention import attend
from keras_seqlm.layers.cross_attention import fold
from keras_seqlm.layers.dense import Dense
from keras_seqlm.layers.lora import effective
from keras_seqlm.layers.pooling import pool
from keras_seqlm.layers.recurrent import STATE_NAMES, RecurrentStack
from keras_seqlm.layers.recurrent_cells import CELLS, matmul
from keras_seqlm.layers.recurrent_loops import input_product
from keras_seqlm.products import matmul_in_float32, project

ATTENTIONS = ("additive", "general")


@keras.saving.register_keras_serializable("keras_seqlm")
class AttentiveStack(keras.layers.Layer):
    """A `RecurrentStack` that looks at a source m_1, ..., m_n at every step; its outputs know what it saw.

        additive  e_ti = v . tanh(W_a s_{t-1} + b_a + U_a m_i); a_t = softmax(e_t); c_t = sum_i a_ti m_i; s_t = f([x_t; c_t], s_{t-1})
        general   s_t = f(x_t, s_{t-1}); e_ti = s_t . W_a m_i; a_t = softmax(e_t); c_t = sum_i a_ti m_i
        both      output_t = tanh(W_o s_t + W_c c_t + b_o)

    Additive attention is part of the recurrence, so it goes step by step; general attention looks at the source after all
    steps, in one product, and is faster. Of several layers the lowest one attends additively, as in Wu et al. 2016 (GNMT),
    arXiv:1609.08144, the highest one by general attention, as in the paper. Two departures: Bahdanau's maxout behind the
    state is the tanh of Luong's; of Luong, the output is not fed to the next step.

    The first state is tanh(W_s mean_i m_i + b_s), for whatever made the source.

    References: Bahdanau et al. 2014, arXiv:1409.0473, appendix A; Luong et al. 2015, arXiv:1508.04025, section 3.1.

    Args:
        cell, hidden_dim, num_layers, dropout, use_cudnn: as in `RecurrentStack`.
        memory_dim: width of the source's states.
        attention: "additive" or "general".

    Call arguments:
        x: (rows, time, features).
        state: dict of float32 (rows, hidden_dim): `h_0` ..., for an LSTM also `c_0` ...
        memory: the pair that `memory` gives, for as many sources as rows, or for fewer, whose rows then stand side by side.
        bias: float (sources, 1, 1, source time), added to the scores: what hides the padding of sources. None for none.
        lengths: int32 (rows,), the real steps of each row; the padding behind them leaves the state as it is.

    Returns:
        The outputs (rows, time, hidden_dim) and the state after the last step.

    Raises:
        ValueError: an unknown cell or attention.

    Example:

    >>> stack = AttentiveStack("gru", hidden_dim=8, memory_dim=6)
    >>> stack.build((None, None, 4))
    >>> source = keras.ops.ones((2, 5, 6))
    >>> output, state = stack(keras.ops.ones((2, 3, 4)), stack.first_state(source), stack.memory(source))
    >>> tuple(output.shape), sorted(state)
    ((2, 3, 8), ['h_0'])
    """

    def __init__(
        self, cell, hidden_dim, memory_dim, num_layers=1, attention="additive", dropout=0.0, use_cudnn="auto", **kwargs
    ):
        super().__init__(autocast=False, **kwargs)
        if attention not in ATTENTIONS:
            raise ValueError(f"attention must be one of {list(ATTENTIONS)}, got {attention!r}")
        self.cell = cell
        self.hidden_dim = hidden_dim
        self.memory_dim = memory_dim
        self.num_layers = num_layers
        self.attention = attention
        self.dropout = dropout
        self.use_cudnn = use_cudnn
        policy = {"dtype": self.dtype_policy}
        self.additive = attention == "additive"
        self.attending = self.above = None
        if self.additive:
            self.attending = RecurrentStack(cell, hidden_dim, 1, dropout, use_cudnn, name="attending", **policy)
        if num_layers > self.additive:
            left = num_layers - self.additive
            self.above = RecurrentStack(cell, hidden_dim, left, dropout, use_cudnn, name="above", **policy)
        self.query = Dense(hidden_dim, name="query_of_attention", **policy) if self.additive else None
        self.keys = Dense(hidden_dim, use_bias=False, name="keys_of_attention", **policy)
        self.output_of_state = Dense(hidden_dim, name="output_of_state", **policy)
        self.output_of_context = Dense(hidden_dim, use_bias=False, name="output_of_context", **policy)
        leaves = num_layers * len(STATE_NAMES.get(cell, ""))
        self.start = Dense(leaves * hidden_dim, activation="tanh", name="first_state", **policy)

    def build(self, input_shape):
        features = input_shape[-1]
        if self.additive:
            self.attending.build((None, None, features + self.memory_dim))
            self.query.build((None, self.hidden_dim))
            self.scores = self.add_weight(name="scores", shape=(self.hidden_dim,), initializer="glorot_uniform")
        if self.above is not None:
            self.above.build((None, None, self.hidden_dim if self.additive else features))
        for layer in (self.keys, self.output_of_context, self.start):
            layer.build((None, None, self.memory_dim))
        self.output_of_state.build((None, None, self.hidden_dim))

    def floors(self):
        """Its layers from the bottom up; those of the attention stand with the layer whose states they read."""
        below = self.attending.floors() if self.additive else []
        floors = below + (self.above.floors() if self.above is not None else [])
        attention = [self.keys]
        if self.additive:
            attention += [self.query, types.SimpleNamespace(variables=[self.scores])]  # a weight of the stack itself
        floors[0 if self.additive else -1] += attention
        floors[-1] += [self.output_of_state, self.output_of_context]
        floors[0] += [self.start]
        return floors

    def _names(self, of=slice(None)):
        return [f"{name}_{i}" for i in range(self.num_layers)[of] for name in STATE_NAMES[self.cell]]

    def initial_state(self, batch_size):
        """Zeros: a dict `name -> float32 (batch_size, hidden_dim)`, to which `first_state` has other numbers."""
        return {name: ops.zeros((batch_size, self.hidden_dim), "float32") for name in self._names()}

    def first_state(self, source, lengths=None, training=None):
        """The state before the first step, from a source (sources, source time, memory_dim): a dict as `initial_state`."""
        mean = pool(ops.cast(source, self.compute_dtype), lengths, "mean")
        both = ops.cast(self.start(mean, training=training), "float32")
        names = self._names()
        return dict(zip(names, ops.split(both, len(names), axis=-1), strict=True))

    def memory(self, source, training=None):
        """What every step reads of a source (sources, source time, memory_dim): a pair of the same first two axes.

        W_a m_i, and m_i itself, or, where nothing but the output reads it, W_c m_i.
        """
        source = ops.cast(source, self.compute_dtype)
        values = source if self.additive else self.output_of_context(source, training=training)
        return self.keys(source, training=training), values

    def call(self, x, state, memory, bias=None, lengths=None, training=None):
        x = ops.cast(x, self.compute_dtype)
        rows, time = ops.shape(x)[0], ops.shape(x)[1]
        keys, values = memory
        new = {}
        if self.additive:
            x, contexts, new = self._attend_in_steps(x, state, keys, values, bias, lengths, training)
        if self.above is not None:
            names = self._names(slice(int(self.additive), None))
            own = self.above.initial_state(1)  # by its own names, which begin with 0
            before = dict(zip(own, (state[name] for name in names), strict=True))
            x, after = self.above(x, state=before, lengths=lengths, training=training)
            new |= dict(zip(names, (after[name] for name in own), strict=True))
        if self.additive:
            seen = self.output_of_context(ops.cast(contexts, self.compute_dtype), training=training)
        else:
            query = fold(x, keys, (self.hidden_dim,))[:, None]
            keys, values = (ops.cast(part, x.dtype)[:, None] for part in (keys, values))
            seen = ops.reshape(attend(query, keys, values, bias=bias, scale=1.0), (rows, time, self.hidden_dim))
        return ops.tanh(self.output_of_state(x, training=training) + seen), new

    def _attend_in_steps(self, x, state, keys, values, bias, lengths, training):
        """The lowest layer over time: its outputs, the contexts (rows, time, memory_dim), and its last state."""
        layer, names = self.attending.layers[0], self._names(slice(0, 1))
        rows, time, features = ops.shape(x)[0], ops.shape(x)[1], x.shape[-1]
        weights = (layer.cell.kernel, layer.cell.recurrent_kernel)
        kernel, recurrent_kernel = (
            ops.cast(effective(weight, adapter), self.compute_dtype)
            for weight, adapter in zip(weights, self.attending.adapters_of(0), strict=True)
        )
        kernel, of_context = kernel[:features], kernel[features:]
        of_query = self._product_of_query()
        scores = ops.cast(self.scores, "float32")
        product = project if training else ops.matmul
        inputs, recurrent_bias = input_product(
            self.cell, x, kernel, ops.cast(layer.cell.bias, "float32"), product=product
        )
        width = inputs.shape[-1]
        exact = ops.cast(keys, "float32")[:, None]  # (sources, 1, source time, hidden)
        hides = 0.0 if bias is None else ops.cast(bias[:, 0], "float32")  # (sources, 1, source time)

        def context_of(h):
            query = fold(of_query(h)[:, None], keys, (1, self.hidden_dim))
            weights = ops.softmax(ops.sum(ops.tanh(query + exact) * scores, axis=-1) + hides, axis=-1)
            return ops.reshape(matmul_in_float32(weights, values), (rows, self.memory_dim))

        def advance(state, now):
            context = context_of(state[0])
            new, _ = CELLS[self.cell].step(
                now[:, :width] + matmul(context, of_context), state, recurrent_kernel, recurrent_bias
            )
            if lengths is not None:
                new = tuple(ops.where(now[:, width:] > 0.0, a, b) for a, b in zip(new, state, strict=True))
            return (*new, context)

        if lengths is not None:
            real = ops.arange(time, dtype="int32")[None] < lengths[:, None]
            inputs = ops.concatenate([inputs, ops.cast(real, "float32")[..., None]], axis=-1)
        before = tuple(ops.cast(state[name], "float32") for name in names)
        if isinstance(time, int) and time == 1:
            *after, context = advance(before, inputs[:, 0])
            outputs, contexts = after[0][:, None], context[:, None]
        else:

            def body(carry, now):
                carry = advance(carry[:-1], now)
                return carry, carry  # TensorFlow's scan wants the outputs in the structure of the carry

            nothing = ops.zeros((rows, self.memory_dim), "float32")
            (*after, _), seen = ops.scan(body, (*before, nothing), ops.swapaxes(inputs, 0, 1))
            outputs, contexts = (ops.swapaxes(part, 0, 1) for part in (seen[0], seen[-1]))
        outputs = ops.cast(outputs, self.compute_dtype)
        if self.attending.output_dropout is not None:
            outputs = self.attending.output_dropout(outputs, training=training)
        new = {name: ops.cast(leaf, state[name].dtype) for name, leaf in zip(names, after, strict=True)}
        return outputs, contexts, new

    def _product_of_query(self):
        """W_a h + b_a as a function of h, in float32; its weights are read before the loop, unless they are integers."""
        if self.query.quantization_mode is not None:
            return lambda h: ops.cast(self.query(ops.cast(h, self.compute_dtype)), "float32")
        kernel, bias = ops.cast(self.query.kernel, self.compute_dtype), ops.cast(self.query.bias, "float32")
        return lambda h: matmul(h, kernel) + bias

    def get_config(self):
        names = ("cell", "hidden_dim", "memory_dim", "num_layers", "attention", "dropout", "use_cudnn")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
