"""Files of every make: unpacked, decoded, or refused by name; never read as the bytes of another thing."""

import bz2
import contextlib
import errno
import gzip
import importlib.util
import io
import json
import lzma
import os
import pickle
import sqlite3
import struct
import sys
import types
import zipfile

import numpy as np
import pytest
from corpora.test_corpus import Schema, documents, write

from keras_seqlm.corpora import Corpus, json_text, opening, texts, unpacking

TEXT = "Grüße an alle. 😀 漢字\r\n" * 3000
LINES = "\n".join(json.dumps({"text": f"letter {number}"}) for number in range(2000)).encode()
LETTERS = [f"letter {number}".encode() for number in range(2000)]


def zipped(content, name="a.txt"):
    path = f"{name}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    with open(path, "rb") as handle:
        return handle.read()


def zstandard(content):
    module = pytest.importorskip("zstandard")
    # Two frames, as parallel writers make them.
    half = len(content) // 2
    return b"".join(module.ZstdCompressor().compress(part) for part in (content[:half], content[half:]))


PACKERS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zip": zipped, "zst": zstandard}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("named", [True, False], ids=["by its ending", "by its first bytes"])
@pytest.mark.parametrize("packing", PACKERS)
def test_packed_text_is_read_as_text(tmp_path, packing, named):
    path = tmp_path / (f"a.txt.{packing}" if named else "a.txt")
    path.write_bytes(PACKERS[packing](TEXT.encode()))
    assert b"".join(texts(path)) == TEXT.encode()
    if named and packing != "zip":
        path = tmp_path / f"lines.jsonl.{packing}"
        path.write_bytes(PACKERS[packing](LINES))
        assert documents(Corpus(path)) == LETTERS


@pytest.mark.parametrize("packing", [name for name in PACKERS if name != "zip"])
def test_packed_lines_whose_name_says_nothing_of_packing_are_read_as_lines(tmp_path, packing):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(PACKERS[packing](LINES))
    assert documents(Corpus(path)) == LETTERS


@pytest.mark.parametrize("packing", [name for name in PACKERS if name != "gz"])
@pytest.mark.parametrize("kind", ["cut", "spoilt"])
def test_damage_is_tolerated_counted_and_told_as_gzips_is(tmp_path, packing, kind):
    noise = np.random.default_rng(0).integers(97, 122, 500_000, np.uint8).tobytes()
    whole = bytearray(PACKERS[packing](noise))
    if kind == "cut":
        del whole[len(whole) * 3 // 4 :]
    else:
        whole[len(whole) // 2 :: 997] = bytes(len(whole[len(whole) // 2 :: 997]))
    path = tmp_path / f"a.txt.{packing}"
    path.write_bytes(whole)
    good = write(tmp_path / "good.txt", "good " * 100_000)
    corpus = Corpus([path, good], tolerance=0.5)
    with pytest.warns(UserWarning, match=rf"{path} is damaged or cut \(.*\), \S+% of the corpus's bytes"):
        *_, last = documents(corpus)
    assert last == good.read_bytes() and corpus.damaged_files == [path]
    with pytest.raises(ValueError, match=f"{path} is damaged or cut .* more than 0.1%"):
        list(texts([path, good]))


def test_a_zip_holds_text_files_in_the_order_of_their_names(tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name in ("b/two.txt", "a/one.md", "picture.png", ".hidden.txt", "__MACOSX/a.txt", "a/.b/c.txt", "a/.d.txt"):
            archive.writestr(name, name)
        archive.writestr("c.jsonl", '{"text": "three"}\n{"text": "four"}')
        archive.writestr("d.txt.gz", gzip.compress(b"\xef\xbb\xbffive"))
        archive.writestr("e.txt", b"\xef\xbb\xbfsix")
        archive.mkdir("empty")
    with pytest.warns(UserWarning, match=r"all\.zip: left out 1 file: 1 \.png \(picture\.png\)"):
        corpus = Corpus(tmp_path / "all.zip")
    assert documents(corpus) == [b"a/one.md", b"b/two.txt", b"three", b"four", b"five", b"six"]
    assert corpus.num_documents == [6]


def test_damage_of_one_member_is_told_where_those_after_it_are_whole(tmp_path):
    path, good = tmp_path / "all.zip", write(tmp_path / "good.txt", "good " * 100_000)
    with zipfile.ZipFile(path, "w") as archive:  # not packed, so that one byte is one byte
        archive.writestr("a.txt", "the first")
        archive.writestr("b.txt", "the second")
    path.write_bytes(path.read_bytes().replace(b"the first", b"the fjrst"))
    corpus = Corpus([path, good], tolerance=0.5)
    with pytest.warns(UserWarning, match=rf"{path} is damaged or cut \(.*a.txt"):
        assert documents(corpus)[-2:] == [b"the second", good.read_bytes()]
    assert corpus.damaged_files == [path]


def test_cut_gzip_of_utf_16_is_told(tmp_path):
    noise = np.random.default_rng(0).integers(97, 122, 100_000, np.uint8).tobytes().decode()
    path, good = tmp_path / "a.txt.gz", write(tmp_path / "good.txt", "good " * 1_000_000)
    path.write_bytes(gzip.compress(noise.encode("utf-16"))[:-20_000])
    corpus = Corpus([path, good], tolerance=0.5)
    with pytest.warns(UserWarning, match=f"{path} is damaged or cut"):
        read, _ = documents(corpus)
    assert (
        len(read) > 10_000 and noise.startswith(read.decode().removesuffix("\ufffd")) and corpus.damaged_files == [path]
    )


def test_an_error_of_the_disk_is_no_damage_of_the_file():
    """Or text that is there would be left out, up to the tolerance, because a disk or a network failed once."""

    class Disk(io.BytesIO):
        def read1(self, size):
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        unpacking.Unpacked(io.BytesIO(), Disk()).read(1)


@pytest.mark.parametrize("level", range(1, 10))
def test_bzip2_of_every_level_is_known_by_its_first_bytes(tmp_path, level):
    (tmp_path / "a.txt").write_bytes(bz2.compress(b"some text", level))
    assert b"".join(texts(tmp_path / "a.txt")) == b"some text"


def test_zips_that_cannot_be_read_say_why(tmp_path):
    path = tmp_path / "photos.zip"
    path.write_bytes(zipped(b"x", "a.png"))
    with pytest.raises(ValueError, match=r"photos.zip is a zip archive without text files; it holds a.png"):
        list(texts(path))
    path = tmp_path / "locked.zip"
    content = bytearray(zipped(b"text"))
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + place] |= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"locked.zip/a.txt is locked by a password"):
        list(texts(path))


def test_a_file_that_is_packed_for_ever_is_refused(tmp_path):
    content = b"text"
    for _ in range(5):
        content = gzip.compress(content)
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match="a.txt is packed more than 3 times"):
        list(texts(tmp_path / "a.txt"))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("ending", ["txt", "jsonl", "txt.gz"])
def test_utf_16_and_32_are_read_by_their_marks(tmp_path, encoding, ending, monkeypatch):
    monkeypatch.setattr(unpacking, "CHUNK_SIZE", 997)  # so that blocks end inside of characters
    content = TEXT if "txt" in ending else LINES.decode()
    write(tmp_path / f"a.{ending}", ("\ufeff" + content).encode(encoding))
    expected = [TEXT.encode()] if "txt" in ending else LETTERS
    assert documents(Corpus(tmp_path / f"a.{ending}")) == expected


STARTS = {
    "a PDF": b"%PDF-1.7\n",
    "a PNG picture": b"\x89PNG\r\n\x1a\n",
    "an HDF5 file": b"\x89HDF\r\n\x1a\n",
    "an Avro file": b"Obj\x01\x04\x14avro.codec",
    "an ORC file": b"ORC\x11\0",
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "a pointer of git-annex": b"/annex/objects/SHA256E-s5--4d7a.txt\n",
    "a program": b"\x7fELF\x02\x01\x01\0",
    "a film or a picture": b"\0\0\0\x18ftypmp42",
}


def binary(kind, path):
    if kind == "a pickle":
        path.write_bytes(pickle.dumps({"a": "text " * 100}))
    elif kind == "an SQLite database":
        with contextlib.closing(sqlite3.connect(path)) as base:
            base.execute("create table a (b text)")
            base.commit()
    elif kind == "a safetensors file":
        head = b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}'
        path.write_bytes(struct.pack("<Q", len(head)) + head + np.ones(3, "f4").tobytes())
    elif kind == "a NumPy array":
        with open(path, "wb") as handle:
            np.save(handle, np.arange(9.0))
    elif kind == "a tar archive":
        import tarfile

        with tarfile.open(path, "w:gz") as archive:
            archive.add(__file__)
    elif kind == "no text (":
        path.write_bytes(TEXT.encode("utf-16-le"))
    else:
        path.write_bytes(STARTS[kind] + b"some words " * 20)


@pytest.mark.parametrize(
    "kind",
    [
        *STARTS,
        "a pickle",
        "an SQLite database",
        "a safetensors file",
        "a NumPy array",
        "a tar archive",
        "no text (",
    ],
)
def test_what_is_no_text_is_refused_by_name(tmp_path, kind):
    path = tmp_path / "thing.txt"
    binary(kind, path)
    with pytest.raises(ValueError) as told:
        list(texts(path))
    assert f"{path} is {kind}" in str(told.value) and "only text is trained on: " in str(told.value)


def test_a_few_nuls_are_text(tmp_path):
    for content in (b"a\0b\0\0", b"several words \0 " * 1000, bytes(range(256)) * 9):
        path = write(tmp_path / "a.txt", content)
        with pytest.warns(UserWarning, match="no UTF-8") if 0xFF in content else contextlib.nullcontext():
            assert b"".join(texts(path)) == content


def test_missing_packages_are_named_with_the_way_out(tmp_path, monkeypatch):
    for name in ("zstandard", "pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    for name, content, told in (
        (
            "a.txt.zst",
            b"\x28\xb5\x2f\xfd....",
            "a.txt.zst needs the package zstandard: pip install zstandard, or unpack",
        ),
        ("a.parquet", b"PAR1....", "a.parquet needs the package pyarrow: pip install pyarrow, or write it as .jsonl"),
    ):
        path = write(tmp_path / name, content)
        with pytest.raises(ImportError, match=told):
            Corpus([path])  # at once, and not when it is the file's turn
        path = write(tmp_path / "renamed", content)
        with pytest.raises(ImportError, match="needs the package"):
            list(texts(path))


class Table:
    """Stands for `pyarrow.parquet.ParquetFile`: three row groups of two rows."""

    def __init__(self, path):
        self.schema_arrow = Schema(["id", "content"])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def iter_batches(self, batch_size, columns):
        for number in range(3):
            rows = [{name: f"{name} {number}{row}" for name in columns} for row in range(2)]
            yield types.SimpleNamespace(to_pylist=lambda rows=rows: rows)


def test_parquet_is_read_a_few_rows_at_a_time(tmp_path, monkeypatch):
    module = types.SimpleNamespace(ParquetFile=Table)
    monkeypatch.setitem(sys.modules, "pyarrow", types.SimpleNamespace(parquet=module))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", module)
    path = write(tmp_path / "a.parquet", b"PAR1")
    assert documents(Corpus(path, "content")) == [b"content %d%d" % (n, row) for n in range(3) for row in range(2)]
    with pytest.raises(ValueError, match='has no column "text"; it has "id", "content": name the one .* text_field='):
        list(texts(path))


def test_parquet_that_is_packed_once_more_is_refused(tmp_path):
    write(tmp_path / "a.parquet.gz", b"PAR1")
    for name in ("all.zip", "first.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("b.parquet", b"PAR1" if name == "all.zip" else b"words")
    for name in ("a.parquet.gz", "all.zip/b.parquet", "first.zip/b.parquet"):
        with pytest.raises(ValueError, match=f"{name} is a Parquet file that is packed once more: unpack it first"):
            list(texts(tmp_path / name.split("/")[0]))


@pytest.mark.skipif(not importlib.util.find_spec("pyarrow"), reason="pyarrow is not installed")
def test_parquet_files_of_arrow(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"id": list(range(5000)), "text": [f"Grüße {number}" for number in range(5000)]})
    path, good = tmp_path / "a.parquet", write(tmp_path / "good.txt", "good " * 100_000)
    pyarrow.parquet.write_table(table, path, row_group_size=1000)
    assert documents(Corpus(path)) == [f"Grüße {number}".encode() for number in range(5000)]
    os.truncate(path, path.stat().st_size - 10)
    with pytest.warns(UserWarning, match=f"{path} is damaged or cut"):
        assert documents(Corpus([path, good], tolerance=0.5)) == [good.read_bytes()]


@pytest.mark.skipif(not importlib.util.find_spec("pyarrow"), reason="pyarrow is not installed")
@pytest.mark.parametrize("name", ["a.arrow", "data.txt"])
@pytest.mark.parametrize("form", ["stream", "file"])
def test_arrow_is_read_as_parquet_is(tmp_path, form, name):
    """A stream is what `save_to_disk` of Hugging Face's datasets writes."""
    import pyarrow

    table = pyarrow.table({"id": list(range(3000)), "text": [f"Grüße {number}" for number in range(3000)]})
    path, good = tmp_path / name, write(tmp_path / "good.txt", "good " * 100_000)
    with getattr(pyarrow.ipc, f"new_{form}")(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=2000)
    wanted = [f"Grüße {number}".encode() for number in range(3000)]
    assert documents(Corpus(path)) == wanted
    if path.suffix == ".arrow":
        assert documents(Corpus(tmp_path)) == [*wanted, good.read_bytes()]
    with pytest.raises(ValueError, match='has no column "content"; it has "id", "text": name the one .* text_field='):
        list(texts(path, "content"))
    os.truncate(path, path.stat().st_size // 2)
    with pytest.warns(UserWarning, match=f"{path} is damaged or cut"):
        assert documents(Corpus([path, good], tolerance=0.5))[-1] == good.read_bytes()
    packed = write(tmp_path / f"{name}.gz", gzip.compress(b"\xff\xff\xff\xff\x10\0\0\0" + bytes(99)))
    with pytest.raises(ValueError, match="is an Arrow file that is packed once more"):
        list(texts(packed))


def test_latin_1_that_begins_as_arrow_does_is_text(tmp_path):
    path = write(tmp_path / "a.txt", b"\xff\xff\xff\xffmuch " * 100)
    with pytest.warns(UserWarning, match="no UTF-8"):
        assert b"".join(texts(path)).startswith(b"\xff\xff\xff\xffmuch")


@pytest.mark.skipif(not importlib.util.find_spec("pyarrow"), reason="pyarrow is not installed")
def test_a_column_that_holds_no_strings_is_named_by_its_type(tmp_path):
    import pyarrow
    import pyarrow.parquet

    columns = {"bytes": pyarrow.array([b"a"], pyarrow.binary()), "nothing": [None], "text": ["a"]}
    columns["kinds"] = pyarrow.array(["a"]).dictionary_encode()
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    for name, kind in (("bytes", "binary"), ("nothing", "null")):
        told = f'its column "{name}" is of the type {kind}, and text is read from one of strings: .*: "text", "kinds"'
        with pytest.raises(ValueError, match=told):
            list(texts(tmp_path / "a.parquet", name))
    assert list(texts(tmp_path / "a.parquet", "kinds")) == [b"a"]
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match='row 2: no string in the column "text".*1 of the first 2 rows are broken'):
        list(texts(tmp_path / "b.parquet"))


RECORDS = [{"text": f"letter {number} ü", "id": number} for number in range(500)]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ending", ["json", "json.gz"])
def test_an_array_of_json_is_read_element_by_element(tmp_path, indent, ending, monkeypatch):
    monkeypatch.setattr(json_text, "CHUNK_SIZE", 61)
    path = write(tmp_path / f"a.{ending}", "\ufeff \n" + json.dumps(RECORDS, indent=indent) + "\n")
    assert documents(Corpus(path)) == [record["text"].encode() for record in RECORDS]
    write(path, json.dumps(["one", "two"], indent=indent))
    assert documents(Corpus(path)) == [b"one", b"two"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_json_that_holds_lines_or_one_record(tmp_path, end):
    path = write(tmp_path / "a.json", LINES.replace(b"\n", end))
    assert documents(Corpus(path)) == LETTERS
    write(path, json.dumps(RECORDS[0], indent=1))
    assert documents(Corpus(path)) == [b"letter 0 \xc3\xbc"]


@pytest.mark.parametrize("length", [opening.HEAD_SIZE - len('{"text": ""}'), opening.HEAD_SIZE, 300_000])
def test_a_json_that_holds_lines_of_which_the_first_is_long(tmp_path, length):
    """However much of it is looked at before it is read: the line break is the first byte behind, or far off."""
    wanted = [b"a" * length, b"second", b"third"]
    lines = "\n".join(json.dumps({"text": text.decode()}) for text in wanted)
    path = write(tmp_path / "folder" / "a.json", lines)
    assert documents(Corpus(path)) == documents(Corpus(path.parent)) == wanted
    write(path, json.dumps({"text": "a" * length}))
    assert documents(Corpus(path)) == wanted[:1]


@pytest.mark.parametrize(
    "content, told",
    [
        ('{"data": [{"text": "a"}]}', r"""a.json is one JSON object.* jq -c '.data\[\]' .*a.json > texts.jsonl"""),
        ('{"title": "a", "n": 3}', 'the object: no JSON object .* its fields of text are "title"'),
        ('[{"text": "a"} {"text": "b"}]', "a.json is no JSON: after element 1 a comma was expected, and there is '{'"),
        ('[{"text": "a"}, {"text": ', "a.json is no JSON: element 2: "),
        ('[{"text": "a"}', "a.json is no JSON: it ends before its array does"),
        ('[{"text": "a"}, 3]', "a.json, element 2: .* 1 of the first 2 elements are broken"),
        ("plain words", "a.json is no JSON: the object: "),
    ],
)
def test_other_json_says_what_to_do(tmp_path, content, told):
    with pytest.raises(ValueError, match=told):
        list(texts(write(tmp_path / "a.json", content)))


@pytest.mark.parametrize("chunk_size", [61, 1 << 20])
def test_latin_1_in_json_is_refused_or_counted_as_in_lines(tmp_path, monkeypatch, chunk_size):
    monkeypatch.setattr(json_text, "CHUNK_SIZE", chunk_size)
    for name, content in (("a.json", json.dumps(RECORDS, ensure_ascii=False)), ("b.json", '{"text": "ü"}')):
        path = write(tmp_path / name, content.encode("latin-1"))
        with pytest.raises(ValueError, match=f"{path}, .*: byte 0xfc is no UTF-8; .* iconv -f latin1 -t utf-8"):
            list(texts(path))
    good = [{"text": "gr\ufffdn ü"}] * 600  # of which that one is a character, which somebody wrote
    content = json.dumps(good, ensure_ascii=False, indent=1).encode()
    path = write(tmp_path / "c.json", content[:-1] + b', {"text": "\xfc"}, {"id": "\xfc", "text": "a"}]')
    corpus = Corpus(path, tolerance=0.01)
    with pytest.warns(UserWarning, match="skipped 2 broken of 602 elements, the first: element 601: byte 0xfc"):
        assert documents(corpus) == [good[0]["text"].encode()] * 600
    assert corpus.skipped == 2


def test_an_element_that_is_too_long_is_an_error_and_not_all_of_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(json_text, "MAX_LINE", 1000)
    monkeypatch.setattr(json_text, "CHUNK_SIZE", 100)
    path = write(tmp_path / "a.json", json.dumps(["short", "x" * 9000]))
    with pytest.raises(ValueError, match="a.json: element 2 is no JSON, or longer than 1000 bytes"):
        list(texts(path))


def test_a_cut_array_in_gzip_counts_as_damaged_gzip(tmp_path):
    noise = [np.random.default_rng(number).bytes(300).hex() for number in range(500)]
    path, good = tmp_path / "a.json.gz", write(tmp_path / "good.txt", "good " * 100_000)
    path.write_bytes(gzip.compress(json.dumps(noise).encode())[:-9000])
    with pytest.warns(UserWarning, match=f"{path} is damaged or cut"):
        *read, last = documents(Corpus([path, good], tolerance=0.5))
    assert 300 < len(read) < 500 and read == [text.encode() for text in noise[: len(read)]]


def test_whole_lines_before_the_damage_of_a_json_are_read(tmp_path):
    """All of a small file is looked at before its first line is read, so that the damage is known by then."""
    noise = [np.random.default_rng(number).bytes(50).hex() for number in range(500)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in noise).encode()
    path, good = tmp_path / "a.json.gz", write(tmp_path / "good.txt", "good " * 100_000)
    path.write_bytes(gzip.compress(lines)[:-9000])
    with pytest.warns(UserWarning, match=f"{path} is damaged or cut"):
        *read, _ = documents(Corpus([path, good], tolerance=0.5))
    assert 100 < len(read) < 500 and read == [text.encode() for text in noise[: len(read)]]


def test_bytes_are_a_text_by_themselves_and_none_in_a_field():
    """A field of bytes may be a picture."""
    assert json_text.text_of(b"a", "text") == b"a"
    with pytest.raises(ValueError, match='no JSON object with a string under "text"'):
        json_text.text_of({"text": b"a"}, "text")


def test_the_field_that_is_there_is_named(tmp_path):
    lines = [json.dumps({"id": "7", "content": "a longer text", "n": 3})] * 5
    for name in ("a.jsonl", "a.ndjson"):
        path = write(tmp_path / name, "\n".join(lines))
        with pytest.raises(ValueError, match=r'are "id", "content": give text_field="content" .*--text-field content'):
            list(texts(path))
        assert documents(Corpus(path, "content")) == [b"a longer text"] * 5


def test_the_share_of_replaced_characters_is_told_above_one_in_a_thousand(tmp_path, recwarn):
    good = write(tmp_path / "good.txt", "größer " * 1000)
    few = write(tmp_path / "few.txt", "größer ".encode() * 1000 + b"\xff" * 7)
    assert len(list(texts([good, few]))) == 2 and not recwarn
    latin = write(tmp_path / "latin.txt", ("größer " * 1000).encode("latin-1"))
    worse = write(tmp_path / "worse.txt", b"\xff\xff a" * 10)
    list(texts([good, few, latin, worse]))
    (told,) = recwarn
    assert str(told.message).startswith(
        f"Of 2 files more than 0.1% of the characters are no UTF-8 and become U+FFFD or odd bytes: {worse} (50.0%), "
        f"{latin} (28.6%)."
    )
