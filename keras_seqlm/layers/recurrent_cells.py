"""The recurrent cells: one step of a SimpleRNN, GRU or LSTM, and beside each the derivatives of that step.

A step is `step(x, state, U, recurrent_bias) -> new state, kept`. Its x_t is W x_t + b made before, for all steps at once;
the state is a tuple of float32 (batch, hidden), and so is what it keeps: the gates, which the derivatives need.

A gradient is `gradient(before, after, kept)`, where each leaf has all steps (time, batch, hidden). It computes what does
not depend on later steps for all steps at once, and returns two functions:

    back(t, d_state) -> d_x, d_product, d_before    one step; d_before is what flows past the product h U
    product(d_x)     -> d_product                   of all steps: what reaches h U + recurrent_bias, given what reaches x

The letter d stands for the derivative of the loss by what follows it.
"""

from collections.abc import Callable
from typing import NamedTuple

from keras import ops


def rnn_step(x, state, U, _):
    """h_t = tanh(x_t + h_{t-1} U), with x_t = W x + b made before. Reference: Elman 1990."""
    (h,) = state
    return (ops.tanh(x + matmul(h, U)),), ()


def rnn_gradient(_, after, __):
    """d x_t = (1 - h_t^2) * d h_t."""
    (h,) = after
    slope = 1.0 - h * h

    def back(t, d_state):
        d_x = d_state[0] * slope[t]
        return d_x, d_x, (0.0,)

    return back, _the_same


def gru_step(x, state, U, recurrent_bias):
    """z = s(x_z + h U_z + b_z); r = s(x_r + h U_r + b_r); g = tanh(x_g + r * (h U_g + b_g)); h_t = z * h + (1 - z) * g.

    The reset gate stands after the product, as in cuDNN, Keras and PyTorch. Reference: Cho et al. 2014, arXiv:1406.1078.
    """
    (h,) = state
    x_z, x_r, x_g = ops.split(x, 3, axis=-1)
    h_z, h_r, h_g = ops.split(matmul(h, U) + recurrent_bias, 3, axis=-1)
    z, r = ops.sigmoid(x_z + h_z), ops.sigmoid(x_r + h_r)
    g = ops.tanh(x_g + r * h_g)
    return (z * h + (1.0 - z) * g,), (z, r, g, h_g)


def gru_gradient(before, _, kept):
    """d x_g = (1 - z) * (1 - g^2) * d h_t; d x_z = (h - g) * z * (1 - z) * d h_t; d x_r = h_g * r * (1 - r) * d x_g."""
    (h,), (z, r, g, h_g) = before, kept
    to_g = (1.0 - z) * (1.0 - g * g)
    to_z, to_r = (h - g) * z * (1.0 - z), h_g * r * (1.0 - r) * to_g

    def back(t, d_state):
        (d_h,) = d_state
        d_z, d_r, d_g = d_h * to_z[t], d_h * to_r[t], d_h * to_g[t]
        return ops.concatenate([d_z, d_r, d_g], -1), ops.concatenate([d_z, d_r, d_g * r[t]], -1), (d_h * z[t],)

    def product(d_x):
        d_z, d_r, d_g = ops.split(d_x, 3, axis=-1)
        return ops.concatenate([d_z, d_r, d_g * r], -1)

    return back, product


def lstm_step(x, state, U, _):
    """i, f, o = s(x + h U); g = tanh(x_g + h U_g); c_t = f * c + i * g; h_t = o * tanh(c_t).

    Reference: Hochreiter and Schmidhuber 1997; with the forget gate of Gers et al. 2000.
    """
    h, c = state
    i, f, g, o = ops.split(x + matmul(h, U), 4, axis=-1)
    i, f, o, g = ops.sigmoid(i), ops.sigmoid(f), ops.sigmoid(o), ops.tanh(g)
    c = f * c + i * g
    return (o * ops.tanh(c), c), (i, f, g, o)


def lstm_gradient(before, after, kept):
    """d x_o = tanh(c_t) * o * (1 - o) * d h_t; d c_t += o * (1 - tanh(c_t)^2) * d h_t; from d c_t the other gates and c."""
    (_, c), (_, c_t), (i, f, g, o) = before, after, kept
    tanh_c = ops.tanh(c_t)
    to_c, to_o = o * (1.0 - tanh_c * tanh_c), tanh_c * o * (1.0 - o)
    to_i, to_f, to_g = g * i * (1.0 - i), c * f * (1.0 - f), i * (1.0 - g * g)

    def back(t, d_state):
        d_h, d_c = d_state
        d_c = d_c + d_h * to_c[t]
        d_x = ops.concatenate([d_c * to_i[t], d_c * to_f[t], d_c * to_g[t], d_h * to_o[t]], axis=-1)
        return d_x, d_x, (0.0, d_c * f[t])

    return back, _the_same


def _the_same(d_x):
    return d_x


def matmul(x, kernel):
    """x kernel in the dtype of the weights, handed back in float32, in which the state is carried."""
    return ops.cast(ops.matmul(ops.cast(x, kernel.dtype), kernel), "float32")


class Cell(NamedTuple):
    """A recurrent cell: its step, how many tensors that keeps, and its gradient."""

    step: Callable
    num_kept: int
    gradient: Callable


CELLS = {
    "rnn": Cell(rnn_step, 0, rnn_gradient),
    "gru": Cell(gru_step, 4, gru_gradient),
    "lstm": Cell(lstm_step, 4, lstm_gradient),
}
