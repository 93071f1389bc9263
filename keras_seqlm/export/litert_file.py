"""A LiteRT file without what the converter leaves in it twice; it computes what it computed.

A converted file repeats the scales of every quantised weight in each signature, bakes the zeros that a loop begins with
in as constants, and, where a table embeds tokens and projects to the vocabulary, quantises it twice: with one scale for
the one use and a scale a row for the other.
"""

import collections
import hashlib

import flatbuffers
import numpy as np

SMALL = 256  # bytes; what is smaller is left as it is
_ALIGNMENT = 16  # of the data of a buffer, as LiteRT's own converter aligns it
# Its fourth version knows of a scale a row; a runtime that does not refuses the file in place of misreading it.
_LOOKUP_WITH_A_SCALE_A_ROW = 4


def compact(content):
    """Write a LiteRT file anew, smaller.

    Equal buffers and equal scales are stored once. A table of integers with one scale, beside which stands the same
    table with a scale a row, is read from there, by `EMBEDDING_LOOKUP`. Constants of zeros are made by `FILL`.

    Args:
        content: the bytes of a .tflite file.

    Returns:
        The bytes of one with the same signatures. Its outputs are the same, but that embeddings have the finer scales.
        A file of over 2 GB, whose data lie behind the FlatBuffer, is handed back as it is.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    if any(buffer.offset for buffer in model.buffers):
        return content
    for graph in model.subgraphs:
        _look_up_in_finer_tables(schema, model, graph)
        _fill_zeros(schema, model, graph)
        _drop_unused_tensors(model, graph)
    _join_buffers(model)
    _drop_unused_buffers(model)
    return _packed(model)


def _data(model, tensor):
    return model.buffers[tensor.buffer].data


def _join_buffers(model):
    """Equal bytes are one buffer; buffer 0 is that of all tensors without data."""
    first = {hashlib.sha256().digest(): 0}
    place = [
        first.setdefault(hashlib.sha256(b"" if buffer.data is None else buffer.data).digest(), i)
        for i, buffer in enumerate(model.buffers)
    ]
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.buffer = place[tensor.buffer]


def _look_up_in_finer_tables(schema, model, graph):
    """`GATHER` and `DEQUANTIZE` of a table that stands there with finer scales become `EMBEDDING_LOOKUP` in that."""
    readers = collections.Counter(i for operator in graph.operators for i in operator.inputs)
    operators = []
    for gather, next_one in zip(graph.operators, [*graph.operators[1:], None], strict=True):
        finer = None
        if _is(schema, model, gather, "GATHER") and next_one and _is(schema, model, next_one, "DEQUANTIZE"):
            follows = list(next_one.inputs) == list(gather.outputs) and readers[gather.outputs[0]] == 1
            finer = _finer_table(schema, model, graph, gather.inputs[0]) if follows else None
        if finer is None:
            operators.append(gather)
            continue
        ids, rows = gather.inputs[1], next_one.outputs[0]
        hidden = int(graph.tensors[finer].shape[1])
        count = int(np.prod(graph.tensors[ids].shape, dtype=np.int64))
        flat_ids = _tensor(schema, graph, schema.TensorType.INT32, [count], b"token_ids")
        flat_rows = _tensor(schema, graph, schema.TensorType.FLOAT32, [count, hidden], b"embeddings")
        operators.append(_reshape(schema, model, graph, ids, flat_ids))
        lookup = _operator(schema, model, "EMBEDDING_LOOKUP", _LOOKUP_WITH_A_SCALE_A_ROW)
        lookup.inputs, lookup.outputs = [flat_ids, finer], [flat_rows]
        operators.append(lookup)
        next_one.opcodeIndex = -1  # its output is made here
        operators.append(_reshape(schema, model, graph, flat_rows, rows))
    graph.operators = [operator for operator in operators if operator.opcodeIndex >= 0]


def _finer_table(schema, model, graph, coarse):
    """The tensor of a graph that holds the numbers of `coarse` with a scale a row, or None."""
    table = graph.tensors[coarse]
    if table.type != schema.TensorType.INT8 or _data(model, table) is None or len(table.quantization.scale) != 1:
        return None
    for i, other in enumerate(graph.tensors):
        same_kind = other.type == table.type and list(other.shape) == list(table.shape) and len(table.shape) == 2
        if not same_kind or _data(model, other) is None or len(other.quantization.scale) != table.shape[0]:
            continue
        numbers, step = _numbers(model, table)
        finer_numbers, finer_step = _numbers(model, other)
        if other.quantization.quantizedDimension == 0 and np.all(
            np.abs(numbers - finer_numbers) <= 0.5001 * (step + finer_step)
        ):
            return i
    return None


def _numbers(model, table):
    """What the integers of a table stand for, (rows, columns), and the step between them, (rows or 1, 1)."""
    integers = np.asarray(_data(model, table)).view(np.int8).reshape(table.shape)
    step = np.asarray(table.quantization.scale)[:, None]
    return integers * step, step


def _fill_zeros(schema, model, graph):
    """Constants of zeros, also those kept in half precision, are made when the graph begins."""
    zeros = {i for i, tensor in enumerate(graph.tensors) if _is_zeros(schema, model, tensor)}
    made, others = [], []
    for operator in graph.operators:
        is_half = _is(schema, model, operator, "DEQUANTIZE") and operator.inputs[0] in zeros
        (made if is_half else others).append(operator)
    targets = [operator.outputs[0] for operator in made]
    targets += [i for i in sorted(zeros) if graph.tensors[i].type == schema.TensorType.FLOAT32]
    graph.operators = [_fill(schema, model, graph, target) for target in targets] + others


def _is_zeros(schema, model, tensor):
    data = _data(model, tensor)
    floats = (schema.TensorType.FLOAT32, schema.TensorType.FLOAT16)
    return tensor.type in floats and data is not None and len(data) >= SMALL and not np.any(data)


def _fill(schema, model, graph, target):
    """The operator that makes the zeros of a tensor."""
    graph.tensors[target].buffer = 0
    zero = _constant(schema, model, graph, np.zeros((), np.float32), schema.TensorType.FLOAT32)
    operator = _operator(schema, model, "FILL")
    operator.inputs = [_shape_constant(schema, model, graph, graph.tensors[target].shape), zero]
    operator.outputs = [target]
    operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.FillOptions, schema.FillOptionsT()
    return operator


def _is(schema, model, operator, name):
    code = model.operatorCodes[operator.opcodeIndex]
    return max(code.builtinCode, code.deprecatedBuiltinCode) == getattr(schema.BuiltinOperator, name)


def _operator(schema, model, name, version=1):
    """A new operator; its code is added to the file where it is missing."""
    wanted = getattr(schema.BuiltinOperator, name)
    operator = schema.OperatorT()
    for i, code in enumerate(model.operatorCodes):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == wanted and code.version >= version:
            operator.opcodeIndex = i
            return operator
    code = schema.OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode, code.version = wanted, min(wanted, 127), version
    operator.opcodeIndex = len(model.operatorCodes)
    model.operatorCodes.append(code)
    return operator


def _reshape(schema, model, graph, source, target):
    operator = _operator(schema, model, "RESHAPE")
    shape = graph.tensors[target].shape
    operator.inputs, operator.outputs = [source, _shape_constant(schema, model, graph, shape)], [target]
    options = schema.ReshapeOptionsT()
    options.newShape = list(shape)
    operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.ReshapeOptions, options
    return operator


def _tensor(schema, graph, kind, shape, name, buffer=0):
    tensor = schema.TensorT()
    tensor.type, tensor.shape, tensor.name, tensor.buffer = kind, list(shape), name, buffer
    tensor.hasRank = True
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _shape_constant(schema, model, graph, shape):
    return _constant(schema, model, graph, np.asarray(shape, np.int32), schema.TensorType.INT32)


def _constant(schema, model, graph, value, kind):
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(value.tobytes(), np.uint8)
    model.buffers.append(buffer)
    return _tensor(schema, graph, kind, value.shape, b"constant", len(model.buffers) - 1)


def _drop_unused_tensors(model, graph):
    used = {*graph.inputs, *graph.outputs}
    for operator in graph.operators:
        used |= {
            *operator.inputs,
            *operator.outputs,
            *(operator.intermediates if operator.intermediates is not None else ()),
        }
    kept = sorted(used - {-1})
    place = {-1: -1, **{old: new for new, old in enumerate(kept)}}
    for holder, names in (
        (graph, ("inputs", "outputs")),
        *((o, ("inputs", "outputs", "intermediates")) for o in graph.operators),
    ):
        for name in names:
            if getattr(holder, name) is not None:
                setattr(holder, name, np.array([place[i] for i in getattr(holder, name)], np.int32))
    index = next(i for i, other in enumerate(model.subgraphs) if other is graph)
    for signature in model.signatureDefs:
        if signature.subgraphIndex == index:
            for entry in (*signature.inputs, *signature.outputs):
                entry.tensorIndex = place[entry.tensorIndex]
    graph.tensors = [graph.tensors[i] for i in kept]


def _drop_unused_buffers(model):
    used = {0, *(tensor.buffer for graph in model.subgraphs for tensor in graph.tensors)}
    used |= {entry.buffer for entry in model.metadata or ()}
    kept = sorted(used)
    place = {old: new for new, old in enumerate(kept)}
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.buffer = place[tensor.buffer]
    for entry in model.metadata or ():
        entry.buffer = place[entry.buffer]
    model.buffers = [model.buffers[i] for i in kept]


class _Buffer:
    """A buffer whose data is written aligned."""

    def __init__(self, data):
        self.data = data

    def Pack(self, builder):
        from ai_edge_litert import schema_py_generated as schema

        if self.data is not None and len(self.data):
            builder.StartVector(1, len(self.data), _ALIGNMENT)
            builder.head -= len(self.data)
            builder.Bytes[builder.head : builder.head + len(self.data)] = self.data.tobytes()
            data = builder.EndVector()
        schema.BufferStart(builder)
        if self.data is not None and len(self.data):
            schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)


class _Once:
    """A part of a file that is written once, however many tensors have an equal one."""

    def __init__(self, part, key, written):
        self.part, self.key, self.written = part, key, written

    def Pack(self, builder):
        if self.key not in self.written:
            self.written[self.key] = self.part.Pack(builder)
        return self.written[self.key]


class _Builder(flatbuffers.Builder):
    """Writes equal names once."""

    def __init__(self, size):
        super().__init__(size)
        self.names = {}

    def CreateString(self, s, encoding="utf-8", errors="strict"):
        if s not in self.names:
            self.names[s] = super().CreateString(s, encoding, errors)
        return self.names[s]


def _packed(model):
    model.buffers = [_Buffer(buffer.data) for buffer in model.buffers]
    written = {}
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.name = tensor.name.split(b";")[0]  # of operations that were fused into one
            part = tensor.quantization
            if part is None or part.scale is None:
                tensor.quantization = None
            else:
                key = (bytes(np.asarray(part.scale)), bytes(np.asarray(part.zeroPoint)), part.quantizedDimension)
                tensor.quantization = _Once(part, key, written)
    builder = _Builder(sum(len(buffer.data) for buffer in model.buffers if buffer.data is not None) + (1 << 20))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
