"""Threefry: the published vectors, an independent implementation, and a graph without XLA or random ops."""

import keras
import numpy as np
import pytest

from keras_seqlm.generation.random import threefry2x32, uniform

pytestmark = pytest.mark.backends

# Known answers of Random123 (kat_vectors, threefry2x32 with 20 rounds): counter, key, result.
VECTORS = [
    ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
]


def as_int32(word):
    return np.array([word], np.uint32).view(np.int32)


def as_words(tensor):
    return keras.ops.convert_to_numpy(tensor).astype(np.int32).view(np.uint32).tolist()


def python_uniform(seed, position):
    """Threefry on Python integers, written from the paper's figure and from nothing else here."""
    low = 0xFFFFFFFF
    keys = [seed & low, 0, (0x1BD11BDA ^ seed) & low]
    x, y = ((position & low) + keys[0]) & low, keys[1]
    for number in range(20):
        rotation = (13, 15, 26, 6, 17, 29, 16, 24)[number % 8]
        x = (x + y) & low
        y = (((y << rotation) | (y >> (32 - rotation))) & low) ^ x
        if number % 4 == 3:
            step = number // 4 + 1
            x, y = (x + keys[step % 3]) & low, (y + keys[(step + 1) % 3] + step) & low
    return (x >> 8) / 2**24


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_published_vectors(counter, key, expected):
    words = threefry2x32(*map(as_int32, key), *map(as_int32, counter))
    assert (as_words(words[0])[0], as_words(words[1])[0]) == expected


def test_uniform_equals_an_independent_implementation_bit_by_bit():
    rng = np.random.default_rng(3)
    seeds = np.concatenate([rng.integers(-(2**31), 2**31, 300), [0, 2**31 - 1, -1]]).astype("int32")
    positions = np.concatenate([rng.integers(0, 2**31, 300), [0, 1, 2**31 - 1]]).astype("int32")
    numbers = uniform(seeds, positions)
    assert keras.backend.standardize_dtype(numbers.dtype) == "float32"
    expected = [python_uniform(int(s), int(p)) for s, p in zip(seeds, positions, strict=True)]
    assert keras.ops.convert_to_numpy(numbers).tolist() == expected


def test_uniform_fills_zero_to_one_evenly():
    numbers = keras.ops.convert_to_numpy(uniform(np.full(20000, 11, "int32"), np.arange(20000, dtype="int32")))
    assert numbers.min() >= 0.0 and numbers.max() < 1.0
    counts, _ = np.histogram(numbers, bins=20, range=(0, 1))
    # Chi-square with 19 degrees of freedom: 43.8 is its 99.9 % point.
    assert np.sum((counts - 1000.0) ** 2 / 1000.0) < 43.8


def test_streams_of_neighbouring_seeds_differ():
    positions = np.arange(1000, dtype="int32")
    one, two = (keras.ops.convert_to_numpy(uniform(np.full(1000, s, "int32"), positions)) for s in (0, 1))
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.1
    assert np.sum(one == two) == 0


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="looks into a TensorFlow graph")
def test_graph_has_neither_xla_nor_random_ops():
    import tensorflow as tf

    spec = tf.TensorSpec([None], tf.int32)
    graph = tf.function(uniform).get_concrete_function(spec, spec).graph
    ops = {node.op for node in graph.as_graph_def().node}
    assert not {op for op in ops if op.startswith("Xla") or "Random" in op}
    assert "BitwiseXor" in ops
