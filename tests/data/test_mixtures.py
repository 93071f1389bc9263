"""Several corpora with weights: exact shares, batches that are pure in (seed, step), epochs told."""

import json
import pickle

import numpy as np
import pytest

from keras_seqlm.data import MixedBlocks, causal_blocks, pack
from keras_seqlm.data.mixtures import JoinedStore
from keras_seqlm.tokenizers import ByteTokenizer

SIZES = {"a": 9000, "b": 2500, "c": 600}


@pytest.fixture
def files(tmp_path):
    """Three texts, of capital, of small letters and of digits, so that a token tells its corpus."""
    alphabets = {"a": "ABCDEFGHIJKLMNOPQRSTUVW", "b": "abcdefghijklmnopqrs", "c": "0123456789"}
    for name, size in SIZES.items():
        (tmp_path / f"{name}.txt").write_text((alphabets[name] * size)[: size - 2])
    return {name: str(tmp_path / f"{name}.txt") for name in SIZES}


@pytest.fixture
def make(tmp_path, files):
    def make(weights=(0.7, 0.2, 0.1), length=16, rows=8, **how):
        how = {"validation_fraction": 0, **how}
        mixture = {files[name]: weight for name, weight in zip(files, weights, strict=False)}
        return causal_blocks(mixture, ByteTokenizer(), length, rows, cache_dir=tmp_path / "cache", **how)

    return make


def corpora_of(x):
    """The corpus of each row, by its letters."""
    letters = x[:, 1:4].max(axis=1) - 4
    return np.select([letters >= ord("a"), letters >= ord("A")], [1, 0], 2)


def test_shares_are_exact_after_any_number_of_rows(make):
    train, _ = make()
    counts, rows = np.zeros(3, int), 0
    for step in range(300):
        for corpus in corpora_of(train.batch(step)[0]):
            counts[corpus], rows = counts[corpus] + 1, rows + 1
            assert np.abs(counts - rows * np.array([0.7, 0.2, 0.1])).max() <= 1
            assert counts.tolist() == train.num_rows(rows)
    assert counts.tolist() == [1680, 480, 240]


@pytest.mark.parametrize("weights", [(1, 1), (5, 3, 2), (0.9, 0.05, 0.05), (1 / 3, 1 / 3, 1 / 3), (1, 1e-6), (7,)])
def test_every_row_of_a_corpus_comes_once_however_far_the_run_goes(make, weights):
    train, _ = make(weights)
    for first in (0, 12345, 10**15):
        seen = [[] for _ in weights]
        for row in range(first, first + 2000):
            corpus, number = train._place(row)
            seen[corpus].append(number)
        before, after = train.num_rows(first), train.num_rows(first + 2000)
        assert [list(range(*pair)) for pair in zip(before, after, strict=True)] == seen
        for rows, weight in zip(after, weights, strict=True):
            assert abs(rows - (first + 2000) * weight / sum(weights)) <= 1.5 + 1e-9 * first


def test_a_batch_is_a_pure_function_of_seed_and_step(make):
    train, _ = make(seed=3)
    again, other = make(seed=3)[0], make(seed=4)[0]
    steps = [0, 5, len(train) - 1, len(train), 7 * len(train) + 3]
    first = {step: train.batch(step) for step in steps}
    for step in reversed(steps):
        for one, two in zip(first[step], again.batch(step), strict=True):
            np.testing.assert_array_equal(one, two)
        assert not np.array_equal(first[step][0], other.batch(step)[0])
    x, y = first[0]
    assert x.shape == y.shape == (8, 16) and x.dtype == np.int32
    np.testing.assert_array_equal(x[:, 1:], y[:, :-1])
    stream = train.batches(7 * len(train) + 3)
    np.testing.assert_array_equal(next(stream)[0], first[steps[-1]][0])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(train)).batch(5)[0], first[5][0])


def test_each_corpus_is_read_epoch_by_epoch_without_repetition(make):
    train, _ = make((1, 1, 1))
    starts = np.concatenate([train._starts(step) for step in range(600)])
    places = np.array([train._place(row)[0] for row in range(len(starts))])
    offset = 0
    for number, (name, size) in enumerate(SIZES.items()):
        own = starts[places == number] - offset
        per_epoch = len(train._parts[number])
        assert per_epoch >= (size - 1) // 16 - 1, name
        orders = set()
        for epoch in range(len(own) // per_epoch):
            some = own[epoch * per_epoch : (epoch + 1) * per_epoch]
            assert (np.diff(np.sort(some)) >= 16).all() and some.min() >= 0 and some.max() + 16 < size
            orders.add(tuple(some.tolist()))
        assert len(orders) == len(own) // per_epoch
        offset += size


def test_epochs_say_how_often_each_corpus_is_read(make, files):
    train, _ = make((0.5, 0.3, 0.2))
    epochs = train.epochs(1000)
    assert list(epochs) == list(files.values()) and train.weights[files["a"]] == 0.5
    for (name, share), size in zip(zip(files, (0.5, 0.3, 0.2), strict=True), SIZES.values(), strict=True):
        assert epochs[files[name]] == pytest.approx(8000 * share / ((size - 1) // 16 - 1), rel=0.05)
    assert train.epochs(0) == dict.fromkeys(files.values(), 0)
    assert train.shard(0, 2).epochs(1000) == epochs  # of the run, and not of a process's own rows


def test_without_shuffling_the_blocks_of_each_corpus_come_in_their_order(files, tmp_path):
    stores = {name: pack(files[name], ByteTokenizer(), cache_dir=tmp_path / "cache") for name in "ab"}
    blocks = MixedBlocks(stores, {"a": 1, "b": 1}, 16, 4, shuffle=False)
    starts = np.concatenate([blocks._starts(step) for step in range(10)])
    places = np.array([blocks._place(row)[0] for row in range(len(starts))])
    for number, offset in enumerate((0, len(stores["a"]))):
        np.testing.assert_array_equal(starts[places == number] - offset, 16 * np.arange(20))


def test_shards_hold_every_row_once(make):
    train, _ = make(rows=6, segment_ids=True)
    for step in (0, 3, len(train) + 1):
        inputs, y = train.batch(step)
        parts = [train.shard(index, 3).batch(step) for index in range(3)]
        for index, (some, targets) in enumerate(parts):
            np.testing.assert_array_equal(some["token_ids"], inputs["token_ids"][index::3])
            np.testing.assert_array_equal(some["segment_ids"], inputs["segment_ids"][index::3])
            np.testing.assert_array_equal(targets, y[index::3])


def test_validation_has_of_each_corpus_its_share(tmp_path, files):
    lines = [json.dumps({"text": f"line {number:03d}"}) for number in range(300)]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    mixture = {files["a"]: 2, str(tmp_path / "d.jsonl"): 1}
    train, validation = causal_blocks(
        mixture, ByteTokenizer(), 16, 4, validation_fraction=0.1, cache_dir=tmp_path / "cache", segment_ids=True
    )
    text = ByteTokenizer().decode(validation.tokens[:])
    assert text.startswith(open(files["a"]).read()[-899:]) and text.endswith(
        "".join(f"line {n}" for n in range(270, 300))
    )
    assert validation.num_bytes == 899 + 30 * 8 == len(text)
    assert validation.complete and len(validation.tokens.stores) == 2 and validation.tokens.num_documents == 31
    seen = np.concatenate([x["token_ids"][weight > 0] for x, _, weight in validation])
    np.testing.assert_array_equal(seen, validation.tokens[:-1])
    segments = validation.tokens.segment_ids(890, 920)
    assert segments[0] == 1 and segments[10] == 2 and segments[-1] == 3
    whole = validation.tokens
    np.testing.assert_array_equal(np.asarray(whole)[850:950], whole[850:950])
    assert whole[-1] == 2 and whole[5:3].shape == (0,)
    for wrong in (lambda: whole[len(whole)], lambda: whole[::2]):
        with pytest.raises((IndexError, ValueError)):
            wrong()
    assert train.content_hash == validation.content_hash is not None


def test_the_hash_of_a_mixture_is_of_all_its_texts_and_not_of_names(make, files, tmp_path):
    before = make()[0].content_hash
    renamed = tmp_path / "renamed.txt"
    open(files["c"]).close()
    renamed.write_text(open(files["c"]).read())
    files["c"] = str(renamed)
    assert make()[0].content_hash == before
    renamed.write_text("1" * 598)
    assert make()[0].content_hash != before


def test_corpora_of_one_size_come_in_orders_of_their_own(tmp_path):
    """Or two corpora of paired documents, as a text and its translation, would always stand in one batch."""
    for name, letter in (("a", "A"), ("b", "b")):
        (tmp_path / f"{name}.txt").write_text(letter * 3000)
    files = {str(tmp_path / f"{name}.txt"): 1 for name in "ab"}
    train, _ = causal_blocks(files, ByteTokenizer(), 16, 8, validation_fraction=0, cache_dir=tmp_path / "cache")
    first, second = train._parts
    assert len(first) == len(second) and first.seed != second.seed
    rows = np.arange(len(first))
    assert not np.array_equal(first._block_starts(0, rows), second._block_starts(0, rows))
    other, _ = causal_blocks(files, ByteTokenizer(), 16, 8, seed=1, validation_fraction=0, cache_dir=tmp_path / "cache")
    assert len({part.seed for blocks in (train, other) for part in blocks._parts}) == 4


def test_a_text_of_which_no_token_is_taken_is_part_of_the_hash(files, tmp_path):
    whole, other, third = (pack(files[name], ByteTokenizer(), cache_dir=tmp_path / "cache") for name in "abc")
    joined = [JoinedStore([whole, one.part(0, 0)]) for one in (other, third)]
    assert all(len(one) == len(whole) and len(one.stores) == 1 for one in joined)
    assert len({JoinedStore([whole]).content_hash, *(one.content_hash for one in joined)}) == 3
    assert joined[0].content_hash == JoinedStore([whole, other]).content_hash


def test_ids_that_a_model_does_not_know_are_refused_in_a_mixture_too(files, tmp_path):
    stores = {name: pack(files[name], ByteTokenizer(), cache_dir=tmp_path / "cache") for name in "ac"}
    assert MixedBlocks(stores, {"a": 1, "c": 1}, 16, 4).vocabulary_size == ByteTokenizer().vocabulary_size
    few = MixedBlocks(stores, {"a": 1, "c": 1}, 16, 4, vocabulary_size=70)
    assert few.vocabulary_size == 70
    with pytest.raises(ValueError, match=r"Token \d+ of the stream is \d+, and the model knows the ids from 0 to 69"):
        few.batch(0)


def test_what_does_not_go_together_is_refused(make, files, tmp_path):
    for weight in (0, -1, float("inf"), "0.5", True, None, files):
        with pytest.raises(ValueError, match="gives each corpus a weight, a number above 0; .*a.txt' has "):
            make((weight, 1))
    with pytest.raises(ValueError, match="empty dict"):
        make(())
    with pytest.raises(ValueError, match="c.txt has 600 tokens to train on and a row needs 601"):
        make(length=600)
    with pytest.raises(ValueError, match="contiguous"):
        make(contiguous=True)
    with pytest.raises(ValueError, match="weights are for what is trained on"):
        make(validation={files["a"]: 1})
    with pytest.warns(UserWarning, match="a.txt is in two of the corpora"):
        causal_blocks({files["a"]: 1, f"{tmp_path}/[ab].txt": 1}, ByteTokenizer(), 16, 4, cache_dir=tmp_path / "cache")
    with pytest.warns(UserWarning, match="b.txt is both trained on and validated on"):
        make(validation=files["b"])
    store = pack(files["a"], ByteTokenizer(), cache_dir=tmp_path / "cache")
    for weights in ({}, {"a": 0}, {"b": 1}):
        with pytest.raises(ValueError, match="Each corpus has a weight above 0"):
            MixedBlocks({"a": store}, weights, 16, 4)
    other = store.part()
    other.vocabulary_size = 7
    with pytest.raises(ValueError, match=r"one vocabulary, received sizes \[7, 260\]"):
        JoinedStore([store, other])


def test_a_data_set_of_tensorflow(make):
    train, _ = make()
    dataset = train.as_tf_dataset(first_step=3, num_steps=2)
    for step, (x, _) in enumerate(dataset.as_numpy_iterator(), 3):
        np.testing.assert_array_equal(x, train.batch(step)[0])
    assert len(train) == sum(len(part) for part in train._parts) // 8
