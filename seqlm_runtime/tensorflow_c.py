"""TensorFlow's C library, as much of it as running a SavedModel takes, and the tensors that go in and out.

TensorFlow's Python is never imported. Only its wheel must lie where Python would find it, for the library inside.
"""

import contextlib
import ctypes
import functools
import glob
import importlib.util
import os
import sys
import threading

import numpy as np

from seqlm_runtime.graph_file import DTYPES

_STRING = 7
_STRING_SIZE = 24  # bytes of one TF_TString
_DISABLE_XLA = "_ZN10tensorflow21DisableXlaCompilationEv"
# RunOptions with inter_op_thread_pool = -1: a request's operations run one after the other in the thread that asks. In the
# pool that all requests share, each of them would stand in line behind the operations of the others.
_CALLERS_THREAD = b"\x18" + b"\xff" * 9 + b"\x01"


class _Buffer(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("length", ctypes.c_size_t), ("deallocator", ctypes.c_void_p)]


class Endpoint(ctypes.Structure):
    _fields_ = [("operation", ctypes.c_void_p), ("index", ctypes.c_int)]


_POINTER, _INT, _TEXT, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t
_POINTERS, _ENDPOINTS = ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(Endpoint)
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
        *(_POINTER, _BUFFER, _ENDPOINTS, _POINTERS, _INT, _ENDPOINTS, _POINTERS, _INT),
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
        self._lock = threading.Lock()
        self._options = ctypes.create_string_buffer(
            _CALLERS_THREAD, len(_CALLERS_THREAD)
        )  # which the next one points to
        self.in_the_callers_thread = _Buffer(ctypes.addressof(self._options), len(_CALLERS_THREAD), None)

    def _find(self, name):
        for part in self._parts:
            if hasattr(part, name):
                return getattr(part, name)
        raise ImportError(f"TensorFlow's C library lacks {name}; this runner was written for TensorFlow 2.21.")

    def prepare(self, xla, text_ops):
        """What a process does once for all models; threads that load one at the same time wait for each other."""
        with self._lock:
            self._switch_xla(xla)
            if text_ops:
                self._load_text_ops()

    def _switch_xla(self, on):
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

    def _load_text_ops(self):
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
        kind = next(number for number, dtype in DTYPES.items() if np.dtype(dtype) == array.dtype)
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
        if kind not in DTYPES:
            raise ValueError(f"An output has TensorFlow's type number {kind}, which this runner does not know.")
        array = np.empty([self.TF_Dim(tensor, axis) for axis in range(self.TF_NumDims(tensor))], DTYPES[kind])
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


_LOADING = threading.Lock()


def load_library():
    """The library, the same for all models of the process."""
    with _LOADING:
        return _load_library()


@functools.cache
def _load_library():
    if sys.platform != "linux":
        raise RuntimeError(
            f"TensorFlow's C library is used on Linux only; this is {sys.platform}. On macOS load the SavedModel with "
            "tf.saved_model.load in a fresh process and look at `read_graph(path).xla(signature)`; on Windows use WSL2."
        )
    return _Library(_package_folder("tensorflow", "tensorflow 2.21"))
