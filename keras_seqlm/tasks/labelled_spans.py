"""What rows say about their texts: spans of characters with labels, and the tags that they give to tokens."""

import numpy as np

from keras_seqlm.corpora.words import joined
from keras_seqlm.metrics.spans import has_prefixes, spans_of_tags
from seqlm_runtime.windows import placed_tokens, trimmed

OUTSIDE_NUMBER, UNCOUNTED = 0, -1


def placed_text(tokenizer, row):
    """The `PlacedTokens` of a row with `text` or `tokens`, and the places of the latter, (start, end) each, or None.

    Raises:
        ValueError: a row with neither.
    """
    words = row.get("tokens")
    if words is None and row.get("text") is None:
        raise ValueError(f"it has neither text nor tokens; its fields are {', '.join(map(str, row)) or 'none'}")
    text, places = (row["text"], None) if words is None else joined(words)
    return placed_tokens(tokenizer, text), places


def units_of(tokens, words):
    """The places of what has a tag of its own, the words or what the tokenizer took for one; and the token that speaks for
    each, its first, or None where the tokenizer left all of it out."""
    if words is not None:
        held = [tokens.over(start, end) for start, end in words]
        return words, [None if part is None else part[0] for part in held]
    units = tokens.units()
    return [tokens.characters(*unit) for unit in units], [first for first, _ in units]


def labelled(row, text, words, kind, labels):
    """What a row says is in its text: (start, end, label) in characters, in their order.

    Args:
        row: with `tags`, one a word, or else `spans`.
        text: the whole.
        words: their places, or None.
        kind: "spans", or "tags" that name none.
        labels: those that are known.

    Raises:
        ValueError: it says nothing, or what cannot be.
    """
    if words is None:
        if row.get("spans") is None or kind == "tags":
            wanted = "spans" if kind == "spans" else "tokens and tags"
            raise ValueError(f"it has no {wanted}; its fields are {', '.join(map(str, row))}")
        spans = [_checked(span, text) for span in row["spans"]]
    else:
        tags = [str(tag) for tag in row.get("tags") or ()]
        if len(tags) != len(words):
            raise ValueError(f"it has {len(words)} tokens and {len(tags)} tags")
        if kind == "spans" and not has_prefixes(tags):
            raise ValueError(f"tags must be O, B-label or I-label, got {sorted(set(tags))[:5]}")
        parts = spans_of_tags(tags) if kind == "spans" else [(i, i + 1, tag) for i, tag in enumerate(tags)]
        spans = [(words[first][0], words[stop - 1][1], label) for first, stop, label in parts]
    unknown = {label for *_, label in spans} - set(labels)
    if unknown:
        raise ValueError(f"the label {sorted(unknown)[0]!r} is not among the {len(labels)} that the model has")
    return sorted((*trimmed(text, start, end), label) for start, end, label in spans)


def numbers_of_tags(places, spans, text, numbers, kind, notes):
    """The tag of each part of a text, by its number: int (parts,), -1 where it has none.

    Args:
        places: (parts, 2), characters of each.
        spans: as `labelled` gives them; of two over one part the earlier has it.
        text: the whole.
        numbers: dict of tags to numbers.
        kind: "spans", of which the first part is B and the others I, or "tags".
        notes: a Counter, to which is added what is widened to whole parts, and what another span left nothing, or not all.

    Example:

    >>> import collections
    >>> numbers = {"O": 0, "B-time": 1, "I-time": 2}
    >>> at = [(0, 2), (2, 5), (5, 8)]
    >>> numbers_of_tags(at, [(3, 8, "time")], "at 8 pm.", numbers, "spans", collections.Counter()).tolist()
    [0, 1, 2]
    """
    places = np.asarray(places, int).reshape(-1, 2)
    found = np.full(len(places), OUTSIDE_NUMBER if kind == "spans" else UNCOUNTED)
    free = np.ones(len(places), bool)
    for start, end, label in spans:
        held = np.flatnonzero((places[:, 1] > start) & (places[:, 0] < end))
        kept = held[free[held]]
        if len(held):
            reached = trimmed(text, int(places[held, 0].min()), int(places[held, 1].max()))
            notes["widened"] += reached != (start, end)
        notes["lost"] += not len(kept)
        notes["cut down"] += 0 < len(kept) < len(held)
        free[kept] = False
        found[kept] = numbers[label if kind == "tags" else f"I-{label}"]
        if kind == "spans":
            found[kept[:1]] = numbers[f"B-{label}"]
    return found


def _checked(span, text):
    try:
        start, end, label = int(span["start"]), int(span["end"]), str(span["label"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"a span must be {{'label', 'start', 'end'}}, got {span!r:.60}") from error
    if not 0 <= start < end <= len(text):
        raise ValueError(f"the span {start} to {end} does not lie in the text, which has {len(text)} characters")
    return start, end, label
