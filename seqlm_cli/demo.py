"""`seqlm demo`: three models learn Python's own documentation, are exported, and each export is compared with its
model. What it does is what the command line does; it prints each command."""

import inspect
import json
import math
import pathlib
import shlex
import sys
import time

from seqlm_cli.endings import DISAGREES
from seqlm_cli.report_page import write_page
from seqlm_cli.tables import show_table
from seqlm_cli.working import Working

HELP = "train, export and verify three models on Python's own documentation"
EXAMPLES = (
    ("seqlm demo", "train, export, verify, and write runs/demo/report.html"),
    ("seqlm demo --steps 50", "a look in two minutes; the texts are worse"),
    ("seqlm demo --seed 7", "the same with other first weights"),
    ("seqlm demo --runs /tmp/runs --saved-models /tmp/models", "write elsewhere"),
)
# Steps and learning rate: under a minute of training each on two cores.
MODELS = {"rnn": (600, 4e-3), "lstm": (500, 4e-3), "transformer": (700, 3e-3)}
RECIPE = "--tokenizer bpe --vocabulary-size 1024 --size nano --context 128 --batch 16"
PROMPT = "The function returns"


def arguments(p):
    """Add what the verb takes to its parser."""
    p.add_argument("--runs", default="runs/demo", metavar="FOLDER", help="run folders (default runs/demo)")
    p.add_argument("--saved-models", default="saved_models", metavar="FOLDER", help="artifacts (default saved_models)")
    p.add_argument(
        "--steps", type=int, default=None, help="training steps of each model (default: under five minutes in all)"
    )
    p.add_argument("--seed", type=int, default=1)


def run(args):
    """`seqlm demo`: three models from Python's own documentation, exported and verified."""
    import seqlm_cli

    return demo(args.runs, args.saved_models, args.steps, args.seed, seqlm_cli.run)


def demo(runs, saved_models, steps, seed, run_command):
    """Train, export, verify, and report.

    Args:
        runs: the folder of the run folders `rnn`, `lstm` and `transformer`.
        saved_models: the folder of the artifacts.
        steps: of each model, or None for about three minutes of training in all.
        seed: of everything.
        run_command: takes the words of a command of the console script and runs it.

    Returns:
        The exit code: 0, or 1 where an artifact disagrees with its model.
    """
    import concurrent.futures  # here, since every command imports this file

    from keras_seqlm.files import write_json

    began = time.monotonic()
    runs = pathlib.Path(runs)
    runs.mkdir(parents=True, exist_ok=True)
    corpus = write_corpus(runs / "corpus.jsonl")
    print(f"corpus: {corpus} ({corpus.stat().st_size:,} bytes of English documentation from this Python)")
    for name, (default, rate) in MODELS.items():
        words = f"train --text {corpus} --model {name} {RECIPE} --steps {steps or default}"
        words += f" --learning-rate {rate} --seed {seed} --out {runs / name} --overwrite"
        print(f"\n$ seqlm {words}", flush=True)
        run_command(shlex.split(words))
    print("\nexporting each model to SavedModel and LiteRT (fp32 and int8), and comparing them with it ...", flush=True)

    def exported(name):
        with work.on(f"demo-{name}"):
            return _export(runs, saved_models, name)

    # An export is a process of its own that keeps one core busy, so two at a time.
    with Working() as work, concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        reports = dict(zip(MODELS, pool.map(exported, MODELS), strict=True))
    rows = [_row(runs / name, name, reports[name]) for name in MODELS]
    print()
    _show(rows)
    print()
    for row in rows:
        print(f"{row['model']}: {PROMPT}{row['sample']}".replace("\n", " "))
    _plot(runs)
    page = _page(runs, rows, reports)
    write_json(runs / "table.json", {"rows": rows})
    print(f"\nreport: {page}\ncurves: {runs / 'loss.png'}\ntry:    {try_command(runs, rows)}")
    print(f"{time.monotonic() - began:.0f} s in all")
    failed = [name for name, report in reports.items() if not report.ok]
    for name in failed:
        print(f"{name}: an artifact disagrees with its model\n{reports[name]}", file=sys.stderr)
    return DISAGREES if failed else 0


def write_corpus(path):
    """Write CPython's own English documentation as one JSON line a topic: `pydoc_data.topics`, which every Python has,
    or the standard library's docstrings where a distribution leaves it out."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        topics = dict(_docstrings())
    with open(path, "w", encoding="utf-8") as file:
        for name in sorted(topics):
            file.write(json.dumps({"name": name, "text": topics[name]}, ensure_ascii=False) + "\n")
    return path


def _docstrings():
    import argparse
    import collections
    import datetime
    import decimal
    import email.message
    import logging
    import subprocess
    import tkinter
    import unittest

    for module in (argparse, collections, datetime, decimal, email.message, logging, subprocess, tkinter, unittest):
        parts = [inspect.getdoc(module) or ""]
        for _, thing in inspect.getmembers(module, callable):
            parts += [inspect.getdoc(thing) or ""]
            parts += [inspect.getdoc(member) or "" for _, member in inspect.getmembers(thing, callable)]
        yield module.__name__, "\n\n".join(dict.fromkeys(part for part in parts if part))


def _export(runs, saved_models, name):
    """One model's three artifacts and their report."""
    from keras_seqlm import export

    root, run = pathlib.Path(saved_models), runs / name
    target = f"demo-{name}"
    version = export.next_version(root / target)
    artifacts = [
        export.saved_model(run, root / target / str(version)),
        export.litert(run, root / f"{target}.tflite", overwrite=True),
        export.litert(run, root / f"{target}.tflite", quantize="int8", overwrite=True),
    ]
    report = export.verify(run, *artifacts)
    print(f"{target}: done", flush=True)
    return report


def _row(run, name, report):
    from keras_seqlm import tasks
    from keras_seqlm.training import read_history

    task = tasks.load(run)
    last = read_history(run / "history.csv")[-1]
    agreements = {agreement.kind: agreement for agreement in report}
    sizes = {agreement.kind: _megabytes(agreement.artifact) for agreement in report}
    return {
        "model": name,
        "parameters": task.model.count_params(),
        "validation_nats": last["validation_loss"],
        "bits_per_byte": last["validation_bits_per_byte"],
        "tokens_per_second": last["tokens_per_second"],
        "saved_model_mb": sizes["saved-model"],
        "tflite_mb": sizes["litert"],
        "int8_mb": sizes["litert-int8"],
        "saved_model_agree": _agreement(agreements["saved-model"]),
        "litert_agree": _agreement(agreements["litert"]),
        "int8_agree": _agreement(agreements["litert-int8"]),
        "sample": task.generate(PROMPT, max_new_tokens=40, temperature=0.7, seed=1),
    }


def _agreement(agreement):
    return f"{agreement.agree}/{agreement.prompts}"


def _megabytes(path):
    path = pathlib.Path(path)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return round(sum(file.stat().st_size for file in files) / 1e6, 2)


_COLUMNS = {
    "model": "model",
    "parameters": "parameters",
    "validation_nats": "validation nats/token",
    "bits_per_byte": "bits/byte",
    "tokens_per_second": "tokens/s",
    "saved_model_mb": "SavedModel MB",
    "tflite_mb": "LiteRT MB",
    "int8_mb": "int8 MB",
    "saved_model_agree": "SavedModel = model",
    "litert_agree": "LiteRT = model",
    "int8_agree": "int8 = model",
}


def _cells(row):
    formats = {"parameters": ",d", "validation_nats": ".3f", "bits_per_byte": ".3f", "tokens_per_second": ",.0f"}
    return [format(row[key], formats.get(key, "")) if row[key] is not None else "-" for key in _COLUMNS]


def _show(rows):
    """The table with a column for each model, since there are more figures than models."""
    names, *lines = zip(*map(_cells, rows), strict=True)
    _, *titles = _COLUMNS.values()
    show_table(("", *names), [(title, *line) for title, line in zip(titles, lines, strict=True)])


def _plot(runs):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from keras_seqlm.training import read_history

    figure = Figure(figsize=(7.5, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, color in zip(MODELS, ("#7a8ca3", "#d08a2c", "#c8442f"), strict=False):
        rows = [row for row in read_history(runs / name / "history.csv") if row["validation_bits_per_byte"]]
        points = [(row["seconds"], row["validation_bits_per_byte"]) for row in rows]
        axes.plot(
            *zip(*points, strict=True), label=f"{name}: {points[-1][1]:.2f}", color=color, marker="o", markersize=3
        )
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("validation, bits per byte")
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(runs / "loss.png", format="png")


def _page(runs, rows, reports):
    import keras

    files = {"history": "history.csv", "samples while it learned": "samples.txt"}
    artifacts = {
        name: [(agreement.kind, agreement.artifact) for agreement in report]
        + [(title, runs / name / file) for title, file in files.items()]
        for name, report in reports.items()
    }
    texts = [dict(zip(_COLUMNS, _cells(row), strict=True), sample=row["sample"]) for row in rows]
    path = runs / "report.html"
    made_by = f"Keras {keras.__version__} on {keras.backend.backend()}"
    write_page(path, _COLUMNS, texts, artifacts, PROMPT, try_command(runs, rows), made_by)
    return path


def try_command(runs, rows):
    """The command that lets the model with the lowest loss write on."""
    best = min(rows, key=lambda row: row["bits_per_byte"] or math.inf)["model"]
    return shlex.join(["seqlm", "generate", str(runs / best), "--temperature", "0.7", "--prompt", PROMPT])
