"""The runs in a folder: how far each has come, and how it stands. It needs no Keras, so that a list comes at once."""

import json
import os
import pathlib

from keras_seqlm.checkpoints.checkpoint import Checkpoints
from keras_seqlm.checkpoints.history import read_history
from keras_seqlm.checkpoints.lock import is_locked
from keras_seqlm.checkpoints.run_folder import CHECKPOINTS, RECIPE, REPLACED, finished_model, is_older_than_checkpoints

_PARTS = (CHECKPOINTS, REPLACED, "tokenizer", "tensorboard")  # of a run's folder


def list_runs(folder="runs"):
    """All run folders below `folder`, as `seqlm train` writes them.

    Args:
        folder: where to look, at any depth.

    Returns:
        A list of dicts, by name: `name` (the path below `folder`), `model`, `step` (reached, as far as it is on the
        disk), `steps` (asked for), `loss` and `validation_loss` of the last row of its history, `best_validation_loss`
        of those rows that can be compared with the last (see `Checkpoints.best`), each None where unknown, `state`: "running",
        "finished", "stopped", which the same command makes go on, or "damaged", and `reason`: what is damaged, or None.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    root = pathlib.Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}")
    return [_run(path, root) for path in sorted(_run_folders(root))]


def _run_folders(root):
    """Each folder with a recipe. A run may hold others, but not in the folders that are its own parts."""
    for folder, below, files in os.walk(root):
        if RECIPE in files:
            yield pathlib.Path(folder)
        below[:] = [name for name in below if name not in (_PARTS if RECIPE in files else (REPLACED,))]


def _run(folder, root):
    name = str(folder.relative_to(root)) if folder != root else folder.name
    known = dict.fromkeys(("model", "step", "steps", "loss", "validation_loss", "best_validation_loss", "reason"))
    try:
        return {"name": name, **known, **_numbers(folder)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return {"name": name, **known, "state": "damaged", "reason": f"{type(error).__name__}: {error}"}


def _numbers(folder):
    content = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
    steps = content.get("recipe", content).get("steps")
    history = folder / "history.csv"
    rows = read_history(history) if history.is_file() else []
    last = rows[-1] if rows else {}
    saved = Checkpoints(folder / CHECKPOINTS)
    first = saved.comparable_from()
    losses = [row["validation_loss"] for row in rows if row["step"] >= first]
    step = max([last.get("step", 0), *saved.steps()])
    return {
        "model": content.get("command", {}).get("model"),
        "step": step,
        "steps": steps,
        "loss": last.get("loss"),
        "validation_loss": last.get("validation_loss"),
        "best_validation_loss": min((loss for loss in losses if loss is not None), default=None),
        "state": _state(folder, saved, step, steps),
    }


def _state(folder, saved, step, steps):
    if is_locked(folder) or is_locked(folder / CHECKPOINTS):
        return "running"
    ended = bool(saved.steps()) and saved.meta(saved.steps()[-1]).get("ended")
    whole = (
        finished_model(folder) is not None
        and not is_older_than_checkpoints(folder)
        and steps is not None
        and (step >= steps or ended)
    )
    return "finished" if whole else "stopped"
