"""Tasks that say where in a text something stands: spans with labels, and answers; long texts are read in windows."""

import numpy as np

from seqlm_runtime.row_tasks.reading import Read, RowTask, as_str, first_ids, log_shares, placed_part
from seqlm_runtime.spans import OUTSIDE, spans_of_tags
from seqlm_runtime.tokenizers.tokenizer import as_text
from seqlm_runtime.windows import trimmed, windows_of

QUESTION_SHARE = 3  # a third of a row is a question's at most
NO_ANSWER = 0  # the place of a row that says so


class Tag(RowTask):
    """The spans of a text, or a tag for each of its tokens; settings: `labels`, `kind` "spans" or "tags", and `before`, the
    field that is read before the text, or None.
    """

    verb, per_token = "tag", True
    labels, kind, before = (), "spans", None

    def optional(self):
        return () if self.before is None else (self.before,)

    @property
    def tags(self):
        """The tags by number."""
        return list(self.labels) if self.kind == "tags" else tags_of(self.labels)

    def read(self, row):
        tokens, cut = placed_part(self.tokenizer, row["text"], self.most)
        before, also = before_text(
            self.tokenizer, (row.get(self.before) or "") if self.before else None, self.room // 2
        )
        windows = windows_of(before, tokens.ids, _end(self.tokenizer), self.room)
        inputs = []
        for window in windows:
            types = window.inputs["token_types"]  # 0 of a text that stands alone
            inputs.append(self.inputs(window.inputs["token_ids"], types if self.before else np.zeros_like(types)))
        return Read(inputs, cut or also, (tokens, windows, as_text(row["text"])))

    def answer(self, read, numbers):
        tokens, windows, text = read.about
        logits = np.concatenate([odds[window.own_places] for window, odds in zip(windows, numbers, strict=True)])
        return {**tagging(tokens, logits, self.tags, self.kind), "text": text}

    def texts(self, rows):
        name = self.before
        return {
            "text": [row["text"] for row in rows],
            **({"before": [row.get(name) or "" for row in rows]} if name else {}),
        }

    def from_outputs(self, outputs, number, row):
        spans = []
        if self.kind == "spans":
            names = ("labels", "starts", "ends", "texts", "scores")
            count = outputs["num_spans"][number]
            for label, start, end, text, score in zip(
                *(outputs[f"span_{name}"][number][:count] for name in names), strict=True
            ):
                span = {"label": as_str(label), "start": int(start), "end": int(end)}
                spans.append({**span, "text": as_str(text), "score": float(score)})
        count = outputs["num_tokens"][number]
        tokens, tags = ([as_str(text) for text in outputs[name][number][:count]] for name in ("tokens", "tags"))
        return {"text": as_text(row["text"]), "spans": spans, "tokens": tokens, "tags": tags}


def tags_of(labels):
    """The tags of spans with these labels, by their numbers.

    >>> tags_of(["time"])
    ['O', 'B-time', 'I-time']
    """
    return [OUTSIDE, *(f"{prefix}-{label}" for label in labels for prefix in "BI")]


def before_text(tokenizer, text, most):
    """What is read before a text: bos, and of another text (an empty one, too) its first `most` ids and eos; and whether that
    was cut."""
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    if text is None:
        return bos, False
    ids, cut = first_ids(tokenizer, text, most)
    return [*bos, *ids, *_end(tokenizer)], cut


def _end(tokenizer):
    return [] if tokenizer.eos_id is None else [tokenizer.eos_id]


def tagging(tokens, logits, tags, kind, units=None):
    """What the logits (time, tags) of a text's tokens say: dict of `text`, `spans`, `tokens` and `tags`.

    Args:
        tokens: `PlacedTokens`.
        tags: by number.
        kind: "spans" or "tags".
        units: the places of what has a tag, (start, end) each, and the token that speaks for each, or None; those that share
            a character are one unless it is given.
    """
    if units is None:
        parts = tokens.units()
        units = [tokens.characters(*part) for part in parts], [first for first, _ in parts]
    places, speakers = units
    log_p = log_shares(logits)
    numbers = [None if token is None else int(np.argmax(log_p[token])) for token in speakers]
    found = [OUTSIDE if number is None else tags[number] for number in numbers]
    pairs = zip(speakers, numbers, strict=True)
    sure = [log_p[token, number] if token is not None else 0 for token, number in pairs]
    spans = []
    for first, stop, label in spans_of_tags(found) if kind == "spans" else ():
        start, end = trimmed(tokens.text, int(places[first][0]), int(places[stop - 1][1]))
        score = float(np.exp(np.mean(sure[first:stop])))
        spans.append({"label": label, "start": start, "end": end, "text": tokens.text[start:end], "score": score})
    words = [tokens.text[start:end] for start, end in places]
    return {"text": tokens.text, "spans": spans, "tokens": words, "tags": found}


class Answer(RowTask):
    """The answer to a question that stands in a context; settings: `unanswerable` and `longest`, characters of an answer."""

    verb, fields, per_token = "answer", ("question", "context"), True
    unanswerable, longest = False, None

    def read(self, row):
        tokens, cut = placed_part(self.tokenizer, row["context"], self.most)
        before, also = question_ids(self.tokenizer, row["question"], self.room)
        windows = windows_of(before, tokens.ids, _end(self.tokenizer), self.room)
        inputs = [self.inputs(window.inputs["token_ids"], window.inputs["token_types"]) for window in windows]
        return Read(inputs, cut or also, (tokens, windows))

    def answer(self, read, numbers):
        return best_answer(*read.about, numbers, self.unanswerable, self.longest)

    def from_outputs(self, outputs, number, row):
        start, end = (int(outputs[name][number]) for name in ("start", "end"))
        score = float(outputs["score"][number])
        return {"text": as_str(outputs["answer"][number]), "start": start, "end": end, "score": score}


def question_ids(tokenizer, question, room):
    """What stands before a context: bos, the question's first ids, eos; and whether it was cut."""
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ids, cut = first_ids(tokenizer, question, max(1, room // QUESTION_SHARE))
    if not len(bos) + len(ids) + len(_end(tokenizer)):
        raise ValueError("the question has no tokens, and the tokenizer neither bos nor eos")
    return [*bos, *ids, *_end(tokenizer)], cut


def best_answer(tokens, windows, logits, unanswerable, longest):
    """The span of highest log p(begin) + log p(end) over windows, one (2, time) each: dict of `text`, `start`, `end`, `score`."""
    best, nothing = (-np.inf, 0, 0), np.inf
    for log_p, first, sums in spans_by_window(tokens, windows, logits, longest):
        nothing = min(nothing, log_p)
        if sums.size and sums.max() > best[0]:
            begin, end = divmod(int(np.argmax(sums)), sums.shape[1])
            best = sums[begin, end], first + begin, first + end
    score, first, last = best
    if score == -np.inf or (unanswerable and nothing >= score):
        return {"text": "", "start": 0, "end": 0, "score": float(np.exp(nothing))}
    start, end = tokens.characters(first, last + 1)
    return {"text": tokens.text[start:end], "start": start, "end": end, "score": float(np.exp(score))}


def spans_by_window(tokens, windows, logits, longest):
    """Of each window log p(no answer), its first token, and log p(begin) + log p(end) of its spans, (time, time); see
    `best_answer`."""
    for window, odds in zip(windows, logits, strict=True):
        log_p = log_shares(odds)
        first, stop = window.part
        sums = np.empty((0, 0))
        if first < stop:
            begin, end = log_p[:, window.place_of(first) : window.place_of(stop)]
            possible = possible_spans(tokens.offsets[first:stop], longest)
            sums = np.where(possible, begin[:, None] + end[None], -np.inf)
        yield log_p[0, NO_ANSWER] + log_p[1, NO_ANSWER], first, sums


def possible_spans(offsets, longest):
    """Bool (time, time): whether an answer may go from a token to another, not backwards and not too long."""
    possible = np.triu(np.ones((len(offsets), len(offsets)), bool))
    if longest is not None:
        # One token is always possible; of several, those within `longest`, and the space that a token may begin with.
        sizes = offsets[None, :, 1] - offsets[:, None, 0]
        possible &= (sizes <= longest + 1) | np.eye(len(offsets), dtype=bool)
    return possible
