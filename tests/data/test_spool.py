"""Documents that are no files: of generators and of data sets, hashed as they stream and tokenized once."""

import glob
import itertools
import pathlib

import numpy as np
import pytest

from keras_seqlm.data import causal_blocks, pack
from keras_seqlm.data.spool import Spool
from keras_seqlm.tokenizers import ByteTokenizer

TEXTS = [f"Document {number}: größer" for number in range(50)]


class Named:
    """All of one name, as data sets of Hugging Face of one make are."""

    def __str__(self):
        return "Streaming({features: [id, text]})"


class Streaming(Named):
    """Stands for an `IterableDataset` of Hugging Face: rows as dicts, one after the other, and no length."""

    def __init__(self, field="text", texts=TEXTS):
        self.field, self.texts, self.passes = field, texts, 0

    def __iter__(self):
        self.passes += 1
        for number, text in enumerate(self.texts):
            yield {"id": number, self.field: text}


@pytest.fixture
def store_of(tmp_path):
    return lambda documents, **how: pack(documents, ByteTokenizer(), cache_dir=tmp_path / "cache", **how)


def expected():
    return np.concatenate([[1, *ByteTokenizer().encode(text), 2] for text in TEXTS])


@pytest.mark.parametrize(
    "documents, how",
    [
        (lambda: (text for text in TEXTS), {}),
        (lambda: iter(TEXTS), {}),
        (lambda: map(str.encode, TEXTS), {}),
        (lambda: Streaming(), {}),
        (lambda: Streaming("content"), {"text_field": "content"}),
        (lambda: itertools.chain([""], Streaming()), {}),
    ],
    ids=["generator", "iterator", "bytes", "data set", "another field", "with an empty one"],
)
def test_every_kind_gives_the_same_stream(store_of, documents, how):
    store = store_of(documents(), **how)
    np.testing.assert_array_equal(store[:], expected())
    assert store.num_documents == len(TEXTS) and store.num_bytes == sum(len(text.encode()) for text in TEXTS)
    assert store.content_hash == store_of(Streaming()).content_hash and store.folder == store_of(Streaming()).folder


def test_the_same_documents_are_tokenized_once_and_leave_no_file(store_of, tmp_path, monkeypatch):
    source = Streaming()
    first = store_of(source)
    monkeypatch.setattr(ByteTokenizer, "encode", None)
    assert store_of(source).folder == first.folder and source.passes == 2
    assert not list((tmp_path / "cache").glob("*.spool"))


def test_another_order_another_border_or_a_changed_letter_are_another_text(store_of):
    hashes = {
        store_of(iter(texts)).content_hash
        for texts in (["ab", "cd"], ["cd", "ab"], ["abc", "d"], ["abcd"], ["ab", "ce"], ["ab", "cd", "e"])
    }
    assert len(hashes) == 6


def test_a_long_document_is_one_and_comes_in_chunks(store_of):
    text = "word " * 500_000
    store = store_of(iter([text, "end"]))
    assert store.num_documents == 2 and len(store) == len(text) + 3 + 4
    assert store.document_starts.tolist() == [0, len(text) + 2, len(text) + 7]


def test_documents_without_text_are_skipped_while_they_are_few(store_of):
    with pytest.warns(UserWarning, match="the generator: skipped 1 broken of 51 documents, the first: document 1: "):
        store = store_of((one for one in [None, *TEXTS]), tolerance=0.1)
    assert store.statistics["num_skipped_lines"] == 1
    np.testing.assert_array_equal(store[:], expected())
    with pytest.raises(ValueError, match='the Streaming, document 1: .* are "content": give text_field="content"'):
        store_of(Streaming("content"))


def test_what_fails_on_the_way_leaves_no_file(store_of, tmp_path):
    def breaks():
        yield "one"
        raise ConnectionError("the line is down")

    with pytest.raises(ConnectionError, match="the line is down"):
        store_of(breaks())
    for documents, error, told in (
        (iter([]), ValueError, "the list_iterator holds no text"),
        (iter([" ", "\n"]), ValueError, "holds no text"),
        (pathlib.Path("books").parent.glob("*"), TypeError, r"is a path, .*: give a list of paths, as `list\(paths\)`"),
        ({"a", "b"}, TypeError, "an iterable of documents in a fixed order; got set"),
        (b"text", TypeError, "got bytes"),
        (7, TypeError, "got int"),
        ({"train": Streaming()}, TypeError, "got dict"),
    ):
        with pytest.raises(error, match=told):
            store_of(documents)
    assert not list((tmp_path / "cache").glob("*.spool"))


def test_bytes_that_are_no_text_are_told(tmp_path):
    spool = Spool(iter([b"gr\xfcn " * 9]), tmp_path)
    with pytest.warns(UserWarning, match=r"no UTF-8 .* the list_iterator \(20.0%\)"):
        list(spool.chunks())
    spool.close()


def test_blocks_of_documents(tmp_path):
    train, validation = causal_blocks(
        Streaming(), ByteTokenizer(), 16, 4, validation_fraction=0.2, cache_dir=tmp_path / "cache"
    )
    text = ByteTokenizer().decode(validation.tokens[:])
    assert text == "".join(TEXTS[40:]) and train.num_bytes + validation.num_bytes == sum(len(t.encode()) for t in TEXTS)
    several = {Streaming(): 1, Streaming(texts=TEXTS[:30]): 3, Streaming(texts=TEXTS[:20]): 4}
    mixed, _ = causal_blocks(several, ByteTokenizer(), 16, 4, cache_dir=tmp_path / "cache")
    assert mixed.num_rows(400) == [50, 150, 200]
    name = str(Streaming())
    assert list(mixed.epochs(7)) == [name, f"{name} (2)", f"{name} (3)"]
    assert (
        len(causal_blocks(Streaming(), ByteTokenizer(), 16, 4, validation=iter(TEXTS), cache_dir=tmp_path / "cache"))
        == 2
    )


def test_names_of_files_are_not_trained_on(store_of, tmp_path):
    (tmp_path / "a.txt").write_text("It was a dark night.")
    with pytest.raises(
        TypeError, match=r"Document 1 is the name of a file, '.*a.txt'.* `list\(paths\)`, or the pattern"
    ):
        store_of(glob.iglob(f"{tmp_path}/*.txt"))
    assert len(store_of(iter(["a.txt", "x" * 100_000, "a\0b"])))  # no such file is here
