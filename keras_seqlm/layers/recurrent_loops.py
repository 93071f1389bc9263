"""How a recurrent cell runs over time: by a scan, by a scan with its gradient by hand, or in torch's own kernels."""

import contextlib
import contextvars
import functools

from keras import ops

from keras_seqlm.layers.recurrent_cells import CELLS, matmul
from keras_seqlm.products import outer_products, project

UNROLL = 8  # steps that a GPU takes in one turn of a loop
_WRITTEN_OUT = contextvars.ContextVar("steps_written_out", default=1)


@contextlib.contextmanager
def steps_written_out(most):
    """A scan over a known number of steps, `most` or fewer, becomes steps without a loop in what is traced inside.

    On TensorFlow a turn of a loop costs about as much as the step in it, and Keras's scan does not unroll there.
    """
    token = _WRITTEN_OUT.set(most)
    try:
        yield
    finally:
        _WRITTEN_OUT.reset(token)


def scan(cell, x, state, kernel, recurrent_kernel, bias, lengths=None, starts=None, on_gpu=False):
    """Run a cell over time: the inputs of all steps in one product, then one small product a step.

    Args:
        cell: "rnn", "gru" or "lstm".
        x: (batch, time, features) in the dtype of the kernels.
        state: tuple of float32 (batch, hidden): (h,) or (h, c).
        kernel: W (features, gates * hidden); recurrent_kernel: U (hidden, gates * hidden).
        bias: (gates * hidden,), for a GRU (2, gates * hidden): of the input and of the recurrent product, in any dtype.
        lengths: int32 (batch,); steps from there on leave the state as it is.
        starts: bool (batch, time), true where a document starts: there the state is zero again.
        on_gpu: whether it runs on one, where a turn of the loop takes `UNROLL` steps.

    Returns:
        The outputs (batch, time, hidden), float32, and the last state.
    """
    step = CELLS[cell].step
    inputs, recurrent_bias = input_product(cell, x, kernel, bias)
    flags = _flags(ops.shape(x)[1], lengths, starts)

    def advance(state, now):
        width = inputs.shape[-1]
        flag = {name: now[:, width + i : width + i + 1] for i, name in enumerate(flags)}
        if "goes_on" in flag:
            state = tuple(leaf * flag["goes_on"] for leaf in state)
        new, _ = step(now[:, :width], state, recurrent_kernel, recurrent_bias)
        if "real" in flag:
            new = _where(flag["real"], new, state)
        return new

    # One tensor: TensorFlow's scan fails on several of unknown length.
    sequence = ops.concatenate([inputs, *flags.values()], axis=-1) if flags else inputs
    if isinstance(x.shape[1], int) and x.shape[1] <= _WRITTEN_OUT.get():
        outputs = []
        for t in range(x.shape[1]):
            state = advance(state, sequence[:, t])
            outputs.append(state[0])
        return ops.stack(outputs, axis=1), state

    def body(state, now):
        state = advance(state, now)
        return state, state  # TensorFlow's scan wants the outputs in the structure of the carry

    state, outputs = ops.scan(body, state, ops.swapaxes(sequence, 0, 1), unroll=UNROLL if on_gpu else 1)
    return ops.swapaxes(outputs[0], 0, 1), state


def scan_by_hand(cell, x, state, kernel, recurrent_kernel, bias, lengths=None, starts=None, on_gpu=False):
    """`scan` for training: the same numbers, their gradient written by hand, and time on the first axis.

    Backward, too, there is one small product a step, and what can wait or be known before is computed for all steps at
    once: the derivatives of the gates before the loop, the gradient of U in one product after it. A gradient of this
    gradient is not defined; for that, differentiate `scan`.

    For a CPU a step is work, for a GPU some launches of kernels, each longer than the work in it. So there the loop
    writes the state alone, and the gates are made again for the gradient, of all steps in one product; and a turn of the
    loop takes `UNROLL` steps.

    Args:
        x: (time, batch, features).
        on_gpu: whether it runs on one.
        lengths, starts and the others: as in `scan`.

    Returns:
        The outputs (time, batch, hidden), float32, and the last state.
    """
    inputs, recurrent_bias = input_product(cell, x, kernel, bias, project)
    options = {} if recurrent_bias is None else {"recurrent_bias": recurrent_bias}
    flags = {name: ops.swapaxes(flag, 0, 1) for name, flag in _flags(ops.shape(x)[0], lengths, starts).items()}
    run = _with_gradient(CELLS[cell], len(state), tuple(options | flags), on_gpu)
    states = run(inputs, ops.convert_to_tensor(recurrent_kernel), *state, *options.values(), *flags.values())
    outputs, others = states[: ops.shape(x)[0]], states[ops.shape(x)[0] :]
    return outputs, (outputs[-1], *(others[i] for i in range(len(state) - 1)))


def _with_gradient(cell, num_leaves, option_names, on_gpu):
    """A function of the inputs, U, the state and the options. It returns h of all steps, and behind it the last c."""
    num_kept, unroll = (0, UNROLL) if on_gpu else (cell.num_kept, 1)

    @ops.custom_gradient
    def run(inputs, U, *rest):
        state, options = rest[:num_leaves], dict(zip(option_names, rest[num_leaves:], strict=True))
        recurrent_bias, goes_on, real = (options.get(name) for name in ("recurrent_bias", "goes_on", "real"))
        times = ops.arange(ops.shape(inputs)[0], dtype="int32")

        def unless_new(leaves, t=...):
            return leaves if goes_on is None else tuple(leaf * goes_on[t] for leaf in leaves)

        def if_real(leaves, otherwise, t):
            return leaves if real is None else _where(real[t], leaves, otherwise)

        # TensorFlow's scan wants outputs in the structure of the carry: what is kept or returned is carried, too.
        def forward(carry, t):
            before = unless_new(carry[:num_leaves], t)
            new, kept = cell.step(inputs[t], before, U, recurrent_bias)
            results = (*if_real(new, before, t), *kept[:num_kept])
            return results, results

        nothing = ops.zeros_like(state[0])
        _, results = ops.scan(forward, (*state, *(nothing for _ in range(num_kept))), times, unroll=unroll)
        after, kept = results[:num_leaves], results[num_leaves:]
        states = ops.concatenate([after[0], *(leaf[-1:] for leaf in after[1:])], axis=0) if num_leaves > 1 else after[0]

        def gradient(*args, upstream=None):
            d_states = args[0] if upstream is None else upstream
            earlier = (
                ops.concatenate([first[None], leaf[:-1]], axis=0) for first, leaf in zip(state, after, strict=True)
            )
            before = unless_new(tuple(earlier))
            gates = kept if num_kept == cell.num_kept else cell.step(inputs, before, U, recurrent_bias)[1]
            back, product = cell.gradient(before, after, gates)
            U_transposed = ops.transpose(U)

            def backward(carry, t):
                d_h, *d_others = carry[:num_leaves]
                d_after = (d_h + d_states[t], *d_others)
                d_x, d_product, past = back(t, d_after)
                d_before = (matmul(d_product, U_transposed) + past[0], *past[1:])
                results = (*unless_new(if_real(d_before, d_after, t), t), *if_real((d_x,), (0.0,), t))
                return results, results

            time = ops.shape(inputs)[0]
            d_last = (nothing, *(d_states[time + i] for i in range(num_leaves - 1)))
            (*d_state, _), (*_, d_x) = ops.scan(
                backward, (*d_last, ops.zeros_like(inputs[0])), times, reverse=True, unroll=unroll
            )
            d_product = product(d_x)
            d_options = {"recurrent_bias": ops.sum(d_product, (0, 1))} if recurrent_bias is not None else {}
            d_options |= {name: ops.zeros_like(options[name]) for name in ("goes_on", "real") if name in options}
            d_U = outer_products(ops.cast(before[0], U.dtype), ops.cast(d_product, U.dtype))
            return d_x, d_U, *d_state, *(d_options[name] for name in option_names)

        return states, gradient

    return run


def input_product(cell, x, kernel, bias, product=ops.matmul):
    """W x + b of all steps in float32, and the recurrent bias, which only a GRU has.

    The bias is added in float32, for its gradient is a sum over all steps, which half precision loses.
    """
    bias = ops.cast(bias, "float32")
    bias, recurrent_bias = (bias[0], bias[1]) if cell == "gru" else (bias, None)
    return ops.cast(product(x, kernel), "float32") + bias, recurrent_bias


def _flags(time, lengths, starts):
    """What differs by row and step, each float32 (batch, time, 1): 1 where a step is real, and where no document starts."""
    flags = {}
    if lengths is not None:
        real = ops.arange(time, dtype="int32")[None] < ops.expand_dims(lengths, 1)
        flags["real"] = ops.cast(real, "float32")[..., None]
    if starts is not None:
        flags["goes_on"] = ops.cast(ops.logical_not(starts), "float32")[..., None]
    return flags


def _where(flag, leaves, otherwise):
    return tuple(ops.where(flag > 0.0, a, b) for a, b in zip(leaves, otherwise, strict=True))


def run_in_torch(cell, x, state, kernel, recurrent_kernel, bias):
    """`scan` without flags by `torch.rnn_tanh`, `torch.gru` or `torch.lstm`: in cuDNN on a GPU, an LSTM in oneDNN on a CPU.

    In half precision it is float16, bfloat16 or not, as under torch's own autocast: for bfloat16 cuDNN has no kernel that
    keeps the weights in the processors, or none at all. What flows back is scaled by a power of two then, because a
    gradient of a mean over many tokens lies below float16's smallest numbers.

    Args and returns are those of `scan`. Inside, the state has the dtype of the kernels.
    """
    import torch

    biases = bias if cell == "gru" else (bias, torch.zeros_like(bias))
    weights = [_gates_of_torch(cell, weight) for weight in (kernel, recurrent_kernel, *biases)]
    tensors = (x, *weights, *state)
    if x.dtype == torch.float32:
        outputs, *after = _torch_kernel(cell, tensors, torch.is_grad_enabled())
    elif torch.is_grad_enabled():
        outputs, *after = _in_float16().apply(cell, *tensors)
    else:
        outputs, *after = _torch_kernel(cell, [tensor.half() for tensor in tensors], training=False)
    return outputs, tuple(leaf.float() for leaf in after)


def _torch_kernel(cell, tensors, training):
    """The outputs and the leaves of the last state, from x, four weights and the leaves of the state in one dtype."""
    import torch

    function = {"rnn": torch.rnn_tanh, "gru": torch.gru, "lstm": torch.lstm}[cell]
    x, weights, state = tensors[0], tensors[1:5], [leaf[None] for leaf in tensors[5:]]
    # In one piece of memory, as cuDNN wants them.
    pieces = torch.cat([weight.reshape(-1) for weight in weights]).split([weight.numel() for weight in weights])
    weights = [piece.view(weight.shape) for piece, weight in zip(pieces, weights, strict=True)]
    state = state if cell == "lstm" else state[0]
    has_biases, num_layers, dropout, bidirectional, batch_first = True, 1, 0.0, False, True
    outputs, *after = function(x, state, weights, has_biases, num_layers, dropout, training, bidirectional, batch_first)
    return outputs, *(leaf[0] for leaf in after)


@functools.cache
def _in_float16():
    """`_torch_kernel` in float16 as a torch function of the cell and its tensors, of whatever dtypes those are."""
    import torch

    class InFloat16(torch.autograd.Function):
        @staticmethod
        def forward(ctx, cell, *tensors):
            ctx.dtypes = [tensor.dtype for tensor in tensors]
            with torch.enable_grad():
                ctx.inputs = [tensor.detach().half().requires_grad_() for tensor in tensors]
                ctx.results = _torch_kernel(cell, ctx.inputs, training=True)
            outputs, *after = ctx.results  # not in float16, or torch would round what flows back to it
            return outputs.detach().to(tensors[0].dtype), *(leaf.detach().float() for leaf in after)

        @staticmethod
        def backward(ctx, *upstream):
            # The largest becomes 1/32 to 1/16: room for sums over many steps above, and for small ones below.
            upstream = [d.float() for d in upstream]
            largest = torch.stack([d.abs().amax() for d in upstream]).amax()
            scale = torch.ldexp(torch.ones_like(largest), -4 - torch.frexp(largest).exponent)
            scaled = [(d * scale).half() for d in upstream]
            gradients = torch.autograd.grad(ctx.results, ctx.inputs, scaled)
            return None, *(d.float().div(scale).to(dtype) for d, dtype in zip(gradients, ctx.dtypes, strict=True))

    return InFloat16


def _gates_of_torch(cell, weight):
    """A weight or bias of Keras as torch has it: transposed, and a GRU's gates z, r, g in the order r, z, g."""
    if cell == "gru":
        z, r, g = weight.chunk(3, dim=-1)
        weight = ops.concatenate([r, z, g], axis=-1)
    return weight.t()
