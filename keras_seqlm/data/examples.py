"""Batches of labelled examples for fine-tuning, each a pure function of (seed, step)."""

import hashlib
from functools import cached_property

import numpy as np

from keras_seqlm.data.batches import Batches
from keras_seqlm.data.permutation import permute, stream_key

WINDOW = 32  # batches among whose rows those of like length are put together
UNCOUNTED = -1  # the target of a token that has none


class Examples(Batches):
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
        class_weights: (classes,), of targets that are numbers of classes: batches then have a weight for each target. The mean
            stays that over all targets, so that weights of mean 1 leave the loss its size.

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
        class_weights=None,
    ):
        super().__init__(batch_size)
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
        self.seed, self.shuffle, self.complete = seed, shuffle and not complete, complete
        self.max_length = max_length
        self.class_weights = None if class_weights is None else np.asarray(class_weights, "float32")
        self._plan = (None, None)  # the last epoch whose order was made, and that order
        self._all_wide = False

    def __len__(self):
        return -(-self.num_rows // self.global_batch_size) if self.complete else self.num_rows // self.global_batch_size

    @property
    def num_rows(self):
        return len(self._inputs)

    @cached_property
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
        if self.class_weights is not None:
            found.update(self.class_weights.tobytes())
        return found.hexdigest()

    def batch(self, step):
        """Return batch `step`, counted from the first of epoch 0.

        Returns:
            `(x, y)`, or `(x, y, sample_weight)` if `complete` or with `class_weights`: `x` a dict of int32 arrays (batch, width) and `lengths`
            (batch,); `y` (batch, ...), or (batch, width) of tokens; the weights (batch,), of
            classes as `y`.
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
        if self.complete:
            return x, y, real * np.float32(self._weight(everyone))
        return (
            (x, y)
            if self.class_weights is None
            else (x, y, np.where(y < 0, 0.0, self.class_weights[y]).astype("float32"))
        )

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

    def _units(self, epoch):
        """int (units, rows): the numbers of the rows that an epoch keeps side by side, here each by itself."""
        return np.arange(len(self._inputs))[:, None]

    def _order_of(self, epoch):
        units = self._units(epoch)
        sizes = self._sizes[units].max(axis=1)
        if self.complete:
            return units[np.argsort(-sizes, kind="stable")].reshape(-1)
        if not self.shuffle:
            return units.reshape(-1)
        of_batch = self.global_batch_size // units.shape[1]
        order = permute(np.arange(len(units)), len(units), stream_key(self.seed, epoch, "examples"))
        order = order[: len(self) * of_batch]
        window = WINDOW * of_batch
        parts = [order[start : start + window] for start in range(0, len(order), window)]
        order = np.concatenate([part[np.argsort(sizes[part], kind="stable")] for part in parts])
        batches = order.reshape(len(self), of_batch)
        batches = batches[permute(np.arange(len(self)), len(self), stream_key(self.seed, epoch, "batches"))]
        return units[batches.reshape(-1)].reshape(-1)

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

    def open_shapes(self, batch):
        """The shapes of a batch's arrays, None for the width, which differs between batches."""
        x, y, *weight = batch
        wide = (self.batch_size, None)
        x = {name: array.shape if name == "lengths" else wide for name, array in x.items()}
        return x, wide if self.of_tokens else y.shape, *(array.shape if array.ndim == 1 else wide for array in weight)

    def __getitem__(self, index):
        if not self._all_wide and 0 <= index < len(self):
            widths = [self._width(self._everyone(self.epoch, place)) for place in range(min(2, len(self)))]
            self._all_wide = len(set(widths)) < 2
        return super().__getitem__(index)

    def _of_epoch(self, index):
        everyone = self._everyone(self.epoch, index)
        widest = width_of(int(self._sizes.max()), self.max_length)
        return self._batch(everyone, widest if self._all_wide else self._width(everyone))


def width_of(size, most):
    """The columns of a batch whose longest row has `size` tokens: 16, 24, 32, 48, 64, 96 ..., and no more than `most`."""
    width = 16
    while width < size:
        width += width // 2 if width & (width - 1) == 0 else width // 3
    return width if most is None else min(width, most)
