"""What several verbs share: their common options, the table of sizes, and the answer as JSON."""

import argparse
import contextlib
import errno
import functools
import importlib
import importlib.util
import os
import pathlib
import sys
import tempfile

BACKENDS = ("tensorflow", "jax", "torch")


def add_run(p, what="a run folder, as `seqlm train` writes it"):
    """Add `RUN` and what goes with it: which of its models is read, and the modules that define what it is made of."""
    p.add_argument("run", metavar="RUN", help=what)
    p.add_argument(
        "--checkpoint",
        metavar="best|newest|STEP",
        help="read a checkpoint of the run (default: the finished model, else the newest)",
    )
    add_imports(p)


def add_imports(p):
    """Add `--import`."""
    p.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="import a module of your own first, whose classes a run is made of; may be given again",
    )


def add_common(p, backend=True):
    """Add `--json`, and `--backend` where the verb runs a model on the backend of one's choice."""
    p.add_argument("--json", type=_file, metavar="FILE", help="write the result as JSON, too")
    if backend:
        add_backend(p)


def _file(name):
    """The name of a file to write; `-`, which elsewhere is standard output, would make a file of that name."""
    if name == "-":
        raise argparse.ArgumentTypeError(
            "standard output has what is shown, so - is no file here; give a name, as answer.json"
        )
    return name


def add_backend(p):
    """Add `--backend`; `main` sets it before Keras is imported."""
    p.add_argument("--backend", choices=BACKENDS, help="default: KERAS_BACKEND, else tensorflow")


def import_modules(names):
    """Import the modules that `--import` names; the folder that the command is given in is looked into, too.

    Raises:
        ValueError: one is not there, or fails; the message says why.
    """
    if names and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a module of a user's own raises
            if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
                raise ValueError(
                    f"--import {name}: there is no module {error.name!r} here or on Python's path; give its name without "
                    ".py, in the folder where it lies or with that folder in PYTHONPATH"
                ) from error
            raise ValueError(f"--import {name}: it fails as it is imported: {type(error).__name__}: {error}") from error


def load_task(args, writes=None):
    """The task of the run and the checkpoint that were named, after the modules of `--import`.

    Args:
        writes: whether it has to be one that writes on, or one that answers rows, fills masks or writes of a source; None for either.

    Raises:
        ValueError: it is one of the other kind.
    """
    from keras_seqlm import tasks

    import_modules(args.imports)
    task = tasks.load(args.run, args.checkpoint)
    if writes is not None and writes == isinstance(task, tasks.RowTask | tasks.FillMask | tasks.TextToText):
        instead = "`seqlm predict` answers with it" if writes else "`seqlm generate` writes with it"
        raise ValueError(f"{args.run} holds a {type(task).__name__}: {instead}")
    return task


def check_answer(args):
    """Before the work: whether the file that `--json` names, if any, can be written afterwards.

    Raises:
        OSError: its folder is not there or takes no file, or it is a folder itself.
    """
    name = getattr(args, "json", None)
    if not name:
        return
    path = pathlib.Path(os.path.realpath(name))
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "--json names a folder that is not there", str(path.parent))
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "--json names a folder; give the name of a file", name)
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".part-"):
            pass
    except OSError as error:
        raise type(error)(error.errno, f"--json: no file can be written there ({error.strerror})", name) from error


def write_answer(args, content):
    """Write the result as JSON where `--json` names a file."""
    from keras_seqlm.files import write_json

    if args.json:
        write_json(args.json, content)


@contextlib.contextmanager
def without_keras():
    """Inside of it the modules of `keras_seqlm` are imported without the package's own first lines, which load Keras.

    For what needs no Keras, and so can be there at once; where the package is loaded already, it is that.
    """
    if "keras_seqlm" in sys.modules:
        yield
        return
    spec = importlib.util.find_spec("keras_seqlm")
    sys.modules["keras_seqlm"] = importlib.util.module_from_spec(spec)  # it has a place, and nothing in it has run
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "keras_seqlm"]:
            del sys.modules[name]


@functools.cache  # of several parsers in one start
def size_table():
    """The table of `--size`, read from `keras_seqlm/models/presets.py` without importing Keras."""
    package = importlib.util.find_spec("keras_seqlm").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location("seqlm_presets", pathlib.Path(package) / "models" / "presets.py")
    presets = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(presets)
    lines = ["sizes (every part can be overridden):"]
    lines.append("         transformer:                      recurrent:")
    lines.append("  size   layers x width, heads, context    layers x width")
    for size, t in presets.TRANSFORMER_SIZES.items():
        r = presets.RECURRENT_SIZES[size]
        parts = f"{t['num_layers']} x {t['hidden_dim']}, {t['num_heads']}, {t['max_length']}"
        lines.append(f"  {size:6} {parts:33} {r['num_layers']} x {r['hidden_dim']}")
    return "\n".join(lines)
