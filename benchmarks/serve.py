#!/usr/bin/env python3
"""What clients of a SavedModel meet: its first request after loading, and a long time of many clients and some bad inputs.

usage: serve.py first VERSION_FOLDER [--repeat 5]
       serve.py soak VERSION_FOLDER [--minutes 10] [--clients 8] [--bad 0.05]

VERSION_FOLDER is what `seqlm export --to saved-model` wrote. It is run by TensorFlow's C library, as the stock server runs
it: XLA off, the ops of tensorflow-text loaded, and before the first request those of the warm-up file.

`first` loads the model in a process of its own, warms it up or not, and compares the first request of each signature with
the median of 50 more. `soak` has clients (threads of one process, one model) ask without a pause, a share of them for what
no client should: ten megabytes of text, bytes that are no text, options that are no numbers, ids outside the vocabulary,
wrong shapes, no such signature. Each client begins with one of each. Every answer to a good request must be the one that was given before; memory is measured
after a warm-up of a tenth of the time. Exit 1 where a bound is broken: the first request above 3 times the median;
an answer that differs, p99 of the good requests at or above 3 times their p50, or memory 2% above that after the warm-up.
"""

import argparse
import collections
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import numpy as np

MOST_TIMES_MEDIAN, MOST_TIMES_P50, MOST_GROWTH = 3.0, 3.0, 0.02
WORDS = "It was a dark and stormy night; the rain fell in torrents, except at occasional intervals. "
PROMPTS = [WORDS[: 8 + 5 * i] for i in range(16)]
SEEDED = {"max_new_tokens": [16], "temperature": [0.8], "top_k": [40], "top_p": [0.95], "seed": [7]}


def main():
    args = arguments()
    if args.child:
        print(json.dumps(first_requests(args.folder, args.child == "warm")))
    elif args.what == "first":
        sys.exit(show_first(args))
    else:
        sys.exit(soak(args))


def load(folder):
    from seqlm_runtime import SavedModel

    return SavedModel(folder)


def first_requests(folder, warm):
    """Seconds: to load, to warm up, and for each signature the first request and the median of 50 more."""
    start = time.perf_counter()
    model = load(folder)
    loaded = time.perf_counter()
    if warm:
        model.warm_up()
    figures = {"load": loaded - start, "warm up": time.perf_counter() - loaded, "signatures": {}}
    requests = {
        "generate": {"text": [PROMPTS[3]], **SEEDED},
        "score": {"text": [PROMPTS[3]]},
        "logits": {"token_ids": [[1, 5, 6, 7]], "lengths": [4]},
    }
    for signature, inputs in requests.items():
        times = []
        for _ in range(51):
            start = time.perf_counter()
            model.run(signature, **inputs)
            times.append(time.perf_counter() - start)
        figures["signatures"][signature] = times[0], statistics.median(times[1:])
    return figures


def show_first(args):
    broken = False
    print(
        "| | load, s | warm-up, s | signature | first request, ms | median, ms | times |\n|---|---|---|---|---|---|---|"
    )
    for state in ("cold", "warm"):
        words = [sys.executable, __file__, "first", args.folder, "--child", state]
        runs = [json.loads(subprocess.run(words, check=True, capture_output=True).stdout) for _ in range(args.repeat)]
        load_s, warm_s = (statistics.median(run[name] for run in runs) for name in ("load", "warm up"))
        for signature in runs[0]["signatures"]:
            first, usual = (statistics.median(run["signatures"][signature][i] for run in runs) * 1e3 for i in (0, 1))
            print(
                f"| {state} | {load_s:.2f} | {warm_s:.2f} | {signature} | {first:.2f} | {usual:.2f} | {first / usual:.1f} |"
            )
            broken |= state == "warm" and first > MOST_TIMES_MEDIAN * usual
    return int(broken)


class Client:
    """Asks one request after another, from a few that are good and some that are not, and keeps how long each took."""

    def __init__(self, model, number, bad):
        self.model, self.choose, self.bad = model, random.Random(number), bad
        self.times, self.counts, self.wrong = [], collections.Counter(), []

    def run(self, answers, ends):
        for name in BAD:  # all of them at the same time: that is the most memory that they take
            self._ask_badly(name)
        while time.monotonic() < ends:
            if self.choose.random() < self.bad:
                self._ask_badly(self.choose.choice(sorted(BAD)))
                continue
            at = self.choose.randrange(len(PROMPTS))
            start = time.perf_counter()
            found = text_of(self.model, at)
            self.times.append((time.monotonic(), time.perf_counter() - start))
            if answers.setdefault(at, found) != found:
                self.wrong.append(f"prompt {at}: {found!r}, and before {answers[at]!r}")

    def _ask_badly(self, name):
        signature, inputs = BAD[name]
        try:
            self.model.run(signature, **inputs)
            self.counts[f"{name}: answered"] += 1
        except (RuntimeError, ValueError) as error:
            self.counts[f"{name}: {type(error).__name__}"] += 1


def text_of(model, at):
    return model.run("generate", text=[PROMPTS[at]], **SEEDED)["generated_text"][0]


BAD = {
    "10 MB": ("generate_text", {"text": [WORDS * (10_000_000 // len(WORDS))]}),
    "no text": ("generate_text", {"text": [bytes(range(256)) * 8]}),
    "no numbers": ("generate", {"text": ["a"], "temperature": [float("nan")], "top_p": [-1.0], "max_new_tokens": [-1]}),
    "no id": ("logits", {"token_ids": [[2**31 - 1, -1]], "lengths": [2]}),
    "too wide": ("logits", {"token_ids": np.zeros((1, 100_000), "int32"), "lengths": [1]}),
    "unequal rows": ("generate", {"text": ["a", "b"], "seed": [1, 2, 3]}),
    "no signature": ("generate_poems", {"text": ["a"]}),
    "no input": ("score", {}),
}


def soak(args):
    model = load(args.folder)
    model.warm_up()
    for at in range(len(PROMPTS)):
        text_of(model, at)
    clients = [Client(model, number, args.bad) for number in range(args.clients)]
    answers, begins = {}, time.monotonic()
    warm_until, ends = begins + 6 * args.minutes, begins + 60 * args.minutes
    threads = [threading.Thread(target=client.run, args=(answers, ends), daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    time.sleep(max(0.0, warm_until - time.monotonic()))
    sizes = []
    while time.monotonic() < ends:
        sizes.append(resident())
        time.sleep(1)
    for thread in threads:
        thread.join(120)
    stuck = sum(thread.is_alive() for thread in threads)
    times = sorted(seconds for client in clients for when, seconds in client.times if when > warm_until)
    p50, p99 = (times[int(len(times) * part)] * 1e3 for part in (0.5, 0.99))
    tenth = max(1, len(sizes) // 10)
    before, after = statistics.median(sizes[:tenth]), statistics.median(sizes[-tenth:])
    wrong = [complaint for client in clients for complaint in client.wrong]
    counts = sum((client.counts for client in clients), collections.Counter())
    print(f"{args.clients} clients, {args.minutes:g} minutes: {len(times)} good requests after the warm-up, ", end="")
    print(f"{len(times) / 54 / args.minutes:.0f} a second; {sum(counts.values())} bad ones:")
    print("\n".join(f"  {name}: {count}" for name, count in sorted(counts.items())))
    print(f"p50 {p50:.1f} ms, p99 {p99:.1f} ms: {p99 / p50:.2f} times")
    print(f"memory {before:.0f} MB after the warm-up, {after:.0f} MB at the end: {after / before - 1:+.2%}")
    print(f"answers that differ: {len(wrong)}; clients that hang: {stuck}")
    print("\n".join(wrong[:5]))
    broken = wrong or stuck or p99 >= MOST_TIMES_P50 * p50 or after > (1 + MOST_GROWTH) * before
    return int(bool(broken))


def resident():
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def arguments(words=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["first", "soak"])
    parser.add_argument("folder", metavar="VERSION_FOLDER")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--bad", type=float, default=0.05)
    parser.add_argument("--child", choices=["cold", "warm"], help=argparse.SUPPRESS)
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
