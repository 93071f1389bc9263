"""Added tokens and offsets, in every tokenizer, in Python and in the graph."""

import numpy as np
import pytest
import tensorflow as tf
from cases import some_of

import keras_seqlm.tokenizers
import seqlm_runtime.tokenizers
from keras_seqlm.tokenizers import ByteTokenizer
from seqlm_runtime.tokenizers.added_tokens import AddedTokens

KINDS = ["byte", "character", "byte_pair", "word_piece", "unigram", "bpe"]
SPECIAL = ["<|user|>", "<|end|>"]
OWN = ["Charles Darnay", "中文", "the", "the lowest", "\n\n"]
TEXTS = [
    "<|user|>It was the best<|end|>",
    "the lowest road, the low<|user",
    "Charles DarnayCharles Darnay",
    "秦川中文中文 <|end|><|user|>",
    "a\n\n\nb",
    "",
    "the",
    "<|user|>",
    "x<|<|user|>|>",
    "é<|end|>\x00the",
]


@pytest.fixture(scope="module")
def larger(tokenizers):
    return {kind: tokenizers[kind].with_added_tokens(SPECIAL, special=True).with_added_tokens(OWN) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_added_tokens_are_kept_whole(tokenizers, larger, kind):
    before, after = tokenizers[kind], larger[kind]
    size = before.vocabulary_size
    assert after.vocabulary_size == size + 7 and after.hash != before.hash
    ids = after.encode("<|user|>Charles Darnay the lowest<|end|>").tolist()
    assert [i for i in ids if i >= size] == [size, size + 2, size + 5, size + 1]
    assert after.suppressed_ids == (*before.suppressed_ids, size, size + 1)
    assert "Charles Darnay" in after.decode(ids) and "<|" not in after.decode(ids)
    # What strangers write names none.
    assert after.encode("<|user|>low", added_tokens=False).tolist() == before.encode("<|user|>low").tolist()
    assert after.encode("low").tolist() == before.encode("low").tolist()
    assert after.with_added_tokens(OWN).hash == after.hash


@pytest.mark.parametrize("kind", some_of(KINDS, "byte_pair", "word_piece", "unigram"))
def test_added_tokens_are_those_of_the_graph(larger, graph_equals_python, adversarial_strings, tmp_path, kind):
    tokenizer = larger[kind]
    graph = tokenizer.in_graph()
    mixed = [
        SPECIAL[n % 2].encode() + text + OWN[n % 5].encode() + text[:7]
        for n, text in enumerate(adversarial_strings[:400])
    ]
    graph_equals_python(tokenizer, graph, [text.encode() for text in TEXTS] + mixed)
    ids, lengths = graph.tokenize(TEXTS)
    for text, row, length in zip(graph.detokenize(ids, lengths).numpy(), ids.numpy(), lengths.numpy(), strict=True):
        assert text.decode() == tokenizer.decode(row[:length])
    # Saved, the graph holds nothing that changes, and loads without Python.
    tf.saved_model.save(graph, tmp_path / "saved")
    again = tf.saved_model.load(tmp_path / "saved").tokenize(tf.constant(TEXTS))[0].numpy()
    assert again.tolist() == ids.numpy().tolist()
    tokenizer.save(tmp_path / "folder")
    for package in (keras_seqlm.tokenizers, seqlm_runtime.tokenizers):
        loaded = package.load(tmp_path / "folder")
        assert loaded.hash == tokenizer.hash
        assert [row.tolist() for row in loaded.encode_batch(TEXTS)] == [tokenizer.encode(t).tolist() for t in TEXTS]


def test_many_matches_in_one_text(graph_equals_python):
    """Tokens that could begin inside others, more of them than rounds of the search."""
    tokenizer = ByteTokenizer().with_added_tokens(["ab", "ba", "aba", "aa"])
    texts = ["abaab" * 700, "a" * 3001, "ab" * 2000 + "ba", "b" + "aba" * 999]
    graph_equals_python(tokenizer, tokenizer.in_graph(), texts)


@pytest.mark.parametrize("kind", KINDS)
def test_offsets_are_code_points(larger, kind):
    tokenizer = larger[kind]
    for text in TEXTS + ["Ça va 秦川 naïve\t😀 x", "  two  spaces "]:
        ids, offsets = tokenizer.encode_with_offsets(text)
        assert ids.dtype == offsets.dtype == np.int32 and offsets.shape == (len(ids), 2)
        assert ids.tolist() == tokenizer.encode(text).tolist()
        assert (offsets[:, 0] < offsets[:, 1]).all() and (np.diff(offsets[:, 0]) >= 0).all()
        assert not len(offsets) or offsets.max() <= len(text)
        if kind != "word_piece":  # which drops what it normalises away
            covered = {place for start, end in offsets.tolist() for place in range(start, end)}
            assert covered == set(range(len(text)))
    ids, offsets = tokenizer.encode_with_offsets("é<|user|>the lowest")
    assert offsets[ids >= tokenizer.vocabulary_size - 7].tolist() == [[1, 9], [9, 19]]


@pytest.mark.parametrize("kind", ["byte", "byte_pair"])
def test_offsets_of_bytes_that_are_no_text(larger, kind):
    data = b"a\xe2\x82b\xff\xff<|end|>\xe4\xb8\xadc"
    text = data.decode("utf-8", "replace")
    ids, offsets = larger[kind].encode_with_offsets(data)
    place = text.index("<|end|>")
    assert [place, place + 7] in offsets.tolist() and offsets[-1].tolist() == [len(text) - 1, len(text)]
    assert {point for start, end in offsets.tolist() for point in range(start, end)} == set(range(len(text)))


def test_encode_batch_takes_several_texts():
    tokenizer = ByteTokenizer()
    assert [ids.tolist() for ids in tokenizer.encode_batch(["a", b"b", ""])] == [[101], [102], []]
    with pytest.raises(ValueError, match="several texts"):
        tokenizer.encode_batch("ab")


@pytest.mark.parametrize(
    "entries, message",
    [
        ({}, "a list"),
        (["a"], "objects of"),
        ([{"id": 1}], "objects of"),
        ([{"id": 1, "content": ""}], "1 to 512 bytes"),
        ([{"id": 1, "content": "a" * 513}], "1 to 512 bytes"),
        ([{"id": 10, "content": "a"}], "an id below 10"),
        ([{"id": True, "content": "a"}], "id as int"),
        ([{"id": 1, "content": "a", "special": 1}], "special as bool"),
        ([{"id": 1, "content": "\ud800"}], "no UTF-8"),
        ([{"id": 1, "content": "a"}, {"id": 2, "content": "a"}], "same content"),
        ([{"id": 1, "content": "a"}, {"id": 1, "content": "b"}], "same id"),
        ([{"id": 1, "content": "a", "rstrip": True}, {"id": 2, "content": " b"}], "rstrip"),
    ],
)
def test_refuses_damaged_added_tokens(entries, message):
    with pytest.raises(ValueError, match=message):
        AddedTokens(entries, 10)


def test_refuses_what_is_no_token():
    with pytest.raises(ValueError, match="list of tokens"):
        ByteTokenizer().with_added_tokens("<user>")
    with pytest.raises(ValueError, match="1 to 512"):
        ByteTokenizer().with_added_tokens([""])
    with pytest.raises(ValueError, match="same content"):
        ByteTokenizer().with_added_tokens(["a", "a"])
