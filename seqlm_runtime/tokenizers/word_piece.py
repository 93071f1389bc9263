"""WordPiece: BERT's normalisation and words, then the longest known piece first."""

import numpy as np

from seqlm_runtime.tokenizers.code_points import BLOCK, NUM_BLOCKS, parse_table
from seqlm_runtime.tokenizers.tokenizer import Tokenizer, as_text, text_lines, whole_number

VOCABULARY_NAME = "vocabulary.txt"
FORMS_TABLE_NAME = "forms.bin"
FORMS_NAME = "forms.txt"
CONTINUATION = "##"
# The stock TensorFlow operation takes no longer token and none with NUL.
MAX_TOKEN_BYTES = 256
# What a code point becomes: itself, a space, itself between spaces, nothing, or line n - 4 of `forms.txt`.
SAME, SPACE, APART, NOTHING, FIRST_FORM = range(5)


class WordPieceTokenizer(Tokenizer):
    """BERT's tokenizer: clean, lower-case and strip accents, split at spaces and signs, then the longest pieces.

    What a code point becomes stands in a table, so that Unicode means the same everywhere. A word of which a part is
    unknown is one `unk`. Decoding cannot bring back what normalisation took away.

    Args:
        files: dict of file name to bytes: `tokenizer.json`, `vocabulary.txt` (a token a line, in the order of ids,
            `##` before those inside a word), `forms.bin` (a number for each code point) and `forms.txt` (what it
            becomes, a line each).

    Raises:
        ValueError: a file does not hold what it should.

    Reference: Devlin et al. 2019, https://arxiv.org/abs/1810.04805
    """

    type = "word_piece"
    file_names = (VOCABULARY_NAME, FORMS_TABLE_NAME, FORMS_NAME)

    def __init__(self, files):
        super().__init__(files)
        if self.unk_id is None:
            raise ValueError("Expected a word-piece tokenizer with a special id for unk, found none.")
        self.max_word_characters = whole_number(self.config, "max_word_characters", 1, 10_000)
        self.forms = text_lines(self.files[FORMS_NAME], FORMS_NAME)
        values = FIRST_FORM + len(self.forms)
        self.form_table = parse_table(self.files[FORMS_TABLE_NAME], "uint16", values, FORMS_TABLE_NAME)
        self.lines = self._parse_vocabulary()
        specials = set(self.special_ids.values())
        plain = [(token, i) for i, token in enumerate(self.lines) if i not in specials]
        size = len(CONTINUATION)
        self._starting = {token: i for token, i in plain if not token.startswith(CONTINUATION)}
        self._inside = {token[size:]: i for token, i in plain if token.startswith(CONTINUATION)}
        if len(self._starting) + len(self._inside) != len(plain):
            raise ValueError(f"{VOCABULARY_NAME}: a token stands twice.")
        self._longest = max([len(token) for token, _ in plain], default=0)
        self.max_token_bytes = max(
            [32, *(len(token.encode("utf-8")) + 1 for token, _ in plain)]
        )  # and a space before it
        self.shown = [b"" if i in specials else _shown(token) for i, token in enumerate(self.lines)]
        self._normal = _Normal(self.form_table, self.forms)
        self._words = {}

    def normalize(self, text):
        """`text` (str or bytes) as the words that are looked up, with spaces around them."""
        return as_text(text).translate(self._normal)

    def encode(self, text):
        """The ids of `text` (str or bytes) as a (time,) int32 array."""
        ids, cache = [], self._words
        for word in self.normalize(text).split(" "):
            if word:
                known = cache.get(word)
                ids.extend(self._encode_word(word) if known is None else known)
        return np.array(ids, np.int32)

    def decode_bytes(self, ids):
        """The UTF-8 bytes of `ids` (time,): words with a space between them; special ids produce nothing."""
        return b"".join([self.shown[i] for i in self.checked_ids(ids).tolist()]).removeprefix(b" ")

    def _encode_word(self, word):
        ids = self._longest_pieces(word) if len(word) <= self.max_word_characters else [self.unk_id]
        if len(self._words) >= 1 << 16:
            self._words.clear()
        if len(word) <= self.max_word_characters:
            self._words[word] = ids
        return ids

    def _longest_pieces(self, word):
        ids, start, known = [], 0, self._starting
        while start < len(word):
            for end in range(min(len(word), start + self._longest), start, -1):
                if word[start:end] in known:
                    break
            else:
                return [self.unk_id]
            ids.append(known[word[start:end]])
            start, known = end, self._inside
        return ids

    def _parse_vocabulary(self):
        lines = text_lines(self.files[VOCABULARY_NAME], VOCABULARY_NAME)
        if len(lines) != self.vocabulary_size:
            raise ValueError(f"{VOCABULARY_NAME}: expected {self.vocabulary_size} lines, got {len(lines)}.")
        for line in lines:
            if not line or "\0" in line or len(line.encode("utf-8")) > MAX_TOKEN_BYTES or line == chr(0x10FFFF):
                raise ValueError(
                    f"{VOCABULARY_NAME}: a token has 1 to {MAX_TOKEN_BYTES} bytes and no NUL, got {line[:20]!r}."
                )
        return lines


class _Normal(dict):
    """For `str.translate`: what each code point becomes, looked up once."""

    def __init__(self, table, forms):
        super().__init__()
        self._table, self._forms = table.tolist(), forms  # a list is read ten times faster than an array, one by one

    def __missing__(self, point):
        value = self._table[NUM_BLOCKS + self._table[point // BLOCK] * BLOCK + point % BLOCK]
        same = chr(point)
        form = {SAME: same, SPACE: " ", APART: f" {same} ", NOTHING: ""}.get(value)
        self[point] = form if form is not None else self._forms[value - FIRST_FORM]
        return self[point]


def _shown(token):
    return (token[len(CONTINUATION) :] if token.startswith(CONTINUATION) else " " + token).encode("utf-8")
