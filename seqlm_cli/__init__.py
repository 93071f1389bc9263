"""The console script `seqlm`: a verb a file, which holds its arguments and what it does; help comes in milliseconds."""

import argparse
import importlib
import os
import sys

from seqlm_cli import cache, demo, evaluate, export, generate, runs, train, verify
from seqlm_cli.options import size_table

VERBS = {"demo": demo, "train": train, "runs": runs, "generate": generate, "evaluate": evaluate, "export": export}
VERBS |= {"verify": verify, "cache": cache}
EPILOG = "`seqlm COMMAND --help` says more. Errors end with exit code 2, a failed verification with 1."


def parser():
    """The parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="seqlm",
        allow_abbrev=False,
        description="Sequence language models from raw text to a SavedModel and a phone.",
        epilog=f"{size_table()}\n\n{EPILOG}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="store_true", help="print the version and end")
    subparsers = top.add_subparsers(dest="command", metavar="COMMAND")
    for name, verb in VERBS.items():
        verb.arguments(subparsers.add_parser(name, allow_abbrev=False, help=verb.HELP))
    return top


def run(words):
    """What one command does, without its way of telling errors; returns the exit code, or None for 0."""
    args = parser().parse_args(words)
    return VERBS[args.command].run(args)


def main(arguments=None):
    """Run the command line; returns the exit code."""
    args = parser().parse_args(arguments)
    if args.version:
        from importlib.metadata import version

        print(version("keras-seqlm"))
        return 0
    if args.command is None:
        parser().print_help()
        return 2
    if getattr(args, "backend", None):
        os.environ["KERAS_BACKEND"] = args.backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    try:
        _quietly(lambda: importlib.import_module("keras_seqlm.export"))  # the top floor: all that a verb may need
        return VERBS[args.command].run(args) or 0
    except (ValueError, OSError, ImportError, MemoryError) as error:
        message = " ".join(str(error).split())  # one line, whatever Keras says
        backend = os.environ.get("KERAS_BACKEND", "tensorflow")
        if isinstance(error, ModuleNotFoundError) and error.name in (backend, f"{backend}lib"):
            message += f"; the {backend} backend needs: pip install keras-seqlm[{backend}]"
        print(f"seqlm: error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("seqlm: interrupted", file=sys.stderr)
        return 130


def _quietly(load):
    """What `load` gives, without what TensorFlow's C++ half writes to standard error as it starts."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        return load()
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
