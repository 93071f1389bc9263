"""The gate before an artifact: what it may do is read from its bytes, before anything of it is loaded or run.

A graph is a program. These lists hold the operations that exports of this package are made of, and nothing else passes,
in the graph itself and in every function, whoever calls it or not. None of them opens, writes, sends or prints anything,
but for those that read the model's own variables when it is loaded; `Assert` ends a request with an error.
`tests/export/test_op_lists.py` makes the lists anew from exports of every kind.
"""

import hashlib
import os
import pathlib

from seqlm_runtime.graph_file import MAIN, graph_file, parse_graph
from seqlm_runtime.lite_file import BUILTINS, CUSTOM, parse_lite_file
from seqlm_runtime.seals import AGAIN, check_files, read_sealed
from seqlm_runtime.tokenizers.model_proto import parse_model
from seqlm_runtime.wire import Message

SIDECAR = "assets.extra/seqlm.json"
_FILES = ("saved_model.pb", "fingerprint.pb", "variables/", "assets/", "assets.extra/")

OPS = frozenset(
    """
    Add AddV2 All Any Assert BatchMatMulV2 BiasAdd BitwiseAnd BitwiseOr BitwiseXor BroadcastTo Cast ConcatV2 Const
    Cos Cumsum DecodePaddedRaw DecodeRaw DenseBincount EnsureShape Equal Erfc Exp ExpandDims
    FastWordpieceTokenizeWithOffsets Fill FloorDiv FloorMod GatherNd GatherV2 Greater GreaterEqual Identity
    IdentityN If IsFinite LeftShift Less LessEqual Log LogicalAnd LogicalNot LogicalOr LowerBound MatMul Max Maximum
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
# TensorFlow's own functions that write and read the variables' files hold these, and no other function may.
SAVE_OPS = frozenset(
    "DisableCopyOnRead MergeV2Checkpoints SaveV2 Select ShardedFilename StaticRegexFullMatch StringJoin".split()
)
RESTORE_OPS = frozenset("AssignVariableOp RestoreV2".split())
DEVICES = ("", "/device:CPU:0", "/device:CPU:*")

LITE_OPS = frozenset(
    """
    ADD BATCH_MATMUL BROADCAST_TO CAST CONCATENATION COS DEQUANTIZE DYNAMIC_UPDATE_SLICE EMBEDDING_LOOKUP FILL
    FULLY_CONNECTED GATHER GELU GREATER GREATER_EQUAL LESS LOGICAL_AND LOGICAL_NOT LOGISTIC MAXIMUM MEAN MINIMUM MUL
    NEG PACK RESHAPE RSQRT SELECT SELECT_V2 SIN SLICE SOFTMAX SPLIT SPLIT_V SQUARE SQUARED_DIFFERENCE STRIDED_SLICE
    SUB TANH TRANSPOSE WHILE
    """.split()
)
_ADVICE = (
    "Load nothing of it unless you know who made it. If it is an export of a model of your own with layers of your own, "
    "name what it needs: allow_ops=[...], --allow-op on the command line."
)


class RefusedOps(ValueError):
    """An artifact that holds what no export of ours holds; `ops` are the names, sorted."""

    def __init__(self, path, found):
        self.ops = sorted(found)
        named = [f"{op} in {', '.join(places[:3])}" for op, places in sorted(found.items())]
        super().__init__(f"{path} is refused and was not loaded: {'; '.join(named)}. {_ADVICE}")


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
    strangers = [name for name in sidecar["files"] if not name.startswith(_FILES)]
    if strangers:
        raise ValueError(f"{path} is refused and was not loaded: no SavedModel of ours has the files {strangers}.")
    graph = check_graph(path, pathlib.Path(file).read_bytes(), allow_ops)
    return sidecar, graph


def check_graph(path, content, allow_ops=()):
    """The `Graph` in the bytes of a `saved_model.pb`; ValueError and RefusedOps as in `check_saved_model`."""
    try:
        graph = parse_graph(content)
    except ValueError as error:
        raise ValueError(f"{os.path.join(path, 'saved_model.pb')} is cut or is no SavedModel: {error}.") from error
    found = refused_in(graph, allow_ops)
    if found:
        raise RefusedOps(path, found)
    return graph


def refused_in(graph, allow_ops=()):
    """What a graph holds that is on no list: dict of its name to the functions that it stands in."""
    found, allowed = {}, OPS | set(allow_ops)
    saving, restoring = _own_functions(graph)
    places = {MAIN: graph.nodes.values(), **{name: function.nodes for name, function in graph.functions.items()}}
    for place, nodes in places.items():
        here = allowed | (SAVE_OPS if place in saving else RESTORE_OPS if place in restoring else frozenset())
        for node in nodes:
            names = {node.op} - here - set(graph.functions)
            # A device that is not this one; a function that is no function of the graph; a tokenizer that crashes.
            names |= {f"the device {node.device!r}"} if node.device not in DEVICES else set()
            names |= {f"the unknown function {name!r}" for name in node.calls - {node.op} - set(graph.functions)}
            names |= {"a hostile SentencePiece model"} if _is_hostile(node) else set()
            for name in names:
                found.setdefault(name, []).append("the graph itself" if place == MAIN else f"the function {place!r}")
    started = {node.op for node in graph.upstream(graph.at_start)} - {"NoOp"}
    for name in started | {f"the asset {name!r}" for name in graph.assets}:
        found.setdefault(name, []).append("what runs when it is loaded")
    return {name: list(dict.fromkeys(places)) for name, places in found.items()}


def _own_functions(graph):
    """The functions that TensorFlow's saver alone calls: those that write the variables' files, and those that read them."""
    name_node, save, restore = (name.split(":")[0] for name in graph.saver)
    callers = {}
    for place, nodes in ((MAIN, graph.nodes.values()), *((name, part.nodes) for name, part in graph.functions.items())):
        for node in nodes:
            for name in node.calls & set(graph.functions):
                callers.setdefault(name, set()).add((place, node.name))
    # Who waits for one of the two would run it.
    awaited = {name for node in graph.nodes.values() for name in node.inputs} | set(graph.at_start)
    awaited |= {info.tensor for signature in graph.signatures.values() for info in signature.outputs.values()}
    awaited = {name.lstrip("^").split(":")[0] for name in awaited}

    def called_by(node):
        if node in awaited or save == restore:
            return set()
        return {name for name, by in callers.items() if by == {(MAIN, node)}}

    reading = called_by(restore)
    if reading:
        # A function's own argument is the one input without a colon: the path that the loader gives.
        prefixes = [
            node.inputs[:1] for name in reading for node in graph.functions[name].nodes if node.op == "RestoreV2"
        ]
        named = graph.nodes.get(name_node)
        given = named and named.op == "Placeholder" and graph.nodes[restore].inputs[:1] == [name_node]
        if not given or any(":" in name for prefix in prefixes for name in prefix):
            reading = set()
    return called_by(save), reading


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
        sidecar: what `read_sealed` gave of `NAME.json`.
        allow_ops: names of operations that are allowed beside those of `LITE_OPS`, a custom one as `CUSTOM:NAME`.

    Returns:
        `LiteFile`.

    Raises:
        ValueError: it is not the file that the sidecar names, or is damaged.
        RefusedOps: it holds an operation that is on no list.
    """
    content = pathlib.Path(path).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sidecar["sha256"]:
        raise ValueError(
            f"{path} is not the file that its sidecar describes: sha256 {found}, expected {sidecar['sha256']}. It is "
            f"damaged or was replaced. Copy it, or {AGAIN}."
        )
    return check_lite_content(path, content, allow_ops)


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
    names = {_lite_name(*operation) for operation in file.operations} - LITE_OPS - set(allow_ops)
    return {name: ["its list of operations"] for name in names} | {name: ["the file"] for name in file.unknown}


def _lite_name(code, custom):
    if code == CUSTOM or custom:
        return f"CUSTOM:{custom}"
    return BUILTINS[code] if 0 <= code < len(BUILTINS) else f"BUILTIN_{code}"
