"""How fast text becomes ids, beside Hugging Face's library with the same vocabulary, in one process.

    python benchmarks/tokenizers.py FILE ... [--megabytes 10] [--chunk 65536] [--rounds 3]

Processor time of this process and its threads, the best of the rounds, each a fresh encoder on the same chunks of text.
"""

import argparse
import os
import pathlib
import sys
import tempfile

MEGA = 1_000_000


def cpu_seconds():
    """Processor time of this process, its threads included."""
    times = os.times()
    return times.user + times.system


def measure(make, encode, chunks, rounds):
    """The fewest seconds in which a fresh encoder of `make` encodes all chunks, and the ids of the first one."""
    best, first = float("inf"), None
    for _ in range(rounds):
        encoder = make()
        start = cpu_seconds()
        for number, chunk in enumerate(chunks):
            ids = encode(encoder, chunk)
            first = list(ids) if number == 0 else first
        best = min(best, cpu_seconds() - start)
    return best, first


def main(argv=None):
    """Measures and prints a line for each kind of tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--megabytes", type=float, default=10.0)
    parser.add_argument("--chunk", type=int, default=1 << 16, help="characters of a text")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer

    from keras_seqlm.tokenizers import BytePairTokenizer, WordPieceTokenizer, from_huggingface

    text = "".join(pathlib.Path(file).read_text("utf-8", errors="replace") for file in args.files)
    while text and len(text) < args.megabytes * MEGA:
        text += text
    text = text[: int(args.megabytes * MEGA)]
    chunks = [text[start : start + args.chunk] for start in range(0, len(text), args.chunk)]
    size = len(text.encode("utf-8")) / MEGA
    for kind, cls, more in (
        ("byte pairs", BytePairTokenizer, {}),
        ("byte pairs, an added token", BytePairTokenizer, {"added": True}),
        ("word pieces", WordPieceTokenizer, {}),
    ):
        tokenizer = cls.train(texts=chunks[:40], vocabulary_size=8192)
        if more:
            tokenizer = tokenizer.with_added_tokens(["<|user|>"], special=True)
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.to_huggingface(folder)
            path = str(pathlib.Path(folder) / "tokenizer.json")
            theirs, first = measure(
                lambda path=path: Tokenizer.from_file(path),
                lambda encoder, chunk: encoder.encode(chunk, add_special_tokens=False).ids,
                chunks,
                args.rounds,
            )
            ours, same = measure(
                lambda path=path: from_huggingface(path),
                lambda encoder, chunk: encoder.encode(chunk).tolist(),
                chunks,
                args.rounds,
            )
        if first != same:
            sys.exit(f"{kind}: the ids differ")
        print(
            f"{kind}: ours {size / ours:.2f} MB/s, tokenizers {size / theirs:.2f} MB/s, {theirs / ours:.2f}x",
            flush=True,
        )


if __name__ == "__main__":
    main()
