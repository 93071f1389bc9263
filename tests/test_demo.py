"""The demonstration at toy size, from the corpus to the report."""

import html
import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest

import seqlm_cli
from keras_seqlm import tasks
from seqlm_cli import demo
from seqlm_cli.report_page import EXPECTATION, write_page


@pytest.mark.slow
def test_the_demo_ends_well(tmp_path, monkeypatch, capsys, fast_exports):
    # One of the three: a Transformer is exported and verified in tests/export/test_verify.py.
    monkeypatch.setattr(demo, "MODELS", {"lstm": demo.MODELS["lstm"]})
    runs, saved_models = tmp_path / "runs" / "demo", tmp_path / "saved_models"
    words = ["demo", "--steps", "3", "--runs", str(runs), "--saved-models", str(saved_models)]
    with fast_exports():
        assert seqlm_cli.main(words) == 0
    shown = capsys.readouterr().out
    assert "$ seqlm train --text" in shown and "SavedModel = model" in shown

    rows = json.loads((runs / "table.json").read_text())["rows"]
    assert [row["model"] for row in rows] == ["lstm"]
    for row in rows:
        assert row["saved_model_agree"] == row["litert_agree"] == "20/20"
        assert row["int8_agree"].startswith("loss ") and row["int8_mb"] < row["tflite_mb"]
        assert 0 < row["bits_per_byte"] < 8 and row["parameters"] > 10_000
        assert f"{row['model']}: {demo.PROMPT}" in shown
    assert (runs / "loss.png").read_bytes().startswith(b"\x89PNG")
    page = (runs / "report.html").read_text(encoding="utf-8")
    assert page.count("20/20") >= 2 and "<h3>lstm</h3>" in page and "loss.png" in page
    links = re.findall("href='([^']+)'", page)
    assert len(links) == 5 and all((runs / link).exists() for link in links), links
    (command,) = re.findall("<h2>Try it</h2><pre>(.*?)</pre>", page)
    assert html.unescape(command) in shown
    assert seqlm_cli.parser().parse_args(shlex.split(html.unescape(command))[1:]).run == str(runs / "lstm")

    endings = ["", "-int8.json", "-int8.tflite", ".json", ".tflite", ".tokenizer"]
    found = sorted(path.name for path in saved_models.glob("demo-*"))
    assert found == [f"demo-lstm{ending}" for ending in endings]
    assert sorted(path.name for path in (saved_models / "demo-lstm").iterdir()) == [
        "1",
        "batching.txt",
        "models.config",
    ]
    assert tasks.load(runs / "lstm").tokenizer.vocabulary_size == 1024


def test_the_corpus_is_there_without_the_documentation_module(tmp_path, monkeypatch):
    path = demo.write_corpus(tmp_path / "topics.jsonl")
    topics = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(topics) > 50 and all(topic["text"] for topic in topics)
    assert path.read_bytes() == demo.write_corpus(tmp_path / "again.jsonl").read_bytes()

    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)  # what Python says of a missing module
    path = demo.write_corpus(tmp_path / "docstrings.jsonl")
    docstrings = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert sum(len(topic["text"]) for topic in docstrings) > 100_000
    assert {"argparse", "unittest"} <= {topic["name"] for topic in docstrings}


@pytest.fixture
def page(tmp_path):
    """A report with three models, long words and marks that HTML reads otherwise."""
    columns = {"model": "model", "parameters": "parameters", "agree": "SavedModel = model"}
    rows = [
        {"model": name, "parameters": "334,464", "agree": "20/20", "sample": f"<b> & {'x' * 300}"}
        for name in ("rnn", "lstm", "transformer")
    ]
    artifacts = {row["model"]: [("saved-model", tmp_path / "saved_models" / "it's" / "1")] for row in rows}
    path = tmp_path / "runs" / "report.html"
    path.parent.mkdir()
    write_page(path, columns, rows, artifacts, "The <function>", "seqlm generate runs/demo/lstm", "Keras")
    return path


def test_the_page_says_what_there_is_and_what_to_expect(page):
    text = page.read_text(encoding="utf-8")
    assert "<meta name='viewport' content='width=device-width, initial-scale=1'>" in text
    assert text.count("<th scope='row'>") == 2 and text.count("<th scope='col'>") == 3, "a column a model, not a figure"
    assert html.escape(EXPECTATION) in text and EXPECTATION.count(".") == 1, "one sentence"
    assert "300,000 parameters" in EXPECTATION
    assert "<b> & x" not in text and "&lt;b&gt; &amp; x" in text and "The &lt;function&gt;" in text
    assert text.count("href='../saved_models/it&#x27;s/1'") == 3


def test_the_page_is_no_wider_than_a_phone(page):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no browser is installed here")
    inside = html.escape(page.read_text(encoding="utf-8"), quote=True)
    measure = "document.title = 'wide ' + this.contentDocument.documentElement.scrollWidth"
    frame = f'<iframe width="420" height="2000" style="border:0" onload="{measure}" srcdoc="{inside}"></iframe>'
    outside = page.with_name("phone.html")
    outside.write_text(f"<!doctype html><meta charset='utf-8'><title></title>{frame}", encoding="utf-8")
    words = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--dump-dom",
        outside.as_uri(),
    ]
    shown = subprocess.run(words, capture_output=True, text=True, timeout=120).stdout
    assert "<title>wide 420</title>" in shown, shown[:300]


def test_an_artifact_that_disagrees_fails_the_demo(tmp_path, monkeypatch, capsys):
    from keras_seqlm.export import Report
    from keras_seqlm.export.verify import Agreement

    def report(_, __, name):
        agree = 19 if name == "lstm" else 20
        return Report([Agreement(name, "litert", 20, agree, 0, 1.0, 0.0, [], "step 3 is 5, not 4")])

    monkeypatch.setattr(demo, "_export", report)
    monkeypatch.setattr(
        demo, "_row", lambda run, name, report: dict.fromkeys(demo._COLUMNS) | {"model": name, "sample": ""}
    )
    monkeypatch.setattr(demo, "_plot", lambda runs: None)
    assert demo.demo(tmp_path, tmp_path, 1, 1, lambda words: None) == 1
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert [row["model"] for row in rows] == ["rnn", "lstm", "transformer"] == list(demo.MODELS)
    assert all(f"<h3>{name}</h3>" in page for name in demo.MODELS)
    errors = capsys.readouterr().err
    assert "lstm: an artifact disagrees" in errors and "step 3 is 5, not 4" in errors and "rnn" not in errors
