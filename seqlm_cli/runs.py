"""`seqlm runs`: what lies in a folder of runs."""

from seqlm_cli.options import add_common, write_answer
from seqlm_cli.tables import show_table

HELP = "list runs with their steps, losses and state"
NEEDS_KERAS = False
EXAMPLES = (
    ("seqlm runs", "the runs below runs/"),
    ("seqlm runs runs/demo", "those of one folder"),
    ("seqlm runs /data/runs --json runs.json", "as JSON, too"),
    ("seqlm runs | grep running", "what trains at this moment"),
)


def arguments(p):
    """Add what the verb takes to its parser."""
    p.add_argument("folder", nargs="?", default="runs", metavar="FOLDER", help="where to look (default runs)")
    add_common(p, backend=False)


def run(args):
    """`seqlm runs`: a line for each run below a folder."""
    from keras_seqlm.checkpoints.runs import list_runs

    try:
        found = list_runs(args.folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; name the folder that the runs lie in: seqlm runs FOLDER") from error
    rows = []
    for run in found:
        losses = [run[name] for name in ("loss", "validation_loss", "best_validation_loss")]
        shown = ["-" if loss is None else f"{loss:.4f}" for loss in losses]
        rows.append(
            (run["name"], run["model"] or "-", f"{run['step'] or 0}/{run['steps'] or '?'}", *shown, _state(run))
        )
    show_table(("run", "model", "step", "loss", "validation loss", "best", "state"), rows, folded=(0, 6))
    if not found:
        print(f"no run in {args.folder}")
    write_answer(args, {"runs": found})


def _state(run):
    return run["state"] if run["reason"] is None else f"{run['state']}: {run['reason']}"
