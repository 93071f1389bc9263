"""Plain values, and containers of them, beside the arrays of a checkpoint: as JSON takes them, back, and whether they changed."""

import collections
import itertools
import zlib

import keras
import numpy as np

PLAIN = (bool, int, float, str, type(None), np.generic)
_MANY = 1 << 20  # of what is larger a sample is looked at
_DEEP = 6


def to_json(value, name, arrays):
    """`value` as JSON takes it, its arrays put into `arrays` under names that begin with `name`.

    Raises:
        TypeError: it is, or holds, what no checkpoint does.
    """

    def inner(values):
        return [to_json(one, f"{name}/{i}", arrays) for i, one in enumerate(values)]

    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: to_json(one, f"{name}/{key}", arrays) for key, one in value.items()}}
    if isinstance(value, dict):
        return {"pairs": inner(value.items())}
    if isinstance(value, collections.deque):
        return {"deque": inner(value), "length": value.maxlen}
    for kind in (list, tuple, set):
        if isinstance(value, kind):
            return {kind.__name__: inner(value)}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float | np.generic) or keras.ops.is_tensor(value) and not value.shape:
        return np.asarray(keras.ops.convert_to_numpy(value)).item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "OUSMm" or not _is_array(value):
        raise TypeError(f"{name} is of type {_type(value)}")
    arrays[name] = np.array(keras.ops.convert_to_numpy(value))
    return {"array": name}


def from_json(value, arrays):
    """What `to_json` was given."""
    if not isinstance(value, dict):
        return value

    def inner(values):
        return [from_json(one, arrays) for one in values]

    if "array" in value:
        return arrays[value["array"]]
    if "pairs" in value:
        return dict(inner(value["pairs"]))
    if "deque" in value:
        return collections.deque(inner(value["deque"]), value["length"])
    for kind in (list, tuple, set):
        if kind.__name__ in value:
            return kind(inner(value[kind.__name__]))
    return {key: from_json(one, arrays) for key, one in value["dict"].items()}


def fingerprint(value, depth=0):
    """What stays equal while a plain value, an array, or a container of such stays the same; None for anything else.

    Example:

    >>> seen = {"a": [1, 2]}
    >>> before = fingerprint(seen)
    >>> seen["a"].append(3)
    >>> fingerprint(seen) == before
    False
    """
    kind = _type(value)
    if isinstance(value, PLAIN):
        return kind, repr(value)
    if isinstance(value, np.ndarray):
        sample = np.ascontiguousarray(value.reshape(-1)[:: max(1, value.size // _MANY)])
        return kind, value.shape, repr(sample.tolist()) if value.dtype.hasobject else zlib.crc32(sample.view("uint8"))
    if depth == _DEEP:
        return None
    if isinstance(value, set | frozenset):
        return kind, len(value), frozenset(map(repr, itertools.islice(value, _MANY)))
    if isinstance(value, dict):
        values = itertools.chain.from_iterable(value.items())
    elif isinstance(value, list | tuple | collections.deque):
        values = value
    else:
        return None
    every = max(1, len(value) // _MANY)
    return kind, len(value), tuple(fingerprint(one, depth + 1) for one in itertools.islice(values, 0, None, every))


def _is_array(value):
    return isinstance(value, np.ndarray) or keras.ops.is_tensor(value)


def _type(value):
    if isinstance(value, np.ndarray):
        return f"array of {value.dtype}"
    return type(value).__name__
