"""`seqlm train --objective`: runs of every objective, gone on with exactly, judged and used; what does not go together."""

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from cases import some_of
from helpers import array
from sentences import SENTENCES

import seqlm_cli
from keras_seqlm import models, tasks
from keras_seqlm.data import objective_blocks
from keras_seqlm.training import read_history
from seqlm_cli.objectives import OBJECTIVES, SEQ2SEQ, prompts_for

SMALL = ["--size", "nano", "--layers", "1", "--hidden-dim", "24", "--batch", "4", "--context", "24"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"{i} {SENTENCES[i % 5]}\n" for i in range(120)), encoding="utf-8")
    return path


def train(text, folder, *words, code=0):
    assert seqlm_cli.main(["train", "--text", str(text), "--out", str(folder), *SMALL, *words]) == code


@pytest.fixture(scope="module")
def masked(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "runs" / "masked"
    train(text, folder, "--objective", "masked", "--heads", "2", "--steps", "8", "--validate-every", "4")
    return folder


def test_a_masked_run_is_a_task_that_fills_masks(masked, tmp_path, capsys):
    task = tasks.load(masked)
    assert type(task) is tasks.FillMask and type(task.model.backbone) is models.TransformerEncoder
    assert task.tokenizer.vocabulary_size == 261 and task.model.vocabulary_size == 261
    prompts = json.loads((masked / "prompts.json").read_text())["prompts"]
    assert len(prompts) == 20 and all(prompt.count("[MASK]") == 1 for prompt in prompts)
    assert "[MASK]" in (masked / "samples.txt").read_text() and " -> " in (masked / "samples.txt").read_text()
    rows = read_history(masked / "history.csv")
    assert [row["step"] for row in rows] == [4, 8] and rows[-1]["validation_bits_per_byte"] is None
    capsys.readouterr()
    answer = tmp_path / "answer.json"
    assert seqlm_cli.main(["predict", str(masked), "--text", "the c[MASK]t", "--json", str(answer)]) == 0
    [one] = json.loads(answer.read_text())["answers"]
    assert one["filled"].startswith("the c") and len(one["candidates"][0]) == 5


def test_a_masked_run_is_judged_by_its_masks(masked, text, tmp_path, capsys):
    answer = tmp_path / "answer.json"
    assert seqlm_cli.main(["evaluate", str(masked), "--text", str(text), "--json", str(answer)]) == 0
    found = json.loads(answer.read_text())
    assert found == tasks.load(masked).evaluate(text)
    assert "masked tokens of" in capsys.readouterr().out
    assert seqlm_cli.main(["evaluate", str(masked), "--text", str(text), "--stride", "4"]) == 2
    assert "--stride is for models that write on" in capsys.readouterr().err


def test_what_a_masked_run_cannot_do_is_said(masked, capsys):
    assert seqlm_cli.main(["generate", str(masked), "--prompt", "the"]) == 2
    assert "holds a FillMask: `seqlm predict` answers with it" in capsys.readouterr().err
    assert seqlm_cli.main(["predict", str(masked), "--text", "the cat"]) == 2
    assert "has no [MASK]" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective", some_of([one for one in OBJECTIVES if one not in ("causal", "masked")], "fim", "denoising")
)
def test_a_causal_model_learns_by_every_other_objective(text, tmp_path, objective):
    folder = tmp_path / "runs" / objective
    train(text, folder, "--objective", objective, "--model", "gru", "--steps", "30")
    task = tasks.load(folder)
    assert type(task) is tasks.TextGeneration and type(task.model) is models.RecurrentLM
    rows = read_history(folder / "history.csv")
    assert (
        rows[-1]["validation_loss"] < rows[0]["validation_loss"] - 0.3 and rows[-1]["validation_bits_per_byte"] is None
    )
    assert isinstance(task.generate("the cat", max_new_tokens=4), str)


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective, model, more",
    some_of(
        [
            ("masked", "lstm", []),
            ("fim", "transformer", []),
            ("denoising", "transformer", ["--architecture", "seq2seq"]),
            ("span", "lstm", ["--architecture", "seq2seq"]),
        ],
        0,
        3,
    ),
)
def test_a_run_in_two_parts_is_the_run_in_one(text, tmp_path, objective, model, more):
    words = [
        *more,
        "--objective",
        objective,
        "--model",
        model,
        "--validate-every",
        "3",
        "--schedule",
        "constant",
        "--dropout",
        "0.1",
    ]
    words += ["--warmup", "2", *(["--heads", "2"] if model == "transformer" else [])]
    train(text, tmp_path / "one", *words, "--steps", "9")
    for steps in ("5", "9"):
        train(text, tmp_path / "two", *words, "--steps", steps)
    one, two = (tasks.load(tmp_path / name).model for name in ("one", "two"))
    for left, right in zip(one.weights, two.weights, strict=True):
        np.testing.assert_array_equal(array(left), array(right))


@pytest.mark.slow
@pytest.mark.parametrize("kind", some_of([["masked", "--whole-words"], ["denoising", "--architecture", "seq2seq"]], 1))
def test_a_killed_run_goes_on_as_if_nothing_had_happened(text, tmp_path, kind):
    """Killed in the middle of a piece, at whatever step it has come to; the losses are those of a run left alone."""
    words = ["--objective", *kind, "--model", "gru", "--steps", "40", "--validate-every", "10"]
    words += ["--checkpoint-every", "3"]
    train(text, tmp_path / "alone", *words)
    command = [sys.executable, "-m", "seqlm_cli", "train", "--text", str(text), "--out", str(tmp_path / "killed")]
    kill = (
        "import keras, os, signal, seqlm_cli\n"
        "from keras_seqlm.training import callbacks\n"
        "plain = callbacks.Progress.on_train_batch_end\n"
        "def kill(self, batch, logs=None):\n"
        "    plain(self, batch, logs)\n"
        "    if self.step == 17: os.kill(os.getpid(), signal.SIGKILL)\n"
        "callbacks.Progress.on_train_batch_end = kill\n"
        f"seqlm_cli.main({[*command[3:], *SMALL, *words]!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", kill], env=os.environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    train(text, tmp_path / "killed", *words)
    for name in ("validation_loss", "loss", "step"):
        alone, killed = (
            [row[name] for row in read_history(tmp_path / run / "history.csv")] for run in ("alone", "killed")
        )
        assert alone == killed, name
    models_ = [tasks.load(tmp_path / run).model for run in ("alone", "killed")]
    for left, right in zip(*(model.weights for model in models_), strict=True):
        np.testing.assert_array_equal(array(left), array(right))


@pytest.fixture(scope="module")
def of_sources(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "runs" / "span"
    words = ["--objective", "span", "--architecture", "seq2seq", "--model", "gru", "--attention", "general"]
    train(text, folder, *words, "--steps", "4", "--validate-every", "2")
    return folder


def test_a_run_of_sources_is_a_task_that_writes_of_them(of_sources, text, tmp_path, capsys):
    task = tasks.load(of_sources)
    assert type(task) is tasks.TextToText and type(task.model) is models.Seq2SeqLM
    assert task.settings()["objective"]["name"] == "span" and task.sequence_length == 24
    assert task.model.decoder.attention == "general" and task.model.share_embedding
    assert "<extra_id_0>" in (of_sources / "samples.txt").read_text()
    capsys.readouterr()
    answer = tmp_path / "answer.json"
    assert seqlm_cli.main(["predict", str(of_sources), "--text", "the c<extra_id_0>t", "--json", str(answer)]) == 0
    [one] = json.loads(answer.read_text())["answers"]
    assert sorted(one) == ["stop_reason", "text", "token_ids"]
    assert seqlm_cli.main(["evaluate", str(of_sources), "--text", str(text), "--json", str(answer)]) == 0
    assert json.loads(answer.read_text()) == task.evaluate(text)
    for words, reason in (
        (["generate", str(of_sources), "--prompt", "the"], "holds a TextToText: `seqlm predict` answers with it"),
        (["evaluate", str(of_sources), "--text", str(text), "--stride", "4"], "--stride is for models that write on"),
        (
            ["export", str(of_sources), "--to", "saved-model"],
            "holds a TextToText, whose model reads a source",
        ),
    ):
        assert seqlm_cli.main(words) == 2
        assert reason in capsys.readouterr().err


def unigram_entropy(blocks):
    counts = np.zeros(blocks.vocabulary_size)
    for step in range(len(blocks)):
        y = blocks.batch(step)[1]
        counts += np.bincount(y[y >= 0], minlength=len(counts))
    shares = counts[counts > 0] / counts.sum()
    return -(shares * np.log(shares)).sum()


@pytest.mark.slow
@pytest.mark.parametrize("model", some_of(["transformer", "gru"], "transformer"))
@pytest.mark.parametrize("objective", SEQ2SEQ)
def test_an_encoder_decoder_learns_more_than_how_often_a_token_is_there(text, tmp_path, objective, model):
    folder = tmp_path / "runs" / objective
    words = ["--objective", objective, "--architecture", "seq2seq", "--model", model, "--steps", "150"]
    words += ["--learning-rate", "0.008", "--context", "32", *(["--heads", "2"] if model == "transformer" else [])]
    train(text, folder, *words)
    task = tasks.load(folder)
    _, held = objective_blocks(text, task.tokenizer, task.objective, 32, 4, layout="encoder-decoder")
    assert read_history(folder / "history.csv")[-1]["validation_loss"] < unigram_entropy(held)


def test_the_objective_stays_what_it_was(masked, text, capsys):
    same = ["--heads", "2", "--steps", "8", "--validate-every", "4"]
    train(text, masked, *same, "--objective", "prefix", code=2)
    assert "--objective was masked and is prefix" in capsys.readouterr().err
    train(text, masked, *same, "--objective", "masked", "--whole-words", code=2)
    assert "--whole-words was False and is True" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, reason",
    [
        (["--objective", "fim", "--whole-words"], "--whole-words belongs to --objective masked"),
        (["--objective", "masked", "--model", "gru", "--carry-state"], "--carry-state goes on from row to row"),
        (["--objective", "span", "--segment-ids"], "--segment-ids needs the text in its places"),
        (["--objective", "masked", "--untied"], "--untied is for models that write on"),
        (["--objective", "fim", "--architecture", "seq2seq"], "seq2seq is for --objective span, denoising, prefix"),
        (["--objective", "span", "--architecture", "seq2seq", "--norm", "rms"], "--norm belongs to causal models"),
        (["--objective", "span", "--model", "gru", "--attention", "general"], "--attention belongs to a new recurrent"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(text, tmp_path, capsys, words, reason):
    train(text, tmp_path / "run", *words, code=2)
    assert reason in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_run_begins_from_one_of_its_kind(masked, text, tmp_path, capsys):
    words = ["train", "--text", str(text), "--batch", "4", "--context", "24", "--steps", "2", "--learning-rate", "1e-9"]
    out = ["--out", str(tmp_path / "runs" / "warm")]
    assert seqlm_cli.main([*words, *out, "--from", str(masked), "--objective", "masked"]) == 0
    for left, right in zip(tasks.load(masked).model.weights, tasks.load(out[1]).model.weights, strict=True):
        np.testing.assert_allclose(array(left), array(right), atol=1e-6)
    for objective, reason in (("causal", "trains a LanguageModel, and .* holds a MaskedLM"), ("fim", "lacks")):
        assert (
            seqlm_cli.main([*words, "--out", str(tmp_path / "other"), "--from", str(masked), "--objective", objective])
            == 2
        )
        said = capsys.readouterr().err
        assert re.search(reason, said), said


def test_prompts_fit_the_model():
    class Model:
        max_length = 8

    class Tokenizer:
        def encode(self, text):
            return list(text)

    task = tasks.FillMask.__new__(tasks.FillMask)
    task.model, task.tokenizer = Model(), Tokenizer()
    assert prompts_for(task, ["a long text of words", "abc"]) == ["a [MASK]", "a[MASK]c"]
    task.model.max_length = 2
    assert prompts_for(task, ["abc"]) == []
