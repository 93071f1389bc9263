"""What a user sees in a terminal of 80 columns, in one of 40, and where there is none."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import time
import types
import unicodedata
import warnings

import pytest
from terminal import Terminal
from training_toy import Batches, compiled

import seqlm_cli
from keras_seqlm.data import content, packing
from keras_seqlm.export import Report, stages
from keras_seqlm.export.verify import Agreement
from keras_seqlm.status_line import StatusLine
from keras_seqlm.training import Progress, Recipe
from seqlm_cli import demo, streams, tables, verify, working

WIDTHS = [80, 40]


@pytest.fixture
def no_wishes(monkeypatch):
    """Nothing in the environment says how a terminal is to be written to."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=WIDTHS)
def terminal(request, no_wishes):
    return Terminal(request.param)


@contextlib.contextmanager
def shown_in(stream):
    """Standard output and error are `stream`, prepared as for a command; after the fixtures, for pytest has its own there."""
    before = sys.stdout, sys.stderr
    sys.stdout = sys.stderr = stream
    try:
        with streams.prepared():
            yield
    finally:
        sys.stdout, sys.stderr = before


def seqlm(*words):
    return [sys.executable, "-m", "seqlm_cli", *map(str, words)]


def drawings(terminal):
    """Each text that a status line was drawn with, those that others took the place of, too."""
    texts = re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", terminal.written.decode()))
    return [text for text in texts if text]


# --- progress


def test_training_is_one_line_that_fits_and_leaves_nothing_stale(terminal):
    recipe = Recipe(steps=6, batch_size=4, warmup_steps=2, validate_every=2)
    model = compiled(recipe, "bigram")
    with shown_in(terminal.stream):
        recipe.fit(model, Batches(), Batches().batch(50), [Progress(interval=0.0)])
    lines = terminal.lines()
    assert terminal.width < terminal.columns and all(len(drawn) < terminal.columns for drawn in drawings(terminal))
    assert [line.split()[1] for line in lines] == ["2/6", "4/6", "6/6"], "the lines of the validations, and no other"
    assert all("validation loss" in line for line in lines)
    assert all((" loss " in line.replace("validation loss", "")) == (terminal.columns == 80) for line in lines)


def test_what_does_not_fit_goes_by_how_much_it_matters(terminal):
    progress = Progress()
    progress.run, progress.step = types.SimpleNamespace(steps=20000, tokens_per_step=None, targets="tokens"), 12345
    progress._schedule, progress._gradient_norm, progress._skipped = None, 0.523, 2
    progress.tokens_per_second, progress.steps_per_second = lambda: 123456.0, lambda: 2.0
    with shown_in(terminal.stream):
        StatusLine().draw(*progress._parts({"loss": 2.34567}))
    (line,) = terminal.lines()
    wanted = {80: "step 12345/20000  loss 2.3457  123,456 tokens/s  2 skipped  1:03:48 left"}
    assert line == wanted.get(terminal.columns, "step 12345/20000  loss 2.3457")


def test_what_is_said_meanwhile_takes_the_lines_place(terminal):
    line = StatusLine()
    with shown_in(terminal.stream):
        for step in range(3):
            line.draw([f"step {step}/3", "loss 2.5", "0:00:03 left"])
            if step == 1:  # pytest keeps warnings to itself, so the text is made as Python makes it
                sys.stderr.write(warnings.formatwarning("the disk is full", UserWarning, "a.py", 1))
                print("said by a callback")
        line.clear()
    assert terminal.lines() == ["seqlm: warning: the disk is full", "said by a callback"]


def test_tokenizing_and_hashing_clear_their_line(terminal, monkeypatch):
    clock = iter(range(0, 1000, 3))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with shown_in(terminal.stream):
        first = packing._ProgressLine(types.SimpleNamespace(files=[]))
        for size in (10**12, 10):  # the second line is shorter
            first(size, size)
        first.finish()
        second = content._Progress([])
        second.add(10**9)
        second.finish()
    assert terminal.lines() == [] and all(len(drawn) < terminal.columns for drawn in drawings(terminal))
    assert b"tokenizing: 1000000 MB" in terminal.written and b"reading the files for their hash" in terminal.written


def test_exports_tell_what_they_are_at_in_one_line(terminal, monkeypatch):
    monkeypatch.setattr(working, "PAUSE", 0.01)
    monkeypatch.setattr(working, "PATIENCE", 0.0)
    with (
        shown_in(terminal.stream),
        working.Working() as work,
        work.on("exporting saved_models/a-long-name-of-a-run/12"),
    ):
        for stage in ("reading the model", "tracing what it answers"):
            stages.tell(stage)
            time.sleep(0.1)
        print("wrote it")
        time.sleep(0.1)
    assert terminal.lines() == ["wrote it"] and all(len(drawn) < terminal.columns for drawn in drawings(terminal))
    assert b"reading the model" in terminal.written and b"tracing what it answers" in terminal.written


# --- tables


def make_runs(folder, count):
    """Runs as they lie on the disk: with a history and a checkpoint each."""
    import numpy as np

    from keras_seqlm.checkpoints import Checkpoints
    from keras_seqlm.checkpoints.history import COLUMNS

    for i in range(count):
        run = folder / f"group-{i % 3}" / f"run-number-{i:03d}"
        run.mkdir(parents=True)
        content = {"recipe": {"steps": 2000}, "command": {"model": "transformer"}}
        (run / "recipe.json").write_text(json.dumps(content))
        rows = [",".join(map(str, [step, 3.5, 3.25, *[""] * (len(COLUMNS) - 3)])) for step in range(100, 1100, 100)]
        (run / "history.csv").write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
        (run / "checkpoints").mkdir()
        arrays = {f"layer_{n}": np.zeros(4, "float32") for n in range(40)}
        Checkpoints(run / "checkpoints").save(1000, arrays, {"validation_loss": 3.25})
    return folder


@pytest.fixture(scope="module")
def hundred_runs(tmp_path_factory):
    return make_runs(tmp_path_factory.mktemp("runs"), 100)


@pytest.mark.parametrize("columns", WIDTHS)
def test_runs_in_a_terminal(hundred_runs, columns, no_wishes):
    terminal = Terminal(columns)
    assert terminal.run(seqlm("runs", hundred_runs)) == 0
    lines = terminal.lines()
    assert terminal.width <= columns and lines == terminal.wide_lines()
    assert sum("run-number" in line or "run-numbe" in line for line in lines) == 100
    assert sum("1000/2000" in line for line in lines) == 100 and sum("stopped" in line for line in lines) == 100
    if columns == 80:
        assert lines[1].split()[:4] == ["run", "model", "step", "loss"]


def agreements():
    parts = (20, 20, 0, 1.0, 1e-6, [])
    return Report(
        [
            Agreement("saved_models/demo-transformer/1", "saved-model", *parts),
            Agreement("saved_models/demo-transformer-int8.tflite", "litert-int8", *parts),
        ]
    )


def test_verify_in_a_terminal(terminal):
    with shown_in(terminal.stream):
        assert verify.show(types.SimpleNamespace(json=None), agreements()) == 0
    lines = terminal.lines()
    assert terminal.width <= terminal.columns and lines == terminal.wide_lines()
    text = "".join("".join(line.split()) for line in lines)
    assert "demo-transformer/1" in text or terminal.columns == 80  # folded over lines, there
    assert sum("saved-model" in line for line in lines) >= 1 and sum(line.endswith("ok") for line in lines) >= 1


def test_the_table_of_the_demo_in_a_terminal(terminal):
    row = {"parameters": 334464, "validation_nats": 3.956, "bits_per_byte": 1.89, "tokens_per_second": 34914.2}
    sizes = {"saved_model_mb": 3.66, "tflite_mb": 1.5, "int8_mb": 0.77}
    agree = dict.fromkeys(("saved_model_agree", "litert_agree", "int8_agree"), "20/20")
    with shown_in(terminal.stream):
        demo._show([{"model": name, **row, **sizes, **agree} for name in ("rnn", "lstm", "transformer")])
    lines = terminal.lines()
    assert terminal.width <= terminal.columns and lines == terminal.wide_lines()
    assert "transformer" in " ".join(lines) and " ".join(lines).count("334,464") == 3


def test_wide_characters_are_counted_as_they_are_drawn(terminal):
    with shown_in(terminal.stream):
        tables.show_table(("run", "state"), [("日本語のモデル" * 4, "finished"), ("e\u0301te\u0301", "running")])
    assert terminal.width <= terminal.columns and terminal.lines() == terminal.wide_lines()
    text = "".join(terminal.lines())
    assert "finished" in text and "e\u0301te\u0301" in unicodedata.normalize("NFD", text)


# --- no terminal, colour


def test_piped_tables_are_whole_plain_lines(hundred_runs, no_wishes):
    shown = subprocess.run(seqlm("runs", hundred_runs), capture_output=True, text=True, timeout=60)
    head, *lines = shown.stdout.splitlines()
    assert "\x1b" not in shown.stdout and len(lines) == 100 and shown.stderr == ""
    assert all(line.split()[0].startswith("group-") and line.endswith("stopped") for line in lines)
    assert len({len(line) for line in lines}) == 1 and head.startswith("run ")


def test_progress_without_a_terminal_is_plain_lines(monkeypatch, no_wishes):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr(working, "PATIENCE", 0.05)
    with working.Working() as work, work.on("exporting books/1"):
        for stage in ("reading the model", "writing it"):
            stages.tell(stage)
            time.sleep(0.2)
    lines = out.getvalue().splitlines()
    assert [line.partition("  ")[0] for line in lines] == [
        "exporting books/1: reading the model",
        "exporting books/1: writing it",
    ]


def test_short_work_says_nothing(monkeypatch, no_wishes):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    with working.Working() as work, work.on("exporting books/1"):
        stages.tell("reading the model")
    assert out.getvalue() == ""


@pytest.mark.parametrize(
    ("environment", "terminal", "coloured"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"TERM": "dumb"}, True, False),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"FORCE_COLOR": "0"}, True, False),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False),
        ({"FORCE_COLOR": "1", "TERM": "dumb"}, True, True),
    ],
)
def test_colour(environment, terminal, coloured, monkeypatch, no_wishes):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = Terminal(80) if terminal else None
    out = stream.stream if terminal else io.StringIO()
    with shown_in(out):
        tables.show_table(("run", "state"), [("a", "finished"), ("b", "damaged: no more")])
        streams.say_error("wrong")
    if terminal:
        stream.lines()
    written = stream.written.decode() if terminal else out.getvalue()
    assert ("\x1b[31m" in written and "\x1b[32m" in written) == coloured
    assert ("\x1b" in written) == coloured and "seqlm: error:" in written and "finished" in written


def test_a_terminal_that_cannot_go_back_gets_plain_lines(monkeypatch, no_wishes):
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal(40)
    line = StatusLine(terminal.stream)
    assert not line.redraws
    line.keep(["step 1/2", "a part that is longer than the terminal is wide"])
    terminal.lines()
    assert b"\x1b" not in terminal.written and terminal.written.count(b"\r") == 1  # of the line's end


# --- pipes


def closed_pipe(which, *words, **environment):
    """Run a command whose reader of standard output or error is gone before it writes."""
    reading, writing = os.pipe()
    os.close(reading)
    other = {"stdout": "stderr", "stderr": "stdout"}[which]
    done = subprocess.run(
        seqlm(*words),
        text=True,
        timeout=120,
        env={**os.environ, **environment},
        **{which: writing, other: subprocess.PIPE},
    )
    os.close(writing)
    return done.returncode, getattr(done, other)


def test_a_reader_that_has_gone_is_no_error(hundred_runs, tmp_path):
    assert closed_pipe("stdout", "runs", hundred_runs) == (0, "")
    assert closed_pipe("stdout", "--help") == (0, "")
    assert closed_pipe("stdout", "completion", "bash") == (0, "")
    code, said = closed_pipe("stdout", "runs", tmp_path / "none")
    assert code == 2 and said.startswith("seqlm: error: there is no folder")
    assert closed_pipe("stderr", "runs", tmp_path / "none") == (2, "")


def test_head_takes_a_line_and_the_command_ends_well(hundred_runs):
    words = " ".join(seqlm("runs", hundred_runs))
    shown = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {words} | head -1"], capture_output=True, text=True, timeout=60
    )
    assert shown.returncode == 0 and shown.stderr == "" and shown.stdout.startswith("run ")


def test_the_streams_are_those_of_before_afterwards():
    before = sys.stdout, sys.stderr, warnings.formatwarning
    with streams.prepared():
        pass
    assert (sys.stdout, sys.stderr, warnings.formatwarning) == before


# --- what a list of runs costs

COUNTED = """
import json, sys
opened = []
sys.addaudithook(lambda event, args: event == "open" and str(args[0]).startswith(sys.argv[1]) and opened.append(args[0]))
import seqlm_cli
code = seqlm_cli.main(["runs", sys.argv[1]])
heavy = sorted({name.partition(".")[0] for name in sys.modules} & {"numpy", "keras", "tensorflow", "jax", "torch", "rich"})
print(json.dumps({"code": code, "opened": len(opened), "heavy": heavy}))
"""


def test_a_hundred_runs_are_listed_without_keras_and_at_once(hundred_runs):
    words = [sys.executable, "-c", COUNTED, str(hundred_runs)]
    shown = subprocess.run(words, capture_output=True, text=True, timeout=60)
    found = json.loads(shown.stdout.splitlines()[-1])
    assert found["code"] == 0 and found["heavy"] == [] and len(shown.stdout.splitlines()) == 102
    assert (
        found["opened"] <= 6 * 100
    )  # recipe, history, and the manifest of the newest checkpoint, which is asked twice


@pytest.mark.alone
def test_a_hundred_runs_are_listed_in_half_a_second(hundred_runs):
    seconds = []
    for _ in range(5):
        before = os.times()
        subprocess.run(seqlm("runs", hundred_runs), capture_output=True, check=True, timeout=60)
        after = os.times()
        seconds.append(after.children_user - before.children_user + after.children_system - before.children_system)
        if seconds[-1] < 0.5:
            break
    assert min(seconds) < 0.5, seconds


def test_what_lies_in_a_run_is_not_walked_over(hundred_runs, tmp_path):
    from keras_seqlm.checkpoints.runs import list_runs

    outer = make_runs(tmp_path, 1) / "group-0" / "run-number-000"
    make_runs(outer / "more", 1)
    make_runs(outer / "checkpoints", 1)
    names = [run["name"] for run in list_runs(tmp_path)]
    assert names == ["group-0/run-number-000", "group-0/run-number-000/more/group-0/run-number-000"]


def test_the_list_in_a_process_that_has_keras_leaves_it_as_it_is(hundred_runs, capsys):
    before = sys.modules["keras_seqlm"]
    assert seqlm_cli.main(["runs", str(hundred_runs)]) == 0
    assert sys.modules["keras_seqlm"] is before and hasattr(before, "training")
