"""Corpora: what is read, in which order, byte for byte, and what is refused."""

import contextlib
import gzip
import json
import os
import subprocess
import sys
import types

import pytest
from cases import some_of

from keras_seqlm.corpora import Corpus, json_text, texts


class Schema(list):
    """Stands for that of a table of pyarrow whose columns hold strings."""

    def __init__(self, names):
        super().__init__(types.SimpleNamespace(name=name, type="string") for name in names)
        self.names = names


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def documents(corpus):
    found = []
    for text, first, last in corpus.chunks():
        if first:
            found.append(b"")
        found[-1] += text
        open_document = not last
    assert not open_document
    return found


def test_directory_is_read_recursively_in_sorted_order(tmp_path):
    for name in ("b.txt", "a/z.md", "a/y.text.gz", "c.TXT", ".hidden/d.txt", "a/.e.txt", "picture.png"):
        write(tmp_path / name, name)
    write(tmp_path / "lines.jsonl", '{"text": "one"}\n\n{"text": "two"}')
    with pytest.warns(UserWarning, match=r"left out 1 file: 1 \.png \(picture\.png\)"):
        corpus = Corpus(tmp_path)
    assert documents(corpus) == [b"a/y.text.gz", b"a/z.md", b"b.txt", b"c.TXT", b"one", b"two"]


def test_file_pattern_and_list(tmp_path):
    for name in ("b.txt", "a.txt", "c.md", "plain"):
        write(tmp_path / name, name)
    assert documents(Corpus(tmp_path / "plain")) == [b"plain"]
    assert documents(Corpus(f"{tmp_path}/*.txt")) == [b"a.txt", b"b.txt"]
    # A list keeps its order, and a file met twice is read once.
    assert documents(Corpus([f"{tmp_path}/c.md", f"{tmp_path}/*.txt", tmp_path / "a.txt"])) == [
        b"c.md",
        b"a.txt",
        b"b.txt",
    ]


def test_name_that_looks_like_a_pattern(tmp_path):
    path = write(tmp_path / "a[1].txt", "bracket")
    assert b"".join(texts(str(path))) == b"bracket"


@pytest.mark.parametrize("ending", ["txt", "txt.gz"])
def test_bytes_are_kept(tmp_path, ending):
    content = b"a\xef\xbb\xbf\r\nb\x00\xff\xfe c\xed\xa0\x80 \xe2\x80\xae\r\n" * 50
    path = write(tmp_path / f"a.{ending}", content)
    # Of each 17 characters five are none.
    with pytest.warns(UserWarning, match=rf"Of 1 file more than 0.1% .* no UTF-8 .*: {path} \(29.4%\). Convert"):
        assert b"".join(texts(path)) == content


@pytest.mark.parametrize("ending", ["txt", "txt.gz", "jsonl", "json"])
def test_the_mark_of_utf_8_is_no_text(tmp_path, ending):
    """At the beginning of a file, that is; elsewhere it is a character of whoever wrote it."""
    content = "Grün \ufeff und blau.\r\n"
    lines = {"jsonl": json.dumps({"text": content}), "json": json.dumps([{"text": content}])}.get(ending, content)
    path = write(tmp_path / f"a.{ending}", b"\xef\xbb\xbf" + lines.encode())
    assert documents(Corpus(path)) == [content.encode()]


def test_a_file_of_a_mark_alone_holds_no_text(tmp_path):
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbf")
    with pytest.raises(ValueError, match="a.txt holds no text"):
        list(texts(path))


def test_jsonl_field_and_gzip(tmp_path):
    lines = [{"body": "Grüße\n"}, {"body": ""}, {"body": "\ud83d x \ud83d\ude00"}]
    path = write(tmp_path / "a.jsonl.gz", "\n".join(json.dumps(line) for line in lines))
    # An empty text is no document; half a surrogate pair becomes U+FFFD, a whole one its character.
    assert documents(Corpus(path, text_field="body")) == ["Grüße\n".encode(), "\ufffd x 😀".encode()]


@pytest.mark.parametrize(
    "content",
    [
        b"word " * 500,
        b"line one\n\n line two\n" * 200,
        "你好嗎".encode() * 400,
        b"a" + "😀".encode() * 600,
        b"\xbf" * 3000,
    ],
)
@pytest.mark.parametrize("size", [64, 100, 1000, 1999])
def test_chunks_join_to_the_document_and_tear_nothing(tmp_path, content, size):
    corpus = Corpus(write(tmp_path / "a.txt", content), chunk_size=size)
    with pytest.warns(UserWarning, match="100.0%") if content[0] == 0xBF else contextlib.nullcontext():
        chunks = list(corpus.chunks())
    assert b"".join(chunk.text for chunk in chunks) == content
    assert [chunk.first for chunk in chunks] == [True] + [False] * (len(chunks) - 1)
    assert [chunk.last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert all(0 < len(chunk.text) <= size for chunk in chunks)
    for chunk in chunks[1:]:
        if b" " in content:
            # White space begins a chunk and none ends one, unless no border was in reach (1/16 of a small chunk).
            assert size < 500 or (chunk.text[:1].isspace())
        elif content[0] != 0xBF:
            chunk.text.decode()


@pytest.mark.parametrize("extra", [-1, 0, 1, 2])
def test_document_of_about_one_chunk(tmp_path, extra):
    content = b"x" * (100 + extra)
    chunks = list(Corpus(write(tmp_path / "a.txt", content), chunk_size=100).chunks())
    assert b"".join(chunk.text for chunk in chunks) == content
    assert chunks[-1].last and len(chunks) == (2 if extra > 0 else 1)


def test_missing_and_empty(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.txt"):
        Corpus(tmp_path / "absent.txt")
    with pytest.raises(FileNotFoundError, match="absent.txt"):
        Corpus([write(tmp_path / "there.txt", "x"), str(tmp_path / "absent.txt")])
    with pytest.raises(ValueError, match="empty list"):
        Corpus([])
    with pytest.raises(ValueError, match=r"none.txt is empty"):
        Corpus(write(tmp_path / "none.txt", ""))
    with pytest.raises(ValueError, match=r"none.txt.gz holds no text"):
        list(texts(write(tmp_path / "none.txt.gz", "")))
    with pytest.raises(ValueError, match=r"none.jsonl holds no text"):
        list(texts(write(tmp_path / "none.jsonl", "\n \n")))
    with pytest.raises(ValueError, match="`tolerance` must be a fraction from 0 to 1, received 1.5"):
        Corpus(tmp_path / "there.txt", tolerance=1.5)


@pytest.mark.parametrize("ending", ["txt", "txt.gz", "md"])
@pytest.mark.parametrize("content", ["\n", " \t\r\n\v\f" * 20, " " * 3_000_000])
def test_white_space_alone_is_no_text(tmp_path, ending, content):
    path = write(tmp_path / f"blank.{ending}", content)
    with pytest.raises(ValueError, match=rf"{path} holds no text: take it out of the corpus, or fill it"):
        list(texts([write(tmp_path / "full.txt", "text"), path]))


def test_documents_of_white_space_alone_are_no_corpus(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": " \\n"}\n\n{"text": ""}\n')
    with pytest.raises(ValueError, match="a.jsonl holds no text"):
        list(texts(path))
    write(path, '{"text": " "}\n\n{"text": "word"}\n')
    assert documents(Corpus(path)) == [b" ", b"word"]


def test_nothing_readable_says_what_is_read(tmp_path):
    write(tmp_path / "a.csv", "x")
    with pytest.raises(ValueError, match=r"It holds 1 file: 1 \.csv .*\.txt, \.md, \.text, \.jsonl"):
        Corpus(tmp_path)
    with pytest.raises(ValueError, match=r"holds no text file: nothing matches it"):
        Corpus(f"{tmp_path}/*.txt")


def test_damaged_gzip_names_the_file(tmp_path):
    whole = gzip.compress(bytes(range(256)) * 1000)
    for name, content in (("cut", whole[: len(whole) // 2]), ("none", b"plain text"), ("bad", whole[:20] + b"\0" * 50)):
        path = tmp_path / f"{name}.txt.gz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}.txt.gz is damaged"):
            list(texts(path))


LINES = [json.dumps({"text": f"letter {i * i}"}) for i in range(3000)]


def damaged(tmp_path, kind, ending):
    """A gzip file that is damaged in its second half, and what it held."""
    content = "\n".join(LINES).encode()
    whole = bytearray(gzip.compress(content))
    if kind == "cut":
        del whole[len(whole) // 2 :]
    elif kind == "flipped":
        whole[len(whole) * 3 // 4 :: 50] = bytes(len(whole[len(whole) * 3 // 4 :: 50]))
    elif kind == "wrong sum":
        whole[-5] ^= 1
    else:
        whole[:] = b"no gzip at all"
    path = tmp_path / f"damaged.{ending}.gz"
    path.write_bytes(whole)
    return path, content


@pytest.mark.parametrize("kind", ["cut", "wrong sum", "none"])
@pytest.mark.parametrize("ending", ["txt", "jsonl"])
def test_little_damaged_gzip_is_read_up_to_the_damage_and_counted(tmp_path, kind, ending):
    path, content = damaged(tmp_path, kind, ending)
    good = write(tmp_path / "good.txt", "good " * 3_000_000)
    corpus = Corpus([path, good])
    with pytest.warns(UserWarning, match=rf"{path} is damaged or cut \(.*\), \S+% of the corpus's bytes"):
        *read, last = documents(corpus)
    assert last == good.read_bytes() and corpus.damaged_files == [path]
    lines = b"".join(read).split(b"\n") if ending == "txt" else read
    expected = content.split(b"\n") if ending == "txt" else [json.loads(line)["text"].encode() for line in LINES]
    assert len(lines) >= {"cut": 1000, "wrong sum": 2999, "none": 0}[kind]
    assert lines[:-1] == expected[: max(len(lines) - 1, 0)] and corpus.skipped == 0
    assert ending == "txt" or lines == expected[: len(lines)]
    with pytest.raises(ValueError, match=r"damaged or cut .* more than 0.0%: make or fetch it again, or raise"):
        list(texts([path, good], tolerance=0))


def test_flipped_bytes_in_gzip(tmp_path):
    """They may spoil text before they show: of a text file that is seen by its end, of JSON by the broken lines, too."""
    good = write(tmp_path / "good.txt", "good " * 3_000_000)
    path, content = damaged(tmp_path, "flipped", "txt")
    with pytest.warns(UserWarning, match=f"{path} is damaged"):
        read, _ = documents(Corpus([path, good]))
    assert read[: len(content) // 2] == content[: len(content) // 2]
    path, _ = damaged(tmp_path, "flipped", "jsonl")
    with pytest.raises(ValueError, match=rf"{path}, line \d+: .* lines are broken, more than 0.1%"):
        list(texts([path, good]))


def test_damaged_files_add_up(tmp_path):
    good = write(tmp_path / "good.txt", "good " * 3_000_000)
    some = [damaged(tmp_path / name, "cut", "txt")[0] for name in ("a", "b", "c") if not (tmp_path / name).mkdir()]
    share = some[0].stat().st_size / (good.stat().st_size + 3 * some[0].stat().st_size)
    corpus = Corpus([good, *some], tolerance=2.5 * share)
    with (
        pytest.warns(UserWarning, match="is damaged") as told,
        pytest.raises(ValueError, match=f"{some[2]} is damaged"),
    ):
        list(corpus.chunks())
    assert len(told) == 2 and corpus.damaged_files == some
    # Counts are those of one pass.
    corpus = Corpus([good, *some], tolerance=0.1)
    for _ in range(2):
        with pytest.warns(UserWarning, match="is damaged"):
            list(corpus.chunks())
        assert corpus.damaged_files == some
    with pytest.raises(ValueError, match=r"All of the corpus is damaged, .*damaged.txt.gz"):
        with pytest.warns(UserWarning, match="is damaged"):
            list(texts(damaged(tmp_path, "none", "txt")[0], tolerance=1))


BROKEN = ["{", "[]", "3", '{"other": "x"}', '{"text": 3}', "\xff", "[" * 100_000]


@pytest.mark.parametrize("line", BROKEN)
def test_few_broken_lines_are_skipped_and_counted(tmp_path, line):
    good = [json.dumps({"text": f"document {i}"}) for i in range(2000)]
    path = write(tmp_path / "a.jsonl", "\n".join([*good[:700], "", line, *good[700:]]).encode("latin-1"))
    corpus = Corpus(path)
    with pytest.warns(UserWarning, match=r"a.jsonl: skipped 1 broken of 2001 lines, the first: line 702: "):
        assert len(documents(corpus)) == 2000
    assert corpus.skipped == 1


def test_broken_lines_of_several_files_are_each_told_and_counted_exactly(tmp_path):
    for number, name in enumerate(("a.jsonl", "b.jsonl.gz", "c.jsonl")):
        lines = [*LINES[:2000], *(["{", "[]", "no"] * 10)[: 10 * number], *LINES[2000:]]
        write(tmp_path / name, "\n".join(lines))
    corpus = Corpus(tmp_path, tolerance=0.01)
    for _ in range(2):
        with pytest.warns(UserWarning) as told:
            assert len(documents(corpus)) == 3 * len(LINES)
        assert [str(one.message).partition(", the first")[0] for one in told] == [
            f"{tmp_path / 'b.jsonl.gz'}: skipped 10 broken of 3010 lines",
            f"{tmp_path / 'c.jsonl'}: skipped 20 broken of 3020 lines",
        ]
        assert corpus.skipped == 30


def test_many_broken_lines_are_an_error_naming_file_and_line(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "x"}\n' * 5 + "{broken\n" + '{"text": "x"}\n' * 500)
    with pytest.raises(ValueError, match=r"a.jsonl, line 6: .*1 of the first 506 lines are broken, more than 0.1%"):
        list(texts(path))
    corpus = Corpus(path, tolerance=0.01)
    with pytest.warns(UserWarning, match="skipped 1"):
        list(corpus.chunks())
    # A file that is no JSON at all is left after a thousand lines.
    path = write(tmp_path / "b.jsonl", "no json\n" * 100_000)
    (only := tmp_path / "c.json").write_text('{"b": 1}')
    with pytest.raises(ValueError, match=r"c.json, the object: .*\. The only record there is broken: each must be"):
        list(Corpus(only).chunks())
    with pytest.raises(ValueError, match=r"b.jsonl, line 1: .*1000 of the first 1000 lines"):
        list(texts(path))


def test_overlong_json_line_is_broken_and_the_next_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(json_text, "MAX_LINE", 1000)
    monkeypatch.setattr(json_text, "CHUNK_SIZE", 700)
    path = write(tmp_path / "a.jsonl", json.dumps({"text": "x" * 5000}) + '\n{"text": "next"}\n')
    corpus = Corpus(path, tolerance=0.6)
    with pytest.warns(UserWarning, match="line 1: longer than 1000 bytes"):
        assert documents(corpus) == [b"next"]


STREAM = """
import resource, sys
from keras_seqlm.corpora import texts
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
total = longest = 0
for chunk in texts(sys.argv[1]):
    total += len(chunk)
    longest = max(longest, len(chunk))
print(total, longest, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def stream(path, megabytes, start=b"", end=b""):
    """Write a line of so many megabytes and read it in a process; bytes read, longest chunk, growth in megabytes."""
    opener = gzip.open(path, "wb", compresslevel=1) if path.suffix == ".gz" else open(path, "wb")
    with opener as handle:
        handle.write(start)
        for _ in range(megabytes):
            handle.write(b"x" * (1 << 20))
        handle.write(end)
    # Which backend does not matter here; jax spares the process the import of TensorFlow.
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    command = [sys.executable, "-W", "ignore", "-c", STREAM, path]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    path.unlink()
    total, longest, growth = result.stdout.split()
    return int(total), int(longest), float(growth)


@pytest.mark.parametrize("megabytes", [64, pytest.param(1024, marks=pytest.mark.soak)])
@pytest.mark.parametrize("ending", some_of(["txt", "txt.gz"], "txt.gz"))
def test_a_line_without_end_streams_in_flat_memory(tmp_path, ending, megabytes):
    total, longest, growth = stream(tmp_path / f"long.{ending}", megabytes)
    assert (total, longest) == (megabytes << 20, 1 << 20) and growth < 16


@pytest.mark.parametrize("megabytes", some_of([31, 64, 1024], 0))
def test_a_long_line_of_json_takes_less_than_half_a_gigabyte(tmp_path, megabytes):
    """The longest that is read, with a character that makes Python's str four bytes wide; or skipped, as too long."""
    start, end = '{"text": "😀'.encode(), b'"}\n' + b'{"text": "next"}\n' * 2000
    total, _, growth = stream(tmp_path / "long.jsonl", megabytes, start, end)
    assert total == 8000 + (4 + (megabytes << 20) if megabytes == 31 else 0) and growth < 512


@pytest.mark.parametrize(
    "content",
    [
        '[{"text": "a"}]\n[{"text": "b"}]\n',
        '[{"text": "a"}][{"text": "b"}]',
        '[\n{"text": "a"}\n]\n[\n{"text": "b"}\n]\n',
        '[{"text": "a"}] xx',
        '{"text": "a"}{"text": "b"}\n',
        '{\n"text": "a"\n}\n{\n"text": "b"\n}\n',
    ],
)
def test_two_values_in_one_json_file_are_refused(tmp_path, content):
    (tmp_path / "joined.json").write_text(content)
    with pytest.raises(ValueError, match="joined.json is no JSON: after its (array|object) there is more.*jsonl"):
        list(Corpus(tmp_path / "joined.json").chunks())
