"""`seqlm generate` as one uses it at a terminal: text as it is written, prompts from pipes, and turns."""

import codecs
import contextlib
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from sentences import CONTEXT

import seqlm_cli
from keras_seqlm import tasks
from seqlm_cli import streams


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
    assert asked == [b"one\n", b"one\nas far as\ntwo\n"] and capsys.readouterr().out == "as far as\n" * 2


@pytest.fixture
def turns(monkeypatch):
    """The `Text` of each turn, in a list."""
    results, stream = [], tasks.TextGeneration.stream

    def kept(self, *args, **options):
        results.append((yield from stream(self, *args, **options)))
        return results[-1]

    monkeypatch.setattr(tasks.TextGeneration, "stream", kept)
    return results


@pytest.fixture(scope="module")
def chinese(tmp_path_factory):
    """A run of a GRU of bytes, which has learned a sentence of three bytes a character."""
    import keras

    from keras_seqlm import models
    from keras_seqlm.tokenizers import ByteTokenizer

    tokenizer = ByteTokenizer()
    ids = tokenizer.encode("天地玄黃宇宙洪荒" * 6)
    rows = np.stack([ids[start : start + 49] for start in range(48)])
    keras.utils.set_random_seed(3)
    model = models.RecurrentLM(260, cell="gru", size="nano", hidden_dim=48, num_layers=1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(0.02), loss=loss, jit_compile=False)
    model.fit(rows[:, :-1], rows[:, 1:], batch_size=16, epochs=25, verbose=0, shuffle=False)
    folder = tmp_path_factory.mktemp("chinese")
    tasks.TextGeneration(model, tokenizer).save(folder)
    return folder


@pytest.mark.parametrize("stop", [[], ["--stop", "never said"]])
def test_a_turn_that_ends_inside_a_character_is_gone_on_with(chinese, monkeypatch, turns, stop):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n" * 6))
    words = ["-i", "--prompt", "天地", "--max-new-tokens", "4", *stop]
    assert seqlm_cli.main(["generate", str(chinese), *words]) == 0
    (whole,) = tasks.load(chinese).write("天地", 24)
    assert whole.text == "玄黃宇宙洪荒天地"
    assert [i for turn in turns for i in turn.token_ids] == whole.token_ids
    assert turns[0].text == "玄\ufffd" and turns[1].prompt == "天地玄\ufffd"  # by its bytes, as the ids tell


def test_what_stands_before_a_stop_text_stays_said(run_folder, trained, monkeypatch, turns):
    whole = trained("gru").generate("the cat", 20)
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n\n"))
    words = ["-i", "--prompt", "the cat", "--max-new-tokens", "20", "--stop", whole[6:9]]
    assert seqlm_cli.main(["generate", str(run_folder("gru")), *words]) == 0
    before = whole[: whole.index(whole[6:9])]
    assert [turn.prompt for turn in turns] == ["the cat", "the cat" + before]


def test_bytes_that_are_no_utf_8_are_said_as_they_are(run_folder, monkeypatch, turns, tmp_path):
    (tmp_path / "lines.txt").write_bytes(codecs.BOM_UTF8 + b"caf\xe9\r\n")
    with open(tmp_path / "lines.txt", encoding="ascii") as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert seqlm_cli.main(["generate", str(run_folder("gru")), "-i", "--max-new-tokens", "1"]) == 0
    assert [turn.prompt for turn in turns] == ["caf\ufffd\n"]


@pytest.mark.parametrize(("most", "room"), [(24, CONTEXT - 24), (CONTEXT, CONTEXT // 2)])
def test_turns_go_on_where_the_context_is_full(run_folder, monkeypatch, capsys, turns, most, room):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n" * 6))
    words = ["-i", "--prompt", "the cat sat", "--max-new-tokens", str(most), "--temperature", "0"]
    assert seqlm_cli.main(["generate", str(run_folder("transformer")), *words]) == 0
    full = [turn for turn in turns if turn.truncated]
    assert len(full) >= 2
    for turn in full:
        assert turn.stop_reason == "eos" or len(turn.token_ids) == min(most, CONTEXT - room)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"longer than the {room} tokens that are read of it" in said


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_prompt_file_is_read_as_a_text_to_train_on(run, trained, end, monkeypatch, tmp_path, capsys):
    answer = tmp_path / "answer.json"
    (tmp_path / "start.txt").write_bytes(codecs.BOM_UTF8 + b"the\r\ncaf\xe9" + end)
    with open(tmp_path / "start.txt") as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert seqlm_cli.main(["generate", run, "--max-new-tokens", "5", "--json", str(answer)]) == 0
    content = json.loads(answer.read_text(encoding="utf-8"))
    assert content["prompt"] == "the\r\ncaf\ufffd"
    assert content["text"] == trained("lstm").generate("the\r\ncaf\ufffd", 5)


def test_a_prompt_that_is_no_utf_8_is_shown_as_it_is_read(run, trained, tmp_path, capsys):
    answer = tmp_path / "answer.json"
    words = ["--prompt", os.fsdecode(b"It\xff"), "--max-new-tokens", "5", "--json", str(answer)]
    assert seqlm_cli.main(["generate", run, *words]) == 0
    assert json.loads(answer.read_text(encoding="utf-8"))["prompt"] == "It\ufffd"
    assert capsys.readouterr().out == "It\ufffd" + trained("lstm").generate("It\ufffd", 5) + "\n"


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_a_character_that_the_output_has_no_place_for_is_escaped(errors, tmp_path, monkeypatch):
    with open(tmp_path / "shown.txt", "w", encoding="ascii", errors=errors) as file:
        with contextlib.redirect_stdout(file), streams.prepared():
            print("café")
        assert file.errors == errors
    assert (tmp_path / "shown.txt").read_bytes() == b"caf\\xe9\n"


def test_no_codec_speaks_where_the_output_is_ascii(tmp_path):
    (tmp_path / "café").mkdir()
    words = [sys.executable, "-m", "seqlm_cli", "runs", "café"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    shown = subprocess.run(words, capture_output=True, cwd=tmp_path, env=environment)
    assert shown.returncode == 0 and b"no run in caf\\xe9" in shown.stdout and shown.stderr == b""


def test_an_empty_stop_text_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        seqlm_cli.main(["generate", "runs/none", "--stop", ""])
    assert ended.value.code == 2
    assert (
        "--stop: an empty text stands everywhere; give the text to end before, or leave it" in capsys.readouterr().err
    )


def test_what_does_not_go_with_turns_is_refused(run, capsys):
    assert seqlm_cli.main(["generate", run, "-i", "--prompt", "-"]) == 2
    assert "give it as --prompt TEXT" in capsys.readouterr().err
    assert seqlm_cli.main(["generate", run, "-i", "--json", "a.json"]) == 2
    assert "no single result for --json" in capsys.readouterr().err
