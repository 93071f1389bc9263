"""Causal blocks: pure in (seed, step), every token once, exact validation, and `fit` on every backend."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_seqlm.data import CausalBlocks, causal_blocks, pack
from keras_seqlm.models import RecurrentLM
from keras_seqlm.tokenizers import ByteTokenizer

pytestmark = pytest.mark.neutral

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture
def tokenizer():
    return ByteTokenizer()


@pytest.fixture
def make(tmp_path, tokenizer):
    """Make blocks of a text of so many tokens in which every token differs from its neighbours."""

    def make(num_tokens, sequence_length, batch_size, **arguments):
        arguments.setdefault("validation_fraction", 0)
        path = tmp_path / f"text{num_tokens}.txt"
        path.write_bytes(bytes(i * 7 % 127 for i in range(num_tokens - 2)))
        return causal_blocks(path, tokenizer, sequence_length, batch_size, cache_dir=tmp_path / "cache", **arguments)

    return make


def test_a_batch_is_a_pure_function_of_seed_and_step(make):
    train, _ = make(5000, 16, 8, seed=3)
    again, _ = make(5000, 16, 8, seed=3)
    other, _ = make(5000, 16, 8, seed=4)
    steps = [0, 5, len(train) - 1, len(train), 10 * len(train) + 3]
    first = {step: train.batch(step) for step in steps}
    for step in reversed(steps):
        for one, two in zip(first[step], again.batch(step), strict=True):
            np.testing.assert_array_equal(one, two)
        assert not np.array_equal(first[step][0], other.batch(step)[0])
    x, y = first[0]
    assert x.shape == y.shape == (8, 16) and x.dtype == y.dtype == np.int32
    np.testing.assert_array_equal(x[:, 1:], y[:, :-1])


def test_an_epoch_covers_the_stream_without_repetition(make):
    train, _ = make(20_000, 16, 8, seed=1)
    borders = set()
    for epoch in range(4):
        starts = np.sort(np.concatenate([train._starts(epoch * len(train) + i) for i in range(len(train))]))
        assert (np.diff(starts) >= 16).all() and len(starts) * 16 / 20_000 > 0.99
        assert starts[0] >= 0 and starts[-1] + 16 <= 19_999
        borders.add(int(starts[0] % 16))
        assert (starts % 16 == starts[0] % 16).all()
    assert len(borders) > 1, "each epoch cuts at other places"


def test_every_target_is_seen_in_some_epoch(make):
    train, _ = make(1000, 16, 4, seed=2)
    seen = set()
    for step in range(100 * len(train)):
        for start in train._starts(step):
            seen.update(range(start + 1, start + 17))
    assert seen == set(range(1, 1000))


def test_rows_are_what_starts_says_and_targets_the_next_tokens(make):
    train, _ = make(3000, 16, 8)
    stream = train.tokens[:]
    x, y = train.batch(7)
    for row, start in enumerate(train._starts(7)):
        np.testing.assert_array_equal(x[row], stream[start : start + 16])
        np.testing.assert_array_equal(y[row], stream[start + 1 : start + 17])


def test_unshuffled_blocks_go_in_order(make):
    train, _ = make(1000, 10, 4, shuffle=False)
    assert len(train) == 999 // 40
    x = np.concatenate([train.batch(step)[0].ravel() for step in range(len(train))])
    np.testing.assert_array_equal(x, train.tokens[: len(x)])
    np.testing.assert_array_equal(train.batch(0)[0], train.batch(len(train))[0])


@pytest.mark.parametrize("spare", [0, 1, 5, 40])
def test_smallest_corpus_gives_one_batch(make, spare):
    train, _ = make(4 * 16 + 1 + spare, 16, 4)
    assert len(train) == 1
    for step in range(20):
        starts = np.sort(train._starts(step))
        assert (np.diff(starts) >= 16).all() and starts[0] >= 0 and starts[-1] + 16 < train.num_tokens


def test_too_few_tokens_says_how_many(make):
    with pytest.raises(ValueError, match="There are 64 tokens .* 4 blocks of 16 needs 65"):
        make(64, 16, 4)
    with pytest.raises(ValueError, match="There are 1 tokens .* validation needs 2"):
        make(100, 16, 4, validation_fraction=0.01)
    for wrong in ({"sequence_length": 0}, {"batch_size": 2.5}, {"batch_size": -1}):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be"):
            make(1000, **{"sequence_length": 16, "batch_size": 4, **wrong})
    for wrong in (-0.1, 1, 1.5):
        with pytest.raises(ValueError, match="`validation_fraction` must be"):
            make(1000, 16, 4, validation_fraction=wrong)


@pytest.mark.parametrize("num_tokens", [1000, 1001, 1281, 1282, 40])
def test_validation_is_the_tail_and_each_target_comes_once(make, num_tokens):
    train, validation = make(num_tokens, 4, 2, validation_fraction=0.5)
    everything = make(num_tokens, 4, 2)[0].tokens[:]
    split = int(0.5 * num_tokens)
    np.testing.assert_array_equal(train.tokens[:], everything[:split])
    np.testing.assert_array_equal(validation.tokens[:], everything[split:])
    x, y, weight = (np.concatenate(parts) for parts in zip(*validation, strict=True))
    assert weight.dtype == np.float32 and x.shape == (len(validation) * 2, 4)
    real = weight > 0
    np.testing.assert_array_equal(x[real], everything[split:-1])
    np.testing.assert_array_equal(y[real], everything[split + 1 :])
    assert real.sum() == validation.num_targets == num_tokens - split - 1
    assert not x[~real].any() and not y[~real].any()
    assert len(np.unique(weight[real])) == 1
    # What Keras averages with: the weights' mean over all places, padding included, is one.
    assert weight.mean() == pytest.approx(1, abs=1e-6)


def test_no_batch_is_padding_alone(make):
    for num_tokens in range(26, 120):
        _, validation = make(num_tokens, 4, 3, validation_fraction=0.5)
        assert all(weight.any() for _, _, weight in validation)


@pytest.mark.backends
def test_a_process_whose_rows_are_all_padding_has_a_finite_loss(make):
    _, validation = make(60, 4, 3, validation_fraction=0.45)
    parts = [validation.shard(index, 3) for index in range(3)]
    last, model = len(validation) - 1, tiny_model()
    assert [part.batch(last)[2].any() for part in parts] == [True, False, False]
    for part in parts:
        x, y, weight = part.batch(last)
        loss = model.evaluate(x, y, sample_weight=weight, verbose=0)
        assert np.isfinite(loss) and (loss > 0) == weight.any()
        assert np.isfinite(model.evaluate(part, verbose=0))


def test_validation_files_and_raw_bytes(tmp_path, tokenizer):
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("größer " * 100)
    two.write_text("kleiner " * 30)
    cache = tmp_path / "cache"
    train, validation = causal_blocks(one, tokenizer, 8, 2, validation=two, cache_dir=cache)
    assert (train.num_bytes, validation.num_bytes) == (900, 240)
    assert (train.num_tokens, validation.num_tokens) == (902, 242)
    train, validation = causal_blocks([one, two], tokenizer, 8, 2, validation_fraction=0.33, cache_dir=cache)
    assert train.num_bytes + validation.num_bytes == 1140
    assert validation.num_bytes == np.sum(validation.tokens[:] > 3)
    with pytest.warns(UserWarning, match="two.txt is both trained on and validated on"):
        causal_blocks([one, two], tokenizer, 8, 2, validation=two, cache_dir=cache)


def test_segment_ids_number_the_documents_of_a_row(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text('{"text": "abc"}\n{"text": "d"}\n{"text": "efghij"}\n' * 40)
    train, validation = causal_blocks(
        tmp_path, tokenizer, 12, 4, segment_ids=True, validation_fraction=0.2, cache_dir=tmp_path / "cache"
    )
    for inputs, y in (train.batch(step) for step in range(3 * len(train))):
        ids, segments = inputs["token_ids"], inputs["segment_ids"]
        assert list(inputs) == ["token_ids", "segment_ids"] and segments.dtype == np.int32
        np.testing.assert_array_equal(segments, 1 + np.cumsum(np.pad(ids[:, 1:] == 1, ((0, 0), (1, 0))), axis=1))
        np.testing.assert_array_equal(y[:, :-1], ids[:, 1:])
    for inputs, _, weight in validation:
        np.testing.assert_array_equal(inputs["segment_ids"] > 0, weight > 0)


def test_contiguous_rows_go_on_where_they_ended(make):
    train, validation = make(1000, 8, 4, contiguous=True, validation_fraction=0.1)
    rows = np.concatenate([train.batch(step)[0]["token_ids"] for step in range(len(train))], axis=1)
    stream = train.tokens[:]
    assert rows.shape == (4, 899 // 4 // 8 * 8)
    for number, row in enumerate(rows):
        start = number * (899 // 4)
        np.testing.assert_array_equal(row, stream[start : start + rows.shape[1]])
    for name, array in train.batch(1)[0].items():
        np.testing.assert_array_equal(array, train.batch(1 + len(train))[0][name])
    assert validation.complete and not validation.contiguous


def test_a_contiguous_row_starts_with_segment_0_where_its_document_goes_on(tmp_path, tokenizer):
    """By the ids alone: a document starts with bos, which is 1; and a pass over the stream starts anew."""
    texts = tmp_path / "a.jsonl"
    texts.write_text('{"text": "abc"}\n{"text": "d"}\n{"text": "efghijklmnopqrs"}\n' * 40)
    where = {"validation_fraction": 0, "cache_dir": tmp_path / "cache"}
    train, _ = causal_blocks(texts, tokenizer, 6, 4, contiguous=True, **where)
    first_segments = set()
    for step in range(2 * len(train)):
        inputs, _ = train.batch(step)
        ids, segments = inputs["token_ids"], inputs["segment_ids"]
        starts = (ids == 1).astype("int32")
        starts[:, 0] |= step % len(train) == 0
        np.testing.assert_array_equal(segments, np.cumsum(starts, axis=1))
        first_segments |= {(step % len(train) == 0, number) for number in segments[:, 0].tolist()}
    assert first_segments == {(True, 1), (False, 0), (False, 1)}
    plain, _ = causal_blocks(texts, tokenizer, 6, 4, contiguous=True, segment_ids=False, **where)
    np.testing.assert_array_equal(plain.batch(3)[0], train.batch(3)[0]["token_ids"])
    array = CausalBlocks(np.arange(100), 6, 4, contiguous=True)  # one document
    assert [set(array.batch(step)[0]["segment_ids"].ravel()) for step in (0, 1, len(array))] == [{1}, {0}, {1}]


@pytest.mark.backends
def test_what_is_carried_over_a_contiguous_stream(tmp_path, tokenizer):
    """After each step a row's state is that of its document's tokens since the document, or the pass, started."""
    (tmp_path / "a.jsonl").write_text('{"text": "abc"}\n{"text": "efghijklm"}\n' * 6)
    train, _ = causal_blocks(
        tmp_path, tokenizer, 6, 2, contiguous=True, validation_fraction=0, cache_dir=tmp_path / "cache"
    )
    model = RecurrentLM(260, cell="gru", num_layers=1, hidden_dim=8, stateful_batch_size=2)
    model.compile(keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.build()
    stream, stride = train.tokens[:], (len(train.tokens) - 1) // 2
    documents, carried = [], []
    for step in range(len(train) + 2):
        model.train_on_batch(*train.batch(step))
        for row in range(2):
            start, stop = row * stride, row * stride + (step % len(train) + 1) * 6
            documents.append(stream[max([start, *(start + np.flatnonzero(stream[start:stop] == 1))]) : stop])
        carried.extend(keras.ops.convert_to_numpy(model.carried["h_0"]))
    lengths = np.array([len(document) for document in documents], "int32")
    ids = np.array([np.pad(document, (0, 24 - len(document))) for document in documents], "int32")
    _, state = model({"token_ids": ids, "lengths": lengths}, state=model.initial_state(len(ids)))
    np.testing.assert_allclose(carried, keras.ops.convert_to_numpy(state["h_0"]), atol=1e-5)
    assert min(lengths) < 6 < max(lengths) <= 24


def test_shards_hold_every_row_once(make):
    train, validation = make(3000, 8, 6, validation_fraction=0.3)
    for whole, step in ((train, 5), (train, len(train) + 1), (validation, len(validation) - 1)):
        parts = [whole.shard(index, 3) for index in range(3)]
        assert all(len(part) == len(whole) and part.batch_size == 2 for part in parts)
        batches = [part.batch(step) for part in parts]
        for number, array in enumerate(whole.batch(step)):
            for index in range(3):
                np.testing.assert_array_equal(batches[index][number], array[index::3])
    for index, count in ((0, 4), (3, 3), (-1, 3), (0, 0)):
        with pytest.raises(ValueError, match="takes a count that divides"):
            train.shard(index, count)
    with pytest.raises(ValueError, match="part already"):
        train.shard(0, 2).shard(0, 3)


def test_batches_and_items(make):
    train, _ = make(1000, 8, 4)
    stream = train.batches(len(train) - 1)
    for step in (len(train) - 1, len(train)):
        np.testing.assert_array_equal(next(stream)[0], train.batch(step)[0])
    np.testing.assert_array_equal(train[2][0], train.batch(2)[0])
    train.epoch = 1
    np.testing.assert_array_equal(train[2][0], train.batch(len(train) + 2)[0])
    train.epoch = 7
    np.testing.assert_array_equal(train[0][0], train.batch(7 * len(train))[0])
    with pytest.raises(IndexError):
        train[len(train)]
    with pytest.raises(ValueError, match="counted from 0"):
        train.batch(-1)
    twin = pickle.loads(pickle.dumps(train))
    np.testing.assert_array_equal(twin[1][0], train[1][0])


@pytest.mark.backends
def test_tf_dataset(make):
    train, validation = make(2000, 8, 4, segment_ids=True, validation_fraction=0.1)
    dataset = train.as_tf_dataset(first_step=3, num_steps=5)
    spec = dataset.element_spec
    assert {name: (one.shape.as_list(), one.dtype.name) for name, one in spec[0].items()} == {
        "token_ids": ([4, 8], "int32"),
        "segment_ids": ([4, 8], "int32"),
    }
    assert len(dataset) == 5
    for step, (inputs, y) in enumerate(dataset.as_numpy_iterator(), 3):
        np.testing.assert_array_equal(inputs["token_ids"], train.batch(step)[0]["token_ids"])
        np.testing.assert_array_equal(y, train.batch(step)[1])
    assert len(validation.as_tf_dataset()) == len(validation)
    assert validation.as_tf_dataset().element_spec[2].dtype.name == "float32"
    endless = train.as_tf_dataset(first_step=len(train) - 1)
    assert int(endless.cardinality()) == -1 and len(list(endless.take(3))) == 3
    with pytest.raises(ValueError, match="are counts"):
        train.as_tf_dataset(num_steps=-1)


def tiny_model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None,), dtype="int32")
    model = keras.Model(inputs, keras.layers.Dense(260)(keras.layers.Embedding(260, 8)(inputs)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(5.0), loss)
    return model


class Losses(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.values = []

    def on_train_batch_end(self, batch, logs=None):
        self.values.append(float(logs["loss"]))


@pytest.mark.backends
@pytest.mark.parametrize("num_tokens, epochs", [(500, 3), (250, 3)])
def test_fit_sees_the_same_steps_either_way(make, num_tokens, epochs):
    runs = []
    for kind in ("items", "tf.data", "by hand"):
        train, _ = make(num_tokens, 16, 4, seed=5)
        losses, model = Losses(), tiny_model()
        if kind == "items":
            model.fit(train, epochs=epochs, shuffle=False, verbose=0, callbacks=[losses])
            assert train.epoch == epochs
        elif kind == "tf.data":
            steps = {"steps_per_epoch": len(train), "epochs": epochs, "shuffle": False}
            model.fit(train.as_tf_dataset(), **steps, verbose=0, callbacks=[losses])
        else:
            for step in range(epochs * len(train)):
                model.fit(*train.batch(step), batch_size=4, verbose=0, callbacks=[losses])
        assert len(losses.values) == epochs * len(train)
        # Keras reports the mean of an epoch so far; by hand each step is an epoch of its own.
        if kind != "by hand":
            means = np.array(losses.values).reshape(epochs, -1)
            counts = np.arange(1, means.shape[1] + 1)
            losses.values = np.diff(means * counts, axis=1, prepend=0).ravel()
        runs.append(losses.values)
    np.testing.assert_allclose(runs[0], runs[2], rtol=1e-4)
    np.testing.assert_allclose(runs[1], runs[2], rtol=1e-4)


@pytest.mark.backends
@pytest.mark.parametrize("num_tokens", [1000, 200, 90])
def test_evaluate_is_the_mean_over_all_targets(make, num_tokens):
    _, validation = make(num_tokens, 16, 4, validation_fraction=0.2)
    model = tiny_model()
    ids = validation.tokens[:]
    logits = np.asarray(model.predict(ids[None, :-1], verbose=0), np.float64)[0]
    logits -= logits.max(axis=-1, keepdims=True)
    log_probability = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = -log_probability[np.arange(len(ids) - 1), ids[1:]].mean()
    assert model.evaluate(validation, verbose=0) == pytest.approx(expected, rel=1e-5)
    assert model.evaluate(validation.as_tf_dataset(), verbose=0) == pytest.approx(expected, rel=1e-5)


@pytest.mark.backends
def test_fit_with_partial_epochs_reads_on(make):
    train, validation = make(2000, 16, 4, validation_fraction=0.1)
    assert len(train) > 20
    tiny_model().fit(train, validation_data=validation, steps_per_epoch=5, epochs=2, shuffle=False, verbose=0)
    assert train.epoch == 0
    tiny_model().fit(train, validation_data=validation, epochs=2, verbose=0)
    assert train.epoch == 2


@pytest.mark.backends
def test_contiguous_blocks_refuse_to_be_shuffled(make):
    train, _ = make(2000, 16, 4, contiguous=True, segment_ids=False)
    with pytest.raises(Exception, match=r"call fit\(..., shuffle=False\)"):
        tiny_model().fit(train, verbose=0)
    tiny_model().fit(train, epochs=2, shuffle=False, verbose=0)
    np.testing.assert_array_equal(train[5][0], train.batch(5)[0])


@pytest.mark.backends
def test_data_that_ends_early_ends_the_run_with_a_message(make):
    train, _ = make(2000, 16, 4)
    for num_steps in (3, 1):
        losses = Losses()
        dataset = train.as_tf_dataset(num_steps=num_steps)
        with pytest.warns(UserWarning, match="ran out of data"):
            tiny_model().fit(dataset, steps_per_epoch=10, shuffle=False, verbose=0, callbacks=[losses])
        assert len(losses.values) == num_steps


def test_worker_processes_are_refused(make):
    train, _ = make(2000, 16, 4)
    train.use_multiprocessing = False
    with pytest.raises(
        ValueError, match="Worker processes are refused: Keras waits for ever .* `workers` are then thr"
    ):
        train.use_multiprocessing = True
    assert train.use_multiprocessing is False and train.shard(0, 2).use_multiprocessing is False


@pytest.mark.backends
def test_worker_threads_give_the_same_batches_or_are_refused(make):
    """On JAX and torch `fit` of Keras 3.15 would read batches 1 to 11, then 0 to 58 of 70."""
    train, _ = make(2000, 16, 4)
    if keras.backend.backend() != "tensorflow":
        with pytest.raises(ValueError, match="batches come twice, and others never.*as_tf_dataset"):
            train.workers = 3
        return
    train.workers = 3
    losses = Losses()
    tiny_model().fit(train, epochs=2, shuffle=False, verbose=0, callbacks=[losses])
    plain, _ = make(2000, 16, 4)
    expected = Losses()
    tiny_model().fit(plain, epochs=2, shuffle=False, verbose=0, callbacks=[expected])
    np.testing.assert_allclose(losses.values, expected.values, rtol=1e-5)


def test_import_without_tensorflow():
    code = "import sys, keras_seqlm.data; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "KERAS_BACKEND": "jax"})


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data beside the checkout")
def test_real_books(tmp_path, tokenizer):
    store = pack(SHARED / "classic_books_en", tokenizer, cache_dir=tmp_path)
    files = sorted(path for path in (SHARED / "classic_books_en").glob("*.md"))
    assert store.num_bytes == sum(path.stat().st_size for path in files)
    assert store.num_documents == len(files)
    text = tokenizer.decode_bytes(store[:])
    assert text == b"".join(path.read_bytes() for path in files)
    train = CausalBlocks(store, 256, 16, seed=1)
    assert train.num_targets / len(store) > 0.99
