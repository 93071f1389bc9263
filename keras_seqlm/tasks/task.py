"""A model that speaks: what every task shares, and how it lies in a run folder."""

import io
import json
import pathlib
import warnings
import zipfile

import h5py
import keras

from keras_seqlm import tokenizers
from keras_seqlm.checkpoints import Checkpoints
from keras_seqlm.checkpoints.run_folder import ADAPTERS, CHECKPOINTS, finished_model, is_older_than_checkpoints
from keras_seqlm.checkpoints.state import model_of
from keras_seqlm.files import read_json, replacing, write_json
from keras_seqlm.models import SequenceModel
from keras_seqlm.tasks.adapters import load_adapters, save_adapters

MODEL, TOKENIZER, TASK = "model.keras", "tokenizer", "task.json"
_METADATA, _CONFIG, _WEIGHTS = "metadata.json", "config.json", "model.weights.h5"  # inside a .keras file
_TASKS = {}  # class name -> class, filled as the classes are defined


class Task:
    """Joins a model and the tokenizer whose ids it reads; a subclass says what goes in and what comes out.

    Args:
        model: of the class that the task is for, `model_class`.
        tokenizer: a tokenizer of `keras_seqlm.tokenizers`.

    Raises:
        ValueError: a model of another class, or the two do not belong together: another vocabulary size, or another
            tokenizer's hash in the model.
    """

    model_class = SequenceModel

    def __init_subclass__(cls):
        _TASKS[cls.__name__] = cls

    def __init__(self, model, tokenizer):
        if not isinstance(model, self.model_class):
            raise ValueError(f"expected a {self.model_class.__name__}, got {type(model).__name__}")
        if model.vocabulary_size != tokenizer.vocabulary_size:
            raise ValueError(
                f"the model knows {model.vocabulary_size} ids and the tokenizer has {tokenizer.vocabulary_size}; "
                "build the model with the tokenizer's vocabulary_size"
            )
        if model.tokenizer_hash not in (None, tokenizer.hash):
            raise ValueError(
                f"the model was made for the tokenizer {model.tokenizer_hash}, and this one is {tokenizer.hash}; "
                "load the tokenizer that was saved beside the model"
            )
        model.tokenizer_hash = tokenizer.hash
        self.model = model
        self.tokenizer = tokenizer
        self.folder = None  # that it was loaded from

    def save(self, folder):
        """Write `model.keras`, `tokenizer/` and `task.json` into `folder`, each file whole or not at all."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / MODEL) as beside:
            self.model.save(beside)
        (folder / ADAPTERS).unlink(missing_ok=True)
        self.begin(folder)

    def save_adapters(self, folder, base):
        """Write `adapters.safetensors` in place of `model.keras`: of a model with adapters what was learned, and no more.

        Args:
            folder: to write.
            base: the run folder whose model the adapters stand on, which `load` puts together with them.
        """
        folder = pathlib.Path(folder)
        save_adapters(self.model, folder / ADAPTERS, base)
        (folder / MODEL).unlink(missing_ok=True)
        self.begin(folder)

    def begin(self, folder):
        """Write what is known before the model has learned: `tokenizer/` and `task.json`; checkpoints give the model."""
        self.tokenizer.save(pathlib.Path(folder) / TOKENIZER)
        write_json(pathlib.Path(folder) / TASK, {"format": 1, "task": type(self).__name__, **self.settings()})

    def settings(self):
        """What the task was made with beside model and tokenizer: arguments of its class, as JSON takes them."""
        return {}


def load(folder, checkpoint=None, base=None):
    """The task in a run folder: the model and its tokenizer, ready to use.

    A run that is not finished, or runs at this moment, has no `model.keras` yet: its newest checkpoint is read, which a
    warning says. One that was finished and made longer has that of before until it is finished again: a warning, too.

    Args:
        folder: what `task.save` or `seqlm train` wrote.
        checkpoint: read a checkpoint in place of `model.keras`: "newest", "best" (by validation loss, see
            `Checkpoints.best`), or its step.
        base: of a run that learned adapters the run folder that it began with, where that is not where it was. Checkpoints hold
            both, and need none.

    Raises:
        FileNotFoundError: the folder or a file of it is missing.
        CheckpointError: (a ValueError) there is no such checkpoint, or it is damaged.
        OSError: a file cannot be read at all, for want of the permission, say.
        ValueError: a file is damaged, or it is whole and of another version or class, which the message says; adapters whose
            base has other numbers than it had.

    Example:

    >>> writer = load("runs/books")  # doctest: +SKIP
    >>> writer.generate("Once upon a time")  # doctest: +SKIP
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no run folder {str(folder)!r} (`seqlm runs` lists those below a folder)")
    checkpoints = Checkpoints(folder / CHECKPOINTS)
    finished = finished_model(folder)
    if checkpoint is None and finished is None and checkpoints.steps():
        checkpoint = "newest"
        warnings.warn(
            f"the run in {folder} is not finished: this is its checkpoint of step {checkpoints.steps()[-1]}",
            stacklevel=2,
        )
    if checkpoint is None and is_older_than_checkpoints(folder):
        warnings.warn(
            f"the run in {folder} went on after its {finished.name} was written, to step {checkpoints.steps()[-1]}: this is the model of "
            "before; checkpoint='newest' (--checkpoint newest) reads the later one",
            stacklevel=2,
        )
    if checkpoint is None and finished is None:
        found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise FileNotFoundError(f"{str(folder)!r} is no run folder: it has no {MODEL} (found: {found})")
    name = (read_json(folder / TASK) if (folder / TASK).exists() else {}).get("task", "TextGeneration")
    if name not in _TASKS:
        raise ValueError(f"{folder / TASK} names the task {name!r}; this version knows {', '.join(sorted(_TASKS))}")
    tokenizer = tokenizers.load(folder / TOKENIZER)
    if checkpoint is not None:
        model = model_of(checkpoints.choose(checkpoint))
    else:
        model = load_adapters(finished, load, base) if finished.name == ADAPTERS else _load_model(finished)
    try:
        task = _TASKS[name](model, tokenizer, **settings_in(folder))
    except TypeError as error:
        raise ValueError(f"{folder / TASK} does not say what {name} is made with: {error}") from error
    task.folder = folder
    return task


def task_class(name):
    """The class of a task by its name, as `task.json` has it; None of one that is not known here."""
    return _TASKS.get(name)


def settings_in(folder):
    """The settings of the task in a run folder, which may have no model yet; see `Task.settings`."""
    path = pathlib.Path(folder) / TASK
    content = read_json(path) if path.exists() else {}
    return {name: value for name, value in content.items() if name not in ("format", "task")}


def _load_model(path):
    try:
        return keras.saving.load_model(path, compile=False)
    except (zipfile.BadZipFile, KeyError, OSError, TypeError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's: the file may be whole
        damage = _damage(path)
        if damage is not None:
            raise ValueError(f"{path} is damaged: {damage}; train again or restore it from a copy") from error
        if "Could not locate class" in str(error):
            name = str(error).split("'")[1]
            raise ValueError(
                f"{path} is of the class {name!r}, which is not known here: import the module that defines it "
                "first (in exports and on the command line: --import MODULE)"
            ) from error
        with zipfile.ZipFile(path) as archive:
            written = json.loads(archive.read(_METADATA)).get("keras_version")
        reason = str(error).split("Exception encountered:")[-1]  # before it Keras puts the whole config
        reason = " ".join(reason.split())[:500]
        raise ValueError(
            f"{path} is whole, but no model can be made of it here: {reason}; it was written with Keras {written}, and this "
            f"is {keras.__version__}: read it with the versions of keras_seqlm and Keras that wrote it"
        ) from error


def _damage(path):
    """What is wrong with the bytes of a .keras file, whatever they mean; None if nothing is."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
            if broken is not None:
                return f"{broken} does not match its checksum"
            missing = {_METADATA, _CONFIG, _WEIGHTS} - set(archive.namelist())
            if missing:
                return f"it has no {', '.join(sorted(missing))}"
            for name in (_METADATA, _CONFIG):
                json.loads(archive.read(name))
            h5py.File(io.BytesIO(archive.read(_WEIGHTS)), "r").close()
    except zipfile.BadZipFile:
        return "it is no .keras file, or not all of it"
    except (EOFError, OSError, ValueError) as error:
        return str(error)
    return None
