"""The requests that a server answers while it loads a SavedModel, read from the file that an export writes."""

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


def _array(message):
    parts = list(_fields(message))
    values = dict(parts)
    dtype = DTYPES[values[1]]
    shape = [dict(_fields(size)).get(1, 0) for field, size in _fields(values[2]) if field == 2]
    if dtype is object:
        array = np.empty(len([field for field, _ in parts if field == 8]), object)
        array[:] = [bytes(text) for field, text in parts if field == 8]
        return array.reshape(shape)
    return np.frombuffer(values[4], dtype).reshape(shape)
