"""What a batch costs as the corpus grows: from 10^6 to 10^12 blocks of text.

usage: corpus_size.py [--steps 300] [--sequence-length 256] [--batch-size 64] [--sparse FOLDER]

Three tables come out. The first runs `CausalBlocks` over a stream of any length whose ids follow from their position: the
time to find a batch's rows (the permutation, the offset and the arithmetic), the time of the whole batch, the function
calls it takes, and the memory that opening the data set and reading all those batches added to the process. Steps are
drawn at random from three epochs, each size has a process of its own. The second counts which tokens each process of a
run reads of one batch of the largest corpus. The third, with --sparse, reads a real `TokenStore` over files of zeros that
take no room on the disk (32 MB each, as `pack` makes them); its ids take 2 bytes each, its list of files is read on
opening.
"""

import argparse
import json
import pathlib
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

SIZES = [10**power for power in range(6, 13)]
SPARSE_SIZES = [10**8, 10**10, 10**12]
VOCABULARY = 50_257


class PositionStore:
    """A stream of ids that follow from their position, in place of files; it notes what is read of it."""

    def __init__(self, num_tokens):
        self.num_tokens = num_tokens
        self.reads = []

    def __len__(self):
        return self.num_tokens

    def __getitem__(self, part):
        start, stop, _ = part.indices(self.num_tokens)
        self.reads.append((start, stop))
        return (np.arange(start, stop) % VOCABULARY).astype(np.int32)


def blocks_of(tokens, sequence_length, batch_size):
    """Training blocks of a stream."""
    from keras_seqlm.data import CausalBlocks

    return CausalBlocks(tokens, sequence_length, batch_size, seed=1)


def random_steps(blocks, count):
    """Steps from the first three epochs."""
    return random.Random(0).choices(range(3 * len(blocks)), k=count)


def calls_of(function, *arguments):
    """How many functions, of Python and of C, a call of `function` calls in its turn."""
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        function(*arguments)
    finally:
        sys.setprofile(None)
    return calls


def parts_of_a_batch(num_blocks, sequence_length, batch_size, count, step):
    """The (start, stop) of every read that each of `count` processes does for its part of batch `step`."""
    parts = []
    for index in range(count):
        store = PositionStore(num_blocks * sequence_length + 1)
        blocks_of(store, sequence_length, batch_size).shard(index, count).batch(step)
        parts.append(store.reads)
    return parts


def measure(open_tokens, sequence_length, batch_size, steps):
    """Times in microseconds, calls, and megabytes, for one corpus in this process."""
    from keras_seqlm import data  # noqa: F401  The import is no cost of the corpus.

    before = _megabytes()
    start = time.perf_counter()
    blocks = blocks_of(open_tokens(), sequence_length, batch_size)
    opened = time.perf_counter() - start
    chosen = random_steps(blocks, steps)
    figures = {
        "open_ms": 1e3 * opened,
        "rows_us": _median_microseconds(blocks._starts, chosen),
        "batch_us": _median_microseconds(blocks.batch, chosen),
    }
    figures["megabytes"] = _megabytes() - before
    figures["calls"] = statistics.mean(calls_of(blocks.batch, step) for step in chosen[:50])
    return figures


def _median_microseconds(function, steps):
    times = []
    for step in steps:
        start = time.perf_counter()
        function(step)
        times.append(1e6 * (time.perf_counter() - start))
    return statistics.median(times)


def _megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def sparse_store(folder, num_tokens, shard_tokens=1 << 24):
    """Write a folder of the token cache whose files are holes; returns its path."""
    from keras_seqlm.data.token_store import FORMAT

    folder = pathlib.Path(folder)
    folder.mkdir()
    sizes = [min(shard_tokens, num_tokens - start) for start in range(0, num_tokens, shard_tokens)]
    for number, size in enumerate(sizes):
        with open(folder / f"{number:05d}.tokens", "wb") as file:
            file.truncate(2 * size)
    shards = [{"num_tokens": size, "num_bytes": size} for size in sizes]
    meta = {"format": FORMAT, "dtype": "<u2", "vocabulary_size": VOCABULARY, "shards": shards, "statistics": {}}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def _in_a_process(args, *words):
    words = [sys.executable, __file__, *words, "--steps", str(args.steps)]
    words += ["--sequence-length", str(args.sequence_length), "--batch-size", str(args.batch_size)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def _row(name, figures):
    return (
        f"| {name} | {figures['open_ms']:.1f} | {figures['rows_us']:.0f} | {figures['batch_us']:.0f} | "
        f"{figures['calls']:.0f} | {figures['megabytes']:.1f} |"
    )


def _table(first):
    print(f"\n| {first} | open, ms | rows of a batch, us | whole batch, us | calls | memory, MB |")
    print("|---|---|---|---|---|---|", flush=True)


def main():
    """The three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="batches read of each corpus")
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--sparse", help="a folder for files of zeros: 60,000 of them, which take no room")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    shape = (args.sequence_length, args.batch_size)
    if args.one:
        tokens = args.one * args.sequence_length + 1
        return print(json.dumps(measure(lambda: PositionStore(tokens), *shape, args.steps)))
    if args.folder:
        from keras_seqlm.data import TokenStore

        return print(json.dumps(measure(lambda: TokenStore(args.folder), *shape, args.steps)))
    _table("blocks")
    for size in SIZES:
        print(_row(f"10^{len(str(size)) - 1}", _in_a_process(args, "--one", str(size))), flush=True)
    print("\n| processes | rows of each | tokens read by each | read by two of them | of the batch |")
    print("|---|---|---|---|---|")
    for count in (count for count in (1, 2, 8, 64) if args.batch_size % count == 0):
        parts = parts_of_a_batch(SIZES[-1], *shape, count, step=123_456_789)
        rows = [{start for start, _ in part} for part in parts]
        read = {sum(stop - start for start, stop in part) for part in parts}
        twice = sum(map(len, rows)) - len(set.union(*rows))
        whole = len(set.union(*rows)) / args.batch_size
        print(f"| {count} | {args.batch_size // count} | {', '.join(map(str, read))} | {twice} rows | {whole:.0%} |")
    if args.sparse:
        _table("tokens of a real store")
        for size in SPARSE_SIZES:
            with tempfile.TemporaryDirectory(dir=args.sparse) as folder:
                path = sparse_store(pathlib.Path(folder, "tokens"), size)
                print(_row(f"10^{len(str(size)) - 1}", _in_a_process(args, "--folder", str(path))), flush=True)


if __name__ == "__main__":
    main()
