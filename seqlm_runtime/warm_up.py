"""Tensors that lie beside a SavedModel's graph: the requests of a warm-up, and the defaults of a signature's inputs."""

import functools
import math
import os
import struct

import numpy as np

from seqlm_runtime.graph_fields import WARM_UP as WARM_UP_FIELDS
from seqlm_runtime.graph_fields import strange_fields
from seqlm_runtime.graph_file import DTYPES
from seqlm_runtime.wire import Message, packed

WARM_UP = os.path.join("assets.extra", "tf_serving_warmup_requests")
_MOST_BYTES = 2**24  # of the file
_CASTAGNOLI = 0x82F63B78  # the polynomial of CRC-32C, its bits in reverse

_MOST_ENTRIES = 2**24  # of a tensor


def read_warm_up(path):
    """The warm-up requests of a SavedModel.

    Args:
        path: version folder.

    Returns:
        A list of pairs: the name of a signature, and a dict of arrays. Empty where the folder has no such file.

    Raises:
        ValueError: the file is cut, a checksum in it is wrong, or it holds what is no request to a signature.
    """
    file = os.path.join(path, WARM_UP)
    if not os.path.isfile(file):
        return []
    if os.path.getsize(file) > _MOST_BYTES:
        raise ValueError(
            f"{file} has {os.path.getsize(file)} bytes, which no server should read before its first request."
        )
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
        sums = struct.unpack_from("<I", content, at + 8) + struct.unpack_from("<I", content, at + 12 + size)
        if sums != (_masked_checksum(content[at : at + 8]), _masked_checksum(record)):
            raise ValueError(f"the checksum of the record at byte {at} is wrong, which a server refuses to read")
        yield record
        at += 16 + size


def _masked_checksum(data):
    """CRC-32C of bytes, turned and moved as a TFRecord has it, so that the sum of what holds a sum is no special number."""
    table, value = _table(), 0xFFFFFFFF
    for byte in data:
        value = table[(value ^ byte) & 255] ^ value >> 8
    value ^= 0xFFFFFFFF
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


@functools.cache
def _table():
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_CASTAGNOLI if value & 1 else 0)
        table.append(value)
    return table


def _request(record):
    strange = strange_fields(record, WARM_UP_FIELDS, "PredictionLog")
    if strange:
        raise ValueError(f"a request has {', '.join(sorted(strange))}")
    predict = Message(Message(Message(record).block(6)).block(1))
    inputs = {name: _array(Message(block)) for name, block in predict.map(2).items()}
    return Message(predict.block(1)).text(3), inputs


def read_defaults(meta):
    """The values that stand in for inputs of a request that are left out.

    Args:
        meta: a MetaGraphDef, as a `wire.Message`.

    Returns:
        dict of signature -> dict of input -> array.

    Raises:
        ValueError: a default is of a kind that no export of ours has.
    """
    try:
        return {
            name: {key: _array(Message(value)) for key, value in Message(block).map(4).items()}
            for name, block in meta.map(5).items()
        }
    except (KeyError, ValueError, struct.error) as error:
        raise ValueError(f"the defaults of a signature cannot be read: {error!r}.") from error


def _array(tensor):
    dtype = DTYPES[tensor.whole(1)]
    shape = [Message(size).whole(1) for size in Message(tensor.block(2)).blocks(2)]
    if math.prod(shape) > _MOST_ENTRIES:  # -1 comes as a number of 64 bits
        raise ValueError(f"a tensor of the shape {shape}")
    content = tensor.block(4)
    if dtype is object:
        texts = [bytes(text) for text in tensor.blocks(8)]
        array = np.empty(len(texts), object)
        array[:] = texts
    elif content:
        array = np.frombuffer(content, dtype)
    elif dtype is np.float32:
        array = np.frombuffer(tensor.block(5), dtype)
    elif dtype is np.int32:
        array = np.array([number - (number >> 63 << 64) for number in packed(tensor.block(7))], dtype)
    else:
        raise ValueError(f"a tensor of {np.dtype(dtype)} that is written number by number")
    # One number stands for all of a tensor.
    return np.broadcast_to(array, shape) if array.size == 1 else array.reshape(shape)
