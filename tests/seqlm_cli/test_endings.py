"""Exit codes, config files, and what a damaged run does to the list of runs; nothing here trains."""

import errno
import json

import pytest

import seqlm_cli
from keras_seqlm.training import TrainingStopped, list_runs
from seqlm_cli import train
from seqlm_cli.config import as_toml, words_of
from seqlm_cli.endings import exit_code


class Unavailable(RuntimeError):
    """As jaxlib raises it."""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("no such size"), 2),
        (FileNotFoundError(errno.ENOENT, "no such file"), 2),
        (OSError(errno.EBUSY, "process 7 trains there"), 2),
        (OSError(errno.ENOSPC, "no space left"), 75),
        (OSError(errno.EDQUOT, "quota"), 75),
        (MemoryError("a step does not fit the memory"), 75),
        (ConnectionResetError("peer"), 75),
        (Unavailable("UNAVAILABLE: Task 1 heartbeat timeout"), 75),
        (RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:5"), 75),
        (TrainingStopped("10 updates in a row"), 3),
        (RuntimeError("a fault of ours"), None),
        (KeyError("a fault of ours"), None),
    ],
)
def test_a_supervisor_can_tell_ends_apart(error, code):
    assert exit_code(error) == code


def test_the_command_ends_with_that_code(monkeypatch, capsys):
    def fails(args):
        raise OSError(errno.ENOSPC, "No space left on device", "runs/a")

    monkeypatch.setattr(train, "run", fails)
    assert seqlm_cli.main(["train", "--text", "a", "--out", "runs/a"]) == 75
    assert "seqlm: error: [Errno 28] No space left on device: 'runs/a'" in capsys.readouterr().err
    monkeypatch.setattr(train, "run", lambda args: (_ for _ in ()).throw(KeyboardInterrupt))
    assert seqlm_cli.main(["train", "--text", "a", "--out", "runs/a"]) == 130


def test_flags_come_from_a_file_and_those_given_go_before(tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(train, "run", seen.append)
    path = tmp_path / "run.toml"
    path.write_text(
        'text = ["a.txt", "b.txt"]\nout = "runs/a"\nlearning-rate = 1e-3\nsteps = 7\nuntied = true\nresume = false\n'
    )
    assert seqlm_cli.main(["train", "--config", str(path), "--steps", "9"]) == 0
    (args,) = seen
    assert (args.text, args.out, args.learning_rate, args.steps) == (["a.txt", "b.txt"], "runs/a", 1e-3, 9)
    assert args.untied and not args.resume
    path.write_text("stepz = 7\n")
    assert seqlm_cli.main(["train", "--config", str(path)]) == 2
    assert "says 'stepz', and there is no flag --stepz; there are" in capsys.readouterr().err
    path.write_text("steps = [\n")
    assert seqlm_cli.main(["train", "--config", str(path)]) == 2
    assert "is no TOML" in capsys.readouterr().err
    assert seqlm_cli.main(["train", "--config", str(tmp_path / "none.toml")]) == 2


def test_a_run_writes_a_file_that_says_the_same(tmp_path):
    args = seqlm_cli.parser().parse_args(
        ["train", "--text", "a b.txt", "-x.jsonl".lstrip("-"), "--out", 'runs/"a"', "--no-resume", "--ema", "0.9"]
    )
    (tmp_path / "run.toml").write_text(
        as_toml({k: v for k, v in vars(args).items() if k not in ("command", "version")})
    )
    import argparse

    flags = argparse.ArgumentParser()
    train.arguments(flags)
    again = seqlm_cli.parser().parse_args(["train", *words_of(tmp_path / "run.toml", flags)])
    assert vars(again) == vars(args)


def test_one_damaged_run_does_not_hide_the_others(tmp_path, capsys):
    for name, content in (("good", json.dumps({"recipe": {"steps": 3}})), ("bad", "{"), ("odd", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.json").write_text(content)
    found = {run["name"]: run for run in list_runs(tmp_path)}
    assert found["good"]["state"] == "stopped" and found["good"]["reason"] is None
    assert found["bad"]["state"] == found["odd"]["state"] == "damaged" and "JSONDecodeError" in found["bad"]["reason"]
    assert seqlm_cli.main(["runs", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "damaged: JSONDecodeError" in shown and "stopped" in shown
