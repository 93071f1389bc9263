"""Recurrent layers with their state in the open: a stack of SimpleRNN, GRU or LSTM."""

import keras
from keras import ops

KERAS_LAYERS = {"rnn": keras.layers.SimpleRNN, "gru": keras.layers.GRU, "lstm": keras.layers.LSTM}
STATE_NAMES = {"rnn": ("h",), "gru": ("h",), "lstm": ("h", "c")}


def rnn_step(x, state, U, _):
    """h_t = tanh(x_t + h_{t-1} U), with x_t = W x + b made before. Reference: Elman 1990."""
    (h,) = state
    return (ops.tanh(x + _product(h, U)),)


def gru_step(x, state, U, recurrent_bias):
    """z = s(x_z + h U_z + b_z); r = s(x_r + h U_r + b_r); g = tanh(x_g + r * (h U_g + b_g)); h_t = z * h + (1 - z) * g.

    The reset gate stands after the product, as in cuDNN, Keras and PyTorch. Reference: Cho et al. 2014, arXiv:1406.1078.
    """
    (h,) = state
    x_z, x_r, x_g = ops.split(x, 3, axis=-1)
    h_z, h_r, h_g = ops.split(_product(h, U) + recurrent_bias, 3, axis=-1)
    z, r = ops.sigmoid(x_z + h_z), ops.sigmoid(x_r + h_r)
    g = ops.tanh(x_g + r * h_g)
    return (z * h + (1.0 - z) * g,)


def lstm_step(x, state, U, _):
    """i, f, o = s(x + h U); g = tanh(x_g + h U_g); c_t = f * c + i * g; h_t = o * tanh(c_t).

    Reference: Hochreiter and Schmidhuber 1997; with the forget gate of Gers et al. 2000.
    """
    h, c = state
    i, f, g, o = ops.split(x + _product(h, U), 4, axis=-1)
    i, f, o, g = ops.sigmoid(i), ops.sigmoid(f), ops.sigmoid(o), ops.tanh(g)
    c = f * c + i * g
    return o * ops.tanh(c), c


STEPS = {"rnn": rnn_step, "gru": gru_step, "lstm": lstm_step}


def _product(h, U):
    """h U in the dtype of the weights, handed back in float32, in which the state is carried."""
    return ops.cast(ops.matmul(ops.cast(h, U.dtype), U), "float32")


def scan(cell, x, state, kernel, recurrent_kernel, bias, lengths=None, starts=None):
    """Run a cell over time: the inputs of all steps in one product, then one small product a step.

    Args:
        cell: "rnn", "gru" or "lstm".
        x: (batch, time, features) in the dtype of the kernels.
        state: tuple of float32 (batch, hidden): (h,) or (h, c).
        kernel: W (features, gates * hidden); recurrent_kernel: U (hidden, gates * hidden).
        bias: (gates * hidden,), for a GRU (2, gates * hidden): of the input and of the recurrent product.
        lengths: int32 (batch,); steps from there on leave the state as it is.
        starts: bool (batch, time), true where a document starts: there the state is zero again.

    Returns:
        The outputs (batch, time, hidden), float32, and the last state.
    """
    step = STEPS[cell]
    recurrent_bias = ops.cast(bias[1], "float32") if cell == "gru" else None
    bias = bias[0] if cell == "gru" else bias
    inputs = ops.cast(ops.matmul(x, kernel) + bias, "float32")
    flags = {}  # each float32 (batch, time, 1)
    if lengths is not None:
        real = ops.arange(ops.shape(x)[1], dtype="int32")[None] < lengths[:, None]
        flags["real"] = ops.cast(real, "float32")[..., None]
    if starts is not None:
        flags["goes_on"] = ops.cast(ops.logical_not(starts), "float32")[..., None]

    def advance(state, now):
        width = inputs.shape[-1]
        flag = {name: now[:, width + i : width + i + 1] for i, name in enumerate(flags)}
        if "goes_on" in flag:
            state = tuple(leaf * flag["goes_on"] for leaf in state)
        new = step(now[:, :width], state, recurrent_kernel, recurrent_bias)
        if "real" in flag:
            new = tuple(ops.where(flag["real"] > 0.0, a, b) for a, b in zip(new, state, strict=True))
        return new

    # One tensor: TensorFlow's scan fails on several of unknown length.
    sequence = ops.concatenate([inputs, *flags.values()], axis=-1) if flags else inputs
    if x.shape[1] == 1:
        state = advance(state, sequence[:, 0])
        return state[0][:, None], state

    def body(state, now):
        state = advance(state, now)
        return state, state  # TensorFlow's scan wants the outputs in the structure of the carry

    state, outputs = ops.scan(body, state, ops.swapaxes(sequence, 0, 1))
    return ops.swapaxes(outputs[0], 0, 1), state


def gpu_is_present():
    """Whether the backend at hand would run on a GPU, where cuDNN's recurrent kernels serve."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return bool(tf.config.list_logical_devices("GPU"))
    if backend == "jax":
        import jax

        return jax.default_backend() == "gpu"
    import torch

    return torch.cuda.is_available()


@keras.saving.register_keras_serializable("keras_seqlm")
class Orthogonal(keras.initializers.Orthogonal):
    """Keras's orthogonal initializer, computed in float32: its QR decomposition has no half precision everywhere."""

    def __call__(self, shape, dtype=None):
        return ops.cast(super().__call__(shape, dtype="float32"), dtype or "float32")


@keras.saving.register_keras_serializable("keras_seqlm")
class RecurrentStack(keras.layers.Layer):
    """`num_layers` SimpleRNN, GRU or LSTM layers, each reading what the one below wrote.

    The formulas, with s the logistic function and * the elementwise product:

        RNN    h_t = tanh(W x_t + U h_{t-1} + b)
        GRU    z, r = s(W x_t + b + U h_{t-1} + b'); g = tanh(W x_t + b + r * (U h_{t-1} + b')); h_t = z * h_{t-1} + (1 - z) * g
        LSTM   i, f, o = s(W x_t + U h_{t-1} + b); g = tanh(W x_t + U h_{t-1} + b); c_t = f * c_{t-1} + i * g; h_t = o * tanh(c_t)

    The weights are those of `keras.layers.SimpleRNN`, `GRU` and `LSTM`. On a GPU, whole sequences run in those layers,
    so that cuDNN serves where it can; everywhere else a scan over the same weights runs, which knows document borders
    and padding and makes the input products of all steps at once. The state is carried in float32.

    Args:
        cell: "rnn", "gru" or "lstm".
        hidden_dim: width of every layer.
        num_layers: how many.
        dropout: between the layers and after the last.
        use_cudnn: "auto" (on a GPU), or False (never, as an export must).

    Call arguments:
        x: (batch, time, features).
        state: dict of float32 (batch, hidden_dim): `h_0`, `h_1` ..., for an LSTM also `c_0` ...; None is zeros.
        lengths: int32 (batch,), the real steps of each row; the padding behind them leaves the state as it is.
        segment_ids: int32 (batch, time) of packed documents; the state is zero again where the number changes.

    Returns:
        The outputs (batch, time, hidden_dim) and the state after the last step.

    Raises:
        ValueError: an unknown cell.

    Example: PyTorch's first program, a recurrent layer, its last output and a linear layer, and its twin here.

        rnn = torch.nn.LSTM(10, 20, batch_first=True)        rnn = RecurrentStack("lstm", hidden_dim=20)
        linear = torch.nn.Linear(20, 2)                      linear = keras.layers.Dense(2)
        output, (h, c) = rnn(x)                              output, state = rnn(x)
        logits = linear(output[:, -1])                       logits = linear(output[:, -1])

    >>> rnn = RecurrentStack("lstm", hidden_dim=20)
    >>> output, state = rnn(keras.ops.ones((3, 5, 10)))
    >>> tuple(keras.layers.Dense(2)(output[:, -1]).shape), sorted(state)
    ((3, 2), ['c_0', 'h_0'])
    """

    def __init__(self, cell, hidden_dim, num_layers=1, dropout=0.0, use_cudnn="auto", **kwargs):
        super().__init__(autocast=False, **kwargs)
        if cell not in KERAS_LAYERS:
            raise ValueError(f"cell must be one of {sorted(KERAS_LAYERS)}, got {cell!r}")
        self.cell = cell
        self.hidden_dim = hidden_dim
        self.num_layers = num_layers
        self.dropout = dropout
        self.use_cudnn = use_cudnn
        self.layers = [
            KERAS_LAYERS[cell](
                hidden_dim,
                recurrent_initializer=Orthogonal(),
                return_sequences=True,
                return_state=True,
                name=f"{cell}_{i}",
                dtype=self.dtype_policy,
            )
            for i in range(num_layers)
        ]
        self.output_dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy) if dropout else None

    def build(self, input_shape):
        features = input_shape[-1]
        for layer in self.layers:
            layer.build((None, None, features))
            features = self.hidden_dim

    def initial_state(self, batch_size):
        """Zeros: a dict `name -> float32 (batch_size, hidden_dim)`."""
        names = [f"{name}_{i}" for i in range(self.num_layers) for name in STATE_NAMES[self.cell]]
        return {name: ops.zeros((batch_size, self.hidden_dim), "float32") for name in names}

    def call(self, x, state=None, lengths=None, segment_ids=None, training=None):
        x = ops.cast(x, self.compute_dtype)
        state = self.initial_state(ops.shape(x)[0]) if state is None else state
        starts = None
        if segment_ids is not None:
            changes = segment_ids[:, 1:] != segment_ids[:, :-1]
            starts = ops.concatenate([ops.zeros_like(changes[:, :1]), changes], axis=1)
        whole = lengths is None and segment_ids is None and x.shape[1] != 1
        on_gpu = whole and self.use_cudnn == "auto" and gpu_is_present()
        new_state = {}
        for i, layer in enumerate(self.layers):
            names = [f"{name}_{i}" for name in STATE_NAMES[self.cell]]
            before = tuple(ops.cast(state[name], "float32") for name in names)
            if on_gpu:
                x, *after = layer(x, initial_state=list(before), training=training)
            else:
                cell = layer.cell
                weights = [ops.cast(w, self.compute_dtype) for w in (cell.kernel, cell.recurrent_kernel, cell.bias)]
                x, after = scan(self.cell, x, before, *weights, lengths=lengths, starts=starts)
            x = ops.cast(x, self.compute_dtype)
            if self.output_dropout is not None:
                x = self.output_dropout(x, training=training)
            new_state |= {name: ops.cast(leaf, state[name].dtype) for name, leaf in zip(names, after, strict=True)}
        return x, new_state

    def get_config(self):
        names = ("cell", "hidden_dim", "num_layers", "dropout", "use_cudnn")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
