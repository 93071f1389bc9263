"""`seqlm export`: a SavedModel or a LiteRT file of a run."""

import pathlib

from seqlm_cli.options import add_common, add_run
from seqlm_cli.verify import artifact_name, show, source
from seqlm_cli.working import Working

HELP = "write a SavedModel or a LiteRT file, and verify it"
EXAMPLES = (
    ("seqlm export runs/books --to saved-model", "for TensorFlow Serving: saved_models/books/1, then 2"),
    ("seqlm export runs/books --to litert", "for the phone: saved_models/books.tflite"),
    ("seqlm export runs/books --to litert --quantize int8", "smaller, and nearly the same"),
    ("seqlm export runs/books --to saved-model --checkpoint best", "of the best checkpoint"),
)


def arguments(p):
    """Add what the verb takes to its parser."""
    add_run(p)
    p.add_argument("--to", required=True, choices=["saved-model", "litert"], help="a server's, or a phone's")
    p.add_argument("--quantize", choices=["none", "float16", "int8"], default="none", help="of a LiteRT file")
    p.add_argument("--name", help="default: the path below runs/, with - for /")
    p.add_argument("--saved-models", default="saved_models", metavar="FOLDER", help="where to write")
    p.add_argument("--max-new-tokens-limit", type=int, default=256, help="of a SavedModel's requests")
    p.add_argument(
        "--max-prompt-tokens",
        type=int,
        metavar="N",
        help="of a prompt the last N tokens are read (default: 4096 of a recurrent model, the context less 1 of a Transformer)",
    )
    p.add_argument("--overwrite", action="store_true", help="replace a LiteRT file that exists")
    p.add_argument("--no-verify", action="store_true", help="do not compare with the model afterwards")
    add_common(p, backend=False)


def run(args):
    """`seqlm export`: one artifact, compared with its model at the end."""
    from keras_seqlm import export

    run = source(args)
    options = {"imports": args.imports, "max_prompt_tokens": args.max_prompt_tokens}
    name, root = args.name or artifact_name(args.run), pathlib.Path(args.saved_models)
    with Working() as work:
        if args.to == "saved-model":
            if args.quantize != "none":
                raise ValueError("--quantize is for --to litert; a SavedModel is exact")
            target = root / name / str(export.next_version(root / name))
            with work.on(f"exporting {target}"):
                artifact = export.saved_model(run, target, args.max_new_tokens_limit, **options)
        else:
            target = root / f"{name}.tflite"
            with work.on(f"exporting {target}"):
                artifact = export.litert(run, target, args.quantize, args.overwrite, **options)
        print(f"wrote {artifact}", flush=True)
        if args.no_verify:
            return 0
        with work.on("comparing"):
            report = export.verify(run, artifact, imports=args.imports)
    return show(args, report)
