#!/usr/bin/env python3
"""Kill a training run again and again by SIGKILL, at random moments, and compare its losses with those of a run left alone.

usage: kill_resume.py [--kills 20] [--steps 400] [--model transformer|lstm] [--backend tensorflow|jax|torch] [--seed 0]
                      [--validations 20] [--all]

`--all` is a stateful LSTM with accumulated gradients, averaged weights, `EarlyStopping` and `RollBack`.

Both runs are the same `seqlm train` command, with dropout, shuffled and packed blocks, a warm-up and a cosine schedule; the
killed one is started again until it ends. Printed: where it was killed, the share of time that checkpoints took, and the
largest difference of any loss in history.csv and of any weight: 0 means bit for bit.
"""

import argparse
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
import zipfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
CLOCKS = ("seconds", "tokens_per_second")


def main():
    args = arguments()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        text = folder / "text.txt"
        text.write_text("".join(f"{a} times {b} is {a * b}.\n" for a in range(args.lines) for b in range(100)))
        print(f"{args.backend}, {args.model}, {args.steps} steps")
        finish(command(args, text, folder / "alone"))
        places = kill_again_and_again(args, command(args, text, folder / "killed"), folder / "killed")
        losses, weights = difference(folder / "alone", folder / "killed")
        print(f"killed {len(places)} times, with checkpoints at steps {places}")
        print(f"max |loss difference| = {losses:g}, max |weight difference| = {weights:g}")
    return 0 if losses == weights == 0 else 1


def command(args, text, out):
    words = f"train --model {args.model} --layers 2 --hidden-dim 64 --dropout 0.1 --batch 8 --context 32 --size nano"
    words += f" --steps {args.steps} --validate-every {args.steps // args.validations} --checkpoint-every 7"
    words += f" --backend {args.backend} --sample-every {args.steps}"
    if args.all:
        words += " --carry-state --accumulate 2 --ema 0.9 --early-stopping 4 --roll-back 1.5 --learning-rate 2e-2"
    words += " --heads 4" if args.model == "transformer" else ""
    return [sys.executable, "-m", "seqlm_cli", *words.split(), "--text", str(text), "--out", str(out)]


def finish(words):
    result = subprocess.run(words, capture_output=True, text=True)
    if result.returncode:
        sys.exit(result.stderr)


def kill_again_and_again(args, words, folder):
    """Kill `args.kills` times, then let the run end. The steps of the newest checkpoint after each kill."""
    draw, places = random.Random(args.seed), []
    for number in range(args.kills):
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            while process.poll() is None and newest(folder) <= max([0, *places]):
                time.sleep(0.01)  # until it has come further than the one before
            time.sleep(draw.uniform(0, args.longest))
            if process.poll() is not None:
                if process.returncode:
                    sys.exit(process.stderr.read())
                print(f"the run ended before kill {number + 1}; more --steps give more room")
                break
            process.send_signal(signal.SIGKILL)
        places.append(newest(folder))
    finish(words)
    return places


def newest(folder):
    """Step of the newest checkpoint, 0 without one."""
    return max([0, *(int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*"))])


def difference(left, right):
    """The largest difference in any column of the two histories but the clocks, and in any weight."""
    import h5py
    import numpy as np

    from keras_seqlm.training import read_history

    rows = [read_history(folder / "history.csv") for folder in (left, right)]
    if [row["step"] for row in rows[0]] != [row["step"] for row in rows[1]]:
        sys.exit(f"the histories have other rows: {rows}")
    pairs = zip(*rows, strict=True)
    losses = max(abs(a[k] - b[k]) for a, b in pairs for k in a if k not in CLOCKS and a[k] is not None)
    weights = []
    for folder in (left, right):
        with zipfile.ZipFile(folder / "model.keras") as archive, archive.open("model.weights.h5") as file:
            found = {}
            with h5py.File(file) as store:
                store.visititems(lambda n, d, found=found: found.update({n: d[()]}) if hasattr(d, "dtype") else None)
        weights.append(found)
    return losses, max(np.abs(weights[0][name] - weights[1][name]).max() for name in weights[0])


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--model", default="transformer")
    parser.add_argument("--backend", default="tensorflow")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validations", type=int, default=20)
    parser.add_argument("--lines", type=int, default=200, help="hundreds of lines of text")
    parser.add_argument("--all", action="store_true", help="everything that remembers, on a stateful LSTM")
    parser.add_argument("--longest", type=float, default=1.5, help="seconds before a kill, at most")
    args = parser.parse_args()
    args.model = "lstm" if args.all else args.model
    return args


if __name__ == "__main__":
    sys.exit(main())
