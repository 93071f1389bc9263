"""The runs in a folder: how far each has come, and how it stands."""

import fcntl
import json
import pathlib

from keras_seqlm.checkpoints.checkpoint import Checkpoints
from keras_seqlm.training.history import read_history

CHECKPOINTS = "checkpoints"


def list_runs(folder="runs"):
    """All run folders below `folder`, as `seqlm train` writes them.

    Args:
        folder: where to look, at any depth.

    Returns:
        A list of dicts, by name: `name` (the path below `folder`), `model`, `step` (reached, as far as it is on the
        disk), `steps` (asked for), `loss` and `validation_loss` of the last row of its history, `best_validation_loss`,
        each None where unknown, and `state`: "running", "finished", or "stopped", which the same command makes go on.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    root = pathlib.Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}")
    return [_run(path.parent, root) for path in sorted(root.rglob("recipe.json"))]


def _run(folder, root):
    content = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    steps = content.get("recipe", content).get("steps")
    history = folder / "history.csv"
    rows = read_history(history) if history.is_file() else []
    last = rows[-1] if rows else {}
    validated = [row["validation_loss"] for row in rows if row["validation_loss"] is not None]
    step = max([last.get("step", 0), *Checkpoints(folder / CHECKPOINTS).steps()])
    return {
        "name": str(folder.relative_to(root)) if folder != root else folder.name,
        "model": content.get("command", {}).get("model"),
        "step": step,
        "steps": steps,
        "loss": last.get("loss"),
        "validation_loss": last.get("validation_loss"),
        "best_validation_loss": min(validated, default=None),
        "state": _state(folder, step, steps),
    }


def _state(folder, step, steps):
    lock = folder / CHECKPOINTS / ".lock"
    if lock.exists():
        with open(lock, encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return "running"
    return "finished" if (folder / "model.keras").exists() and steps is not None and step >= steps else "stopped"
