"""Reading the cache: a damaged file stops a run before it trains, and few files are open at a time."""

import keras
import numpy as np
import pytest

from keras_seqlm.data import CausalBlocks, pack
from keras_seqlm.tokenizers import ByteTokenizer


@pytest.fixture
def store(tmp_path):
    """5002 tokens in shards of a thousand and a few."""
    (tmp_path / "text").mkdir()
    for number in range(10):
        (tmp_path / "text" / f"{number}.txt").write_bytes(b"word " * 100)
    return pack(tmp_path / "text", ByteTokenizer(), cache_dir=tmp_path / "cache", shard_tokens=1000)


def damage(store, shard, place, value, dtype="<u2"):
    """Put `value` in the place of a token; returns the file."""
    path = store.folder / f"{shard:05d}.tokens"
    ids = np.fromfile(path, dtype)
    ids[place] = value
    ids.tofile(path)
    return path


def test_the_vocabulary_is_the_tokenizers(store):
    assert store.vocabulary_size == store.part(5).vocabulary_size == ByteTokenizer().vocabulary_size
    assert CausalBlocks(store, 16, 4).vocabulary_size == ByteTokenizer().vocabulary_size


@pytest.mark.parametrize("value", [260, 65535])
def test_an_id_outside_the_vocabulary_is_refused_with_file_and_place(store, value):
    path = damage(store, 2, 7, value)
    place = 2 * 1004 + 7
    message = rf"{path} is damaged: token 7 is {value}, and the vocabulary has 260 ids. Delete the folder"
    for read in (
        lambda: store[place],
        lambda: store[:],
        lambda: store[1000 : place + 1],
        lambda: store.part(place - 5)[2:9],
        lambda: CausalBlocks(store.part(1500, 2500), 16, 4, complete=True).batch(place // 64 - 1500 // 64),
        lambda: list(CausalBlocks(store, 16, 4)),
    ):
        with pytest.raises(ValueError, match=message):
            read()
    # What lies elsewhere is read as before.
    assert len(store[:place]) == place and len(store[place + 1 :]) == len(store) - place - 1


def test_a_negative_id_is_refused(store):
    store.vocabulary_size = 70_000
    for name in ("00000.tokens", "00001.tokens"):
        np.fromfile(store.folder / name, "<u2").astype("<i4").tofile(store.folder / name)
    store._meta["dtype"] = "<i4"
    damage(store, 1, 3, -5, "<i4")
    with pytest.raises(ValueError, match="00001.tokens is damaged: token 3 is -5"):
        store[1000:1010]


def test_an_array_or_a_smaller_model_gives_the_size_itself():
    tokens = np.arange(1000) % 50
    assert CausalBlocks(tokens, 8, 4).vocabulary_size is None
    assert len(list(CausalBlocks(tokens, 8, 4, vocabulary_size=50))) == 31
    for wrong in (np.where(tokens == 49, 50, tokens), np.where(np.arange(1000) == 99, -1, tokens)):
        blocks = CausalBlocks(wrong, 8, 4, shuffle=False, vocabulary_size=50)
        with pytest.raises(ValueError, match=r"Token (49|99) of the stream is (50|-1), and the model knows .* 0 to 49"):
            list(blocks)


def test_a_model_of_fewer_ids_than_the_tokenizer(store):
    with pytest.raises(ValueError, match="Token 1 of the stream is 123, and the model knows the ids from 0 to 99"):
        CausalBlocks(store, 16, 4, shuffle=False, vocabulary_size=100).batch(0)


@pytest.mark.backends
def test_fit_stops_before_the_step(store):
    damage(store, 4, 500, 9999)
    blocks = CausalBlocks(store, 16, 4, shuffle=False)
    last = (4 * 1004 + 500 - 1) // 64  # the id is first met as a target
    inputs = keras.Input((None,), dtype="int32")
    model = keras.Model(inputs, keras.layers.Dense(260)(keras.layers.Embedding(260, 8)(inputs)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, jit_compile=keras.backend.backend() == "jax")
    seen = []
    count = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(batch))
    with pytest.raises(Exception, match="00004.tokens is damaged: token 500 is 9999"):
        model.fit(blocks, shuffle=False, verbose=0, callbacks=[count])
    assert len(seen) <= last
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_few_files_are_open_at_a_time(store, monkeypatch):
    monkeypatch.setattr("keras_seqlm.data.token_store.MOST_MAPS", 2)
    whole = store[:]
    assert store._shard.cache_info().currsize == 2 < len(list(store.folder.glob("*.tokens")))
    np.testing.assert_array_equal(store[900:3500], whole[900:3500])
