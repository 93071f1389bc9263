"""What the list of runs says of each; nothing here trains."""

import json

import numpy as np
import pytest

from keras_seqlm.checkpoints import Checkpoints, RunFolder
from keras_seqlm.training import list_runs
from keras_seqlm.training.history import COLUMNS
from seqlm_cli import main

pytestmark = pytest.mark.usefixtures("eager_steps")


def begun(folder, steps=8, saved=(), rows=()):
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps({"recipe": {"steps": steps}, "command": {"model": "gru"}}))
    if saved:
        (folder / "checkpoints").mkdir()
    for step in saved:
        Checkpoints(folder / "checkpoints", keep=9).save(step, {"a": np.zeros(2)}, {"validation_loss": None})
    if rows:
        lines = [",".join(COLUMNS), *(",".join(map(str, [*row, *[""] * (len(COLUMNS) - len(row))])) for row in rows)]
        (folder / "history.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_what_was_replaced_is_no_run_of_its_own(tmp_path):
    begun(tmp_path / "a")
    begun(tmp_path / "a" / ".replaced")
    assert [run["name"] for run in list_runs(tmp_path)] == ["a"]


def test_a_run_that_a_process_has_is_running(tmp_path):
    with RunFolder(begun(tmp_path / "a")):
        assert list_runs(tmp_path)[0]["state"] == "running"
    assert list_runs(tmp_path)[0]["state"] == "stopped"


def test_the_step_is_that_of_the_newest_checkpoint_and_a_longer_run_is_not_finished(tmp_path):
    folder = begun(tmp_path / "a", steps=8, saved=(3, 6), rows=[(4, 2.5, 2.25)])
    (folder / "model.keras").write_text("a model")
    (run,) = list_runs(tmp_path)
    assert (run["step"], run["steps"], run["state"]) == (6, 8, "stopped")
    (folder / "recipe.json").write_text(json.dumps({"recipe": {"steps": 6}}))
    assert list_runs(tmp_path)[0]["state"] == "finished"


@pytest.mark.parametrize("content", [b"garbage", b"a,b\n1,2\n", b"\xff\xfe\0\0" * 9, b"step,loss\n1,x\n"])
def test_a_run_whose_history_cannot_be_read_is_not_finished(tmp_path, content):
    folder = begun(tmp_path / "a", steps=8, saved=(8,))
    (folder / "model.keras").write_text("a model")
    (folder / "history.csv").write_bytes(content)
    (run,) = list_runs(tmp_path)
    assert run["state"] == "damaged" and f"{folder / 'history.csv'} is no history of a run: " in run["reason"]


def test_the_columns_hold_what_stands_above_them(tmp_path, capsys):
    begun(tmp_path / "a", rows=[(2, 3.5, 1.25), (4, 2.5, 2.25)])
    assert main(["runs", str(tmp_path)]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split()[3:] == ["loss", "validation", "loss", "best", "state"]
    assert line.split() == ["a", "gru", "4/8", "2.5000", "2.2500", "1.2500", "stopped"]
