"""What stands in a SavedModel's `saved_model.pb`: its signatures and operations, read without TensorFlow."""

import os
from typing import NamedTuple

import numpy as np

DTYPES = {
    1: np.float32,
    2: np.float64,
    3: np.int32,
    4: np.uint8,
    5: np.int16,
    6: np.int8,
    7: object,
    9: np.int64,
    10: np.bool_,
    17: np.uint16,
    19: np.float16,
    22: np.uint32,
    23: np.uint64,
}
XLA_MARK = "_XlaMustCompile"
_NAMELESS = "main"


class TensorInfo(NamedTuple):
    """One input or output of a signature: the tensor's name in the graph, its NumPy type and its shape."""

    tensor: str
    dtype: object
    shape: tuple | None  # None for an unknown rank; None within for an unknown size


class Signature(NamedTuple):
    """What a signature takes and gives: dicts of name -> TensorInfo."""

    inputs: dict
    outputs: dict


class Operations(NamedTuple):
    """The ops of a SavedModel, found by `operations`.

    `functions`: name of a function, or "main" for the graph itself, -> set of op names.
    `signatures`: name of a signature -> set of op names that a request to it can reach.
    A function that must be compiled by XLA has the name `_XlaMustCompile` among its ops.
    """

    functions: dict
    signatures: dict

    def xla(self, signature):
        """The sorted names by which a signature needs XLA: none where a server with XLA switched off can run it."""
        return sorted(name for name in self.signatures[signature] if name.startswith("Xla") or name == XLA_MARK)


def operations(path):
    """Read which ops a SavedModel holds, without loading it.

    Args:
        path: version folder, the one that holds `saved_model.pb`.

    Returns:
        Operations: the ops of every function, and those that each signature can reach.

    Raises:
        FileNotFoundError: no `saved_model.pb` in the folder.
        ValueError: the file is cut or no SavedModel.
    """
    with open(graph_file(path), "rb") as stream:
        content = stream.read()
    try:
        meta = next(value for field, value in _fields(content) if field == 2)
        graph = next(value for field, value in _fields(meta) if field == 2)
        nodes = [_Node(value) for field, value in _fields(graph) if field == 1]
        functions = {}
        for library in (value for field, value in _fields(graph) if field == 2):
            functions |= dict(_function(value) for field, value in _fields(library) if field == 1)
        signatures = read_signatures(meta)
    except (IndexError, KeyError, StopIteration, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{os.path.join(path, 'saved_model.pb')} is cut or is no SavedModel.") from error
    by_name = {node.name: node for node in nodes}
    reached = {}
    for signature, (_, outputs) in signatures.items():
        seeds = _upstream(by_name, [info.tensor for info in outputs.values()])
        called = _closure(functions, {name for node in seeds for name in node.calls})
        reached[signature] = {op for node in seeds for op in node.ops} | {
            op for name in called for op in functions[name][0]
        }
    own = {_NAMELESS: {op for node in nodes for op in node.ops}}
    return Operations(own | {name: ops for name, (ops, _) in functions.items()}, reached)


def _fields(message):
    """Field number and value of each field: an int, or a memoryview for strings, messages and packed numbers."""
    message, at = memoryview(message), 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        key = varint()
        wire_type = key & 7
        if wire_type == 0:
            yield key >> 3, varint()
            continue
        if wire_type not in (1, 2, 5):
            raise IndexError(f"wire type {wire_type}")
        size = varint() if wire_type == 2 else {1: 8, 5: 4}[wire_type]
        if at + size > len(message):
            raise IndexError("a field reaches beyond its message")
        yield key >> 3, message[at : at + size]
        at += size


def _text(value):
    return bytes(value).decode()


def _map(message, number):
    """The entries of a map field as (key, value)."""
    for field, value in _fields(message):
        if field == number:
            entry = dict(_fields(value))
            yield _text(entry.get(1, b"")), entry.get(2, b"")


def read_signatures(meta):
    found = {}
    for name, definition in _map(meta, 5):
        inputs, outputs = ({key: _tensor_info(value) for key, value in _map(definition, field)} for field in (1, 2))
        if not name.startswith("__saved_model"):
            found[name] = Signature(inputs, outputs)
    return found


def _tensor_info(message):
    values = dict(_fields(message))
    if 1 not in values:  # the init op's info has no tensor
        return TensorInfo("", None, None)
    shape = list(_fields(values.get(3, b"")))
    sizes = [dict(_fields(value)).get(1, 0) for field, value in shape if field == 2]
    unknown_rank = any(field == 3 and value for field, value in shape)
    # An unknown size is -1, written as an unsigned number of 64 bits.
    sizes = None if unknown_rank else tuple(None if size >> 63 else size for size in sizes)
    return TensorInfo(_text(values[1]), DTYPES.get(values.get(2, 0)), sizes)


class _Node:
    """A node's name, inputs, ops (its own, and the mark of XLA) and the functions that it may call."""

    def __init__(self, message):
        values = list(_fields(message))
        self.name = next((_text(value) for field, value in values if field == 1), "")
        self.inputs = [_text(value) for field, value in values if field == 3]
        self.ops = {_text(value) for field, value in values if field == 2}
        self.calls = set(self.ops)  # a function can be called by an op of its own name
        for key, attribute in _map(message, 5):
            for field, value in _fields(attribute):
                if field == 10:
                    self.calls.add(_text(dict(_fields(value))[1]))
                elif field == 1:
                    self.calls |= {_text(dict(_fields(called))[1]) for kind, called in _fields(value) if kind == 9}
                elif key == XLA_MARK and field == 5 and value:
                    self.ops.add(XLA_MARK)


def _function(message):
    """A function's name, and its ops with the functions that it may call."""
    values = list(_fields(message))
    name = next(_text(dict(_fields(value))[1]) for field, value in values if field == 1)
    nodes = [_Node(value) for field, value in values if field == 3]
    ops = {op for node in nodes for op in node.ops}
    if any(key == XLA_MARK and dict(_fields(value)).get(5) for key, value in _map(message, 5)):
        ops.add(XLA_MARK)
    return name, (ops, {called for node in nodes for called in node.calls})


def _upstream(by_name, tensors):
    pending, seen = list(tensors), {}
    while pending:
        name = pending.pop().lstrip("^").split(":")[0]
        if name not in seen:
            seen[name] = by_name[name]
            pending.extend(by_name[name].inputs)
    return seen.values()


def _closure(functions, names):
    pending, seen = list(names), set()
    while pending:
        name = pending.pop()
        if name in functions and name not in seen:
            seen.add(name)
            pending.extend(functions[name][1])
    return seen


def graph_file(path):
    file = os.path.join(path, "saved_model.pb")
    if not os.path.isfile(file):
        raise FileNotFoundError(f"No SavedModel in {path}: expected {file}. Give the version folder, as NAME/1.")
    return file
