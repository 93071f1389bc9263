"""Run an exported .tflite file of a task, as a phone does: texts in, answers out, on ai-edge-litert and NumPy."""

import pathlib
import threading

import numpy as np

from seqlm_runtime.litert import FORMAT, read_tokenizer, signature_runners
from seqlm_runtime.op_gate import check_lite_file
from seqlm_runtime.row_tasks import task_of
from seqlm_runtime.seals import read_sealed

_TENSORS = ("token_ids", "lengths", "token_types")


class LiteRTTask:
    """A task in a .tflite file that answers rows of texts.

    Beside `NAME.tflite` lie `NAME.json`, which says what the file takes, and the folder `NAME.tokenizer`. All three are
    held to the checksums in the sidecar before anything is loaded, and the file's operations to the list of those that our
    exports hold (`seqlm_runtime.op_gate`). Threads may use one object at the same time.

    Args:
        path: the .tflite file.
        num_threads: threads for one run; None leaves the choice to LiteRT.
        allow_ops: names of operations that are allowed beside ours, for layers of your own.

    Raises:
        FileNotFoundError: one of the three is missing.
        ValueError: they do not belong together, one was changed, or the sidecar is damaged or of a language model.
        RefusedOps: it holds an operation that none of our exports holds; a ValueError.
        ImportError: ai-edge-litert is not installed.

    Attributes:
        sidecar: what `NAME.json` says. tokenizer: its. task: the `row_tasks.RowTask`. lengths: of the rows that its
            signatures read.

    Example:

        model = LiteRTTask("saved_models/intents.tflite")
        model.predict(["Where is my card?"])[0]["label"]
    """

    def __init__(self, path, num_threads=None, allow_ops=()):
        path = pathlib.Path(path)
        self.path = str(path)
        if not path.is_file():
            raise FileNotFoundError(f"No LiteRT model at {path}.")
        self.sidecar = read_task_sidecar(path)
        self.file = check_lite_file(path, self.sidecar, allow_ops)
        self.tokenizer = read_tokenizer(path, self.sidecar)
        self.task = task_of(self.sidecar, self.tokenizer)
        self._names = {signature.inputs["token_ids"].shape[1]: name for name, signature in self.file.signatures.items()}
        self.lengths = sorted(self._names)
        if self.lengths[-1] < self.task.room:
            raise ValueError(f"{path}: its rows have up to {self.task.room} ids, and it reads {self.lengths[-1]}.")
        self._runners = signature_runners(self.file, num_threads)
        self._one_call = threading.Lock()  # the signatures share the memory of one interpreter

    def predict(self, rows):
        """Answer rows.

        Args:
            rows: a list of texts, of tuples of texts (with a pair; a question and its context), or of dicts of them.

        Returns:
            A list of dicts, as `seqlm predict` prints them, and `truncated`, whether text was cut off.

        Raises:
            ValueError: a row lacks a text.
        """
        answers = []
        for row in rows:
            read = self.task.read(self.task.row_of(row))
            answer = self.task.answer(read, [self.run(inputs) for inputs in read.inputs])
            answers.append({**answer, "truncated": bool(read.truncated)})
        return answers

    def run(self, inputs, length=None):
        """The model's numbers for one row, without the axis of the batch.

        Args:
            inputs: dict of `token_ids` and, where the model reads them, `token_types`, int32 (time,).
            length: of the signature; None for the shortest that holds them.

        Raises:
            ValueError: an id outside the vocabulary, or more than any signature reads.
        """
        ids = np.asarray(inputs["token_ids"])
        length = length or next((one for one in self.lengths if one >= len(ids)), 0)
        if not 0 < len(ids) <= length:
            raise ValueError(f"A row has 1 to {self.lengths[-1]} ids; got {len(ids)}.")
        if ids.min() < 0 or ids.max() >= self.sidecar["vocabulary_size"]:
            raise ValueError(f"token_ids must lie in 0 ... {self.sidecar['vocabulary_size'] - 1}; got {ids.tolist()}.")
        name, given = self._names[length], {"lengths": np.array([len(ids)], np.int32)}
        for key in self.file.signatures[name].inputs.keys() - {"lengths"}:
            given[key] = np.zeros((1, length), np.int32)
            given[key][0, : len(ids)] = inputs[key]
        with self._one_call:
            outputs = self._runners[name](**given)
        return outputs[self.sidecar["task"]["numbers"]][0]


def read_task_sidecar(path):
    """The checked dict of the sidecar of a task's .tflite file, given by the file's `pathlib.Path`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, of another format or of a language model, or was changed after the export.
    """
    file = path.with_suffix(".json")
    sidecar = read_sealed(file)
    if "task" not in sidecar:
        raise ValueError(f"{file} is of a language model, which seqlm_runtime.LiteRTModel runs.")
    if sidecar.get("format") != FORMAT:
        raise ValueError(f"{file} is no sidecar of format {FORMAT}, the one that this version reads.")
    task = task_of(sidecar)
    kinds = {"sha256": str, "tokenizer_files": dict, "vocabulary_size": int, "tokenizer_hash": str, "signatures": dict}
    wrong = [name for name, kind in kinds.items() if not isinstance(sidecar.get(name), kind)]
    if not wrong and not sidecar["signatures"]:
        wrong = ["signatures"]
    for name, entry in sidecar["signatures"].items() if not wrong else ():
        sides = [entry.get(side) if isinstance(entry, dict) else None for side in ("inputs", "outputs")]
        if not all(isinstance(side, dict) and all(map(_is_tensor, side.values())) for side in sides):
            wrong.append(f"signatures.{name}")
        elif set(sides[0]) - set(_TENSORS) or "token_ids" not in sides[0] or len(sides[0]["token_ids"]["shape"]) != 2:
            wrong.append(f"signatures.{name}.inputs")
        elif set(sides[1]) != {sidecar["task"]["numbers"]}:
            wrong.append(f"signatures.{name}.outputs")
    if wrong:
        raise ValueError(f"{file} is damaged: {wrong} are missing, or no description of {task.verb}.")
    return sidecar


def _is_tensor(said):
    shape = said.get("shape") if isinstance(said, dict) else None
    return isinstance(shape, list) and all(type(size) is int for size in shape) and isinstance(said.get("dtype"), str)
