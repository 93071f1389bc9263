"""Exit codes, config files, and what a damaged run does to the list of runs; nothing here trains."""

import errno
import json

import pytest

import seqlm_cli
from keras_seqlm.export import Report
from keras_seqlm.training import TrainingStopped, list_runs
from seqlm_cli import train, verify
from seqlm_cli.config import as_toml, words_of
from seqlm_cli.endings import (
    DISAGREES,
    INTERRUPTED,
    STOPPED,
    TRY_AGAIN,
    USAGE,
    exit_code,
    is_lost_peer,
    is_no_room,
)


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


def test_told_to_end_and_disagreement_have_codes_of_their_own(monkeypatch, capsys):
    """What `Resume` raises on SIGTERM goes through as it is: 143. An artifact that is not its model's equal is 1."""

    def told(args):
        raise SystemExit(143)

    monkeypatch.setattr(train, "run", told)
    with pytest.raises(SystemExit) as ended:
        seqlm_cli.main(["train", "--text", "a", "--out", "runs/a"])
    assert ended.value.code == 143

    class Nothing(Report):
        ok = False

    args = seqlm_cli.parser().parse_args(["verify", "runs/a"])
    assert verify.show(args, Nothing()) == 1
    Nothing.ok = True
    assert verify.show(args, Nothing()) == 0
    monkeypatch.setattr(verify, "run", lambda args: 1)
    assert seqlm_cli.main(["verify", "runs/a"]) == 1
    assert (DISAGREES, USAGE, STOPPED, TRY_AGAIN, INTERRUPTED) == (1, 2, 3, 75, 130)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("bad"), 2),
        (ImportError("no package"), 2),
        (TrainingStopped("10 updates"), 3),
        (MemoryError("too large"), 75),
    ],
)
def test_the_command_line_ends_with_the_code_of_the_error(monkeypatch, capsys, error, code):
    monkeypatch.setattr(train, "run", lambda args: (_ for _ in ()).throw(error))
    assert seqlm_cli.main(["train", "--text", "a", "--out", "runs/a"]) == code
    assert capsys.readouterr().err == f"seqlm: error: {error}\n"


def test_a_fault_of_ours_shows_its_traceback(monkeypatch):
    monkeypatch.setattr(train, "run", lambda args: {}["missing"])
    with pytest.raises(KeyError, match="missing"):
        seqlm_cli.main(["train", "--text", "a", "--out", "runs/a"])


def test_errors_of_backends_are_lost_peers_by_their_signs_alone():
    peer = RuntimeError("heartbeat timeout of task 1")
    assert is_lost_peer(peer) and not is_lost_peer(RuntimeError("shapes do not fit"))
    assert not is_lost_peer(KeyError("UNAVAILABLE"))  # a fault of ours that happens to say so
    foreign = type("XlaError", (Exception,), {"__module__": "jaxlib.xla_extension"})
    assert exit_code(foreign("DEADLINE_EXCEEDED: barrier")) == 75 and exit_code(foreign("INTERNAL: bug")) is None
    assert not is_no_room(ValueError("No space left")) and is_no_room(OSError(errno.ENOSPC, "full"))


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


def parsed(tmp_path, toml, *words):
    path = tmp_path / "run.toml"
    path.write_text(toml, encoding="utf-8")
    return seqlm_cli.parse(["train", "--config", str(path), *words])


def test_what_stands_on_the_command_line_wins_whatever_its_kind(tmp_path):
    toml = 'text = ["a.txt", "b.txt"]\nout = "runs/a"\nsteps = 7\nema = 0.5\nresume = false\nlearning_rate = 1e-3\nfrom = "runs/b"\n'
    args = parsed(tmp_path, toml)
    assert (args.text, args.steps, args.ema, args.resume, args.start) == (["a.txt", "b.txt"], 7, 0.5, False, "runs/b")
    assert args.learning_rate == 1e-3 and args.batch == 16  # an underscore for a dash; what neither says is the default
    args = parsed(tmp_path, toml, "--text", "c.txt", "--ema", "0.9", "--resume", "--steps=9", "--out", "runs/c")
    assert (args.text, args.steps, args.ema, args.resume, args.out) == (["c.txt"], 9, 0.9, True, "runs/c")
    assert parsed(tmp_path, "untied = false\n", "--text", "a", "--out", "b").untied is False
    assert parsed(tmp_path, "untied = false\n", "--text", "a", "--out", "b", "--untied").untied is True


def test_weights_of_texts_come_from_a_file(tmp_path):
    args = parsed(tmp_path, 'text = ["a/*.txt=0.7", "b.jsonl=0.3"]\nout = "-runs"\n')
    assert train.corpora_of(args.text) == {"a/*.txt": 0.7, "b.jsonl": 0.3} and args.out == "-runs"
    with pytest.raises(ValueError, match="gives a weight to some texts and none to b.jsonl; give each one"):
        train.corpora_of(parsed(tmp_path, 'text = ["a/*.txt=0.7", "b.jsonl"]\nout = "runs/a"\n').text)


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("stepz = 7", "says 'stepz', and there is no flag --stepz; there are .*, steps, "),
        ('config = "other.toml"', "says 'config', and there is no flag"),
        ("help = true", "says 'help', and there is no flag"),
        ("steps = true", "--steps takes a value, got true"),
        ("steps = [1, 2]", r"--steps takes one value, got \[1, 2\]"),
        ("untied = 3", "--untied takes no value, got 3"),
        ('untied = "yes"', "--untied takes no value, got 'yes'"),
        ("text = [true]", r"text must be a text, a number, true or false, or a list of texts, got \[True\]"),
        ("text = [[1]]", r"text must be a text, .* got \[\[1\]\]"),
        ("[recipe]\nsteps = 3", "there is no flag --recipe"),
        ("[steps]\ncount = 3", r"steps must be a text, .* got \{'count': 3\}"),
        ("day = 2026-01-01", "says 'day', and there is no flag"),
        ("steps = 2026-01-01", "steps must be a text, a number"),
    ],
)
def test_what_a_file_says_wrongly_is_refused_by_name(tmp_path, toml, said):
    with pytest.raises(ValueError, match=said):
        parsed(tmp_path, toml, "--text", "a", "--out", "runs/a")


@pytest.mark.parametrize(
    ("toml", "said"), [('steps = "many"', "--steps: invalid int"), ("steps = 1.5", "invalid int value: '1.5'")]
)
def test_a_value_of_the_wrong_type_ends_as_on_the_command_line(tmp_path, capsys, toml, said):
    with pytest.raises(SystemExit) as ended:
        parsed(tmp_path, toml, "--text", "a", "--out", "runs/a")
    assert ended.value.code == 2 and said in capsys.readouterr().err


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


@pytest.mark.parametrize(
    "sign",
    ["DEADLINE_EXCEEDED", "UNAVAILABLE", "Connection closed by peer", "Connection reset by peer", "heartbeat"],
)
def test_each_sign_of_a_lost_peer_is_tried_again(sign):
    assert exit_code(RuntimeError(f"of the backend: {sign}, say")) == 75
