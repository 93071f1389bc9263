"""The benchmark of tasks: which rows are held back, its baselines by hand, and a row from end to end at toy size."""

import importlib.util
import pathlib
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def tasks():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("benchmark_tasks", BENCHMARKS / "tasks.py")
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


def test_no_text_stands_in_two_parts(tasks):
    rows = [{"text": f"question {i % 700}".upper() if i % 2 else f" question {i % 700}"} for i in range(2000)]
    rest, test, validation = tasks.held_back(rows, "text", "a", [0.1, 0.05])
    seen = [{row["text"].lower().strip() for row in part} for part in (rest, test, validation)]
    assert not seen[0] & seen[1] and not seen[1] & seen[2] and not seen[0] & seen[2]
    assert sum(map(len, (rest, test, validation))) == 2000
    assert 40 < len(seen[1]) < 110 and 10 < len(seen[2]) < 70
    assert tasks.held_back(rows, "text", "a", [0.1, 0.05]) == [rest, test, validation]
    assert tasks.held_back(rows, "text", "b", [0.1])[1] != test


def test_a_lexicon_knows_what_it_has_seen(tasks):
    def row(text, *parts):
        spans = [
            {"label": label, "start": text.index(part), "end": text.index(part) + len(part)} for label, part in parts
        ]
        return {"text": text, "spans": spans}

    train = [
        row("at 8 pm for Ann", ("time", "8 pm"), ("name", "Ann")),
        row("at 8", ("time", "8")),
        row("for now"),
        row("now", ("time", "now")),
        row("not now"),
    ]
    found = tasks.lexicon_spans(train, [row("8 PM, ann or Anna; now")])
    assert found == [[(0, 4, "time"), (6, 9, "name")]]  # "now" is no name more often than it is


def test_the_overlap_window_takes_the_clause_beside_what_is_asked(tasks):
    train = [{"answers": [{"text": "北京市海淀区"}]}]
    test = [{"question": "他出生在哪里？", "context": "王明，教师。他出生在，杭州，喜欢读书。后来去了上海。"}]
    assert tasks.overlap_answers(train, test) == ["杭州"]


def test_linear_models_of_text(tasks):
    pytest.importorskip("sklearn")
    rows = [{"text": f"{word} {i}", "label": word} for i in range(8) for word in ("card", "cash")]
    assert tasks.ngram_classes(rows, rows).all() and tasks.tfidf_neighbours(rows, rows).all()


def test_a_row_from_end_to_end(tasks, tmp_path, capsys):
    pytest.importorskip("sklearn")
    (tmp_path / "banking77").mkdir()
    lines = [f"{word} number {i},{word}" for i in range(60) for word in ("card", "cash")]
    (tmp_path / "banking77" / "train.csv").write_text("text,category\n" + "\n".join(lines) + "\n")
    (tmp_path / "test.csv").write_text("text,category\nmy card,card\nmy cash,cash\n")
    words = ["intent", "--data", str(tmp_path), "--size", "nano", "--model", "gru", "--minutes", "0.05"]
    tasks.main([*words, "--test", str(tmp_path / "test.csv"), "--out", str(tmp_path / "run")])
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("intent: accuracy ") and "2 rows of --test" in line and "baseline accuracy 1.0000" in line
    assert (tmp_path / "run" / "model.keras").is_file() and (tmp_path / "run" / "figures.json").is_file()


@pytest.mark.slow
def test_rows_of_few_examples_from_end_to_end(tasks, tmp_path, capsys):
    for folder in ("banking77", "classic_books_en", "wikitext2_part"):
        (tmp_path / folder).mkdir()
    lines = [f"{word} number {i},{word}" for i in range(60) for word in ("card", "cash")]
    (tmp_path / "banking77" / "train.csv").write_text("text,category\n" + "\n".join(lines) + "\n")
    (tmp_path / "classic_books_en" / "night.md").write_text("It was a dark night, and a card lay there.\n\n" * 200)
    (tmp_path / "wikitext2_part" / "valid.txt").write_text("Cash is a number of things. Cards are others.\n\n" * 200)
    words = ["--data", str(tmp_path), "--size", "nano", "--minutes", "0.02", "--epochs", "1", "--model", "gru"]
    tasks.main(["pretraining", *words, "--out", str(tmp_path / "run")])
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("pretraining: accuracy ") and "from scratch accuracy" in line and "20 labelled rows" in line
    tasks.main(["lora", *words, "--from", str(tmp_path / "run" / "pretrained")])
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("lora: accuracy ") and "fine-tuned whole, with " in line


def test_a_few_of_each_label(tasks):
    few_examples = sys.modules["few_examples"]

    rows = [{"label": label, "text": str(i)} for i in range(5) for label in "ab"]
    assert [row["text"] for row in few_examples.few(rows, 2)] == ["0", "0", "1", "1"]
