"""A corpus tokenized once, into memory-mapped files that later runs open at once."""

import array
import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
import warnings
from pathlib import Path

import numpy as np

from keras_seqlm.corpora import Corpus
from keras_seqlm.corpora.corpus import TOLERANCE, count_characters
from keras_seqlm.corpora.opening import is_packed, kind_at, kind_of
from keras_seqlm.data.cache_lock import CacheLock
from keras_seqlm.data.content import content_hash, hash_files
from keras_seqlm.data.spool import Spool, are_documents
from keras_seqlm.data.token_store import FORMAT, TokenStore, is_complete
from keras_seqlm.files import flush, write_json
from keras_seqlm.status_line import StatusLine

SHARD_TOKENS = 1 << 24


def pack(
    files,
    tokenizer,
    *,
    cache_dir=None,
    text_field="text",
    tolerance=TOLERANCE,
    progress=None,
    shard_tokens=SHARD_TOKENS,
):
    """Tokenize text into one stream of ids, or open the stream that an earlier call made of them.

    Each document becomes `bos + ids + eos`. The stream lies in a folder of the cache whose name depends on the tokenizer
    and on the content of every file and their order: it is found again when files were touched, moved, renamed or copied,
    and a changed byte makes another (see `content.hash_files` for when a file is read for that). A killed call goes on
    where its last finished shard ends; of two calls at once one waits for the other, and gives up where that one hangs.
    `TokenStore.statistics` counts what was skipped on the way, `TokenStore.content_hash` says whether a text is the same.

    Args:
        files: a path, a glob pattern, a directory, or a list of these (see `Corpus`). Or an iterable of documents: str,
            bytes, or mappings with a `text_field`, as a generator or a Hugging Face data set, streaming or not. It is read to
            its end in each call, through a file of the cache; the same documents in the same order are tokenized once.
        tokenizer: has `encode(bytes)`, `decode_bytes(ids)`, `vocabulary_size`, `bos_id`, `eos_id` and `hash`; for
            the statistics also `unk_id`, and `keeps_bytes` if it reads bytes that are no UTF-8 as they are.
        cache_dir: folder of the cache; None takes `$KERAS_SEQLM_CACHE`, else `~/.cache/keras_seqlm/tokens`.
        text_field: the field of a record that holds the text.
        tolerance: the fraction of the corpus that may be broken and is skipped (see `Corpus`).
        progress: called as `progress(num_bytes, num_tokens)` after each chunk. None writes a line to stderr now and then
            when the work takes more than two seconds.
        shard_tokens: a file of the cache is closed at the first chunk that fills it to so many ids.

    Returns:
        A `TokenStore`.

    Raises:
        FileNotFoundError: if a named file is absent.
        ImportError: if the package is absent that reads one of the files.
        ValueError: if there is no text, a file is empty or changes meanwhile, too much is broken, or the tokenizer gives an
            id outside its vocabulary.
        TimeoutError: if another process that builds the same folder hangs.

    Example:

    >>> import pathlib, tempfile
    >>> from keras_seqlm.tokenizers import ByteTokenizer
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "night.txt").write_text("It was a dark night.")
    >>> store = pack(folder, ByteTokenizer(), cache_dir=folder)
    >>> len(store), store.num_bytes, store[:3].tolist()
    (22, 20, [1, 77, 120])
    """
    root = cache_root(cache_dir)
    if are_documents(files):
        spool = Spool(files, root, text_field, tolerance)
        try:
            return open_or_build(root, spool, spool.content, tokenizer, progress, shard_tokens)
        finally:
            spool.close()
    corpus = Corpus(files, text_field, tolerance=tolerance)
    return open_or_build(root, corpus, _content(corpus, root), tokenizer, progress, shard_tokens)


def cache_root(cache_dir=None):
    """The folder of the cache: `cache_dir`, else `$KERAS_SEQLM_CACHE`, else `~/.cache/keras_seqlm/tokens`."""
    return Path(cache_dir or os.environ.get("KERAS_SEQLM_CACHE") or "~/.cache/keras_seqlm/tokens").expanduser()


def open_or_build(root, corpus, content, tokenizer, progress=None, shard_tokens=SHARD_TOKENS):
    """Open the stream of a corpus in the cache, after making it where it is not there.

    Args:
        root: folder of the cache.
        corpus: has `chunks()` and `check()`, as `Corpus`.
        content: its `content_hash`, and `files`, a list of dicts of each file's `kind` and `sha256`.
        tokenizer, progress, shard_tokens: see `pack`.

    Returns:
        A `TokenStore`.
    """
    identity = _identity(corpus, content["content_hash"], tokenizer, shard_tokens)
    folder = root / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    for _ in range(3):
        if not is_complete(folder):
            root.mkdir(parents=True, exist_ok=True)
            with CacheLock(root / f"{folder.name}.lock") as lock:
                if not is_complete(folder):
                    _build(folder, identity, corpus, content, tokenizer, progress, lock)
        try:
            store = TokenStore(folder, tokenizer)
        except FileNotFoundError:
            continue  # It was pruned between the two.
        with contextlib.suppress(PermissionError):  # A cache may be shared, and not ours to write in.
            os.utime(folder / "meta.json")  # When it was last used, for pruning.
        return store
    raise FileNotFoundError(f"{folder} is deleted as fast as it is made: who prunes the cache?")


def _content(corpus, root):
    kinds, hashes = [kind_at(path) for path in corpus.files], hash_files(corpus.files, root)
    files = [{"kind": kind, "sha256": one} for kind, one in zip(kinds, hashes, strict=True)]
    return {"content_hash": content_hash(kinds, hashes, corpus.text_field), "files": files}


def _identity(corpus, content_hash, tokenizer, shard_tokens):
    """Everything that the bytes of the cache depend on, and `tolerance`, which says whether they are made."""
    return {
        "format": FORMAT,
        "tokenizer_hash": tokenizer.hash,
        "vocabulary_size": int(tokenizer.vocabulary_size),
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "tolerance": corpus.tolerance,
        "chunk_size": corpus.chunk_size,
        "shard_tokens": shard_tokens,
        "content_hash": content_hash,
    }


def _build(folder, identity, corpus, content, tokenizer, progress, lock):
    # Without a lock two processes may be here at once, and then neither may write into the other's files.
    partial = folder.with_suffix(".partial" if lock.alone else f".{uuid.uuid4().hex}.partial")
    partial.mkdir(exist_ok=True)
    corpus.check()
    line = _ProgressLine(corpus)
    _tokenize(partial, corpus, tokenizer, identity["shard_tokens"], progress or line, lock.beat)
    line.finish()
    if isinstance(corpus, Corpus) and _content(corpus, folder.parent) != content:
        shutil.rmtree(partial)
        raise ValueError("A file of the corpus changed while it was tokenized: call again when it is written.")
    _index_documents(partial, lock.beat)
    sums = [shard.sum(axis=0).tolist() for shard in _finished(partial)]
    names = ("num_tokens", "num_bytes", "num_documents", "num_unknown", "num_replaced")
    files = zip(content["files"], corpus.num_documents, strict=True)
    meta = {
        **identity,
        "dtype": _token_dtype(tokenizer).str,
        "shards": [{"num_tokens": num_tokens, "num_bytes": num_bytes} for num_tokens, num_bytes, *_ in sums],
        "files": [{**file, "num_documents": count} for file, count in files],
        "statistics": {
            **dict(zip(names, map(sum, zip(*sums, strict=True)), strict=True)),
            "num_skipped_lines": corpus.skipped,
            "damaged_files": [str(path) for path in corpus.damaged_files],
        },
    }
    write_json(partial / "meta.json", meta)
    flush(partial)
    if folder.exists() and not is_complete(folder):
        warnings.warn(f"The token cache {folder} was damaged and has been made anew.", stacklevel=4)
        shutil.rmtree(folder)
    try:
        os.rename(partial, folder)
    except OSError:
        if not is_complete(folder):
            raise
        shutil.rmtree(partial)  # Without a lock another process was faster.
    flush(folder.parent)


def _tokenize(partial, corpus, tokenizer, shard_tokens, progress, beat):
    """Write the shards that `partial` does not hold yet."""
    passed = num_shards = num_tokens = num_bytes = 0
    for rows in _finished(partial):
        passed, num_shards = passed + len(rows), num_shards + 1
        num_tokens, num_bytes = num_tokens + int(rows[:, 0].sum()), num_bytes + int(rows[:, 1].sum())
    dtype = _token_dtype(tokenizer)
    shard = _Shard(partial, num_shards)
    try:
        for number, chunk in enumerate(corpus.chunks()):
            beat()
            if number < passed:
                continue  # Reading is cheap, tokenizing is not: what a finished shard holds is only read past.
            ids = _chunk_ids(chunk, tokenizer)
            shard.add(ids.astype(dtype), (len(chunk.text), int(chunk.first), *_counts(chunk, ids, tokenizer)))
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


def _counts(chunk, ids, tokenizer):
    """How many ids are `unk`, and how many U+FFFD the tokenizer reads in place of bytes that are no UTF-8."""
    unk_id = getattr(tokenizer, "unk_id", None)
    unknown = 0 if unk_id is None else int(np.count_nonzero(ids == unk_id))
    if getattr(tokenizer, "keeps_bytes", False):
        return unknown, 0
    return unknown, count_characters(chunk.text)[0]


class _Shard:
    """One file of ids and its index: for each chunk a row of int64, which are its tokens, its bytes, whether it opens a
    document, its unknown ids and its replaced characters.

    Both are written aside and renamed, the index last: a shard whose index is there is whole.
    """

    def __init__(self, folder, number):
        self.folder, self.number = folder, number
        self.num_tokens = 0
        self._rows = array.array("q")
        self._handle = open(folder / f"{number:05d}.tokens.tmp", "wb")

    def add(self, ids, counts):
        self._handle.write(ids.tobytes())
        self._rows.extend((len(ids), *counts))
        self.num_tokens += len(ids)

    def finish(self):
        self.close()
        tokens = self.folder / f"{self.number:05d}.tokens"
        if not self._rows:
            os.unlink(f"{tokens}.tmp")
            return
        index = self.folder / f"{self.number:05d}.npy"
        with open(f"{index}.tmp", "wb") as handle:
            np.save(handle, np.array(self._rows, np.int64).reshape(-1, 5))
        for path in (tokens, index):
            flush(f"{path}.tmp")
            os.replace(f"{path}.tmp", path)
            flush(self.folder)

    def close(self):
        self._handle.close()


def _finished(partial):
    """Yield the indexes of the finished shards, memory-mapped one at a time: the system has a limit of maps."""
    number = 0
    while (path := partial / f"{number:05d}.npy").exists():
        yield np.load(path, mmap_mode="r")
        number += 1


def _index_documents(partial, beat):
    """Write where each document starts and how many raw bytes it has, from the rows of the shards."""
    count = sum(int(shard[:, 2].sum()) for shard in _finished(partial))
    starts = np.lib.format.open_memmap(partial / "document_starts.npy", "w+", np.int64, (count + 1,))
    sizes = np.lib.format.open_memmap(partial / "document_bytes.npy", "w+", np.int64, (count,))
    seen = num_tokens = 0
    for shard in _finished(partial):
        beat()
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
        flush(partial / f"{name}.npy")


class _ProgressLine:
    """Says on stderr how far long work is: after two seconds, then each second on a terminal, each minute elsewhere."""

    def __init__(self, corpus):
        self._total = None
        if corpus.files and not any(is_packed(path.name) or kind_of(path.name) != "text" for path in corpus.files):
            self._total = sum(path.stat().st_size for path in corpus.files)
        self._start = time.monotonic()
        self._next = self._start + 2
        self._line = StatusLine()

    def __call__(self, num_bytes, num_tokens):
        now = time.monotonic()
        if now < self._next:
            return
        share = f" ({num_bytes / self._total:.0%})" if self._total else ""
        parts = [f"tokenizing: {num_bytes / 1e6:.0f} MB{share}", f"{num_tokens / 1e6:.1f} M tokens"]
        parts.append(f"{now - self._start:.0f} s")
        if self._line.redraws:
            self._next = now + 1
            self._line.draw(parts)
        else:
            self._next = now + 60
            self._line.keep([", ".join(parts)])

    def finish(self):
        self._line.clear()
