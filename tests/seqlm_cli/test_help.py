"""Help, what is said where something is missing, completion, and modules of a user's own."""

import argparse
import json
import shlex
import shutil
import subprocess
import sys

import pytest

import seqlm_cli
from seqlm_cli import completion
from seqlm_cli.parsers import Parser

VERBS = sorted(seqlm_cli.VERBS)


def help_of(*words, capsys):
    with pytest.raises(SystemExit) as ended:
        seqlm_cli.main([*words, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", [(), *((verb,) for verb in VERBS)])
def test_help_begins_with_four_examples_and_fits_80_columns(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = help_of(*words, capsys=capsys).splitlines()
    assert (
        lines[0] == "examples:" and lines[9] == "" and lines[10].startswith(f"usage: seqlm {' '.join(words)}".rstrip())
    )
    assert [line.startswith("  # ") for line in lines[1:9]] == [True, False] * 4
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("verb", VERBS)
def test_examples_are_commands_that_the_parser_takes(verb):
    assert len(seqlm_cli.VERBS[verb].EXAMPLES) == 4
    for command, _ in seqlm_cli.VERBS[verb].EXAMPLES:
        words = shlex.split(
            command.removeprefix("source <(").partition(" | ")[0].partition(" > ")[0].partition(" < ")[0]
        )
        if "--config" in words:  # of a file that is not there; what is in such a one is tested elsewhere
            continue
        assert seqlm_cli.parser().parse_args([word.rstrip(")") for word in words][1:]).command == verb


def test_flags_of_a_verb_all_say_what_they_are():
    for verb in ("generate", "evaluate", "export", "verify", "runs", "cache"):
        parser = Parser(prog=verb)
        seqlm_cli.VERBS[verb].arguments(parser)
        assert [action.dest for action in parser._actions if not action.help] == []


def missing(*words, capsys):
    with pytest.raises(SystemExit) as ended:
        seqlm_cli.main(list(words))
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    return shown.err


def test_verify_alone_says_what_it_needs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("books", "demo/lstm"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "recipe.json").write_text("{}")
    said = missing("verify", capsys=capsys).splitlines()
    assert said == [
        "seqlm verify: error: the following arguments are required: RUN",
        "  RUN: a run folder, as `seqlm train` writes it",
        "the runs here: runs/books, runs/demo/lstm",
        "usage: seqlm verify RUN [ARTIFACT ...] [options]",
        "for example: seqlm verify runs/books",
        "seqlm verify --help tells all",
    ]


def test_every_argument_that_is_missing_is_explained(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = missing("export", capsys=capsys)
    assert "required: RUN, --to" in said and "  --to: a server's, or a phone's" in said and "runs here" not in said
    said = missing("train", capsys=capsys)
    assert "  --text: files, folders, globs" in said and "  --out: the run folder to write" in said
    assert "seqlm train --help tells all" in said


# --- modules of a user's own


@pytest.mark.parametrize("verb", ["train", "generate", "evaluate", "export", "verify"])
def test_every_command_that_loads_a_run_imports_modules_first(verb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    (tmp_path / "my_broken_layers.py").write_text("import json\nraise ZeroDivisionError('no layers today')\n")
    (tmp_path / "my_needy_layers.py").write_text("import nothing_of_that_name\n")
    run = {"train": ["--text", "a.txt", "--out"], "evaluate": ["--text", "a.txt"], "export": ["--to", "litert"]}
    words = [verb, *run.get(verb, []), str(tmp_path / "run")]
    words = words if verb == "train" else [verb, str(tmp_path / "run"), *run.get(verb, [])]
    for module, said in (
        ("my_layers", "there is no module 'my_layers' here or on Python's path; give its name without .py"),
        ("my_broken_layers", "it fails as it is imported: ZeroDivisionError: no layers today"),
        ("my_needy_layers", "it fails as it is imported: ModuleNotFoundError: No module named 'nothing_of_that_name'"),
    ):
        assert seqlm_cli.main([*words, "--import", module]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"seqlm: error: --import {module}: ") and said in error and error.count("\n") == 1


def test_imports_come_back_from_a_runs_own_flags(tmp_path):
    from seqlm_cli.config import as_toml

    (tmp_path / "run.toml").write_text(as_toml({"imports": ["json", "csv"], "text": ["a.txt"], "out": "runs/a"}))
    args = seqlm_cli.parse(["train", "--config", str(tmp_path / "run.toml"), "--import", "re"])
    assert args.imports == ["json", "csv", "re"]


# --- completion


@pytest.fixture(scope="module")
def completions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("completion")
    for shell in completion.SHELLS:
        words = [sys.executable, "-X", "importtime", "-m", "seqlm_cli", "completion", shell]
        shown = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
        loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in shown.stderr.splitlines()}
        assert "shtab" in loaded and not loaded & {"keras", "numpy", "keras_seqlm", "tensorflow", "rich"}
        (folder / shell).write_text(shown.stdout)
    return folder


def test_bash_completes_commands_flags_and_choices(completions, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "a.txt").write_text("")
    ask = """
    ask() { COMP_WORDS=("$@"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=(); _shtab_seqlm; echo "${COMPREPLY[@]}"; }
    ask seqlm ver
    ask seqlm export --to ""
    ask seqlm export --quan
    ask seqlm generate ""
    ask seqlm evaluate runs --text a
    ask seqlm train --model ls
    """
    script = f"source {shlex.quote(str(completions / 'bash'))}\n{ask}"
    shown = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert shown.stderr == ""
    assert shown.stdout.splitlines() == ["verify", "saved-model litert", "--quantize", "runs", "a.txt", "lstm"]


def test_every_verb_and_flag_is_in_each_completion(completions):
    flags = {"train": "steps", "generate": "repetition-penalty", "export": "max-new-tokens-limit", "cache": "to-size"}
    for shell in completion.SHELLS:
        text = (completions / shell).read_text()
        assert all(verb in text for verb in VERBS) and all(flag in text for flag in flags.values()), shell


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_can_read_theirs(completions, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed here")
    subprocess.run([shell, "-n", str(completions / shell)], check=True, timeout=60)
    if shell == "fish":
        ask = f"source {completions / shell}; complete -C 'seqlm ver'; complete -C 'seqlm export --to '"
        shown = subprocess.run([shell, "-c", ask], capture_output=True, text=True, check=True, timeout=60).stdout
        assert [line.partition("\t")[0] for line in shown.splitlines()] == ["verify", "saved-model", "litert"]


def test_a_json_answer_of_runs_is_written_without_keras(tmp_path):
    words = [sys.executable, "-m", "seqlm_cli", "runs", str(tmp_path), "--json", str(tmp_path / "runs.json")]
    shown = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert json.loads((tmp_path / "runs.json").read_text()) == {"runs": []}


def test_help_names_the_defaults_that_the_verb_fills_in(capsys):
    from seqlm_cli import finetune, train

    for verb in (train, finetune):
        parser = argparse.ArgumentParser()
        verb.arguments(parser)
        said = {action.dest: action.help for action in parser._actions}
        for name in ("tokenizer", "dropout"):
            assert f"default {verb._DEFAULTS[name]:{'' if name == 'tokenizer' else 'g'}}" in said[name], (verb, name)
    assert all(f"{rate:g}" in said["learning_rate"] for rate in finetune.LEARNING_RATES.values())
