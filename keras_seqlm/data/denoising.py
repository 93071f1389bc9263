"""Denoising: a text with holes and with its sentences in disorder is written down as it was."""

import dataclasses

import numpy as np

from keras_seqlm.data.draws import poisson_lengths, subset
from keras_seqlm.data.objectives import ENCODER_DECODER, Lengths, SourceTarget, share_checked
from keras_seqlm.data.vocabulary import MASK


@dataclasses.dataclass(frozen=True)
class Denoising(SourceTarget):
    """The source is the text after three kinds of noise, one after the other; the target is the whole text, and eos.

    1. The sentences of each document change places: at ids whose text ends with one of . ! ? 。 ！ ？ one ends, or with
       the document. (A tokenizer of bytes has no id for the last three.)
    2. A share of the ids goes without a trace.
    3. Spans, `share` of the ids together, are each replaced by one mask; their lengths are drawn of a Poisson distribution,
       and those of 0 put a mask where nothing was. No two masks touch.

    Special ids stay where they are; a span that reaches over some is two.

    Reference: Lewis et al. 2019 (BART), section 2.2, arXiv:1910.13461.

    Args:
        share: of the ids that spans replace.
        mean_span: of their lengths.
        permute_sentences: whether there is noise of the first kind.
        deleted: share of the ids in that of the second; the paper's best model has none.

    Raises:
        ValueError: a number out of range.

    Example:

    >>> from keras_seqlm.data.draws import generator_of
    >>> from keras_seqlm.data.vocabulary import Vocabulary
    >>> from keras_seqlm.tokenizers import ByteTokenizer
    >>> tokenizer = ByteTokenizer().with_added_tokens(["[MASK]"], special=True)
    >>> noise = Denoising(share=0.1)
    >>> source, target = noise.pair(tokenizer.encode("It rains. We go."), generator_of(4, 0), Vocabulary(tokenizer))
    >>> tokenizer.decode(target), (source == 260).sum() >= 1
    ('It rains. We go.', np.True_)
    """

    share: float = 0.3
    mean_span: float = 3.0
    permute_sentences: bool = True
    deleted: float = 0.0

    name = "denoising"

    def __post_init__(self):
        share_checked("share", self.share, most=0.5)
        if not 1 <= self.mean_span <= 16:
            raise ValueError(f"`mean_span` must be from 1 to 16, got {self.mean_span!r}.")
        if not 0 <= self.deleted < 1:
            raise ValueError(f"`deleted` must be a share of at least 0 and below 1, got {self.deleted!r}.")

    @property
    def tokens(self):
        return (MASK,)

    def lengths(self, sequence_length, layout):
        # There are no more masks than ids that they replace, so that the source never is longer than the text.
        if layout == ENCODER_DECODER:
            found = Lengths(sequence_length - 1, sequence_length, sequence_length - 1)
        else:  # source, start, text, end, without the last
            found = Lengths((sequence_length - 1) // 2, sequence_length)
        if found.text < 2:
            raise ValueError(f"Rows of {sequence_length} tokens have no room for {self.name!r}: give longer ones.")
        return found

    def pair(self, ids, random, vocabulary):
        end = [] if vocabulary.end_id is None else [vocabulary.end_id]
        source = ids[_in_disorder(ids, random, vocabulary)] if self.permute_sentences else ids
        if self.deleted:
            ordinary = np.flatnonzero(~vocabulary.special[source])
            source = np.delete(source, ordinary[subset(len(ordinary), round(self.deleted * len(ordinary)), random)])
        source = self._with_holes(source, random, vocabulary)
        return source, np.concatenate([ids, end]).astype(np.int32)

    def _with_holes(self, ids, random, vocabulary):
        ordinary = np.flatnonzero(~vocabulary.special[ids])
        if not len(ordinary):
            return ids.astype(np.int32)
        count = max(1, round(self.share * len(ordinary)))
        sizes = poisson_lengths(self.mean_span, count, random)
        sizes = np.delete(sizes, np.flatnonzero(sizes == 0)[max(0, count - np.count_nonzero(sizes)) :])
        # How many of the ids that stay stand before each span: another number for each, so that none touches another.
        before = subset(len(ordinary) - count + 1, len(sizes), random)
        places = ordinary[np.repeat(before, sizes) + np.arange(count)]
        first = np.diff(places, prepend=-2) > 1  # of a span, or of its part behind a special id
        starts = np.cumsum(sizes) - sizes
        first[starts[sizes > 0]] = True
        empty = (before + starts)[sizes == 0][: count - np.count_nonzero(first)]
        masks = np.concatenate([places[first], np.append(ordinary, ordinary[-1] + 1)[empty]])
        gone = np.zeros(len(ids), bool)
        gone[places] = True
        # Keys that sort: an id at place p has 2p + 1, a mask before it 2p.
        keys = np.concatenate([2 * masks, 2 * np.flatnonzero(~gone) + 1])
        shown = np.concatenate([np.full(len(masks), vocabulary.id_of(MASK)), ids[~gone]])
        return shown[np.argsort(keys, kind="stable")].astype(np.int32)


def _in_disorder(ids, random, vocabulary):
    """Places of the ids after the sentences of each document have changed theirs."""
    special, stop = vocabulary.special[ids], vocabulary.ends_sentence[ids]
    after_special = np.concatenate([[True], special[:-1]])
    document = np.cumsum(special | after_special)  # a special id is a document of its own, and keeps its place
    sentence = np.cumsum(special | after_special | np.concatenate([[False], stop[:-1]])) - 1
    drawn = random.random(int(sentence[-1]) + 1)
    return np.lexsort((np.arange(len(ids)), drawn[sentence], document))
