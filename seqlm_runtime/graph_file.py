"""What stands in a SavedModel's `saved_model.pb`: its signatures, nodes and functions, read without TensorFlow."""

import os
from typing import NamedTuple

import numpy as np

from seqlm_runtime.wire import Message

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
MAIN = "main"
XLA_MARK = "_XlaMustCompile"
NO_SAVING = "exports_cannot_be_saved:0"  # stands where TensorFlow wants the name of a node that writes the variables
_DEEPEST = 8
_OWN_SIGNATURES = "__saved_model"  # of TensorFlow: what it runs after loading, and in training


class TensorInfo(NamedTuple):
    """One input or output of a signature: the tensor's name in the graph, its NumPy type and its shape."""

    tensor: str
    dtype: object
    shape: tuple | None  # None for an unknown rank; None within for an unknown size


class Signature(NamedTuple):
    """What a signature takes and gives: dicts of name -> TensorInfo."""

    inputs: dict
    outputs: dict


class Node(NamedTuple):
    """One operation: `calls` are the functions that it may call, `marks` is {"_XlaMustCompile"} where it is compiled,
    `attributes` the values of its attributes as they lie in the file."""

    name: str
    op: str
    inputs: list
    device: str
    calls: set
    marks: set
    attributes: dict


class Function(NamedTuple):
    """A function of the graph's library: `arguments` are their names in order, `attributes` the names of its own."""

    nodes: list
    marks: set
    arguments: list
    attributes: set


class Graph(NamedTuple):
    """What `saved_model.pb` holds.

    `nodes`: of the graph itself, name -> Node. `functions`: name -> Function. `signatures`: name -> Signature.
    `assets`: the names of the files that it reads when it is loaded. `saver`: the nodes that write and read the
    variables, as `(file name, save, restore)`. `at_start`: the nodes that run after loading. `content`: the file's bytes.
    `in_python`: the function that Python's loader runs for each signature, name -> name.
    """

    nodes: dict
    functions: dict
    signatures: dict
    assets: list
    saver: tuple
    at_start: list
    content: bytes
    in_python: dict

    def called(self, nodes):
        """The names of all functions that nodes may call, through others too."""
        pending, seen = [name for node in nodes for name in node.calls], set()
        while pending:
            name = pending.pop()
            if name in self.functions and name not in seen:
                seen.add(name)
                pending.extend(call for node in self.functions[name].nodes for call in node.calls)
        return seen

    def upstream(self, tensors):
        """The nodes of the graph itself that a run for these tensors or nodes may reach."""
        pending, seen = list(tensors), {}
        while pending:
            name = pending.pop().lstrip("^").split(":")[0]
            if name not in seen:
                if name not in self.nodes:
                    raise ValueError(f"there is no node {name!r}, which another one or a signature reads")
                seen[name] = self.nodes[name]
                pending.extend(seen[name].inputs)
        return list(seen.values())

    def ops(self, signature):
        """The set of op names, marks among them, that a request to a signature can reach."""
        nodes = self.upstream([info.tensor for info in self.signatures[signature].outputs.values()])
        functions = [self.functions[name] for name in self.called(nodes)]
        nodes += [node for function in functions for node in function.nodes]
        return {node.op for node in nodes}.union(*(part.marks for part in (*nodes, *functions)))

    def xla(self, signature):
        """The sorted names by which a signature needs XLA: none where a server with XLA switched off can run it."""
        return sorted(name for name in self.ops(signature) if name.startswith("Xla") or name == XLA_MARK)


def read_graph(path):
    """Read what a SavedModel holds, without loading it.

    Args:
        path: version folder, the one that holds `saved_model.pb`.

    Returns:
        Graph.

    Raises:
        FileNotFoundError: no `saved_model.pb` in the folder.
        ValueError: the file is cut, no SavedModel, or could be read in more than one way.
    """
    with open(graph_file(path), "rb") as stream:
        content = stream.read()
    try:
        return parse_graph(content)
    except ValueError as error:
        raise ValueError(f"{os.path.join(path, 'saved_model.pb')} is cut or is no SavedModel: {error}.") from error


def parse_graph(content):
    """The same from the bytes of the file."""
    meta = Message(Message(content).block(2))
    graph = Message(meta.block(2))
    nodes, functions = {}, {}
    known = {}
    for node in (_node(block, known) for block in graph.blocks(1)):
        if node.name in nodes:
            raise ValueError(f"two nodes are called {node.name!r}")
        nodes[node.name] = node
    if not nodes:
        raise ValueError("it holds no graph")
    for block in Message(graph.block(2)).blocks(1):
        name, function = _function(block, known)
        if name in functions:
            raise ValueError(f"two functions are called {name!r}")
        functions[name] = function
    saver = Message(meta.block(3))
    return Graph(
        nodes,
        functions,
        read_signatures(meta),
        [Message(block).text(2) for block in meta.blocks(6)],
        tuple(saver.text(number) for number in (1, 2, 3)),
        _at_start(meta),
        content,
        _in_python(Message(meta.block(7))),
    )


def _in_python(objects):
    """The functions of the signatures among the objects that Python's loader makes, those being numbered as they stand."""
    nodes = [Message(block) for block in objects.blocks(1)]

    def children(number):
        found = {}
        for block in nodes[number].blocks(1) if number < len(nodes) else ():
            child = Message(block)
            if child.text(2) in found:
                raise ValueError(f"the object {child.text(2)!r} stands there twice")
            found[child.text(2)] = child.whole(1)
        return found

    signatures = children(children(0).get("signatures", len(nodes)))
    if not all(number < len(nodes) for number in signatures.values()):
        raise ValueError("a signature is an object that is not there")
    return {name: Message(nodes[number].block(8)).text(1) for name, number in signatures.items()}


def _at_start(meta):
    """From the signature that TensorFlow keeps for it, and from the collections of older versions."""
    own = read_signatures(meta, own=True)
    found = {info.tensor for signature in own.values() for info in signature.outputs.values()}
    for block in meta.map(4).values():
        found.update(Message(Message(block).block(1)).texts(1))
    return sorted(found)


def read_signatures(meta, own=False):
    """The signatures in the `Message` of a MetaGraphDef; `own` for those that TensorFlow itself runs."""
    found = {}
    for name, block in meta.map(5).items():
        definition = Message(block)
        inputs, outputs = (
            {key: _tensor_info(value) for key, value in definition.map(field).items()} for field in (1, 2)
        )
        if name.startswith(_OWN_SIGNATURES) == own:
            found[name] = Signature(inputs, outputs)
    return found


def _tensor_info(block):
    info = Message(block)
    tensor = info.text(1)
    shape = Message(info.block(3))
    # An unknown size is -1, written as an unsigned number of 64 bits.
    sizes = [size if size < 2**63 else None for size in (Message(value).whole(1) for value in shape.blocks(2))]
    return TensorInfo(tensor, DTYPES.get(info.whole(2)), None if shape.whole(3) else tuple(sizes))


def _node(block, known):
    """`known`: what was found in attributes before, for thousands of nodes have the same."""
    node = Message(block)
    op, calls, marks, attributes = node.text(2), set(), set(), {}
    for entry in map(bytes, node.blocks(5)):
        if entry not in known:
            key, value = Message(entry).text(1), Message(entry).block(2)
            known[entry] = key, value, _functions_in(Message(value)), key == XLA_MARK and Message(value).whole(5)
        key, value, functions, marked = known[entry]
        if key in attributes:
            raise ValueError(f"the key {key!r} stands there twice")
        attributes[key] = value
        calls |= functions
        marks |= {XLA_MARK} if marked else set()
    # A function can be called by an op of its own name.
    return Node(node.text(1), op, node.texts(3), node.text(4), calls | {op}, marks, attributes)


def _functions_in(attribute, depth=0):
    """The names of the functions in an attribute's value, those in the attributes of these too."""
    if depth > _DEEPEST:
        raise ValueError(f"attributes lie in each other more than {_DEEPEST} deep")
    found = set()
    in_list = attribute.block(1)
    for called in (*attribute.blocks(10), *(Message(in_list).blocks(9) if in_list else ())):
        function = Message(called)
        found.add(function.text(1))
        for value in function.map(2).values():
            found |= _functions_in(Message(value), depth + 1)
    return found


def _function(block, known):
    function = Message(block)
    signature, attributes = Message(function.block(1)), function.map(5)
    marks = {key for key, value in attributes.items() if key == XLA_MARK and Message(value).whole(5)}
    arguments = [Message(argument).text(1) for argument in signature.blocks(2)]
    of_arguments = {key for entry in function.blocks(7) for key in Message(Message(entry).block(2)).map(1)}
    nodes = [_node(node, known) for node in function.blocks(3)]
    return signature.text(1), Function(nodes, marks, arguments, attributes.keys() | of_arguments)


def graph_file(path):
    """The path of `saved_model.pb` in a version folder.

    Raises:
        FileNotFoundError: there is none.
    """
    file = os.path.join(path, "saved_model.pb")
    if not os.path.isfile(file):
        raise FileNotFoundError(f"No SavedModel in {path}: expected {file}. Give the version folder, as NAME/1.")
    return file
