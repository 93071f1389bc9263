"""Blocks of a token stream for next-token training, each batch a pure function of (seed, step)."""

import copy

import keras
import numpy as np

from keras_seqlm.data.permutation import permute, stream_key


class CausalBlocks(keras.utils.PyDataset):
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
    killed. Threads (`workers`) are not.

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
        super().__init__()
        for name, value in (("sequence_length", sequence_length), ("batch_size", batch_size)):
            if not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"`{name}` must be an integer of at least 1, received {value!r}.")
        if complete and contiguous:
            raise ValueError("`complete` covers the stream block by block; it does not go with `contiguous`.")
        self.tokens = tokens
        self.sequence_length = int(sequence_length)
        self.batch_size = self.global_batch_size = int(batch_size)
        self.seed = seed
        self.segment_ids = contiguous if segment_ids is None else segment_ids
        self.contiguous = contiguous
        self.shuffle = shuffle and not contiguous and not complete
        self.complete = complete
        self.vocabulary_size = vocabulary_size or getattr(tokens, "vocabulary_size", None)
        self._checks_ids = vocabulary_size is not None
        self.epoch = 0
        self._rows = slice(None)
        self._reads, self._highest_read = 0, -1
        self._in_epoch = False
        self._num_batches = self._count_batches()

    def _count_batches(self):
        length, rows, pairs = self.sequence_length, self.global_batch_size, len(self.tokens) - 1
        if self.complete:
            needed, count = 2, -(-pairs // (length * rows))
        else:
            needed, count = rows * length + 1, pairs // length // rows
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
        pairs = len(self.tokens) - 1
        if self.contiguous:
            return rows * (pairs // self.global_batch_size) + step * self.sequence_length
        return self._block_starts(epoch, step * self.global_batch_size + rows)

    def _block_starts(self, epoch, blocks):
        """First token of some blocks of an epoch, counted in the order in which they are read."""
        if not self.shuffle:
            return blocks * self.sequence_length
        slack = len(self.tokens) - 1 - len(self) * self.global_batch_size * self.sequence_length
        offset = stream_key(self.seed, epoch, "offset") % min(self.sequence_length, slack + 1)
        num_blocks = (len(self.tokens) - 1 - offset) // self.sequence_length
        return offset + permute(blocks, num_blocks, stream_key(self.seed, epoch, "order")) * self.sequence_length

    def batches(self, first_step=0):
        """Yield batch `first_step` and all after it, without end."""
        while True:
            yield self.batch(first_step)
            first_step += 1

    def as_tf_dataset(self, first_step=0, num_steps=None):
        """Return a `tf.data.Dataset` of the batches from `first_step`, with static shapes.

        Args:
            first_step: step of the first batch, counted over all epochs.
            num_steps: number of batches. None goes on without end (give `fit` then `steps_per_epoch=len(train)`),
                or for validation once over the whole part.

        Returns:
            A `tf.data.Dataset` of int32 and float32 tensors.
        """
        from keras_seqlm.data.pipeline import tf_dataset

        return tf_dataset(self, first_step, num_steps)

    def shard(self, index, count):
        """Return the rows `index::count` of every batch, for process `index` of `count`.

        Args:
            index: number of the process, from 0.
            count: number of processes; must divide `batch_size`.

        Returns:
            `CausalBlocks` of the same length with `batch_size / count` rows.
        """
        if self.batch_size != self.global_batch_size:
            raise ValueError("This is one process's part already: take `shard` of the whole data set.")
        if count < 1 or self.batch_size % count or not 0 <= index < count:
            raise ValueError(
                f"shard(index, count) takes a count that divides batch_size={self.batch_size} and an index below the "
                f"count, received index={index}, count={count}."
            )
        part = copy.copy(self)
        part.batch_size = self.batch_size // count
        part._rows = slice(index, None, count)
        return part

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"Batch {index} of {len(self)}; use batch(step) for steps of later epochs.")
        self._check_order(index)
        self._reads += 1
        return self.batch(self.epoch * len(self) + index)

    @property
    def use_multiprocessing(self):
        return False

    @use_multiprocessing.setter
    def use_multiprocessing(self, value):
        if value:
            raise ValueError(
                "Worker processes are refused: Keras waits for ever for one that was killed, and a batch takes less time than "
                "sending it. Leave `use_multiprocessing` False; `workers` are then threads."
            )

    def _check_order(self, index):
        if not (self.contiguous and self._in_epoch) or self.workers > 1:
            return
        if index > self._highest_read + 1:
            raise ValueError(
                "Contiguous blocks were read out of order: `fit` shuffles by default, call fit(..., shuffle=False)."
            )
        self._highest_read = max(index, self._highest_read)

    def on_epoch_begin(self):
        self._in_epoch = True

    def on_epoch_end(self):
        # Keras also ends an "epoch" when it rewinds before the first one, and with `steps_per_epoch` it ends one while
        # it goes on reading the same pass over the data: only a pass read to its end moves the epoch on. (JAX and torch
        # read one batch to build the model, so an epoch of a single batch is counted once too often there.)
        passed = self._in_epoch and self._reads >= len(self)
        if passed:
            self.epoch += 1
        if passed or not self._in_epoch:
            self._reads, self._highest_read = 0, -1
        self._in_epoch = False
