#!/usr/bin/env python3
"""Two commands started at once on one run folder, again and again: nothing is lost, and the second one says why it leaves.

usage: two_starts.py [--starts 50] [--overwrite] [--processes 1|2] [--seed 0]

Each trial starts `seqlm train` twice, moments apart, on a folder that holds a finished run (with `--overwrite`) or none.
With `--processes 2` each of the two is a run of two JAX processes. Afterwards the folder must hold one whole run: every
file that a run left alone has, a history of its steps without a gap, checkpoints that match their SHA-256.
"""

import argparse
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# The console script, as where JAX trains alone: Keras would take four seconds to import TensorFlow.
PROGRAM = "import sys; sys.modules['tensorflow'] = None; import seqlm_cli; sys.exit(seqlm_cli.main(sys.argv[1:]))"
REASONS = ("trains there; stop it", "saves checkpoints there")


def main():
    args = arguments()
    from keras_seqlm.checkpoints import Checkpoints
    from keras_seqlm.training import read_history

    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "text.txt").write_text("It was a dark night, and the wind was loud. " * 80)
        alone = folder / "runs" / "alone"
        assert [code for code, _ in finish(start(args, folder, alone))] == [0] * args.processes
        wanted = names(alone)
        refused = finished = lost = 0
        for trial in range(args.starts):
            run = folder / "runs" / f"trial-{trial}"
            if args.overwrite:
                shutil.copytree(alone, run)
            first = start(args, folder, run)
            time.sleep(draw.uniform(0, 3) if trial % 2 else 0)
            second = start(args, folder, run)
            ends = [finish(first), finish(second)]
            for end in ends:
                codes = {code for code, _ in end}
                assert len(codes) == 1, f"the processes of one run end unlike one another: {end}"
                finished += codes == {0}
                if codes != {0}:
                    assert all(any(reason in said for reason in REASONS) for _, said in end), end
                    refused += 1
            steps = [row["step"] for row in read_history(run / "history.csv")]
            lost += len(set(wanted) ^ set(names(run)))
            assert steps == [4, 8], steps
            assert Checkpoints(run / "checkpoints").newest().step == 8
            print(f"trial {trial + 1}: {finished} finished, {refused} refused, {lost} files lost", flush=True)
    print(f"{args.starts} times two starts: {refused} refused with a reason, {lost} files lost")


def start(args, folder, run):
    """The processes of one command."""
    words = ["-c", PROGRAM, "train", "--text", str(folder / "text.txt"), "--out", str(run), "--model", "rnn"]
    words += ["--size", "nano", "--context", "16", "--batch", "4", "--steps", "8", "--validate-every", "4"]
    words += ["--backend", "jax", "--checkpoint-every", "1"]
    words += ["--overwrite"] if args.overwrite else []
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    processes = []
    for index in range(args.processes):
        environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        if args.processes > 1:
            environment |= {
                "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"127.0.0.1:{port}",
                "KERAS_DISTRIBUTION_NUM_PROCESSES": str(args.processes),
                "KERAS_DISTRIBUTION_PROCESS_ID": str(index),
            }
        more = ["--distribution", "data-parallel"] if args.processes > 1 else []
        processes.append(
            subprocess.Popen(
                [sys.executable, *words, *more],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


def finish(processes):
    """(exit code, what it said) of each."""
    return [(process.returncode, said) for process in processes for _, said in [process.communicate(timeout=300)]]


def names(run):
    """The files of a run, but for the numbers in their names."""
    return sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=50)
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--processes", type=int, default=1, choices=[1, 2])
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
