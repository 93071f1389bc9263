"""WordPiece: BERT's normalisation and words, then the longest known piece first."""

import numpy as np

from seqlm_runtime.tokenizers.code_points import BLOCK, NUM_BLOCKS, parse_table
from seqlm_runtime.tokenizers.tokenizer import Tokenizer, as_text, flag, text_lines, whole_number

VOCABULARY_NAME = "vocabulary.txt"
FORMS_TABLE_NAME = "forms.bin"
FORMS_NAME = "forms.txt"
CONTINUATION = "##"
# The stock TensorFlow operation takes no longer token and none with NUL.
MAX_TOKEN_BYTES = 256
# Beginnings of tokens that stand without a space before them where decoding cleans up.
_JOINS_LEFT = (".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re")
# What a code point becomes: itself, a space, itself between spaces, nothing, or line n - 4 of `forms.txt`.
SAME, SPACE, APART, NOTHING, FIRST_FORM = range(5)


class WordPieceTokenizer(Tokenizer):
    """BERT's tokenizer: clean, lower-case and strip accents, split at spaces and signs, then the longest pieces.

    What a code point becomes stands in a table, so that Unicode means the same everywhere. A word of which a part is
    unknown is one `unk`. Decoding cannot bring back what normalisation took away; with `clean_up` it writes signs without
    the space before them, as BERT's does.

    Args:
        files: dict of file name to bytes: `seqlm_tokenizer.json`, `vocabulary.txt` (a token a line, in the order of ids,
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
        plain = [(token, i) for i, token in enumerate(self.lines) if token and i not in specials]
        size = len(CONTINUATION)
        self._starting = {token: i for token, i in plain if not token.startswith(CONTINUATION)}
        self._inside = {token[size:]: i for token, i in plain if token.startswith(CONTINUATION)}
        if len(self._starting) + len(self._inside) != len(plain):
            raise ValueError(f"{VOCABULARY_NAME}: a token stands twice.")
        self._longest = max([len(token) for token, _ in plain], default=0)
        self.clean_up = flag(self.config, "clean_up")
        self._sizes = [len(token.removeprefix(CONTINUATION)) for token in self.lines]
        self.shown = [b"" if i in specials else _shown(token, self.clean_up) for i, token in enumerate(self.lines)]
        self._normal = _Normal(self.form_table, self.forms)
        self.added_tokens.seek_in_normal_form(_SoughtForm(self.form_table, self.forms))
        if any(entry["content"].strip(" ") != entry["content"] for entry in self._late()):
            raise ValueError(
                "added_tokens: one that is normalized begins or ends with a space, which is not supported."
            )
        for i, content in self.added_tokens.shown.items():
            self.shown[i] = content and _shown(content.decode("utf-8"), self.clean_up)
        self.max_token_bytes = max(
            [32, *(len(token.encode("utf-8")) + 1 for token, _ in plain), self.added_tokens.longest]
        )  # and a space before it
        self._words = {}

    def normalize(self, text):
        """`text` (str or bytes) as the words that are looked up, with spaces around them."""
        return as_text(text).translate(self._normal)

    def encode_plain(self, text):
        """The ids of `text` (str or bytes) as a (time,) int32 array."""
        ids, cache = [], self._words
        for word in self.normalize(text).split(" "):
            if word:
                known = cache.get(word)
                ids.extend(self._encode_word(word) if known is None else known)
        return np.array(ids, np.int32)

    def spans_plain(self, text):
        """The ids of `text` and the code points that each stands for; see `encode_with_offsets`."""
        forms = [self._normal[ord(character)] for character in as_text(text)]
        sources = np.repeat(np.arange(len(forms)), [len(form) for form in forms])
        ids, spans, place = [], [], 0
        for word in "".join(forms).split(" "):
            start = place
            pieces = self._encode_word(word) if word else []
            for i in pieces:
                end = place + len(word) if i == self.unk_id else start + self._sizes[i]
                ids.append(i)
                spans.append((sources[start], sources[end - 1] + 1))
                start = end
            place += len(word) + 1
        return ids, spans

    def _late(self):
        return self.added_tokens.phases[-1] if self.added_tokens.normal is not None else []

    def _more_ids(self, count):
        return {VOCABULARY_NAME: self.files[VOCABULARY_NAME] + b"\n" * count}

    def decode_bytes(self, ids, after_text=False):
        """The UTF-8 bytes of `ids` (time,): words with a space between them; special ids produce nothing."""
        data = b"".join([self.shown[i] for i in self.checked_ids(ids).tolist()])
        return data if after_text else data.removeprefix(b" ")

    def is_unknown(self, word):
        """Whether a word of `normalize` is `unk`."""
        return self._encode_word(word) == [self.unk_id]

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
        added = self.added_tokens.shown
        for i, line in enumerate(lines):
            if not line and i in added:
                continue  # an id that only added tokens name
            if not line or "\0" in line or len(line.encode("utf-8")) > MAX_TOKEN_BYTES:
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


class _SoughtForm(_Normal):
    """What added tokens are looked for in: each form without the spaces around it, so that a token may hold signs."""

    def __missing__(self, point):
        form = super().__missing__(point)
        self[point] = form.strip(" ") or form[:1]
        return self[point]

    def normalize(self, text):
        """`text` (str) as it is searched."""
        return text.translate(self)

    def with_sources(self, text):
        """`normalize`, and for each character of it the place of the one in `text` that it comes of."""
        forms = [self[ord(character)] for character in text]
        return "".join(forms), np.repeat(np.arange(len(forms)), [len(form) for form in forms])


def _shown(token, clean_up):
    if token.startswith(CONTINUATION):
        return token.removeprefix(CONTINUATION).encode("utf-8")
    shown = " " + token
    if clean_up and token.startswith(_JOINS_LEFT):
        shown = token
    return shown.encode("utf-8")
