"""Plain values, and containers of them, beside the arrays of a checkpoint: as JSON takes them, back, and whether they changed."""

import collections
import itertools
import random
import zlib

import keras
import numpy as np

PLAIN = (bool, int, float, str, type(None))
_MANY = 1 << 20  # of a larger array a sample is looked at
_VALUES, _DEEP = 1 << 16, 6  # that are looked at in a container, and how deep


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
    if isinstance(value, float):
        return float(value)
    if not (isinstance(value, np.ndarray | np.generic) or keras.ops.is_tensor(value)):
        raise TypeError(f"{name} is of type {_type(value)}")
    array = np.array(keras.ops.convert_to_numpy(value))
    if array.dtype.kind in "OUSMmc":
        raise TypeError(f"{name} is of type {_type(array)}")
    if not array.shape:
        return array.item()
    while name in arrays:  # a key may hold what joins names
        name += "~"
    arrays[name] = array
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


def fingerprint(value):
    """What stays equal while a plain value, an array, a generator of random numbers, a variable or a metric of Keras, or a
    container of such stays the same; None for anything else.

    Example:

    >>> seen = {"a": [1, 2]}
    >>> before = fingerprint(seen)
    >>> seen["a"].append(3)
    >>> fingerprint(seen) == before
    False
    """
    return _fingerprint(value, _DEEP, itertools.count())


def _fingerprint(value, depth, count):
    kind = _type(value)
    if isinstance(value, PLAIN + (np.generic,)):
        return kind, repr(value)
    if isinstance(value, np.ndarray):
        sample = np.ascontiguousarray(value.reshape(-1)[:: max(1, value.size // _MANY)])
        return kind, value.shape, repr(sample.tolist()) if value.dtype.hasobject else zlib.crc32(sample.view("uint8"))
    if (state := _state_of(value)) is not None:
        value = state
    if isinstance(value, set | frozenset):
        return kind, len(value), frozenset(map(repr, value)) if len(value) < _VALUES else None
    if isinstance(value, dict):
        values = itertools.chain.from_iterable(value.items())
    elif isinstance(value, list | tuple | collections.deque):
        values = value
    else:
        return None
    if depth == 0:
        return kind, len(value)
    seen = itertools.takewhile(lambda one: next(count) < _VALUES, values)
    return kind, len(value), tuple(_fingerprint(one, depth - 1, count) for one in seen)


def _state_of(value):
    """Of a generator of random numbers, a variable or a metric of Keras what it holds; None of anything else."""
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, np.random.RandomState):
        return value.get_state()
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, keras.random.SeedGenerator):
        value = value.state
    variables = value.variables if isinstance(value, keras.metrics.Metric) else [value]
    if variables and all(isinstance(one, keras.Variable) for one in variables):
        return [np.array(keras.ops.convert_to_numpy(keras.ops.copy(one))) for one in variables]
    return None


def _type(value):
    if isinstance(value, np.ndarray):
        return f"array of {value.dtype}"
    return type(value).__name__
