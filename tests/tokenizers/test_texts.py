"""Tokenizers read files as training data are read: the same files give the same text to both."""

import bz2
import gzip
import json
import lzma
import warnings
import zipfile

import pytest

from keras_seqlm.corpora import corpus
from keras_seqlm.tokenizers import (
    BytePairTokenizer,
    ByteTokenizer,
    CharacterTokenizer,
    SentencePieceTokenizer,
    WordPieceTokenizer,
)
from keras_seqlm.tokenizers.texts import text_blocks

LINES = ["The low road is lower than the lowest bridge.", "Größer, grün; 漢字 漢字", 'He said "no" twice.'] * 40
TEXT = "\n".join(LINES)


def test_blocks_join_to_the_file_and_tear_no_word(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus.Corpus.__init__, "__defaults__", ("text", 64, 0.001))
    data = ("a line of text\n" * 30 + "word " * 40 + "秦川雄帝宅" * 40 + "\n\nend").encode()
    (tmp_path / "a.txt").write_bytes(data)
    blocks = list(text_blocks(tmp_path / "a.txt"))
    assert b"".join(blocks) == data
    assert len(blocks) > 10 and max(map(len, blocks)) <= 64
    for block in blocks:
        block.decode("utf-8")  # no block cuts a character


def test_bytes_that_are_no_utf8_come_through_and_are_told(tmp_path):
    data = b"\x80" * 50 + b"\xff" * 50 + b"\xe2\x82" * 20
    (tmp_path / "a.bin").write_bytes(data)
    with pytest.warns(UserWarning, match="a.bin .100.0%."):
        assert b"".join(text_blocks(tmp_path / "a.bin")) == data


def test_paths_patterns_folders_and_lists(tmp_path):
    for name in ("b.txt", "a.txt", "c[1].txt"):
        (tmp_path / name).write_text(name)
    for files, expected in (
        (str(tmp_path / "*.txt"), ["a.txt", "b.txt", "c[1].txt"]),
        (tmp_path, ["a.txt", "b.txt", "c[1].txt"]),
        (tmp_path / "c[1].txt", ["c[1].txt"]),
        ([tmp_path / "b.txt", str(tmp_path / "*.txt")], ["b.txt", "a.txt", "c[1].txt"]),
    ):
        assert [block.decode() for block in text_blocks(files)] == expected
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list(text_blocks(tmp_path / "nowhere.txt"))
    with pytest.raises(ValueError, match="holds no text file"):
        list(text_blocks([f"{tmp_path}/*.nothing"]))


@pytest.mark.parametrize(
    "arguments", [{}, {"files": "a", "texts": ["a"]}, {"texts": "a"}, {"texts": []}, {"texts": [7]}, {"texts": [{}]}]
)
def test_refuses_other_input(arguments):
    with pytest.raises(ValueError, match="Expected|no text"):
        list(text_blocks(**arguments))


def files_of_the_same_text(folder):
    """The same text as a file, packed, in UTF-16, in a folder, by a pattern and as records."""
    plain = folder / "plain" / "a.txt"
    plain.parent.mkdir()
    plain.write_bytes(TEXT.encode())
    made = {"folder": plain.parent, "pattern": f"{plain.parent}/*.txt"}
    for ending, pack in (("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)):
        made[ending] = folder / f"a.txt.{ending}"
        made[ending].write_bytes(pack(TEXT.encode()))
    made["utf-16"] = folder / "wide.txt"
    made["utf-16"].write_bytes(TEXT.encode("utf-16"))
    made["zip"] = folder / "a.zip"
    with zipfile.ZipFile(made["zip"], "w") as archive:
        archive.writestr("a.txt", TEXT)
    made["jsonl"] = folder / "a.jsonl"
    made["jsonl"].write_text(json.dumps({"id": 1, "text": TEXT}))
    return plain, made


TRAIN = {
    "byte": lambda **source: ByteTokenizer.train(**source),
    "character": lambda **source: CharacterTokenizer.train(**source),
    "byte pair": lambda **source: BytePairTokenizer.train(vocabulary_size=300, **source),
    "word piece": lambda **source: WordPieceTokenizer.train(vocabulary_size=60, **source),
    "sentence piece": lambda **source: SentencePieceTokenizer.train(vocabulary_size=310, **source),
}


@pytest.mark.parametrize("kind", TRAIN)
def test_the_same_text_gives_the_same_tokenizer_however_it_is_kept(tmp_path, kind):
    plain, made = files_of_the_same_text(tmp_path)
    expected = TRAIN[kind](texts=[TEXT]).hash
    assert TRAIN[kind](files=plain).hash == expected
    assert {name: TRAIN[kind](files=files).hash for name, files in made.items()} == dict.fromkeys(made, expected)
    # Records of another field, in a file and in memory.
    (tmp_path / "b.jsonl").write_text(json.dumps({"content": TEXT}))
    assert TRAIN[kind](files=tmp_path / "b.jsonl", text_field="content").hash == expected
    assert TRAIN[kind](texts=[{"content": TEXT}], text_field="content").hash == expected


def test_a_tokenizer_that_learned_little_says_so():
    """One of Chinese alone, cut into words at spaces that it does not have, knew nothing and said nothing."""
    chinese = ["秦川雄帝宅函谷壯皇居" * 12]
    with pytest.raises(ValueError, match="100% of the training text are unknown"):
        WordPieceTokenizer.train(texts=chinese, lowercase=False, vocabulary_size=8)
    with pytest.warns(UserWarning, match="17% of the training text are unknown.*byte tokenizer"):
        CharacterTokenizer.train(texts=["aaaaab"], vocabulary_size=5)
    with pytest.warns(UserWarning, match="50% of the training text"):
        CharacterTokenizer.train(texts=["ab"], vocabulary_size=5)
    with pytest.raises(ValueError, match="67% of the training text"):
        CharacterTokenizer.train(texts=["abc"], vocabulary_size=5)
    with pytest.warns(UserWarning, match="training text are unknown.*sentence pieces"):
        WordPieceTokenizer.train(texts=["low low low low low low " * 9 + "q" * 101], vocabulary_size=40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CharacterTokenizer.train(texts=["a" * 19 + "b"], vocabulary_size=5)
        WordPieceTokenizer.train(texts=["low lower lowest"], vocabulary_size=40)
