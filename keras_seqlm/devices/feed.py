"""What `fit` reads: batches from a step on, the rows of one process, and what several devices cannot be given."""

import itertools

import keras

KERAS_BATCH_SIZE = 32  # of arrays that are given without one


class Steps(keras.utils.PyDataset):
    """Batches from a step on, without end. Keras may start it anew, and nothing is lost.

    Args:
        source: data with `batches(first_step)`, as `data.causal_blocks` gives, or a function of the step.
        first_step: step of the first batch.

    Example:

    >>> Steps(lambda step: [step] * 3, first_step=5)[1]
    [6, 6, 6]
    """

    num_batches = None  # without end

    def __init__(self, source, first_step=0):
        super().__init__()
        self._source, self._first_step = source, first_step
        self._next, self._batches = None, None

    def __getitem__(self, index):
        if callable(self._source):
            return self._source(self._first_step + index)
        if index != self._next:
            self._batches, self._next = iter(self._source.batches(self._first_step + index)), index
        self._next += 1
        return next(self._batches)


class Rows(keras.utils.PyDataset):
    """The rows `index::count` of every batch of a `PyDataset`."""

    def __init__(self, dataset, index, count):
        super().__init__()
        self._dataset, self._rows = dataset, slice(index, None, count)

    @property
    def num_batches(self):
        return self._dataset.num_batches

    def __getitem__(self, index):
        return keras.tree.map_structure(lambda leaf: leaf[self._rows], self._dataset[index])

    def on_epoch_begin(self):
        self._dataset.on_epoch_begin()

    def on_epoch_end(self):
        self._dataset.on_epoch_end()


def own_rows(data, index, count, feed):
    """What `fit` is given in process `index` of `count`: the rows `index::count` of every batch of `data`.

    Args:
        data: what `fit` takes; batches that `count` divides.
        feed: makes of data what `fit` is given.

    Raises:
        ValueError: data that cannot be divided by row.
    """
    if count == 1:
        return feed(data)
    if hasattr(data, "element_spec"):  # has a `shard`, too, which hands out whole batches
        rows = slice(index, None, count)
        return data.map(lambda *batch: keras.tree.map_structure(lambda leaf: leaf[rows], batch))
    if hasattr(data, "shard"):
        return feed(data.shard(index, count))
    data = feed(data)
    if isinstance(data, keras.utils.PyDataset):
        return Rows(data, index, count)
    raise ValueError(
        f"{count} processes each read their own rows, and {type(data).__name__} cannot be divided by row: give "
        "data.causal_blocks, a keras.utils.PyDataset or a tf.data.Dataset of whole batches"
    )


class ByStep:
    """A function of the step as data with `batches(first_step)`."""

    def __init__(self, make_batch):
        self._make_batch = make_batch

    def batches(self, first_step=0):
        while True:
            yield self._make_batch(first_step)
            first_step += 1


class Onward:
    """Data whose steps before `step` are never read: a batch of later stands for each of them."""

    def __init__(self, train, step):
        self._train, self._step = train, step
        if hasattr(train, "as_tf_dataset"):
            self.as_tf_dataset = self._tf_dataset
        if hasattr(train, "shard"):
            self.shard = lambda index, count: Onward(train.shard(index, count), step)

    def batches(self, first_step=0):
        onward = iter(self._train.batches(max(first_step, self._step)))
        first = next(onward)
        yield from itertools.repeat(first, max(self._step - first_step, 0) + 1)
        yield from onward

    def _tf_dataset(self, first_step=0):
        onward, before = self._train.as_tf_dataset(max(first_step, self._step)), self._step - first_step
        return onward.take(1).cache().repeat(before).concatenate(onward) if before > 0 else onward


def example(data, first_step=0):
    """A batch of `data`, arrays or their specification, that is not taken away from it; None where there is no telling."""
    if hasattr(data, "element_spec"):
        return data.element_spec
    if hasattr(data, "batches"):
        return next(iter(data.batches(first_step)))
    if isinstance(data, keras.utils.PyDataset):
        return data[0]
    return data if isinstance(data, tuple | list) else None


def check_tensors(data, replicas):
    """Refuse, for `MirroredStrategy`, a batch with tensors of bool or text, of which Keras takes the mean over replicas.

    Raises:
        ValueError: naming the tensor, as one writes it: `x['padding_mask']`.
    """
    batch = example(data)
    if replicas == 1 or batch is None:
        return
    for path, leaf in keras.tree.flatten_with_path(batch):
        kind = getattr(leaf, "dtype", type(leaf))
        kind = getattr(kind, "name", str(kind))
        if kind.startswith(("bool", "str", "object", "bytes")):
            raise ValueError(
                f"{name_of(path)} is of {kind}, and Keras takes the mean of a batch over the {replicas} replicas, which {kind} does "
                "not have; make it int32 or float32 (text: ids), or use distribution='single'"
            )


def check_rows(data, replicas, first_only=False):
    """Refuse batches that the replicas do not divide: JAX fails, and `MirroredStrategy` weighs a smaller part as much.

    Args:
        data: what `fit` takes.
        replicas: among how many a batch is divided.
        first_only: leave out the batches after the first, and what the data do not say.

    Raises:
        ValueError: with the number of rows, or that the data do not say it.
    """
    if replicas == 1 or data is None:
        return
    sizes = _rows_of(data)
    for rows in [rows for rows in sizes[:1] if rows is not None] if first_only else sizes:
        if rows is None or rows % replicas:
            came = "batches of unknown size" if rows is None else f"a batch of {rows} rows"
            raise ValueError(
                f"{replicas} replicas divide each batch among them, and got {came}; use a batch size that is a multiple of "
                f"{replicas}, in a tf.data.Dataset with batch(..., drop_remainder=True)"
            )


def _rows_of(data):
    """Rows of each batch, as far as it is known beforehand."""
    if isinstance(data, tuple | list):
        rows = len(keras.tree.flatten(data)[0])
        return [min(rows, KERAS_BATCH_SIZE), rows % KERAS_BATCH_SIZE]
    batch = example(data)
    return [] if batch is None else [keras.tree.flatten(batch)[0].shape[0]]


def name_of(path):
    """A place in a batch as one writes it: (0, "token_ids") is x['token_ids']."""
    parts = ("x", "y", "sample_weight")
    first = parts[path[0]] if path and path[0] in (0, 1, 2) else "x"
    rest = path[1:] if path and path[0] in (0, 1, 2) else path
    return first + "".join(f"[{key!r}]" for key in rest)
