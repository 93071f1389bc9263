"""Byte-pair encoding on bytes: GPT-2's, RoBERTa's and our own."""

import numpy as np

from seqlm_runtime.tokenizers.merges import merge
from seqlm_runtime.tokenizers.tokenizer import Tokenizer, as_bytes, text_lines, whole_number
from seqlm_runtime.tokenizers.words import CLASSES_NAME, parse_classes, split_words, word_bytes

VOCABULARY_NAME = "vocabulary.txt"
MERGES_NAME = "merges.txt"
MAX_CACHED_WORDS = 1 << 16
MAX_CACHED_LENGTH = 64

_SHOWN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [byte for byte in range(256) if byte not in _SHOWN]
# GPT-2 writes a byte as a character that shows: itself, or one from U+0100 on.
BYTE_CHARACTERS = [""] * 256
for _byte in _SHOWN:
    BYTE_CHARACTERS[_byte] = chr(_byte)
for _number, _byte in enumerate(_HIDDEN):
    BYTE_CHARACTERS[_byte] = chr(0x100 + _number)
_CHARACTER_BYTES = {character: byte for byte, character in enumerate(BYTE_CHARACTERS)}


class BytePairTokenizer(Tokenizer):
    """Words split as GPT-2 splits them, then merged byte by byte; any bytes come back as they were.

    Args:
        files: dict of file name to bytes: `tokenizer.json`, `vocabulary.txt` (a token a line, in the order of ids),
            `merges.txt` (two tokens a line, the first merged first) and `classes.bin` (letter, number, space or other
            for each code point). Tokens are written in GPT-2's characters for bytes.

    Raises:
        ValueError: a file does not hold what it should.
    """

    type = "byte_pair"
    file_names = (VOCABULARY_NAME, MERGES_NAME, CLASSES_NAME)
    keeps_bytes = True

    def __init__(self, files):
        super().__init__(files)
        self.max_word_bytes = self.config.get("max_word_bytes")
        if self.max_word_bytes is not None:
            whole_number(self.config, "max_word_bytes", 1, 1 << 30)
        self.classes = parse_classes(self.files[CLASSES_NAME])
        self.tokens = self._parse_vocabulary()
        specials = set(self.special_ids.values())
        self._ids = {token: i for i, token in enumerate(self.tokens) if i not in specials}
        if len(self._ids) != self.vocabulary_size - len(specials):
            raise ValueError(f"{VOCABULARY_NAME}: a token stands twice.")
        missing = [byte for byte in range(256) if bytes([byte]) not in self._ids]
        if missing:
            raise ValueError(f"{VOCABULARY_NAME}: expected a token for each of 256 bytes, {missing[0]} has none.")
        self.byte_ids = [self._ids[bytes([byte])] for byte in range(256)]
        self.pairs = self._parse_merges()
        self.max_token_bytes = max(map(len, self.tokens))
        self._cache = {}

    def encode(self, text):
        """The ids of `text` (str or bytes) as a (time,) int32 array."""
        ids, cache = [], self._cache
        for word in split_words(as_bytes(text), self.classes):
            known = cache.get(word)
            ids.extend(self._encode_word(word) if known is None else known)
        return np.array(ids, np.int32)

    def decode_bytes(self, ids):
        """The bytes of `ids` (time,), exactly those that were encoded; special ids produce nothing."""
        return b"".join([self.tokens[i] for i in self.checked_ids(ids).tolist()])

    def encode_symbols(self, data):
        """The list of ids of one word's bytes, however long."""
        return merge([self.byte_ids[byte] for byte in data], self.pairs)

    def _encode_word(self, word):
        data = word_bytes(word)
        size = self.max_word_bytes or max(len(data), 1)
        ids = [i for start in range(0, len(data), size) for i in self.encode_symbols(data[start : start + size])]
        if len(word) <= MAX_CACHED_LENGTH:
            if len(self._cache) >= MAX_CACHED_WORDS:
                self._cache.clear()
            self._cache[word] = ids
        return ids

    def _parse_vocabulary(self):
        lines = text_lines(self.files[VOCABULARY_NAME], VOCABULARY_NAME)
        if len(lines) != self.vocabulary_size:
            raise ValueError(f"{VOCABULARY_NAME}: expected {self.vocabulary_size} lines, got {len(lines)}.")
        specials = set(self.special_ids.values())
        return [b"" if i in specials else token_bytes(line, VOCABULARY_NAME) for i, line in enumerate(lines)]

    def _parse_merges(self):
        pairs = {}
        made = set(self.byte_ids)
        for rank, line in enumerate(text_lines(self.files[MERGES_NAME], MERGES_NAME)):
            left, _, right = line.partition(" ")
            left, right = token_bytes(left, MERGES_NAME), token_bytes(right, MERGES_NAME)
            pair, merged = (self._ids.get(left), self._ids.get(right)), self._ids.get(left + right)
            if merged is None or not made.issuperset(pair) or pair in pairs:
                raise ValueError(
                    f"{MERGES_NAME}, line {rank + 1}: {line!r} must join two tokens that are bytes or stand joined in a "
                    "line before, to a token of the vocabulary, and only once."
                )
            pairs[pair] = (rank, merged)
            made.add(merged)
        return pairs


def token_characters(data):
    """The bytes of a token in GPT-2's characters."""
    return "".join([BYTE_CHARACTERS[byte] for byte in data])


def token_bytes(characters, name):
    """The bytes that a token in GPT-2's characters stands for; `name` is the file, for the message."""
    try:
        data = bytes([_CHARACTER_BYTES[character] for character in characters])
    except KeyError as error:
        raise ValueError(f"{name}: {characters!r} holds a character that stands for no byte.") from error
    if not data:
        raise ValueError(f"{name}: expected a token, got an empty one.")
    return data
