"""A keyed shuffle of range(n) that is computed index by index, so it takes no memory at any size."""

import hashlib

import numpy as np

ROUNDS = 8
LARGEST = 1 << 62


def stream_key(*parts):
    """Return a 64-bit key that depends on every part, as `stream_key(seed, epoch, "blocks")`.

    Example:

    >>> stream_key(1, 0, "blocks") == stream_key(1, 1, "blocks")
    False
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def permute(index, n, key):
    """Return where a pseudo-random permutation of `range(n)` sends `index`.

    A Feistel network permutes the smallest power of two that holds `n` numbers: each round adds a keyed hash of one half
    of the bits to the other half, which can be undone whatever the hash is. A result outside `range(n)` goes through the
    network again until it lies inside ("cycle walking", fewer than two passes on average), and that keeps the map
    one to one on `range(n)`. Its numbers are part of what makes a training run resumable: they must never change.

    Args:
        index: an integer, or an integer array of any shape, each in `[0, n)`.
        n: size of the range, from 1 to 2**62.
        key: an integer; another key gives another permutation.

    Returns:
        An int for an int, else an int64 array of the shape of `index`.

    Raises:
        ValueError: if `n` or an index is out of range.

    Example:

    >>> sorted(permute(np.arange(5), 5, key=3).tolist())
    [0, 1, 2, 3, 4]

    Reference:
        Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002 (cycle walking and generalised Feistel).
    """
    n = int(n)
    if not 1 <= n <= LARGEST:
        raise ValueError(f"permute() takes a range size `n` from 1 to 2**62, received n={n}.")
    indices = np.asarray(index)
    if not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(f"permute() takes integer indices, received an index of type {indices.dtype}.")
    if indices.size and (indices.min() < 0 or indices.max() >= n):
        raise ValueError(
            f"permute() takes indices from 0 to n - 1 = {n - 1}, received {indices.min()} to {indices.max()}."
        )
    places = indices.astype(np.uint64).reshape(-1)
    bits = (n - 1).bit_length()
    keys = _mix(np.arange(1, ROUNDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key % (1 << 64)))
    if bits:
        places = _feistel(places, bits, keys)
        outside = np.flatnonzero(places >= n)
        while outside.size:
            places[outside] = _feistel(places[outside], bits, keys)
            outside = outside[places[outside] >= n]
    places = places.astype(np.int64).reshape(indices.shape)
    return int(places) if indices.ndim == 0 else places


def _feistel(values, bits, keys):
    low_bits = np.uint64(bits // 2)
    low_mask = np.uint64((1 << (bits // 2)) - 1)
    high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
    high, low = values >> low_bits, values & low_mask
    for number, key in enumerate(keys):
        # The halves take turns and keep their own width, so any number of bits will do.
        if number % 2 == 0:
            high = high ^ (_mix(low + key) & high_mask)
        else:
            low = low ^ (_mix(high + key) & low_mask)
    return (high << low_bits) | low


def _mix(values):
    """Hash uint64 arrays (the finaliser of SplitMix64); array arithmetic wraps without a warning."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
