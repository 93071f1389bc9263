"""Run a SavedModel as the stock TF Serving binary does: through TensorFlow's C library, with XLA switched off."""

import ctypes
import os
import threading
import weakref

import numpy as np

from seqlm_runtime.graph_file import graph_file, read_signatures
from seqlm_runtime.op_gate import SIDECAR, check_saved_model
from seqlm_runtime.row_tasks import task_of
from seqlm_runtime.seals import read_sealed
from seqlm_runtime.tensorflow_c import Endpoint, load_library
from seqlm_runtime.tokenizers.tokenizer import as_bytes
from seqlm_runtime.warm_up import read_defaults, read_warm_up
from seqlm_runtime.wire import Message


class SavedModel:
    """A SavedModel that answers requests.

    Before anything of it is loaded, its files are held to the checksums in `assets.extra/seqlm.json`, and its operations
    to the list of those that our exports hold (`seqlm_runtime.op_gate`). TensorFlow then reads the files again: whoever can
    write to the folder in between can load what he likes.

    XLA is switched off as the stock server does at its start, for the whole process and for good: a Keras or
    TensorFlow program in the same process can no longer compile, so run this in a process of its own.

    Args:
        path: version folder, the one that holds `saved_model.pb`.
        text_ops: whether to load the op libraries of tensorflow-text, as the stock server has them.
        xla: True leaves XLA on, as a server started with `--xla_cpu_compilation_enabled`.
        allow_ops: names of operations that are allowed beside ours, for layers of your own.
        trusted: True loads it unchecked, whatever it does: for what you made yourself and by other means.

    Raises:
        FileNotFoundError: no `saved_model.pb` in the folder, or no `assets.extra/seqlm.json`.
        ValueError: a file of it is missing, too many or was changed.
        RefusedOps: it holds an operation that none of our exports holds; a ValueError.
        ImportError: TensorFlow, tensorflow-text or the XLA switch in its library cannot be found.
        RuntimeError: not on Linux; or the library's own message, when it cannot load the model.

    Example:

        model = SavedModel("saved_models/books/1")
        model.run("generate_text", text=["It was a dark night"])["generated_text"]
    """

    def __init__(self, path, text_ops=True, xla=False, allow_ops=(), trusted=False):
        self.path = os.fspath(path)
        if trusted:
            graph_file(self.path)
        else:
            check_saved_model(self.path, allow_ops)
        self._library = library = load_library()
        library.prepare(xla, text_ops)
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
        meta = Message(content)
        self.signatures, self._defaults = read_signatures(meta), read_defaults(meta)
        self._close = weakref.finalize(self, library.close, self._session, self._graph)
        # At the end of the process the system frees it: a thread that is left may be in the middle of a request.
        self._close.atexit = False
        self._running, self._closed, self._changed = 0, False, threading.Condition()

    def close(self):
        """Free the model, as soon as the requests of other threads are answered. Calling it again does nothing."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._running == 0)
            self._close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def run(self, signature, **inputs):
        """Answer one request. Threads may ask at the same time.

        Args:
            signature: a name in `signatures`.
            **inputs: an array or nested list for each input of the signature; those with a default may be left out.
                Strings are str or bytes. Numbers are converted where no value changes, and floats to a shorter type; one
                number alone, for an input of one axis, is `[number]`: the same for all rows, as our exports read it.

        Returns:
            dict of NumPy arrays, one for each output; strings as object arrays of bytes.

        Raises:
            ValueError: an unknown signature, a missing or unknown input, or one of another type or shape.
            RuntimeError: what the library says, among it that XLA is switched off.
        """
        with self._changed:
            if self._closed:
                raise ValueError(f"{self.path} was closed.")
            self._running += 1
        try:
            return self._run(signature, inputs)
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @property
    def task(self):
        """The `row_tasks.RowTask` of an export of a task that answers rows; without a tokenizer, which is in the graph.

        Raises:
            ValueError: it is an export of a language model.
        """
        return task_of(read_sealed(os.path.join(self.path, SIDECAR)))

    def predict(self, rows, batch_size=32):
        """Answer rows, of an export of a task that does.

        Args:
            rows: a list of texts, of tuples of texts (with a pair; a question and its context), or of dicts of them.
            batch_size: rows of a request.

        Returns:
            A list of dicts, as `seqlm predict` prints them, and `truncated`, whether text was cut off.

        Raises:
            ValueError: it is an export of a language model, or a row lacks a text.
        """
        task, optional = self.task, self.optional_inputs("serving_default")
        rows, answers = [task.row_of(row) for row in rows], []
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            texts = {name: found for name, found in task.texts(part).items() if name not in optional or any(found)}
            found = self.run("serving_default", **texts)
            answers += [
                {**task.from_outputs(found, number, row), "truncated": bool(found["truncated"][number])}
                for number, row in enumerate(part)
            ]
        return answers

    def warm_up(self):
        """Answer the requests that the export left for it, as a server does while it loads the model.

        Returns:
            The number of requests; 0 where there are none.
        """
        requests = read_warm_up(self.path)
        for signature, inputs in requests:
            self.run(signature, **inputs)
        return len(requests)

    def optional_inputs(self, signature):
        """The names of a signature's inputs that may be left out, for they have a default."""
        return set(self._defaults.get(signature, ()))

    def _run(self, signature, inputs):
        if signature not in self.signatures:
            raise ValueError(f"{self.path} has no signature {signature!r}; it has {sorted(self.signatures)}.")
        wanted, gives = self.signatures[signature]
        # All inputs are fed, as a server does it: TensorFlow prepares the graph anew for every other set of them.
        given = {**self._defaults.get(signature, {}), **inputs}
        if set(given) != set(wanted):
            raise ValueError(f"Signature {signature!r} takes the inputs {sorted(wanted)}; got {sorted(inputs)}.")
        arrays = {name: _checked(name, value, wanted[name]) for name, value in given.items()}
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
                    library.in_the_callers_thread,
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
            endpoints.append(Endpoint(self._library.TF_GraphOperationByName(self._graph, name.encode()), int(index)))
        return (Endpoint * len(endpoints))(*endpoints)


def _checked(name, value, info):
    if info.dtype is None:
        raise ValueError(f"Input {name!r} has a type that this runner does not know.")
    array = _strings(name, value) if info.dtype is object else _numbers(name, value, np.dtype(info.dtype))
    wanted = info.shape
    if wanted is not None and len(wanted) == 1 and array.ndim == 0 and info.dtype is not object:
        array = array.reshape(1)
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
        flat.append(as_bytes(item))
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
