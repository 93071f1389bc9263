"""Places of tokens and windows over them, on every kind of tokenizer and texts that are hard on offsets."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_seqlm.tokenizers import (
    BytePairTokenizer,
    ByteTokenizer,
    CharacterTokenizer,
    SentencePieceTokenizer,
    WordPieceTokenizer,
)
from seqlm_runtime.windows import own_parts, placed_tokens, trimmed, windows, windows_of

pytestmark = pytest.mark.neutral

TEXT = (
    "It is the low road at 8:30, 我住在柏林。 Zoë naïve cafe\u0301 😀👩‍👩‍👧 the lowest road; 東京へ行く half past eight\n"
    * 8
)
PIECES = [
    "the",
    " low",
    "est",
    "我",
    "住在",
    "。",
    "😀",
    "👩‍👩‍👧",
    "e\u0301",
    "\u0301",
    "é",
    " ",
    "  ",
    "\n",
    "8:30",
    "ﬁ",
    "ß",
    "İ",
    "𠀀",
    "x",
]
KINDS = ["byte", "character", "byte_pair", "word_piece", "unigram", "sentence_piece_bpe"]


@functools.cache
def tokenizer(kind):
    return {
        "byte": ByteTokenizer,
        "character": lambda: CharacterTokenizer.train(texts=[TEXT]),
        "byte_pair": lambda: BytePairTokenizer.train(texts=[TEXT], vocabulary_size=340),
        "word_piece": lambda: WordPieceTokenizer.train(texts=[TEXT], vocabulary_size=160),
        "unigram": lambda: SentencePieceTokenizer.train(texts=[TEXT], vocabulary_size=400),
        "sentence_piece_bpe": lambda: SentencePieceTokenizer.train(texts=[TEXT], vocabulary_size=400, algorithm="bpe"),
    }[kind]()


texts = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(text=texts, ends=st.tuples(st.integers(0, 60), st.integers(1, 60)))
def test_tokens_over_a_span_hold_it(kind, text, ends):
    tokens = placed_tokens(tokenizer(kind), text)
    assert tokens.ids.tolist() == tokenizer(kind).encode(text).tolist()
    start, end = min(ends[0], len(text)), min(ends[0] + ends[1], len(text))
    held = tokens.over(start, end)
    # By hand: the characters of the span, one by one, and the tokens that hold one of them.
    first, last = trimmed(text, start, end)
    by_hand = [i for i, (a, b) in enumerate(tokens.offsets.tolist()) if set(range(a, b)) & set(range(first, last))]
    assert held == ((by_hand[0], by_hand[-1] + 1) if by_hand else None)
    covered = {place for a, b in tokens.offsets.tolist() for place in range(a, b)}
    if held is not None:
        low, high = tokens.characters(*held)
        assert text[low:high] == text[low:high].strip() or not text[low:high].strip()
        # Widened to whole tokens, and never narrower than what of the span the tokenizer kept.
        assert set(range(first, last)) & covered <= set(range(low, high)) | {
            place for place in range(first, last) if text[place].isspace()
        }


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(text=texts)
def test_units_share_no_character(kind, text):
    tokens = placed_tokens(tokenizer(kind), text)
    units = tokens.units()
    assert [token for unit in units for token in range(*unit)] == list(range(len(tokens.ids)))
    parts = [set(range(tokens.offsets[a:b, 0].min(), tokens.offsets[a:b, 1].max())) for a, b in units]
    assert all(not before & after for before, after in zip(parts, parts[1:], strict=False))
    if kind == "byte":
        assert len(units) == len(text)  # the bytes of a character are one unit


def test_bytes_that_are_no_text():
    tokens = placed_tokens(ByteTokenizer(), b"a\xff\xe4\xbd")
    assert tokens.ids.tolist() == ByteTokenizer().encode(b"a\xff\xe4\xbd").tolist()
    assert tokens.text == "a\ufffd\ufffd" and tokens.over(1, 2) == (1, 2)
    with pytest.raises(ValueError, match="expected a text"):
        placed_tokens(ByteTokenizer(), 5)


@given(count=st.integers(0, 200), size=st.integers(1, 50))
def test_each_token_is_decided_about_once(count, size):
    parts = windows(count, size)
    assert all(stop - start <= size for start, stop in parts)
    own = own_parts(parts)
    assert [place for part in own for place in range(*part)] == list(range(count))
    assert all(a <= c and d <= b for (a, b), (c, d) in zip(parts, own, strict=True))

    def seen(token, part):
        """What the window shows on the side of the token where it shows less; at an end of the text that is enough."""
        start, stop = part
        return min(token - start if start else count, stop - 1 - token if stop < count else count)

    for part, (first, stop) in zip(parts, own, strict=True):
        for token in range(first, stop):
            most = max(seen(token, other) for other in parts if other[0] <= token < other[1])
            assert seen(token, part) >= most - 1
    if size > 1:
        shared = [before[1] - after[0] for before, after in zip(parts, parts[1:], strict=False)]
        assert all(2 * both >= size - 1 for both in shared)


def test_windows_say_where_their_tokens_stand():
    ids = np.arange(100, 120)
    made = windows_of([1, 7], ids, [2], room=9)
    seen = np.concatenate([window.inputs["token_ids"][window.own_places] for window in made])
    assert seen.tolist() == ids.tolist()
    for window in made:
        assert window.inputs["token_ids"][window.place_of(window.part[0])] == ids[window.part[0]]
        assert window.inputs["token_types"].tolist() == [0, 0] + [1] * 7
    with pytest.raises(ValueError, match="room for a token"):
        windows_of([1, 7], ids, [2], room=3)
    with pytest.raises(ValueError, match="no tokens"):
        windows_of([], [], [], room=3)
