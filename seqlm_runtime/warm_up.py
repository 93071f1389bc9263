"""Tensors that lie beside a SavedModel's graph: the requests of a warm-up, and the defaults of a signature's inputs."""

import os
import struct

import numpy as np

from seqlm_runtime.graph_file import DTYPES, _fields

WARM_UP = os.path.join("assets.extra", "tf_serving_warmup_requests")


def read_warm_up(path):
    """The warm-up requests of a SavedModel.

    Args:
        path: version folder.

    Returns:
        A list of pairs: the name of a signature, and a dict of arrays. Empty where the folder has no such file.

    Raises:
        ValueError: the file is cut, or holds what is no request to a signature.
    """
    file = os.path.join(path, WARM_UP)
    if not os.path.isfile(file):
        return []
    with open(file, "rb") as stream:
        content = stream.read()
    try:
        return [_request(record) for record in _records(content)]
    except (IndexError, KeyError, ValueError, struct.error, TypeError) as error:
        raise ValueError(f"{file} holds no warm-up requests, or is cut: {error}.") from error


def _records(content):
    """The records of a TFRecord: a size of 8 bytes, a checksum of 4, so many bytes, a checksum of 4."""
    at = 0
    while at < len(content):
        (size,) = struct.unpack_from("<Q", content, at)
        record = content[at + 12 : at + 12 + size]
        if len(record) < size:
            raise ValueError("a record is shorter than it says")
        yield record
        at += 16 + size


def _request(record):
    predict = _only(_only(record, 6), 1)
    signature, inputs = bytes(_only(_only(predict, 1), 3)).decode(), {}
    for field, value in _fields(predict):
        if field == 2:
            entry = dict(_fields(value))
            inputs[bytes(entry[1]).decode()] = _array(entry[2])
    return signature, inputs


def _only(message, number):
    return next(value for field, value in _fields(message) if field == number)


def read_defaults(meta):
    """The values that stand in for inputs of a request that are left out.

    Args:
        meta: the bytes of a MetaGraphDef.

    Returns:
        dict of signature -> dict of input -> array.

    Raises:
        ValueError: a default is of a kind that no export of ours has.
    """
    found = {}
    try:
        for field, value in _fields(meta):
            if field == 5:
                entry = dict(_fields(value))
                values = [dict(_fields(default)) for number, default in _fields(entry[2]) if number == 4]
                found[bytes(entry[1]).decode()] = {bytes(default[1]).decode(): _array(default[2]) for default in values}
    except (IndexError, KeyError, ValueError, struct.error, TypeError) as error:
        raise ValueError(f"the defaults of a signature cannot be read: {error!r}.") from error
    return found


def _array(message):
    parts = list(_fields(message))
    values = dict(parts)
    dtype = DTYPES[values[1]]
    shape = [dict(_fields(size)).get(1, 0) for field, size in _fields(values.get(2, b"")) if field == 2]
    if dtype is object:
        array = np.empty(len([field for field, _ in parts if field == 8]), object)
        array[:] = [bytes(text) for field, text in parts if field == 8]
    elif 4 in values:
        array = np.frombuffer(values[4], dtype)
    elif dtype is np.float32:
        array = np.frombuffer(values[5], dtype)
    elif dtype is np.int32:
        array = np.array([number - (number >> 63 << 64) for number in _numbers(values[7])], dtype)
    else:
        raise ValueError(f"a tensor of {np.dtype(dtype)} that is written number by number")
    # One number stands for all of a tensor.
    return np.broadcast_to(array, shape) if array.size == 1 else array.reshape(shape)


def _numbers(message):
    """Packed varints."""
    value = shift = 0
    for byte in bytes(message):
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            yield value
            value = shift = 0
