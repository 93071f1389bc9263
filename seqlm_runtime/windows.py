"""Tokens of a text with their places in it, and the windows in which a model reads more of them than it has room for."""

import dataclasses

import numpy as np

from seqlm_runtime.tokenizers.tokenizer import as_text


@dataclasses.dataclass(frozen=True)
class PlacedTokens:
    """The ids of a text and the characters that each stands for."""

    text: str
    ids: np.ndarray  # int32 (time,)
    offsets: np.ndarray  # int32 (time, 2): code points of the text, the first and the one after the last

    def units(self):
        """The tokens of each unit, (first, stop): those that share a character, as its bytes do, are one."""
        if not len(self.ids):
            return []
        reach = np.maximum.accumulate(self.offsets[:, 1])
        firsts = np.flatnonzero(np.concatenate([[True], self.offsets[1:, 0] >= reach[:-1]])).tolist()
        return list(zip(firsts, [*firsts[1:], len(self.ids)], strict=True))

    def over(self, start, end):
        """The tokens that hold characters `start` to `end`: the first and the one after the last; None if there are none.

        White space counts only where there is nothing else: a token may begin with the space before its word.
        """
        start, end = trimmed(self.text, start, end)
        held = np.flatnonzero((self.offsets[:, 1] > start) & (self.offsets[:, 0] < end))
        return (int(held[0]), int(held[-1]) + 1) if len(held) else None

    def characters(self, first, stop):
        """(start, end) of the characters that tokens `first` to `stop` hold, without white space at either end."""
        part = self.offsets[first:stop]
        return trimmed(self.text, int(part[:, 0].min()), int(part[:, 1].max()))


@dataclasses.dataclass(frozen=True)
class Window:
    """A row of the model: ids that stand before, tokens `start` to `stop` of a text, an end."""

    inputs: dict  # token_ids, and token_types: 0 before, 1 in the text
    before: int  # ids before the text's
    part: tuple  # (start, stop)
    own: tuple  # (start, stop) of the tokens that this window decides about

    def place_of(self, token):
        """Where in the row a token of the text stands."""
        return self.before + token - self.part[0]

    @property
    def own_places(self):
        """The slice of the row that holds its own tokens."""
        return slice(self.place_of(self.own[0]), self.place_of(self.own[1]))


def windows_of(before, ids, end, room):
    """The `Window`s that a model with room for `room` ids reads a text in.

    Args:
        before, end: ids around every window.
        ids: of the text.
        room: ids of a row.

    Example:

    >>> [window.inputs["token_ids"].tolist() for window in windows_of([1], [5, 6, 7], [2], room=4)]
    [[1, 5, 6, 2], [1, 6, 7, 2]]
    """
    parts = windows(len(ids), room - len(before) - len(end))
    made = []
    for (start, stop), own in zip(parts, own_parts(parts), strict=True):
        row = np.concatenate([before, ids[start:stop], end]).astype("int32")
        if not len(row):
            raise ValueError("the text has no tokens, and the tokenizer neither bos nor eos")
        types = np.repeat(np.array([0, 1], "int32"), [len(before), len(row) - len(before)])
        made.append(Window({"token_ids": row, "token_types": types}, len(before), (start, stop), own))
    return made


def placed_tokens(tokenizer, text):
    """The `PlacedTokens` of a text, of bytes as far as they are UTF-8.

    >>> from seqlm_runtime.tokenizers import ByteTokenizer
    >>> tokens = placed_tokens(ByteTokenizer(), "né")
    >>> tokens.offsets.tolist(), tokens.units(), tokens.over(1, 2), tokens.characters(1, 2)
    ([[0, 1], [1, 2], [1, 2]], [(0, 1), (1, 3)], (1, 3), (1, 2))
    """
    if not isinstance(text, str | bytes):
        raise ValueError(f"expected a text, got {text!r:.40}")
    return PlacedTokens(as_text(text), *tokenizer.encode_with_offsets(text))


def trimmed(text, start, end):
    """(start, end) of what is left of a span without white space at either end; as it is if it has nothing else.

    >>> trimmed("at 8 pm ", 2, 8)
    (3, 7)
    """
    first, last = start, end
    while first < last and text[first].isspace():
        first += 1
    while first < last and text[last - 1].isspace():
        last -= 1
    return (first, last) if first < last else (start, end)


def windows(count, size):
    """Windows over `count` tokens, of `size` each, or of all where they fit; each shares half with the one before, or more.

    Returns:
        A list of (start, stop).

    Raises:
        ValueError: there is no room for a token.

    Example:

    >>> windows(10, 4), windows(3, 4)
    ([(0, 4), (2, 6), (4, 8), (6, 10)], [(0, 3)])
    """
    if size < 1:
        raise ValueError(f"a window needs room for a token, got {size}; use a model or a window that reads more tokens")
    if count <= size:
        return [(0, count)]
    starts = [*range(0, count - size, max(1, size // 2)), count - size]
    return [(start, start + size) for start in starts]


def own_parts(parts):
    """Of each window what it decides about: (start, stop), up to the middle of what it shares with its neighbours.

    So each token is decided about once, in the window where it stands furthest from a border.

    >>> own_parts([(0, 4), (2, 6), (4, 8)])
    [(0, 3), (3, 5), (5, 8)]
    """
    middles = [(before[1] + after[0]) // 2 for before, after in zip(parts, parts[1:], strict=False)]
    return list(zip([parts[0][0], *middles], [*middles, parts[-1][1]], strict=True))
