"""How texts of rows become what a model reads: one rule for training, the server and the phone."""

import dataclasses

import numpy as np

from seqlm_runtime.prompts import SPARE_IDS, byte_limits, part_of, read_ids
from seqlm_runtime.tokenizers.tokenizer import as_bytes
from seqlm_runtime.windows import placed_tokens

MOST_IDS = 4096  # of a text that an export reads, unless it was told another number


@dataclasses.dataclass
class Read:
    """A row as its model reads it."""

    inputs: list  # a dict for each row of the model: token_ids, and token_types where it reads some, int32 (time,)
    truncated: bool  # whether text was cut off
    about: tuple = ()  # what the answer is made of beside the model's numbers


class RowTask:
    """What a task's texts are to its model, and what the model's numbers say: on NumPy alone.

    A subclass has a `verb`, the `fields` of a row, and writes `read` and `answer`.

    Args:
        tokenizer: the model's.
        room: ids of a row of the model.
        reads: names of the model's inputs.
        most: ids that are read of a text that is cut into windows; None for all.
        settings: of the task, as its run folder has them.
    """

    verb = ""
    fields = ("text",)
    per_token = False  # whether the numbers have an axis of time, which answers look at up to a row's length

    def __init__(self, tokenizer, room, reads, most=None, **settings):
        self.tokenizer, self.room, self.reads, self.most, self.settings = tokenizer, room, tuple(reads), most, settings
        for name, value in settings.items():
            setattr(self, name, value)

    def optional(self):
        """Fields that a row may have beside `fields`."""
        return ()

    def read(self, row):
        """The `Read` of a row, a dict of its fields.

        Raises:
            ValueError: a field is missing, or no text.
        """
        raise TypeError(f"{type(self).__name__} must define read(row)")

    def answer(self, read, numbers):
        """What the model's numbers say of a row: a dict that JSON can hold.

        Args:
            read: what `read` gave.
            numbers: an array for each of its inputs.
        """
        raise TypeError(f"{type(self).__name__} must define answer(read, numbers)")

    def from_outputs(self, outputs, number, row):
        """The same from what a SavedModel answers.

        Args:
            outputs: dict of arrays, as its `serving_default` gives them.
            number: of the row among them.
            row: itself.
        """
        raise TypeError(f"{type(self).__name__} must define from_outputs(outputs, number, row)")

    def texts(self, rows):
        """The inputs of a SavedModel: dict of field to a list of texts."""
        return {name: [row.get(name) or "" for row in rows] for name in (*self.fields, *self.optional())}

    def row_of(self, given):
        """A row from a text, a tuple of texts in the order of the fields, or a dict; what is optional may be a list of texts."""
        names = (*self.fields, *self.optional())
        if isinstance(given, str | bytes):
            given = {names[0]: given}
        elif isinstance(given, tuple | list) and len(self.fields) <= len(given) <= len(names):
            given = dict(zip(names, given, strict=False))
        if not isinstance(given, dict):
            raise ValueError(f"expected a text, or a row with {', '.join(self.fields)}, got {given!r:.60}")
        missing = [name for name in self.fields if given.get(name) is None]
        if missing:
            raise ValueError(f"it has no {', '.join(missing)}; its fields are {', '.join(map(str, given)) or 'none'}")
        lists = {name: given[name] for name in self.optional() if isinstance(given.get(name), list | tuple)}
        given = {**given, **{name: ", ".join(map(str, texts)) for name, texts in lists.items()}}
        for name in names:
            if given.get(name) is not None and not isinstance(given[name], str | bytes):
                raise ValueError(f"expected a text in {name}, got {given[name]!r:.40}")
        return given

    def inputs(self, ids, types):
        """The model's inputs, those that it reads."""
        made = {"token_ids": np.asarray(ids, "int32")}
        if "token_types" in self.reads:
            made["token_types"] = np.asarray(types, "int32")
        return made


def ids_of(tokenizer, text, room):
    """The ids of one text, and whether it was cut: bos, its own as far as there is room, eos.

    Example:

    >>> from seqlm_runtime.tokenizers import ByteTokenizer
    >>> ids_of(ByteTokenizer(), "abc", 4)
    (array([  1, 101, 102,   2], dtype=int32), True)
    """
    if not isinstance(text, str | bytes):
        raise ValueError(f"expected a text, got {text!r:.40}")
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    ids, cut = read_ids(tokenizer, text, room - len(end), end=False)
    ids = np.concatenate([ids, np.asarray(end, "int32")])
    if not len(ids):
        raise ValueError("the text has no tokens, and the tokenizer neither bos nor eos")
    return ids, cut


def pair_ids(tokenizer, text, pair, room):
    """The ids of one text, or of two (an empty second one is none), their types, and whether one was cut.

    Read is bos, the first, eos, the second, eos; of the longer one its end goes first. Types are 1 in the second.
    """
    first, cut = ids_of(tokenizer, text, room)
    if not pair:
        return first, np.zeros(len(first), "int32"), cut
    second, also = ids_of(tokenizer, pair, room)
    second = second[tokenizer.bos_id is not None :]
    more = len(first) + len(second) - room
    if more > 0:
        ends = int(tokenizer.eos_id is not None)
        kept = min(len(first), max(room - len(second), room // 2))
        first, second = _cut(first, kept, ends), _cut(second, room - kept, ends)
    types = np.repeat(np.array([0, 1], "int32"), [len(first), len(second)])
    return np.concatenate([first, second]), types, cut or also or more > 0


def _cut(ids, size, ends):
    """The beginning of `ids`, of `size`, with the last `ends` of them at its end."""
    return ids if len(ids) <= size else np.concatenate([ids[: size - ends], ids[len(ids) - ends :]])


def first_ids(tokenizer, text, most):
    """The first ids of a text that stands before another, without bos, and whether more were there."""
    bos = int(tokenizer.bos_id is not None)
    ids, cut = read_ids(tokenizer, text, most + bos, end=False)
    return ids[bos:], cut


def placed_part(tokenizer, text, most=None):
    """The `PlacedTokens` of a text, of a long one those of its first `most` ids; and whether it was cut.

    It is cut by bytes before it is tokenized, as `prompts.read_ids` does.
    """
    cut = False
    if most is None:
        return placed_tokens(tokenizer, text), cut
    data = as_bytes(text)
    few, longest = byte_limits(tokenizer, most)
    if len(data) > longest:
        cut, tokens = True, placed_tokens(tokenizer, part_of(data, few, False))
        if len(tokens.ids) < most + SPARE_IDS:
            tokens = placed_tokens(tokenizer, part_of(data, longest, False))
    else:
        tokens = placed_tokens(tokenizer, text)
    if len(tokens.ids) > most:
        cut = True
        tokens = dataclasses.replace(tokens, ids=tokens.ids[:most], offsets=tokens.offsets[:most])
    return tokens, cut


def as_str(text):
    """A text that a SavedModel has answered."""
    return text.decode("utf-8", "replace")


def log_shares(odds):
    """ln softmax along the last axis, float64."""
    odds = np.asarray(odds, "float64")
    return odds - np.logaddexp.reduce(odds, axis=-1, keepdims=True)
