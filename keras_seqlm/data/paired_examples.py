"""Batches of examples in twos that mean the same, for losses that compare the rows of a batch."""

import numpy as np

from keras_seqlm.data.examples import Examples
from keras_seqlm.data.permutation import permute, stream_key


class PairedExamples(Examples):
    """`Examples` whose rows come in twos of one id, side by side: a batch of b rows has b / 2 of them.

    Each epoch permutes the rows of every id and takes them in twos, so that a row meets another one of its id each time;
    of an odd number one is left out, another one in each epoch. With `complete` the rows are taken in their order, and of
    an odd number the last is left out. All else is as in `Examples`, the twos in place of rows.

    Args:
        inputs, targets, batch_size, seed, shuffle, complete, max_length: see `Examples`; targets are ids, one int a row.

    Raises:
        ValueError: an odd batch size, an id that stands in one row alone; and what `Examples` refuses.

    Example:

    >>> rows = [{"token_ids": [1, i]} for i in range(4)]
    >>> x, y = PairedExamples(rows, [7, 8, 8, 7], batch_size=4).batch(0)
    >>> bool((y[::2] == y[1::2]).all()), sorted(y.tolist())
    (True, [7, 7, 8, 8])
    """

    def __init__(
        self, inputs, targets, batch_size, *, seed=0, of_tokens=False, shuffle=True, complete=False, max_length=None
    ):
        if of_tokens:
            raise ValueError("of_tokens must be False: twos of rows have an id a row")
        if batch_size % 2 or batch_size < 2:
            raise ValueError(f"batch_size must be even, as rows come in twos; got {batch_size}")
        options = {"seed": seed, "shuffle": shuffle, "complete": complete, "max_length": max_length}
        super().__init__(inputs, targets, batch_size, **options)
        by_id = {}
        for row, one in enumerate(self._targets.tolist()):
            by_id.setdefault(one, []).append(row)
        alone = [rows[0] for rows in by_id.values() if len(rows) == 1]
        if alone:
            raise ValueError(
                f"{len(alone)} of {len(by_id)} ids stand in one row alone, the first of them in example {alone[0] + 1}: "
                "give each another row, or leave them out"
            )
        self._groups = [np.array(rows) for rows in by_id.values()]
        if not complete and self.num_rows < batch_size:
            raise ValueError(f"there are {self.num_rows} rows in twos, and a batch needs {batch_size}")

    @property
    def num_rows(self):
        """Rows of an epoch; the last of an odd number is none."""
        return sum(len(rows) // 2 * 2 for rows in self._groups)

    def _units(self, epoch):
        found = []
        for number, rows in enumerate(self._groups):
            if self.shuffle:
                key = stream_key(self.seed, epoch, "twos", number)
                rows = rows[permute(np.arange(len(rows)), len(rows), key)]
            found.append(rows[: len(rows) // 2 * 2].reshape(-1, 2))
        return np.concatenate(found)

    def _weight(self, rows):
        return len(self) * len(rows) / self.num_rows  # the loss divides by the rows that are there

    def shard(self, index, count):
        """The twos `index::count` of every batch, for process `index` of `count`; see `CausalBlocks.shard`."""
        if self.batch_size % (2 * count):
            raise ValueError(
                f"batch_size={self.batch_size} must hold the same number of twos for each of {count} processes"
            )
        part = super().shard(index, count)
        places = np.arange(self.global_batch_size)
        part._rows = places[places // 2 % count == index]
        return part
