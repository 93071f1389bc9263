"""The report of a finetuned run: its figures, pictures and captions; it never ends a run."""

import collections
import html.parser
import re

import numpy as np
import pytest

from keras_seqlm.metrics import calibration_error
from keras_seqlm.models import RecurrentEncoder
from keras_seqlm.tasks import TextClassification, TextEmbedding, TokenTagging
from keras_seqlm.tokenizers import ByteTokenizer
from seqlm_cli.task_report import write_report

ROWS = [{"text": f"{word} {i}", "label": word} for word in ("card <b>", "cash") for i in range(6)]
HISTORY = "step,loss,validation_loss,validation_accuracy\n4,1.0,0.9,0.5\n8,0.8,0.7,0.75\n"


def encoder():
    return RecurrentEncoder(260, cell="gru", size="nano", num_layers=1, hidden_dim=8)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "history.csv").write_text(HISTORY)
    return tmp_path


def test_of_classes(folder):
    task = TextClassification.begin_with(ROWS, encoder(), ByteTokenizer())
    figures = task.evaluate(ROWS)
    page = write_report(folder, task, ROWS, figures, "accuracy").read_text()
    assert f"{figures['accuracy']:.4f}" in page and "name='viewport' content='width=device-width" in page
    assert "card &lt;b&gt;" in page and "<b>" not in page  # names are text
    found = task.predict([row["text"] for row in ROWS])
    sure = [max(one.probabilities.values()) for one in found]
    right = [one.label == row["label"] for one, row in zip(found, ROWS, strict=True)]
    assert f"calibration error {calibration_error(sure, right):.4f}, of 12 answers" in " ".join(page.split())
    pairs = [(row["label"], one.label) for row, one in zip(ROWS, found, strict=True) if row["label"] != one.label]
    lines = re.findall(r"<th scope='row'>([^<]*), taken for ([^<]*)</th><td>(\d+)<", page)
    assert {(html.unescape(a), html.unescape(b)): int(count) for a, b, count in lines} == collections.Counter(pairs)
    assert collections.Counter(pairs) != collections.Counter(pair[::-1] for pair in pairs)
    for name in ("learning.png", "confusion.png", "reliability.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG") and f"src='{name}'" in page

    class Checked(html.parser.HTMLParser):
        open_tags = []

        def handle_starttag(self, tag, attrs):
            assert "width" not in dict(attrs), "a phone is narrower"
            if tag not in ("meta", "img", "br"):
                self.open_tags.append(tag)

        def handle_endtag(self, tag):
            assert self.open_tags.pop() == tag

    Checked().feed(page)
    assert not Checked.open_tags


def test_of_spans_and_of_vectors(folder):
    rows = [{"text": f"at {i}", "spans": [{"label": "time", "start": 3, "end": 4}]} for i in range(6)]
    task = TokenTagging.begin_with(rows, encoder(), ByteTokenizer())
    judged = task.judged(rows)
    assert len(judged["truth"]) == len(judged["predicted"]) == 24 and (judged["truth"] > 0).sum() == 6
    spans = [span for one in task.predict([row["text"] for row in rows]) for span in one.spans]
    right = [(span.label, span.start, span.end) == ("time", 3, 4) for span in spans]
    assert judged["confidence"] == [span.score for span in spans] and judged["right"] == right and not all(right)
    assert "confusion.png" in write_report(folder, task, rows, task.evaluate(rows), "span_f1").read_text()
    pairs = [{"text": "a", "pair": "b"}, {"text": "c", "pair": "d"}]
    vectors = TextEmbedding.begin_with(pairs, encoder(), ByteTokenizer())
    page = write_report(folder, vectors, pairs, vectors.evaluate(pairs), "loss").read_text()
    assert "recall at 1" in page and "confusion" not in page


def test_it_never_ends_a_run(folder):
    task = TextClassification.begin_with(ROWS, encoder(), ByteTokenizer())
    (folder / "history.csv").write_text("no history")
    with pytest.warns(UserWarning, match="report.html could not be written .*the run is whole without it"):
        assert write_report(folder, task, ROWS, task.evaluate(ROWS), "accuracy") is None
    assert np.isfinite(task.evaluate(ROWS)["accuracy"])
