"""What stands in a .tflite file: its operations, tensors and signatures, read from its bytes without LiteRT.

The format is FlatBuffers: https://flatbuffers.dev/internals, with the tables of LiteRT's `schema.fbs`.
"""

from typing import NamedTuple

import numpy as np

from seqlm_runtime.lite_fields import OPTIONS, Tables

IDENTIFIER = b"TFL3"
# The operations of the format by their codes.
BUILTINS = tuple(
    """
    ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE EMBEDDING_LOOKUP FLOOR
    FULLY_CONNECTED HASHTABLE_LOOKUP L2_NORMALIZATION L2_POOL_2D LOCAL_RESPONSE_NORMALIZATION LOGISTIC
    LSH_PROJECTION LSTM MAX_POOL_2D MUL RELU RELU_N1_TO_1 RELU6 RESHAPE RESIZE_BILINEAR RNN SOFTMAX
    SPACE_TO_DEPTH SVDF TANH CONCAT_EMBEDDINGS SKIP_GRAM CALL CUSTOM EMBEDDING_LOOKUP_SPARSE PAD
    UNIDIRECTIONAL_SEQUENCE_RNN GATHER BATCH_TO_SPACE_ND SPACE_TO_BATCH_ND TRANSPOSE MEAN SUB DIV SQUEEZE
    UNIDIRECTIONAL_SEQUENCE_LSTM STRIDED_SLICE BIDIRECTIONAL_SEQUENCE_RNN EXP TOPK_V2 SPLIT LOG_SOFTMAX DELEGATE
    BIDIRECTIONAL_SEQUENCE_LSTM CAST PRELU MAXIMUM ARG_MAX MINIMUM LESS NEG PADV2 GREATER GREATER_EQUAL
    LESS_EQUAL SELECT SLICE SIN TRANSPOSE_CONV SPARSE_TO_DENSE TILE EXPAND_DIMS EQUAL NOT_EQUAL LOG SUM SQRT
    RSQRT SHAPE POW ARG_MIN FAKE_QUANT REDUCE_PROD REDUCE_MAX PACK LOGICAL_OR ONE_HOT LOGICAL_AND LOGICAL_NOT
    UNPACK REDUCE_MIN FLOOR_DIV REDUCE_ANY SQUARE ZEROS_LIKE FILL FLOOR_MOD RANGE RESIZE_NEAREST_NEIGHBOR
    LEAKY_RELU SQUARED_DIFFERENCE MIRROR_PAD ABS SPLIT_V UNIQUE CEIL REVERSE_V2 ADD_N GATHER_ND COS WHERE RANK
    ELU REVERSE_SEQUENCE MATRIX_DIAG QUANTIZE MATRIX_SET_DIAG ROUND HARD_SWISH IF WHILE NON_MAX_SUPPRESSION_V4
    NON_MAX_SUPPRESSION_V5 SCATTER_ND SELECT_V2 DENSIFY SEGMENT_SUM BATCH_MATMUL
    PLACEHOLDER_FOR_GREATER_OP_CODES CUMSUM CALL_ONCE BROADCAST_TO RFFT2D CONV_3D IMAG REAL COMPLEX_ABS
    HASHTABLE HASHTABLE_FIND HASHTABLE_IMPORT HASHTABLE_SIZE REDUCE_ALL CONV_3D_TRANSPOSE VAR_HANDLE
    READ_VARIABLE ASSIGN_VARIABLE BROADCAST_ARGS RANDOM_STANDARD_NORMAL BUCKETIZE RANDOM_UNIFORM MULTINOMIAL
    GELU DYNAMIC_UPDATE_SLICE RELU_0_TO_1 UNSORTED_SEGMENT_PROD UNSORTED_SEGMENT_MAX UNSORTED_SEGMENT_SUM ATAN2
    UNSORTED_SEGMENT_MIN SIGN BITCAST BITWISE_XOR RIGHT_SHIFT STABLEHLO_LOGISTIC STABLEHLO_ADD STABLEHLO_DIVIDE
    STABLEHLO_MULTIPLY STABLEHLO_MAXIMUM STABLEHLO_RESHAPE STABLEHLO_CLAMP STABLEHLO_CONCATENATE
    STABLEHLO_BROADCAST_IN_DIM STABLEHLO_CONVOLUTION STABLEHLO_SLICE STABLEHLO_CUSTOM_CALL STABLEHLO_REDUCE
    STABLEHLO_ABS STABLEHLO_AND STABLEHLO_COSINE STABLEHLO_EXPONENTIAL STABLEHLO_FLOOR STABLEHLO_LOG
    STABLEHLO_MINIMUM STABLEHLO_NEGATE STABLEHLO_OR STABLEHLO_POWER STABLEHLO_REMAINDER STABLEHLO_RSQRT
    STABLEHLO_SELECT STABLEHLO_SUBTRACT STABLEHLO_TANH STABLEHLO_SCATTER STABLEHLO_COMPARE STABLEHLO_CONVERT
    STABLEHLO_DYNAMIC_SLICE STABLEHLO_DYNAMIC_UPDATE_SLICE STABLEHLO_PAD STABLEHLO_IOTA STABLEHLO_DOT_GENERAL
    STABLEHLO_REDUCE_WINDOW STABLEHLO_SORT STABLEHLO_WHILE STABLEHLO_GATHER STABLEHLO_TRANSPOSE DILATE
    STABLEHLO_RNG_BIT_GENERATOR REDUCE_WINDOW STABLEHLO_COMPOSITE STABLEHLO_SHIFT_LEFT STABLEHLO_CBRT
    STABLEHLO_CASE
    """.split()
)
CUSTOM = 32  # the code of an operation that has a name in place of a number
TYPES = {
    0: np.float32,
    1: np.float16,
    2: np.int32,
    3: np.uint8,
    4: np.int64,
    5: object,
    6: np.bool_,
    7: np.int16,
    9: np.int8,
    10: np.float64,
    12: np.uint64,
    15: np.uint32,
    16: np.uint16,
}
# Of the converter: two for tools, and that float16 is precise enough. LiteRT acts on others.
METADATA = ("min_runtime_version", "CONVERSION_METADATA", "reduced_precision_support")
_LEFT_OUT = -1  # in the place of an input


class LiteTensor(NamedTuple):
    """A tensor: `dtype` is a NumPy type, or None for one that NumPy lacks; `content` holds a constant's bytes."""

    name: str
    dtype: object
    type_code: int
    shape: tuple
    content: memoryview
    scales: np.ndarray

    def values(self):
        """A constant's numbers, flat."""
        return np.frombuffer(self.content, self.dtype)


class LiteSignature(NamedTuple):
    """What a signature takes and gives: dicts of name -> LiteTensor."""

    inputs: dict
    outputs: dict


class LiteFile(NamedTuple):
    """`operations`: list of (builtin code, name of a custom one); `graphs`: the tensors of each subgraph;
    `signatures`: name -> LiteSignature; `unknown`: what the file has that no export of ours writes; `content`: its bytes."""

    operations: list
    graphs: list
    signatures: dict
    unknown: list
    content: bytes


def parse_lite_file(content):
    """Read a .tflite file.

    Raises:
        ValueError: it is cut, damaged, or none.
    """
    if bytes(content[4:8]) != IDENTIFIER:
        raise ValueError("it is no .tflite file: it does not begin as one")
    tables = Tables(content)
    try:
        return _file(tables, tables.root(), content)
    except ValueError as error:
        raise ValueError(f"it is a damaged .tflite file: {error}") from error


def operation_name(code, custom):
    """The name of an operation, "CUSTOM:NAME" of one that is none of LiteRT's."""
    if code == CUSTOM or custom:
        return f"CUSTOM:{custom}"
    return BUILTINS[code] if 0 <= code < len(BUILTINS) else f"BUILTIN_{code}"


def _file(tables, model, content):
    # Older files have the first field alone, which ends at 127.
    operations = [(max(code.get(3, 0), code.get(0, 0)), code.get(1, "")) for code in model.get(1, ())]
    buffers = [buffer.get(0, memoryview(b"")) for buffer in model.get(4, ())]
    subgraphs = model.get(2, ())
    graphs = [[_tensor(tensor, buffers) for tensor in graph.get(0, ())] for graph in subgraphs]
    unknown, run = set(), set()
    for number, graph in enumerate(subgraphs):
        unknown |= _check_graph(tables, graph, graphs[number], [operation_name(*code) for code in operations])
        run |= _called(tables, graph, number, operations, len(graphs))
    signatures = {}
    for signature in model.get(7, ()):
        name, number = signature.get(2, ""), signature.get(4, 0)
        if name in signatures or number in run:
            raise ValueError(f"two signatures are called {name!r}, or it runs what another one does")
        if number >= len(graphs):
            raise ValueError(f"the signature {name!r} is of a graph that is not there")
        run.add(number)
        sides = [
            _named(signature.get(side, ()), subgraphs[number].get(1 + side, ()), graphs[number]) for side in (0, 1)
        ]
        signatures[name] = LiteSignature(*sides)
    unknown |= {f"the metadata {entry.get(0)!r}" for entry in model.get(6, ()) if entry.get(0) not in METADATA}
    if len(run) < len(graphs):
        unknown.add("a graph that no signature runs")
    return LiteFile(operations, graphs, signatures, sorted(unknown | tables.strange), content)


def _check_graph(tables, graph, tensors, names):
    """Raise ValueError where an operation reads what nothing has written; return what it has that no export of ours has."""
    unknown = set()
    inputs = [int(number) for number in graph.get(1, ())]
    written = {number for number, tensor in enumerate(tensors) if len(tensor.content) or 0 in tensor.shape}
    if not written.isdisjoint(inputs) or not set(inputs) <= set(range(len(tensors))):
        raise ValueError("a graph's input is a constant, or not there")
    written.update(inputs)
    for operator in graph.get(3, ()):
        number = operator.get(0, 0)
        if number >= len(names):
            raise ValueError("an operation is not there")
        reads, gives = ([int(i) for i in operator.get(side, ())] for side in (1, 2))
        if not set(reads) <= written | {_LEFT_OUT} or not set(gives) <= set(range(len(tensors))) - written:
            raise ValueError(f"{names[number]} reads what nothing has written, or writes what has been")
        written.update(gives)
        if names[number] in OPTIONS:
            kind, fields = OPTIONS[names[number]]
            if operator.get(3, 0) not in (0, kind) or 5 in operator or (4 in operator) != (operator.get(3, 0) > 0):
                unknown.add(f"options of {names[number]}")
            elif 4 in operator:
                tables.table(operator[4], f"the options of {names[number]}", fields)
    if not {int(number) for number in graph.get(2, ())} <= written:
        raise ValueError("a graph gives what nothing has written")
    return unknown


def _called(tables, graph, number, operations, count):
    """The graphs that the loops of a graph run, which come after it, so that none runs itself."""
    found = set()
    for operator in graph.get(3, ()):
        if operation_name(*operations[operator.get(0, 0)]) == "WHILE" and 4 in operator:
            options = tables.table(operator[4], "the options of WHILE", OPTIONS["WHILE"][1])
            found |= {options.get(0, 0), options.get(1, 0)}
    if not all(number < called < count for called in found):
        raise ValueError("a loop runs a graph that is not there, or itself")
    return found


def _tensor(table, buffers):
    number, code = table.get(2, 0), table.get(1, 0)
    if number >= len(buffers):
        raise ValueError("a tensor is in a buffer that is not there")
    shape = tuple(int(size) for size in table.get(0, ()))
    scales = table.get(4, {}).get(2, np.zeros(0, "float32"))
    return LiteTensor(table.get(3, ""), TYPES.get(code), code, shape, buffers[number], scales)


def _named(maps, places, tensors):
    """One side of a signature: every input, or output, of its graph by a name."""
    numbers = [entry.get(1, 0) for entry in maps]
    found = {
        entry.get(0, ""): tensors[number] for entry, number in zip(maps, numbers, strict=True) if number < len(tensors)
    }
    if len(found) < len(numbers) or sorted(numbers) != sorted(int(place) for place in places):
        raise ValueError(f"a signature has other tensors than its graph, or one twice: {sorted(found)}")
    return found
