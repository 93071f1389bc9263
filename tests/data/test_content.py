"""A corpus is known by its content: touching, moving and copying change nothing, a changed byte is seen."""

import gzip
import json
import os
import shutil
import sys
import time
import types
import zipfile

import pytest
from corpora.test_corpus import Schema

from keras_seqlm.data import content, pack
from keras_seqlm.tokenizers import ByteTokenizer


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for name, words in (("a.txt", "Hello, world"), ("b.txt", "another text"), ("c.jsonl", '{"text": "three"}\n')):
        (folder / name).write_text(words)
    return folder


@pytest.fixture
def store_of(tmp_path):
    return lambda files, **how: pack(files, ByteTokenizer(), cache_dir=tmp_path / "cache", **how)


def forbid(monkeypatch):
    def encode(*_):
        raise AssertionError("tokenized again")

    monkeypatch.setattr(ByteTokenizer, "encode", encode)


def test_touched_moved_and_copied_files_are_the_same_text(text, store_of, tmp_path, monkeypatch):
    first = store_of(text)
    forbid(monkeypatch)
    os.utime(text / "a.txt", (1, 1))
    assert store_of(text).folder == first.folder
    shutil.copytree(text, tmp_path / "copy")
    assert store_of(tmp_path / "copy").content_hash == first.content_hash
    (tmp_path / "copy" / "a.txt").rename(tmp_path / "copy" / "aa.md")
    (tmp_path / "copy" / "c.jsonl").rename(tmp_path / "copy" / "c.ndjson")
    moved = store_of(tmp_path / "copy")
    assert moved.folder == first.folder and moved.files == first.files
    assert [(file["kind"], file["num_documents"]) for file in first.files] == [("text", 1), ("text", 1), ("lines", 1)]


def test_a_changed_byte_another_order_and_another_way_to_read_are_seen(text, store_of):
    files = [text / "a.txt", text / "b.txt"]
    hashes = [store_of(files).content_hash, store_of(files[::-1]).content_hash, store_of(files[:1]).content_hash]
    (text / "a.txt").write_text("Hello, World")
    hashes.append(store_of(files).content_hash)
    (text / "d.txt").write_bytes((text / "c.jsonl").read_bytes())
    (text / "e.jsonl").write_text('{"text": "x", "body": "y"}\n')
    hashes += [store_of(text / "c.jsonl").content_hash, store_of(text / "d.txt").content_hash]
    hashes += [store_of(text / "e.jsonl").content_hash, store_of(text / "e.jsonl", text_field="body").content_hash]
    assert len(set(hashes)) == len(hashes)
    # What is read of a text does not depend on the field, and neither on how much may be broken.
    assert store_of(files, text_field="body", tolerance=0.5).content_hash == store_of(files).content_hash


def table(path, monkeypatch):
    """A file that begins as Parquet does, of one row that a stand-in for pyarrow reads."""

    class Table:
        schema_arrow = Schema(["text", "body"])

        def __init__(self, path):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def iter_batches(self, batch_size, columns):
            yield types.SimpleNamespace(to_pylist=lambda: [{name: ROW[name] for name in columns}])

    module = types.SimpleNamespace(ParquetFile=Table)
    monkeypatch.setitem(sys.modules, "pyarrow", types.SimpleNamespace(parquet=module))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", module)
    path.write_bytes(b"PAR1....PAR1")


ROW = {"text": "the title", "body": "the body"}


@pytest.mark.parametrize("name", ["a.zip", "archive", "a.txt", "t.parquet", "t.data", "rows.jsonl.gz.gz"])
def test_the_field_counts_wherever_records_are_read_whatever_the_file_is_called(tmp_path, store_of, monkeypatch, name):
    path, lines = tmp_path / name, json.dumps(ROW) + "\n"
    if name.startswith("t."):
        table(path, monkeypatch)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(gzip.compress(lines.encode())))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("rows.jsonl", lines)
    stores = {field: store_of(path, text_field=field) for field in ROW}
    assert {field: ByteTokenizer().decode(store[:]) for field, store in stores.items()} == ROW
    assert stores["text"].content_hash != stores["body"].content_hash


def test_the_mark_of_utf_8_is_no_token_and_counts_as_a_byte_of_the_file(text, store_of):
    marked = text / "marked.txt"
    marked.write_bytes(b"\xef\xbb\xbf" + (text / "a.txt").read_bytes())
    with_mark, without = store_of(marked), store_of(text / "a.txt")
    assert with_mark[:].tolist() == without[:].tolist() and with_mark.num_bytes == without.num_bytes
    assert with_mark.content_hash != without.content_hash and with_mark.folder != without.folder


def age(monkeypatch, seconds=10):
    """Let the clock be so far on that what was just written is old."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + seconds * 10**9)


def count_hashes(monkeypatch):
    read, hash_one = [], content._hash
    monkeypatch.setattr(content, "_hash", lambda path, line: read.append(path.name) or hash_one(path, line))
    return read


def test_a_file_is_read_once_for_its_hash(text, store_of, monkeypatch):
    age(monkeypatch)
    read = count_hashes(monkeypatch)
    hashes = [store_of(text).content_hash for _ in range(3)]
    assert len(set(hashes)) == 1 and read == ["a.txt", "b.txt", "c.jsonl"]
    (text / "b.txt").write_text("another text, longer")
    assert store_of(text).content_hash != hashes[0] and read[3:] == ["b.txt"]


def test_a_change_that_keeps_size_and_time_is_seen(text, store_of, monkeypatch):
    age(monkeypatch)
    before, times = store_of(text).content_hash, os.stat(text / "a.txt")
    (text / "a.txt").write_text("hello, world")
    os.utime(text / "a.txt", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert os.stat(text / "a.txt").st_mtime_ns == times.st_mtime_ns
    assert store_of(text).content_hash != before


def test_a_file_that_was_just_written_is_not_relied_on(text, store_of, tmp_path, monkeypatch):
    read = count_hashes(monkeypatch)
    store_of(text)
    first = len(read)
    store_of(text)
    assert first >= 3 and len(read) == first + 3
    assert not (tmp_path / "cache" / content.INDEX).exists()


NO_USE = json.dumps({"1:2": {"stamp": [1, 2, 3], "sha256": "0" * 64}})


@pytest.mark.parametrize("damage", ["{", "[]", '{"1:2": {"stamp": [1], "sha256": ""}}', '{"1:2": 3}', NO_USE])
def test_a_damaged_index_is_told_and_made_anew(text, store_of, tmp_path, damage, monkeypatch):
    age(monkeypatch)
    before = store_of(text).content_hash
    index = tmp_path / "cache" / content.INDEX
    assert len(json.loads(index.read_text())) == 3
    index.write_text(damage)
    with pytest.warns(UserWarning, match="files.index is damaged"):
        assert store_of(text).content_hash == before
    assert len(json.loads(index.read_text())) == 3


def test_the_index_forgets_what_was_not_used_for_longest(text, tmp_path, monkeypatch):
    age(monkeypatch)
    monkeypatch.setattr(content, "MOST_ENTRIES", 2)
    paths = sorted(text.iterdir())
    content.hash_files(paths[:1], tmp_path)
    age(monkeypatch)
    content.hash_files(paths[1:], tmp_path)
    kept = json.loads((tmp_path / content.INDEX).read_text())
    assert set(kept) == {f"{path.stat().st_dev}:{path.stat().st_ino}" for path in paths[1:]}


def test_a_file_that_is_only_looked_up_counts_as_used(text, tmp_path, monkeypatch):
    monkeypatch.setattr(content, "MOST_ENTRIES", 2)
    first, second, third = sorted(text.iterdir())
    for path in (first, second, first, third):
        age(monkeypatch, 100)
        content.hash_files([path], tmp_path)
    kept = json.loads((tmp_path / content.INDEX).read_text())
    assert set(kept) == {f"{path.stat().st_dev}:{path.stat().st_ino}" for path in (first, third)}


def test_a_shared_cache_that_is_not_ours_to_write_in_is_read(text, tmp_path, monkeypatch):
    age(monkeypatch)
    paths, asked = sorted(text.iterdir()), []
    hashes = content.hash_files(paths, tmp_path)
    age(monkeypatch, 100)

    def refuse(*_):  # root may write anywhere
        asked.append(_)
        raise PermissionError("Permission denied")

    monkeypatch.setattr(content, "_add", refuse)
    assert content.hash_files(paths, tmp_path) == hashes and len(asked) == 1


WRITER = """
import pathlib, sys, time
from keras_seqlm.data import content
now = time.time_ns
content.time.time_ns = lambda: now() + 10**10
for path in sorted(pathlib.Path(sys.argv[1]).iterdir())[int(sys.argv[3])::4]:
    content.hash_files([path], pathlib.Path(sys.argv[2]))
"""


def test_no_process_loses_what_another_has_put_into_the_index(forks, tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.txt").write_text(f"text {number}")
    command = [sys.executable, "-c", WRITER, folder, tmp_path / "cache"]
    started = [forks("jax").Popen([*command, number]) for number in range(4)]
    assert [process.wait() for process in started] == [0] * 4
    assert len(json.loads((tmp_path / "cache" / content.INDEX).read_text())) == 40


def test_hashing_says_how_far_it_is(text, tmp_path, monkeypatch, capsys):
    clock = iter(range(0, 10_000, 30))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(content, "BLOCK_SIZE", 4)
    content.hash_files(sorted(text.iterdir()), tmp_path)
    assert capsys.readouterr().err.splitlines()[0] == "reading the files for their hash: 0 of 0 MB"
