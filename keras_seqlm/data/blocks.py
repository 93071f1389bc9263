"""Blocks of a token stream for next-token training, each batch a pure function of (seed, step)."""

import numpy as np

from keras_seqlm.data.batches import Batches
from keras_seqlm.data.permutation import permute, stream_key


class CausalBlocks(Batches):
    """Batches of blocks cut out of a token stream; targets are the tokens one place further.

    `batch(step)` counts steps over all epochs and depends on nothing but the arguments here, so a run resumes at any step.
    `dataset[i]` is batch `i` of the current epoch; the epoch is counted on when Keras ends one. Note that `fit` permutes
    the batches within an epoch with Python's `random` unless it is told `shuffle=False`. For the exact order use that, or
    `as_tf_dataset`.

    With `complete=True` (validation) the blocks cover the whole stream in order, each target once. The last block and the
    last batch are padded, and a batch has a third array of sample weights: 0 for padding, and for real targets one
    number a little above 1, chosen so that the loss which Keras averages over batches, padding included, is the mean
    over all targets exactly. In a metric of your own divide by the sum of the weights, or list it in `weighted_metrics`.

    A batch takes a fraction of a millisecond, so worker processes are refused: Keras waits for ever for one that was
    killed. Threads (`workers`) are taken on TensorFlow; on JAX and torch Keras would mix up their batches.

    Args:
        tokens: a `TokenStore`, or an integer array.
        sequence_length: tokens of a row.
        batch_size: rows of a batch.
        seed: decides the cut and the order of every epoch.
        segment_ids: give `{"token_ids", "segment_ids"}` as inputs: the documents of a `TokenStore`, numbered from 1 in each
            row; an array is one document. None does so where the stream is `contiguous`.
        contiguous: cut the stream in `batch_size` equal streams; row r reads stream r from its start in each epoch. Its
            first segment is 0 where the document goes on from the batch before, and 1 in the first batch of an epoch.
        shuffle: permute the blocks, and shift all borders by a new offset in each epoch.
        complete: cover the whole stream, with padding and sample weights; in order.
        vocabulary_size: ids from this number on are refused, for an array or for a model that knows fewer ids than the
            tokenizer. A `TokenStore` holds all it reads against the tokenizer's own.

    Attributes:
        vocabulary_size: number of ids that the model must know; None for an array without one.
        num_tokens: tokens of the stream.
        num_targets: targets of an epoch.
        num_bytes: raw bytes of text in the stream, for bits per byte.
        epoch: number of the epoch that `dataset[i]` reads; may be set.

    Raises:
        ValueError: if an argument is out of range or the stream has fewer tokens than one batch needs; on reading, if an
            id is outside the vocabulary.
    """

    _beyond = 1  # tokens that a row reads of the next: its last target

    def __init__(
        self,
        tokens,
        sequence_length,
        batch_size,
        *,
        seed=0,
        segment_ids=None,
        contiguous=False,
        shuffle=True,
        complete=False,
        vocabulary_size=None,
    ):
        for name, value in (("sequence_length", sequence_length), ("batch_size", batch_size)):
            if not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"`{name}` must be an integer of at least 1, received {value!r}.")
        if complete and contiguous:
            raise ValueError("`complete` covers the stream block by block; it does not go with `contiguous`.")
        super().__init__(batch_size)
        self.tokens = tokens
        self.sequence_length = int(sequence_length)
        self.seed = seed
        self.segment_ids = contiguous if segment_ids is None else segment_ids
        self.contiguous = contiguous
        self.shuffle = shuffle and not contiguous and not complete
        self.complete = complete
        self.vocabulary_size = vocabulary_size or getattr(tokens, "vocabulary_size", None)
        self._checks_ids = vocabulary_size is not None
        self._highest_read = -1
        self._num_batches = self._count_batches()

    def _count_batches(self):
        length, rows, pairs = self.sequence_length, self.global_batch_size, len(self.tokens) - self._beyond
        if self.complete:
            needed, count = 1 + self._beyond, -(-pairs // (length * rows))
        else:
            needed, count = rows * length + self._beyond, pairs // length // rows
        if len(self.tokens) < needed:
            what = "validation" if self.complete else f"{rows} blocks of {length}"
            raise ValueError(
                f"There are {len(self.tokens)} tokens in this part of the text and {what} needs {needed}: give more text, "
                f"or a smaller `batch_size`, `sequence_length` or share of the other part (`validation_fraction`)."
            )
        if self.shuffle:
            # Each epoch may lose up to a block to its offset; only where that is all there is the offset has to give way.
            count = max(1, (pairs - length + 1) // length // rows)
        return count

    def __len__(self):
        return self._num_batches

    @property
    def num_tokens(self):
        return len(self.tokens)

    @property
    def num_targets(self):
        return len(self.tokens) - 1 if self.complete else len(self) * self.global_batch_size * self.sequence_length

    @property
    def num_bytes(self):
        return self.tokens.num_bytes

    @property
    def content_hash(self):
        """Hash of the whole corpus that the stream is a part of (see `pack`); None for an array."""
        return getattr(self.tokens, "content_hash", None)

    def batch(self, step):
        """Return batch `step`, counted from the first of epoch 0.

        Args:
            step: an integer of at least 0.

        Returns:
            `(x, y)`, or `(x, y, sample_weight)` if `complete`: int32, int32 and float32 arrays of shape (batch,
            sequence_length). With `segment_ids`, `x` is a dict of two such arrays.
        """
        if step < 0:
            raise ValueError(f"Steps are counted from 0, received step={step}.")
        shape = (self.batch_size, self.sequence_length)
        x, y, weight = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        segments = np.zeros(shape, np.int32)
        real = len(self) * self.global_batch_size * self.sequence_length / self.num_targets
        for row, start in enumerate(self._starts(int(step)).tolist()):
            ids = self.tokens[start : start + self.sequence_length + 1]
            if self._checks_ids:
                self._check_ids(ids, start)
            used = max(0, len(ids) - 1)
            x[row, :used], y[row, :used], weight[row, :used] = ids[:used], ids[1:], real
            if self.segment_ids and used:
                segments[row, :used] = self._segment_ids(start, start + used, first=step % len(self) == 0)
        inputs = {"token_ids": x, "segment_ids": segments} if self.segment_ids else x
        return (inputs, y, weight) if self.complete else (inputs, y)

    def _segment_ids(self, start, stop, first):
        """Number the documents of a row: 1, 2, ...; or 0, 1, ... where the first goes on from the batch before."""
        documents = getattr(self.tokens, "segment_ids", None)
        numbers = np.ones(stop - start, np.int32) if documents is None else documents(start, stop)
        if not self.contiguous or first:
            return numbers
        within = documents is None or documents(start - 1, start + 1)[1] == 1
        return numbers - int(within)

    def _check_ids(self, ids, start):
        wrong = np.flatnonzero((ids < 0) | (ids >= self.vocabulary_size))
        if len(wrong):
            raise ValueError(
                f"Token {start + wrong[0]} of the stream is {ids[wrong[0]]}, and the model knows the ids from 0 to "
                f"{self.vocabulary_size - 1}: take the tokenizer that the model was built for."
            )

    def _starts(self, step):
        """First token of each row of this process's part of the batch: (batch_size,) int64."""
        epoch, step = divmod(step, len(self))
        rows = np.arange(self.global_batch_size)[self._rows]
        if self.contiguous:
            pairs = len(self.tokens) - self._beyond
            return rows * (pairs // self.global_batch_size) + step * self.sequence_length
        return self._block_starts(epoch, step * self.global_batch_size + rows)

    def _block_starts(self, epoch, blocks):
        """First token of some blocks of an epoch, counted in the order in which they are read."""
        if not self.shuffle:
            return blocks * self.sequence_length
        slack = len(self.tokens) - self._beyond - len(self) * self.global_batch_size * self.sequence_length
        offset = stream_key(self.seed, epoch, "offset") % min(self.sequence_length, slack + 1)
        num_blocks = (len(self.tokens) - self._beyond - offset) // self.sequence_length
        return offset + permute(blocks, num_blocks, stream_key(self.seed, epoch, "order")) * self.sequence_length

    def _check_order(self, index):
        if not (self.contiguous and self._in_epoch) or self.workers > 1:
            return
        if index > self._highest_read + 1:
            raise ValueError(
                "Contiguous blocks were read out of order: `fit` shuffles by default, call fit(..., shuffle=False)."
            )
        self._highest_read = max(index, self._highest_read)

    def on_epoch_end(self):
        super().on_epoch_end()
        if not self._reads:
            self._highest_read = -1
