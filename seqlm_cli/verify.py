"""`seqlm verify`: artifacts beside the model that they come from."""

import os
import pathlib

from seqlm_cli.endings import DISAGREES
from seqlm_cli.options import add_common, add_run, import_modules, load_task, write_answer
from seqlm_cli.tables import show_table
from seqlm_cli.working import Working

HELP = "compare exported artifacts with their model, token by token or row by row"
EXAMPLES = (
    ("seqlm verify runs/books", "all artifacts of a run: the newest SavedModel and the LiteRT files"),
    ("seqlm verify runs/books saved_models/books-int8.tflite", "one of them"),
    ("seqlm verify runs/books --saved-models /srv/models --name shelf", "artifacts of another name, elsewhere"),
    ("seqlm verify runs/books --json report.json", "for a script, which goes by the exit code: 0 or 1"),
)


def arguments(p):
    """Add what the verb takes to its parser."""
    add_run(p)
    p.add_argument(
        "artifacts", nargs="*", default=[], metavar="ARTIFACT", help="default: all of this run's in saved_models/"
    )
    p.add_argument("--name", help="default: the path below runs/, with - for /")
    p.add_argument("--saved-models", default="saved_models", metavar="FOLDER", help="where to look")
    add_allowances(p)
    add_common(p, backend=False)


def add_allowances(p):
    """Add `--max-loss-increase`, `--max-metric-loss` and `--allow-op`, by which an artifact may differ from what it is held to."""
    p.add_argument(
        "--max-loss-increase",
        type=float,
        default=0.05,
        metavar="NATS",
        help="a token, by which a float16 or int8 file may find the model's texts less probable, or more (default: 0.05)",
    )
    p.add_argument(
        "--max-metric-loss",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="by which the figure of a task (accuracy, span F1) may be lower of a float16 or int8 file (default: 0.05)",
    )
    p.add_argument(
        "--allow-op",
        dest="allow_ops",
        action="append",
        default=[],
        metavar="OP",
        help="an operation that layers of your own need beside those of our models",
    )


def allowances(args):
    """The three as keywords of `export.verify`."""
    names = ("max_loss_increase", "max_metric_loss", "allow_ops")
    return {name: getattr(args, name) for name in names}


def run(args):
    """`seqlm verify`: every artifact of a run beside its model; exit code 1 on a disagreement."""
    from keras_seqlm import export

    run = source(args)
    for artifact in args.artifacts:
        _refuse_a_models_folder(artifact)
    artifacts = args.artifacts or artifacts_of(args.name or artifact_name(args.run), args.saved_models)
    with Working() as work, work.on("comparing"):
        report = export.verify(run, *artifacts, imports=args.imports, **allowances(args))
    return show(args, report)


def source(args):
    """What is exported and compared: the run folder, or the task of a checkpoint of it."""
    from keras_seqlm.checkpoints.run_folder import CHECKPOINTS, finished_model

    import_modules(args.imports)
    if not pathlib.Path(args.run).is_dir():
        raise FileNotFoundError(f"there is no run folder {args.run!r} (`seqlm runs` lists those below a folder)")
    finished = finished_model(args.run) is not None
    if args.checkpoint is None and (finished or not (pathlib.Path(args.run) / CHECKPOINTS).is_dir()):
        return args.run
    return load_task(args)


def _refuse_a_models_folder(artifact):
    """Raise ValueError where a folder holds versions of a SavedModel, and is none itself."""
    from keras_seqlm import export

    newest = export.next_version(artifact) - 1
    if newest and not (pathlib.Path(artifact) / "saved_model.pb").exists():
        raise ValueError(
            f"{artifact} holds the versions of a SavedModel; name one of them, as {pathlib.Path(artifact) / str(newest)}"
        )


def show(args, report):
    """Print a report, write it where `--json` says; returns the exit code."""
    titles, rows = report.table()
    show_table(titles, rows, folded=(0,))
    for note in report.notes():
        print(note)
    write_answer(args, report.to_dict())
    return 0 if report.ok else DISAGREES


def artifact_name(run):
    """The name of a run's artifacts: its path below `runs/`, with `-` for `/`.

    >>> artifact_name("runs/demo/rnn"), artifact_name("/tmp/runs/books/"), artifact_name("elsewhere/books")
    ('demo-rnn', 'books', 'books')
    """
    parts = pathlib.PurePath(os.path.normpath(run)).parts
    below = parts[len(parts) - parts[::-1].index("runs") :] if "runs" in parts else parts[-1:]
    return "-".join(below) or parts[-1]


def artifacts_of(name, saved_models):
    """The newest SavedModel and the LiteRT files called `name`.

    Raises:
        FileNotFoundError: there is none.
    """
    from keras_seqlm import export

    root = pathlib.Path(saved_models)
    versions = export.next_version(root / name) - 1
    found = [root / name / str(versions)] if versions else []
    found += [path for suffix in ("", "-float16", "-int8") if (path := root / f"{name}{suffix}.tflite").exists()]
    if not found:
        raise FileNotFoundError(
            f"there is no artifact of {name!r} in {root}; run `seqlm export` first, or name "
            "one (artifacts of another name: --name; in another folder: --saved-models)"
        )
    return found
