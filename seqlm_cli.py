"""The console script `seqlm`: parsers and help, in milliseconds. What a command does stands in `keras_seqlm.commands`."""

import argparse
import importlib
import importlib.util
import os
import pathlib
import sys

EPILOG = "`seqlm COMMAND --help` says more. Errors end with exit code 2, a failed verification with 1."


def size_table():
    """The table of `--size`, read from `keras_seqlm/models/presets.py` without importing Keras."""
    package = importlib.util.find_spec("keras_seqlm").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location("seqlm_presets", pathlib.Path(package) / "models" / "presets.py")
    presets = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(presets)
    lines = ["sizes (every part can be overridden):"]
    lines.append("  size    transformer: layers x hidden_dim, heads, context    recurrent: layers x hidden_dim")
    for size, t in presets.TRANSFORMER_SIZES.items():
        r = presets.RECURRENT_SIZES[size]
        parts = f"{t['num_layers']} x {t['hidden_dim']}, {t['num_heads']}, {t['max_length']}"
        lines.append(f"  {size:7} {parts:51} {r['num_layers']} x {r['hidden_dim']}")
    return "\n".join(lines)


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

    def command(name, **options):
        return subparsers.add_parser(name, allow_abbrev=False, **options)

    _demo(command("demo", help="train, export and verify three models on Python's own documentation"))
    _train(
        command(
            "train",
            help="train a language model on text files",
            epilog=size_table(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    _runs(command("runs", help="list runs with their steps, losses and state"))
    _generate(command("generate", help="write on after a prompt"))
    _evaluate(command("evaluate", help="loss, bits per byte and perplexity of text files"))
    _export(command("export", help="write a SavedModel or a LiteRT file, and verify it"))
    _verify(command("verify", help="compare exported artifacts with their model, token by token"))
    return top


def _demo(p):
    p.set_defaults(parse=lambda words: parser().parse_args(words))  # the demo runs other commands, as it prints them
    p.add_argument("--runs", default="runs/demo", metavar="FOLDER", help="run folders (default runs/demo)")
    p.add_argument("--saved-models", default="saved_models", metavar="FOLDER", help="artifacts (default saved_models)")
    p.add_argument(
        "--steps", type=int, default=None, help="training steps of each model (default: under five minutes in all)"
    )
    p.add_argument("--seed", type=int, default=1)


def _train(p):
    p.add_argument(
        "--text", nargs="+", required=True, metavar="FILE", help="files, folders, globs; .txt .md .jsonl .gz"
    )
    p.add_argument("--out", required=True, metavar="runs/NAME", help="the run folder to write")
    p.add_argument("--model", choices=["transformer", "lstm", "gru", "rnn"], default="transformer")
    p.add_argument("--size", default="tiny", help="see the table below (default tiny)")
    p.add_argument("--steps", type=int, default=1000)
    p.add_argument("--overwrite", action="store_true", help="replace a run folder that exists")
    p.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on with the run that the folder holds (default)",
    )
    p.add_argument("--checkpoint-every", type=int, default=100, metavar="N", help="steps (default 100)")
    p.add_argument("--keep", type=int, default=2, metavar="K", help="newest checkpoints that stay, beside the best one")
    p.add_argument("--allow-changes", action="store_true", help="go on although settings or data changed")
    p.add_argument("--backend", choices=["tensorflow", "jax", "torch"], help="default: KERAS_BACKEND, else tensorflow")
    group = p.add_argument_group("tokenizer")
    group.add_argument(
        "--tokenizer",
        default="byte",
        help="byte, character, bpe, wordpiece, sentencepiece, or a saved tokenizer's folder",
    )
    group.add_argument("--vocabulary-size", type=int, default=None, help="of a trained tokenizer (default 8192)")
    group = p.add_argument_group("data")
    group.add_argument("--tolerance", type=float, default=0.001, help="share of a corpus that may be damaged")
    group.add_argument("--validation", nargs="+", metavar="FILE", help="validate on these files")
    group.add_argument("--validation-fraction", type=float, default=0.1, help="else on the tail (default 0.1)")
    group.add_argument("--segment-ids", action="store_true", help="packed documents do not see each other")
    group.add_argument("--carry-state", action="store_true", help="recurrent: carry the state on where a document does")
    group = p.add_argument_group("parts of the model (override the size)")
    for name in ("layers", "hidden-dim", "heads", "kv-heads", "intermediate-dim", "embedding-dim", "context"):
        group.add_argument(f"--{name}", type=int, default=None)
    group.add_argument("--activation", default=None, help="gelu_tanh, gelu, relu, swiglu, geglu")
    group.add_argument("--norm", default=None, help="layer, rms")
    group.add_argument("--positions", default=None, help="learned, sinusoidal, rotary")
    group.add_argument("--untied", action="store_true", help="an output projection of its own")
    group.add_argument("--dropout", type=float, default=0.0)
    group = p.add_argument_group("recipe")
    group.add_argument("--batch", type=int, default=16)
    group.add_argument("--learning-rate", type=float, default=None, help="default 1e-3, recurrent 4e-3")
    group.add_argument("--optimizer", default="adamw", help="adamw, muon, or any of Keras's")
    group.add_argument("--schedule", default="cosine", help="cosine, linear, constant, inverse_sqrt, wsd")
    group.add_argument("--decay-fraction", type=float, default=0.2, help="of the steps, at the end of wsd")
    group.add_argument("--warmup", type=int, default=None, help="steps (default 100, at most a tenth)")
    group.add_argument("--weight-decay", type=float, default=0.1)
    group.add_argument("--clip-norm", type=float, default=1.0, help="0 switches it off")
    group.add_argument("--precision", default="float32", help="float32, mixed_bfloat16, mixed_float16, bfloat16")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--validate-every", type=int, default=None, help="steps (default a tenth)")
    group.add_argument("--accumulate", type=int, default=1, help="batches whose gradients make one update")
    group.add_argument("--ema", type=float, default=None, help="momentum of averaged weights, as 0.999")
    group.add_argument("--label-smoothing", type=float, default=0.0)
    group.add_argument("--z-loss", type=float, default=0.0, help="weight of the squared log of the partition function")
    group.add_argument("--stop-after-skipped", type=int, default=10, help="updates in a row that are not finite")
    group.add_argument(
        "--roll-back", type=float, default=None, metavar="FACTOR", help="undo a jump of the loss, as 2.0"
    )
    group = p.add_argument_group("devices and memory")
    group.add_argument(
        "--distribution",
        default="single",
        help="auto, single, mirrored (TensorFlow), data-parallel or model-parallel (JAX)",
    )
    group.add_argument("--rematerialize", action="store_true", help="less memory for one more forward pass in a step")
    group.add_argument("--steps-per-execution", type=int, default=1, help="batches in one call (TensorFlow, JAX)")
    group.add_argument("--jit-compile", choices=["auto", "on", "off"], default="auto", help="compile the step")
    group = p.add_argument_group("watching")
    group.add_argument("--tensorboard", action="store_true", help="write RUN/tensorboard")
    group.add_argument("--sample-every", type=int, default=None, metavar="N", help="steps (default each validation)")


def _runs(p):
    p.add_argument("folder", nargs="?", default="runs", metavar="FOLDER", help="where to look (default runs)")
    _common(p, backend=False)


def _generate(p):
    p.add_argument("run", metavar="RUN", help="a run folder")
    p.add_argument("--prompt", default="", help="the text to write on from")
    p.add_argument("--max-new-tokens", type=int, default=64)
    p.add_argument("--temperature", type=float, default=0.0, help="0 takes the most probable token (default)")
    p.add_argument("--top-k", type=int, default=0)
    p.add_argument("--top-p", type=float, default=1.0)
    p.add_argument("--min-p", type=float, default=0.0)
    p.add_argument("--repetition-penalty", type=float, default=1.0)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--stop", action="append", default=[], help="end before this text; may be given again")
    _common(p)


def _evaluate(p):
    p.add_argument("run", metavar="RUN", help="a run folder")
    p.add_argument("--text", nargs="+", required=True, metavar="FILE")
    p.add_argument("--stride", type=int, default=None, help="Transformer: tokens between windows (default the context)")
    p.add_argument("--batch", type=int, default=32, help="windows of a batch")
    _common(p)


def _export(p):
    p.add_argument("run", metavar="RUN", help="a run folder")
    p.add_argument("--to", required=True, choices=["saved-model", "litert"])
    p.add_argument("--quantize", choices=["none", "float16", "int8"], default="none", help="of a LiteRT file")
    p.add_argument("--name", help="default: the path below runs/, with - for /")
    p.add_argument("--saved-models", default="saved_models", metavar="FOLDER", help="where to write")
    p.add_argument("--max-new-tokens-limit", type=int, default=256, help="of a SavedModel's requests")
    p.add_argument("--overwrite", action="store_true", help="replace a LiteRT file that exists")
    p.add_argument("--no-verify", action="store_true", help="do not compare with the model afterwards")
    p.add_argument("--import", dest="imports", action="append", default=[], metavar="MODULE", help="your own classes")
    _common(p, backend=False)


def _verify(p):
    p.add_argument("run", metavar="RUN", help="a run folder")
    p.add_argument("artifacts", nargs="*", metavar="ARTIFACT", help="default: all of this run's in saved_models/")
    p.add_argument("--name", help="default: the path below runs/, with - for /")
    p.add_argument("--saved-models", default="saved_models", metavar="FOLDER", help="where to look")
    p.add_argument("--import", dest="imports", action="append", default=[], metavar="MODULE", help="your own classes")
    _common(p, backend=False)


def _common(p, backend=True):
    p.add_argument("--json", metavar="FILE", help="write the result as JSON, too")
    if backend:
        p.add_argument(
            "--backend", choices=["tensorflow", "jax", "torch"], help="default: KERAS_BACKEND, else tensorflow"
        )


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
        commands = _quietly(lambda: importlib.import_module("keras_seqlm.commands"))
        return commands.COMMANDS[args.command](args) or 0
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


if __name__ == "__main__":
    sys.exit(main())
