"""The split falls between documents and takes its share from each file; only where there is no border it cuts."""

import json

import numpy as np
import pytest

from keras_seqlm.data import causal_blocks, pack, splitting
from keras_seqlm.data.splitting import split
from keras_seqlm.tokenizers import ByteTokenizer

RNG = np.random.default_rng(3)


@pytest.fixture
def store_of(tmp_path):
    def store_of(files):
        """Pack files, each given as the lengths of its documents in tokens; every document holds one letter."""
        folder = tmp_path / f"text{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        letter = iter("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" * 400)
        for number, lengths in enumerate(files):
            documents = [next(letter) * (length - 2) for length in lengths]
            if len(documents) == 1:
                (folder / f"{number:04d}.txt").write_text(documents[0])
            else:
                lines = [json.dumps({"text": document}) for document in documents]
                (folder / f"{number:04d}.jsonl").write_text("\n".join(lines))
        return pack(folder, ByteTokenizer(), cache_dir=tmp_path / "cache", shard_tokens=5000)

    return store_of


def whole_documents(store):
    """Whether every part begins and ends at a border of documents."""
    return set(store.ranges.ravel().tolist()) <= set(store.document_starts.tolist())


def both_hold_all(store, train, validation):
    """Each token is in one of the two, once, and nothing of either is out of order."""
    ranges = sorted([*train.ranges.tolist(), *validation.ranges.tolist()])
    assert [place for pair in ranges for place in pair][1:-1:2] == [pair[0] for pair in ranges][1:]
    assert ranges[0][0] == 0 and ranges[-1][1] == len(store) == len(train) + len(validation)
    assert train.num_bytes + validation.num_bytes == store.num_bytes


def test_each_file_gives_its_last_documents(store_of):
    files = [RNG.integers(5, 40, 300).tolist() for _ in range(4)]
    store = store_of(files)
    train, validation = split(store, 0.1)
    both_hold_all(store, train, validation)
    assert whole_documents(train) and whole_documents(validation)
    ends = np.cumsum([sum(lengths) for lengths in files])
    assert len(validation.ranges) == 4 and validation.ranges[:, 1].tolist() == ends.tolist()
    for (start, stop), lengths in zip(validation.ranges, files, strict=True):
        assert abs((stop - start) - 0.1 * sum(lengths)) <= 40  # to half a document, and what the last one left over
    assert abs(len(validation) - 0.1 * len(store)) <= 20
    assert train.num_documents + validation.num_documents == 1200


def test_of_many_files_of_one_document_whole_ones_are_taken_at_even_distances(store_of):
    store = store_of([[100]] * 100)
    train, validation = split(store, 0.1)
    both_hold_all(store, train, validation)
    assert (validation.ranges[:, 0] // 100).tolist() == list(range(5, 100, 10))
    assert validation.num_documents == 10 and train.num_documents == 90 and whole_documents(train)


@pytest.mark.parametrize("fraction", [0.03, 0.1, 0.5])
def test_a_single_text_gives_its_tail(store_of, fraction):
    store = store_of([[1003]])
    train, validation = split(store, fraction)
    assert validation.ranges.tolist() == [[int((1 - fraction) * 1003), 1003]]
    both_hold_all(store, train, validation)


def test_few_long_books_give_their_tails_each(store_of):
    store = store_of([[1000], [2000], [3000]])
    train, validation = split(store, 0.1)
    both_hold_all(store, train, validation)
    assert validation.ranges.tolist() == [[900, 1000], [2800, 3000], [5700, 6000]]
    # Where a part ends, a document ends for the model.
    segments = train.segment_ids(0, len(train))
    assert segments.tolist() == [1] * 900 + [2] * 1800 + [3] * 2700
    assert train.num_documents == validation.num_documents == 3


@pytest.mark.parametrize("seed", range(20))
def test_the_share_holds_for_all_kinds_of_files(store_of, seed):
    rng = np.random.default_rng(seed)
    files = [(3 + rng.pareto(0.7, rng.integers(1, 60)) * 10).clip(max=3000).astype(int).tolist() for _ in range(12)]
    store, fraction = store_of(files), rng.choice([0.02, 0.1, 0.3])
    train, validation = split(store, fraction)
    both_hold_all(store, train, validation)
    longest_kept_whole = max([length for lengths in files for length in lengths if length <= fraction * len(store)])
    assert abs(len(validation) - fraction * len(store)) <= longest_kept_whole / 2 + len(files) + len(validation.ranges)
    cut = set(validation.ranges.ravel().tolist()) - set(store.document_starts.tolist())
    long = [length for lengths in files for length in lengths if length > fraction * len(store)]
    assert len(cut) == len(long)
    everything = store[:]
    for part in (train, validation):
        expected = np.concatenate([everything[start:stop] for start, stop in part.ranges])
        np.testing.assert_array_equal(part[:], expected)
        for start, stop in rng.integers(0, len(part), (20, 2)):
            np.testing.assert_array_equal(part[start:stop], expected[start:stop])
            if start < stop:
                # A new segment where a document or a part begins.
                opens = np.concatenate([np.isin(np.arange(*pair), store.document_starts) for pair in part.ranges])
                opens[np.cumsum(part.ranges[:, 1] - part.ranges[:, 0])[:-1]] = True
                opens[start] = True
                np.testing.assert_array_equal(part.segment_ids(start, stop), np.cumsum(opens[start:stop]))
        inner = part.part(7).part(0, -5)
        np.testing.assert_array_equal(inner[:], expected[7:-5])
        assert inner.num_bytes == np.sum(expected[7:-5] > 3)


def test_long_documents_are_found_in_blocks(monkeypatch):
    starts = np.concatenate([[0], np.cumsum(RNG.integers(1, 100, 1000))])
    expected = np.flatnonzero(np.diff(starts) > 90)
    for block in (7, 100, 1000):
        monkeypatch.setattr(splitting, "BLOCK", block)
        np.testing.assert_array_equal(splitting._long_documents(starts, 90), expected)


def test_blocks_train_and_validate_on_either_side(tmp_path):
    for name in "ab":
        lines = [json.dumps({"text": f"{name} {number:03d}"}) for number in range(200)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    tokenizer = ByteTokenizer()
    train, validation = causal_blocks(
        [tmp_path / "a.jsonl", tmp_path / "b.jsonl"], tokenizer, 8, 4, cache_dir=tmp_path / "cache", segment_ids=True
    )
    seen = [tokenizer.decode(blocks.tokens[:]) for blocks in (train, validation)]
    assert seen[0].count("a") == seen[0].count("b") == 180
    assert seen[1] == "".join(f"{name} {number:03d}" for name in "ab" for number in range(180, 200))
    assert (train.num_bytes, validation.num_bytes) == (1800, 200)
