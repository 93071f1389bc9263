"""A corpus tokenized once, into memory-mapped files that later runs open at once."""

import array
import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
import warnings
from pathlib import Path

import numpy as np

from keras_seqlm.data.corpora import Corpus
from keras_seqlm.data.token_store import FORMAT, TokenStore, is_complete

SHARD_TOKENS = 1 << 24


def pack(files, tokenizer, *, cache_dir=None, text_field="text", progress=None, shard_tokens=SHARD_TOKENS):
    """Tokenize text files into one stream of ids, or open the stream that an earlier call made of them.

    Each document becomes `bos + ids + eos`. The stream lies in a folder of the cache whose name depends on the tokenizer
    and on the path, size and time of every file. A killed call goes on where its last finished shard ends; of two
    calls at once one waits for the other.

    Args:
        files: a path, a glob pattern, a directory, or a list of these (see `Corpus`).
        tokenizer: has `encode(bytes)`, `decode_bytes(ids)`, `vocabulary_size`, `bos_id`, `eos_id` and `hash`.
        cache_dir: folder of the cache; None takes `$KERAS_SEQLM_CACHE`, else `~/.cache/keras_seqlm/tokens`.
        text_field: the field of a `.jsonl` line that holds the text.
        progress: called as `progress(num_bytes, num_tokens)` after each chunk. None writes a line to stderr now and then
            when the work takes more than two seconds.
        shard_tokens: a file of the cache is closed at the first chunk that fills it to so many ids.

    Returns:
        A `TokenStore`.

    Raises:
        FileNotFoundError: if a named file is absent.
        ValueError: if there is no text, a file is empty, damaged or changes meanwhile, or the tokenizer gives an id
            outside its vocabulary.

    Example:

    >>> import pathlib, tempfile
    >>> from keras_seqlm.tokenizers import ByteTokenizer
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "night.txt").write_text("It was a dark night.")
    >>> store = pack(folder, ByteTokenizer(), cache_dir=folder)
    >>> len(store), store.num_bytes, store[:3].tolist()
    (22, 20, [1, 77, 120])
    """
    corpus = Corpus(files, text_field)
    identity = _identity(corpus, tokenizer, shard_tokens)
    root = Path(cache_dir or os.environ.get("KERAS_SEQLM_CACHE") or "~/.cache/keras_seqlm/tokens").expanduser()
    folder = root / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    if not is_complete(folder):
        root.mkdir(parents=True, exist_ok=True)
        with _one_builder(root / f"{folder.name}.lock"):
            if not is_complete(folder):
                _build(folder, identity, corpus, tokenizer, progress)
    return TokenStore(folder, tokenizer)


def _identity(corpus, tokenizer, shard_tokens):
    """Everything that the bytes of the cache depend on."""
    return {
        "format": FORMAT,
        "tokenizer_hash": tokenizer.hash,
        "vocabulary_size": int(tokenizer.vocabulary_size),
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "text_field": corpus.text_field,
        "chunk_size": corpus.chunk_size,
        "shard_tokens": shard_tokens,
        "files": [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in corpus.files],
    }


@contextlib.contextmanager
def _one_builder(path):
    """Let one process work at a time.

    Renames keep the cache whole without this; the lock saves the second process the work. The system lets go of it when
    its process dies, so a kill leaves nothing locked. Where there are no such locks, both work.
    """
    with open(path, "a") as handle:
        try:
            import fcntl

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("waiting for another process that tokenizes the same files", file=sys.stderr)
                fcntl.flock(handle, fcntl.LOCK_EX)
        except (ImportError, OSError) as error:
            print(f"no lock on {path} ({error}): do not tokenize the same files twice at once", file=sys.stderr)
        yield


def _build(folder, identity, corpus, tokenizer, progress):
    partial = folder.with_suffix(".partial")
    partial.mkdir(exist_ok=True)
    line = _ProgressLine(corpus)
    _tokenize(partial, corpus, tokenizer, identity["shard_tokens"], progress or line)
    line.finish()
    if _identity(Corpus(corpus.files, corpus.text_field), tokenizer, identity["shard_tokens"]) != identity:
        shutil.rmtree(partial)
        raise ValueError("A file of the corpus changed while it was tokenized: call again when it is written.")
    _index_documents(partial)
    shards = [{"num_tokens": int(one[:, 0].sum()), "num_bytes": int(one[:, 1].sum())} for one in _finished(partial)]
    meta = {**identity, "dtype": _token_dtype(tokenizer).str, "shards": shards}
    (partial / "meta.json").write_text(json.dumps(meta, indent=1, sort_keys=True))
    for path in (partial / "meta.json", partial):
        _sync(path)
    if folder.exists():
        warnings.warn(f"The token cache {folder} was damaged and has been made anew.", stacklevel=3)
        shutil.rmtree(folder)
    os.rename(partial, folder)
    _sync(folder.parent)


def _tokenize(partial, corpus, tokenizer, shard_tokens, progress):
    """Write the shards that `partial` does not hold yet."""
    finished = _finished(partial)
    passed = sum(len(shard) for shard in finished)
    num_tokens = sum(int(shard[:, 0].sum()) for shard in finished)
    num_bytes = sum(int(shard[:, 1].sum()) for shard in finished)
    dtype = _token_dtype(tokenizer)
    shard = _Shard(partial, len(finished))
    try:
        for number, chunk in enumerate(corpus.chunks()):
            if number < passed:
                continue  # Reading is cheap, tokenizing is not: what a finished shard holds is only read past.
            ids = _chunk_ids(chunk, tokenizer)
            shard.add(ids.astype(dtype), len(chunk.text), chunk.first)
            num_tokens += len(ids)
            num_bytes += len(chunk.text)
            progress(num_bytes, num_tokens)
            if shard.num_tokens >= shard_tokens:
                shard.finish()
                shard = _Shard(partial, shard.number + 1)
        shard.finish()
    finally:
        shard.close()


def _token_dtype(tokenizer):
    return np.dtype("<u2") if tokenizer.vocabulary_size <= 1 << 16 else np.dtype("<i4")


def _chunk_ids(chunk, tokenizer):
    ids = np.asarray(tokenizer.encode(chunk.text), np.int64)
    before = [tokenizer.bos_id] if chunk.first and tokenizer.bos_id is not None else []
    after = [tokenizer.eos_id] if chunk.last and tokenizer.eos_id is not None else []
    ids = np.concatenate([np.asarray(before, np.int64), ids, np.asarray(after, np.int64)])
    if ids.size and (ids.min() < 0 or ids.max() >= tokenizer.vocabulary_size):
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise ValueError(
            f"The tokenizer gave id {wrong}, but its vocabulary_size is {tokenizer.vocabulary_size} "
            f"(ids 0 to {tokenizer.vocabulary_size - 1}): train it again, or load the files that belong together."
        )
    return ids


class _Shard:
    """One file of ids and its index, an int64 row (tokens, bytes, opens a document) for each chunk.

    Both are written aside and renamed, the index last: a shard whose index is there is whole.
    """

    def __init__(self, folder, number):
        self.folder, self.number = folder, number
        self.num_tokens = 0
        self._rows = array.array("q")
        self._handle = open(folder / f"{number:05d}.tokens.tmp", "wb")

    def add(self, ids, num_bytes, first):
        self._handle.write(ids.tobytes())
        self._rows.extend((len(ids), num_bytes, int(first)))
        self.num_tokens += len(ids)

    def finish(self):
        self.close()
        tokens = self.folder / f"{self.number:05d}.tokens"
        if not self._rows:
            os.unlink(f"{tokens}.tmp")
            return
        index = self.folder / f"{self.number:05d}.npy"
        with open(f"{index}.tmp", "wb") as handle:
            np.save(handle, np.array(self._rows, np.int64).reshape(-1, 3))
        for path in (tokens, index):
            _sync(f"{path}.tmp")
            os.replace(f"{path}.tmp", path)
            _sync(self.folder)

    def close(self):
        self._handle.close()


def _finished(partial):
    """The indexes of the finished shards, memory-mapped."""
    shards = []
    while (path := partial / f"{len(shards):05d}.npy").exists():
        shards.append(np.load(path, mmap_mode="r"))
    return shards


def _index_documents(partial):
    """Write where each document starts and how many raw bytes it has, from the rows of the shards."""
    shards = _finished(partial)
    count = sum(int(shard[:, 2].sum()) for shard in shards)
    starts = np.lib.format.open_memmap(partial / "document_starts.npy", "w+", np.int64, (count + 1,))
    sizes = np.lib.format.open_memmap(partial / "document_bytes.npy", "w+", np.int64, (count,))
    seen = num_tokens = 0
    for shard in shards:
        places = num_tokens + np.cumsum(shard[:, 0]) - shard[:, 0]
        opens = shard[:, 2] == 1
        documents = seen + np.cumsum(opens) - 1
        starts[seen : seen + int(opens.sum())] = places[opens]
        np.add.at(sizes, documents, shard[:, 1])
        seen += int(opens.sum())
        num_tokens += int(shard[:, 0].sum())
    starts[count] = num_tokens
    for name, array_on_disk in (("document_starts", starts), ("document_bytes", sizes)):
        array_on_disk.flush()
        _sync(partial / f"{name}.npy")


def _sync(path):
    """Have a file or folder on disk before the next step counts on it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _ProgressLine:
    """Says on stderr how far long work is: after two seconds, then each second on a terminal, each minute elsewhere."""

    def __init__(self, corpus):
        self._total = None
        if not any(path.name.lower().endswith((".gz", ".jsonl")) for path in corpus.files):
            self._total = sum(path.stat().st_size for path in corpus.files)
        self._start = time.monotonic()
        self._next = self._start + 2
        self._open = False

    def __call__(self, num_bytes, num_tokens):
        now = time.monotonic()
        if now < self._next:
            return
        terminal = sys.stderr.isatty()
        self._next = now + (1 if terminal else 60)
        share = f" ({num_bytes / self._total:.0%})" if self._total else ""
        line = (
            f"tokenizing: {num_bytes / 1e6:.0f} MB{share}, {num_tokens / 1e6:.1f} M tokens, {now - self._start:.0f} s"
        )
        print(f"\r{line}" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)
        self._open = terminal

    def finish(self):
        if self._open:
            print(file=sys.stderr)
