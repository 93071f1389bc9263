"""The ids of a packed corpus, read from memory-mapped files."""

import bisect
import json
import mmap
import os
from functools import cached_property, lru_cache, partial
from itertools import accumulate
from pathlib import Path

import numpy as np

from keras_seqlm.data.cache_lock import InUse

FORMAT = 5  # 4 may lack what stood behind damage in a file of several streams of bzip2 or xz
MOST_MAPS = 1024  # Shards that a store keeps open; Linux allows a process 65,530 maps in all.


class TokenStream:
    """A stream of token ids that is sliced like an array.

    A subclass has `_offsets`, the first token of each of its parts and the end of the last, and `_ids(start, stop)`, a list
    of int32 arrays that follow each other.
    """

    def __len__(self):
        return self._offsets[-1]

    def __getitem__(self, index):
        """Read one id (int) or a slice without a step (int32 array)."""
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                raise ValueError(
                    f"A token stream is sliced without a step, received step {step}: slice the array it gives."
                )
            pieces = self._ids(start, max(start, stop))
            return pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, np.int32), *pieces])
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"Token {index} of a stream of {len(self)} tokens.")
        return int(self[place : place + 1][0])

    def __array__(self, dtype=None, copy=None):
        return self[:].astype(dtype or np.int32, copy=False)


class TokenStore(TokenStream):
    """A stream of token ids on disk, or of some parts of one, that is sliced like an array.

    Every id that is read is held against the vocabulary, so that a damaged file stops a run in place of training it.

    Args:
        folder: a finished folder of the token cache, as `pack()` writes it.
        tokenizer: the tokenizer of the folder. With it `num_bytes` is exact where a part begins or ends inside a document
            (to the byte for tokenizers whose `decode_bytes` is exact); without it such a piece counts in proportion.
        ranges: `(start, stop)` of each part of the folder's stream, in order; None takes all. Parts that touch are one.

    Attributes:
        vocabulary_size: of the tokenizer that made the ids.
        ranges: int64 array of (start, stop) of the parts.

    Raises:
        ValueError: if the folder is of another format or there is no such part; on reading, if an id is outside the
            vocabulary.

    Example:

    ```python
    store = pack("books/*.txt", tokenizer)
    ids = store[1000:1256]              # int32, (256,)
    tail = store.part(len(store) // 2)  # reads no token
    ```
    """

    def __init__(self, folder, tokenizer=None, ranges=None):
        self.folder = Path(folder)
        self.tokenizer = tokenizer
        self._use = InUse(self.folder / "meta.json")
        self._meta = json.loads((self.folder / "meta.json").read_text())
        if self._meta["format"] != FORMAT:
            raise ValueError(f"{folder} has cache format {self._meta['format']}, expected {FORMAT}: delete the folder.")
        self.vocabulary_size = self._meta["vocabulary_size"]
        self._ends = list(accumulate(shard["num_tokens"] for shard in self._meta["shards"]))
        self._take([(0, self._ends[-1])] if ranges is None else ranges)

    def _take(self, ranges):
        self.ranges = _joined(np.array(ranges, np.int64).reshape(-1, 2))
        flat = self.ranges.ravel()
        if (np.diff(flat) < 0).any() or flat[0] < 0 or flat[-1] > self._ends[-1]:
            raise ValueError(f"No parts {ranges} in a stream of {self._ends[-1]} tokens.")
        # First token of each part in this store, and the end of the last.
        self._offsets = [0, *accumulate((self.ranges[:, 1] - self.ranges[:, 0]).tolist())]

    def _ids(self, start, stop):
        return [self._read(first, last) for first, last in self._pieces(start, stop)]

    def __getstate__(self):
        # Memory maps would be pickled as their whole content; the other process opens its own.
        opened = ("_use", "_shard", "_chunks", "document_starts")
        return {name: value for name, value in self.__dict__.items() if name not in opened}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._use = InUse(self.folder / "meta.json")

    def part(self, start=0, stop=None):
        """Return tokens `start` to `stop` of this store as a store of their own."""
        start, stop, _ = slice(start, stop).indices(len(self))
        return self.parts([(start, max(start, stop))])

    def parts(self, ranges):
        """Return the tokens of several ranges `(start, stop)` of this store, which follow each other, as one store."""
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__)  # With what is open.
        part._take([piece for start, stop in ranges for piece in self._pieces(start, stop)])
        return part

    def _pieces(self, start, stop):
        """The ranges of the folder's stream that tokens `start` to `stop` of this store are."""
        number = bisect.bisect_right(self._offsets, start) - 1
        pieces = []
        while start < stop:
            upto = min(stop, self._offsets[number + 1])
            first = int(self.ranges[number, 0]) + start - self._offsets[number]
            pieces.append((first, first + upto - start))
            start, number = upto, number + 1
        return pieces

    @property
    def statistics(self):
        """What was counted when the whole folder was made, a dict.

        `num_tokens`, `num_bytes`, `num_documents`; `num_unknown`, the ids that are `unk`; `num_replaced`, the U+FFFD read
        in place of bytes that are no UTF-8; `num_skipped_lines`, the broken records; `damaged_files`, the packed files
        that were read up to their damage.
        """
        return dict(self._meta["statistics"])

    @property
    def content_hash(self):
        """Hash of the whole corpus, text and way of reading it, whatever its files are called: 64 hexadecimal digits."""
        return self._meta["content_hash"]

    @property
    def files(self):
        """What is known of each file of the whole corpus, in order: dicts of `sha256`, `kind` and `num_documents`."""
        return [dict(one) for one in self._meta["files"]]

    @property
    def num_bytes(self):
        """Raw bytes of text in this store: what bits per byte divides by."""
        return sum(self._bytes_before(stop) - self._bytes_before(start) for start, stop in self.ranges.tolist())

    @property
    def num_documents(self):
        """Number of documents that this store touches."""
        inside = self.ranges[self.ranges[:, 0] < self.ranges[:, 1]]
        first, last = np.searchsorted(self.document_starts, (inside[:, 0], inside[:, 1] - 1), side="right")
        return int((last - first + 1).sum())

    @cached_property
    def document_starts(self):
        """Memory-mapped int64 array: first token of each document of the whole folder, and the end of the last."""
        return np.load(self.folder / "document_starts.npy", mmap_mode="r")

    @property
    def document_bytes(self):
        """Memory-mapped int64 array: raw bytes of each document of the whole folder."""
        return np.load(self.folder / "document_bytes.npy", mmap_mode="r")

    def segment_ids(self, start, stop):
        """Number the documents of tokens `start` to `stop`: int32, 1 for the document of the first token.

        A part is a document's border, too.
        """
        numbers, number = [], 0
        for first, last in self._pieces(start, stop):
            low, high = np.searchsorted(self.document_starts, (first, last), side="right")
            borders = self.document_starts[low:high] - first
            numbers.append(number + 1 + np.searchsorted(borders, np.arange(last - first), side="right"))
            number = numbers[-1][-1]
        return np.concatenate([np.empty(0, np.int32), *numbers]).astype(np.int32)

    def _path(self, number):
        return _tokens_path(self.folder, number)

    # What is kept open must not hold the store, or a store that is let go of would be in use until the collector runs.
    @cached_property
    def _shard(self):
        dtype = np.dtype(self._meta["dtype"])
        beyond_memory = self._ends[-1] * dtype.itemsize > _memory() // 2
        return lru_cache(MOST_MAPS)(partial(_open_shard, self.folder, dtype, beyond_memory))

    @cached_property
    def _chunks(self):
        return lru_cache(4)(partial(_chunk_sums, self.folder))  # The parts of a store are asked for in order.

    def _read(self, start, stop):
        ids = np.empty(stop - start, np.int32)
        number = bisect.bisect_right(self._ends, start)
        place = start
        while place < stop:
            shard_start = self._ends[number - 1] if number else 0
            upto = min(stop, self._ends[number])
            ids[place - start : upto - start] = self._shard(number)[place - shard_start : upto - shard_start]
            place, number = upto, number + 1
        # As unsigned numbers negative ids are large ones.
        if len(ids) and ids.view(np.uint32).max() >= self.vocabulary_size:
            index = int(np.argmax(ids.view(np.uint32) >= self.vocabulary_size))
            number = bisect.bisect_right(self._ends, start + index)
            place = start + index - (self._ends[number - 1] if number else 0)
            raise ValueError(
                f"{self._path(number)} is damaged: token {place} is {ids[index]}, and the vocabulary has "
                f"{self.vocabulary_size} ids. Delete the folder, and the text is tokenized again."
            )
        return ids

    def _bytes_before(self, place):
        """Raw bytes of the text whose tokens lie before `place`, a position in the whole folder."""
        number = bisect.bisect_right(self._ends, place)
        num_bytes = sum(shard["num_bytes"] for shard in self._meta["shards"][:number])
        if number == len(self._ends):
            return num_bytes
        shard_start = self._ends[number - 1] if number else 0
        ends, sizes = self._chunks(number)
        chunk = int(np.searchsorted(ends, place - shard_start, side="right"))
        num_bytes += int(sizes[chunk - 1]) if chunk else 0
        chunk_start = shard_start + (int(ends[chunk - 1]) if chunk else 0)
        if place == chunk_start:
            return num_bytes
        ids = self._read(chunk_start, shard_start + int(ends[chunk]))
        before, whole = place - chunk_start, len(ids)
        if self.tokenizer is not None:
            before, whole = (len(self.tokenizer.decode_bytes(some)) for some in (ids[:before], ids))
        of_chunk = int(sizes[chunk]) - (int(sizes[chunk - 1]) if chunk else 0)
        return num_bytes + round(of_chunk * before / max(whole, 1))


def _tokens_path(folder, number):
    return folder / f"{number:05d}.tokens"


def _open_shard(folder, dtype, beyond_memory, number):
    with open(_tokens_path(folder, number), "rb") as handle:
        pages = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    if beyond_memory:
        # Blocks are read at random places, and the system would read megabytes around each for nothing.
        pages.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(pages, dtype)


def _chunk_sums(folder, number):
    """Tokens and bytes up to the end of each chunk of a shard."""
    rows = np.load(folder / f"{number:05d}.npy", mmap_mode="r")
    return np.cumsum(rows[:, 0]), np.cumsum(rows[:, 1])


def _joined(ranges):
    """Ranges without empty ones, those that touch as one; all empty, the first."""
    kept = ranges[ranges[:, 0] != ranges[:, 1]]
    if not len(kept):
        return ranges[:1] if len(ranges) else np.zeros((1, 2), np.int64)
    opens = np.concatenate([[True], kept[1:, 0] != kept[:-1, 1]])
    closes = np.concatenate([opens[1:], [True]])
    return np.stack([kept[opens, 0], kept[closes, 1]], axis=1)


def _memory():
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def is_complete(folder):
    """Tell whether a folder of the cache is there and holds as many tokens as it says."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        width = np.dtype(meta["dtype"]).itemsize
        sizes = [(folder / f"{n:05d}.tokens").stat().st_size for n in range(len(meta["shards"]))]
        return sizes == [shard["num_tokens"] * width for shard in meta["shards"]]
    except (FileNotFoundError, NotADirectoryError, KeyError, TypeError, ValueError):
        return False
