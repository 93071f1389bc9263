"""What an objective must know of a tokenizer's ids: which are special, which begin a word, which end a sentence."""

from functools import cached_property

import numpy as np

MASK = "[MASK]"
STOPS = (".", "!", "?", "。", "！", "？")
# Written without spaces: kana, the ideographs and their extensions, and the full forms. Each id of them is a word.
WITHOUT_SPACES = ((0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))


class Vocabulary:
    """A tokenizer's ids as tables.

    Args:
        tokenizer: any tokenizer of `keras_seqlm.tokenizers`.

    Attributes:
        size: how many ids there are.
        special: bool (size,): ids that stand for no text, as pad, bos, eos, unk and the added special tokens.
        ordinary: the others, int32, in order.
        start_id: what a decoder reads first: bos, else eos.
        end_id: what ends a target: eos; None where the tokenizer has none.

    Raises:
        ValueError: no id stands for text.

    Example:

    >>> from keras_seqlm.tokenizers import ByteTokenizer
    >>> vocabulary = Vocabulary(ByteTokenizer())
    >>> vocabulary.size, len(vocabulary.ordinary), np.flatnonzero(vocabulary.special).tolist()
    (260, 256, [0, 1, 2, 3])
    """

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.size = tokenizer.vocabulary_size
        self.special = np.zeros(self.size, bool)
        self.special[[*tokenizer.special_ids.values(), *tokenizer.added_tokens.special_ids]] = True
        self.ordinary = np.flatnonzero(~self.special).astype(np.int32)
        if not len(self.ordinary):
            raise ValueError("All ids of the tokenizer are special ones, so there is no text to learn from.")
        self.start_id = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        self.end_id = tokenizer.eos_id
        self._ids = {}  # of the special tokens that were asked for

    @cached_property
    def border(self):
        """Bool (size,): the ids that stand between documents, bos and eos."""
        found = np.zeros(self.size, bool)
        found[[i for i in (self._tokenizer.bos_id, self._tokenizer.eos_id) if i is not None]] = True
        return found

    @cached_property
    def begins_word(self):
        """Bool (size,): ids with white space before them ("##ing" has none), and those of scripts that write none.

        Of a character that is several ids, as of bytes, none begins a word.
        """
        return self._table(lambda text: text[:1].isspace() or _without_spaces(text[:1]))

    @cached_property
    def holds_spaces(self):
        """Whether words have ids with the space before them, as byte pairs and sentence pieces have: then a mask stands for both."""
        return bool(self._table(lambda text: text[:1] == " " and len(text) > 1).any())

    @cached_property
    def ends_sentence(self):
        """Bool (size,): ids whose text ends with a full stop, a question or an exclamation mark."""
        return self._table(lambda text: text.rstrip().endswith(STOPS))

    def _table(self, holds):
        found = np.zeros(self.size, bool)
        for i in self.ordinary.tolist():
            found[i] = holds(self._tokenizer.decode([i], after_text=True))
        return found

    def id_of(self, token):
        """The id of a special token; of "[MASK]" that which the tokenizer masks with, whatever it calls it.

        Raises:
            ValueError: the tokenizer has no such token.
        """
        if token not in self._ids:
            self._ids[token] = token_id(self._tokenizer, token)
        if self._ids[token] is None:
            raise ValueError(
                f"The tokenizer has no special token {token!r}, which the objective needs: before you build the model, "
                "tokenizer = data.prepared(tokenizer, objective)."
            )
        return self._ids[token]


def token_id(tokenizer, token):
    """The id of a special token, or None; of `MASK` that which the tokenizer masks with, whatever it calls it."""
    if token == MASK and tokenizer.mask_id is not None:
        return tokenizer.mask_id
    entries = tokenizer.added_tokens.entries
    return next((entry["id"] for entry in entries if entry["content"] == token and entry["special"]), None)


def _without_spaces(character):
    return bool(character) and any(first <= ord(character) <= last for first, last in WITHOUT_SPACES)
