"""The console script `seqlm`: a verb a file, which holds its arguments and what it does; help comes in milliseconds."""

import argparse
import importlib
import os
import sys

from seqlm_cli import (
    cache,
    completion,
    demo,
    evaluate,
    export,
    finetune,
    generate,
    predict,
    runs,
    streams,
    train,
    verify,
)
from seqlm_cli.config import words_of
from seqlm_cli.endings import INTERRUPTED, USAGE, exit_code
from seqlm_cli.options import check_answer, size_table, without_keras
from seqlm_cli.parsers import Parser, flags_named_in, short_usage

VERBS = {"demo": demo, "train": train, "finetune": finetune, "runs": runs, "generate": generate, "predict": predict}
VERBS |= {"evaluate": evaluate, "export": export, "verify": verify, "cache": cache, "completion": completion}
EXAMPLES = (
    ("seqlm demo", "three models of Python's own documentation, in six to ten minutes"),
    ("seqlm train --text 'books/*.txt' --model lstm --out runs/books", "a model of texts of your own"),
    ("seqlm generate runs/books --prompt 'It was a dark night'", "it writes on"),
    ("seqlm export runs/books --to saved-model", "for TensorFlow Serving, compared with the model"),
)
EPILOG = """`seqlm COMMAND --help` says more. Exit codes: 0 done, 1 an artifact
disagrees with its model, 2 wrong use or input, 3 a guard stopped training,
75 try again (memory, room on the disk, a process of the run was lost),
130 ^C, 143 told to end (SIGTERM, SIGUSR1); after 75, 130 and 143 the same
command goes on from what was saved. Colour: NO_COLOR and FORCE_COLOR are
heard."""


def parser():
    """The parser of the whole command line."""
    top = Parser(
        prog="seqlm",
        usage="seqlm COMMAND ...",
        allow_abbrev=False,
        description="Sequence language models from raw text to a SavedModel and a phone.",
        epilog=f"{size_table()}\n\n{EPILOG}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.examples = EXAMPLES
    top.add_argument("--version", action="store_true", help="print the version and end")
    subparsers = top.add_subparsers(dest="command", metavar="COMMAND", prog="seqlm")
    for name, verb in VERBS.items():
        below = subparsers.add_parser(
            name, allow_abbrev=False, help=verb.HELP, description=f"{verb.HELP[0].upper()}{verb.HELP[1:]}."
        )
        verb.arguments(below)
        below.examples, below.usage = verb.EXAMPLES, short_usage(below)
    return top


def parse(words=None):
    """The arguments of a command; those of the file that `--config` names stand before the others."""
    words = list(sys.argv[1:] if words is None else words)
    before = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    before.add_argument("--config")
    path = before.parse_known_args(words)[0].config
    if path is not None and words[0] in VERBS and "-h" not in words and "--help" not in words:
        flags = argparse.ArgumentParser()
        VERBS[words[0]].arguments(flags)
        words[1:1] = words_of(path, flags)
    return parser().parse_args(words)


def run(words):
    """What one command does, without its way of telling errors; returns the exit code, or None for 0."""
    args = parse(words)
    check_answer(args)
    return VERBS[args.command].run(args)


def main(arguments=None):
    """Run the command line; returns the exit code."""
    with streams.prepared():
        return _main(arguments)


def _main(arguments):
    try:
        args = parse(arguments)
    except (ValueError, OSError) as error:
        streams.say_error(error)
        return USAGE
    if args.version:
        from importlib.metadata import version

        print(version("keras-seqlm"))
        return 0
    if args.command is None:
        parser().print_help()
        return USAGE
    if getattr(args, "backend", None):
        os.environ["KERAS_BACKEND"] = args.backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    try:
        check_answer(args)
        if not getattr(VERBS[args.command], "NEEDS_KERAS", True):
            with without_keras():
                return VERBS[args.command].run(args) or 0
        _quietly(lambda: importlib.import_module("keras_seqlm.export"))  # the top floor: all that a verb may need
        return VERBS[args.command].run(args) or 0
    except KeyboardInterrupt:
        streams.say("seqlm: interrupted")
        return INTERRUPTED
    except Exception as error:
        code = exit_code(error)
        if code is None:
            raise
        message = " ".join(str(error).split())  # one line, whatever Keras says
        backend = os.environ.get("KERAS_BACKEND", "tensorflow")
        if isinstance(error, ModuleNotFoundError) and error.name in (backend, f"{backend}lib"):
            message += f"; the {backend} backend needs: pip install keras-seqlm[{backend}]"
        flags = Parser()
        VERBS[args.command].arguments(flags)
        if found := flags_named_in(message, flags):
            message += f" ({', '.join(found)})"
        streams.say_error(message)
        return code


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
