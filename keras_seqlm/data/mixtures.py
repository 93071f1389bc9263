"""Several corpora in one stream of batches, each with its weight."""

import bisect
import hashlib
from itertools import accumulate

import numpy as np

from keras_seqlm.data.blocks import CausalBlocks
from keras_seqlm.data.permutation import stream_key
from keras_seqlm.data.token_store import TokenStream

UNITS = 1 << 32  # Weights are whole numbers of these, so that a row's place is exact however far a run goes.


class JoinedStore(TokenStream):
    """Several `TokenStore`s, of the same tokenizer, one after the other.

    Args:
        stores: the stores; empty ones are left out.

    Raises:
        ValueError: if there is none, or they have different vocabularies.
    """

    def __init__(self, stores):
        self.stores = [store for store in stores if len(store)] or list(stores)[:1]
        sizes = {store.vocabulary_size for store in stores}
        if len(sizes) != 1:
            raise ValueError(f"Stores that are joined have one vocabulary, received sizes {sorted(sizes)}.")
        (self.vocabulary_size,) = sizes
        self._offsets = [0, *accumulate(map(len, self.stores))]
        # Of all the corpora, also of one that gives no token here.
        hashes = "".join(store.content_hash for store in stores)
        self.content_hash = hashlib.sha256(hashes.encode()).hexdigest()

    def _ids(self, start, stop):
        return [store[first:last] for store, first, last in self._pieces(start, stop)]

    def _pieces(self, start, stop):
        number = bisect.bisect_right(self._offsets, start) - 1
        pieces = []
        while start < stop:
            upto = min(stop, self._offsets[number + 1])
            pieces.append((self.stores[number], start - self._offsets[number], upto - self._offsets[number]))
            start, number = upto, number + 1
        return pieces

    @property
    def num_bytes(self):
        """Raw bytes of text in the stores."""
        return sum(store.num_bytes for store in self.stores)

    @property
    def num_documents(self):
        """Number of documents that the stores touch."""
        return sum(store.num_documents for store in self.stores)

    def segment_ids(self, start, stop):
        """Number the documents of tokens `start` to `stop`: int32, 1 for the document of the first token."""
        numbers = [np.empty(0, np.int32)]
        for store, first, last in self._pieces(start, stop):
            before = numbers[-1][-1] if len(numbers) > 1 else 0
            numbers.append(before + store.segment_ids(first, last))
        return np.concatenate(numbers)


class MixedBlocks(CausalBlocks):
    """Batches whose rows come from several corpora, each with its share of the rows.

    Which corpus a row is from follows from its number alone: after any number of rows a corpus has had its share of them
    to less than a row for each corpus, and nothing is left to chance. The blocks of a corpus come in an order of
    its own, which is drawn anew whenever the corpus has been read to its end; a small corpus with a large weight is read
    many times while a large one is read in part. `epochs(steps)` tells how many times. As with `CausalBlocks` a batch is a
    function of (seed, step) and nothing else. What Keras calls an epoch is as many batches as all corpora have together.

    Args:
        corpora: dict of name to `TokenStore`.
        weights: dict of name to a number above 0; their sum need not be 1.
        sequence_length: tokens of a row.
        batch_size: rows of a batch.
        seed: decides the cut and the order of every epoch of every corpus.
        segment_ids: give `{"token_ids", "segment_ids"}` as inputs (see `CausalBlocks`).
        shuffle: permute the blocks of each corpus, and shift their borders in each of its epochs.
        vocabulary_size: see `CausalBlocks`.

    Attributes:
        weights: dict of name to share, of sum 1.
        tokens: the stores, joined.

    Raises:
        ValueError: if a corpus has no weight, or fewer tokens than a row needs.

    Example:

    >>> import pathlib, tempfile
    >>> from keras_seqlm.data import causal_blocks
    >>> from keras_seqlm.tokenizers import ByteTokenizer
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> for name in ("books", "letters"):
    ...     _ = (folder / f"{name}.txt").write_text(f"Some text of {name}. " * 100)
    >>> files = {folder / "books.txt": 3, folder / "letters.txt": 1}
    >>> train, validation = causal_blocks(files, ByteTokenizer(), 16, 8, cache_dir=folder)
    >>> [round(epochs, 2) for epochs in train.epochs(100).values()], train.num_rows(100 * 8)
    ([5.41, 1.64], [600, 200])
    """

    def __init__(
        self,
        corpora,
        weights,
        sequence_length,
        batch_size,
        *,
        seed=0,
        segment_ids=None,
        shuffle=True,
        vocabulary_size=None,
    ):
        if set(corpora) != set(weights) or not all(weights[name] > 0 for name in corpora):
            raise ValueError(f"Each corpus has a weight above 0, received {weights} for {list(corpora)}.")
        total = sum(weights.values())
        self.weights = {name: weights[name] / total for name in corpora}
        self._units = [max(1, round(share * UNITS)) for share in self.weights.values()]
        self._rest = [sum(self._units[number:]) for number in range(len(self._units))]
        self._parts = []
        for number, (name, tokens) in enumerate(corpora.items()):
            if len(tokens) <= sequence_length:
                raise ValueError(
                    f"{name} has {len(tokens)} tokens to train on and a row needs {sequence_length + 1}: give more text, or a "
                    f"smaller `sequence_length` or `validation_fraction`."
                )
            key = stream_key(seed, "corpus", number)
            self._parts.append(CausalBlocks(tokens, sequence_length, 1, seed=key, segment_ids=False, shuffle=shuffle))
        shape = {"segment_ids": bool(segment_ids), "shuffle": shuffle, "vocabulary_size": vocabulary_size}
        super().__init__(JoinedStore(list(corpora.values())), sequence_length, batch_size, seed=seed, **shape)

    def _count_batches(self):
        return max(1, sum(map(len, self._parts)) // self.global_batch_size)

    def num_rows(self, count):
        """How many of the first `count` rows of a run are from each corpus, a list."""
        counts = []
        for units, rest in zip(self._units, self._rest, strict=True):
            counts.append(_share(count, units, rest))
            count -= counts[-1]
        return counts

    def epochs(self, steps):
        """How many times each corpus is read in so many steps.

        Args:
            steps: number of batches from the start of a run.

        Returns:
            dict of name to a float.
        """
        rows = self.num_rows(steps * self.global_batch_size)
        return {name: row / len(part) for name, row, part in zip(self.weights, rows, self._parts, strict=True)}

    def _place(self, row):
        """The corpus of a row of the run, and which of that corpus's rows it is: every number from 0 on, once."""
        for number, (units, rest) in enumerate(zip(self._units, self._rest, strict=True)):
            before = _share(row, units, rest)
            if _share(row + 1, units, rest) > before:
                return number, before
            row -= before
        raise AssertionError("the last corpus takes every row that is left")

    def _starts(self, step):
        first = step * self.global_batch_size
        starts, groups = np.zeros(self.batch_size, np.int64), {}
        for index, row in enumerate(range(self.global_batch_size)[self._rows]):
            number, block = self._place(first + row)
            epoch, block = divmod(block, len(self._parts[number]))
            groups.setdefault((number, epoch), []).append((index, block))
        offsets = np.cumsum([0, *(len(part.tokens) for part in self._parts)])
        for (number, epoch), places in groups.items():
            index, blocks = np.array(places, np.int64).T
            starts[index] = offsets[number] + self._parts[number]._block_starts(epoch, blocks)
        return starts


def _share(count, units, rest):
    """How many of `count` rows go to a corpus that has `units` of `rest`: rounded, and so one more at most for a row more."""
    return (count * units + rest // 2) // rest
