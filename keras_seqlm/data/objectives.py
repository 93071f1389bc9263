"""What is learned of a row of text: objectives as pure functions of its ids and of random numbers."""

import dataclasses
from typing import NamedTuple

import numpy as np

from keras_seqlm.losses.targets import UNCOUNTED

ENCODER, CAUSAL, ENCODER_DECODER = "encoder", "causal", "encoder-decoder"


class Lengths(NamedTuple):
    """Sizes of a row: ids of the text that it takes, and the widths of what the model reads."""

    text: int
    tokens: int
    source: int | None = None


@dataclasses.dataclass(frozen=True)
class Objective:
    """What turns a row of text into inputs and targets; a subclass is a frozen dataclass of its numbers.

    A subclass says its `name`, its `layouts`, the special `tokens` that the tokenizer must have, how long a row is
    (`lengths`) and what becomes of it (`example`).
    """

    name = ""  # as `--objective` has it
    layouts = (CAUSAL,)  # the first one is the default
    keeps_places = False  # whether the inputs are the ids of the text, each at its place

    @property
    def tokens(self):
        """The special tokens that the tokenizer must have, a tuple."""
        return ()

    def checked_layout(self, layout):
        """`layout`, or the default.

        Raises:
            ValueError: the objective has no such layout.
        """
        layout = self.layouts[0] if layout is None else layout
        if layout not in self.layouts:
            raise ValueError(
                f"`layout` of the objective {self.name!r} must be one of {list(self.layouts)}, got {layout!r}."
            )
        return layout

    def lengths(self, sequence_length, layout):
        """The `Lengths` of rows whose inputs have `sequence_length` columns at most."""
        raise TypeError(f"{type(self).__name__} must define lengths(sequence_length, layout)")

    def example(self, ids, random, vocabulary, layout):
        """What the model reads of a row of text, and its targets.

        Args:
            ids: int32 (time,), at most `lengths(...).text` of them.
            random: a `numpy.random.Generator`, of which only `random()` is asked (see `data.draws`).
            vocabulary: a `Vocabulary`.
            layout: one of `layouts`.

        Returns:
            A dict of int32 arrays, `token_ids` and, where there is a source, `source_ids`; and the targets of `token_ids`,
            int32, -1 where none counts.
        """
        raise TypeError(f"{type(self).__name__} must define example(ids, random, vocabulary, layout)")


class SourceTarget(Objective):
    """An objective that asks for a target, a sequence, after a source: a subclass writes `pair` and `lengths`.

    Layouts: for an encoder-decoder, `source_ids` and the target moved one place to the right behind `vocabulary.start_id`.
    For a causal model one sequence, source + start + target, of which the target alone counts.
    """

    layouts = (ENCODER_DECODER, CAUSAL)
    has_start = True  # whether something stands between source and target in one sequence

    def pair(self, ids, random, vocabulary):
        """The source and the target of a row, two int32 arrays."""
        raise TypeError(f"{type(self).__name__} must define pair(ids, random, vocabulary)")

    def example(self, ids, random, vocabulary, layout):
        source, target = self.pair(ids, random, vocabulary)
        start = np.array([vocabulary.start_id], np.int32)
        if layout == ENCODER_DECODER:
            return {"source_ids": source, "token_ids": np.concatenate([start, target])[: len(target)]}, target
        before = np.concatenate([source, start]) if self.has_start else source
        return {"token_ids": np.concatenate([before, target])[:-1]}, after(before, target)


def after(before, target):
    """Targets of the sequence `before` + `target`, one place further, of which those of `target` count."""
    return np.concatenate([np.full(len(before) - 1, UNCOUNTED, np.int32), target])


def share_checked(name, value, most=1.0):
    """Refuse a share that is not above 0 and at most `most`."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= most:
        raise ValueError(f"`{name}` must be a number above 0 and at most {most:g}, got {value!r}.")


def replaced(ids, runs, put):
    """`ids` with each run, a pair (start, stop) of places, replaced by one id of `put`; in order, not touching each other."""
    pieces, place = [], 0
    for (start, stop), one in zip(runs, put, strict=True):
        pieces += [ids[place:start], [one]]
        place = stop
    return np.concatenate([*pieces, ids[place:]]).astype(np.int32)


def runs_of(chosen):
    """The runs of True in a bool (time,), as pairs (start, stop): int64 (runs, 2).

    >>> runs_of(np.array([True, False, True, True])).tolist()
    [[0, 1], [2, 4]]
    """
    edges = np.diff(np.concatenate([[0], chosen.astype(np.int8), [0]]))
    return np.stack([np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)], axis=1)
