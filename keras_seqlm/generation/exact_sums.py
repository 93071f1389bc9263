"""Sums of probabilities without rounding: the same bits on every backend, in whatever order a compiler adds them up.

A float32 sum over a vocabulary errs by about 1e-6 of the whole, each compiler's in its own way, and a draw then falls
on a neighbouring id: one in ten at 250,000 ids. So a weight in [0, 1] becomes a whole number of units of 2**-43.
TensorFlow and torch hold it in int64. JAX has no int64 by default; there it is four int32 digits of base 2**11 on a
last axis, so small that the digits of a whole vocabulary add up without a carry, and a border is a list of five.

Nothing is sorted. The sum up to a key is sought in the sums of buckets of keys, then in those of one bucket.
"""

import keras
from keras import ops

from keras_seqlm.generation.random import shift_right

_BACKEND = keras.backend.backend()

VOCABULARIES = 2**20  # a vocabulary is smaller than this, so that no sum overflows
KEY_BITS = 24
_UNIT_BITS = 43
_DIGITS, _DIGIT_BITS = 4, 11
_DIGIT = (1 << _DIGIT_BITS) - 1
_SUM_DIGITS = 5  # the highest of a sum holds what is left, and the sign
_PART_BITS = 30
_BLOCK = 512  # numbers at most, so that two int32 hold the sum of a block of weights
_FLAT = 64 if _BACKEND == "jax" else 512  # so many numbers or fewer are searched in one piece
_MANY = 4096  # ids: from here on a scan of them costs more than one of so many buckets


def draw(weights, parts):
    """The inverse of the cumulative distribution: the first id whose cumulative sum exceeds a part of the total.

    Two levels, blocks and then one block, since a cumulative sum over the vocabulary is slow on most backends.

    Args:
        weights: float32 tensor (batch, vocabulary) of numbers in [0, 1], in each row one of at least 2**-43.
        parts: float32 tensor (batch,) of numbers in [0, 1), multiples of 2**-30.

    Returns:
        int32 tensor (batch,), ids whose weight is above 0.
    """
    vocabulary = weights.shape[1]
    if vocabulary <= _FLAT or _BACKEND == "torch":  # on torch the sum is fast, and each further launch costs more
        cumulative = _cumulative(_whole(weights))
        return ops.cast(_first(cumulative, _border(cumulative[:, -1:], parts)), "int32")
    blocks = _blocks(made(weights))  # so that blocks and block see the same weights to the last bit
    block, rest = _search(_block_sums(blocks), lambda total: _border(total, parts))
    inside = _cumulative(_whole(_take(blocks, block)))
    border = rest(inside[:, -1:])
    if _BACKEND == "tensorflow":  # which has no barrier: never past the block, even if its two sums differed
        border = ops.minimum(border, inside[:, -1:] - 1)
    return block * blocks.shape[2] + _first(inside, border)


def keys_of(depth):
    """Depths (batch, vocabulary), float32 numbers of 0 or more, as integers: what is behind the point is cut away.

    A key is less than 2**24; the largest stands for all depths from there on.
    """
    last = 2.0**KEY_BITS - 1.0
    if _BACKEND == "torch":
        return depth.clamp(max=last).long()  # torch scatters by int64 alone
    return made(ops.cast(ops.minimum(depth, last), "int32"))


def key_of_part(keys, weights, parts):
    """The smallest key such that the ids up to it hold a part of the sum of the weights.

    Args:
        keys: from `keys_of`, (batch, vocabulary).
        weights: float32 tensor (batch, vocabulary) of numbers in [0, 1], in each row one of at least 2**-43.
        parts: float32 tensor (batch,) of numbers in [0, 1]; read to 2**-30.

    Returns:
        integer tensor (batch, 1).
    """
    return _key(keys, made(_whole(weights)), lambda total: _border(total, parts, reached=True))


def key_of_index(keys, index):
    """The key that stands at an index of the sorted keys.

    Args:
        keys: from `keys_of`, (batch, vocabulary).
        index: int32 tensor (batch,), from 0 to the size of the vocabulary less 1.

    Returns:
        integer tensor (batch, 1).
    """
    return _key(keys, ops.ones_like(keys), lambda total: ops.cast(index, keys.dtype)[:, None])


def made(x):
    """`x`, which XLA shall make once on JAX, not anew for each use."""
    if _BACKEND != "jax":
        return x
    import jax

    return jax.lax.optimization_barrier(x)


def _key(keys, amounts, border_of):
    bits = KEY_BITS // 2 if keys.shape[1] > _MANY or _BACKEND == "torch" else KEY_BITS // 4
    key = above = None
    for level in reversed(range(KEY_BITS // bits)):
        kept = None if above is None else above == key
        above = shift_right(keys, level * bits) if level else keys
        buckets = above if kept is None else above & ((1 << bits) - 1)
        bucket, border_of = _search(_bucket_sums(amounts, buckets, kept, 1 << bits), border_of)
        bucket = ops.cast(bucket, keys.dtype)[:, None]
        key = bucket if key is None else key * (1 << bits) + bucket
    return key


def _search(amounts, border_of):
    """The index (batch,) of the first of the amounts (batch, n) whose cumulative sum exceeds the border.

    Returns:
        The index, and a function that gives what is left of the border behind the amounts before the index. Like
        `border_of` it takes a total, the sum (batch, 1) of the amounts to be searched, for which it has no use.
    """
    if amounts.shape[1] > _FLAT and _BACKEND != "torch":
        blocks = _blocks(amounts)
        block, border_of = _search(ops.sum(blocks, axis=2), border_of)
        index, border_of = _search(_take(blocks, block), border_of)
        return block * blocks.shape[2] + index, border_of
    cumulative = _cumulative(amounts)
    border = border_of(cumulative[:, -1:])
    index = _first(cumulative, border)

    def rest(_):
        if _BACKEND == "torch":
            return border - (cumulative - amounts).gather(1, index[:, None])
        passed = ops.logical_not(_exceeds(cumulative, border))
        if not isinstance(border, list):
            return border - ops.sum(amounts * ops.cast(passed, amounts.dtype), axis=1, keepdims=True)
        before = ops.sum(ops.where(passed[:, :, None], amounts, 0), axis=1, keepdims=True)
        return _carry([digit - part for digit, part in zip(border, _five(before), strict=True)])

    return index, rest


def _whole(weights):
    """Weights as whole numbers of units, what is left over cut away: the amounts (batch, n), or (batch, n, 4)."""
    if _BACKEND != "jax":
        return ops.cast(weights * 2.0**_UNIT_BITS, "int64")
    rest = weights * 2.0 ** (_UNIT_BITS - (_DIGITS - 1) * _DIGIT_BITS)
    digits = []
    for _ in range(_DIGITS):  # nothing is rounded: float32 holds the 24 bits of a weight at any power of two
        digit = ops.floor(rest)
        digits.append(ops.cast(digit, "int32"))
        rest = (rest - digit) * 2.0**_DIGIT_BITS
    return ops.stack(digits[::-1], axis=-1)


def _blocks(numbers):
    """Numbers (batch, n) as (batch, blocks, size), with zeros behind."""
    count, digits = numbers.shape[1], tuple(numbers.shape[2:])
    size = min(1 << ((count - 1).bit_length() + 1) // 2, _BLOCK)
    if count % size:
        numbers = ops.pad(numbers, [[0, 0], [0, -count % size]] + [[0, 0]] * len(digits))
    return ops.reshape(numbers, (-1, -(-count // size), size, *digits))


def _take(blocks, block):
    """The block (batch, size) of each row."""
    count, shape = blocks.shape[1], tuple(blocks.shape[2:])
    rows = ops.arange(ops.shape(blocks)[0], dtype="int32") * count
    return ops.take(ops.reshape(blocks, (-1, *shape)), rows + block, axis=0)


def _block_sums(blocks):
    """The sums (batch, blocks) of weights (batch, blocks, size)."""
    if _BACKEND != "jax":
        return ops.sum(_whole(blocks), axis=2)
    # Two digits of 22 bits are enough for the sums of 512 weights.
    half = _UNIT_BITS // 2
    rest = blocks * 2.0**half
    high = ops.floor(rest)
    low = ops.sum(ops.cast((rest - high) * 2.0 ** (_UNIT_BITS - half), "int32"), axis=2)
    high = ops.sum(ops.cast(high, "int32"), axis=2) + (low >> (_UNIT_BITS - half))
    return ops.stack([low & _DIGIT, low >> _DIGIT_BITS & _DIGIT, high & _DIGIT, high >> _DIGIT_BITS], axis=-1)


def _bucket_sums(amounts, buckets, kept, count):
    """The sums (batch, count) of the amounts in each bucket, of the kept ids alone (None: of all)."""
    if _BACKEND == "torch":  # Keras's segment sums on torch are made in float32
        amounts = amounts if kept is None else amounts * kept
        return amounts.new_zeros((amounts.shape[0], count)).scatter_add_(1, buckets, amounts)
    rows, digits = ops.shape(amounts)[0], tuple(amounts.shape[2:])
    segments = buckets + ops.arange(rows, dtype="int32")[:, None] * count
    if kept is not None:
        segments = ops.where(kept, segments, -1)  # dropped
    sums = ops.segment_sum(ops.reshape(amounts, (-1, *digits)), ops.reshape(segments, (-1,)), rows * count)
    return ops.reshape(sums, (-1, count, *digits))


def _cumulative(amounts):
    # Keras on torch makes it int32.
    return amounts.cumsum(1) if _BACKEND == "torch" else ops.cumsum(amounts, axis=1)


def _border(total, parts, reached=False):
    """The largest sum that does not exceed a part of the total (batch, 1), or that does not reach it."""
    if _BACKEND != "jax":
        parts = ops.cast(parts * 2.0**_PART_BITS, "int64")[:, None]
        low = (total & ((1 << _PART_BITS) - 1)) * parts
        return shift_right(total, _PART_BITS) * parts + shift_right(low - 1 if reached else low, _PART_BITS)
    parts = ops.cast(parts * 2.0**_PART_BITS, "int32")[:, None]
    factors = [parts << 3 & _DIGIT, parts >> 8 & _DIGIT, parts >> 19]  # the digits of parts in units of 2**-33
    columns = [0] * (_SUM_DIGITS + len(factors))
    columns[0] = -int(reached)
    for i, digit in enumerate(_carry(_five(total))):
        for j, factor in enumerate(factors):
            columns[i + j] += digit * factor
    return _carry(columns)[len(factors) :]


def _first(cumulative, border):
    """How many of the sums (batch, n) do not exceed the border: the index (batch,) of the first that does."""
    if _BACKEND == "torch":
        import torch

        return torch.searchsorted(cumulative, border, right=True)[:, 0]
    return ops.sum(ops.cast(ops.logical_not(_exceeds(cumulative, border)), "int32"), axis=1)


def _exceeds(cumulative, border):
    if not isinstance(border, list):
        return cumulative > border
    # The sign of the difference less 1.
    columns = [digit - limit for digit, limit in zip(_five(cumulative), border, strict=True)]
    return _carry([columns[0] - 1, *columns[1:]])[-1] >= 0


def _five(amounts):
    """Four digits on the last axis as a list of five."""
    return [amounts[..., i] for i in range(_DIGITS)] + [0] * (_SUM_DIGITS - _DIGITS)


def _carry(columns):
    """Digits of any size, of either sign, brought into their range; the highest keeps what is left and the sign."""
    digits, carry = [], 0
    for column in columns[:-1]:
        digits.append(column + carry & _DIGIT)
        carry = column + carry >> _DIGIT_BITS
    return [*digits, columns[-1] + carry]
