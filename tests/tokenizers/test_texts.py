import pytest

from keras_seqlm.tokenizers import texts
from keras_seqlm.tokenizers.texts import text_blocks, training_paths


def test_blocks_join_to_the_file_and_end_at_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "BLOCK_BYTES", 64)
    data = ("a line of text\n" * 30 + "word " * 40 + "秦川雄帝宅" * 40 + "\n\nend").encode()
    (tmp_path / "a.txt").write_bytes(data)
    blocks = list(text_blocks(tmp_path / "a.txt"))
    assert b"".join(blocks) == data
    assert blocks[0].endswith(b"\n") and len(blocks) > 10 and max(map(len, blocks)) < 200
    for block in blocks:
        block.decode("utf-8")  # no block cuts a character


def test_bytes_that_are_no_utf8_come_through(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "BLOCK_BYTES", 16)
    data = b"\x80" * 50 + b"\xff" * 50 + b"\xe2\x82" * 20
    (tmp_path / "a.bin").write_bytes(data)
    assert b"".join(text_blocks(tmp_path / "a.bin")) == data


def test_paths_patterns_and_lists(tmp_path):
    for name in ("b.txt", "a.txt", "c[1].txt"):
        (tmp_path / name).write_text(name)
    assert [path.name for path in training_paths(str(tmp_path / "*.txt"))] == ["a.txt", "b.txt", "c[1].txt"]
    assert [path.name for path in training_paths(tmp_path / "c[1].txt")] == ["c[1].txt"]
    assert len(training_paths([tmp_path / "b.txt", str(tmp_path / "*.txt")])) == 3
    with pytest.raises(FileNotFoundError, match="nowhere"):
        training_paths(tmp_path / "nowhere.txt")
    with pytest.raises(FileNotFoundError, match="nothing matches"):
        training_paths(["*.nothing"])


@pytest.mark.parametrize(
    "arguments", [{}, {"files": "a", "texts": ["a"]}, {"texts": "a"}, {"texts": []}, {"texts": [7]}]
)
def test_refuses_other_input(arguments):
    with pytest.raises(ValueError, match="Expected|no text"):
        list(text_blocks(**arguments))
