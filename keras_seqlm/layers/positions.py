"""Where a token stands: learned and sinusoidal position vectors, and the rotation of queries and keys."""

import collections.abc
import math

import keras
import numpy as np
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
            name="table",
            shape=(self.max_length + self.offset, self.hidden_dim),
            initializer=self.initializer,
            autocast=False,  # as in TokenEmbedding
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


# What `rotary_frequencies` takes beside the base, as Hugging Face's `rope_scaling` has it under other names.
ROTARY_SCALINGS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_frequency_factor", "high_frequency_factor", "original_max_length"),
}


def rotary_frequencies(head_dim, base=10000.0, scaling=None):
    """The angle per position of each pair of a head: base^(-2i/d), scaled for contexts longer than those of training.

    linear: every frequency is divided by `factor`, as if positions stood closer (Chen et al. 2023, arXiv:2306.15595).
    llama3: frequencies whose wavelength is below original_max_length / high_frequency_factor stay, those whose
    wavelength is above original_max_length / low_frequency_factor are divided by `factor`, and between the two the
    result goes over linearly in original_max_length / wavelength (Llama 3.1, arXiv:2407.21783).

    Args:
        head_dim: width d of a head; even.
        base: the longest wavelength is about 2 pi times this.
        scaling: None, `{"type": "linear", "factor": 2.0}`, or `{"type": "llama3", "factor": 8.0,
            "low_frequency_factor": 1.0, "high_frequency_factor": 4.0, "original_max_length": 8192}`.

    Returns:
        float64 NumPy array (head_dim / 2,), in radians a position.

    Raises:
        ValueError: an odd head_dim, a base that is not above 0, an unknown type, numbers that are missing, unknown or
            not above 0.

    Example:

    >>> rotary_frequencies(4, base=100.0, scaling={"type": "linear", "factor": 2.0}).tolist()
    [0.5, 0.05]
    """
    if head_dim % 2:
        raise ValueError(f"rotary positions turn pairs and need an even head_dim, got {head_dim}")
    if not 0 < base < math.inf:
        raise ValueError(f"rotary_base must be a finite number above 0, got {base!r}")
    frequencies = float(base) ** (-2.0 * np.arange(head_dim // 2) / head_dim)
    if scaling is None:
        return frequencies
    numbers = dict(scaling) if isinstance(scaling, collections.abc.Mapping) else {}
    kind = numbers.pop("type", None)
    if kind not in ROTARY_SCALINGS:
        raise ValueError(
            f"rotary_scaling must be a dict whose 'type' is one of {list(ROTARY_SCALINGS)}, got {scaling!r} (Hugging Face's "
            "rope_scaling has other names: rope_type for type, low_freq_factor for low_frequency_factor, high_freq_factor for "
            "high_frequency_factor, original_max_position_embeddings for original_max_length)"
        )
    real = all(isinstance(value, (int, float)) and 0 < value < math.inf for value in numbers.values())
    if sorted(numbers) != sorted(ROTARY_SCALINGS[kind]) or not real:
        raise ValueError(
            f"rotary_scaling of type {kind!r} takes {ROTARY_SCALINGS[kind]}, each a number above 0, got {scaling!r}"
        )
    if kind == "linear":
        return frequencies / numbers["factor"]
    low, high = numbers["low_frequency_factor"], numbers["high_frequency_factor"]
    if low >= high:
        raise ValueError(f"low_frequency_factor must be below high_frequency_factor, got {low} and {high}")
    turns = numbers["original_max_length"] * frequencies / (2 * math.pi)  # within the context of training
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (kept + (1.0 - kept) / numbers["factor"])


def rotation(positions, frequencies):
    """The cosines and sines that `rotate` takes: of all layers alike, so a model makes them once.

    Args:
        positions: int32 (batch or 1, time).
        frequencies: (head_dim / 2,), from `rotary_frequencies`; a tuple, if torch is to compile it.

    Returns:
        A pair of float32 (batch or 1, time, 1, head_dim): the cosine of each half, and its sine, the first half's negative.
    """
    frequencies = ops.convert_to_tensor(frequencies, dtype="float32")
    angles = (ops.cast(positions, "float32")[..., None] * frequencies)[:, :, None]
    cos, sin = ops.cos(angles), ops.sin(angles)
    return ops.concatenate([cos, cos], axis=-1), ops.concatenate([-sin, sin], axis=-1)


def rotate(x, rotation):
    """Turn each pair (x_i, x_{i + d/2}) by the angle position * frequency_i: rotary positions.

    The dot product of a rotated query and key depends on their distance alone. The halves are paired as GPT-NeoX and
    Llama pair them. Computed in float32. Reference: Su et al. 2021, arXiv:2104.09864.

    Args:
        x: (batch, time, heads, head_dim), head_dim even.
        rotation: the pair that the function `rotation` gives.

    Returns:
        The shape and dtype of `x`.

    Example:

    >>> x, quarter = keras.ops.array([[[[1.0, 0.0]]]]), rotation(keras.ops.array([[1]]), [math.pi / 2])
    >>> keras.ops.convert_to_numpy(rotate(x, quarter)).round(3).tolist()
    [[[[-0.0, 1.0]]]]
    """
    cos, sin = rotation
    exact = ops.cast(x, "float32")
    first, second = ops.split(exact, 2, axis=-1)
    return ops.cast(exact * cos + ops.concatenate([second, first], axis=-1) * sin, x.dtype)


def _angles(positions, width, base):
    frequencies = ops.power(float(base), -2.0 * ops.arange(width // 2, dtype="float32") / width)
    return ops.cast(positions, "float32")[..., None] * frequencies
