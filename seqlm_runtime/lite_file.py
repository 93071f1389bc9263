"""What stands in a .tflite file: its operations, tensors and signatures, read from its bytes without LiteRT.

The format is FlatBuffers: https://flatbuffers.dev/internals, with the tables of LiteRT's `schema.fbs`. Every offset is
checked before it is followed.
"""

import struct
from typing import NamedTuple

import numpy as np

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
_MOST = 1_000_000  # entries of one list


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
    `signatures`: name -> LiteSignature; `unknown`: what the file has that no export of ours writes."""

    operations: list
    graphs: list
    signatures: dict
    unknown: list


def parse_lite_file(content):
    """Read a .tflite file.

    Raises:
        ValueError: it is cut, damaged, or none.
    """
    content = memoryview(content)
    if bytes(content[4:8]) != IDENTIFIER:
        raise ValueError("it is no .tflite file: it does not begin as one")
    try:
        return _file(_Table(content, _offset(content, 0)))
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"it is a damaged .tflite file: {error}") from error


def _file(model):
    operations = []
    for code in model.tables(1):
        # Older files have the first field alone, which ends at 127.
        number = max(code.number(3, "<i"), code.number(0, "<b"))
        operations.append((number, code.text(1)))
    buffers = [buffer.bytes(0) for buffer in model.tables(4)]
    graphs = [[_tensor(tensor, buffers) for tensor in graph.tables(0)] for graph in model.tables(2)]
    unknown = [name for field, name in ((8, "external buffer groups"), (9, "external buffers")) if model.has(field)]
    unknown += [f"field {field}" for field in range(10, model.count) if model.has(field)]
    unknown += ["a buffer outside of its table"] * any(
        buffer.number(1, "<Q") or buffer.number(2, "<Q") for buffer in model.tables(4)
    )
    signatures = {}
    for signature in model.tables(7):
        name, graph = signature.text(2), signature.number(4, "<I")
        if name in signatures:
            raise ValueError(f"two signatures are called {name!r}")
        if graph >= len(graphs):
            raise ValueError(f"the signature {name!r} is of a graph that is not there")
        sides = [_named(signature.tables(side), graphs[graph]) for side in (0, 1)]
        signatures[name] = LiteSignature(*sides)
    return LiteFile(operations, graphs, signatures, unknown)


def _tensor(table, buffers):
    number, code = table.number(2, "<I"), table.number(1, "<b")
    if number >= len(buffers):
        raise ValueError("a tensor is in a buffer that is not there")
    shape = tuple(int(size) for size in table.numbers(0, "<i4"))
    quantization = table.table(4)
    scales = quantization.numbers(2, "<f4") if quantization else np.zeros(0, "float32")
    return LiteTensor(table.text(3), TYPES.get(code), code, shape, buffers[number], scales)


def _named(maps, tensors):
    found = {}
    for entry in maps:
        name, index = entry.text(0), entry.number(1, "<I")
        if name in found or index >= len(tensors):
            raise ValueError(f"a signature has {name!r} twice, or of a tensor that is not there")
        found[name] = tensors[index]
    return found


def _offset(content, at, layout="<I"):
    if at < 0 or at + struct.calcsize(layout) > len(content):
        raise ValueError("an offset leads out of the file")
    return struct.unpack_from(layout, content, at)[0]


class _Table:
    """A table at a place of the file; fields are numbered as in the schema."""

    def __init__(self, content, at):
        self.content, self.at = content, at
        self._fields = at - _offset(content, at, "<i")
        size = _offset(content, self._fields, "<H")
        self.count = max(0, (size - 4) // 2)

    def has(self, field):
        return bool(self._place(field))

    def _place(self, field):
        if field >= self.count:
            return 0
        distance = _offset(self.content, self._fields + 4 + 2 * field, "<H")
        return self.at + distance if distance else 0

    def number(self, field, layout):
        place = self._place(field)
        return _offset(self.content, place, layout) if place else 0

    def _list(self, field, size):
        """Where the entries of a list begin, and how many there are."""
        place = self._place(field)
        if not place:
            return 0, 0
        start = place + _offset(self.content, place)
        count = _offset(self.content, start)
        if start + 4 + count * size > len(self.content):
            raise ValueError("a list leads out of the file")
        return start + 4, count

    def bytes(self, field):
        start, count = self._list(field, 1)
        return self.content[start : start + count]

    def text(self, field):
        return bytes(self.bytes(field)).decode()

    def numbers(self, field, dtype):
        start, count = self._list(field, np.dtype(dtype).itemsize)
        return np.frombuffer(self.content, dtype, count, start)

    def table(self, field):
        place = self._place(field)
        return _Table(self.content, place + _offset(self.content, place)) if place else None

    def tables(self, field):
        start, count = self._list(field, 4)
        if count > _MOST:
            raise ValueError(f"a list has {count} entries")
        places = range(start, start + 4 * count, 4)
        return [_Table(self.content, place + _offset(self.content, place)) for place in places]
