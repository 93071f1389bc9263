"""Exports of tasks that answer rows: each says what its task says, and those that do not are seen."""

import json
import pathlib
import re
import shutil
import sys

import numpy as np
import pytest
from row_toys import LABELS, ROWS, TOY, TOYS, rows_of
from tampering import copied_lite, seal, seal_lite

from keras_seqlm import export, tasks
from keras_seqlm.export import row_verify
from keras_seqlm.export.agreement import RowAgreement
from keras_seqlm.export.inspection import Inspection, contradictions, inspect
from keras_seqlm.export.row_reference import figures_with, row_of_texts, write_row_reference
from keras_seqlm.export.row_signatures import lite_lengths, served
from keras_seqlm.models import RecurrentEncoder
from keras_seqlm.tokenizers import ByteTokenizer
from seqlm_runtime import LiteRTModel, LiteRTTask
from seqlm_runtime.lite_file import parse_lite_file
from seqlm_runtime.op_gate import SIDECAR

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="TensorFlow's C library is used on Linux only")
QUANTIZED = ("classify",)


@linux_only
@pytest.mark.slow
@pytest.mark.parametrize("name", TOYS)
def test_every_export_says_what_its_task_says(name, row_run, row_saved_model, row_litert, fast_exports):
    """Of its rows, of empty, odd and long texts; all at once, in another order, alone; by every signature."""
    artifacts = [row_saved_model(name), *([] if name == "classify-gru" else [row_litert(name)])]
    artifacts += [row_litert(name, "int8")] if name in QUANTIZED else []
    with fast_exports():
        report = export.verify(row_run(name), *artifacts)
    assert report.ok, str(report)
    for found in report:
        assert found.prompts >= len(rows_of(name)) + 10 and found.same_choices > 0.9
        if found.exact:
            assert found.agree == found.prompts and found.exempt_steps < found.prompts / 3
        else:
            assert found.metric == "accuracy" and found.metric_loss <= 0.02 and "accuracy +0.0" in str(report)
    assert json.loads(json.dumps(report.to_dict()))[artifacts[0]]["ok"]


def swap_in_graph(artifact, one, other):
    """Two texts of one length in the bytes of a graph."""
    file = artifact / "saved_model.pb"
    content = file.read_bytes()
    assert one in content and other in content and len(one) == len(other)
    file.write_bytes(re.sub(one + b"|" + other, lambda found: other if found[0] == one else one, content))


def overwritten(artifact, made):
    """The constants of a LiteRT file by `made(tensor)`: their new bytes, or None."""
    content = bytearray(artifact.read_bytes())
    changed = 0
    for graph in parse_lite_file(bytes(content)).graphs:
        for tensor in graph:
            new = made(tensor) if len(tensor.content) else None
            if new is not None:
                at = bytes(content).find(bytes(tensor.content))
                if at >= 0:
                    content[at : at + len(new)] = new
                    changed += 1
    assert changed
    artifact.write_bytes(bytes(content))


def constant_head(artifact):
    """The last layer gives the same to every row."""
    overwritten(artifact, lambda t: bytes(len(t.content)) if t.dtype == np.float32 and t.shape == (3, 16) else None)


def turned(artifact):
    """Weights in another order."""
    overwritten(artifact, lambda t: bytes(t.content)[::-1] if t.dtype == np.int8 and len(t.content) > 400 else None)


@linux_only
@pytest.mark.slow
def test_faults_are_seen(row_run, row_saved_model, row_litert, fast_exports, tmp_path):
    """Each in a copy of an artifact, with its checksums made anew."""
    sources = {
        "saved": row_saved_model("classify"),
        "lite": row_litert("classify"),
        "int8": row_litert("classify", "int8"),
    }
    copies = {}
    for name in ("swapped labels", "foreign weights", "a label of its own", "more room"):
        copies[name] = pathlib.Path(shutil.copytree(sources["saved"], tmp_path / name / "1"))
    for name in ("constant head", "swapped lite labels", "other lite room", "unsealed lite"):
        copies[name] = copied_lite(pathlib.Path(sources["lite"]), tmp_path / name)
    copies["turned int8"] = copied_lite(pathlib.Path(sources["int8"]), tmp_path / "int8")
    swap_in_graph(copies["swapped labels"], b"apple", b"berry")
    foreign = pathlib.Path(row_saved_model("classify-foreign"))
    shutil.copytree(foreign / "variables", copies["foreign weights"] / "variables", dirs_exist_ok=True)
    swap_in_graph(copies["a label of its own"], b"apple", b"mango")
    seal(copies["swapped labels"])
    seal(copies["foreign weights"])
    task = json.loads((copies["more room"] / SIDECAR).read_text())["task"]
    seal(copies["a label of its own"], task={**task, "settings": {**task["settings"], "labels": list(LABELS[::-1])}})
    seal(copies["more room"], task={**task, "room": 400}, max_prompt_tokens=400)
    constant_head(copies["constant head"])
    seal_lite(copies["constant head"])
    turned(copies["turned int8"])
    seal_lite(copies["turned int8"])
    task["room"] = lite_lengths(40)[-2]
    labels = {**task["settings"], "labels": list(LABELS[::-1])}
    seal_lite(copies["swapped lite labels"], task={**task, "room": 40, "settings": labels})
    seal_lite(copies["other lite room"], task=task)
    sidecar = copies["unsealed lite"].with_suffix(".json")
    sidecar.write_text(sidecar.read_text().replace("apple", "mango", 1))
    with fast_exports():
        report = export.verify(row_run("classify"), *map(str, copies.values()), rows=ROWS["classify"][:6])
    found = dict(zip(copies, report, strict=True))
    assert not any(one.ok for one in report), str(report)
    said = {
        "swapped labels": "it answers",
        "foreign weights": "its numbers differ from the model's",
        "a label of its own": "its sidecar says task.settings.labels",
        "more room": "its sidecar says max_prompt_tokens 400",
        "constant head": "its numbers differ from the model's",
        "swapped lite labels": "its sidecar says task.settings.labels",
        "other lite room": "",
        "unsealed lite": "was changed",
        "turned int8": "its weights are not the model's",
    }
    others = {name: found[name].reasons for name in said if said[name] not in " ".join(found[name].reasons)}
    assert not others


def test_an_export_of_another_kind_is_a_row_of_the_report(row_run, row_litert, litert):
    (found,) = export.verify(row_run("classify"), litert("lstm"))
    assert "the run is of a task that answers rows" in found.reasons[0] and not found.ok and found.figure == "not run"
    (said,) = contradictions(inspect(row_litert("classify")), {"model": "RecurrentLM"})
    assert said == "it is an export of a task that answers rows, and the run is of a language model"


def test_the_phone_answers_as_the_task(row_run, row_litert):
    """Texts, pairs and rows; without Keras, which a process of its own shows in `verify`."""
    task, phone = tasks.load(row_run("classify")), LiteRTTask(row_litert("classify"))
    texts = ["apple 3", ("berry", "and another"), {"text": "mango"}, ""]
    for one, other in zip(
        task.predict([texts[0], texts[1], texts[2], {"text": ""}]), phone.predict(texts), strict=True
    ):
        assert (one.label, one.labels, other["truncated"]) == (other["label"], other["labels"], False)
        assert one.probabilities == pytest.approx(other["probabilities"], abs=1e-5)
    assert phone.predict(["x" * 99])[0]["truncated"] and phone.lengths == [16, 40]
    with pytest.raises(ValueError, match="it has no text"):
        phone.predict([{"pair": "x"}])
    with pytest.raises(ValueError, match="expected a text in text, got 3"):
        phone.predict([{"text": 3}])
    with pytest.raises(ValueError, match="A row has 1 to 40 ids; got 41"):
        phone.run({"token_ids": np.ones(41, int), "token_types": np.zeros(41, int)})
    with pytest.raises(ValueError, match="which seqlm_runtime.LiteRTTask runs"):
        LiteRTModel(row_litert("classify"))


def test_predict_takes_an_export(row_run, row_litert, capsys):
    import seqlm_cli

    answers = []
    for source in (str(row_run("classify")), row_litert("classify", "int8")):
        assert seqlm_cli.main(["predict", source, "--text", "apple 3", "mango 5"]) == 0
        answers.append([json.loads(line)["label"] for line in capsys.readouterr().out.splitlines()])
    assert answers[0] == answers[1] == ["apple", "mango"]
    assert seqlm_cli.main(["predict", source, "--text", "a", "--checkpoint", "best"]) == 2
    assert "--checkpoint is of run folders" in capsys.readouterr().err


def test_what_is_of_language_models_is_refused(row_run, tmp_path):
    with pytest.raises(ValueError, match="max_new_tokens_limit is of tasks that write text"):
        export.saved_model(row_run("classify"), tmp_path / "1", max_new_tokens_limit=9)
    with pytest.raises(ValueError, match="asked with rows, and prompts were given"):
        export.verify(row_run("classify"), prompts=["a"])


def test_how_much_an_export_reads(row_run):
    task = tasks.load(row_run("classify"))
    assert (served(task).room, served(task, 12).room, served(task, 12).most) == (40, 12, 12)
    with pytest.raises(ValueError, match="at least 8"):
        served(task, 3)
    task = tasks.load(row_run("tag"))
    assert (served(task, lite=True).room, served(task, 99).most) == (256, 99)
    with pytest.raises(ValueError, match="reads 40 tokens of a row at most, and max_prompt_tokens is 41"):
        served(tasks.load(row_run("embed")), 41)


@pytest.mark.parametrize(("mistakes", "ok"), [(-0.02, True), (0.04, True), (0.06, False), (float("nan"), False)])
def test_a_quantised_one_may_be_a_little_worse_and_no_more(mistakes, ok, monkeypatch, tmp_path):
    """By the task's figure alone: the numbers are near the model's, and all answers are its own."""
    result = RowAgreement("a.tflite", "litert-int8", 9, 9, 0, 1.0, 0.1, [], relative_difference=0.1)
    monkeypatch.setattr(row_verify, "run_clean", lambda *_, **options: {"accuracy": 0.9 - mistakes})
    facts = {"task": {"name": "classify", "settings": {"kind": "class"}, "room": 9}, "max_prompt_tokens": 9}
    expected = {"figures": json.dumps({"accuracy": 0.9}), "sizes": np.array([3])}
    row_verify._hold_to_figures(result, expected, {"real": []}, facts, tmp_path, [], tmp_path, ())
    assert result.metric == "accuracy" and result.ok is ok and bool(result.reasons) is not ok
    assert result.metric_loss == pytest.approx(mistakes, nan_ok=True)


LONG = {**ROWS["tag"][0], "text": ROWS["tag"][0]["text"] + " and so on" * 9}
JUDGED = {
    **{name: (name, rows_of(name), None) for name in TOYS},
    "second texts": ("embed", [{"text": f"a {n}", "pair": f"b {n}"} for n in range(5)], None),
    "more than is served": ("tag", [*ROWS["tag"], LONG], 32),
    "no token types": (None, ROWS["answer"], None),
}


@pytest.mark.parametrize("name", JUDGED)
def test_the_figures_of_the_model_s_own_numbers_are_its_own(name, row_run, tmp_path):
    """What a quantised artifact is asked for is all that the figures are made of."""
    toy, rows, most = JUDGED[name]
    folder, file = tmp_path / "run" if toy is None else row_run(toy), tmp_path / "reference.npz"
    if toy is None:
        encoder = RecurrentEncoder(260, cell="gru", **TOY)
        tasks.QuestionAnswering.begin_with(rows, encoder, ByteTokenizer()).save(folder)
    room = tasks.load(folder).room
    bounds = {"room": min(room, 256), "most": most or min(room, 256)}
    write_row_reference(folder, rows, file, **bounds)
    with np.load(file) as stored:
        figures = json.loads(str(stored["figures"]))
    assert figures_with(folder, rows, file, **bounds) == pytest.approx(figures, abs=1e-6) and figures


NUMBERS, SAID = np.array([[0.5, -1.0]], "float32"), {"label": "a", "truncated": False}
RIGHT = {
    **{"numbers 0": NUMBERS, "all rows|rows": np.array([0]), "all rows|answers": json.dumps([SAID])},
    **{"beside": 0.0, "accepted": "[]", "warm_up": 2},
}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, ""),
        ({"numbers 0": NUMBERS + 0.01}, "its numbers differ"),
        ({"numbers 0": NUMBERS * np.nan}, "its numbers differ"),
        ({"numbers 0": NUMBERS[:, :1]}, "its numbers have the shape"),
        ({"length 16 row 0": NUMBERS + 0.01}, "its numbers differ"),
        ({"beside": 0.01}, "forward: a row beside others"),
        ({"accepted": '["the id -1"]'}, "forward: it answers the id -1"),
        ({"warm_up": 0}, "no requests by which a server warms up"),
        ({"all rows|answers": json.dumps([{**SAID, "label": "b"}])}, "row 0 by all rows: it answers"),
        ({"all rows|answers": json.dumps([{**SAID, "truncated": True}])}, "row 0 by all rows: it answers"),
        ({"row 0 alone|rows": np.array([0]), "row 0 alone|answers": json.dumps([{}])}, "row 0 by row 0 alone"),
    ],
)
def test_each_thing_that_was_asked_is_looked_at(changed, reason):
    expected = {"sizes": np.array([2]), "numbers 0": NUMBERS, "answers": json.dumps([SAID]), "margins": np.array([1.5])}
    result = RowAgreement("a/1", "saved-model", 1, 0, 0, None, None, [])
    row_verify._hold(result, expected, {**RIGHT, **changed}, {"task": {"name": "classify"}})
    assert result.ok is not bool(reason) and reason in " ".join(result.reasons)


def test_the_bound_of_a_figure_is_the_one_that_was_given(tmp_path):
    inspection = Inspection("litert-int8", reasons=["refused"])
    (found,) = row_verify.row_agreements(tmp_path, [], ["a.tflite"], [inspection], tmp_path, (), 0.2, ())
    assert found.max_metric_loss == 0.2


def test_what_is_asked_of_a_row_is_all_of_its_texts(row_run):
    served = tasks.load(row_run("classify")).as_served()
    assert row_of_texts(served, {"text": "a", "pair": "b", "label": "apple"}) == {"text": "a", "pair": "b"}
    assert row_of_texts(served, {"pair": "b"}) is row_of_texts(served, {"text": "a", "pair": 3}) is None
    served = tasks.load(row_run("tag")).as_served()
    assert row_of_texts(served, {"tokens": ["at", "8"], "tags": ["O", "O"]}) == {"text": "at 8"}


def test_a_mask_is_filled_rightly_by_its_first_candidate(row_run, tmp_path):
    task = tasks.load(row_run("fill-mask"))
    rows = [{"text": f"a[MASK]{n}"} for n in range(4)]
    for number, (row, one) in enumerate(zip(rows, task.predict([row["text"] for row in rows]), strict=True)):
        row["token_id"] = one.candidates[0][number > 0].token_id  # of the first row the best, of the others the second
    write_row_reference(row_run("fill-mask"), rows, tmp_path / "reference.npz", task.room, task.room)
    with np.load(tmp_path / "reference.npz") as stored:
        assert json.loads(str(stored["figures"])) == {"count": 4, "accuracy": 0.25}


TIED = {"label": "a", "labels": ["a"], "probabilities": {"a": 0.5, "b": 0.5}, "value": None, "truncated": False}


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({}, True),
        ({"label": "b", "labels": ["b"]}, True),  # what hangs on nothing
        ({"truncated": True}, False),
        ({"probabilities": {"a": 0.9, "b": 0.1}}, False),
        ({"probabilities": {"a": 0.5}}, False),
        ({"more": 1}, False),
    ],
)
def test_of_an_answer_that_might_be_another_the_rest_is_held(changed, same):
    assert row_verify.alike(TIED, {**TIED, **changed}, 0.0) is same


def test_a_report_in_which_nothing_was_held_is_not_ok():
    result = RowAgreement("a/1", "saved-model", 1, 0, 0, None, 0.0, [])
    got = {"all rows|rows": np.array([0]), "all rows|answers": json.dumps([TIED])}
    row_verify._hold_to_answers(result, [TIED], np.array([0.0]), got)
    assert not result.ok and "none was held to it" in result.reasons[0]


@pytest.mark.parametrize(
    ("wanted", "found", "same"),
    [
        ({"embedding": [0.6, 0.8]}, {"embedding": [0.61, 0.79]}, True),
        ({"embedding": [0.6, 0.8]}, {"embedding": [-0.6, -0.8]}, False),
        ({"embedding": [0.6, 0.8]}, {"embedding": [0.6]}, False),
        ({"label": None, "value": 1.0}, {"label": None, "value": 1.2}, True),
        ({"label": None, "value": 1.0}, {"label": None, "value": -1.0}, False),
        ({"label": "a", "value": None, "score": 0.9}, {"label": "a", "value": None, "score": 0.5}, True),
        ({"label": "a", "value": None, "score": 0.9}, {"label": "b", "value": None, "score": 0.9}, False),
    ],
)
def test_other_weights_choose_the_same(wanted, found, same):
    assert row_verify.same_choice(wanted, found, 0.3) is same


def test_a_model_that_is_never_right_is_held_by_its_answers(monkeypatch, tmp_path):
    result = RowAgreement("a.tflite", "litert-int8", 9, 9, 0, 0.6, 0.1, [], relative_difference=0.1)
    monkeypatch.setattr(row_verify, "run_clean", lambda *_, **options: {"span_f1": 0.0})
    facts = {"task": {"name": "tag", "settings": {"kind": "spans"}, "room": 9}, "max_prompt_tokens": 9}
    expected = {"figures": json.dumps({"span_f1": 0.0}), "sizes": np.array([3])}
    row_verify._hold_to_figures(result, expected, {"real": []}, facts, tmp_path, [], tmp_path, ())
    assert result.metric == "agreement" and not result.ok
