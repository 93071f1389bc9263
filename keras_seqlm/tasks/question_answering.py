"""Answers to questions that stand in a text, found where they stand; or that there is none."""

import dataclasses

import numpy as np

from keras_seqlm.metrics.answers import answer_f1, exact_match
from keras_seqlm.metrics.intervals import with_interval
from keras_seqlm.models import SpanFinder
from keras_seqlm.tasks.given_answers import answers_of, place_of
from keras_seqlm.tasks.row_task import RowTask, rows_given
from seqlm_runtime.row_tasks import places
from seqlm_runtime.row_tasks.places import NO_ANSWER
from seqlm_runtime.windows import placed_tokens, windows_of

WINDOW = 384  # ids of a row, of a model that has no limit of its own


@dataclasses.dataclass
class Answer:
    """What `QuestionAnswering.predict` says: `context[start:end]` is `text`."""

    text: str  # empty where there is no answer
    start: int  # in code points; 0 where there is no answer
    end: int
    score: float  # p(begin) p(end) in the window where it was found; of no answer the least that a window gives it


class QuestionAnswering(RowTask):
    """Finds the answer to a question in a context. Rows have `question`, `context` and `answers`, a list of {"text",
    "start"} in code points, as files of SQuAD's form give; none where the context does not answer it.

    Read is `bos question eos context eos`, with `token_types` of 1 from the context on (begun with `matches=True` the model
    is also shown which of its tokens the question has, see `SpanFinder`). A long context is read in windows
    that share half their tokens; in those without the answer the model learns to point at place 0. The answer is the span
    of highest log p(begin) + log p(end) over all windows. Where some training rows had no answer, there is none if place 0
    has more in each window. An answer that is not at its start counts as broken, unless its text stands in the context
    once: then it is repaired, and `notes` counts it, as it does answers widened to whole tokens.

    Args:
        model: a `SpanFinder`.
        tokenizer: of its backbone.
        unanswerable: whether it may say that there is no answer.
        longest: characters of an answer at most.
        window: ids of a row; default what the model reads, or 384.

    Example:

    >>> from keras_seqlm.models import RecurrentEncoder
    >>> from keras_seqlm.tokenizers import ByteTokenizer
    >>> rows = [{"question": "When?", "context": "It was in May.", "answers": [{"text": "May", "start": 10}]}]
    >>> encoder = RecurrentEncoder(260, cell="gru", size="nano")
    >>> task = QuestionAnswering.begin_with(rows, encoder, ByteTokenizer())
    >>> [answer] = task.predict([("When?", "It was in June.")])
    >>> answer.text == "It was in June."[answer.start : answer.end]
    True

    References: Rajpurkar et al. 2016, arXiv:1606.05250, and 2018, arXiv:1806.03822; Devlin et al. 2018, section 4.3.
    """

    model_class = SpanFinder
    fields = ("question", "context")
    chosen = ("window",)
    served = places.Answer

    def __init__(self, model, tokenizer, unanswerable=False, longest=None, window=None):
        super().__init__(model, tokenizer)
        most = model.max_length
        if window is not None and most is not None and window > most:
            raise ValueError(f"the model reads {most} tokens at most, and window is {window}")
        self.unanswerable, self.longest, self.window = bool(unanswerable), longest, window

    def settings(self):
        return {"unanswerable": self.unanswerable, "longest": self.longest, "window": self.window}

    @classmethod
    def settings_from(cls, rows):
        """Whether some rows have no answer, and the length of the longest."""
        sizes, unanswerable = [], False
        for _, row in rows:
            try:
                answers = answers_of(row)
            except ValueError:
                continue  # `examples` names it
            sizes += [len(one["text"]) for one in answers]
            unanswerable |= not answers
        if not sizes:
            raise ValueError(
                "no row has an answer; name the column that holds them: columns={'answers': 'spans'} (--columns answers=spans)"
            )
        return {"unanswerable": unanswerable, "longest": max(sizes)}

    @classmethod
    def figures_of(cls, settings, rows=()):
        """See `RowTask`."""
        return ("f1", "exact_match", *(["no_answer_accuracy"] if settings["unanswerable"] else []))

    @classmethod
    def head(cls, backbone, settings, **options):
        return SpanFinder(backbone, **options)

    @property
    def room(self):
        room = self.window or self.model.max_length or WINDOW
        return min(room, self.most_ids or room)

    def settings_served(self):
        return {"unanswerable": self.unanswerable, "longest": self.longest}

    def examples_of(self, row):
        """An example for each window; its target (2,) is the first and the last token of the answer, or 0 and 0."""
        tokens = placed_tokens(self.tokenizer, row["context"])
        held = self._held_by(row, tokens)
        examples = []
        for window in self._windows(row, tokens):
            target = [NO_ANSWER, NO_ANSWER]
            if held is not None and window.part[0] <= held[0] and held[1] <= window.part[1]:
                target = [window.place_of(held[0]), window.place_of(held[1] - 1)]
            examples.append((window.inputs, target))
        return examples

    def _held_by(self, row, tokens):
        """The tokens of the first of a row's answers that is in its context; None where there are no answers."""
        wrong = None
        for answer in answers_of(row):
            try:
                start, end, repaired = place_of(answer, tokens.text)
            except ValueError as error:
                wrong = wrong or error
                continue
            held = tokens.over(start, end)
            if held is None:
                wrong = ValueError(f"the tokenizer leaves out the answer {answer['text']!r:.40}")
                continue
            self.notes["repaired"] += repaired
            self.notes["widened"] += tokens.text[slice(*tokens.characters(*held))] != answer["text"].strip()
            return held
        if wrong is not None:
            raise wrong
        return None

    def predict(self, questions, batch_size=32):
        """Answer questions.

        Args:
            questions: a list of (question, context), or of rows with these fields.
            batch_size: windows of a call.

        Returns:
            A list of `Answer`.
        """
        rows = [
            one if isinstance(one, dict) else dict(zip(self.fields, one, strict=True)) for one in rows_given(questions)
        ]
        contexts = [placed_tokens(self.tokenizer, self._held(row)["context"]) for row in rows]
        cut = [self._windows(row, tokens) for row, tokens in zip(rows, contexts, strict=True)]
        logits = iter(self.outputs([window.inputs for windows in cut for window in windows], batch_size))
        return [
            self.answer(tokens, windows, [next(logits) for _ in windows])
            for windows, tokens in zip(cut, contexts, strict=True)
        ]

    def answer(self, tokens, windows, logits):
        """The `Answer` that the logits of a context's windows are, one (2, time) each."""
        return Answer(**places.best_answer(tokens, windows, logits, self.unanswerable, self.longest))

    def evaluate(self, rows, batch_size=32):
        """Exact match and F1 by SQuAD's rules (see `metrics.answers`), the best over a row's answers; where rows have none,
        also how often no answer was said rightly, of those rows and of the others.

        Returns:
            dict of `count`, each figure and its 95% interval, as `exact_match`, `exact_match_low`, `exact_match_high`.
        """
        kept = self.read(rows, lambda row: (row, [one["text"] for one in answers_of(row)]))
        found = self.predict([row for row, _ in kept], batch_size)
        figures = {"count": len(kept)}
        for name, rule in (("exact_match", exact_match), ("f1", answer_f1)):
            scores = np.array([rule(answers, one.text) for one, (_, answers) in zip(found, kept, strict=True)])
            figures |= with_interval(name, np.mean, scores)
        said = np.array([not one.text for one in found]) == np.array([not answers for _, answers in kept])
        return figures | (with_interval("no_answer_accuracy", np.mean, said) if self.unanswerable else {})

    def judged(self, rows, batch_size=32):
        """See `RowTask`: how probable each answer was, and whether it matches exactly."""
        kept = self.read(rows, lambda row: (row, [one["text"] for one in answers_of(row)]))
        found = self.predict([row for row, _ in kept], batch_size)
        right = [exact_match(answers, one.text) == 1 for one, (_, answers) in zip(found, kept, strict=True)]
        return {"confidence": [one.score for one in found], "right": right}

    def _windows(self, row, tokens):
        before, _ = places.question_ids(self.tokenizer, row["question"], self.room)
        eos = [] if self.tokenizer.eos_id is None else [self.tokenizer.eos_id]
        return windows_of(before, tokens.ids, eos, self.room)
