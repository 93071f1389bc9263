"""A value for each of the 1,114,112 code points, in a table of two levels."""

import codecs

import numpy as np

BLOCK = 256
NUM_CODE_POINTS = 0x110000
NUM_BLOCKS = NUM_CODE_POINTS // BLOCK


def code_points(text):
    """The code points of a str as a (time,) uint32 array; lone surrogates pass."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def byte_characters(data):
    """For each byte of `data` the number of its code point in `data.decode("utf-8", "replace")`, as (bytes,) int64."""
    if data.isascii():
        return np.arange(len(data))
    points = code_points(data.decode("utf-8", "seqlm_runtime.marks"))
    sizes = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    sizes[(points == _INVALID) | (points == _MORE_INVALID)] = 1
    return np.repeat(np.cumsum(points != _MORE_INVALID) - 1, sizes)


_INVALID, _MORE_INVALID = 0xDC80, 0xDC81  # no UTF-8 decodes to these
codecs.register_error(
    "seqlm_runtime.marks", lambda error: (chr(_INVALID) + chr(_MORE_INVALID) * (error.end - error.start - 1), error.end)
)


def two_level(values):
    """Packs one value per code point, keeping equal blocks of 256 once.

    Args:
        values: (1114112,) array of unsigned integers.

    Returns:
        (4352 + 256 * blocks,) array of the same dtype: the number of the block for each 256 code points, then the blocks.
    """
    rows, places = values.reshape(NUM_BLOCKS, BLOCK), {}
    found = [
        places.setdefault(row.tobytes(), len(places)) for row in rows
    ]  # most rows are equal, and sorting them is slow
    firsts = np.unique(found, return_index=True)[1]
    blocks, numbers = np.unique(rows[firsts], axis=0, return_inverse=True)
    numbers = numbers.reshape(-1)[found]
    if len(blocks) > np.iinfo(values.dtype).max + 1:
        raise ValueError(f"{len(blocks)} different blocks of code points do not fit {values.dtype}.")
    return np.concatenate([numbers.astype(values.dtype), blocks.reshape(-1)])


def look_up(table, points):
    """The values in a two-level `table` of `points`, an array of code points."""
    blocks = table[points >> 8].astype(np.int32)
    return table[NUM_BLOCKS + blocks * BLOCK + (points & 255).astype(np.int32)]


def table_bytes(table):
    """The bytes of a two-level table, the same on every machine."""
    return table.astype(table.dtype.newbyteorder("<")).tobytes()


def parse_table(data, dtype, num_values, name):
    """The two-level table in the bytes `data` of the file `name`, checked.

    Raises:
        ValueError: the size is wrong, or a block or a value is out of range.
    """
    dtype = np.dtype(dtype).newbyteorder("<")
    num_blocks, rest = divmod(len(data) - NUM_BLOCKS * dtype.itemsize, BLOCK * dtype.itemsize)
    if num_blocks < 1 or rest:
        raise ValueError(f"{name}: {len(data)} bytes are no table of code points.")
    table = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))
    if int(table[:NUM_BLOCKS].max()) >= num_blocks or int(table[NUM_BLOCKS:].max()) >= num_values:
        raise ValueError(f"{name}: the table of code points names a block or a value that is not there.")
    return table
