"""Batches of several widths under plain `fit`, which learns the shapes of all from the first two; each row read once."""

import keras
import numpy as np
import pytest

from keras_seqlm.data import Examples

pytestmark = pytest.mark.neutral


def examples(sizes, **options):
    inputs = [{"token_ids": [4 + i % 50] * size} for i, size in enumerate(sizes)]
    return Examples(inputs, [i % 2 for i in range(len(sizes))], **{"batch_size": 4, **options})


class Small(keras.Model):
    """The mean of vectors of a row's real tokens."""

    def __init__(self):
        super().__init__()
        self.vectors, self.classes = keras.layers.Embedding(60, 4), keras.layers.Dense(2)

    def call(self, inputs):
        real = keras.ops.arange(keras.ops.shape(inputs["token_ids"])[1])[None] < inputs["lengths"][:, None]
        real = keras.ops.cast(real, "float32")[..., None]
        return self.classes(keras.ops.sum(self.vectors(inputs["token_ids"]) * real, axis=1))


SIZES = {
    "mixed": np.random.default_rng(0).integers(1, 70, 60),
    "mostly short": [5] * 50 + [40] * 4,
    "all short": [3] * 20,
    "one batch": [1, 30, 4, 5, 6],
    "last alone is short": [40] * 8 + [3] * 2,
}


@pytest.mark.backends
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_plain_fit_takes_batches_of_several_widths(sizes):
    model = Small()
    model.compile("adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
    history = model.fit(examples(sizes), validation_data=examples(sizes, complete=True), epochs=2, verbose=0)
    assert np.isfinite(history.history["val_loss"]).all()
    whole = examples(sizes, complete=True, batch_size=len(sizes)).batch(0)
    assert history.history["val_loss"][-1] == pytest.approx(float(model.test_on_batch(*whole)), rel=1e-4)


@pytest.mark.parametrize("complete", [False, True])
def test_the_first_two_batches_of_an_epoch_have_two_widths(complete):
    data = examples(SIZES["mixed"], complete=complete)
    for epoch in range(1 if complete else 5):
        widths = [data.batch(epoch * len(data) + place)[0]["token_ids"].shape[1] for place in range(len(data))]
        assert widths[0] != widths[1] and len(set(widths)) > 2


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_each_row_is_read_once(sizes):
    data = examples(sizes, complete=True)
    read = [data.batch(step) for step in range(len(data))]
    lengths = np.concatenate([x["lengths"][weight > 0] for x, _, weight in read])
    assert sorted(lengths) == sorted(sizes)
    assert sum(weight.sum() for *_, weight in read) == pytest.approx(len(data) * 4)


def test_a_process_sees_its_rows_of_the_same_batches():
    data = examples(SIZES["mixed"])
    parts = [data.shard(i, 2) for i in range(2)]
    for step in (0, 1, 7, len(data) + 1):
        whole, halves = data.batch(step), [part.batch(step) for part in parts]
        for i in range(2):
            for name in whole[0]:
                assert (whole[0][name][i::2] == halves[i][0][name]).all()


def test_shapes_seen_by_keras_and_by_step_are_those_of_one_order():
    data = examples(SIZES["mixed"])
    for index in range(len(data)):
        by_keras, by_step = data[index], data.batch(index)
        keras.tree.map_structure(np.testing.assert_array_equal, by_keras, by_step)
