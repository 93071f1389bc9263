"""`seqlm generate` as one uses it at a terminal: text as it is written, prompts from pipes, and turns."""

import io
import sys

import pytest

import seqlm_cli
from keras_seqlm import tasks


class Shown(io.StringIO):
    """Standard output that keeps what was written since the last flush."""

    def __init__(self):
        super().__init__()
        self.flushed = []

    def flush(self):
        self.flushed.append(self.getvalue()[len("".join(self.flushed)) :])


@pytest.fixture
def run(run_folder):
    return str(run_folder("lstm"))


@pytest.fixture
def token_by_token(monkeypatch):
    import keras_seqlm.generation.generate  # noqa: F401

    monkeypatch.setattr(sys.modules["keras_seqlm.generation.generate"], "SHORT", 0.0)


def test_the_text_appears_as_it_is_written(run, trained, monkeypatch, token_by_token):
    shown = Shown()
    monkeypatch.setattr(sys, "stdout", shown)
    assert seqlm_cli.main(["generate", run, "--prompt", "the cat", "--max-new-tokens", "12"]) == 0
    pieces = [piece for piece in shown.flushed if piece]
    assert pieces[0] == "the cat" and len(pieces) >= 12
    assert "".join(pieces) == "the cat" + trained("lstm").generate("the cat", 12) + "\n"


@pytest.mark.parametrize("words", [[], ["--prompt", "-"]])
def test_the_prompt_is_read_from_a_file_or_a_pipe(run, trained, words, monkeypatch, capsys, tmp_path):
    (tmp_path / "start.txt").write_text("the cat\nsat\n")
    with open(tmp_path / "start.txt") as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert seqlm_cli.main(["generate", run, "--max-new-tokens", "5", *words]) == 0
    assert capsys.readouterr().out == "the cat\nsat" + trained("lstm").generate("the cat\nsat", 5) + "\n"


def test_no_prompt_and_nothing_to_read_is_a_text_from_its_beginning(run, trained, capsys, monkeypatch):
    with open("/dev/null") as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert seqlm_cli.main(["generate", run, "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out == trained("lstm").generate("", 5) + "\n"


def test_a_prompt_that_is_given_goes_before_what_is_piped(run, trained, capsys, monkeypatch, tmp_path):
    (tmp_path / "start.txt").write_text("other")
    with open(tmp_path / "start.txt") as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert seqlm_cli.main(["generate", run, "--prompt", "the", "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out == "the" + trained("lstm").generate("the", 5) + "\n"


def test_turns_go_on_from_all_that_was_said(run, trained, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("the cat\n\nthe dog\n"))
    assert seqlm_cli.main(["generate", run, "-i", "--prompt", "we say: ", "--max-new-tokens", "6"]) == 0
    said, turns = "we say: ", []
    for line in ("the cat", "", "the dog"):
        if line:
            said += ("" if said.endswith("\n") else "\n") + line + "\n"
        turns.append(trained("lstm").generate(said, 6))
        said += turns[-1]
    assert capsys.readouterr().out == "".join(f"{turn}\n" for turn in turns)


def test_ctrl_c_ends_a_text_and_not_the_conversation(run, capsys, monkeypatch):
    asked = []

    def stream(self, prompt, *_, **__):
        asked.append(prompt)
        yield "as far as"
        if len(asked) == 1:
            raise KeyboardInterrupt
        return tasks.text_generation.Text(prompt, "as far as", [], "length", False)

    monkeypatch.setattr(tasks.TextGeneration, "stream", stream)
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    assert seqlm_cli.main(["generate", run, "-i"]) == 0
    assert asked == ["one\n", "one\nas far as\ntwo\n"] and capsys.readouterr().out == "as far as\n" * 2


def test_what_does_not_go_with_turns_is_refused(run, capsys):
    assert seqlm_cli.main(["generate", run, "-i", "--prompt", "-"]) == 2
    assert "give it as --prompt TEXT" in capsys.readouterr().err
    assert seqlm_cli.main(["generate", run, "-i", "--json", "a.json"]) == 2
    assert "no single result for --json" in capsys.readouterr().err
