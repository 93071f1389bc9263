"""SentencePiece: the most probable pieces (unigram) or merged characters (BPE)."""

import array
import re

import numpy as np

from seqlm_runtime.tokenizers.charsmap import Charsmap
from seqlm_runtime.tokenizers.merges import merge
from seqlm_runtime.tokenizers.model_proto import BPE, BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, parse_model
from seqlm_runtime.tokenizers.tokenizer import CONFIG_NAME, Tokenizer, as_text

MODEL_NAME = "sentencepiece.model"
SPACE_MARK = "\u2581"
MAX_CHUNK_CHARACTERS = 1024
UNKNOWN_PENALTY = 10.0
# A word with the space before it, or a line feed; longer words are cut.
_CHUNK = re.compile(rf" [^ \n]{{0,{MAX_CHUNK_CHARACTERS - 1}}}|\n|[^ \n]{{1,{MAX_CHUNK_CHARACTERS}}}")


class SentencePieceTokenizer(Tokenizer):
    """Pieces of a SentencePiece model, its own Python encoder equal to TensorFlow's operation.

    A model trained here (`"chunks": true`) is encoded word by word, a space being the start of a word. That changes
    nothing in the result, as no piece goes beyond a word, and keeps sums of scores exact; a character without a piece
    becomes its bytes, so any text comes back, save that U+2581 reads as a space. A model from elsewhere is encoded
    text by text as its authors' library does, normalisation included.

    Args:
        files: dict of file name to bytes: `tokenizer.json` and `sentencepiece.model`.

    Raises:
        ValueError: a file does not hold what it should, or the model has user-defined pieces.

    Reference: Kudo 2018, https://arxiv.org/abs/1804.10959; Kudo and Richardson 2018, https://arxiv.org/abs/1808.06226
    """

    type = "sentence_piece"
    file_names = (MODEL_NAME,)

    def __init__(self, files):
        super().__init__(files)
        self.chunks = self.config.get("chunks")
        if not isinstance(self.chunks, bool):
            raise ValueError(f"{CONFIG_NAME}: expected chunks as true or false, got {self.chunks!r}.")
        self.model = parse_model(self.files[MODEL_NAME])
        if len(self.model.pieces) != self.vocabulary_size:
            raise ValueError(f"{MODEL_NAME}: expected {self.vocabulary_size} pieces, got {len(self.model.pieces)}.")
        self._check()
        self._charsmap = Charsmap(self.model.charsmap)
        self._byte_ids = {int(text[3:5], 16): i for i, text in self._of_kind(BYTE)}
        self.shown = [self._shown(text, kind) for text, _, kind in self.model.pieces]
        self.max_token_bytes = max([4 if self.chunks else 32, *map(len, self.shown)])
        prepare = self._prepare_merges if self.model.model_type == BPE else self._prepare_paths
        prepare()
        self._words = {}

    def encode(self, text):
        """The ids of `text` (str or bytes) as a (time,) int32 array."""
        text = as_text(text)
        if not self.chunks:
            return np.array(self._encode_chunk(self.normalize(text)), np.int32)
        ids, cache = [], self._words
        for chunk in _CHUNK.findall(text):
            known = cache.get(chunk)
            if known is None:
                known = self._encode_chunk(chunk.replace(" ", SPACE_MARK))
                if len(cache) >= 1 << 16:
                    cache.clear()
                if len(chunk) <= 64:
                    cache[chunk] = known
            ids.extend(known)
        return np.array(ids, np.int32)

    def decode_bytes(self, ids):
        """The bytes of `ids` (time,); special ids produce nothing."""
        data = b"".join([self.shown[i] for i in self.checked_ids(ids).tolist()])
        return data.removeprefix(b" ") if self.model.add_dummy_prefix else data

    def normalize(self, text):
        """`text` as the model's own normalisation leaves it."""
        model = self.model
        text = self._charsmap.replace(text)
        if model.remove_extra_whitespaces:
            text = re.sub(" +", " ", text).strip(" ")
        if text and model.add_dummy_prefix and not model.whitespace_suffix:
            text = " " + text
        mark = SPACE_MARK if model.escape_whitespaces else " "
        text = text.replace(" ", mark)
        if model.remove_extra_whitespaces:
            text = text.rstrip(mark)  # a mark that was written out goes too
        return text + mark if text and model.add_dummy_prefix and model.whitespace_suffix else text

    def _check(self):
        model = self.model
        if model.pieces[self.unk_id if self.unk_id is not None else 0][2] != UNKNOWN:
            raise ValueError(f"{MODEL_NAME}: expected the unknown piece at id {self.unk_id}.")
        plain = not (model.charsmap or model.add_dummy_prefix or model.remove_extra_whitespaces)
        if self.chunks and not (plain and model.escape_whitespaces and model.byte_fallback):
            raise ValueError(
                f"{MODEL_NAME}: a model that is encoded in chunks must not normalise, and must know bytes."
            )
        if self.chunks and any(SPACE_MARK in text[1:] for text, _, kind in model.pieces if kind == NORMAL):
            raise ValueError(f"{MODEL_NAME}: a model that is encoded in chunks has no piece with a space inside.")

    def _of_kind(self, *kinds):
        return [(i, text) for i, (text, _, kind) in enumerate(self.model.pieces) if kind in kinds]

    def _shown(self, text, kind):
        if kind == BYTE:
            return bytes([int(text[3:5], 16)])
        if kind in (CONTROL, UNKNOWN):
            return b""
        return (text.replace(SPACE_MARK, " ") if self.model.escape_whitespaces else text).encode("utf-8")

    def _encode_chunk(self, text):
        if self.model.model_type == BPE:
            symbols = merge([self._symbols.get(character, self._foreign) for character in text], self._pairs)
            return self._with_unknown(text, [(i, self._sizes.get(i, 1)) for i in symbols])
        return self._with_unknown(text, self._best_path(text))

    def _with_unknown(self, text, path):
        """The ids of `path`, a list of `(id, characters)` in which an id beyond the pieces is a character without one."""
        ids, place, before = [], 0, None
        for i, size in path:
            if i < len(self.shown):
                ids.append(i)
            elif self._byte_ids:
                ids.extend([self._byte_ids[byte] for byte in text[place : place + size].encode("utf-8")])
            elif before is None or before < len(self.shown):
                ids.append(self._unknown)  # SentencePiece gives one id to unknown characters in a row
            place, before = place + size, i
        return ids

    def _prepare_paths(self):
        """One table for the search: every beginning of a piece, with `(id, score)` where it is a whole one."""
        self._unknown = self._of_kind(UNKNOWN)[0][0]
        self._beginnings = {}
        for i, (text, score, kind) in enumerate(self.model.pieces):
            if kind in (NORMAL, UNUSED):
                for size in range(1, len(text)):
                    self._beginnings.setdefault(text[:size], None)
                self._beginnings[text] = (i, score) if kind == NORMAL else self._beginnings.get(text)
        scores = [score for _, score, kind in self.model.pieces if kind == NORMAL]
        self._unknown_score = float(np.float32(min(scores, default=0.0)) - np.float32(UNKNOWN_PENALTY))

    def _best_path(self, text):
        """The pieces of the highest sum of scores, as a list of `(id, characters)`.

        TensorFlow's operation compares a sum in double precision with the best one so far in single precision. That
        decides between near ties, so it is done here too: an array of type "f" rounds what is stored in it.
        """
        size = len(text)
        best = array.array("f", bytes(4 * (size + 1)))
        rounded = array.array("f", [0.0])
        ids, starts = [0] * (size + 1), [-1] * (size + 1)
        beginnings, unknown_score, outside = self._beginnings, self._unknown_score, len(self.shown)
        for start in range(size):
            so_far, single, end = best[start], False, start + 1
            while end <= size:
                piece = beginnings.get(text[start:end], 0)
                if piece == 0:
                    break
                if piece:
                    score = piece[1] + so_far
                    if starts[end] < 0 or score > best[end]:
                        best[end], ids[end], starts[end] = score, piece[0], start
                    single = single or end == start + 1
                end += 1
            if not single:
                rounded[0] = unknown_score + so_far
                end = start + 1
                if starts[end] < 0 or rounded[0] > best[end]:
                    best[end], ids[end], starts[end] = rounded[0], outside, start
        path, end = [], size
        while end:
            path.append((ids[end], end - starts[end]))
            end = starts[end]
        return path[::-1]

    def _prepare_merges(self):
        """Numbers for the symbols, characters without a piece included, and every pair whose joined text is a piece."""
        if self._of_kind(UNUSED):
            raise ValueError(f"{MODEL_NAME}: BPE models with unused pieces are not supported.")
        self._unknown = self._of_kind(UNKNOWN)[0][0]
        plain = {text: i for i, text in self._of_kind(NORMAL)}
        self._symbols = {text: i for text, i in plain.items() if len(text) == 1}
        self._sizes = {i: len(text) for text, i in plain.items()}
        for character in sorted(set("".join(plain))):
            self._symbols.setdefault(character, len(self.shown) + 1 + ord(character))
        self._foreign = len(self.shown)
        known = {**self._symbols, **plain}
        self._pairs = {}
        for text, i in plain.items():
            for size in range(1, len(text)):
                pair = (known.get(text[:size]), known.get(text[size:]))
                if None not in pair:
                    self._pairs[pair] = (-self.model.pieces[i][1], i)
