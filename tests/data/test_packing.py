"""The token cache: what it holds, that it survives any kill, and that two calls at once do no harm."""

import gzip
import os
import pickle
import signal
import sys
import time

import numpy as np
import pytest

from keras_seqlm.data import TokenStore, cache_lock, causal_blocks, pack
from keras_seqlm.tokenizers import (
    BytePairTokenizer,
    ByteTokenizer,
    CharacterTokenizer,
    SentencePieceTokenizer,
    WordPieceTokenizer,
)


@pytest.fixture
def tokenizer():
    return ByteTokenizer()


def write(folder, **texts):
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def files_of(cache):
    return {path.name: path.read_bytes() for path in sorted(next(cache.glob("*/meta.json")).parent.iterdir())}


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
    texts = [b"a" + bytes(rng.choice(list(b"abc \n"), size - 1).tolist()) for size in (1, 99, 100, 101, 750, 3000)]
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


@pytest.mark.parametrize("name", ["bos_id", "eos_id"])
def test_a_tokenizer_that_ends_documents_otherwise_has_a_cache_of_its_own(tmp_path, name):
    """Its hash is of how it reads text, and says nothing of what stands between texts."""
    folder, seen = write(tmp_path / "text", a="x"), {}
    for value in (1, 2, 3, None):
        tokenizer = Fixed(9, [5])
        setattr(tokenizer, name, value)
        store = pack(folder, tokenizer, cache_dir=tmp_path / "cache")
        seen[store.folder] = store[:].tolist()
    ids = [[1, 5, 2][1:] if name == "bos_id" else [1, 5, 2][:2]] * 4
    wanted = [
        ([value, *rest] if name == "bos_id" else [*rest, value]) for value, rest in zip((1, 2, 3), ids, strict=False)
    ]
    assert list(seen.values()) == [*wanted, ids[0]]


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
    other = Fixed(9, [5])
    folders.add(pack(folder, other, cache_dir=cache).folder)
    other.hash = "another"
    folders.add(pack(folder, other, cache_dir=cache).folder)
    write(folder, b="more")
    folders.add(pack(folder, tokenizer, cache_dir=cache).folder)
    write(folder, b="More")
    folders.add(pack(folder, tokenizer, cache_dir=cache).folder)
    assert len(folders) == 5


def test_file_that_grows_meanwhile_is_refused(tmp_path, tokenizer):
    folder = write(tmp_path / "text", a="Hello")
    with pytest.raises(ValueError, match="changed while it was tokenized"):
        pack(folder, tokenizer, cache_dir=tmp_path / "cache", progress=lambda *_: write(folder, a="Hello, world"))
    assert len(pack(folder, tokenizer, cache_dir=tmp_path / "cache")) == 14


def test_what_is_no_text_is_refused_before_anything_is_tokenized(tmp_path, tokenizer):
    folder = write(tmp_path / "text", a="Hello", z=b"%PDF-1.7 ...")
    seen = []
    with pytest.raises(ValueError, match="z.txt is a PDF"):
        pack(folder, tokenizer, cache_dir=tmp_path / "cache", progress=lambda *counts: seen.append(counts))
    assert not seen


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


ODD = {
    "nul": b"a\0b\0\0",
    "bom": b"bom \xef\xbb\xbf",  # at the start it is no text: see test_corpus.py
    "crlf": b"one\r\ntwo\n\rthree\r",
    "surrogates": b"\xed\xa0\x80 \xed\xb0\x80 \xed\xa0\xbd\xed\xb8\x80",
    "bidi": "\u202eabc\u202c \u2067שלום\u2069 \u200f\u200e".encode(),
    "invalid": b" \xff\xfe \xc3( \xf0\x9f \xbf",  # that mark at the start would be UTF-16's
    "joined": "👩‍👩‍👧‍👦 e\u0301\u0302 \U0010ffff".encode(),
    "raw": bytes(range(256)),
}


@pytest.mark.parametrize("kind", ["byte", "byte pairs"])
def test_odd_bytes_come_back_from_the_stream_as_they_were(tmp_path, kind):
    tokenizer = ByteTokenizer()
    if kind == "byte pairs":
        tokenizer = BytePairTokenizer.train(texts=["some words of this text " * 20], vocabulary_size=300)
    folder = write(tmp_path / "text", **ODD, long=b"".join(ODD.values()) * 3000)
    with pytest.warns(UserWarning, match=r"Of 4 files .* no UTF-8"):
        store = pack(folder, tokenizer, cache_dir=tmp_path / "cache")
    assert store.num_bytes == sum(path.stat().st_size for path in folder.iterdir()) > 1 << 20
    borders = store.document_starts.tolist()
    for number, path in enumerate(sorted(folder.iterdir())):
        assert tokenizer.decode_bytes(store[borders[number] : borders[number + 1]]) == path.read_bytes()
    assert store.statistics["num_replaced"] == store.statistics["num_unknown"] == 0


KNOWN = "the cat sat on the mat and saw a rat. " * 30
STRANGE = "the cat 漢字 on ß mat 🐀"


@pytest.mark.parametrize(
    "make, unknown, shown",
    [
        pytest.param(lambda: ByteTokenizer(), 0, STRANGE, id="byte"),
        pytest.param(lambda: BytePairTokenizer.train(texts=[KNOWN], vocabulary_size=280), 0, STRANGE, id="byte pair"),
        pytest.param(
            lambda: SentencePieceTokenizer.train(texts=[KNOWN], vocabulary_size=300), 0, STRANGE, id="sentence piece"
        ),
        pytest.param(
            lambda: CharacterTokenizer.train(texts=[KNOWN]),
            4,
            "the cat \ufffd\ufffd on \ufffd mat \ufffd",
            id="character",
        ),
        # Ids are words here, each Chinese character one; `unk` is not shown.
        pytest.param(
            lambda: WordPieceTokenizer.train(texts=[KNOWN], vocabulary_size=60), 4, "the cat on mat", id="word piece"
        ),
    ],
)
def test_characters_outside_the_vocabulary_are_counted_and_none_is_dropped(tmp_path, make, unknown, shown):
    tokenizer = make()
    store = pack(write(tmp_path / "text", a=STRANGE), tokenizer, cache_dir=tmp_path / "cache")
    assert store.statistics["num_unknown"] == unknown and store.statistics["num_replaced"] == 0
    assert tokenizer.decode(store[:]) == shown


def test_bytes_that_are_no_text_are_replaced_and_counted(tmp_path):
    tokenizer = CharacterTokenizer.train(texts=["abc \ufffd"])
    content = "a\ufffdb ".encode() + b"\xff c \xe6\xbc a\xed\xa0\x80"  # one, one and three of them
    with pytest.warns(UserWarning, match="a.txt .35.7%."):
        store = pack(write(tmp_path / "text", a=content), tokenizer, cache_dir=tmp_path / "cache")
    assert tokenizer.decode(store[:]) == content.decode("utf-8", "replace")
    assert store.statistics["num_replaced"] == 5 and store.statistics["num_unknown"] == 0
    assert store.num_bytes == len(content)


def faulty_corpus(folder):
    """Broken lines, cut gzip, bytes that are no UTF-8 and unknown characters; beside much good text."""
    write(folder, good="abc " * 400_000, odd=b"ab\xff\xffc" * 100)
    lines = [b'{"text": "ab x"}'] * 3000
    lines[7] = lines[2000] = b"{"
    (folder / "lines.jsonl").write_bytes(b"\n".join(lines))
    (folder / "cut.txt.gz").write_bytes(gzip.compress(b"cab " * 500)[:-4])
    return folder


FAULTS = {
    "num_tokens": 1_600_000 + 500 + 4 * 2998 + 2000 + 2 * (3 + 2998),
    "num_bytes": 1_600_000 + 500 + 4 * 2998 + 2000,
    "num_documents": 3 + 2998,
    "num_unknown": 2998,
    "num_replaced": 200,
    "num_skipped_lines": 2,
}


@pytest.fixture
def characters():
    return CharacterTokenizer.train(texts=["abc \ufffd"])


def test_what_was_skipped_and_replaced_is_in_the_statistics(tmp_path, characters, recwarn):
    folder = faulty_corpus(tmp_path / "text")
    store = pack(folder, characters, cache_dir=tmp_path / "cache")
    told = sorted(str(one.message) for one in recwarn)
    assert len(told) == 3 and "cut.txt.gz is damaged" in told[0] and "lines.jsonl: skipped 2 broken of 3000" in told[1]
    assert told[2].startswith("Of 1 file more than") or told[0].startswith("Of 1 file more than")
    assert store.statistics == {**FAULTS, "damaged_files": [str(folder / "cut.txt.gz")]}
    recwarn.clear()
    again = pack(folder, characters, cache_dir=tmp_path / "cache").part(3)
    assert again.statistics == store.statistics and not len(recwarn), "the cache knows, and reads nothing anew"


def test_statistics_after_an_interruption_are_those_of_the_whole(tmp_path, characters, monkeypatch):
    folder, seen = faulty_corpus(tmp_path / "text"), []

    def stop(num_bytes, num_tokens):
        seen.append(num_tokens)
        if len(seen) == 2500:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="cut.txt.gz"), pytest.raises(KeyboardInterrupt):
        pack(folder, characters, cache_dir=tmp_path / "cache", shard_tokens=4000, progress=stop)
    assert list((tmp_path / "cache").glob("*.partial/00002.npy"))
    beats = []
    monkeypatch.setattr("keras_seqlm.data.cache_lock.CacheLock.beat", lambda lock: beats.append(lock))
    with pytest.warns(UserWarning, match="skipped 2 broken|cut.txt.gz|no UTF-8"):
        store = pack(folder, characters, cache_dir=tmp_path / "cache", shard_tokens=4000, progress=stop)
    assert store.statistics == {**FAULTS, "damaged_files": [str(folder / "cut.txt.gz")]}
    assert len(seen) < 2500 + 3100, "finished shards are not tokenized again"
    assert len(beats) > 3000, "a process that waits sees life, also while that is only read past"


def test_tolerance_may_be_set(tmp_path, characters, start_worker):
    folder = write(tmp_path / "text", good="abc " * 1000)
    (folder / "lines.jsonl").write_text('{"text": "abc"}\n' * 99 + "{\n")
    with pytest.raises(ValueError, match="1 of the first 100 lines are broken, more than 0.1%"):
        pack(folder, characters, cache_dir=tmp_path / "cache")
    with pytest.warns(UserWarning, match="skipped 1 broken of 100 lines"):
        train, _ = causal_blocks(folder, characters, 8, 2, tolerance=0.01, cache_dir=tmp_path / "cache")
    assert train.tokens.statistics["num_skipped_lines"] == 1
    with pytest.raises(ValueError, match="more than 0.1%"):
        causal_blocks(folder, characters, 8, 2, cache_dir=tmp_path / "cache")


WORKER = """
import sys, time
from keras_seqlm.data import pack
from keras_seqlm.tokenizers import ByteTokenizer

if "no locks" in sys.argv:
    import fcntl
    def refuse(*_):
        raise OSError(37, "No locks available")
    fcntl.flock = refuse

class SlowTokenizer(ByteTokenizer):
    def encode(self, text):
        time.sleep(float(sys.argv[3]))
        print("encoded", flush=True)
        return super().encode(text)

print("ready", flush=True)
pack(sys.argv[1], SlowTokenizer(), cache_dir=sys.argv[2], shard_tokens=20_000)
print("done", flush=True)
"""


@pytest.fixture
def start_worker(forks):
    """Which backend does not matter here."""
    jax = forks("jax")

    def start(folder, cache, delay, *more):
        return jax.Popen([sys.executable, "-c", WORKER, folder, cache, delay, *more], stdout=jax.PIPE)

    return start


def test_killed_and_started_again_gives_the_same_files(tmp_path, tokenizer, start_worker):
    rng = np.random.default_rng(1)
    folder = write(tmp_path / "text", **{f"t{i:02d}": bytes(rng.integers(32, 127, 5000).tolist()) for i in range(40)})
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


def test_two_processes_at_once(tmp_path, tokenizer, start_worker):
    folder = write(tmp_path / "text", **{f"t{i}": "word " * 3000 for i in range(20)})
    cache = tmp_path / "cache"
    workers = [start_worker(folder, cache, 0.02) for _ in range(2)]
    outputs = [worker.communicate()[0].split() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert sum(output.count("encoded") for output in outputs) == 20, "the second waits and reads what the first made"
    np.testing.assert_array_equal(
        pack(folder, tokenizer, cache_dir=cache, shard_tokens=20_000)[:], stream(tokenizer, *["word " * 3000] * 20)
    )


def test_two_processes_at_once_where_there_are_no_locks(tmp_path, tokenizer, start_worker):
    folder = write(tmp_path / "text", **{f"t{i}": "word " * 3000 for i in range(20)})
    cache = tmp_path / "cache"
    workers = [start_worker(folder, cache, 0.1, "no locks") for _ in range(2)]
    outputs = [worker.communicate()[0].split() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert [output.count("encoded") for output in outputs] == [20, 20], "both do the work, neither spoils the other's"
    np.testing.assert_array_equal(
        pack(folder, tokenizer, cache_dir=cache, shard_tokens=20_000)[:], stream(tokenizer, *["word " * 3000] * 20)
    )
    left = {path.name for path in cache.iterdir()} - {"files.index", "files.index.lock"}
    assert len(left) == 2, "one folder and its lock file"


def test_a_process_that_hangs_is_not_waited_for_for_ever(tmp_path, tokenizer, monkeypatch, start_worker):
    monkeypatch.setattr(cache_lock, "PATIENCE", 1)
    folder = write(tmp_path / "text", **{f"t{i}": "word " * 3000 for i in range(20)})
    cache = tmp_path / "cache"
    with start_worker(folder, cache, 0.02) as worker:
        for _ in range(4):
            worker.stdout.readline()
        worker.send_signal(signal.SIGSTOP)
        start = time.monotonic()
        with pytest.raises(TimeoutError, match=f"process {worker.pid} on .* has done nothing for 1 seconds: end it"):
            pack(folder, tokenizer, cache_dir=cache, shard_tokens=20_000)
        assert time.monotonic() - start < 10
        worker.send_signal(signal.SIGCONT)
        store = pack(folder, tokenizer, cache_dir=cache, shard_tokens=20_000)
        assert worker.stdout.read().split()[-1] == "done"
    assert worker.returncode == 0
    np.testing.assert_array_equal(store[:], stream(tokenizer, *["word " * 3000] * 20))


def test_long_work_says_so(tmp_path, tokenizer, capsys, monkeypatch):
    clock = iter(range(0, 10_000, 30))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    pack(write(tmp_path / "text", **{f"t{i}": "x" * 1000 for i in range(5)}), tokenizer, cache_dir=tmp_path / "cache")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "reading the files for their hash: 0 of 0 MB"
    lines = [line for line in lines if line.startswith("tokenizing")]
    assert lines[0] == "tokenizing: 0 MB (20%), 0.0 M tokens, 30 s"
    assert 2 <= len(lines) <= 3
