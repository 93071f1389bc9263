"""Span corruption: spans of a text are left out, and written down one after the other."""

import dataclasses

import numpy as np

from keras_seqlm.data.draws import parts_of, subset
from keras_seqlm.data.objectives import ENCODER_DECODER, Lengths, SourceTarget, replaced, runs_of, share_checked


@dataclasses.dataclass(frozen=True)
class SpanCorruption(SourceTarget):
    """Spans of the text are each replaced by a sentinel; the target is each sentinel with its span, and the end.

        text    It was a dark night and the wind was loud
        source  It was <extra_id_0> night and the <extra_id_1> loud
        target  <extra_id_0> a dark <extra_id_1> wind was, and eos (of a tokenizer without one, <extra_id_2>)

    Of n ids round(share * n) are left out, at least one, in round(that / mean_span) spans: both these and what stays are
    cut in so many parts, each way of cutting as probable as the others; what stays comes first, so no two spans touch.
    Special ids stay in the source: they are not counted, and a span that reaches over some is two. Of spans that are
    then more than half more than they should be, some stay text.

    Reference: Raffel et al. 2020 (T5), section 3.1.4 and 3.3.4, arXiv:1910.10683.

    Args:
        share: of the ids that are left out.
        mean_span: ids of a span, on average.
        sentinels: how many <extra_id_N> the tokenizer has.

    Raises:
        ValueError: a number out of range; from `lengths`: a row needs more sentinels.

    Example:

    >>> from keras_seqlm.data.draws import generator_of
    >>> from keras_seqlm.data.prepared import prepared
    >>> from keras_seqlm.data.vocabulary import Vocabulary
    >>> from keras_seqlm.tokenizers import ByteTokenizer
    >>> rule = SpanCorruption(sentinels=4)
    >>> tokenizer = prepared(ByteTokenizer(), rule)
    >>> source, target = rule.pair(tokenizer.encode("a dark night"), generator_of(2, 0), Vocabulary(tokenizer))
    >>> tokenizer.decode(source), tokenizer.decode(target), source[source > 259].tolist(), target[target > 259].tolist()
    ('a dark nig', 'ht', [260], [260])
    """

    share: float = 0.15
    mean_span: float = 3.0
    sentinels: int = 100

    name = "span"

    def __post_init__(self):
        share_checked("share", self.share, most=0.5)
        if not self.mean_span >= 1 or self.sentinels < 2:
            raise ValueError(
                f"`mean_span` must be at least 1 and `sentinels` at least 2, got {self.mean_span!r}, {self.sentinels!r}."
            )

    @property
    def tokens(self):
        return tuple(f"<extra_id_{number}>" for number in range(self.sentinels))

    def lengths(self, sequence_length, layout):
        sizes = range(sequence_length, 1, -1)
        if layout == ENCODER_DECODER:  # each span is one id at least, so that the source never is longer than the text
            text = next((n for n in sizes if self._target(n) <= sequence_length), 0)
            found = Lengths(text, self._target(text), text)
        else:  # source, start, target, end, without the last
            fits = (n for n in sizes if n + 2 * self._most_spans(n) + 1 <= sequence_length)
            found = Lengths(next(fits, 0), sequence_length)
        if found.text < 2:
            raise ValueError(f"Rows of {sequence_length} tokens have no room for {self.name!r}: give a longer one.")
        if self._most_spans(found.text) >= self.sentinels:
            raise ValueError(
                f"A row of {found.text} tokens has up to {self._most_spans(found.text)} spans, and there are {self.sentinels} "
                "sentinels, one of them for the end: give more (`sentinels`), longer spans (`mean_span`), or shorter rows."
            )
        return found

    def pair(self, ids, random, vocabulary):
        ordinary = np.flatnonzero(~vocabulary.special[ids])
        left_out, runs = np.zeros(len(ids), bool), np.zeros((0, 2), np.int64)
        if len(ordinary) > 1:
            count = self._left_out(len(ordinary))
            spans = min(self._spans(count), len(ordinary) - count)
            sizes = np.stack([parts_of(len(ordinary) - count, spans, random), parts_of(count, spans, random)], axis=1)
            left_out[ordinary[np.repeat(np.tile([False, True], spans), sizes.ravel())]] = True
            runs = runs_of(left_out)
            if len(runs) > (most := self._most_spans(len(ids))):
                runs = runs[subset(len(runs), most, random)]
        sentinels = [vocabulary.id_of(f"<extra_id_{number}>") for number in range(len(runs) + 1)]
        end = sentinels[-1] if vocabulary.end_id is None else vocabulary.end_id
        spans = [part for one, (start, stop) in zip(sentinels, runs, strict=False) for part in ([one], ids[start:stop])]
        return replaced(ids, runs, sentinels[:-1]), np.concatenate([*spans, [end]]).astype(np.int32)

    def _left_out(self, size):
        return min(max(1, round(self.share * size)), max(1, size - 1))

    def _target(self, size):
        return self._left_out(size) + self._most_spans(size) + 1

    def _spans(self, count):
        return min(max(1, round(count / self.mean_span)), count)

    def _most_spans(self, size):
        spans = self._spans(self._left_out(size))
        return spans + (spans + 1) // 2
