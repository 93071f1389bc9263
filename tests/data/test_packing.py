"""The token cache: what it holds, that it survives any kill, and that two calls at once do no harm."""

import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from keras_seqlm.data import TokenStore, pack
from keras_seqlm.tokenizers import ByteTokenizer


@pytest.fixture
def tokenizer():
    return ByteTokenizer()


def write(folder, **texts):
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def files_of(cache):
    return {path.name: path.read_bytes() for path in sorted(next(cache.glob("*.lock")).with_suffix("").iterdir())}


def stream(tokenizer, *texts):
    return np.concatenate([[1, *tokenizer.encode(text), 2] for text in texts])


def test_documents_between_bos_and_eos(tmp_path, tokenizer):
    folder = write(tmp_path / "text", a="Hello", b="wörld\r\n")
    store = pack(folder, tokenizer, cache_dir=tmp_path / "cache")
    expected = stream(tokenizer, "Hello", "wörld\r\n")
    np.testing.assert_array_equal(store[:], expected)
    np.testing.assert_array_equal(np.asarray(store), expected)
    assert store[:].dtype == np.int32
    assert len(store) == len(expected)
    assert [store[0], store[-1]] == [1, 2]
    assert store[3:1].shape == (0,)
    assert store.document_starts.tolist() == [0, 7, 17]
    assert store.document_bytes.tolist() == [5, 8]
    assert (store.num_bytes, store.num_documents) == (13, 2)
    with pytest.raises(IndexError):
        store[len(store)]
    with pytest.raises(ValueError, match="without a step"):
        store[::2]


def test_parts_shards_and_chunks_agree(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("keras_seqlm.data.packing.Corpus.__init__.__defaults__", ("text", 100, 0.001))
    rng = np.random.default_rng(0)
    texts = [bytes(rng.choice(list(b"abc \n"), size)) for size in (1, 99, 100, 101, 750, 3000)]
    folder = write(tmp_path / "text", **{f"t{i}": text for i, text in enumerate(texts)})
    store = pack(folder, tokenizer, cache_dir=tmp_path / "cache", shard_tokens=400)
    assert len(list(store.folder.glob("*.tokens"))) > 5
    expected = stream(tokenizer, *texts)
    np.testing.assert_array_equal(store[:], expected)
    assert store.num_documents == 6
    owners = np.repeat(np.arange(6), [len(text) + 2 for text in texts])
    for start, stop in rng.integers(0, len(expected), (60, 2)):
        part = store.part(start, stop)
        np.testing.assert_array_equal(part[:], expected[start:stop])
        assert part.num_bytes == np.sum(expected[start:stop] > 3), "one byte for each id that is not bos or eos"
        assert part.num_documents == len(set(owners[start:stop]))
        if start < stop:
            np.testing.assert_array_equal(part.segment_ids(0, len(part)), 1 + owners[start:stop] - owners[start])
    inner = store.part(500).part(10, -10)
    np.testing.assert_array_equal(inner[5:9], expected[515:519])


def test_store_without_tokenizer_counts_bytes_in_proportion(tmp_path, tokenizer):
    store = pack(write(tmp_path / "text", a="x" * 98), tokenizer, cache_dir=tmp_path / "cache")
    assert TokenStore(store.folder).part(0, 50).num_bytes == 49
    assert store.part(0, 50).num_bytes == 49


@pytest.mark.parametrize("size, dtype", [(260, "<u2"), (65536, "<u2"), (65537, "<i4")])
def test_smallest_type(tmp_path, tokenizer, size, dtype):
    tokenizer = Fixed(size, [size - 1, 0])
    store = pack(write(tmp_path / "text", a="x"), tokenizer, cache_dir=tmp_path / "cache")
    assert store[:].tolist() == [1, size - 1, 0, 2]
    assert next(store.folder.glob("*.tokens")).stat().st_size == 4 * np.dtype(dtype).itemsize


class Fixed:
    """A tokenizer that gives the same ids for any text."""

    bos_id, eos_id, hash = 1, 2, "fixed"

    def __init__(self, vocabulary_size, ids):
        self.vocabulary_size, self.ids = vocabulary_size, ids

    def encode(self, text):
        return np.array(self.ids, np.int32)


@pytest.mark.parametrize("wrong", [7, -1])
def test_id_outside_the_vocabulary(tmp_path, wrong):
    folder = write(tmp_path / "text", a="x")
    with pytest.raises(ValueError, match=f"gave id {wrong}, but its vocabulary_size is 7"):
        pack(folder, Fixed(7, [3, wrong, 4]), cache_dir=tmp_path / "cache")
    store = pack(folder, Fixed(7, [6]), cache_dir=tmp_path / "cache")
    assert store[:].tolist() == [1, 6, 2]


def test_ids_that_a_tokenizer_lacks_are_not_written(tmp_path):
    tokenizer = Fixed(9, [5])
    tokenizer.bos_id = None
    store = pack(write(tmp_path / "text", a="x", b="y"), tokenizer, cache_dir=tmp_path / "cache")
    assert store[:].tolist() == [5, 2, 5, 2]


def test_second_call_reads_the_cache(tmp_path, tokenizer, monkeypatch):
    folder = write(tmp_path / "text", a="Hello")
    monkeypatch.setenv("KERAS_SEQLM_CACHE", str(tmp_path / "cache"))
    seen = []
    first = pack(folder, tokenizer, progress=lambda *counts: seen.append(counts))
    monkeypatch.setattr(ByteTokenizer, "encode", None)
    again = pack(folder, tokenizer)
    assert seen == [(5, 7)]
    assert again.folder == first.folder and first.folder.parent == tmp_path / "cache"


def test_changed_file_or_tokenizer_makes_another_cache(tmp_path, tokenizer):
    cache = tmp_path / "cache"
    folder = write(tmp_path / "text", a="Hello")
    folders = {pack(folder, tokenizer, cache_dir=cache).folder}
    os.utime(folder / "a.txt", (1, 1))
    folders.add(pack(folder, tokenizer, cache_dir=cache).folder)
    other = Fixed(9, [5])
    folders.add(pack(folder, other, cache_dir=cache).folder)
    other.hash = "another"
    folders.add(pack(folder, other, cache_dir=cache).folder)
    write(folder, b="more")
    folders.add(pack(folder, tokenizer, cache_dir=cache).folder)
    assert len(folders) == 5


def test_file_that_grows_meanwhile_is_refused(tmp_path, tokenizer):
    folder = write(tmp_path / "text", a="Hello")
    with pytest.raises(ValueError, match="changed while it was tokenized"):
        pack(folder, tokenizer, cache_dir=tmp_path / "cache", progress=lambda *_: write(folder, a="Hello, world"))
    assert len(pack(folder, tokenizer, cache_dir=tmp_path / "cache")) == 14


@pytest.mark.parametrize("damage", ["cut", "no meta", "half a meta"])
def test_damaged_cache_is_made_anew(tmp_path, tokenizer, damage):
    folder = write(tmp_path / "text", a="Hello")
    store = pack(folder, tokenizer, cache_dir=tmp_path / "cache")
    ids = store[:]
    if damage == "cut":
        os.truncate(store.folder / "00000.tokens", 3)
    elif damage == "no meta":
        (store.folder / "meta.json").unlink()
    else:
        os.truncate(store.folder / "meta.json", 30)
    with pytest.warns(UserWarning, match="damaged"):
        np.testing.assert_array_equal(pack(folder, tokenizer, cache_dir=tmp_path / "cache")[:], ids)


def test_pickled_store_carries_no_tokens(tmp_path, tokenizer):
    store = pack(write(tmp_path / "text", a="x" * 100_000), tokenizer, cache_dir=tmp_path / "cache").part(5)
    ids = store[:]
    content = pickle.dumps(store)
    assert len(content) < 10_000
    np.testing.assert_array_equal(pickle.loads(content)[:], ids)


WORKER = """
import sys, time
from keras_seqlm.data import pack
from keras_seqlm.tokenizers import ByteTokenizer

class SlowTokenizer(ByteTokenizer):
    def encode(self, text):
        time.sleep(float(sys.argv[3]))
        print("encoded", flush=True)
        return super().encode(text)

print("ready", flush=True)
pack(sys.argv[1], SlowTokenizer(), cache_dir=sys.argv[2], shard_tokens=20_000)
print("done", flush=True)
"""


def start_worker(folder, cache, delay):
    command = [sys.executable, "-c", WORKER, folder, cache, str(delay)]
    # Which backend does not matter here; jax spares each process the import of TensorFlow.
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "KERAS_BACKEND": "jax"})


def test_killed_and_started_again_gives_the_same_files(tmp_path, tokenizer):
    rng = np.random.default_rng(1)
    folder = write(tmp_path / "text", **{f"t{i:02d}": bytes(rng.integers(32, 127, 5000)) for i in range(40)})
    pack(folder, tokenizer, cache_dir=tmp_path / "whole", shard_tokens=20_000)
    cache = tmp_path / "killed"
    encoded = 0
    for kill_after in (3, 9, 14):
        with start_worker(folder, cache, 0.02) as worker:
            for line in worker.stdout:
                encoded += line == "encoded\n"
                if line == "encoded\n" and (kill_after := kill_after - 1) == 0:
                    worker.send_signal(signal.SIGKILL)
        assert worker.returncode == -signal.SIGKILL
    assert not list(cache.glob("*/meta.json"))
    with start_worker(folder, cache, 0) as worker:
        last = worker.stdout.read().split()
    assert last[-1] == "done"
    # Four documents fill a shard; only what no finished shard held was tokenized again.
    assert last.count("encoded") < 40 and encoded + last.count("encoded") < 40 + 4 * 5
    assert files_of(cache) == files_of(tmp_path / "whole")
    assert not list(cache.glob("**/*.tmp")) and not list(cache.glob("*.partial"))


def test_two_processes_at_once(tmp_path, tokenizer):
    folder = write(tmp_path / "text", **{f"t{i}": "word " * 3000 for i in range(20)})
    cache = tmp_path / "cache"
    workers = [start_worker(folder, cache, 0.02) for _ in range(2)]
    outputs = [worker.communicate()[0].split() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert sum(output.count("encoded") for output in outputs) == 20, "the second waits and reads what the first made"
    np.testing.assert_array_equal(
        pack(folder, tokenizer, cache_dir=cache, shard_tokens=20_000)[:], stream(tokenizer, *["word " * 3000] * 20)
    )


def test_long_work_says_so(tmp_path, tokenizer, capsys, monkeypatch):
    clock = iter(range(0, 10_000, 30))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    pack(write(tmp_path / "text", **{f"t{i}": "x" * 1000 for i in range(5)}), tokenizer, cache_dir=tmp_path / "cache")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "tokenizing: 0 MB (20%), 0.0 M tokens, 30 s"
    assert 2 <= len(lines) <= 3
