"""Saving, loading, and folders that are not what they should be."""

import hashlib
import json
import os
import pathlib
import pickle
import random
import subprocess
import sys

import pytest

import keras_seqlm.tokenizers
import seqlm_runtime.tokenizers
from keras_seqlm.tokenizers import (
    BytePairTokenizer,
    ByteTokenizer,
    CharacterTokenizer,
    SentencePieceTokenizer,
    WordPieceTokenizer,
)

KINDS = ["byte", "character", "byte_pair", "word_piece", "unigram", "bpe"]
TRAINED = [BytePairTokenizer, CharacterTokenizer, SentencePieceTokenizer, WordPieceTokenizer]
ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("kind", KINDS)
def test_loads_what_was_saved(tokenizers, tmp_path, kind):
    tokenizer = tokenizers[kind]
    folder = tmp_path / "run" / "tokenizer"
    tokenizer.save(folder)
    tokenizer.save(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["tokenizer"]
    text = "It was the best 秦川 of don't\n"
    for package in (keras_seqlm.tokenizers, seqlm_runtime.tokenizers):
        loaded = package.load(folder)
        assert (
            type(loaded).__module__.startswith(package.__name__) and type(loaded).__name__ == type(tokenizer).__name__
        )
        assert loaded.hash == tokenizer.hash and loaded.files == tokenizer.files
        assert loaded.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert type(tokenizer).load(folder).hash == tokenizer.hash
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.iterdir())))
    assert tokenizer.hash == digest.hexdigest()[:16]
    assert pickle.loads(pickle.dumps(tokenizer)).encode(text).tolist() == tokenizer.encode(text).tolist()
    assert tokenizer.hash in repr(tokenizer)


@pytest.mark.parametrize("cls", TRAINED)
def test_training_twice_gives_the_same_files(cls, tmp_path):
    lines = ["The low road, the lower road.", "秦川雄帝宅 函谷壯皇居", "naïve café's 123 lowest"] * 30
    (tmp_path / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "b.txt").write_text("\n".join(reversed(lines)), encoding="utf-8")
    first = cls.train(str(tmp_path / "*.txt"), vocabulary_size=400)
    again = cls.train([tmp_path / "b.txt", str(tmp_path / "a.txt")], vocabulary_size=400)
    assert first.files == again.files


@pytest.mark.slow
def test_training_in_another_process_gives_the_same_files():
    lines = ["The low road, the lower road.", "秦川雄帝宅 函谷壯皇居", "naïve café's 123 lowest"] * 30
    names = [cls.__name__ for cls in TRAINED]
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from keras_seqlm import tokenizers as t; "
        f"print(*(getattr(t, name).train(texts={lines!r}, vocabulary_size=400).hash for name in {names}))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77", "RAYON_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(ROOT)], capture_output=True, text=True, env=environment, timeout=120
    )
    expected = [cls.train(texts=lines, vocabulary_size=400).hash for cls in TRAINED]
    assert done.stdout.split() == expected, done.stderr[-1000:]


def test_the_runtime_needs_numpy_alone(tokenizers, tmp_path):
    for kind, tokenizer in tokenizers.items():
        tokenizer.save(tmp_path / kind)
    script = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
import seqlm_runtime.tokenizers
for folder in sorted(pathlib.Path(sys.argv[2]).iterdir()):
    tokenizer = seqlm_runtime.tokenizers.load(folder)
    print(tokenizer.decode(tokenizer.encode("low")))
heavy = {"keras", "tensorflow", "tokenizers", "sentencepiece", "keras_seqlm", "torch", "jax"} & set(sys.modules)
print("heavy", sorted(heavy))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(ROOT), str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split("\n") == ["low"] * len(tokenizers) + ["heavy []", ""], done.stderr[-1000:]


def test_missing_folders_and_files(tokenizers, tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer folder"):
        seqlm_runtime.tokenizers.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="seqlm_tokenizer.json"):
        seqlm_runtime.tokenizers.load(tmp_path)
    tokenizers["byte_pair"].save(tmp_path / "bp")
    (tmp_path / "bp" / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match="merges.txt"):
        keras_seqlm.tokenizers.load(tmp_path / "bp")
    with pytest.raises(FileNotFoundError, match="merges.txt"):
        BytePairTokenizer({"tokenizer.json": b""})
    ByteTokenizer().save(tmp_path / "byte")
    with pytest.raises(ValueError, match="byte_pair"):
        BytePairTokenizer.load(tmp_path / "byte")


def test_save_replaces_tokenizers_only(tokenizers, tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "chapter.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="no tokenizer folder"):
        ByteTokenizer().save(tmp_path / "book")
    assert (tmp_path / "book" / "chapter.txt").read_text() == "mine"
    tokenizers["character"].save(tmp_path / "kept")
    ByteTokenizer().save(tmp_path / "kept")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["seqlm_tokenizer.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["book", "kept"]


@pytest.mark.parametrize("kind", KINDS)
def test_reads_folders_of_before_the_file_got_its_name(tokenizers, tmp_path, kind):
    """Its name was that of Hugging Face's file; runs of then keep their tokenizer, and its hash."""
    tokenizer = tokenizers[kind]
    tokenizer.save(tmp_path / "run")
    (tmp_path / "run" / "seqlm_tokenizer.json").rename(tmp_path / "run" / "tokenizer.json")
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted((tmp_path / "run").iterdir())))
    for package in (keras_seqlm.tokenizers, seqlm_runtime.tokenizers):
        loaded = package.load(tmp_path / "run")
        assert loaded.hash == tokenizer.hash == digest.hexdigest()[:16]
    tokenizer.save(tmp_path / "run")
    assert not (tmp_path / "run" / "tokenizer.json").exists()


GOOD = {"format": 1, "type": "byte", "vocabulary_size": 260, "special_ids": {"pad": 0, "bos": 1, "eos": 2, "unk": 3}}


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"type": "other"},
        {"type": 3},
        {"vocabulary_size": 259},
        {"vocabulary_size": 10**12},
        {"vocabulary_size": -1},
        {"vocabulary_size": True},
        {"vocabulary_size": 260.0},
        {"vocabulary_size": None},
        {"special_ids": None},
        {"special_ids": {"pad": 0, "bos": 0, "eos": 2, "unk": 3}},
        {"special_ids": {"pad": 260}},
        {"special_ids": {"pad": 4294967295}},
        {"special_ids": {"eos": "2"}},
        {"special_ids": {}},
    ],
)
def test_refuses_a_damaged_config(tmp_path, change):
    (tmp_path / "seqlm_tokenizer.json").write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(ValueError):
        seqlm_runtime.tokenizers.load(tmp_path)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_refuses_a_config_that_is_no_object(tmp_path, data):
    (tmp_path / "seqlm_tokenizer.json").write_bytes(data)
    with pytest.raises(ValueError, match="seqlm_tokenizer.json"):
        seqlm_runtime.tokenizers.load(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_raise_value_error_or_still_load(tokenizers, kind):
    """Bytes changed, cut off or added in any file: never another exception."""
    choose = random.Random(11)
    tokenizer = tokenizers[kind]
    cls = type(tokenizer).__mro__[2]  # the runtime's own class
    refused = 0
    for name in tokenizer.files:
        for _ in range(60):
            data = bytearray(tokenizer.files[name])
            action = choose.randrange(4)
            if action == 0:
                data = data[: choose.randrange(len(data))]
            elif action == 1:
                data += bytes([choose.randrange(256)])
            else:
                for _ in range(choose.randint(1, 3)):
                    data[choose.randrange(len(data))] = choose.randrange(256)
            try:
                damaged = cls({**tokenizer.files, name: bytes(data)})
                damaged.decode(damaged.encode("It was the best 秦川 of don't\n"))
            except ValueError:
                refused += 1
    assert refused >= 20 * len(tokenizer.files)


def test_refuses_duplicate_tokens_and_missing_bytes(tokenizers):
    files = tokenizers["byte_pair"].files
    lines = files["vocabulary.txt"].decode().split("\n")
    for changed in (lines[:300] + [lines[299]] + lines[301:], lines[:10] + [lines[280] + "zzz"] + lines[11:]):
        with pytest.raises(ValueError, match="vocabulary.txt"):
            BytePairTokenizer({**files, "vocabulary.txt": "\n".join(changed).encode()})
    files = tokenizers["character"].files
    with pytest.raises(ValueError, match="twice"):
        CharacterTokenizer({**files, "characters.txt": ("aa" + files["characters.txt"].decode()[2:]).encode()})
