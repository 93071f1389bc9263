"""What `fit` reads: batches from a step on, the rows of a process, and what several replicas cannot be given."""

import itertools

import keras
import numpy as np
import pytest
from training_toy import LENGTH, Batches, held

from keras_seqlm.devices.feed import Onward, Rows, Steps, check_rows, check_tensors, own_rows


def equal(left, right):
    for one, other in zip(keras.tree.flatten(left), keras.tree.flatten(right), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("source", [Batches(), Batches().batch], ids=["data", "function"])
def test_steps_start_anywhere_and_anew(source):
    steps = Steps(source, first_step=7)
    for index in (0, 1, 2, 0, 5, 6):  # Keras reads the first batch twice: it builds the model with it
        equal(steps[index], Batches().batch(7 + index))
    assert steps.num_batches is None


def test_the_processes_rows_make_the_batch():
    parts = [Rows(held(4), index, 2) for index in range(2)]
    assert [part.num_batches for part in parts] == [2, 2]
    for index in range(2):
        for whole, first, second in zip(held(4)[index], *(part[index] for part in parts), strict=True):
            assert len(first) == len(second) == 2
            np.testing.assert_array_equal(whole, np.stack([first, second], axis=1).reshape(whole.shape))


def test_the_processes_rows_of_a_data_set_of_tensorflow():
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((np.arange(8), {"a": np.arange(8) + 10})).batch(4)
    for index in range(2):
        rows = list(own_rows(data, index, 2, feed=None).as_numpy_iterator())
        assert [x.tolist() for x, _ in rows] == [[index, index + 2], [index + 4, index + 6]]
        assert [y["a"].tolist() for _, y in rows] == [[index + 10, index + 12], [index + 14, index + 16]]


class Divided:
    """Data of which each batch says its step and whose rows it has."""

    def __init__(self, part=None):
        self.part = part

    def shard(self, index, count):
        return Divided((index, count))

    def batches(self, first_step=0):
        return ((step, self.part) for step in itertools.count(first_step))


def test_a_process_goes_on_from_the_same_step_with_its_own_rows():
    for data, part in ((Onward(Divided(), 3), None), (Onward(Divided(), 3).shard(1, 2), (1, 2))):
        some = list(itertools.islice(data.batches(), 6))
        assert some == [(step, part) for step in (3, 3, 3, 3, 4, 5)]


IDS, MASK, TEXT = np.zeros((4, LENGTH), "int32"), np.ones((4, LENGTH), bool), np.array(["a"] * 4)


@pytest.mark.parametrize(
    "batch, named",
    [
        ((IDS, IDS), None),
        (({"token_ids": IDS}, IDS, MASK.astype("float32")), None),
        (({"token_ids": IDS, "padding_mask": MASK}, IDS), r"x\['padding_mask'\] is of bool"),
        ((IDS, IDS, MASK), "sample_weight is of bool"),
        ((TEXT, IDS), "x is of str"),
    ],
)
def test_tensors_that_have_no_mean_are_named(batch, named):
    class Data(keras.utils.PyDataset):
        def __getitem__(self, index):
            return batch

    import tensorflow as tf

    for data in (batch, Data(), tf.data.Dataset.from_tensors(batch)):
        check_tensors(data, replicas=1)
        if named is None:
            check_tensors(data, replicas=2)
            continue
        with pytest.raises(ValueError, match=named):
            check_tensors(data, replicas=2)


def test_batches_that_do_not_divide_are_refused():
    import tensorflow as tf

    arrays, dataset = (np.zeros((70, 3)), np.zeros(70)), tf.data.Dataset.from_tensor_slices(np.zeros((70, 3)))
    for data in (arrays, Batches(4), held(4), dataset.batch(2, drop_remainder=True), None, iter([])):
        check_rows(data, replicas=2)
    check_rows(arrays, replicas=4, first_only=True)  # 32, 32, 6
    check_rows(dataset.batch(3), replicas=4, first_only=True)
    for data, replicas, said in [
        (arrays, 4, "a batch of 6 rows"),
        (Batches(3), 2, "a batch of 3 rows.*multiple of 2"),
        (held(3), 2, "a batch of 3 rows"),
        (dataset.batch(2), 2, "unknown size.*drop_remainder=True"),
    ]:
        check_rows(data, replicas=1)
        with pytest.raises(ValueError, match=said):
            check_rows(data, replicas=replicas)
