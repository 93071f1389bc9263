"""What the README says runs."""

import pathlib
import re
import shlex

import pytest

import seqlm_cli

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
TEXT = "It was a dark night, and the wind was loud. Nobody slept in the old house by the sea.\n"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
def test_the_first_block_of_python_runs(tmp_path, monkeypatch, capsys, fast_exports):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "night.txt").write_text(TEXT * 60)
    code = blocks("python")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 16
    # Toy size: the tokenizer learns fewer pieces, the model is smaller, and so is what is exported.
    toy = {
        "vocabulary_size=8192": "vocabulary_size=300",
        'size="tiny", max_length=256': 'size="nano", num_layers=1, max_length=32',
        "sequence_length=256, batch_size=16": "sequence_length=32, batch_size=2",
        "max_new_tokens=50": "max_new_tokens=5",
        "epochs=3": "epochs=1",
    }
    for full, small in toy.items():
        assert full in code, full
        code = code.replace(full, small)
    with fast_exports():
        exec(compile(code, "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert "saved_models/books/1" in out and "ok" in out


def test_the_commands_parse():
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("seqlm ")]
    assert len(lines) >= 6
    for line in lines:
        assert seqlm_cli.parser().parse_args(shlex.split(line, comments=True)[1:]).command == line.split()[1]


def test_the_tree_names_every_room():
    package = pathlib.Path(__file__).parents[1] / "keras_seqlm"
    for room in package.iterdir():
        if (room / "__init__.py").exists():
            assert f"  {room.name}/ " in README, room.name


def test_the_sizes_are_those_of_the_models():
    from keras_seqlm.models import RECURRENT_SIZES, TRANSFORMER_SIZES

    for size, t in TRANSFORMER_SIZES.items():
        r = RECURRENT_SIZES[size]
        transformer = f"{t['num_layers']} x {t['hidden_dim']}, {t['num_heads']}, {t['max_length']}"
        assert f"| {size} | {transformer} | {r['num_layers']} x {r['hidden_dim']} |" in README
