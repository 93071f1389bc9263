"""Every guide runs, at toy size."""

import importlib.util
import pathlib
import subprocess
import sys

import keras
import pytest

GUIDES = pathlib.Path(__file__).parents[1] / "guides"


def guide(name):
    spec = importlib.util.spec_from_file_location(name, GUIDES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_guide_has_a_test_here():
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    tests |= {path.stem.removeprefix("test_") for path in (pathlib.Path(__file__).parent / "guides").glob("test_*.py")}
    assert {path.stem for path in [*GUIDES.glob("*.py"), *GUIDES.glob("[a-z]*/")]} <= tests


@pytest.mark.soak  # the demo and the README go the same way in `make test`
def test_from_text_to_phone(tmp_path, capsys, fast_exports):
    with fast_exports():
        report = guide("from_text_to_phone").main(tmp_path, steps=3)
    assert report.ok, str(report)
    lines = capsys.readouterr().out.splitlines()
    assert sum("saved_models/guide" in line for line in lines) == 3  # a row for each artifact


@pytest.mark.slow
@pytest.mark.backends
def test_train_on_many_devices(forks, tmp_path):
    # In a process of its own, since devices are made before the backend starts.
    command = [sys.executable, str(GUIDES / "train_on_many_devices.py"), str(tmp_path)]
    backend = keras.backend.backend()
    done = (subprocess if backend == "torch" else forks(backend)).run(
        command, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    words = {"tensorflow": ["mirrored"], "jax": ["data-parallel", "model-parallel:2"], "torch": []}
    lines = [line.split()[0] for line in done.stdout.splitlines() if "furthest from single" in line]
    assert lines == ["single", *words[backend]]


@pytest.mark.slow
def test_resume_exactly(tmp_path, capsys):
    resume = guide("resume_exactly")
    resume.STEPS_PER_EPOCH, resume.EPOCHS, resume.SAVE_EVERY, resume.KILL_AT = 6, 2, 4, (9,)  # once
    whole, gone_on = resume.main(tmp_path)
    assert gone_on["loss"][-1] == whole["loss"][-1] and gone_on["val_loss"][-1] == whole["val_loss"][-1]
    lines = capsys.readouterr().out.splitlines()
    assert "weights equal: True" in lines and "killed at step 9" in lines


@pytest.mark.slow
def test_mix_corpora(tmp_path, capsys):
    mix = guide("mix_corpora")
    mix.STEPS = 10
    rows, history, code = mix.main(tmp_path)
    assert list(rows.values()) == [60, 20, 20] and history["val_loss"][-1] > 0 and code == 0
    shown = capsys.readouterr()
    assert "letters.jsonl.gz: 20% of the rows, 20 of 100" in shown.out and 'text-field = "content"' in shown.out
    assert "is read" in shown.err and "times in 20 steps" in shown.err


@pytest.mark.slow
def test_classify_and_tag(tmp_path, capsys):
    classify = guide("classify_and_tag")
    classify.PAGES = classify.PAGES[:2]
    figures, usual, answer, spans = classify.main(tmp_path, steps=40)
    assert len(figures) == 3 and max(one["accuracy"] for one in figures.values()) > usual
    assert answer.label in classify.PAGES and all(span.text in classify.SENTENCE for span in spans)


@pytest.mark.slow
def test_answer_questions(tmp_path, capsys):
    figures, answer, context = guide("answer_questions").main(tmp_path, steps=60)
    assert figures["with matches"]["f1"] > figures["the words alone"]["f1"] + 0.1
    assert answer.text == context[answer.start : answer.end] and "exact match" in capsys.readouterr().out


@pytest.mark.slow
def test_pretrain_and_finetune(tmp_path, capsys):
    pretrain = guide("pretrain_and_finetune")
    table, kept = pretrain.main(tmp_path, pretraining_steps=10, steps=10)
    trained = {way: row["trained"] for way, row in table.items()}
    assert trained["the head alone"] < trained["LoRA"] < trained["all weights"] / 10
    assert trained["all weights"] == trained["from scratch"]
    assert kept["difference"] < 1e-5 and kept["bytes"][0] < kept["bytes"][1] / 5
    assert capsys.readouterr().out.count("weights trained") == 4


@pytest.mark.slow
def test_from_pytorch(capsys):
    figures = guide("from_pytorch").main()
    assert len(figures) == 3
    for one in figures.values():
        assert one["given"] == one["variables"]
        assert one["there"] < 1e-5 and one["back"] < 1e-5 < 1e-2 < one["apart"]
    assert len(capsys.readouterr().out.splitlines()) == 4
