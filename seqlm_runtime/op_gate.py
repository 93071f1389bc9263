"""The gate before an artifact: what it may do is read from its bytes, before anything of it is loaded or run.

A graph is a program. These lists hold the operations and attributes that exports of this package are made of, those in
`graph_fields` and `lite_fields` the fields of the files, and nothing else passes, in the graph itself and in every function,
whoever calls it or not. None of them opens, writes, sends or prints anything, but for those that read the model's own
variables when it is loaded, in one function that nobody else can call; `Assert` ends a request with an error.
`tests/export/test_op_lists.py` makes the lists anew from exports of every kind.

TensorFlow reads a folder again after it was checked: while a SavedModel is loaded, nobody who is not trusted may be able to
write there. A .tflite file is loaded from the bytes that were checked.
"""

import hashlib
import os
import pathlib
import posixpath
import re

import numpy as np

from seqlm_runtime.graph_fields import SAVED_MODEL, strange_fields
from seqlm_runtime.graph_file import MAIN, graph_file, parse_graph
from seqlm_runtime.lite_fields import OPTIONS
from seqlm_runtime.lite_file import operation_name, parse_lite_file
from seqlm_runtime.seals import AGAIN, check_files, read_sealed
from seqlm_runtime.tokenizers.model_proto import parse_model
from seqlm_runtime.warm_up import read_defaults
from seqlm_runtime.wire import Message

SIDECAR = "assets.extra/seqlm.json"
_FILES = {"saved_model.pb", "fingerprint.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"}
_FILES |= {"assets.extra/tf_serving_warmup_requests"}
_TOKENIZER = "assets.extra/tokenizer"

OPS = frozenset(
    """
    Add AddV2 All Any Assert BatchMatMulV2 BiasAdd BitwiseAnd BitwiseOr BitwiseXor BroadcastTo Cast ConcatV2 Const
    Cos Cumsum DecodePaddedRaw DecodeRaw DenseBincount EnsureShape Equal Erfc Exp ExpandDims
    FastWordpieceTokenizeWithOffsets Fill FloorDiv FloorMod GatherNd GatherV2 Greater GreaterEqual Identity
    IdentityN If IsFinite LeftShift Less LessEqual Log LogSoftmax LogicalAnd LogicalNot LogicalOr LowerBound MatMul Max Maximum
    Mean Min Minimum Mul Neg NoOp NormalizeUTF8 NotEqual OnesLike Pack Pad PadV2 PartitionedCall Placeholder
    PlaceholderWithDefault Pow Prod RaggedGather RaggedRange RaggedTensorToTensor Range ReadVariableOp RealDiv
    ReduceJoin Relu Reshape RightShift Rsqrt ScatterNd SelectV2 SentencepieceOp SentencepieceTokenizeOp Shape
    Sigmoid Sin Size Slice Softmax Split SplitV Square SquaredDifference Squeeze StatefulPartitionedCall StatelessIf
    StatelessWhile StaticRegexReplace StopGradient StridedSlice StringLength StringToHashBucketFast Sub Substr Sum
    Tanh TensorListFromTensor TensorListGetItem TensorListReserve TensorListSetItem TensorListStack TensorScatterAdd
    TensorScatterUpdate Tile TopKV2 Transpose UnicodeDecode UnicodeDecodeWithOffsets UnicodeEncode UnicodeTranscode
    Unique UnsortedSegmentJoin UnsortedSegmentMax UnsortedSegmentSum UpperBound VarHandleOp Where While ZerosLike
    """.split()
)
# TensorFlow's own function that reads the variables' files holds these, and no other function may.
RESTORE_OPS = frozenset("AssignVariableOp RestoreV2".split())
# And beside them nothing but these: what computed with the path could give other weights in another folder.
_BESIDE_RESTORE = frozenset("Const Identity NoOp".split())
# Attributes of nodes, functions and arguments. Others choose a function or a kernel in the place of another, or tell
# TensorFlow how to change the graph.
ATTRIBUTES = frozenset(
    """
    DstT Index N OUTPUT_RAGGED_RANK PARAMS_RAGGED_RANK SrcT T Taxis Tcond Tidx Tin Tindex Tindices Tlen Tout Tparams
    Tshape Tsplits Tvalues _XlaMustCompile _collective_manager_ids _construction_context
    _has_manual_control_dependencies _input_shapes _lower_using_switch_merge _noinline _num_original_outputs
    _output_shapes _read_only_resource_inputs _user_specified_name _xla_propagate_compile_time_consts axis batch_dims
    begin_mask body cond debug_name dtype dtypes element_dtype ellipsis_mask else_branch end_mask exclusive f
    incompatible_shape_error input_encoding keep_dims model new_axis_mask normalization_form num_buckets
    num_row_partition_tensors num_split out_type output_encoding output_shapes parallel_iterations pattern rewrite
    row_partition_types shape shape_type shared_name shrink_axis_mask squeeze_dims summarize then_branch unit value
    """.split()
)
# Other encodings are looked up in files.
TEXTS = {"input_encoding": b"UTF-8", "output_encoding": b"UTF-8"}
DEVICES = ("", "/device:CPU:0")

LITE_OPS = frozenset(OPTIONS)
_NAME = re.compile(r"[A-Za-z0-9._][A-Za-z0-9_.\\/>-]*")  # of a node, as TensorFlow reads it
_ADVICE = (
    "Load nothing of it unless you know who made it. If it is an export of a model of your own with layers of your own, "
    "name what it needs: allow_ops=[...], --allow-op on the command line."
)


def printable(text):
    """A text with what is no letter or sign written as its number: a name must not tell the terminal what to show.

    >>> printable("Tanh\\x1b[2J in é")
    'Tanh\\\\x1b[2J in é'
    """
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


class RefusedOps(ValueError):
    """An artifact that holds what no export of ours holds; `ops` are the names, sorted."""

    def __init__(self, path, found):
        self.ops = sorted(map(printable, found))
        named = [f"{op} in {', '.join(places[:3])}" for op, places in sorted(found.items())]
        super().__init__(printable(f"{path} is refused and was not loaded: {'; '.join(named)}. {_ADVICE}"))


def check_saved_model(path, allow_ops=()):
    """Refuse a SavedModel that is not, file by file, what an export of ours wrote; nothing of it is loaded.

    Args:
        path: version folder, the one that holds `saved_model.pb`.
        allow_ops: names of operations that are allowed beside those of `OPS`.

    Returns:
        The sidecar, a dict, and the `Graph`.

    Raises:
        FileNotFoundError: no `saved_model.pb` in the folder, or no sidecar.
        ValueError: a file is missing, too many or was changed; or the graph is damaged.
        RefusedOps: it holds an operation that is on no list.
    """
    path = os.fspath(path)
    file = graph_file(path)
    sidecar = read_sealed(os.path.join(path, SIDECAR))
    if not isinstance(sidecar.get("files"), dict):
        raise ValueError(f"{os.path.join(path, SIDECAR)} is damaged: it has no list of files.")
    check_files(path, sidecar["files"], leave_out=(SIDECAR,))
    strangers = [name for name in sidecar["files"] if name not in _FILES and posixpath.dirname(name) != _TOKENIZER]
    if strangers:
        raise ValueError(f"{path} is refused and was not loaded: no SavedModel of ours has the files {strangers}.")
    graph = check_graph(path, pathlib.Path(file).read_bytes(), allow_ops)
    return sidecar, graph


def check_graph(path, content, allow_ops=()):
    """The `Graph` in the bytes of a `saved_model.pb`; ValueError and RefusedOps as in `check_saved_model`."""
    try:
        graph = parse_graph(content)
        _check_names(graph)
        read_defaults(Message(Message(content).block(2)))
    except ValueError as error:
        raise ValueError(f"{os.path.join(path, 'saved_model.pb')} is cut or is no SavedModel: {error}.") from error
    found = refused_in(graph, allow_ops)
    if found:
        raise RefusedOps(path, found)
    return graph


def _check_names(graph):
    """Raise ValueError where TensorFlow could take a name for another one than we do."""
    for place, nodes, arguments in _places(graph):
        names = [node.name for node in nodes] + arguments
        wrong = [name for name in names if not _NAME.fullmatch(name)]
        if wrong or len(set(names)) < len(names):
            raise ValueError(f"names of nodes in {place!r} stand there twice, or are none: {wrong[:3]}")
    for name, signature in graph.signatures.items():
        for info in (*signature.inputs.values(), *signature.outputs.values()):
            node, colon, number = info.tensor.rpartition(":")
            if node not in graph.nodes or not number.isdecimal():
                raise ValueError(f"the signature {name!r} has the tensor {info.tensor!r}, which no node gives")


def _places(graph):
    """The graph itself and its functions: triples of a name, the nodes and the names of the arguments."""
    yield MAIN, list(graph.nodes.values()), []
    for name, function in graph.functions.items():
        yield name, function.nodes, function.arguments


def refused_in(graph, allow_ops=()):
    """What a graph holds that is on no list: dict of its name to the functions that it stands in."""
    found, allowed, reading = {}, OPS | set(allow_ops), _reading_function(graph)

    def refuse(place, *names):
        for name in names:
            found.setdefault(name, []).append("the graph itself" if place == MAIN else f"the function {place!r}")

    for place, nodes, _ in _places(graph):
        here = _BESIDE_RESTORE | RESTORE_OPS if place == reading else allowed
        for node in nodes:
            refuse(place, *{node.op} - here)
            refuse(place, *(f"the attribute {name!r}" for name in node.attributes if not _known(name, node.op)))
            refuse(place, *(f"the {name} {text!r}" for name, text in _texts(node) if text != TEXTS[name]))
            refuse(place, *(f"the unknown function {name!r}" for name in node.calls - {node.op} - set(graph.functions)))
            if node.device not in DEVICES:
                refuse(place, f"the device {node.device!r}")
            if _is_hostile(node):  # a tokenizer that crashes
                refuse(place, "a hostile SentencePiece model")
    for name, function in graph.functions.items():
        refuse(name, *(f"the attribute {attribute!r}" for attribute in function.attributes - ATTRIBUTES))
        if name in allowed | RESTORE_OPS:  # TensorFlow would run it in the operation's place
            refuse(name, f"a function called as the operation {name}")
    for name, function in graph.in_python.items():
        if function not in _answering(graph, name):
            found[f"another signature {name!r} than the server's"] = ["the objects of Python"]
    for name in (*graph.at_start, *(f"the asset {name!r}" for name in graph.assets)):
        found[name] = ["what runs when it is loaded"]
    for name in strange_fields(graph.content, SAVED_MODEL, "SavedModel"):
        found[name] = ["saved_model.pb"]
    return {name: list(dict.fromkeys(places)) for name, places in found.items()}


def _answering(graph, name):
    """The functions that the graph itself calls to answer a signature."""
    outputs = graph.signatures[name].outputs.values() if name in graph.signatures else ()
    return {call for node in graph.upstream([info.tensor for info in outputs]) for call in node.calls}


def _known(attribute, op):
    """Whether a node may have an attribute; those without `_` are of the operation, and of yours you know what they do."""
    return attribute in ATTRIBUTES or (op not in OPS | RESTORE_OPS and not attribute.startswith("_"))


def _texts(node):
    """The values of the attributes in `TEXTS` that a node has."""
    return [(name, bytes(Message(node.attributes[name]).block(2))) for name in TEXTS if name in node.attributes]


def _reading_function(graph):
    """The name of the function that TensorFlow's saver alone calls, to read the variables; None where there is none.

    It reads what the loader names and nothing else, and nobody else can call it.
    """
    file_name, _, restore = graph.saver
    given, node = graph.nodes.get(file_name.removesuffix(":0")), graph.nodes.get(restore)
    if not given or not node or (given.op, node.op) != ("Placeholder", "StatefulPartitionedCall"):
        return None
    names = sorted(node.calls & set(graph.functions))
    if len(names) != 1 or node.inputs[:1] != [given.name] or not graph.functions[names[0]].arguments:
        return None
    # Its name stands in the file where it is defined and where the saver's node calls it: not in the objects that
    # Python makes, either.
    if graph.content.count(names[0].encode()) != 2:
        return None
    # The first input of that node is its first argument: the path that the loader gives.
    function = graph.functions[names[0]]
    prefixes = [inner.inputs[:1] for inner in function.nodes if inner.op == "RestoreV2"]
    if any(prefix != function.arguments[:1] for prefix in prefixes):
        return None
    # Who waits for the saver's node would run it; who takes the placeholder for an input would choose the path.
    used = [name for other in graph.nodes.values() if other != node for name in other.inputs]
    for signature in graph.signatures.values():
        used += [info.tensor for info in (*signature.inputs.values(), *signature.outputs.values())]
    alone = {node.name, given.name}.isdisjoint(name.lstrip("^").split(":")[0] for name in (*used, *graph.at_start))
    return names[0] if alone else None


def _is_hostile(node):
    """Whether it holds a SentencePiece model on which tensorflow-text would end the process."""
    if node.op != "SentencepieceOp":
        return False
    try:
        parse_model(bytes(Message(node.attributes["model"]).block(2)))
    except (KeyError, ValueError):
        return True
    return False


def check_lite_file(path, sidecar, allow_ops=()):
    """Refuse a .tflite file that is not what an export of ours wrote; nothing of it is loaded.

    Args:
        path: the file.
        sidecar: what `litert.read_sidecar` gave of `NAME.json`.
        allow_ops: names of operations that are allowed beside those of `LITE_OPS`, a custom one as `CUSTOM:NAME`.

    Returns:
        `LiteFile`, with the bytes that were checked: those are to be loaded, whatever the file holds by then.

    Raises:
        ValueError: it is not the file that the sidecar names, has other signatures, or is damaged.
        RefusedOps: it holds an operation that is on no list.
    """
    content = pathlib.Path(path).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sidecar["sha256"]:
        raise ValueError(
            f"{path} is not the file that its sidecar describes: sha256 {found}, expected {sidecar['sha256']}. It is "
            f"damaged or was replaced. Copy it, or {AGAIN}."
        )
    file = check_lite_content(path, content, allow_ops)
    wrong = _wrong_signatures(file, sidecar)
    if wrong:
        raise ValueError(f"{path} is not the model that its sidecar describes: {'; '.join(wrong)}.")
    return file


def _wrong_signatures(file, sidecar):
    """Where the signatures of a .tflite file are others than its sidecar says: a list of sentences."""
    if "task" in sidecar:
        wanted = {
            name: [
                {key: (tuple(part["shape"]), part["dtype"]) for key, part in entry[side].items()}
                for side in ("inputs", "outputs")
            ]
            for name, entry in sidecar["signatures"].items()
        }
    else:
        wanted = _of_a_language_model(sidecar)
    wrong = [f"the signature {name!r} is none of ours" for name in sorted(file.signatures.keys() - wanted)]
    wrong += [f"the signature {name!r} is missing" for name in sorted(wanted.keys() - file.signatures)]
    for name in sorted(wanted.keys() & file.signatures):
        for verb, sought, tensors in zip(("takes", "gives"), wanted[name], file.signatures[name], strict=True):
            found = {
                key: (tensor.shape, np.dtype(tensor.dtype).name if tensor.dtype else tensor.type_code)
                for key, tensor in tensors.items()
            }
            if found != sought:
                wrong.append(f"the signature {name!r} {verb} {found}, and not {sought}")
    return wrong


def _of_a_language_model(sidecar):
    """What the signatures of a language model take and give: name -> a pair of dicts of shape and type."""
    lengths = {"decode": 1, **{f"prefill_{length}": length for length in sidecar["prefill_lengths"]}}
    state = {name: (tuple(leaf["shape"]), leaf["dtype"]) for name, leaf in sidecar["state"].items()}
    gives = {"logits": ((1, sidecar["vocabulary_size"]), "float32"), **state}
    return {
        name: ({"token_ids": ((1, length), "int32"), "lengths": ((1,), "int32"), **state}, gives)
        for name, length in lengths.items()
    }


def check_lite_content(path, content, allow_ops=()):
    """The `LiteFile` in the bytes of a .tflite file; ValueError and RefusedOps as in `check_lite_file`."""
    try:
        file = parse_lite_file(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}.") from error
    found = refused_lite(file, allow_ops)
    if found:
        raise RefusedOps(path, found)
    return file


def refused_lite(file, allow_ops=()):
    """What a `LiteFile` holds that is on no list: dict of its name to where it stands."""
    names = {operation_name(*operation) for operation in file.operations} - LITE_OPS - set(allow_ops)
    return {name: ["its list of operations"] for name in names} | {name: ["the file"] for name in file.unknown}
