"""Each flag of `seqlm train` comes to where it is used; nothing here trains."""

import argparse
import contextlib
import json
import os
import types

import keras
import pytest

import seqlm_cli
from keras_seqlm import data, models, tasks, tokenizers, training
from seqlm_cli import another_run, train

# No value is a default.
OF_DATA = """--segment-ids --seed 7 --tolerance 0.25 --text-field body --validation held.txt --validation-fraction 0.3
--batch 6 --context 24"""
OF_RECIPE = """--optimizer muon --learning-rate 0.5 --schedule wsd --decay-fraction 0.4 --warmup 3 --weight-decay 0.2
--clip-norm 2.5 --precision mixed_bfloat16 --steps 40 --validate-every 8 --accumulate 2 --ema 0.9 --label-smoothing 0.05
--z-loss 0.001 --stop-after-skipped 4 --roll-back 2.0 --distribution mirrored --rematerialize --steps-per-execution 4
--jit-compile off"""
OF_WATCHING = (
    "--checkpoint-every 5 --keep 3 --allow-changes --early-stopping 9 --tensorboard --sample-every 11 --overwrite"
)
OF_TRANSFORMER = """--size small --layers 3 --hidden-dim 32 --heads 4 --kv-heads 2 --intermediate-dim 48
--activation swiglu --norm rms --positions rotary --untied --dropout 0.25 --tokenizer bpe --vocabulary-size 300"""
OF_RECURRENT = "--model gru --size nano --layers 2 --hidden-dim 16 --embedding-dim 12 --dropout 0.5 --carry-state"
OF_OBJECTIVE = "--objective masked --whole-words"
OF_SEQ2SEQ = "--objective denoising --architecture seq2seq --model gru --attention general"
ELSEWHERE = {
    "help",
    "config",
    "from",
    "import",
    "resume",
    "no-resume",
}  # tested below, in test_endings.py and test_help.py


class Fitted(Exception):
    """Ends the command where training would begin."""


@pytest.fixture
def seen(monkeypatch, tmp_path):
    """`seen(words)` runs `seqlm train` until its `fit`, and gives what each part of it was called with."""
    calls = {}

    def recorded(name, answer):
        def call(*positional, **named):
            calls[name] = (*positional, named)
            return answer

        return call

    def fit(*positional, **named):
        calls["fit"] = (*positional, named)
        raise Fitted

    tokenizer = types.SimpleNamespace(vocabulary_size=99, hash="a tokenizer", decode=lambda ids: "text")
    model = types.SimpleNamespace(build=lambda: None, max_length=None, count_params=lambda: 0)
    blocks = types.SimpleNamespace(tokens=[0] * 40, num_tokens=40, content_hash="a text")
    noisy = types.SimpleNamespace(objective="an objective", **vars(blocks))
    recipe = types.SimpleNamespace(distribution="single", fit=fit, scope=contextlib.nullcontext, to_dict=dict)
    resume = types.SimpleNamespace(step_before=0, close=lambda: None)
    task = types.SimpleNamespace(begin=lambda folder: None)
    for name in ("ByteTokenizer", "BytePairTokenizer"):
        kind = types.SimpleNamespace(train=recorded(name, tokenizer))
        monkeypatch.setattr(tokenizers, name, kind)
    for room, name, answer in (
        (data, "causal_blocks", (blocks, blocks)),
        (data, "objective_blocks", (noisy, noisy)),
        (data, "texts", ["text"]),
        (models, "TransformerLM", model),
        (models, "RecurrentLM", model),
        (tasks, "TextGeneration", task),
        (training, "Recipe", recipe),
        (training, "Resume", resume),
        (training, "SampleWriter", "samples"),
        (training, "TensorBoardScalars", "tensorboard"),
        (keras.callbacks, "EarlyStopping", "early stopping"),
    ):
        monkeypatch.setattr(room, name, recorded(name, answer))
    monkeypatch.setattr(data, "prepared", lambda tokenizer, objective: tokenizer)

    def run(words):
        calls.clear()
        args = seqlm_cli.parse(["train", "--text", "a.txt", "--out", str(tmp_path / "runs" / "a"), *words.split()])
        with pytest.raises(Fitted):
            train.run(args)
        return dict(calls)

    return run


def test_every_flag_comes_to_where_it_is_used(seen, tmp_path):
    """A flag that does nothing shows neither in a loss that falls nor in an error."""
    folder = tmp_path / "runs" / "a"
    calls = seen(f"{OF_DATA} {OF_RECIPE} {OF_WATCHING} {OF_TRANSFORMER}")
    assert calls["Recipe"][-1] == {
        "optimizer": "muon",
        "learning_rate": 0.5,
        "schedule": "wsd",
        "warmup_steps": 3,
        "weight_decay": 0.2,
        "clip_norm": 2.5,
        "precision": "mixed_bfloat16",
        "batch_size": 6,
        "steps": 40,
        "seed": 7,
        "distribution": "mirrored",
        "validate_every": 8,
        "decay_fraction": 0.4,
        "accumulate": 2,
        "ema": 0.9,
        "label_smoothing": 0.05,
        "z_loss": 0.001,
        "rematerialize": True,
        "steps_per_execution": 4,
        "jit_compile": False,
        "layer_decay": 1.0,
        "stop_after_skipped": 4,
        "roll_back_factor": 2.0,
    }
    texts, _, named = calls["causal_blocks"]
    assert texts == ["a.txt"] and named == {
        "sequence_length": 24,
        "batch_size": 6,
        "seed": 7,
        "validation": ["held.txt"],
        "validation_fraction": 0.3,
        "segment_ids": True,
        "contiguous": False,
        "tolerance": 0.25,
        "text_field": "body",
    }
    assert calls["texts"] == (["a.txt"], "body", {"tolerance": 0.25})
    assert calls["BytePairTokenizer"][-1] == {"texts": ["text"], "vocabulary_size": 300}
    assert calls["TransformerLM"] == (
        99,
        {
            "size": "small",
            "num_layers": 3,
            "hidden_dim": 32,
            "num_heads": 4,
            "num_kv_heads": 2,
            "intermediate_dim": 48,
            "max_length": 24,
            "activation": "swiglu",
            "norm": "rms",
            "positions": "rotary",
            "tie_embedding": False,
            "dropout": 0.25,
            "tokenizer_hash": "a tokenizer",
        },
    )
    place, named = calls["Resume"]
    assert place == folder / "checkpoints"
    assert (named["every"], named["keep"], named["allow_changes"]) == (5, 3, True)
    assert calls["SampleWriter"][-1] == {"every_steps": 11} and calls["SampleWriter"][1] == folder / "samples.txt"
    assert calls["EarlyStopping"][-1]["patience"] == 9 and calls["TensorBoardScalars"][0] == folder / "tensorboard"
    assert {"samples", "early stopping", "tensorboard"} <= {
        one for one in calls["fit"][-1]["callbacks"] if isinstance(one, str)
    }
    assert seen(f"{OF_WATCHING} --jit-compile on")["Recipe"][-1]["jit_compile"] is True


def test_every_flag_of_a_recurrent_model_comes_to_where_it_is_used(seen):
    calls = seen(f"{OF_RECURRENT} --batch 6")
    assert calls["RecurrentLM"] == (
        99,
        {
            "size": "nano",
            "num_layers": 2,
            "hidden_dim": 16,
            "cell": "gru",
            "embedding_dim": 12,
            "stateful_batch_size": 6,
            "tie_embedding": True,
            "dropout": 0.5,
            "tokenizer_hash": "a tokenizer",
        },
    )
    assert calls["causal_blocks"][-1]["contiguous"] is True


def test_what_no_flag_says_is_what_the_help_says(seen):
    calls = seen("")
    recipe = calls["Recipe"][-1]
    assert (recipe["learning_rate"], recipe["warmup_steps"], recipe["clip_norm"]) == (1e-3, 100, 1.0)
    assert (recipe["ema"], recipe["roll_back_factor"], recipe["jit_compile"]) == (None, None, "auto")
    assert calls["TransformerLM"][-1]["size"] == "tiny" and calls["TransformerLM"][-1]["dropout"] == 0.0
    assert calls["ByteTokenizer"][-1]["vocabulary_size"] is None
    assert calls["causal_blocks"][-1]["segment_ids"] is None and calls["causal_blocks"][-1]["contiguous"] is False
    assert "TensorBoardScalars" not in calls and "EarlyStopping" not in calls
    recipe = seen("--overwrite --model lstm --steps 50")["Recipe"][-1]
    assert (recipe["learning_rate"], recipe["warmup_steps"]) == (4e-3, 5)
    assert seen("--overwrite --tokenizer bpe")["BytePairTokenizer"][-1]["vocabulary_size"] == 8192


def test_zero_switches_off_what_is_on_by_default(seen, tmp_path):
    recipe = seen("--clip-norm 0 --warmup 0 --weight-decay 0 --stop-after-skipped 0")["Recipe"][-1]
    assert (recipe["clip_norm"], recipe["warmup_steps"]) == (None, 0)
    assert (recipe["weight_decay"], recipe["stop_after_skipped"]) == (0, 0)
    words = ["train", "--config", str(tmp_path / "runs" / "a" / "run.toml")]  # which the run wrote of itself
    again = seqlm_cli.parse(words)
    assert (again.clip_norm, again.warmup, again.weight_decay, again.stop_after_skipped) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--learning-rate 0", "learning_rate must be a number .*, got 0"),
        ("--vocabulary-size 0", "--vocabulary-size must be at least 1, got 0"),
        ("--tokenizer bpe --vocabulary-size 0", "--vocabulary-size must be at least 1, got 0"),
        ("--steps 0", "--steps must be at least 1, got 0"),
        ("--batch 0", "--batch must be at least 1, got 0"),
        ("--context 0", "--context must be at least 1, got 0"),
        ("--sample-every 0", "--sample-every must be at least 1, got 0"),
        ("--early-stopping 0", "--early-stopping must be at least 1, got 0"),
        ("--validate-every 0", "validate_every must be an integer of at least 1, got 0"),
        ("--accumulate 0", "accumulate must be an integer of at least 1, got 0"),
        ("--ema 0", "ema must be a number between 0 and 1, or None, got 0"),
        ("--roll-back 0", "roll_back_factor must be a number above 1, or None, got 0"),
        ("--decay-fraction 0", "decay_fraction must be a number above 0"),
        ("--steps-per-execution 0", "steps_per_execution must be an integer of at least 1"),
    ],
)
def test_a_zero_that_means_nothing_is_refused_by_name_and_not_taken_for_the_default(tmp_path, words, said):
    args = seqlm_cli.parse(["train", "--text", "a.txt", "--out", str(tmp_path / "a"), *words.split()])
    with pytest.raises(ValueError, match=said):
        train.run(args)
    assert not (tmp_path / "a").exists()


def test_what_belongs_to_one_start_is_not_in_the_file_that_the_run_writes(seen, tmp_path):
    folder = tmp_path / "runs" / "a"
    seen("--allow-changes --overwrite --no-resume --seed 5")
    written = (folder / "run.toml").read_text()
    assert "seed = 5" in written and not any(word in written for word in ("allow", "overwrite", "resume", "config"))
    again = seqlm_cli.parse(["train", "--config", str(folder / "run.toml")])
    assert (again.allow_changes, again.overwrite, again.resume, again.seed) == (False, False, True, 5)
    assert "allow_changes" not in json.loads((folder / "recipe.json").read_text())["command"]


def test_one_folder_written_in_two_ways_is_no_change(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert train._same("start", "z", "./z") and train._same("start", "z", str(tmp_path / "z"))
    assert not train._same("start", "z", "y") and not train._same("start", None, "z")
    assert train._same("tokenizer", "byte", "byte") and not train._same("tokenizer", "byte", "bpe")
    assert not train._same("schedule", "wsd", "./wsd")


def test_an_objective_comes_to_its_data(seen, monkeypatch):
    masked = types.SimpleNamespace(build=lambda: None, max_length=None, count_params=lambda: 0)
    monkeypatch.setattr(models, "TransformerEncoder", lambda *positional, **named: named)
    monkeypatch.setattr(models, "MaskedLM", lambda backbone: masked)
    monkeypatch.setattr(train, "task_of", lambda *positional: types.SimpleNamespace(begin=lambda folder: None))
    texts, tokenizer, objective, named = seen(f"{OF_OBJECTIVE} --seed 7 --batch 6 --context 24")["objective_blocks"]
    assert texts == ["a.txt"] and tokenizer.hash == "a tokenizer"
    assert objective == data.Masked(whole_words=True) and named["layout"] == "encoder" and named["seed"] == 7
    assert seen("--objective fim --overwrite")["objective_blocks"][2] == "fim"


def test_an_encoder_decoder_is_made_of_its_flags(seen, monkeypatch):
    model, made = types.SimpleNamespace(build=lambda: None, max_length=None, count_params=lambda: 0), []
    monkeypatch.setattr(models, "Seq2SeqLM", lambda *positional, **named: made.append((positional, named)) or model)
    monkeypatch.setattr(train, "task_of", lambda *positional: types.SimpleNamespace(begin=lambda folder: None))
    _, _, objective, named = seen(f"{OF_SEQ2SEQ} --hidden-dim 16 --dropout 0.5 --untied")["objective_blocks"]
    assert objective == "denoising" and named["layout"] == "encoder-decoder"
    [(words, options)] = made
    assert words == (99, "gru") and options["attention"] == "general" and options["tie_embedding"] is False
    assert options["hidden_dim"] == 16 and options["dropout"] == 0.5


def test_no_flag_is_forgotten_here():
    parser = argparse.ArgumentParser()
    train.arguments(parser)
    flags = {flag[2:] for action in parser._actions for flag in action.option_strings if flag.startswith("--")}
    words = f"{OF_DATA} {OF_RECIPE} {OF_WATCHING} {OF_TRANSFORMER} {OF_RECURRENT} {OF_OBJECTIVE} {OF_SEQ2SEQ}".split()
    words += ["--text", "--out", "--backend"]
    assert flags - ELSEWHERE == {word[2:] for word in words if word.startswith("--")}


def test_the_backend_is_that_of_the_flag(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "of before")
    chosen = []
    monkeypatch.setattr(train, "run", lambda args: chosen.append(os.environ["KERAS_BACKEND"]))
    assert seqlm_cli.main(["train", "--text", "a", "--out", "b", "--backend", "jax"]) == 0
    assert chosen == ["jax"]


# --- from another run

OF_START = {
    "model": "gru",
    "size": "nano",
    "layers": 1,
    "hidden_dim": 24,
    "embedding_dim": None,
    "untied": True,
    "dropout": 0.25,
    "tokenizer": "character",
    "vocabulary_size": None,
}


@pytest.fixture
def start(tmp_path, monkeypatch):
    """A run to begin from, as far as its flags and its model are asked for."""
    folder = tmp_path / "runs" / "start"
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps({"command": OF_START}))
    policy = types.SimpleNamespace(name="float32")
    model = types.SimpleNamespace(
        dtype_policy=policy, stateful_batch_size=None, max_length=None, count_params=lambda: 0
    )
    monkeypatch.setattr(tasks, "load", lambda path: types.SimpleNamespace(model=model))
    monkeypatch.setattr(models, "LanguageModel", types.SimpleNamespace)  # as which it is taken
    tokenizer = types.SimpleNamespace(vocabulary_size=99, hash="a tokenizer", decode=lambda ids: "text")
    monkeypatch.setattr(tokenizers, "load", lambda path: tokenizer)
    return folder, model


@pytest.mark.parametrize(
    "words",
    [
        "--model transformer",  # the defaults are words like any others
        "--size tiny",
        "--dropout 0",
        "--tokenizer byte",
        "--dropout 0.5",
        "--model lstm",
        "--size small",
        "--layers 2",
        "--hidden-dim 32",
        "--heads 2",
        "--kv-heads 2",
        "--intermediate-dim 8",
        "--embedding-dim 8",
        "--activation relu",
        "--norm rms",
        "--positions rotary",
        "--tokenizer bpe",
        "--vocabulary-size 300",
    ],
)
def test_what_another_run_has_otherwise_is_refused(start, tmp_path, words):
    args = seqlm_cli.parse(["train", "--text", "a", "--out", "b", "--from", str(start[0]), *words.split()])
    with pytest.raises(
        ValueError, match=f"--from takes model and tokenizer as they are in .*leave out {words.split()[0]}"
    ):
        train.run(args)


def test_an_untied_model_is_not_begun_from_a_tied_one(start):
    (start[0] / "recipe.json").write_text(json.dumps({"command": {**OF_START, "untied": False}}))
    args = seqlm_cli.parse(["train", "--text", "a", "--out", "b", "--from", str(start[0]), "--untied"])
    with pytest.raises(ValueError, match="leave out --untied"):
        train.run(args)


def test_a_run_begun_from_another_says_what_its_model_is(start, seen, tmp_path):
    folder, _ = start
    calls = seen(f"--from {folder}")
    assert calls["Recipe"][-1]["learning_rate"] == 4e-3
    command = json.loads((tmp_path / "runs" / "a" / "recipe.json").read_text())["command"]
    assert {name: command[name] for name in OF_START} == OF_START
    toml = (tmp_path / "runs" / "a" / "run.toml").read_text()
    assert 'model = "gru"' in toml and 'size = "nano"' in toml and f'from = "{folder}"' in toml
    again = seqlm_cli.parse(["train", "--config", str(tmp_path / "runs" / "a" / "run.toml"), "--overwrite"])
    assert again.start == str(folder)
    with pytest.raises(Fitted):  # its own words are not refused
        train.run(again)
    chained = seen(f"--from {tmp_path / 'runs' / 'a'} --out {tmp_path / 'runs' / 'b'}")
    assert chained["Recipe"][-1]["learning_rate"] == 4e-3  # a recurrent model still


def test_a_model_that_no_command_made_says_itself_what_it_is(tmp_path):
    model = models.RecurrentLM(20, size="nano", num_layers=1, hidden_dim=8, cell="lstm")
    model.build()
    model.save(tmp_path / "model.keras")
    assert another_run.parts_of(types.SimpleNamespace(start=tmp_path, out="b", overwrite=False)) == {"model": "lstm"}


@pytest.mark.parametrize(
    ("of_model", "words", "said"),
    [
        ({}, "--precision mixed_bfloat16", "is in float32; give --precision float32"),
        ({}, "--carry-state", "does not carry its state from batch to batch; leave out --carry-state"),
        ({"stateful_batch_size": 4}, "", "carries its state from batch to batch; give --carry-state --batch 4"),
        ({"stateful_batch_size": 4}, "--carry-state --batch 5", "give --carry-state --batch 4"),
    ],
)
def test_what_the_model_of_another_run_cannot_do_is_refused(start, tmp_path, of_model, words, said):
    folder, model = start
    vars(model).update(of_model)
    before = keras.config.dtype_policy()
    args = seqlm_cli.parse(
        ["train", "--text", "a", "--out", str(tmp_path / "new"), "--from", str(folder), *words.split()]
    )
    with pytest.raises(ValueError, match=said):
        train.run(args)
    assert keras.config.dtype_policy() == before and not (tmp_path / "new").exists()
