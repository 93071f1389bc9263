"""Batches of labelled examples: a function of (seed, step), each row once, means that are those of all that counts."""

import keras
import numpy as np
import pytest

from keras_seqlm.data import Examples
from keras_seqlm.data.examples import width_of

DRAWS = np.random.default_rng(0)
SIZES = DRAWS.integers(1, 90, 103)
INPUTS = [{"token_ids": np.full(size, number)} for number, size in enumerate(SIZES)]


def test_each_epoch_has_each_row_once_in_another_order():
    data = Examples(INPUTS, np.arange(103), 8, seed=1)
    assert len(data) == 12
    epochs = [np.concatenate([data.batch(epoch * 12 + step)[1] for step in range(12)]) for epoch in range(3)]
    for rows in epochs:
        assert len(set(rows.tolist())) == 96
    assert not np.array_equal(epochs[0], epochs[1])
    for step in (0, 13, 30):
        x, y = data.batch(step)
        assert x["token_ids"].shape == (8, width_of(x["lengths"].max(), None))
        for row, number in enumerate(y):
            assert x["lengths"][row] == SIZES[number]
            assert x["token_ids"][row].tolist() == [number] * SIZES[number] + [0] * (
                x["token_ids"].shape[1] - SIZES[number]
            )


def test_rows_of_like_length_share_a_batch():
    data = Examples(INPUTS, np.arange(103), 8, seed=1)
    padded = np.mean(
        [data.batch(step)[0]["token_ids"].size - data.batch(step)[0]["lengths"].sum() for step in range(12)]
    )
    by_chance = np.mean([8 * SIZES[i : i + 8].max() - SIZES[i : i + 8].sum() for i in range(0, 96, 8)])
    assert padded < 0.5 * by_chance


@pytest.mark.parametrize("complete", [False, True])
def test_processes_have_the_rows_of_one_batch_between_them(complete):
    data = Examples(INPUTS, np.arange(103), 8, seed=1, complete=complete)
    for step in (0, 5, 12):
        whole = keras.tree.flatten(data.batch(step))
        parts = [keras.tree.flatten(data.shard(index, 4).batch(step)) for index in range(4)]
        for number, array in enumerate(whole):
            for index in range(4):
                np.testing.assert_array_equal(parts[index][number], array[index::4])


@pytest.mark.parametrize("of_tokens", [False, True])
def test_the_mean_that_keras_reports_is_over_all_that_counts(of_tokens):
    """Of a model that gives one number, whose loss is then known by hand."""
    targets = [DRAWS.integers(-1, 3, size) for size in SIZES] if of_tokens else DRAWS.integers(0, 3, 103)
    data = Examples(INPUTS, targets, 8, of_tokens=of_tokens, complete=True)
    seen = np.concatenate([data.batch(step)[0]["token_ids"][:, 0] for step in range(len(data))])[:103]
    assert sorted(seen.tolist()) == list(range(103))  # each once; what fills up the last batch comes last
    losses = np.array([0.5, 1.5, 4.0, 0.0])  # of class 0, 1 and 2, and of what does not count
    reported = []
    for step in range(len(data)):
        _, y, weight = data.batch(step)
        counted = (y >= 0) if of_tokens else np.ones_like(y, bool)
        shown = losses[y] * (weight[:, None] if of_tokens else weight)
        reported.append((shown * counted).sum() / counted.sum())
    every = np.concatenate(targets) if of_tokens else targets
    assert np.mean(reported) == pytest.approx(losses[every[every >= 0]].mean(), rel=1e-6)


def test_batches_of_several_widths_in_one_tf_dataset():
    data = Examples(INPUTS, np.arange(103), 8, seed=1)
    dataset = data.as_tf_dataset(first_step=3)
    assert dataset.element_spec[0]["token_ids"].shape.as_list() == [8, None]
    assert dataset.element_spec[0]["lengths"].shape.as_list() == dataset.element_spec[1].shape.as_list() == [8]
    for step, (x, y) in zip(range(3, 16), dataset, strict=False):
        np.testing.assert_array_equal(x["token_ids"], data.batch(step)[0]["token_ids"])
        np.testing.assert_array_equal(y, data.batch(step)[1])


def test_what_is_refused():
    with pytest.raises(ValueError, match="each example needs a target"):
        Examples(INPUTS, np.arange(3), 8)
    with pytest.raises(ValueError, match="a batch needs 200"):
        Examples(INPUTS, np.arange(103), 200)
    with pytest.raises(ValueError, match="must have 1 to 40 tokens, got 1 to 8"):
        Examples(INPUTS, np.arange(103), 8, max_length=40)
    assert [width_of(size, None) for size in (1, 16, 17, 25, 33, 64, 65, 97)] == [16, 16, 24, 32, 48, 64, 96, 128]
    assert width_of(50, 60) == 60
    assert Examples(INPUTS, np.arange(103), 8).content_hash != Examples(INPUTS, np.arange(103) % 7, 8).content_hash
