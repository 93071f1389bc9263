"""A corpus of any size: the work and the memory of a batch stay what they are, and each process reads its own part."""

import runpy
import statistics
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from keras_seqlm.data import TokenStore

PATH = Path(__file__).parents[2] / "benchmarks" / "corpus_size.py"
BENCHMARK = runpy.run_path(str(PATH))
PositionStore, blocks_of, random_steps = (BENCHMARK[name] for name in ("PositionStore", "blocks_of", "random_steps"))

LENGTH, ROWS = 128, 16


@pytest.fixture
def make():
    """Blocks over a stream of so many blocks, whose ids follow from their position."""
    return lambda num_blocks: blocks_of(PositionStore(num_blocks * LENGTH + 1), LENGTH, ROWS)


def test_a_batch_takes_the_same_work_at_a_million_and_at_a_million_million_blocks(make):
    work = {}
    for size in (10**6, 10**9, 10**12):
        blocks = make(size)
        assert len(blocks) == (size - 1) // ROWS
        calls = [BENCHMARK["calls_of"](blocks.batch, step) for step in random_steps(blocks, 100)]
        # Rows and their ids are read once each, wherever they lie.
        assert len(blocks.tokens.reads) == 100 * ROWS
        assert {stop - start for start, stop in blocks.tokens.reads} == {LENGTH + 1}
        work[size] = statistics.mean(calls)
        assert max(calls) < 2 * min(calls)
    # What differs is how often the permutation goes round: less than twice on average, whatever the size.
    assert max(work.values()) < 1.5 * min(work.values())


def test_a_batch_takes_no_memory_that_grows(make):
    for size in (10**6, 10**12):
        tracemalloc.start()
        blocks = make(size)
        for step in random_steps(blocks, 20):
            blocks.batch(step)
        blocks.tokens.reads.clear()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 500_000


def test_rows_at_a_million_million_blocks_are_right(make):
    blocks = make(10**12)
    for step in random_steps(blocks, 10):
        x, y = blocks.batch(step)
        starts = np.array([start for start, _ in blocks.tokens.reads[-ROWS:]])
        np.testing.assert_array_equal(x, (starts[:, None] + np.arange(LENGTH)) % BENCHMARK["VOCABULARY"])
        np.testing.assert_array_equal(y, (starts[:, None] + np.arange(1, LENGTH + 1)) % BENCHMARK["VOCABULARY"])
        assert len(set((starts - starts[0]) % LENGTH)) == 1 and len(set(starts)) == ROWS
        assert starts.max() > 10**12, "rows come from everywhere"


@pytest.mark.parametrize("count", [1, 2, 8, 16])
@pytest.mark.parametrize("num_blocks", [1000, 10**12])
def test_each_process_reads_its_part_and_nothing_else(make, num_blocks, count):
    for step in random_steps(make(num_blocks), 5):
        (whole,) = BENCHMARK["parts_of_a_batch"](num_blocks, LENGTH, ROWS, 1, step)
        parts = BENCHMARK["parts_of_a_batch"](num_blocks, LENGTH, ROWS, count, step)
        assert [len(part) for part in parts] == [ROWS // count] * count
        # Together the whole batch, each row once; no two rows share an input token.
        assert sorted(read for part in parts for read in part) == sorted(whole)
        starts = np.sort([start for part in parts for start, _ in part])
        assert (np.diff(starts) >= LENGTH).all()


def test_a_store_of_ten_thousand_million_tokens(tmp_path, monkeypatch):
    """Holes in files stand for ids; maps are few, and pages are not read ahead where the corpus exceeds the memory."""
    monkeypatch.setattr("keras_seqlm.data.token_store.MOST_MAPS", 8)
    monkeypatch.setattr("keras_seqlm.data.token_store._memory", lambda: 1 << 34)
    folder = BENCHMARK["sparse_store"](tmp_path / "tokens", 10**10, shard_tokens=1 << 28)
    blocks = blocks_of(TokenStore(folder), LENGTH, ROWS)
    for step in random_steps(blocks, 20):
        x, y = blocks.batch(step)
        assert not x.any() and not y.any()
    maps = Path("/proc/self/smaps").read_text().split(f"{folder}/")[1:]
    assert len(maps) == 8
    assert all(" rr " in one.split("VmFlags:")[1].splitlines()[0] for one in maps)


def test_the_benchmark_runs():
    figures = BENCHMARK["measure"](lambda: PositionStore(10**12), LENGTH, ROWS, 3)
    assert set(figures) == {"open_ms", "rows_us", "batch_us", "calls", "megabytes"}
    assert all(np.isfinite(list(figures.values())))
