"""Batches of an objective: rows of a token stream, made into inputs and targets with noise that (seed, step) decide."""

from functools import cached_property

import numpy as np

from keras_seqlm.data.batches import Batches
from keras_seqlm.data.blocks import CausalBlocks
from keras_seqlm.data.causal import causal_blocks, stores_of
from keras_seqlm.data.draws import generator_of
from keras_seqlm.data.mixtures import MixedBlocks
from keras_seqlm.data.objectives import ENCODER, ENCODER_DECODER
from keras_seqlm.data.prepared import objective_of
from keras_seqlm.data.vocabulary import Vocabulary
from keras_seqlm.losses.targets import UNCOUNTED


class RowsOfText(CausalBlocks):
    """Where the rows of a stream begin that have no token in common; `complete` gives each token of it once."""

    _beyond = 0


class ObjectiveBlocks(Batches):
    """Batches of an objective, each a function of (seed, step): so that a run resumes at any step, by any processes.

    The text of a row is what `blocks` say, and its noise follows from the seed and the row's number in the run, so that
    every epoch sees other noise. `complete` blocks (validation) have the same noise in every pass; every token of the
    stream is in one row, and each batch has a sample weight for its rows, chosen so that the loss that Keras averages over batches is the
    mean over all targets that count.

    Inputs are a dict of int32 arrays: `token_ids` (batch, width), and for an encoder-decoder `source_ids` (batch, width)
    and `source_lengths` (batch,). Targets (batch, width) are -1 where none counts: padding, which stands on the right, is
    so everywhere. `lengths` (batch,) are there where an encoder would see padding: in validation. Widths are the same in
    all batches.

    Args:
        blocks: `RowsOfText`, or `MixedBlocks`, of rows as long as `objective.lengths(sequence_length, layout).text`.
        objective: what is learned of a row.
        tokenizer: of the stream, `prepared` for the objective.
        sequence_length: columns of the inputs, at most.
        layout: one of the objective's; None is its first.
        segment_ids: add `segment_ids` (batch, width), the documents of a row numbered from 1, where the objective keeps
            the places of the text.
        seed: of the noise.

    Attributes:
        tokens, num_tokens, content_hash: of the stream.
        num_targets: how many count in a pass of `complete` blocks; else None, as it differs from epoch to epoch.
        num_bytes: None: of a loss of some of the tokens, or of others than the text's, there are no bits per byte.

    Raises:
        ValueError: rows that are too short for the objective, a layout that it has not, segments that it cannot keep, a
            tokenizer without its special tokens.

    Example:

    >>> from keras_seqlm.data import Masked, prepared
    >>> from keras_seqlm.tokenizers import ByteTokenizer
    >>> tokenizer = prepared(ByteTokenizer(), "masked")
    >>> stream = tokenizer.encode("It was a dark night. " * 20)
    >>> train = ObjectiveBlocks(RowsOfText(stream, 16, 4), Masked(), tokenizer, 16)
    >>> x, y = train.batch(0)
    >>> x["token_ids"].shape, (y >= 0).sum(axis=1).tolist(), (x["token_ids"] != y)[y >= 0].any()
    ((4, 16), [2, 2, 2, 2], np.True_)
    """

    def __init__(self, blocks, objective, tokenizer, sequence_length, layout=None, *, segment_ids=False, seed=0):
        super().__init__(blocks.global_batch_size)
        self.objective = objective
        self.layout = objective.checked_layout(layout)
        self.lengths = objective.lengths(sequence_length, self.layout)
        if blocks.sequence_length != self.lengths.text:
            raise ValueError(
                f"`blocks` have rows of {blocks.sequence_length} tokens, and {objective.name!r} takes {self.lengths.text} for "
                f"inputs of {sequence_length}: make them of that `sequence_length`."
            )
        if segment_ids and (not objective.keeps_places or self.layout == ENCODER_DECODER):
            raise ValueError(
                f"The objective {objective.name!r} (layout {self.layout!r}) moves the text, so its documents have no "
                "`segment_ids`: leave them out."
            )
        self.blocks, self.seed, self.segment_ids, self.complete = blocks, seed, bool(segment_ids), blocks.complete
        self.vocabulary = Vocabulary(tokenizer)
        for token in objective.tokens:
            self.vocabulary.id_of(token)
        self.vocabulary_size = tokenizer.vocabulary_size
        if isinstance(blocks, MixedBlocks):
            self.weights, self.epochs = blocks.weights, blocks.epochs

    def __len__(self):
        return len(self.blocks)

    @property
    def tokens(self):
        return self.blocks.tokens

    @property
    def num_tokens(self):
        return self.blocks.num_tokens

    @property
    def content_hash(self):
        return self.blocks.content_hash

    @cached_property
    def num_targets(self):
        return sum(self._counts) if self.complete else None

    @cached_property
    def _counts(self):
        """Targets of each batch of a pass, in all processes together."""
        everyone = range(self.global_batch_size)
        return [
            sum(int((target != UNCOUNTED).sum()) for _, target, _ in self._examples(step, everyone))
            for step in range(len(self))
        ]

    num_bytes = None

    def batch(self, step):
        """Return batch `step`, counted from the first of epoch 0.

        Returns:
            `(x, y)`, or `(x, y, sample_weight)` if `complete`: a dict of int32 arrays, int32 (batch, width), and float32
            (batch,).
        """
        if step < 0:
            raise ValueError(f"Steps are counted from 0, received step={step}.")
        step = int(step) % len(self) if self.complete else int(step)
        shape = (self.batch_size, self.lengths.tokens)
        x, y = {"token_ids": np.zeros(shape, np.int32)}, np.full(shape, UNCOUNTED, np.int32)
        if self.layout == ENCODER_DECODER:
            x["source_ids"] = np.zeros((self.batch_size, self.lengths.source), np.int32)
            x["source_lengths"] = np.zeros(self.batch_size, np.int32)
        if self.segment_ids:
            x["segment_ids"] = np.zeros(shape, np.int32)
        lengths = np.zeros(self.batch_size, np.int32)
        for row, (inputs, targets, start) in enumerate(self._examples(step, range(self.global_batch_size)[self._rows])):
            for name, ids in inputs.items():
                x[name][row, : len(ids)] = ids
            lengths[row] = size = len(inputs["token_ids"])
            y[row, : len(targets)] = targets
            if "source_ids" in inputs:
                x["source_lengths"][row] = len(inputs["source_ids"])
            if self.segment_ids:
                x["segment_ids"][row, :size] = self._documents(start, start + size)
        if self.layout == ENCODER and self.complete:
            x["lengths"] = lengths
        if not self.complete:
            return x, y
        weight = len(self) * self._counts[step] / max(1, self.num_targets)
        return x, y, np.full(self.batch_size, weight, np.float32)

    def _examples(self, step, rows):
        """Inputs, targets and first token of the rows of a batch, up to the stream's end."""
        for row, start in zip(rows, self._starts_of(step)[list(rows)].tolist(), strict=True):
            ids = self.tokens[start : start + self.lengths.text]
            if len(ids):
                random = generator_of(self.seed, step * self.global_batch_size + row)
                yield *self.objective.example(ids, random, self.vocabulary, self.layout), start

    def _starts_of(self, step):
        """First token of each row of a whole batch."""
        return self.blocks._starts(step)

    def _documents(self, start, stop):
        documents = getattr(self.tokens, "segment_ids", None)
        return np.ones(stop - start, np.int32) if documents is None else documents(start, stop)


def objective_blocks(
    files,
    tokenizer,
    objective,
    sequence_length,
    batch_size,
    *,
    layout=None,
    seed=0,
    segment_ids=False,
    validation=None,
    validation_fraction=0.1,
    shuffle=True,
    **reading,
):
    """Make training and validation batches of text files for an objective, as `causal_blocks` does for the next token.

    Args:
        files: see `causal_blocks`; also a dict of several corpora to their weights.
        tokenizer: of `prepared(tokenizer, objective)`, for which the model is built, too.
        objective: "causal", "masked", "span", "denoising", "prefix", "fim", or an object: `Masked(whole_words=True)`,
            `SpanCorruption(...)`, `Denoising(...)`, `PrefixLM()`, `FillInTheMiddle(...)`.
        sequence_length: columns of the inputs, at most.
        batch_size: rows of a batch.
        layout: for what model: "encoder" (masked), "causal" (span, denoising, prefix, fim), "encoder-decoder" (span,
            denoising, prefix). Default "encoder-decoder" for span and denoising, and else the first that there is.
        seed, validation, validation_fraction, shuffle: see `causal_blocks`; the seed decides the noise, too. The noise of
            validation is always the same.
        segment_ids: packed documents do not see each other (causal, masked, and prefix for a causal model).
        **reading: `text_field`, `tolerance` and `cache_dir` of `causal_blocks`.

    Returns:
        `(train, validation)`, two `ObjectiveBlocks`; validation is None if there is none.

    Raises:
        FileNotFoundError: if a named file is absent.
        ValueError: as `causal_blocks` and `ObjectiveBlocks`.

    Example:

    >>> import pathlib, tempfile
    >>> from keras_seqlm.data import prepared
    >>> from keras_seqlm.tokenizers import ByteTokenizer
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "night.txt").write_text("It was a dark night. " * 100)
    >>> tokenizer = prepared(ByteTokenizer(), "span")
    >>> train, validation = objective_blocks(folder, tokenizer, "span", 32, batch_size=4, cache_dir=folder)
    >>> x, y = train[0]
    >>> {name: array.shape for name, array in x.items()}, y.shape
    ({'token_ids': (4, 9), 'source_ids': (4, 32), 'source_lengths': (4,)}, (4, 9))
    """
    given = {"seed": seed, "validation": validation, "validation_fraction": validation_fraction, "shuffle": shuffle}
    if objective == "causal":
        if layout not in (None, "causal"):
            raise ValueError(f"`layout` of the objective 'causal' is 'causal', got {layout!r}.")
        return causal_blocks(files, tokenizer, sequence_length, batch_size, segment_ids=segment_ids, **given, **reading)
    objective = objective_of(objective)
    layout = objective.checked_layout(layout)
    text = objective.lengths(sequence_length, layout).text
    for token in objective.tokens:  # before the text is read
        Vocabulary(tokenizer).id_of(token)
    stores, weights, held = stores_of(files, tokenizer, validation, validation_fraction, **reading)
    if weights:
        blocks = MixedBlocks(stores, weights, text, batch_size, seed=seed, shuffle=shuffle)
    else:
        blocks = RowsOfText(stores, text, batch_size, seed=seed, shuffle=shuffle)
    rows = {"layout": layout, "segment_ids": segment_ids}
    train = ObjectiveBlocks(blocks, objective, tokenizer, sequence_length, seed=seed, **rows)
    if held is None:
        return train, None
    blocks = RowsOfText(held, text, batch_size, complete=True)
    return train, ObjectiveBlocks(blocks, objective, tokenizer, sequence_length, seed="validation", **rows)
