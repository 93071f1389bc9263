"""`seqlm finetune`, `predict` and `evaluate`: a task from rows, killed and gone on, on another run's model, and refused."""

import json
import shutil

import numpy as np
import pytest
from helpers import array
from killed import run_until_killed
from sentences import SENTENCES

import seqlm_cli
from keras_seqlm import tasks
from keras_seqlm.training import read_history

WORDS = ("apple", "berry", "cherry")
SMALL = ["--model", "gru", "--size", "nano", "--hidden-dim", "16", "--tokenizer", "byte", "--batch", "8"]
TIME = {"label": "time", "start": 11, "end": 12}
MORE = ["--steps", "12", "--validate-every", "4", "--checkpoint-every", "2", "--columns", "label=kind"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    lines = [f"{word} number {number},{word}" for word in WORDS for number in range(40)]  # sorted, as files are
    path.write_text("text,kind\n" + "\n".join(lines) + "\n,apple\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "runs" / "fruit"
    assert finetune(rows, folder, *SMALL, *MORE) == 0
    return folder


def finetune(rows, folder, *words):
    return seqlm_cli.main(["finetune", "--task", "classify", "--data", str(rows), "--out", str(folder), *words])


def times(folder):
    return sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir() if path.name != ".lock")


def test_a_run_folder_is_whole_and_answers(run, capsys):
    names = {path.name for path in run.iterdir()}
    assert names >= {"model.keras", "tokenizer", "task.json", "recipe.json", "run.toml", "history.csv", "loss.png"}
    assert names >= {"examples.json", "figures.json", "checkpoints"}
    assert [row["step"] for row in read_history(run / "history.csv")] == [4, 8, 12]
    assert len(json.loads((run / "examples.json").read_text())["rows"]) == 12
    figures = json.loads((run / "figures.json").read_text())
    assert (
        figures["count"] == 12 and 0 <= figures["accuracy_low"] <= figures["accuracy"] <= figures["accuracy_high"] <= 1
    )
    task = tasks.load(run)
    assert seqlm_cli.main(["predict", str(run), "--text", "berry number 3", "cherry"]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    wanted = task.predict(["berry number 3", "cherry"])
    assert [one["label"] for one in said] == [one.label for one in wanted]
    for one, other in zip(said, wanted, strict=True):
        assert one["probabilities"] == pytest.approx(other.probabilities, abs=1e-6)


def test_its_figures_are_those_of_the_task(run, rows, tmp_path, capsys):
    words = ["--data", str(rows), "--columns", "label=kind", "--json", str(tmp_path / "figures.json")]
    assert seqlm_cli.main(["evaluate", str(run), *words]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    task = tasks.load(run)
    texts = [(f"{word} number {number}", word) for word in WORDS for number in range(40)]
    right = [one.label == word for one, (_, word) in zip(task.predict([text for text, _ in texts]), texts, strict=True)]
    assert figures["count"] == 121 and figures["accuracy"] == pytest.approx((sum(right) + 1) / 121, abs=1.01 / 121)
    assert capsys.readouterr().out.startswith(f"accuracy {figures['accuracy']:.4f} (")
    many = tmp_path / "many.csv"
    many.write_text("body\n" + "berry\n" * 300)
    assert seqlm_cli.main(["predict", str(run), "--data", str(many), "--columns", "text=body"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 300
    assert seqlm_cli.main(["predict", str(run), "--text", "berry", "berry " * 1000]) == 0  # more than is read of a text
    assert [json.loads(line)["truncated"] for line in capsys.readouterr().out.splitlines()] == [False, True]


def test_killed_and_gone_on_it_is_the_run_left_alone(run, rows, tmp_path):
    """The same command twice; the first is killed by the system as it writes a checkpoint."""
    folder = tmp_path / "killed"
    words = ["finetune", "--task", "classify", "--data", str(rows), "--out", str(folder), *SMALL, *MORE]
    run_until_killed(words, step=8)
    assert not (folder / "model.keras").exists()
    assert finetune(rows, folder, *SMALL, *MORE) == 0
    for ours, theirs in zip(tasks.load(folder).model.weights, tasks.load(run).model.weights, strict=True):
        np.testing.assert_array_equal(array(ours), array(theirs))
    ours, theirs = (read_history(one / "history.csv") for one in (folder, run))
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], abs=0)
    assert [row["validation_loss"] for row in ours] == [row["validation_loss"] for row in theirs]


def test_other_rows_or_settings_are_refused(run, rows, tmp_path, capsys):
    before = times(run)
    other = tmp_path / "rows.csv"
    other.write_text(rows.read_text().replace("apple number 1,", "apple number one,"))
    assert finetune(other, run, *SMALL, *MORE) == 2
    assert "rows" in capsys.readouterr().err
    assert finetune(rows, run, *SMALL, *MORE, "--head-dropout", "0.5") == 2
    assert "--head-dropout was 0.1 and is 0.5" in capsys.readouterr().err
    assert seqlm_cli.main(["train", "--text", str(rows), "--out", str(run), "--model", "gru"]) == 2
    assert "holds a run of `seqlm finetune --task classify`, and this is `seqlm train`" in capsys.readouterr().err
    assert times(run) == before


def test_spans_and_answers(tmp_path, capsys):
    places = [{"text": f"a table at {hour} for {number}", "spans": [TIME]} for hour in "6789" for number in range(9)]
    (tmp_path / "spans.json").write_text(json.dumps(places))
    words = [
        "finetune",
        "--task",
        "tag",
        "--data",
        str(tmp_path / "spans.json"),
        "--out",
        str(tmp_path / "tag"),
        *SMALL,
    ]
    assert seqlm_cli.main([*words, "--steps", "3"]) == 0
    assert "span_f1 " in capsys.readouterr().out
    assert seqlm_cli.main(["predict", str(tmp_path / "tag"), "--text", "at 7"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"text", "truncated", "spans", "tokens", "tags"}
    questions = [
        {"question": "when?", "context": row["text"], "answers": [{"text": row["text"][11], "start": 11}]}
        for row in places
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    words = [
        "finetune",
        "--task",
        "answer",
        "--data",
        str(tmp_path / "questions.jsonl"),
        "--out",
        str(tmp_path / "answer"),
    ]
    assert seqlm_cli.main([*words, *SMALL, "--steps", "3"]) == 0
    assert "exact_match " in capsys.readouterr().out and tasks.load(tmp_path / "answer").model.matches
    assert seqlm_cli.main(["predict", str(tmp_path / "answer"), "--data", str(tmp_path / "questions.jsonl")]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == 36
    for answer, row in zip(answers, questions, strict=True):
        assert answer["text"] == row["context"][answer["start"] : answer["end"]]
    assert seqlm_cli.main([*words, *SMALL, "--steps", "3", "--pooling", "mean"]) == 2
    assert "--pooling is of --task classify and embed" in capsys.readouterr().err


def test_vectors(rows, tmp_path, capsys):
    words = [
        "finetune",
        "--task",
        "embed",
        "--data",
        str(rows),
        "--columns",
        "label=kind",
        "--out",
        str(tmp_path / "embed"),
    ]
    assert seqlm_cli.main([*words, *SMALL, "--steps", "3", "--embedding-width", "5"]) == 0
    assert "recall_at_1 " in capsys.readouterr().out
    assert seqlm_cli.main(["predict", str(tmp_path / "embed"), "--text", "apple", "berry"]) == 0
    vectors = [json.loads(line)["embedding"] for line in capsys.readouterr().out.splitlines()]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.shape(vectors) == (2, 5)


def test_on_another_run_s_model(rows, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{i} {SENTENCES[i % 5]}\n" for i in range(60)), encoding="utf-8")
    book = tmp_path / "book"
    small = [
        "--model",
        "gru",
        "--size",
        "nano",
        "--layers",
        "1",
        "--hidden-dim",
        "16",
        "--batch",
        "4",
        "--context",
        "16",
    ]
    assert seqlm_cli.main(["train", "--text", str(text), "--out", str(book), *small, "--steps", "2"]) == 0
    folder = tmp_path / "on"
    assert finetune(rows, folder, "--from", str(book), "--freeze", "--steps", "3", *MORE[2:], "--batch", "8") == 0
    model, before = tasks.load(folder).model, tasks.load(book).model
    for ours, theirs in zip(model.backbone.weights, before.weights, strict=True):
        np.testing.assert_array_equal(array(ours), array(theirs))  # bit for bit: the head alone has learned
    assert model.tokenizer_hash == tasks.load(book).tokenizer.hash
    again = tmp_path / "again"
    assert finetune(rows, again, "--from", str(folder), "--steps", "2", *MORE[2:], "--batch", "8") == 0
    table = array(tasks.load(again).model.backbone.token_embedding.table)
    assert not np.array_equal(table, array(before.token_embedding.table))
    shutil.rmtree(book)  # the run that began with it has a checkpoint of its own
    flags = ["finetune", "--config", str(folder / "run.toml")]
    assert seqlm_cli.main([*flags, "--steps", "4"]) == 0
    assert read_history(folder / "history.csv")[-1]["step"] == 4
    capsys.readouterr()
    assert seqlm_cli.main([*flags, "--epochs", "20"]) == 2
    assert "give one of them" in capsys.readouterr().err
    assert finetune(rows, tmp_path / "no", "--from", str(folder), "--size", "tiny") == 2
    assert "leave out --size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["generate", "RUN", "--prompt", "x"], "`seqlm predict` answers with it"),
        (["evaluate", "RUN", "--text", "x"], "judged by rows: give --data FILE"),
        (["predict", "RUN"], "give --text TEXT, or --data FILE"),
        (["predict", "RUN", "--data", "ROWS", "--columns", "label"], "--columns takes OURS=THEIRS"),
        (["predict", "RUN", "--data", "absent.csv"], "absent.csv"),
        (["finetune", "--task", "classify", "--data", "ROWS", "--out", "x"], "(--columns label=category)"),
        (
            ["finetune", "--task", "classify", "--data", "ROWS", "--out", "x", "--untied"],
            "--untied is of the projection",
        ),
    ],
)
def test_wrong_use_says_what_to_do(run, rows, tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert seqlm_cli.main([{"RUN": str(run), "ROWS": str(rows)}.get(word, word) for word in words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
