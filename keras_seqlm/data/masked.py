"""Masked language modelling: which token stood where one is masked."""

import dataclasses

import numpy as np

from keras_seqlm.data.draws import below, subset
from keras_seqlm.data.objectives import ENCODER, Lengths, Objective, share_checked
from keras_seqlm.data.vocabulary import MASK
from keras_seqlm.losses.targets import UNCOUNTED


@dataclasses.dataclass(frozen=True)
class Masked(Objective):
    """Some of the ids are chosen and count; of these most are shown as the mask, some as another id, some as they are.

    Special ids are never chosen, and never shown in the place of another. Of the n others round(share * n) are chosen, at
    least one; every row of every epoch is drawn anew.

    References: Devlin et al. 2018 (BERT), section 3.1, arXiv:1810.04805; Liu et al. 2019 (RoBERTa: drawn anew in each
    epoch), arXiv:1907.11692.

    Args:
        share: of the ids that are chosen.
        masked, other: shares of the chosen that are shown as the mask, and as an id drawn from all; the rest as they are.
        whole_words: choose words and not ids: in random order, each that fits in what is left of the share (so that
            fewer may be chosen), and one if none fits. Where a word begins the tokenizer's ids tell (`Vocabulary`).

    Raises:
        ValueError: a share out of range.

    Example:

    >>> from keras_seqlm.data.draws import generator_of
    >>> from keras_seqlm.data.vocabulary import Vocabulary
    >>> from keras_seqlm.tokenizers import ByteTokenizer
    >>> tokenizer = ByteTokenizer().with_added_tokens(["[MASK]"], special=True)
    >>> ids = tokenizer.encode("abcdefgh")
    >>> x, y = Masked(share=0.5, masked=1, other=0).example(ids, generator_of(1, 0), Vocabulary(tokenizer), "encoder")
    >>> (x["token_ids"] == 260).sum(), (np.where(y < 0, x["token_ids"], y) == ids).all()
    (np.int64(4), np.True_)
    """

    share: float = 0.15
    masked: float = 0.8
    other: float = 0.1
    whole_words: bool = False

    name = "masked"
    layouts = (ENCODER,)
    keeps_places = True

    def __post_init__(self):
        share_checked("share", self.share)
        if min(self.masked, self.other) < 0 or self.masked + self.other > 1:
            raise ValueError(
                f"`masked` and `other` are shares of what is chosen, got {self.masked!r} and {self.other!r}."
            )

    @property
    def tokens(self):
        return (MASK,)

    def lengths(self, sequence_length, layout):
        return Lengths(text=sequence_length, tokens=sequence_length)

    def example(self, ids, random, vocabulary, layout):
        special = vocabulary.special[ids]
        candidates = np.flatnonzero(~special)
        count = min(len(candidates), max(1, round(self.share * len(candidates))))
        if self.whole_words:
            chosen = _whole_words(ids, candidates, count, random, vocabulary)
        else:
            chosen = candidates[subset(len(candidates), count, random)]
        draws = random.random(len(chosen))
        others = vocabulary.ordinary[below(len(vocabulary.ordinary), len(chosen), random)]
        seen, targets = ids.astype(np.int32), np.full(len(ids), UNCOUNTED, np.int32)
        targets[chosen] = ids[chosen]
        shown = np.where(draws < self.masked + self.other, others, ids[chosen])
        seen[chosen] = np.where(draws < self.masked, vocabulary.id_of(MASK), shown)
        return {"token_ids": seen}, targets


def _whole_words(ids, candidates, count, random, vocabulary):
    """Places of the words that are chosen, together at most `count` ids, if one is so short."""
    apart = np.diff(candidates, prepend=-2) > 1  # a special id, or the row's end, stands before it
    words = np.cumsum(apart | vocabulary.begins_word[ids[candidates]]) - 1  # of each candidate, the number of its word
    if not len(words):
        return candidates
    sizes = np.bincount(words)
    order = np.argsort(random.random(len(sizes)), kind="stable")
    chosen, left = np.zeros(len(sizes), bool), count
    for word in order[sizes[order] <= count].tolist():
        if sizes[word] <= left:
            chosen[word] = True
            left -= sizes[word]
        if not left:
            break
    if not chosen.any():
        chosen[order[0]] = True
    return candidates[chosen[words]]
