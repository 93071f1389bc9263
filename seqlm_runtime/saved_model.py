"""Run a SavedModel as the stock TF Serving binary does: through TensorFlow's C library, with XLA switched off.

TensorFlow's Python is never imported. Only its wheel must lie where Python would find it, for the library inside.
"""

import contextlib
import ctypes
import functools
import glob
import importlib.util
import os
import sys
import weakref
from typing import NamedTuple

import numpy as np

_DTYPES = {
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
_STRING = 7
_STRING_SIZE = 24  # bytes of one TF_TString
_DISABLE_XLA = "_ZN10tensorflow21DisableXlaCompilationEv"
_XLA_MARK = "_XlaMustCompile"
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
        return sorted(name for name in self.signatures[signature] if name.startswith("Xla") or name == _XLA_MARK)


class SavedModel:
    """A SavedModel that answers requests.

    XLA is switched off as the stock server does at its start, for the whole process and for good: a Keras or
    TensorFlow program in the same process can no longer compile, so run this in a process of its own.

    Args:
        path: version folder, the one that holds `saved_model.pb`.
        text_ops: whether to load the op libraries of tensorflow-text, as the stock server has them.
        xla: True leaves XLA on, as a server started with `--xla_cpu_compilation_enabled`.

    Raises:
        FileNotFoundError: no `saved_model.pb` in the folder.
        ImportError: TensorFlow, tensorflow-text or the XLA switch in its library cannot be found.
        RuntimeError: not on Linux; or the library's own message, when it cannot load the model.

    Example:

        model = SavedModel("saved_models/books/1")
        model.run("generate_text", text=["It was a dark night"])["generated_text"]
    """

    def __init__(self, path, text_ops=True, xla=False):
        self.path = os.fspath(path)
        _graph_file(self.path)
        self._library = library = _load_library()
        library.switch_xla(xla)
        if text_ops:
            library.load_text_ops()
        self._graph = library.TF_NewGraph()
        options, meta = library.TF_NewSessionOptions(), library.TF_NewBuffer()
        tags = (ctypes.c_char_p * 1)(b"serve")
        try:
            with library.status(f"loading {self.path}") as status:
                self._session = library.TF_LoadSessionFromSavedModel(
                    options, None, self.path.encode(), tags, 1, self._graph, meta, status
                )
            content = ctypes.string_at(meta.contents.data, meta.contents.length)
        except RuntimeError:
            library.TF_DeleteGraph(self._graph)
            raise
        finally:
            library.TF_DeleteBuffer(meta)
            library.TF_DeleteSessionOptions(options)
        self.signatures = _signatures(content)
        self._close = weakref.finalize(self, library.close, self._session, self._graph)

    def close(self):
        """Free the model. Calling it again does nothing."""
        self._close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def run(self, signature, **inputs):
        """Answer one request.

        Args:
            signature: a name in `signatures`.
            **inputs: an array or nested list for each input of the signature. Strings are str or bytes. Numbers are
                converted where no value changes, and floats to a shorter float type.

        Returns:
            dict of NumPy arrays, one for each output; strings as object arrays of bytes.

        Raises:
            ValueError: an unknown signature, a missing or unknown input, or one of another type or shape.
            RuntimeError: what the library says, among it that XLA is switched off.
        """
        if not self._close.alive:
            raise ValueError(f"{self.path} was closed.")
        if signature not in self.signatures:
            raise ValueError(f"{self.path} has no signature {signature!r}; it has {sorted(self.signatures)}.")
        wanted, gives = self.signatures[signature]
        if set(inputs) != set(wanted):
            raise ValueError(f"Signature {signature!r} takes the inputs {sorted(wanted)}; got {sorted(inputs)}.")
        arrays = {name: _checked(name, value, wanted[name]) for name, value in inputs.items()}
        library = self._library
        results = (ctypes.c_void_p * len(gives))()
        tensors = []
        try:
            for array in arrays.values():
                tensors.append(library.new_tensor(array))
            sources = self._endpoints([wanted[name] for name in arrays])
            targets = self._endpoints(gives.values())
            feeds = (ctypes.c_void_p * len(tensors))(*tensors)
            with library.status(f"running signature {signature!r} of {self.path}") as status:
                library.TF_SessionRun(
                    self._session,
                    None,
                    *(sources, feeds, len(tensors)),
                    *(targets, results, len(gives)),
                    *(None, 0, None, status),
                )
            return {name: library.read_tensor(result) for name, result in zip(gives, results, strict=True)}
        finally:
            for tensor in filter(None, [*results, *tensors]):
                library.TF_DeleteTensor(tensor)  # frees the strings in it too

    def _endpoints(self, infos):
        endpoints = []
        for info in infos:
            name, index = info.tensor.rsplit(":", 1)
            endpoints.append(_Endpoint(self._library.TF_GraphOperationByName(self._graph, name.encode()), int(index)))
        return (_Endpoint * len(endpoints))(*endpoints)


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
    with open(_graph_file(path), "rb") as stream:
        content = stream.read()
    try:
        meta = next(value for field, value in _fields(content) if field == 2)
        graph = next(value for field, value in _fields(meta) if field == 2)
        nodes = [_Node(value) for field, value in _fields(graph) if field == 1]
        functions = {}
        for library in (value for field, value in _fields(graph) if field == 2):
            functions |= dict(_function(value) for field, value in _fields(library) if field == 1)
        signatures = _signatures(meta)
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


# --- protocol buffers: as much of the wire format as the graph and its signatures need


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


def _signatures(meta):
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
    return TensorInfo(_text(values[1]), _DTYPES.get(values.get(2, 0)), sizes)


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
                elif key == _XLA_MARK and field == 5 and value:
                    self.ops.add(_XLA_MARK)


def _function(message):
    """A function's name, and its ops with the functions that it may call."""
    values = list(_fields(message))
    name = next(_text(dict(_fields(value))[1]) for field, value in values if field == 1)
    nodes = [_Node(value) for field, value in values if field == 3]
    ops = {op for node in nodes for op in node.ops}
    if any(key == _XLA_MARK and dict(_fields(value)).get(5) for key, value in _map(message, 5)):
        ops.add(_XLA_MARK)
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


def _graph_file(path):
    file = os.path.join(path, "saved_model.pb")
    if not os.path.isfile(file):
        raise FileNotFoundError(f"No SavedModel in {path}: expected {file}. Give the version folder, as NAME/1.")
    return file


# --- requests


def _checked(name, value, info):
    if info.dtype is None:
        raise ValueError(f"Input {name!r} has a type that this runner does not know.")
    array = _strings(name, value) if info.dtype is object else _numbers(name, value, np.dtype(info.dtype))
    wanted = info.shape
    if wanted is not None and (
        len(wanted) != array.ndim
        or any(size not in (None, given) for size, given in zip(wanted, array.shape, strict=True))
    ):
        raise ValueError(f"Input {name!r} must have the shape {wanted}, None being any size; got {array.shape}.")
    return array


def _strings(name, value):
    array = np.array(value, dtype=object)
    flat = []
    for item in array.ravel():
        if not isinstance(item, str | bytes):
            raise ValueError(f"Input {name!r} takes strings, str or bytes; got {item!r}.")
        flat.append(item.encode() if isinstance(item, str) else bytes(item))
    array.flat = flat
    return array


def _numbers(name, value, dtype):
    array = np.asarray(value)
    if array.size == 0 or array.dtype == dtype:
        return np.ascontiguousarray(array, dtype).reshape(array.shape)
    if array.dtype.kind not in "biuf" or (array.dtype.kind == "f" and dtype.kind != "f"):
        raise ValueError(f"Input {name!r} takes {dtype}; got {array.dtype}, which does not convert without loss.")
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(array, dtype).reshape(array.shape)
    if array.dtype.kind != "f" and not np.array_equal(converted, array):
        raise ValueError(f"Input {name!r} takes {dtype}; got numbers that it cannot hold.")
    return converted


# --- TensorFlow's C library


class _Buffer(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("length", ctypes.c_size_t), ("deallocator", ctypes.c_void_p)]


class _Endpoint(ctypes.Structure):
    _fields_ = [("operation", ctypes.c_void_p), ("index", ctypes.c_int)]


_POINTER, _INT, _TEXT, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t
_POINTERS, _ENDPOINTS = ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(_Endpoint)
_TAGS, _BUFFER, _SIZES = ctypes.POINTER(ctypes.c_char_p), ctypes.POINTER(_Buffer), ctypes.POINTER(ctypes.c_int64)

# name: (result, arguments...), from tensorflow/c/c_api.h, tf_status.h, tf_tensor.h and tf_tstring.h
_PROTOTYPES = {
    "TF_Version": (_TEXT,),
    "TF_NewStatus": (_POINTER,),
    "TF_GetCode": (_INT, _POINTER),
    "TF_Message": (_TEXT, _POINTER),
    "TF_DeleteStatus": (None, _POINTER),
    "TF_NewBuffer": (_BUFFER,),
    "TF_DeleteBuffer": (None, _BUFFER),
    "TF_NewGraph": (_POINTER,),
    "TF_DeleteGraph": (None, _POINTER),
    "TF_GraphOperationByName": (_POINTER, _POINTER, _TEXT),
    "TF_NewSessionOptions": (_POINTER,),
    "TF_DeleteSessionOptions": (None, _POINTER),
    "TF_LoadLibrary": (_POINTER, _TEXT, _POINTER),
    "TF_DeleteLibraryHandle": (None, _POINTER),
    "TF_LoadSessionFromSavedModel": (_POINTER, *(_POINTER, _POINTER, _TEXT, _TAGS, _INT, _POINTER, _BUFFER, _POINTER)),
    "TF_SessionRun": (
        None,
        *(_POINTER, _POINTER, _ENDPOINTS, _POINTERS, _INT, _ENDPOINTS, _POINTERS, _INT),
        *(_POINTER, _INT, _POINTER, _POINTER),
    ),
    "TF_CloseSession": (None, _POINTER, _POINTER),
    "TF_DeleteSession": (None, _POINTER, _POINTER),
    "TF_AllocateTensor": (_POINTER, _INT, _SIZES, _INT, _SIZE),
    "TF_DeleteTensor": (None, _POINTER),
    "TF_TensorData": (_POINTER, _POINTER),
    "TF_TensorType": (_INT, _POINTER),
    "TF_NumDims": (_INT, _POINTER),
    "TF_Dim": (ctypes.c_int64, _POINTER, _INT),
    "TF_StringInit": (None, _POINTER),
    "TF_StringCopy": (None, _POINTER, _TEXT, _SIZE),
    "TF_StringGetDataPointer": (_POINTER, _POINTER),
    "TF_StringGetSize": (_SIZE, _POINTER),
}


class _Library:
    """The functions of TensorFlow's C library, and tensors made and read with them."""

    def __init__(self, folder):
        # Quiet unless the user asked: each load writes a page of device messages.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        names = ("libtensorflow_framework.so.2", "libtensorflow_cc.so.2")
        try:
            self._parts = [ctypes.CDLL(os.path.join(folder, name)) for name in names]
        except OSError as error:
            raise ImportError(f"The TensorFlow in {folder} has no C library that loads: {error}.") from error
        for name, (result, *arguments) in _PROTOTYPES.items():
            function = self._find(name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        self._xla_is_off = self._has_text_ops = False

    def _find(self, name):
        for part in self._parts:
            if hasattr(part, name):
                return getattr(part, name)
        raise ImportError(f"TensorFlow's C library lacks {name}; this runner was written for TensorFlow 2.21.")

    def switch_xla(self, on):
        if on and self._xla_is_off:
            raise RuntimeError("An earlier SavedModel of this process switched XLA off for good; start a new process.")
        if on or self._xla_is_off:
            return
        try:
            disable = self._find(_DISABLE_XLA)
        except ImportError as error:
            raise ImportError(
                f"TensorFlow {self.TF_Version().decode()} has no switch for XLA ({_DISABLE_XLA}), so it cannot stand in "
                "for the stock server. Install TensorFlow 2.21, or give xla=True to run with XLA."
            ) from error
        disable.restype, disable.argtypes = None, []
        disable()
        self._xla_is_off = True

    def load_text_ops(self):
        if self._has_text_ops:
            return
        folder = _package_folder("tensorflow_text", "tensorflow-text; or give text_ops=False")
        for file in sorted(glob.glob(os.path.join(glob.escape(folder), "python", "ops", "_*.so"))):
            with self.status(f"loading {file}") as status:
                handle = self.TF_LoadLibrary(file.encode(), status)
            self.TF_DeleteLibraryHandle(handle)  # the handle alone: the ops stay registered
        self._has_text_ops = True

    @contextlib.contextmanager
    def status(self, doing):
        status = self.TF_NewStatus()
        try:
            yield status
            if self.TF_GetCode(status):
                raise RuntimeError(f"TensorFlow failed in {doing}: {self.TF_Message(status).decode(errors='replace')}")
        finally:
            self.TF_DeleteStatus(status)

    def new_tensor(self, array):
        kind = next(number for number, dtype in _DTYPES.items() if np.dtype(dtype) == array.dtype)
        size = array.size * _STRING_SIZE if kind == _STRING else array.nbytes
        tensor = self.TF_AllocateTensor(kind, (ctypes.c_int64 * array.ndim)(*array.shape), array.ndim, size)
        if kind == _STRING:
            for address, text in zip(self._addresses(tensor, array.size), array.ravel(), strict=True):
                self.TF_StringInit(address)
                self.TF_StringCopy(address, text, len(text))
        elif size:
            ctypes.memmove(self.TF_TensorData(tensor), array.ctypes.data, size)
        return tensor

    def read_tensor(self, tensor):
        kind = self.TF_TensorType(tensor)
        if kind not in _DTYPES:
            raise ValueError(f"An output has TensorFlow's type number {kind}, which this runner does not know.")
        array = np.empty([self.TF_Dim(tensor, axis) for axis in range(self.TF_NumDims(tensor))], _DTYPES[kind])
        if kind == _STRING:
            array.flat = [
                ctypes.string_at(self.TF_StringGetDataPointer(address), self.TF_StringGetSize(address))
                for address in self._addresses(tensor, array.size)
            ]
        elif array.size:
            ctypes.memmove(array.ctypes.data, self.TF_TensorData(tensor), array.nbytes)
        return array

    def _addresses(self, tensor, count):
        start = self.TF_TensorData(tensor) if count else 0
        return range(start, start + count * _STRING_SIZE, _STRING_SIZE)

    def close(self, session, graph):
        with self.status("closing") as status:
            self.TF_CloseSession(session, status)
        with self.status("freeing") as status:
            self.TF_DeleteSession(session, status)
        self.TF_DeleteGraph(graph)


def _package_folder(package, install):
    spec = importlib.util.find_spec(package)  # finds the folder and imports nothing
    if spec is None or spec.origin is None:
        raise ImportError(
            f"The C library of TensorFlow runs the SavedModel, but {package} is missing: install {install}."
        )
    return os.path.dirname(spec.origin)


@functools.cache
def _load_library():
    if sys.platform != "linux":
        raise RuntimeError(
            f"TensorFlow's C library is used on Linux only; this is {sys.platform}. On macOS load the SavedModel with "
            "tf.saved_model.load in a fresh process and look at `operations(path)` for XLA; on Windows use WSL2."
        )
    return _Library(_package_folder("tensorflow", "tensorflow 2.21"))
