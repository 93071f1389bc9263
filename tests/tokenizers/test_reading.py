"""How much of a text is read: the graph does what Python does, for every tokenizer, and what fits is never cut."""

import numpy as np
import pytest

from seqlm_runtime.prompts import byte_limits, read_ids

KINDS = ["byte", "character", "byte_pair", "word_piece", "unigram", "bpe"]
# An id of these stands for a known number of bytes at most; WordPiece has one for any unknown word.
EXACT = ["byte", "character", "byte_pair", "unigram", "bpe"]
TEXTS = [
    *(b"", b"a", b"\x80", b"\xc3", b"\x80" * 90, b"\xf0\x9f\x98" * 40, b"abc\xff" * 30, b"\x00" * 70, b" " * 600, b"\n" * 77),
    *("é" * 100, "秦川雄帝宅" * 40, "😀" * 50, "👩\u200d👩\u200d👧" * 20, "e" + "\u0301" * 400, "a" * 5000, "zq" * 90, "\u2581" * 80),
    "the lowest road, the lower road " * 60,
    "It was the best of times, it was the worst of times" * 20,
    "Don't they'll say we've 12 of 345 things? " * 30,
]  # fmt: skip


def as_bytes(text):
    return text if isinstance(text, bytes) else text.encode()


@pytest.fixture(scope="module")
def texts(adversarial_strings):
    return [as_bytes(text) for text in TEXTS] + adversarial_strings[::40]


@pytest.mark.parametrize("end", [True, False], ids=["end", "beginning"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_reads_what_python_reads(tokenizers, graphs, texts, kind, end):
    import tensorflow as tf

    from keras_seqlm.export.reading import read_rows

    tokenizer, cuts = tokenizers[kind], 0
    for most in (1, 2, 9, 33):
        ids, lengths, cut = (
            tensor.numpy() for tensor in read_rows(graphs[kind], tokenizer, tf.constant(texts), most, end)
        )
        for text, row, length, was_cut in zip(texts, ids, lengths, cut, strict=True):
            wanted, wanted_cut = read_ids(tokenizer, text, most, end)
            assert (row[:length].tolist(), bool(was_cut)) == (wanted.tolist(), wanted_cut), (text, most)
            assert not row[length:].any()
            cuts += wanted_cut
    assert cuts > 100
    nothing = read_rows(graphs[kind], tokenizer, tf.constant([], tf.string), 9, end)
    assert [tuple(tensor.shape) for tensor in nothing] == [(0, 1), (0,), (0,)]


@pytest.mark.parametrize("kind", KINDS)
def test_what_fits_is_read_whole(tokenizers, texts, kind):
    tokenizer, count = tokenizers[kind], 0
    for text in texts:
        whole = read_ids(tokenizer, text)[0]
        most = max(1, len(whole))
        if kind not in EXACT and len(text) > byte_limits(tokenizer, most)[1]:
            continue
        for end in (True, False):
            ids, cut = read_ids(tokenizer, text, most, end)
            assert ids.tolist() == whole.tolist() and not cut, text
        count += 1
    assert count > 90


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_long_text_the_ids_at_its_end_are_those_of_the_whole(tokenizers, kind):
    text = "It was the best of times, it was the worst of times, it was the age of wisdom: don't they'll say so? " * 400
    whole = tokenizers[kind].encode(text)
    ids, cut = read_ids(tokenizers[kind], text, 50)
    assert cut and ids.tolist() == whole[-50:].tolist()
    ids, cut = read_ids(tokenizers[kind], text, 50, end=False)
    assert cut and ids.tolist() == np.concatenate([[tokenizers[kind].bos_id], whole[:49]]).tolist()
