"""Random numbers that are the same on every backend, in a served graph and on a phone: Threefry-2x32-20.

A counter-based generator holds no state: number `position` of stream `seed` is a function of the two. It is written
in wrapping int32 additions, shifts and exclusive ors, so a TensorFlow graph holds no random op and no XLA op.

Reference: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (2011).
"""

import keras
from keras import ops

# TensorFlow's tensors have every operator but shifts. Where an operator takes a Python number as it is, Keras on torch
# copies it to the device and waits.
_BACKEND = keras.backend.backend()
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def threefry2x32(key0, key1, counter0, counter1):
    """The Threefry-2x32 block function with 20 rounds.

    Args:
        key0, key1: int32 tensors of one shape, the two words of the key.
        counter0, counter1: int32 tensors of the same shape, the two words of the counter.

    Returns:
        Two int32 tensors of that shape. Their bits are those of the published unsigned words.

    Example:

    >>> import numpy as np
    >>> zero = np.zeros(1, "int32")
    >>> first, second = threefry2x32(zero, zero, zero, zero)
    >>> hex(int(first[0])), hex(int(second[0]) & 0xFFFFFFFF)
    ('0x6b200159', '0x99ba4efe')
    """
    key0, key1, x0, x1 = (ops.convert_to_tensor(word, dtype="int32") for word in (key0, key1, counter0, counter1))
    keys = (key0, key1, key0 ^ key1 ^ _PARITY)
    x0, x1 = x0 + keys[0], x1 + keys[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = _rotate_left(x1, rotation) ^ x0
        x0 = x0 + keys[(group + 1) % 3]
        x1 = x1 + keys[(group + 2) % 3] + (group + 1)
    return x0, x1


def uniform(seed, position):
    """One uniform number in [0, 1) for each pair of a seed and a position.

    Args:
        seed: int32 tensor (batch,), one stream per row.
        position: int32 tensor (batch,), the number of the draw in its stream.

    Returns:
        float32 tensor (batch,): multiples of 2**-24, equal to the last bit on every backend.

    Example:

    >>> import numpy as np
    >>> float(uniform(np.array([0], "int32"), np.array([0], "int32"))[0])
    0.4184570908546448
    """
    seed = ops.convert_to_tensor(seed, dtype="int32")
    position = ops.convert_to_tensor(position, dtype="int32")
    bits, _ = threefry2x32(seed, ops.zeros_like(seed), position, ops.zeros_like(position))
    # The shift of a negative int32 draws ones in from the left: the mask takes them away.
    return ops.cast(shift_right(bits, 8) & 0xFFFFFF, "float32") * 2.0**-24


def shift_right(x, count):
    """An integer tensor shifted right by a number of bits, the sign drawn in from the left."""
    return ops.right_shift(x, count) if _BACKEND == "tensorflow" else x >> count


def _rotate_left(x, count):
    shifted = ops.left_shift(x, count) if _BACKEND == "tensorflow" else x << count
    return shifted | (shift_right(x, 32 - count) & ((1 << count) - 1))
