"""Splits of a text into words, without a regular-expression engine that knows Unicode.

Engines disagree on thousands of code points, so the classes of code points stand in a table, made once from the
`tokenizers` library. The patterns run over the string of classes, where the standard library's `re` is enough.
"""

import re

from seqlm_runtime.tokenizers.code_points import NUM_BLOCKS, code_points, look_up, parse_table

CLASSES_NAME = "classes.bin"
SPACE, OTHER_SPACE, LINE_END, LETTER, NUMBER, OTHER, APOSTROPHE = b" SRLNO'"
CONTRACTION_LETTERS = b"strevmld"
# GPT-2's (RoBERTa's): 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
# Llama 3's: (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|
#     \s+(?!\S)|\s+, and Qwen's is Llama 3's with \p{N} in place of \p{N}{1,3}; here over classes in place of characters.
_LLAMA3 = rb"'(?:[stmd]|re|ve|ll)|[^RNLstrevmld]?[Lstrevmld]+|N{1,3}| ?[O']+R*|[S R]*R+|[S R]+(?![^S R])|[S R]+"
_WORDS = {
    "gpt2": re.compile(rb"'(?:[stmd]|re|ve|ll)| ?[Lstrevmld]+| ?N+| ?[O']+|[S ]+(?![^S ])|[S ]+"),
    "llama3": re.compile(_LLAMA3),
    "qwen2": re.compile(_LLAMA3.replace(rb"N{1,3}", rb"N")),
}
SPLITS = tuple(_WORDS)


def parse_classes(data):
    """The checked table of classes in the bytes of `classes.bin`."""
    table = parse_table(data, "uint8", 256, CLASSES_NAME)
    known = bytes([SPACE, OTHER_SPACE, LINE_END, LETTER, NUMBER, OTHER, APOSTROPHE]) + CONTRACTION_LETTERS
    if not set(table[NUM_BLOCKS:].tolist()) <= set(known):
        raise ValueError(f"{CLASSES_NAME}: a code point is of a class that does not exist.")
    return table


def split_words(data, table, split="gpt2"):
    """The words of `data` (bytes) in order, as str; a byte that is no UTF-8 stays as Python's surrogate escape."""
    text = data.decode("utf-8", "surrogateescape")
    classes = look_up(table, code_points(text)).tobytes()
    return [text[match.start() : match.end()] for match in _WORDS[split].finditer(classes)]


def word_bytes(word):
    """The bytes of a word of `split_words`."""
    return word.encode("utf-8", "surrogateescape")
