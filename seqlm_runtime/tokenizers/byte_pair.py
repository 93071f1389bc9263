"""Byte-pair encoding on bytes: GPT-2's, RoBERTa's and our own."""

import numpy as np

from seqlm_runtime.tokenizers.added_tokens import WHITE_SPACE
from seqlm_runtime.tokenizers.code_points import byte_characters
from seqlm_runtime.tokenizers.merges import merge
from seqlm_runtime.tokenizers.normal_form import NormalFormC
from seqlm_runtime.tokenizers.tokenizer import CONFIG_NAME, Tokenizer, as_bytes, as_text, flag, text_lines, whole_number
from seqlm_runtime.tokenizers.words import CLASSES_NAME, SPLITS, parse_classes, split_words, word_bytes

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
    """Words split as GPT-2, Llama 3 or Qwen split them, then merged byte by byte; any bytes come back as they were.

    Args:
        files: dict of file name to bytes: `seqlm_tokenizer.json`, `vocabulary.txt` (a token a line, in the order of ids),
            `merges.txt` (two tokens a line, the first merged first) and `classes.bin` (letter, number, space or other
            for each code point). Tokens are written in GPT-2's characters for bytes; an empty line is an id that only
            `added_tokens` name. The config may name a `split`, and set `add_prefix_space` (a text begins with a
            space), `ignore_merges` (a word that is a token is that token, whatever the merges say) and `trim_offsets`
            (the offsets of a token leave out its spaces). With `nfc_apart` a text is brought into normal form C; see
            `normal_form`.

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
        self.split = self.config.get("split", "gpt2")
        if self.split not in SPLITS:
            raise ValueError(f"{CONFIG_NAME}: expected split as one of {', '.join(SPLITS)}, got {self.split!r}.")
        self.add_prefix_space = flag(self.config, "add_prefix_space")
        self.ignore_merges = flag(self.config, "ignore_merges")
        self.trim_offsets = flag(self.config, "trim_offsets")
        self.nfc = NormalFormC(self.config["nfc_apart"]) if "nfc_apart" in self.config else None
        if self.nfc is not None:
            self.keeps_bytes = False  # a text comes back in normal form
            self.added_tokens.seek_in_normal_form(self.nfc)
        self.classes = parse_classes(self.files[CLASSES_NAME])
        vocabulary = self._parse_vocabulary()
        self._ids = {token: i for i, token in enumerate(vocabulary) if token}
        if len(self._ids) != sum(map(bool, vocabulary)):
            raise ValueError(f"{VOCABULARY_NAME}: a token stands twice.")
        self.tokens = [self.added_tokens.shown.get(i, token) for i, token in enumerate(vocabulary)]
        missing = [byte for byte in range(256) if bytes([byte]) not in self._ids]
        if missing:
            raise ValueError(f"{VOCABULARY_NAME}: expected a token for each of 256 bytes, {missing[0]} has none.")
        self.byte_ids = [self._ids[bytes([byte])] for byte in range(256)]
        self.pairs = self._parse_merges()
        self._sizes = [len(token) for token in self.tokens]
        longest = max(map(len, self.tokens))
        # What normal form C composes may have had three times the bytes.
        self.max_token_bytes = max(longest, self.added_tokens.longest) * (1 if self.nfc is None else 3)
        self._cache = {}

    def encode_plain(self, text):
        """The ids of `text` (str or bytes) as a (time,) int32 array."""
        ids, cache = [], self._cache
        data = as_bytes(text) if self.nfc is None else self.nfc.normalize(as_text(text)).encode("utf-8")
        for word in split_words(self._prefixed(data), self.classes, self.split):
            known = cache.get(word)
            ids.extend(self._encode_word(word) if known is None else known)
        return np.array(ids, np.int32)

    def spans_plain(self, text):
        """The ids of `text` and the code points that each stands for; see `encode_with_offsets`."""
        data, sources = as_bytes(text), None
        if self.nfc is not None:
            normal, sources = self.nfc.with_sources(as_text(text))
            data = normal.encode("utf-8")
        ids = self.encode_plain(data)
        characters = byte_characters(data)
        if sources is not None:
            characters = np.array(sources, np.int64)[characters]
        if len(self._prefixed(data)) > len(data):
            characters = np.concatenate([characters[:1], characters])  # the added space belongs to the first character
        ends = np.cumsum([self._sizes[i] for i in ids.tolist()], dtype=np.int64)
        starts = np.concatenate([np.zeros(1, np.int64), ends])[: len(ends)]
        return ids, np.stack([characters[starts], characters[ends - 1] + 1], axis=1) if len(ids) else []

    def encode_with_offsets(self, text, added_tokens=True):
        """The ids of `text`, and where in it each stands; see `Tokenizer.encode_with_offsets`."""
        ids, offsets = super().encode_with_offsets(text, added_tokens)
        if self.trim_offsets and len(ids):
            before, after = self._spaces_around(as_text(text), ids.tolist(), offsets.tolist())
            if self.add_prefix_space:  # one space at the start may be none of the text
                before[(offsets[:, 0] == 0) & (before == 1)] = 0
            starts = np.minimum(offsets[:, 0] + before, offsets[:, 1])
            ends = np.where(offsets[:, 1] >= after, np.maximum(offsets[:, 1] - after, starts), offsets[:, 1])
            offsets = np.stack([starts, ends], axis=1).astype(np.int32)
        return ids, offsets

    def _spaces_around(self, text, ids, offsets):
        """How many spaces each token begins and ends with, as two arrays; an added one may have taken some along."""
        added = self.added_tokens.shown
        tokens = [
            text[start:end] if i in added else self.tokens[i].decode("latin-1")
            for i, (start, end) in zip(ids, offsets, strict=True)
        ]
        white = [WHITE_SPACE if i in added else " " for i in ids]
        pairs = list(zip(tokens, white, strict=True))
        before = [len(token) - len(token.lstrip(spaces)) for token, spaces in pairs]
        return np.array(before), np.array([len(token) - len(token.rstrip(spaces)) for token, spaces in pairs])

    def decode_bytes(self, ids, after_text=False):
        """The bytes of `ids` (time,), exactly those that were encoded; special ids produce nothing."""
        return b"".join([self.tokens[i] for i in self.checked_ids(ids).tolist()])

    def encode_symbols(self, data):
        """The list of ids of one word's bytes, however long."""
        return merge([self.byte_ids[byte] for byte in data], self.pairs)

    def last_rank(self, data):
        """The rank of the last merge of a token's bytes."""
        made = []
        merge([self.byte_ids[byte] for byte in data], self.pairs, made)
        return self.pairs[made[-1]][0]

    def token_id(self, data):
        """The id of the token with these bytes, added tokens and special ones aside; None if there is none."""
        return self._ids.get(data)

    def _more_ids(self, count):
        return {VOCABULARY_NAME: self.files[VOCABULARY_NAME] + b"\n" * count}

    def _prefixed(self, data):
        return b" " + data if self.add_prefix_space and data and not data.startswith(b" ") else data

    def _encode_word(self, word):
        data = word_bytes(word)
        size = self.max_word_bytes or max(len(data), 1)
        if self.ignore_merges and data in self._ids:
            ids = [self._ids[data]]
        else:
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
        without = {*self.special_ids.values(), *(i for i in self.added_tokens.shown if not lines[i])}
        return [b"" if i in without else token_bytes(line, VOCABULARY_NAME) for i, line in enumerate(lines)]

    def _parse_merges(self):
        pairs = {}
        for rank, line in enumerate(text_lines(self.files[MERGES_NAME], MERGES_NAME)):
            left, _, right = line.partition(" ")
            left, right = token_bytes(left, MERGES_NAME), token_bytes(right, MERGES_NAME)
            pair, merged = (self._ids.get(left), self._ids.get(right)), self._ids.get(left + right)
            if merged is None or None in pair or pair in pairs:
                raise ValueError(
                    f"{MERGES_NAME}, line {rank + 1}: {line!r} must join two tokens of the vocabulary to a third, and "
                    "only once."
                )
            pairs[pair] = (rank, merged)
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
