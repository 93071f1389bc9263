"""Spans of a text and what they are: names, dates, slots; or a tag for each word."""

import dataclasses

import numpy as np

from keras_seqlm.metrics.intervals import with_interval
from keras_seqlm.metrics.spans import (
    OUTSIDE,
    has_prefixes,
    span_counts,
    span_f1,
    span_precision,
    span_recall,
)
from keras_seqlm.models import Tagger
from keras_seqlm.tasks.labelled_spans import UNCOUNTED, labelled, numbers_of_tags, placed_text, units_of
from keras_seqlm.tasks.row_task import RowTask, rows_given
from seqlm_runtime.row_tasks.places import Tag, before_text, tagging, tags_of
from seqlm_runtime.windows import windows_of


@dataclasses.dataclass
class Span:
    """A part of a text: `text[start:end]` is `text`."""

    label: str
    start: int  # in code points
    end: int
    text: str
    score: float  # the geometric mean of the probabilities of its tags


@dataclasses.dataclass
class Tagging:
    """What `TokenTagging.predict` says of one text."""

    text: str
    spans: list  # of `Span`, in their order
    tokens: list  # the words that were given, or what the tokenizer took for one
    tags: list  # one a token


class TokenTagging(RowTask):
    """Finds the spans of a text. Rows have `text` and `spans`, a list of {"label", "start", "end"} in code points; or
    `tokens` and `tags`, as CoNLL files do: "B-label", "I-label" and "O" (IOBES and BILOU, too), else one tag a token.

    Tokens are joined by a space, or by none between two characters of Chinese or Japanese (`corpora.words.joined`). The
    model learns the tokenizer's tokens: of a span the first is B and the others I. A span whose end lies within a token is
    widened to it, and one whose tokens another has already is cut down to the rest, or lost: `notes` counts them. White
    space is no part of a span. Where words were given each is tagged by its first token, else the tokens that share a
    character by the first of them. A text longer than the model reads is read in windows that share half their tokens, and
    each token is tagged in the one where it stands furthest from a border.

    Args:
        model: a `Tagger`.
        tokenizer: of its backbone.
        labels: of spans, or tags.
        kind: "spans", or "tags" for one a word that names no span, as parts of speech.
        before: a field of the rows, a text or a list of texts, that is read before the text as a question would be; where a row
            has none, as an empty one.

    Example:

    >>> from keras_seqlm.models import RecurrentEncoder
    >>> from keras_seqlm.tokenizers import ByteTokenizer
    >>> rows = [{"text": "at 8 for 2", "spans": [{"label": "time", "start": 3, "end": 4}]}]
    >>> task = TokenTagging.begin_with(rows, RecurrentEncoder(260, cell="gru", size="nano"), ByteTokenizer())
    >>> task.tags, len(task.predict(["at 9"])[0].tags)
    (['O', 'B-time', 'I-time'], 4)

    References: Ramshaw and Marcus 1995, arXiv:cmp-lg/9505040 (spans as tags); Nakayama 2018, seqeval (the figures).
    """

    model_class = Tagger
    of_tokens = True
    served = Tag
    chosen = ("before",)

    def __init__(self, model, tokenizer, labels=(), kind="spans", before=None):
        super().__init__(model, tokenizer)
        if kind not in ("spans", "tags"):
            raise ValueError(f"kind must be 'spans' or 'tags', got {kind!r}")
        self.labels, self.kind, self.before = list(labels), kind, before
        self.tags = self.labels if kind == "tags" else tags_of(self.labels)
        if model.num_classes != len(self.tags):
            raise ValueError(f"the model has {model.num_classes} classes, and there are {len(self.tags)} tags")
        self._numbers = {tag: number for number, tag in enumerate(self.tags)}

    def settings(self):
        return {"labels": self.labels, "kind": self.kind, "before": self.before}

    @classmethod
    def settings_from(cls, rows):
        """Whether tags name spans, and all labels, sorted."""
        labels, tags = set(), set()
        for _, row in rows:
            labels.update(
                str(span["label"]) for span in row.get("spans") or () if isinstance(span, dict) and "label" in span
            )
            tags.update(map(str, row.get("tags") or ()))
        if tags and not has_prefixes(tags):
            if labels:
                raise ValueError(f"some rows have spans and others tags that name none, as {sorted(tags)[0]!r}")
            return {"labels": sorted(tags), "kind": "tags"}
        labels |= {tag[2:] for tag in tags if tag != OUTSIDE}
        if not labels:
            raise ValueError(
                "no row has a span or a tag; name the columns that hold them: columns={'tags': 'ner'} (--columns tags=ner)"
            )
        return {"labels": sorted(labels), "kind": "spans"}

    @classmethod
    def figures_of(cls, settings, rows=()):
        """See `RowTask`."""
        return ("accuracy",) if settings["kind"] == "tags" else ("span_f1", "precision", "recall", "accuracy")

    def class_names(self):
        """See `RowTask`: the tags; a label stands for its B and its I."""
        spans = {} if self.kind == "tags" else {label: [f"B-{label}", f"I-{label}"] for label in self.labels}
        return self.tags, spans

    @classmethod
    def head(cls, backbone, settings, **options):
        labels = len(settings["labels"])
        return Tagger(backbone, labels if settings["kind"] == "tags" else 1 + 2 * labels, **options)

    def examples_of(self, row):
        """An example for each window; a token has its target where `predict` would tag it."""
        tokens, words = placed_text(self.tokenizer, row)
        targets = self._tagged(tokens.offsets, row, tokens.text, words)[0]
        examples = []
        for window in self._windows(row, tokens):
            target = np.full(len(window.inputs["token_ids"]), UNCOUNTED, "int32")
            target[window.own_places] = targets[slice(*window.own)]
            examples.append((self._read(window), target))
        return examples

    def predict(self, texts, batch_size=32):
        """Find the spans of texts.

        Args:
            texts: a list of texts, or of rows with `text` or `tokens` (and the field `before`).
            batch_size: windows of a call.

        Returns:
            A list of `Tagging`.
        """
        rows = [{"text": one} if isinstance(one, str | bytes) else one for one in rows_given(texts)]
        placed = [placed_text(self.tokenizer, row) for row in rows]
        cut = [self._windows(row, tokens) for row, (tokens, _) in zip(rows, placed, strict=True)]
        logits = iter(self.outputs([self._read(window) for windows in cut for window in windows], batch_size))
        return [
            self.answer(tokens, words, np.concatenate([next(logits)[window.own_places] for window in windows]))
            for windows, (tokens, words) in zip(cut, placed, strict=True)
        ]

    def answer(self, tokens, words, logits):
        """The `Tagging` that the logits (time, tags) of a text's tokens are; `words` are their places, or None."""
        found = tagging(tokens, logits, self.tags, self.kind, units_of(tokens, words))
        return Tagging(**{**found, "spans": [Span(**span) for span in found["spans"]]})

    def evaluate(self, rows, batch_size=32):
        """The figures of labelled rows: span F1, precision and recall, exact and over all labels together as seqeval has
        them, and the share of tokens (of words, where they were given) whose tag is right.

        Returns:
            dict of `count`, each figure and its 95% interval, as `span_f1`, `span_f1_low`, `span_f1_high`.
        """
        kept = self.read(rows, self._truth)
        found = self.predict([row for row, *_ in kept], batch_size)
        right = [sum(map(str.__eq__, one.tags, tags)) for one, (_, tags, _) in zip(found, kept, strict=True)]
        counts = np.column_stack([right, [len(one.tags) for one in found]])
        figures = {"count": len(kept)}
        if self.kind == "spans":
            answers = [[(span.start, span.end, span.label) for span in one.spans] for one in found]
            counted = span_counts([spans for *_, spans in kept], answers)
            for name, metric in (("span_f1", span_f1), ("precision", span_precision), ("recall", span_recall)):
                figures |= with_interval(name, metric, counted)
        return figures | with_interval("accuracy", _share, counts)

    def judged(self, rows, batch_size=32):
        """See `RowTask`: the tags of tokens; of spans how probable each was, and whether it stands in the row."""
        kept = self.read(rows, self._truth)
        found = self.predict([row for row, *_ in kept], batch_size)
        tags = [
            pair for one, (_, tags, _) in zip(found, kept, strict=True) for pair in zip(tags, one.tags, strict=True)
        ]
        known = [[self._numbers[tag] for tag in pair] for pair in tags if set(pair) <= self._numbers.keys()]
        truth, predicted = np.array(known, "int64").reshape(-1, 2).T
        judged = {"names": self.tags, "truth": truth, "predicted": predicted}
        if self.kind == "tags":
            return judged
        pairs = [
            (span.score, (span.start, span.end, span.label) in set(spans))
            for one, (*_, spans) in zip(found, kept, strict=True)
            for span in one.spans
        ]
        return {**judged, "confidence": [score for score, _ in pairs], "right": [right for _, right in pairs]}

    def _truth(self, row):
        """The row, its tags (of words, or of what the tokenizer took for one), and its spans in characters."""
        tokens, words = placed_text(self.tokenizer, row)
        numbers, spans = self._tagged(units_of(tokens, words)[0], row, tokens.text, words)
        return row, [OUTSIDE if number < 0 else self.tags[number] for number in numbers], spans

    def _tagged(self, places, row, text, words):
        spans = labelled(row, text, words, self.kind, self.labels)
        return numbers_of_tags(places, spans, text, self._numbers, self.kind, self.notes), spans

    def _windows(self, row, tokens):
        question = (row.get(self.before) or "") if self.before else None
        if question is not None and not isinstance(question, str | bytes):
            question = ", ".join(map(str, question))
        before, _ = before_text(self.tokenizer, question, self.room // 2)
        eos = [] if self.tokenizer.eos_id is None else [self.tokenizer.eos_id]
        return windows_of(before, tokens.ids, eos, self.room)

    def _read(self, window):
        inputs = {name: ids for name, ids in window.inputs.items() if name in self.model.reads}
        if "token_types" in inputs and self.before is None:
            inputs["token_types"] = np.zeros_like(inputs["token_types"])  # as of a text that stands alone
        return inputs


def _share(counts):
    right, of = counts.sum(axis=0)
    return right / of if of else 0.0
