"""`seqlm runs`: what lies in a folder of runs."""

from seqlm_cli.options import add_common, write_answer

HELP = "list runs with their steps, losses and state"


def arguments(p):
    """Add what the verb takes to its parser."""
    p.add_argument("folder", nargs="?", default="runs", metavar="FOLDER", help="where to look (default runs)")
    add_common(p, backend=False)


def run(args):
    """`seqlm runs`: a line for each run below a folder."""
    from keras_seqlm import training

    found = training.list_runs(args.folder)
    rows = [("run", "model", "step", "loss", "validation loss", "best", "state")]
    for run in found:
        losses = [run[name] for name in ("loss", "validation_loss", "best_validation_loss")]
        shown = ["-" if loss is None else f"{loss:.4f}" for loss in losses]
        rows.append(
            (run["name"], run["model"] or "-", f"{run['step'] or 0}/{run['steps'] or '?'}", *shown, _state(run))
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if not found:
        print(f"no run in {args.folder}")
    write_answer(args, {"runs": found})


def _state(run):
    return run["state"] if run["reason"] is None else f"{run['state']}: {run['reason']}"
