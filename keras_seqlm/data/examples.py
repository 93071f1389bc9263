"""Batches of labelled examples for fine-tuning, each a pure function of (seed, step)."""

import copy
import hashlib

import keras
import numpy as np

from keras_seqlm.data.permutation import permute, stream_key

WINDOW = 32  # batches among whose rows those of like length are put together
UNCOUNTED = -1  # the target of a token that has none


class Examples(keras.utils.PyDataset):
    """Batches of examples of any lengths, padded on the right, rows of like length together.

    `batch(step)` counts steps over all epochs and depends on nothing but the arguments here, so that a run resumes at any
    step. Each epoch permutes the examples anew; of every 32 batches' rows those of like length share one, and a batch is as
    wide as its longest row, rounded up to one of few widths. What does not fill a batch is left out of that epoch.

    With `complete=True` (validation) all examples are read, each once; the last batch is filled up with rows that weigh
    nothing, and sample weights make the mean that Keras reports over batches the mean over all that counts.

    Under plain `fit` Keras takes the shapes of the first two batches for those of all: the first two of an epoch are of two
    widths, and where no two are, all are as wide as the longest row of all.

    Args:
        inputs: a list of dicts of name to a sequence of ints, one number a token: `token_ids`, and `token_types` where there
            are some. `lengths` are added.
        targets: one a row: a number, an array of one shape for all rows, or, with `of_tokens`, one int a token (-1 for none).
        batch_size: rows of a batch.
        seed: decides the order of every epoch.
        of_tokens: whether targets are padded as tokens are.
        shuffle, complete: see above.
        max_length: no row may be longer; batches are no wider.

    Attributes:
        num_rows: examples.
        num_targets: what counts in an epoch: rows, or tokens that have a target.
        content_hash: of all of it.

    Raises:
        ValueError: no examples, fewer than a batch, rows and targets of unequal number, a row that is empty or too long.

    Example:

    >>> train = Examples([{"token_ids": [1, 5]}, {"token_ids": [1, 7, 9]}], [0, 1], batch_size=2)
    >>> x, y = train.batch(0)
    >>> x["token_ids"].shape, sorted(x["lengths"].tolist()), sorted(y.tolist())
    ((2, 16), [2, 3], [0, 1])
    """

    def __init__(
        self,
        inputs,
        targets,
        batch_size,
        *,
        seed=0,
        of_tokens=False,
        shuffle=True,
        complete=False,
        max_length=None,
    ):
        super().__init__()
        if len(inputs) != len(targets):
            raise ValueError(f"each example needs a target, got {len(inputs)} examples and {len(targets)} targets")
        if not inputs or (not complete and len(inputs) < batch_size):
            raise ValueError(
                f"there are {len(inputs)} examples, and a batch needs {batch_size}: give more, or a smaller batch_size"
            )
        self._inputs = [{name: np.asarray(row[name], "int32") for name in sorted(row)} for row in inputs]
        self.of_tokens = of_tokens
        self._targets = [np.asarray(one) for one in targets] if of_tokens else np.asarray(targets)
        if not of_tokens and self._targets.dtype.kind in "iub":
            self._targets = self._targets.astype("int32")
        elif not of_tokens:
            self._targets = self._targets.astype("float32")
        self._sizes = np.array([len(row["token_ids"]) for row in self._inputs])
        if self._sizes.min() < 1 or (max_length is not None and self._sizes.max() > max_length):
            raise ValueError(f"rows must have 1 to {max_length} tokens, got {self._sizes.min()} to {self._sizes.max()}")
        self.batch_size = self.global_batch_size = int(batch_size)
        self.seed, self.shuffle, self.complete = seed, shuffle and not complete, complete
        self.max_length = max_length
        self.epoch, self._rows, self._reads, self._in_epoch = 0, slice(None), 0, False
        self._plan = (None, None)  # the last epoch whose order was made, and that order
        self._all_wide = False

    def __len__(self):
        return -(-self.num_rows // self.global_batch_size) if self.complete else self.num_rows // self.global_batch_size

    @property
    def num_rows(self):
        return len(self._inputs)

    @property
    def num_targets(self):
        return sum(int((one != UNCOUNTED).sum()) for one in self._targets) if self.of_tokens else self.num_rows

    @property
    def targets_are(self):
        """What is counted, in a word."""
        return "tokens" if self.of_tokens else "rows"

    @property
    def num_tokens(self):
        """All tokens of all rows."""
        return int(self._sizes.sum())

    @property
    def content_hash(self):
        found = hashlib.sha256()
        for row, target in zip(self._inputs, self._targets, strict=True):
            for name, ids in row.items():
                found.update(f"{name} {len(ids)} ".encode() + ids.tobytes())
            found.update(np.asarray(target).tobytes() + b"|")
        return found.hexdigest()

    def batch(self, step):
        """Return batch `step`, counted from the first of epoch 0.

        Returns:
            `(x, y)`, or `(x, y, sample_weight)` if `complete`: `x` a dict of int32 arrays (batch, width) and `lengths`
            (batch,); `y` (batch, ...), or (batch, width) of tokens; the weights (batch,).
        """
        if step < 0:
            raise ValueError(f"Steps are counted from 0, received step={step}.")
        everyone = self._everyone(*divmod(int(step), len(self)))
        return self._batch(everyone, self._width(everyone))

    def _everyone(self, epoch, place):
        """Numbers of the examples in a batch, those of all processes."""
        return self._order(epoch)[place * self.global_batch_size : (place + 1) * self.global_batch_size]

    def _width(self, rows):
        return width_of(int(self._sizes[rows].max()), self.max_length)

    def _batch(self, everyone, width):
        missing = self.global_batch_size - len(everyone)
        rows = np.concatenate([everyone, np.full(missing, everyone[0])])[self._rows]
        real = (np.arange(self.global_batch_size) < len(everyone))[self._rows]
        x = {name: np.zeros((self.batch_size, width), "int32") for name in self._inputs[0]}
        for index, row in enumerate(rows):
            for name, ids in self._inputs[row].items():
                x[name][index, : len(ids)] = ids
        x["lengths"] = self._sizes[rows].astype("int32")
        if self.of_tokens:
            y = np.full((self.batch_size, width), UNCOUNTED, "int32")
            for index in np.flatnonzero(real):
                y[index, : self._sizes[rows[index]]] = self._targets[rows[index]]
        else:
            y = self._targets[rows]
        return (x, y, real * np.float32(self._weight(everyone))) if self.complete else (x, y)

    def _weight(self, rows):
        """By which a batch's losses are multiplied so that the mean over batches is that over all that counts."""
        if not self.of_tokens:  # Keras divides by the rows, those that weigh nothing among them
            return len(self) * self.global_batch_size / self.num_rows
        return len(self) * sum(int((self._targets[row] != UNCOUNTED).sum()) for row in rows) / self.num_targets

    def _order(self, epoch):
        """Numbers of the examples as epoch `epoch` reads them."""
        epoch = epoch if self.shuffle else 0
        if self._plan[0] != epoch:
            self._plan = epoch, self._of_two_widths(self._order_of(epoch))
        return self._plan[1]

    def _order_of(self, epoch):
        if self.complete:
            return np.argsort(-self._sizes, kind="stable")
        if not self.shuffle:
            return np.arange(self.num_rows)
        order = permute(np.arange(self.num_rows), self.num_rows, stream_key(self.seed, epoch, "examples"))
        order = order[: len(self) * self.global_batch_size]
        window = WINDOW * self.global_batch_size
        parts = [order[start : start + window] for start in range(0, len(order), window)]
        order = np.concatenate([part[np.argsort(self._sizes[part], kind="stable")] for part in parts])
        batches = order.reshape(len(self), self.global_batch_size)
        return batches[permute(np.arange(len(self)), len(self), stream_key(self.seed, epoch, "batches"))].reshape(-1)

    def _of_two_widths(self, order):
        """The order in which batch 1 has changed places with the first full one whose width is not that of batch 0."""
        full = len(order) // self.global_batch_size
        batches = order[: full * self.global_batch_size].reshape(full, self.global_batch_size)
        if full and (self.shuffle or self.complete):
            widths = [self._width(rows) for rows in batches]
            other = next((place for place, width in enumerate(widths) if width != widths[0]), 0)
            if other > 1:
                batches = batches.copy()
                batches[[1, other]] = batches[[other, 1]]
        return np.concatenate([batches.reshape(-1), order[full * self.global_batch_size :]])

    def batches(self, first_step=0):
        """Yield batch `first_step` and all after it, without end."""
        while True:
            yield self.batch(first_step)
            first_step += 1

    def open_shapes(self, batch):
        """The shapes of a batch's arrays, None for the width, which differs between batches."""
        x, y, *weight = batch
        wide = (self.batch_size, None)
        x = {name: array.shape if name == "lengths" else wide for name, array in x.items()}
        return x, wide if self.of_tokens else y.shape, *(array.shape for array in weight)

    def as_tf_dataset(self, first_step=0, num_steps=None):
        """A `tf.data.Dataset` of the batches from `first_step`; see `CausalBlocks.as_tf_dataset`. Their width is left open."""
        from keras_seqlm.data.pipeline import tf_dataset

        return tf_dataset(self, first_step, num_steps)

    def shard(self, index, count):
        """The rows `index::count` of every batch, for process `index` of `count`; see `CausalBlocks.shard`."""
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
        self._reads += 1
        if not self._all_wide:
            widths = [self._width(self._everyone(self.epoch, place)) for place in range(min(2, len(self)))]
            self._all_wide = len(set(widths)) < 2
        everyone = self._everyone(self.epoch, index)
        return self._batch(
            everyone, width_of(int(self._sizes.max()), self.max_length) if self._all_wide else self._width(everyone)
        )

    def on_epoch_begin(self):
        self._in_epoch = True

    def on_epoch_end(self):
        # As in CausalBlocks: Keras ends an epoch more often than it has read one.
        if self._in_epoch and self._reads >= len(self):
            self.epoch += 1
            self._reads = 0
        self._in_epoch = False


def width_of(size, most):
    """The columns of a batch whose longest row has `size` tokens: 16, 24, 32, 48, 64, 96 ..., and no more than `most`."""
    width = 16
    while width < size:
        width += width // 2 if width & (width - 1) == 0 else width // 3
    return width if most is None else min(width, most)
