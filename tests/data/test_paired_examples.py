"""Rows in twos of one id: in every batch, of every process, the same for the same (seed, step)."""

import collections

import numpy as np
import pytest

from keras_seqlm.data import PairedExamples

DRAWS = np.random.default_rng(0)
SIZES = DRAWS.integers(2, 60, 203)
IDS = np.concatenate([DRAWS.integers(0, 40, 163), np.arange(40)])  # none stands alone but by chance
INPUTS = [{"token_ids": [row + 1] * size} for row, size in enumerate(SIZES)]


def data(**options):
    return PairedExamples(INPUTS, ids(), **{"batch_size": 8, "seed": 3, **options})


def ids():
    counts = collections.Counter(IDS.tolist())
    return [one if counts[one] > 1 else 0 for one in IDS.tolist()]


def rows_of(batch):
    return batch[0]["token_ids"][:, 0] - 1


def test_every_batch_holds_twos_and_no_row_comes_twice_in_an_epoch():
    made = data()
    for epoch in range(3):
        seen = []
        for place in range(len(made)):
            x, y = made.batch(epoch * len(made) + place)
            assert (y[::2] == y[1::2]).all()
            seen += rows_of((x,)).tolist()
        assert len(set(seen)) == len(seen) == len(made) * 8
    widths = [made.batch(step)[0]["token_ids"].shape[1] for step in range(len(made))]
    assert widths[0] != widths[1]


def test_batches_are_a_function_of_seed_and_step():
    one, two, other = data(), data(), data(seed=4)
    list(map(one.batch, range(9)))
    for step in (0, 5, len(one) * 2 + 1):
        assert (rows_of(one.batch(step)) == rows_of(two.batch(step))).all()
    assert any((rows_of(one.batch(step)) != rows_of(other.batch(step))).any() for step in range(3))
    epochs = [{tuple(rows_of(one.batch(e * len(one) + s))[:2]) for s in range(len(one))} for e in range(2)]
    assert len(epochs[0] & epochs[1]) < len(epochs[0]) / 2, "a row meets another one in each epoch"


def test_a_process_has_whole_twos():
    whole, parts = data(), [data().shard(i, 2) for i in range(2)]
    for step in range(4):
        batches = [part.batch(step) for part in parts]
        for _, y in batches:
            assert (y[::2] == y[1::2]).all() and len(y) == 4
        assert sorted(np.concatenate([rows_of(one) for one in batches])) == sorted(rows_of(whole.batch(step)))
    with pytest.raises(ValueError, match="the same number of twos"):
        data().shard(0, 8)


def test_complete_reads_all_but_the_odd():
    made = data(complete=True)
    odd = sum(count % 2 for count in collections.Counter(ids()).values())
    assert made.num_rows == 203 - odd
    batches = [made.batch(step) for step in range(len(made))]
    seen = np.concatenate([rows_of(one)[one[2] > 0] for one in batches])
    assert len(seen) == len(set(seen)) == made.num_rows
    # The mean over batches of what is a mean over the rows that are there is that over all rows.
    means = [np.where(w > 0, rows_of((x,)) * w, 0).sum() / (w > 0).sum() for x, _, w in batches]
    assert np.mean(means) == pytest.approx(seen.mean(), rel=1e-6)


def test_what_is_refused():
    for options, words in (
        ({"batch_size": 7}, "must be even"),
        ({"of_tokens": True}, "an id a row"),
        ({"batch_size": 300}, "a batch needs 300"),
    ):
        with pytest.raises(ValueError, match=words):
            data(**options)
    with pytest.raises(ValueError, match="1 of 2 ids stand in one row alone, the first of them in example 2"):
        PairedExamples(INPUTS[:3], [5, 6, 5], 2)
