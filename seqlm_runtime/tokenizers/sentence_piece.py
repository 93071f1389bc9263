"""SentencePiece: the most probable pieces (unigram) or merged characters (BPE)."""

import array
import dataclasses
import re

import numpy as np

from seqlm_runtime.tokenizers.charsmap import Charsmap
from seqlm_runtime.tokenizers.merges import merge
from seqlm_runtime.tokenizers.model_proto import (
    BPE,
    BYTE,
    CONTROL,
    MAX_MODEL_BYTES,
    NORMAL,
    UNKNOWN,
    UNUSED,
    parse_model,
    serialize_model,
)
from seqlm_runtime.tokenizers.normalization import SPACE_MARK, Normalizer
from seqlm_runtime.tokenizers.tokenizer import CONFIG_NAME, Tokenizer, as_text, flag, whole_number

MODEL_NAME = "sentencepiece.model"
MAX_CHUNK_CHARACTERS = 1024
UNKNOWN_PENALTY = 10.0
# A word with the space before it, or a line feed; longer words are cut.
_CHUNK = re.compile(rf" [^ \n]{{0,{MAX_CHUNK_CHARACTERS - 1}}}|\n|[^ \n]{{1,{MAX_CHUNK_CHARACTERS}}}")


class SentencePieceTokenizer(Tokenizer):
    """Pieces of a SentencePiece model, its own Python encoder equal to TensorFlow's operation.

    A model trained here (`"chunks": true`) is encoded word by word, a space being the start of a word. That changes
    nothing in the result, as no piece goes beyond a word, and keeps sums of scores exact; a character without a piece
    becomes its bytes, so any text comes back, save that U+2581 reads as a space. A model from elsewhere is encoded
    text by text as its authors' library does, normalisation included. One of Hugging Face's has `steps` in its config,
    which normalise and split as their pipeline does; see `normalization`.

    Args:
        files: dict of file name to bytes: `seqlm_tokenizer.json` and `sentencepiece.model`.

    Raises:
        ValueError: a file does not hold what it should, or the model has user-defined pieces.

    Reference: Kudo 2018, https://arxiv.org/abs/1804.10959; Kudo and Richardson 2018, https://arxiv.org/abs/1808.06226
    """

    type = "sentence_piece"
    file_names = (MODEL_NAME,)
    max_file_bytes = MAX_MODEL_BYTES

    def __init__(self, files):
        super().__init__(files)
        self.chunks = flag(self.config, "chunks")
        if "chunks" not in self.config:
            raise ValueError(f"{CONFIG_NAME}: expected chunks as true or false, found none.")
        self.model = parse_model(self.files[MODEL_NAME])
        if len(self.model.pieces) != self.vocabulary_size:
            raise ValueError(f"{MODEL_NAME}: expected {self.vocabulary_size} pieces, got {len(self.model.pieces)}.")
        self._check()
        self._charsmap = Charsmap(self.model.charsmap)
        self._byte_ids = {int(text[3:5], 16): i for i, text in self._of_kind(BYTE)}
        self._bytes = set(self._byte_ids.values())
        self.shown = [self._shown(text, kind) for text, _, kind in self.model.pieces]
        for i, shown in self.added_tokens.shown.items():
            if shown or i in self.added_tokens.special_ids:
                self.shown[i] = shown.replace(SPACE_MARK.encode("utf-8"), b" ") if "steps" in self.config else shown
        self.score_steps = (
            whole_number(self.config, "score_steps", 1, 1 << 20) if "score_steps" in self.config else None
        )
        self.steps = None
        if "steps" in self.config:
            self.steps = Normalizer(self.config["steps"], self._charsmap, self._knows_no_inner_mark())
            self.drops_first_space = flag(self.config, "drops_first_space")
        else:
            self.drops_first_space = self.model.add_dummy_prefix
        self.max_token_bytes = max([4 if self.chunks else 32, *map(len, self.shown), self.added_tokens.longest])
        prepare = self._prepare_merges if self.model.model_type == BPE else self._prepare_paths
        prepare()
        self._words = {}

    def encode_plain(self, text, first=True):
        """The ids of `text` (str or bytes) as a (time,) int32 array."""
        text = as_text(text)
        if self.steps is not None:
            words = self.steps.words(text, first)
        elif self.chunks:
            words = _CHUNK.findall(text)
        else:
            return np.array(self._encode_chunk(self.normalize(text)), np.int32)
        ids, cache = [], self._words
        for word in words:
            known = cache.get(word)
            if known is None:
                known = self._encode_chunk(word.replace(" ", SPACE_MARK) if self.chunks else word)
                if len(cache) >= 1 << 16:
                    cache.clear()
                if len(word) <= 64:
                    cache[word] = known
            ids.extend(known)
        return np.array(ids, np.int32)

    def spans_plain(self, text, first=True):
        """The ids of `text` and the code points that each stands for; see `encode_with_offsets`."""
        text = as_text(text)
        if self.steps is not None:
            words = self.steps.words_with_sources(text, first)
        elif self.chunks:
            spans = [match.span() for match in _CHUNK.finditer(text)]
            words = [
                (text[start:end].replace(" ", SPACE_MARK), range(start, end), range(start + 1, end + 1))
                for start, end in spans
            ]
        else:
            words = self._own_words_with_sources(text)
        ids, offsets = [], []
        for word, starts, ends in words:
            for some, start, end in self._spans(word):
                ids += some
                offsets += [(starts[start], ends[end - 1])] * len(some)
        return ids, offsets

    def decode_bytes(self, ids, after_text=False):
        """The bytes of `ids` (time,); special ids produce nothing."""
        data = b"".join([self.shown[i] for i in self.checked_ids(ids).tolist()])
        if self.chunks:  # a mark that was written in bytes, for want of a piece
            data = data.replace(SPACE_MARK.encode("utf-8"), b" ")
        return data.removeprefix(b" ") if self.drops_first_space and not after_text else data

    def _own_words_with_sources(self, text):
        """The whole text as one word, normalised as `normalize` does it, with the places of its characters."""
        model = self.model
        steps = [["charsmap"]]
        if model.remove_extra_whitespaces:
            steps += [["trim"], ["collapse", " "]]
        if model.add_dummy_prefix and not model.whitespace_suffix:
            steps.append(["prepend", " "])
        if model.escape_whitespaces:
            steps.append(["replace", " ", SPACE_MARK])
        words = Normalizer(steps, self._charsmap).words_with_sources(text, True)
        if not words:
            return []
        word, starts, ends = words[0]
        if model.remove_extra_whitespaces:
            word = word.rstrip(SPACE_MARK if model.escape_whitespaces else " ")
        if word and model.add_dummy_prefix and model.whitespace_suffix:
            more = len(word) - 1
            word += SPACE_MARK if model.escape_whitespaces else " "
            starts, ends = [*starts[: more + 1], starts[more]], [*ends[: more + 1], ends[more]]
        return [(word, starts, ends)] if word else []

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
        marks = self.model.escape_whitespaces or "steps" in self.config
        return (text.replace(SPACE_MARK, " ") if marks else text).encode("utf-8")

    def last_pair(self, text):
        """The two symbols of a BPE model that a piece is merged of at last; None if its characters do not merge to it."""
        made = []
        symbols = merge([self._symbols.get(character, self._foreign) for character in text], self.pairs, made)
        return made[-1] if len(symbols) == 1 and made else None

    def _encode_chunk(self, text):
        return [i for ids, _, _ in self._pieces(text) for i in ids]

    def _pieces(self, text):
        """What a word is made of: a list of `(ids, start, end)`, several ids for a character written in bytes."""
        if self.model.model_type == BPE:
            symbols = merge([self._symbols.get(character, self._foreign) for character in text], self.pairs)
            path = [(i, self._sizes.get(i, 1)) for i in symbols]
        else:
            path = self._best_path(text)
        found, place, before = [], 0, None
        for i, size in path:
            end = place + size
            if i < len(self.shown):
                found.append(([i], place, end))
            elif self._byte_ids:
                found.append(([self._byte_ids[byte] for byte in text[place:end].encode("utf-8")], place, end))
            elif before is None or before < len(self.shown):
                found.append(([self._unknown], place, end))
            else:  # SentencePiece gives one id to unknown characters in a row
                found[-1] = ([self._unknown], found[-1][1], end)
            place, before = end, i
        return found

    def _spans(self, text):
        """`_pieces` with the places that Hugging Face's library gives: to all bytes in a row those of the row."""
        found = self._pieces(text)
        if self.steps is None or self.model.model_type == BPE or not self._byte_ids:
            return found
        in_bytes = [ids[0] in self._bytes for ids, _, _ in found]
        for number in range(1, len(found)):
            if in_bytes[number] and in_bytes[number - 1]:
                found[number] = (found[number][0], found[number - 1][1], found[number][2])
        for number in range(len(found) - 1, 0, -1):
            if in_bytes[number] and in_bytes[number - 1]:
                found[number - 1] = (found[number - 1][0], found[number - 1][1], found[number][2])
        return found

    def _knows_no_inner_mark(self):
        """Whether the mark has a piece of its own and no other piece has one behind another character."""
        pieces = [text for _, text in self._of_kind(NORMAL)]
        return SPACE_MARK in pieces and not any(SPACE_MARK in text.lstrip(SPACE_MARK) for text in pieces)

    def _part(self, encode, piece, first):
        return encode(piece, first)

    def _more_ids(self, count):
        names = [(f"<added {len(self.model.pieces) + number}>", 0.0, CONTROL) for number in range(count)]
        model = dataclasses.replace(self.model, pieces=[*self.model.pieces, *names])
        return {MODEL_NAME: serialize_model(model)}

    def _prepare_paths(self):
        """One table for the search: every beginning of a piece, with `(id, score)` where it is a whole one."""
        self._unknown = self._of_kind(UNKNOWN)[0][0]
        self._beginnings = {}
        for i, (text, score, kind) in enumerate(self.model.pieces):
            if kind in (NORMAL, UNUSED):
                for size in range(1, len(text)):
                    self._beginnings.setdefault(text[:size], None)
                self._beginnings[text] = (i, self._rounded(score)) if kind == NORMAL else self._beginnings.get(text)
        scores = [score for _, score, kind in self.model.pieces if kind == NORMAL]
        lowest = self._rounded(min(scores, default=0.0))
        self._unknown_score = float(np.float32(lowest) - np.float32(UNKNOWN_PENALTY))

    def _rounded(self, score):
        """A score as a multiple of 1 / `score_steps`, so that sums are exact in single precision."""
        return score if self.score_steps is None else round(score * self.score_steps) / self.score_steps

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
        if self._of_kind(UNUSED) and self.steps is None:
            raise ValueError(f"{MODEL_NAME}: BPE models with unused pieces are not supported.")
        self._unknown = self._of_kind(UNKNOWN)[0][0]
        plain = {text: i for i, text in self._of_kind(NORMAL)}
        self._symbols = {text: i for text, i in plain.items() if len(text) == 1}
        self._sizes = {i: len(text) for text, i in plain.items()}
        for character in sorted(set("".join(plain))):
            self._symbols.setdefault(character, len(self.shown) + 1 + ord(character))
        self._foreign = len(self.shown)
        known = {**self._symbols, **plain}
        self.pairs = {}
        for text, i in plain.items():
            for size in range(1, len(text)):
                pair = (known.get(text[:size]), known.get(text[size:]))
                if None not in pair:
                    self.pairs[pair] = (-self.model.pieces[i][1], i)
