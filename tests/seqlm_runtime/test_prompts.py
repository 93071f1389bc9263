"""How much of a text is read: what fits is never cut, what does not keeps its end, at no more cost than that."""

import numpy as np
import pytest

from seqlm_runtime.prompts import byte_limits, part_of, read_ids
from seqlm_runtime.tokenizers import ByteTokenizer

TEXT = "aé秦😀b".encode()  # 1, 2, 3, 4 and 1 bytes


class Words(ByteTokenizer):
    """Ids for words of up to 8 letters; how many bytes were given is kept."""

    max_token_bytes = 9

    def __init__(self):
        super().__init__()
        self.read = []

    def encode(self, text):
        self.read.append(len(text))
        return np.array([len(word) + 10 for word in bytes(text).split()], np.int32)


@pytest.mark.parametrize("size", range(4, 11))
def test_a_part_begins_and_ends_with_a_character(size):
    longest_end = next(TEXT[i:] for i in range(len(TEXT) - size, 12) if TEXT[i] & 0xC0 != 0x80)
    assert part_of(TEXT, size, end=True) == longest_end
    beginning = part_of(TEXT, size, end=False)
    assert TEXT.startswith(beginning) and size - 3 <= len(beginning) <= size
    assert beginning.decode() and longest_end.decode()


def test_of_what_is_no_text_three_bytes_are_left_out_at_most():
    assert part_of(b"\x80" * 20, 10, end=True) == part_of(b"\x80" * 20, 10, end=False) == b"\x80" * 7


@pytest.mark.parametrize("end", [True, False])
def test_what_fits_is_read_whole(end):
    tokenizer = ByteTokenizer()
    ids, cut = read_ids(tokenizer, "x" * 9, 10, end)
    assert ids.tolist() == [1, *tokenizer.encode("x" * 9)] and not cut and ids.dtype == np.int32
    assert read_ids(tokenizer, "x" * 10, 10, end)[1] and read_ids(tokenizer, "x" * 1000)[1] is False
    words = Words()
    ids, cut = read_ids(
        words, b"12345678 " * 9, 10, end
    )  # as many bytes as nine ids can stand for, and more than 8 each
    assert len(ids) == 10 and not cut and words.read == [81]


def test_what_does_not_fit_keeps_its_end_or_its_beginning():
    tokenizer, text = ByteTokenizer(), b"0123456789" * 100
    assert read_ids(tokenizer, text, 12)[0].tolist() == tokenizer.encode(b"890123456789").tolist()
    assert read_ids(tokenizer, text, 12, end=False)[0].tolist() == [1, *tokenizer.encode(b"01234567890")]


def test_few_bytes_are_tried_first_and_more_only_where_they_have_too_few_ids():
    few, longest = byte_limits(Words(), 10)
    assert (few, longest) == (83, 93)
    words = Words()
    ids, cut = read_ids(words, b"ab " * 1000, 10)
    assert (ids.tolist(), cut, words.read) == ([12] * 10, True, [83])
    words = Words()
    ids, cut = read_ids(words, b"12345678 " * 1000, 10)
    assert (ids.tolist(), cut, words.read) == ([18] * 10, True, [83, 93])  # the word that was cut is not among them
    words = Words()
    ids, cut = read_ids(words, b" " * 1000, 10)
    assert (ids.tolist(), cut) == ([1], True), "nothing is in the part that is read, and something was left out"


def test_a_str_with_half_a_pair_is_read():
    assert read_ids(ByteTokenizer(), "\ud800" * 100, 4)[1]
