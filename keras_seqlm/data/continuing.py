"""Objectives of causal models beside the next token: the rest of a text, and what stood in its middle."""

import dataclasses

import numpy as np

from keras_seqlm.data.draws import below, subset
from keras_seqlm.data.objectives import CAUSAL, ENCODER_DECODER, Lengths, Objective, SourceTarget, runs_of


@dataclasses.dataclass(frozen=True)
class PrefixLM(SourceTarget):
    """A text is cut at a place drawn by chance; its beginning is given, and the rest counts.

    One sequence for a causal model is the text itself, of whose beginning the model reads each token with what stands
    before it, as always; for an encoder-decoder the beginning is the source.

    Reference: Raffel et al. 2020 (T5), section 3.2.1, arXiv:1910.10683.

    Example:

    >>> from keras_seqlm.data.draws import generator_of
    >>> from keras_seqlm.data.vocabulary import Vocabulary
    >>> from keras_seqlm.tokenizers import ByteTokenizer
    >>> ids = ByteTokenizer().encode("abcdefg")
    >>> PrefixLM().example(ids, generator_of(3, 0), Vocabulary(ByteTokenizer()), "causal")[1].tolist()
    [-1, 103, 104, 105, 106, 107]
    """

    name = "prefix"
    layouts = (CAUSAL, ENCODER_DECODER)
    has_start = False
    keeps_places = True

    def lengths(self, sequence_length, layout):
        source = sequence_length if layout == ENCODER_DECODER else None
        return Lengths(sequence_length + 1, sequence_length, source)

    def pair(self, ids, random, vocabulary):
        cut = 1 + int(below(max(1, len(ids) - 1), 1, random)[0])
        return ids[:cut].astype(np.int32), ids[cut:].astype(np.int32)


@dataclasses.dataclass(frozen=True)
class FillInTheMiddle(Objective):
    """Some documents are cut in three and put in another order, so that a causal model learns to write the middle last.

        PSM  <fim_prefix> beginning <fim_suffix> end <fim_middle> middle
        SPM  <fim_prefix> <fim_suffix> end <fim_middle> beginning middle

    All tokens count, as in training on the next token, which the model goes on to learn. The documents are those of a row
    (a part of one, where the row cuts it), and they are cut between ids; bos and eos stay at their ends. The rows have room
    for three tokens more in one document for each 128 of theirs; of more than so many some are left as they are.

    Reference: Bavarian et al. 2022, sections 3 and 4, arXiv:2207.14255.

    Args:
        rate: of the documents that are cut.
        spm: share of the second order among them.

    Raises:
        ValueError: a share out of range.

    Example:

    >>> from keras_seqlm.data.draws import generator_of
    >>> from keras_seqlm.data.prepared import prepared
    >>> from keras_seqlm.data.vocabulary import Vocabulary
    >>> from keras_seqlm.tokenizers import ByteTokenizer
    >>> rule = FillInTheMiddle(rate=1.0, spm=0.0)
    >>> tokenizer = prepared(ByteTokenizer(), rule)
    >>> ids = tokenizer.encode("abcdef")
    >>> rule.turned(ids, generator_of(4, 0), Vocabulary(tokenizer), most=1).tolist()
    [260, 101, 102, 261, 105, 106, 262, 103, 104]
    """

    rate: float = 0.5
    spm: float = 0.5

    name = "fim"

    def __post_init__(self):
        for name in ("rate", "spm"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be a share from 0 to 1, got {getattr(self, name)!r}.")

    @property
    def tokens(self):
        return ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")

    def lengths(self, sequence_length, layout):
        fits = (n for n in range(sequence_length, 1, -1) if n + 3 * _most_documents(n) <= sequence_length + 1)
        text = next(fits, None)
        if text is None:
            raise ValueError(f"Rows of {sequence_length} tokens have no room for {self.name!r}: give longer ones.")
        return Lengths(text, sequence_length)

    def example(self, ids, random, vocabulary, layout):
        turned = self.turned(ids, random, vocabulary, _most_documents(len(ids)))
        return {"token_ids": turned[:-1]}, turned[1:]

    def turned(self, ids, random, vocabulary, most):
        """The ids of a row with some of its documents, `most` at most, in another order: int32."""
        runs = runs_of(~vocabulary.border[ids])
        chosen = np.flatnonzero(random.random(len(runs)) < self.rate)
        if len(chosen) > most:
            chosen = chosen[subset(len(chosen), most, random)]
        before, behind, middle = (vocabulary.id_of(token) for token in self.tokens)
        pieces, place = [], 0
        for start, stop in runs[chosen].tolist():
            first, second = np.sort(start + below(stop - start + 1, 2, random)).tolist()
            beginning, rest = ids[start:first], ids[second:stop]
            if random.random() < self.spm:
                order = [[before, behind], rest, [middle], beginning, ids[first:second]]
            else:
                order = [[before], beginning, [behind], rest, [middle], ids[first:second]]
            pieces += [ids[place:start], *order]
            place = stop
        return np.concatenate([*pieces, ids[place:]]).astype(np.int32)


def _most_documents(size):
    return max(1, size // 128)
