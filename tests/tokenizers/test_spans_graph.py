"""Places of ids in the served graph: those of `encode_with_offsets`, on every kind of tokenizer and hard texts."""

import functools

import numpy as np
import pytest

from keras_seqlm import data
from keras_seqlm.tokenizers import (
    BytePairTokenizer,
    ByteTokenizer,
    CharacterTokenizer,
    SentencePieceTokenizer,
    WordPieceTokenizer,
)
from keras_seqlm.tokenizers.spans_graph import spans_in_graph
from seqlm_runtime.tokenizers.tokenizer import CONFIG_NAME, bytes_of, parse_config

TEXTS = ["the cat sat on the mat. " * 5, "a dog ran over the hill. " * 5, "Zoë paid 12 € for two cafés: 秦川雄帝宅"]
KINDS = {
    "byte": ByteTokenizer,
    "character": lambda: CharacterTokenizer.train(texts=TEXTS),
    "byte pair": lambda: BytePairTokenizer.train(texts=TEXTS, vocabulary_size=300),
    "word piece": lambda: WordPieceTokenizer.train(texts=TEXTS, vocabulary_size=80),
    "unigram": lambda: SentencePieceTokenizer.train(texts=TEXTS, vocabulary_size=330),
    "bpe": lambda: SentencePieceTokenizer.train(texts=TEXTS, vocabulary_size=330, algorithm="bpe"),
}
HARD = [
    *("", " ", "the", "a\tb  c\n\nd ", "It's 3.14, isn't it?", "Zoë paid 12 € for cafés.", "e\u0301 İstanbul ß ﬁ Å"),
    *(
        "秦川雄帝宅，函谷壯皇居。",
        "👩\u200d👩\u200d👧 🇨🇳",
        "\u2581mark \u2581\u2581 \ufffd \u3000wide",
        "a\x00b",
        "x" * 150 + " y",
    ),
    *(b"\xff\xfe", b"caf\xc3 x", b"a\xed\xa0\x80b", b"\xf0\x9f\x98 \xe2\x82 12", "[MASK] a[MASK]b [MASK]"),
]


@functools.cache
def made(kind, masked):
    tokenizer = KINDS[kind]()
    return data.prepared(tokenizer, "masked") if masked else tokenizer


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_places_are_those_of_python(kind, masked):
    import tensorflow as tf

    tokenizer = made(kind, masked)
    graph = tokenizer.in_graph()
    if kind == "word piece" and masked:
        with pytest.raises(ValueError, match="it has added tokens. Export to LiteRT"):
            spans_in_graph(tokenizer, graph)
        return
    texts = [text if isinstance(text, bytes) else text.encode() for text in HARD]
    found = tf.function(spans_in_graph(tokenizer, graph), autograph=False)(tf.constant(texts))
    ids, lengths, starts, ends = (part.numpy() for part in found)
    borders = np.cumsum(lengths)[:-1]
    rows = zip(texts, np.split(ids, borders), np.split(starts, borders), np.split(ends, borders), strict=True)
    for text, ids, starts, ends in rows:
        wanted, offsets = tokenizer.encode_with_offsets(text)
        assert ids.tolist() == wanted.tolist()
        assert np.stack([starts, ends], axis=1).tolist() == offsets.tolist(), text


def test_what_cannot_be_said_in_a_graph_is_refused():
    files = made("byte pair", False).files
    config = bytes_of(parse_config(files[CONFIG_NAME]) | {"add_prefix_space": True})
    tokenizer = BytePairTokenizer({**files, CONFIG_NAME: config})
    with pytest.raises(ValueError, match="it changes the text, or the places that it gives. Export to LiteRT"):
        spans_in_graph(tokenizer, tokenizer.in_graph())
