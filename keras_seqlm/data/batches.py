"""Data whose batches are a function of the step: what Keras, tf.data and several processes ask of them."""

import copy

import keras


class Batches(keras.utils.PyDataset):
    """What data sets share that compute any batch by its step.

    A subclass has `batch(step)`, `len()`, the batches of an epoch, and `complete`, and makes of each batch the rows
    `self._rows` (a slice) alone.

    Args:
        batch_size: rows of a batch, over all processes.

    Attributes:
        batch_size: rows of a batch that this process reads.
        global_batch_size: rows of a batch.
        epoch: number of the epoch that `dataset[i]` reads; may be set.
    """

    def __init__(self, batch_size):
        super().__init__()
        self.batch_size = self.global_batch_size = int(batch_size)
        self.epoch = 0
        self._rows = slice(None)
        self._reads, self._in_epoch = 0, False

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
            Data of the same length with `batch_size / count` rows.
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
        return self._of_epoch(index)

    def _of_epoch(self, index):
        """Batch `index` of the current epoch."""
        return self.batch(self.epoch * len(self) + index)

    def _check_order(self, index):
        """Refuse a batch of the epoch that may not be read now; here any may."""

    @property
    def workers(self):
        return super().workers

    @workers.setter
    def workers(self, value):
        if value > 1 and keras.backend.backend() != "tensorflow":
            raise ValueError(
                "On jax and torch Keras builds a model on the first batch and then begins to read anew, which worker threads "
                "do not hear of: batches come twice, and others never. Leave `workers` 1, or read ahead by "
                "`as_tf_dataset()`."
            )
        self._workers = value

    @property
    def use_multiprocessing(self):
        return False

    @use_multiprocessing.setter
    def use_multiprocessing(self, value):
        if value:
            raise ValueError(
                "Worker processes are refused: Keras waits for ever for one that was killed, and a batch takes less time than "
                "sending it. Leave `use_multiprocessing` False; `workers` are then threads, which are for TensorFlow."
            )

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
            self._reads = 0
        self._in_epoch = False
