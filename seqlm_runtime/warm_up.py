"""The requests that a server answers while it loads a SavedModel, read from the file that an export writes."""

import os
import struct

import numpy as np

from seqlm_runtime.graph_file import DTYPES
from seqlm_runtime.wire import Message

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
    except (KeyError, ValueError, struct.error) as error:
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
    predict = Message(Message(Message(record).block(6)).block(1))
    inputs = {name: _array(Message(block)) for name, block in predict.map(2).items()}
    return Message(predict.block(1)).text(3), inputs


def _array(tensor):
    dtype = DTYPES[tensor.whole(1)]
    shape = [Message(size).whole(1) for size in Message(tensor.block(2)).blocks(2)]
    if dtype is object:
        texts = [bytes(text) for text in tensor.blocks(8)]
        array = np.empty(len(texts), object)
        array[:] = texts
        return array.reshape(shape)
    return np.frombuffer(tensor.block(4), dtype).reshape(shape)
