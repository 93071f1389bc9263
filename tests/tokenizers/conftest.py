"""Tokenizers of each kind on a small text of many scripts, and strings that are hard on tokenizers."""

import json
import pathlib
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from keras_seqlm.tokenizers import (
    BytePairTokenizer,
    ByteTokenizer,
    CharacterTokenizer,
    SentencePieceTokenizer,
    WordPieceTokenizer,
)

SHARED = pathlib.Path(__file__).parents[2].parent / "shared" / "data"

LINES = [
    "It was the best of times, it was the worst of times, it was the age of wisdom.",
    "  Don't they'll say we've 12 of 345 things? I'm sure she'd know; it's so -- isn't it!\t",
    "Call me Ishmael. Some years ago -- never mind how long precisely -- having little or no money in my purse.",
    "秦川雄帝宅，函谷壯皇居。綺殿千尋起，離宮百雉餘。連薨遙接漢，飛觀迥凌虛。雲日隱層闕，風煙出綺疏。",
    "Ça va à l'école naïve, Zürich, ÅNGSTRÖM, Straße; Москва и весна, ΑΒΓ λόγος, שלום עולם, مرحبا بالعالم 한국어 가나다",
    "😀👩‍👩‍👧 emoji 🇨🇳 ½ ² ① Ⅷ\u00a0no-break\u3000wide",
    "The low road, the lower road and the lowest road are lower than the low bridge; lowly roads run lowest.",
]
TEXT = "\n".join(LINES * 6) + "\n"

FRAGMENTS = [
    "'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'", "''", "'l", "'r", "'v", "’s", "s", "t", "re", "ll", "x", "Ab",
    " ", "  ", "   ", "\t", "\n", "\r\n", "\u00a0", "\u2003", "\u3000", "\u2028", "\u0085", "\x0b", "\x1c", "\x00",
    "1", "23", "½", "²", "Ⅷ", "٣", "४", "①", ".", "...", "#", "##", "[UNK]", "<unk>", "<pad>", "<|endoftext|>", "$", "_",
    "中", "文字", "秦川雄帝宅", "，", "。", "한국어", "가", "ㄱ", "ᄀ", "é", "e\u0301", "\u0301", "\u0323\u0301", "ß", "İ", "ı", "Σ", "ς",
    "😀", "👩‍👩‍👧", "🇨🇳", "\u200d", "\ufe0f", "\u200f", "\u202e", "שלום", "مرحبا", "ﷺ", "ﬁ", "Ａ", "ｶﾞ", "\u2581", "\u2585",
    "\ufeff", "\ufffd", "\ufffe", "\U0010ffff", "\U000e0001", "\ue000", "the", " the", "lowest", " lower", "zzzzqqqq", "a" * 120,
]  # fmt: skip


@pytest.fixture(scope="session")
def shared():
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there")
    return SHARED


@pytest.fixture(scope="session")
def tokenizers():
    """A tokenizer of each kind by name, trained on `TEXT`."""
    return {
        "byte": ByteTokenizer.train(),
        "character": CharacterTokenizer.train(texts=[TEXT]),
        "byte_pair": BytePairTokenizer.train(texts=[TEXT], vocabulary_size=600, max_word_bytes=40),
        "word_piece": WordPieceTokenizer.train(texts=[TEXT], vocabulary_size=500),
        "word_piece_cased": WordPieceTokenizer.train(texts=[TEXT], vocabulary_size=500, lowercase=False),
        "unigram": SentencePieceTokenizer.train(texts=[TEXT], vocabulary_size=600),
        "bpe": SentencePieceTokenizer.train(texts=[TEXT], vocabulary_size=600, algorithm="bpe"),
    }


@pytest.fixture(scope="session")
def graphs(tokenizers):
    return {name: tokenizer.in_graph() for name, tokenizer in tokenizers.items()}


@pytest.fixture(scope="session")
def hypothesis_strings(once):
    """Ten thousand strings, the same in each run: the first three thousand are Hypothesis's, a millisecond each."""
    path = once("hypothesis_strings.json", lambda path: path.write_text(json.dumps(_hypothesis_strings())))
    return json.loads(path.read_text())


def _hypothesis_strings():
    strings, often, chance = [], " '\nsaA1é中😀", random.Random(11)
    text = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(often)), max_size=24)

    @settings(
        max_examples=3_000,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(text)
    def collect(found):
        strings.append(found)

    collect()
    assert len(strings) == 3_000
    every = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]

    def character():
        kind = chance.random()
        return chance.choice(often) if kind < 0.1 else every[chance.randrange(0x3000 if kind < 0.4 else len(every))]

    for _ in range(7_000):
        strings.append("".join(character() for _ in range(chance.randrange(25))))
    return strings


@pytest.fixture(scope="session")
def adversarial_strings():
    """Strings of fragments on which tokenizers disagree, some of them with bytes that are no UTF-8."""
    choose = random.Random(7)
    strings = ["", " ", "\n", "\x00", "a" * 5000, "\u0301" * 3000, " " * 3000, "中" * 3000, "'s" * 500, "\n" * 500]
    strings = [string.encode() for string in strings]
    for _ in range(3000):
        strings.append("".join(choose.choices(FRAGMENTS, k=choose.randint(1, 12))).encode())
    for _ in range(1500):
        data = bytearray("".join(choose.choices(FRAGMENTS, k=choose.randint(1, 6))).encode())
        for _ in range(choose.randint(1, 3)):
            place = choose.randrange(len(data) + 1)
            data[place : place + choose.randint(0, 1)] = bytes(
                [choose.choice([0x80, 0xBF, 0xC0, 0xE2, 0xED, 0xF4, 0xFF])]
            )
        strings.append(bytes(data))
    return strings


def assert_graph_equals_python(tokenizer, graph, strings):
    """Asserts that each string has the same ids in the graph as in Python."""
    import tensorflow as tf

    for start in range(0, len(strings), 20_000):
        some = strings[start : start + 20_000]
        ids, lengths = (tensor.numpy() for tensor in graph.tokenize(tf.constant(some, tf.string)))
        expected = [tokenizer.encode(string) for string in some]
        expected_lengths = np.array([len(row) for row in expected])
        wrong = np.flatnonzero(lengths != expected_lengths)
        assert not wrong.size, (some[wrong[0]], ids[wrong[0]][: lengths[wrong[0]]], expected[wrong[0]])
        counts = np.arange(ids.shape[1]) < lengths[:, None]
        different = np.flatnonzero(ids[counts] != np.concatenate(expected))
        if different.size:
            row = np.searchsorted(np.cumsum(lengths), different[0], side="right")
            raise AssertionError((some[row], ids[row][: lengths[row]], expected[row]))
        assert (ids[~counts] == (tokenizer.pad_id or 0)).all()


@pytest.fixture(scope="session")
def graph_equals_python():
    return assert_graph_equals_python
