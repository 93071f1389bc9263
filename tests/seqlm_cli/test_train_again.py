"""Runs that are used before they end, begun from others, and ended early: the command line over checkpoints."""

import json
import re
import shutil

import numpy as np
import pytest
from helpers import array
from sentences import SENTENCES

import seqlm_cli
from keras_seqlm import tasks
from keras_seqlm.training import CheckpointError, Checkpoints, RunFolder, list_runs, read_history

pytestmark = pytest.mark.usefixtures("eager_steps")

SMALL = ["--model", "gru", "--size", "nano", "--layers", "1", "--hidden-dim", "24", "--batch", "4", "--context", "16"]


@pytest.fixture(autouse=True, scope="module")
def no_samples_and_no_pictures():
    """They took a third of the time; that training makes them is tested in `test_cli.py`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seqlm_cli.train._sample", lambda task, prompts: "")
        patch.setattr("keras_seqlm.training.history.plot_history", lambda history, path: None)
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"{i} {SENTENCES[i % 5]}\n" for i in range(120)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(text, tmp_path_factory):
    """Twelve steps, averaged, a checkpoint every four."""
    folder = tmp_path_factory.mktemp("runs") / "runs" / "gru"
    train(
        text, folder, "--steps", "12", "--validate-every", "4", "--checkpoint-every", "4", "--keep", "9", "--ema", "0.5"
    )
    return folder


def train(text, folder, *words, code=0):
    assert seqlm_cli.main(["train", "--text", str(text), "--out", str(folder), *SMALL, *words]) == code


def test_a_checkpoint_is_read_in_place_of_the_model(run):
    checkpoints = Checkpoints(run / "checkpoints")
    assert checkpoints.steps() == [4, 8, 12]
    newest, fourth = tasks.load(run, "newest").model, tasks.load(run, checkpoint=4).model
    for left, right in zip(tasks.load(run).model.weights, newest.weights, strict=True):
        np.testing.assert_array_equal(array(left), array(right))  # the averages, as in the finished model
    assert not np.array_equal(array(fourth.variables[0]), array(newest.variables[0]))
    losses = {step: checkpoints.meta(step)["validation_loss"] for step in checkpoints.steps()}
    best = tasks.load(run, "best").model
    wanted = tasks.load(run, min(losses, key=losses.get)).model
    np.testing.assert_array_equal(array(best.variables[0]), array(wanted.variables[0]))
    for which, reason in ((5, "no checkpoint of step 5.*there are .4, 8, 12"), ("worst", "'newest', 'best' or a step")):
        with pytest.raises(CheckpointError, match=reason):
            tasks.load(run, which)


def test_a_run_that_is_not_finished_can_be_used(run, tmp_path, capsys):
    unfinished = tmp_path / "runs" / "unfinished"
    shutil.copytree(run, unfinished)
    (unfinished / "model.keras").unlink()
    with pytest.warns(UserWarning, match="is not finished: this is its checkpoint of step 12"):
        task = tasks.load(unfinished)
    assert task.generate("a", max_new_tokens=3) == tasks.load(run).generate("a", max_new_tokens=3)
    answers = []
    for words in (
        ["generate", str(unfinished), "--max-new-tokens", "4"],
        ["generate", str(run), "--max-new-tokens", "4"],
    ):
        seqlm_cli.main([*words, "--checkpoint", "4", "--json", str(tmp_path / "answer.json")])
        answers.append(json.loads((tmp_path / "answer.json").read_text()))
    assert answers[0] == answers[1]
    assert seqlm_cli.main(["evaluate", str(run), "--checkpoint", "6", "--text", "no.txt"]) == 2
    assert "no checkpoint of step 6" in capsys.readouterr().err


def test_what_a_checkpoint_says_of_its_model_is_checked(run, tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    (tmp_path / "checkpoints").mkdir()
    found = Checkpoints(run / "checkpoints").newest()
    shutil.copytree(run / "tokenizer", tmp_path / "tokenizer")
    checkpoints.save(1, found.arrays(), {**found.meta, "model": None})
    with pytest.raises(CheckpointError, match="does not say how its model is built"):
        tasks.load(tmp_path, "newest")
    checkpoints.save(
        2,
        found.arrays(),
        {**found.meta, "model": {**found.meta["model"], "class_name": "Unknown", "registered_name": "their>Unknown"}},
    )
    with pytest.raises(CheckpointError, match="cannot be built here.*import the module"):
        tasks.load(tmp_path, "newest")


def test_a_finished_run_without_its_history_says_its_step(run, text, tmp_path, capsys):
    folder = tmp_path / "runs" / "gru"
    shutil.copytree(run, folder)
    (folder / "history.csv").unlink()
    words = ("--steps", "12", "--validate-every", "4", "--checkpoint-every", "4", "--keep", "9", "--ema", "0.5")
    train(text, folder, *words)
    assert f"{folder}: step 12\n" in capsys.readouterr().out


def test_a_run_that_was_killed_just_before_it_began_begins(text, tmp_path, monkeypatch, capsys):
    """All that is written before `recipe.json` lies there."""

    class Killed(BaseException):
        """In place of a `kill -9`."""

    def kill(self, content):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "begin", kill)
        with pytest.raises(Killed):
            train(text, tmp_path / "run", "--steps", "2")
    assert {"run.toml", "prompts.json", "tokenizer"} <= {path.name for path in (tmp_path / "run").iterdir()}
    train(text, tmp_path / "run", "--steps", "2")
    assert list_runs(tmp_path)[0]["state"] == "finished"


def test_a_run_begins_from_another(run, text, tmp_path, capsys):
    folder = tmp_path / "runs" / "warm"
    train(text, folder, "--from", str(run), "--steps", "1", "--hidden-dim", "32", code=2)
    assert "leave out --" in capsys.readouterr().err and not folder.exists()
    words = ["train", "--text", str(text), "--out", str(folder), "--from", str(run), "--context", "16", "--batch", "4"]
    assert seqlm_cli.main([*words, "--steps", "2", "--learning-rate", "1e-9"]) == 0
    for left, right in zip(tasks.load(run).model.weights, tasks.load(folder).model.weights, strict=True):
        np.testing.assert_allclose(array(left), array(right), atol=1e-6)
    assert read_history(folder / "history.csv")[-1]["step"] == 2
    assert seqlm_cli.main([*words, "--steps", "2", "--learning-rate", "1e-9"]) == 0  # and the same command goes on


def test_a_run_begun_from_another_needs_it_until_its_first_checkpoint(run, text, tmp_path, capsys):
    other, folder = tmp_path / "runs" / "other", tmp_path / "runs" / "warm"
    shutil.copytree(run, other)
    words = [
        "train",
        "--text",
        str(text),
        "--out",
        str(folder),
        "--from",
        str(other),
        "--context",
        "16",
        "--batch",
        "4",
    ]
    assert seqlm_cli.main([*words, "--steps", "2"]) == 0
    other.rename(tmp_path / "gone")
    assert seqlm_cli.main([*words, "--steps", "3"]) == 0
    assert read_history(folder / "history.csv")[-1]["step"] == 3
    capsys.readouterr()
    shutil.rmtree(folder / "checkpoints")
    assert seqlm_cli.main([*words, "--steps", "4"]) == 2
    said = capsys.readouterr().err
    assert (
        f"there is no run folder {str(other)!r}" in said
        and "has no checkpoint yet, so that it is needed once more" in said
    )
    assert seqlm_cli.main([*words[:4], str(tmp_path / "new"), *words[5:]]) == 2
    said = capsys.readouterr().err
    assert f"there is no run folder {str(other)!r}" in said and "needed once more" not in said


def test_a_default_that_is_written_out_is_no_other_setting(run, text, tmp_path, capsys):
    folder = tmp_path / "runs" / "gru"
    shutil.copytree(run, folder)
    words = ["--steps", "12", "--validate-every", "4", "--checkpoint-every", "4", "--keep", "9", "--ema", "0.5"]
    train(text, folder, *words, "--learning-rate", "0.004", "--warmup", "1")
    capsys.readouterr()
    train(text, folder, *words, "--learning-rate", "0.005", "--warmup", "1", code=2)
    said = capsys.readouterr().err
    assert "--learning-rate was 0.004 and is 0.005" in said and "--warmup" not in said


def test_early_stopping_ends_the_run_with_its_best_model(text, tmp_path, capsys):
    folder = tmp_path / "runs" / "early"
    words = [
        "--steps",
        "60",
        "--validate-every",
        "2",
        "--learning-rate",
        "2.0",
        "--warmup",
        "0",
        "--early-stopping",
        "2",
    ]
    train(text, folder, *words)
    rows = read_history(folder / "history.csv")
    best = min(rows, key=lambda row: row["validation_loss"])
    assert rows[-1]["step"] < 60 and rows[-1]["step"] == best["step"] + 4
    checkpoint = tasks.load(folder, best["step"]).model
    for left, right in zip(tasks.load(folder).model.weights, checkpoint.weights, strict=True):
        np.testing.assert_array_equal(array(left), array(right))
    assert list_runs(folder.parent)[0]["state"] == "finished"
    capsys.readouterr()
    train(text, folder, *words)
    assert "nothing is left to do" in capsys.readouterr().err and read_history(folder / "history.csv") == rows


def test_a_run_that_was_made_longer_and_stopped_says_that_its_model_is_old(run, tmp_path):
    longer = tmp_path / "runs" / "longer"
    shutil.copytree(run, longer)
    assert list_runs(longer.parent)[0]["state"] == "finished"
    found = Checkpoints(longer / "checkpoints").newest()
    Checkpoints(longer / "checkpoints", keep=9).save(16, found.arrays(), found.meta)
    assert list_runs(longer.parent)[0]["state"] == "stopped"
    with pytest.warns(UserWarning, match="went on after its model.keras was written, to step 16"):
        tasks.load(longer)


AS_IN_RUN = ["--validate-every", "4", "--checkpoint-every", "4", "--keep", "9", "--ema", "0.5"]


def content_of(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_fewer_steps_than_were_made_are_refused_and_no_file_changes(run, text, tmp_path, capsys):
    folder = tmp_path / "runs" / "shorter"
    shutil.copytree(run, folder)
    before = content_of(folder)
    train(text, folder, *AS_IN_RUN, "--steps", "8", code=2)
    said = capsys.readouterr().err
    assert f"{folder} has made 12 steps already, and --steps is 8: give at least 12" in said
    assert content_of(folder) == before
    (found,) = list_runs(folder.parent)
    assert (found["step"], found["steps"], found["state"]) == (12, 12, "finished")


def test_the_loss_that_is_printed_is_that_of_the_averaged_weights_that_are_kept(text, tmp_path, capsys):
    """Of a Transformer: a recurrent model's `evaluate` carries its state over windows, as training does not."""
    held, folder = tmp_path / "held.txt", tmp_path / "runs" / "averaged"
    held.write_text("".join(f"{i} {SENTENCES[i % 5]}\n" for i in range(200, 230)), encoding="utf-8")
    words = ["train", "--text", str(text), "--validation", str(held), "--out", str(folder), "--size", "nano"]
    words += ["--layers", "1", "--hidden-dim", "24", "--heads", "2", "--batch", "4", "--context", "16", "--warmup", "0"]
    words += ["--steps", "60", "--validate-every", "2", "--learning-rate", "1", "--ema", "0.8", "--early-stopping", "2"]
    assert seqlm_cli.main(words) == 0
    printed = float(re.search(r"step 2, validation loss ([0-9.]+) nats", capsys.readouterr().out)[1])
    assert seqlm_cli.main(["evaluate", str(folder), "--text", str(held)]) == 0
    evaluated = float(re.search(r"loss ([0-9.]+) nats a token", capsys.readouterr().out)[1])
    assert read_history(folder / "history.csv")[-1]["step"] == 6  # so what is kept is not what training ended with
    assert evaluated == pytest.approx(printed, abs=2e-4)


def test_the_best_model_of_a_run_whose_text_changed_is_one_of_the_new_text(text, tmp_path, capsys):
    """The loss of an easy text would stay the best one for ever."""
    easy, hard, folder = tmp_path / "easy.txt", tmp_path / "hard.txt", tmp_path / "runs" / "changed"
    easy.write_text("a" * 600)
    hard.write_text("秦川雄帝宅" * 40, encoding="utf-8")
    words = ["--validate-every", "2", "--learning-rate", "0.1", "--warmup", "0", "--early-stopping", "9"]
    train(text, folder, *words, "--steps", "4", "--validation", str(easy))
    with pytest.warns(UserWarning, match="not compared, since validation text was .*looked for anew from step 5 on"):
        train(text, folder, *words, "--steps", "8", "--validation", str(hard), "--allow-changes")
    rows = {row["step"]: row["validation_loss"] for row in read_history(folder / "history.csv")}
    assert min(rows, key=rows.get) == 4  # of the easy text
    best = min((6, 8), key=rows.get)
    said = capsys.readouterr()
    assert "changed since the run began: validation text was" in said.err
    printed = said.out.strip().splitlines()[-1]
    assert printed == f"{folder}: step {best}, validation loss {rows[best]:.4f} nats a token"
    assert list_runs(folder.parent)[0]["best_validation_loss"] == rows[best]
    for left, right in zip(tasks.load(folder).model.weights, tasks.load(folder, "best").model.weights, strict=True):
        np.testing.assert_array_equal(array(left), array(right))
    assert Checkpoints(folder / "checkpoints").best().step == best


def test_other_weights_of_the_same_texts_are_refused(text, tmp_path, capsys):
    other, folder = tmp_path / "other.txt", tmp_path / "runs" / "mixture"
    other.write_text("".join(f"{SENTENCES[i % 5]} {i}\n" for i in range(80)), encoding="utf-8")

    def again(weights, code):
        texts = [f"{path}={weight}" for path, weight in zip((text, other), weights, strict=True)]
        words = ["train", "--text", *texts, "--out", str(folder), *SMALL, "--steps", "1"]
        assert seqlm_cli.main(words) == code
        return capsys.readouterr().err

    again((1, 1), 0)
    said = again((9, 1), 2)
    assert "other settings: weights of the texts was [0.5, 0.5] and is [0.9, 0.1]" in said and "--allow-changes" in said
    assert "going on from step 1" in again((2, 2), 0)  # the same shares
