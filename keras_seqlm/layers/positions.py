"""Where a token stands: learned and sinusoidal position vectors, and the rotation of queries and keys."""

import keras
from keras import ops

from keras_seqlm.layers.embeddings import lookup


@keras.saving.register_keras_serializable("keras_seqlm")
class LearnedPositions(keras.layers.Layer):
    """One trained vector for each position, as in GPT-2 and BERT.

    Args:
        max_length: number of positions.
        hidden_dim: width of a vector.
        offset: rows of the table that stand before position 0 (RoBERTa and BART use 2).
        initializer: of the table; default a normal of standard deviation 0.02.

    Call arguments:
        positions: int32 (batch or 1, time). A position past the end reads the last row: only padding stands there.

    Returns:
        (batch or 1, time, hidden_dim).

    Example:

    >>> positions = LearnedPositions(max_length=16, hidden_dim=8)
    >>> tuple(positions(keras.ops.arange(5)[None]).shape)
    (1, 5, 8)
    """

    def __init__(self, max_length, hidden_dim, offset=0, initializer=None, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.max_length = max_length
        self.hidden_dim = hidden_dim
        self.offset = offset
        self.initializer = keras.initializers.get(initializer or keras.initializers.RandomNormal(stddev=0.02))

    def build(self, input_shape=None):
        self.table = self.add_weight(
            name="table", shape=(self.max_length + self.offset, self.hidden_dim), initializer=self.initializer
        )

    def call(self, positions):
        rows = ops.clip(ops.cast(positions, "int32"), 0, self.max_length - 1) + self.offset
        return ops.cast(lookup(self.table, rows), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return (*input_shape, self.hidden_dim)

    def get_config(self):
        return {
            **super().get_config(),
            "max_length": self.max_length,
            "hidden_dim": self.hidden_dim,
            "offset": self.offset,
            "initializer": keras.initializers.serialize(self.initializer),
        }


@keras.saving.register_keras_serializable("keras_seqlm")
class SinusoidalPositions(keras.layers.Layer):
    """Fixed position vectors: PE(p, 2i) = sin(p / base^(2i/d)), PE(p, 2i+1) = cos(p / base^(2i/d)).

    Reference: Vaswani et al. 2017, section 3.5, arXiv:1706.03762.

    Args:
        hidden_dim: width d of a vector; even.
        base: 10000 in the paper.

    Call arguments:
        positions: int32 (batch or 1, time).

    Returns:
        (batch or 1, time, hidden_dim).

    Raises:
        ValueError: `hidden_dim` is odd.

    Example:

    >>> tuple(SinusoidalPositions(hidden_dim=8)(keras.ops.arange(5)[None]).shape)
    (1, 5, 8)
    """

    def __init__(self, hidden_dim, base=10000.0, **kwargs):
        super().__init__(autocast=False, **kwargs)
        if hidden_dim % 2:
            raise ValueError(f"sinusoidal positions need an even hidden_dim, got {hidden_dim}")
        self.hidden_dim = hidden_dim
        self.base = base

    def build(self, input_shape=None):
        self.built = True

    def call(self, positions):
        angles = _angles(positions, self.hidden_dim, self.base)  # (batch, time, hidden_dim / 2)
        pairs = ops.stack([ops.sin(angles), ops.cos(angles)], axis=-1)
        shape = ops.shape(angles)
        return ops.cast(ops.reshape(pairs, (shape[0], shape[1], self.hidden_dim)), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return (*input_shape, self.hidden_dim)

    def get_config(self):
        return {**super().get_config(), "hidden_dim": self.hidden_dim, "base": self.base}


def rotate(x, positions, base=10000.0):
    """Turn each pair (x_i, x_{i + d/2}) by the angle p / base^(2i/d): rotary positions.

    The dot product of a rotated query and key depends on their distance alone. The halves are paired as GPT-NeoX and
    Llama pair them. Reference: Su et al. 2021, arXiv:2104.09864.

    Args:
        x: (batch, heads, time, head_dim), head_dim even.
        positions: int32 (batch or 1, time).
        base: the longest wavelength is 2 pi times this.

    Returns:
        The shape and dtype of `x`.
    """
    angles = _angles(positions, x.shape[-1], base)[:, None]  # (batch, 1, time, head_dim / 2)
    sin, cos = ops.cast(ops.sin(angles), x.dtype), ops.cast(ops.cos(angles), x.dtype)
    first, second = ops.split(x, 2, axis=-1)
    return ops.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _angles(positions, width, base):
    frequencies = ops.power(float(base), -2.0 * ops.arange(width // 2, dtype="float32") / width)
    return ops.cast(positions, "float32")[..., None] * frequencies
