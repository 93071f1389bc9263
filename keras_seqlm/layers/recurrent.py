"""Recurrent layers with their state in the open: a stack of SimpleRNN, GRU or LSTM."""

import contextlib

import keras
from keras import ops

from keras_seqlm.layers.lora import LowRank, effective
from keras_seqlm.layers.recurrent_choice import choose, device
from keras_seqlm.layers.recurrent_loops import run_in_torch, scan, scan_by_hand

KERAS_LAYERS = {"rnn": keras.layers.SimpleRNN, "gru": keras.layers.GRU, "lstm": keras.layers.LSTM}
GATES = {"rnn": 1, "gru": 3, "lstm": 4}
STATE_NAMES = {"rnn": ("h",), "gru": ("h",), "lstm": ("h", "c")}


def exported_by_torch():
    """Whether torch exports: into a graph of plain operations, for which only `scan` is made."""
    if keras.backend.backend() != "torch":
        return False
    import torch

    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def outside_the_graph(run):
    """`run`, which torch then calls where it compiles: it would compile a loop over time step by step, for minutes."""
    if keras.backend.backend() != "torch":
        return run
    import torch

    return torch.compiler.disable(run)


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

    The weights are those of `keras.layers.SimpleRNN`, `GRU` and `LSTM`, and so are the numbers. What computes them is the
    fastest that is right (`recurrent_choice.choose` has the table):

        whole sequences    cuDNN on a GPU in single precision; on the torch backend its own kernels
        other training     a scan, which makes the input products of all steps at once, and whose gradient is written by
                           hand and does likewise; it has no second derivative
        everything else    the same scan, differentiated by the backend

    So call the layer without `training` to differentiate twice. The state is carried in float32; torch's kernels compute
    it in the dtype of the layer, the halves in float16.

    Args:
        cell: "rnn", "gru" or "lstm".
        hidden_dim: width of every layer.
        num_layers: how many.
        dropout: between the layers and after the last.
        use_cudnn: "auto" or True (where it is fastest), or False (never, as an export must).

    Call arguments:
        x: (batch, time, features).
        state: dict of float32 (batch, hidden_dim): `h_0`, `h_1` ..., for an LSTM also `c_0` ...; None is zeros.
        lengths: int32 (batch,), the real steps of each row; the padding behind them leaves the state as it is.
        segment_ids: int32 (batch, time) of packed documents; the state is zero again where the number changes,
            padding left out.

    Returns:
        The outputs (batch, time, hidden_dim) and the state after the last step.

    Raises:
        ValueError: an unknown cell, another `use_cudnn`.

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

    adapts = ("input", "recurrent")

    def __init__(self, cell, hidden_dim, num_layers=1, dropout=0.0, use_cudnn="auto", **kwargs):
        super().__init__(autocast=False, **kwargs)
        if cell not in KERAS_LAYERS:
            raise ValueError(f"cell must be one of {sorted(KERAS_LAYERS)}, got {cell!r}")
        if use_cudnn not in ("auto", True, False):
            raise ValueError(f"use_cudnn must be 'auto', True or False, got {use_cudnn!r}")
        self.cell = cell
        self.hidden_dim = hidden_dim
        self.num_layers = num_layers
        self.dropout = dropout
        self.use_cudnn = use_cudnn
        # A Keras layer that might run in cuDNN keeps TensorFlow from compiling the model by XLA.
        kernels = {} if cell == "rnn" or self._choose(training=True) == "cudnn" else {"use_cudnn": False}
        self.layers = [
            KERAS_LAYERS[cell](
                hidden_dim,
                recurrent_initializer=Orthogonal(),
                return_sequences=True,
                return_state=True,
                name=f"{cell}_{i}",
                dtype=self.dtype_policy,
                **kernels,
            )
            for i in range(num_layers)
        ]
        self.output_dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy) if dropout else None
        self.input_adapters, self.recurrent_adapters = [], []

    def adapt(self, rank, alpha, names):
        """Learn low-rank updates in place of the kernels of these names, all gates of one together; see `LowRank`."""

        def adapters(kind):
            parts, policy = [("", GATES[self.cell] * self.hidden_dim)], {"dtype": self.dtype_policy}
            return [LowRank(rank, alpha, parts, name=f"lora_{kind}_{i}", **policy) for i in range(self.num_layers)]

        if "input" in names:
            self.input_adapters = adapters("input")
        if "recurrent" in names:
            self.recurrent_adapters = adapters("recurrent")

    def adapters_of(self, i):
        """Of layer `i`: those of its input and of its recurrent kernel, None where there is none."""
        return [found[i] if found else None for found in (self.input_adapters, self.recurrent_adapters)]

    def adapted(self):
        """(kernel, its adapter) of each kernel that has one."""
        kernels = [(layer.cell.kernel, layer.cell.recurrent_kernel) for layer in self.layers]
        pairs = [zip(found, self.adapters_of(i), strict=True) for i, found in enumerate(kernels)]
        return [(kernel, adapter) for found in pairs for kernel, adapter in found if adapter is not None]

    def floors(self):
        """Its layers from the bottom up, each with its adapters."""
        return [[layer, *filter(None, self.adapters_of(i))] for i, layer in enumerate(self.layers)]

    def build(self, input_shape):
        features = input_shape[-1]
        for i, layer in enumerate(self.layers):
            layer.build((None, None, features))
            for adapter, size in zip(self.adapters_of(i), (features, self.hidden_dim), strict=True):
                if adapter is not None:
                    adapter.build((None, size))
                    layer.trainable = False
            features = self.hidden_dim

    def initial_state(self, batch_size):
        """Zeros: a dict `name -> float32 (batch_size, hidden_dim)`."""
        names = [f"{name}_{i}" for i in range(self.num_layers) for name in STATE_NAMES[self.cell]]
        return {name: ops.zeros((batch_size, self.hidden_dim), "float32") for name in names}

    def _choose(self, training, whole=True, plain=False):
        backend = keras.backend.backend()
        return choose(self.cell, backend, device(), self.compute_dtype, self.use_cudnn, bool(training), whole, plain)

    def call(self, x, state=None, lengths=None, segment_ids=None, training=None):
        x = ops.cast(x, self.compute_dtype)
        state = self.initial_state(ops.shape(x)[0]) if state is None else state
        starts = None
        if segment_ids is not None:
            changes = segment_ids[:, 1:] != segment_ids[:, :-1]
            starts = ops.concatenate([ops.zeros_like(changes[:, :1]), changes], axis=1)
            if lengths is not None:  # padding is no document, whatever its number
                steps = ops.arange(ops.shape(x)[1], dtype="int32")
                starts = ops.logical_and(starts, steps[None] < lengths[:, None])
        plain = x.shape[1] == 1 or exported_by_torch()
        way = self._choose(training, lengths is None and starts is None, plain)
        run = {"torch": run_in_torch, "scan_by_hand": scan_by_hand}.get(way, scan)
        run = run if plain else outside_the_graph(run)
        options = {} if way == "torch" else {"lengths": lengths, "starts": starts, "on_gpu": device() != "cpu"}
        time_first = way == "scan_by_hand"
        x = ops.swapaxes(x, 0, 1) if time_first else x
        new_state = {}
        for i, layer in enumerate(self.layers):
            names = [f"{name}_{i}" for name in STATE_NAMES[self.cell]]
            before = tuple(ops.cast(state[name], "float32") for name in names)
            weights = zip((layer.cell.kernel, layer.cell.recurrent_kernel), self.adapters_of(i), strict=True)
            kernels = [effective(kernel, adapter) for kernel, adapter in weights]
            if way == "cudnn":
                with _in_place_of(layer.cell, kernels) if any(self.adapters_of(i)) else contextlib.nullcontext():
                    x, *after = layer(x, initial_state=list(before), training=training)
            else:
                kernels = [ops.cast(kernel, self.compute_dtype) for kernel in kernels]
                x, after = run(self.cell, x, before, *kernels, ops.cast(layer.cell.bias, "float32"), **options)
            x = ops.cast(x, self.compute_dtype)
            if self.output_dropout is not None:
                x = self.output_dropout(x, training=training)
            new_state |= {name: ops.cast(leaf, state[name].dtype) for name, leaf in zip(names, after, strict=True)}
        return ops.swapaxes(x, 0, 1) if time_first else x, new_state

    def get_config(self):
        names = ("cell", "hidden_dim", "num_layers", "dropout", "use_cudnn")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def _in_place_of(cell, kernels):
    """Inside of it a cell of Keras's has these kernels: its layer reads variables by itself, on its way into cuDNN."""
    variables = (cell.kernel, cell.recurrent_kernel, cell.bias)
    return keras.StatelessScope(state_mapping=list(zip(variables, (*kernels, cell.bias.value), strict=True)))
