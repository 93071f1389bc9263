"""What Hugging Face's `tokenizers` library knows of Unicode, written out as tables of code points.

A tokenizer takes its table along in its folder, so that a program that only encodes needs neither the library nor the
same version of Unicode.
"""

import functools
import itertools
import unicodedata

import numpy as np

from seqlm_runtime.tokenizers.code_points import NUM_CODE_POINTS, table_bytes, two_level
from seqlm_runtime.tokenizers.word_piece import APART, FIRST_FORM, NOTHING, SAME
from seqlm_runtime.tokenizers.word_piece import SPACE as FORM_SPACE
from seqlm_runtime.tokenizers.words import (
    APOSTROPHE,
    CONTRACTION_LETTERS,
    LETTER,
    LINE_END,
    NUMBER,
    OTHER,
    OTHER_SPACE,
    SPACE,
)

SURROGATES = range(0xD800, 0xE000)
_PLANE = 0x10000
# Nothing is ever assigned in planes 4 to 13, and 15 and 16 are for private use: a plane's first code point and its last
# two, which are no characters, say what all of it is.
_ALIKE = [range(plane * _PLANE, (plane + 1) * _PLANE) for plane in (*range(4, 14), 15, 16)]


def asked_points():
    """The code points, an array, that the library is asked for: all but surrogates and those that are as others are."""
    asked = np.ones(NUM_CODE_POINTS, bool)
    for points in (SURROGATES, *(plane[1:-2] for plane in _ALIKE)):
        asked[points] = False
    return np.flatnonzero(asked)


@functools.cache
def word_classes(split="gpt2"):
    """The bytes of `classes.bin`: letter, number, space or other, as the `tokenizers` library sees it.

    Args:
        split: Llama 3's and Qwen's patterns set line ends apart, and take capitals in contractions ("'S") too.
    """
    values = _categories().copy()
    values[ord(" ")] = SPACE
    values[ord("'")] = APOSTROPHE
    values[list(CONTRACTION_LETTERS)] = list(CONTRACTION_LETTERS)
    if split != "gpt2":
        values[[ord("\r"), ord("\n")]] = LINE_END
        values[list(CONTRACTION_LETTERS.upper())] = list(CONTRACTION_LETTERS)
    return table_bytes(two_level(values))


@functools.cache
def _categories():
    """For each code point whether it is a letter, a number, a space or something else: once for all patterns."""
    from tokenizers import Regex, pre_tokenizers

    points = asked_points()
    text = "".join(map(chr, points.tolist()))
    values = np.full(NUM_CODE_POINTS, OTHER, np.uint8)
    for pattern, value in ((r"\p{L}+", LETTER), (r"\p{N}+", NUMBER), (r"\s+", OTHER_SPACE)):
        # "removed" takes out what matches once the pattern is inverted: what is left are the matches.
        splitter = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
        for _, (start, end) in splitter.pre_tokenize_str(text):
            values[points[start:end]] = value
    return _as_their_planes(values)


def _as_their_planes(values):
    for plane in _ALIKE:
        values[plane[1:-2]] = values[plane[0]]
    return values


@functools.cache
def nfc_apart():
    """The code points that the `tokenizers` library, in its version of Unicode, does not compose or put in order, and any
    other library might: as `normal_form` reads them."""
    from tokenizers import normalizers

    nfc, nfd = normalizers.NFC().normalize_str, normalizers.NFD().normalize_str
    apart = set()
    for point in range(NUM_CODE_POINTS):
        if point in SURROGATES:
            continue
        one = chr(point)
        # Marks of the highest and the lowest class, which any other mark changes places with.
        contexts = (one, f"a\u0345{one}b", f"a{one}\u0338b")
        if unicodedata.category(one) == "Cn" or any(
            nfc(text) != unicodedata.normalize("NFC", text) for text in contexts
        ):
            apart.add(point)
        elif not unicodedata.decomposition(one).startswith("<") and nfd(one) != unicodedata.normalize("NFD", one):
            apart.update(map(ord, one + unicodedata.normalize("NFD", one)))
    points = sorted(apart)
    borders = [n for n in range(len(points)) if n == 0 or points[n] != points[n - 1] + 1] + [len(points)]
    pairs = [(points[start], points[end - 1]) for start, end in itertools.pairwise(borders)]
    return " ".join(f"{first:x}" if first == last else f"{first:x}-{last:x}" for first, last in pairs)


@functools.cache
def bert_forms(lowercase, strip_accents=None, clean_text=True, handle_chinese_chars=True):
    """The bytes of `forms.bin` and `forms.txt`: what BERT's normaliser and word splitter make of each code point.

    Each code point stands between two marks that no other one turns into, so one call answers for many. What a
    table cannot do is to bring several marks on one letter into canonical order; twenty of them outlast BERT's removal.
    """
    from tokenizers import normalizers, pre_tokenizers

    normalizer = normalizers.BertNormalizer(clean_text, handle_chinese_chars, strip_accents, lowercase)
    splitter = pre_tokenizers.BertPreTokenizer()
    mark = "\u3131"  # a Korean letter without a decomposition
    points = [point for point in asked_points().tolist() if point != ord(mark)]
    values = np.full(NUM_CODE_POINTS, NOTHING, np.uint16)
    values[ord(mark)] = SAME
    numbers = {}
    for start in range(0, len(points), 1 << 15):
        some = points[start : start + (1 << 15)]
        text = normalizer.normalize_str(mark + mark.join(map(chr, some)) + mark)
        forms = " ".join(word for word, _ in splitter.pre_tokenize_str(text)).split(mark)[1:-1]
        for point, form in zip(some, forms, strict=True):
            same = chr(point)
            value = {same: SAME, " ": FORM_SPACE, f" {same} ": APART, "": NOTHING}.get(form)
            values[point] = numbers.setdefault(form, FIRST_FORM + len(numbers)) if value is None else value
    values[list(SURROGATES)] = values[0xFFFD]
    values = _as_their_planes(values)
    return table_bytes(two_level(values)), "".join(form + "\n" for form in numbers).encode("utf-8")
