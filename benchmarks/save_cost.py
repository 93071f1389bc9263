#!/usr/bin/env python3
"""What checkpoints cost: the time of a step without them, with the default interval, and with one ten times as short.

usage: save_cost.py [--model transformer|lstm] [--size nano] [--backend tensorflow|jax|torch] [--steps 400] [--epoch 400]
                    [--repeat 5] [--vocabulary 2048] [--batch 16] [--context 64]

One process, one compiled model; stretches of `--steps` steps take turns, and each one's time is that from its second step
to its last, so that no compilation is in it. Printed are medians, the share that saving adds, and for how long the step
stood still that waited longest, for the state to be copied or for the checkpoint before to be written.
"""

import argparse
import itertools
import os
import pathlib
import statistics
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
EVERY = (None, 100, 10)  # 100 is the default


def main():
    args = arguments()
    os.environ["KERAS_BACKEND"] = args.backend
    import keras
    import numpy as np

    from keras_seqlm.losses import FusedCrossEntropy
    from keras_seqlm.models import RecurrentLM, TransformerLM
    from keras_seqlm.nesting import innermost
    from keras_seqlm.training import Resume

    ids = np.random.default_rng(0).integers(0, args.vocabulary, (args.batch, args.context + 1)).astype("int32")
    kind = TransformerLM if args.model == "transformer" else RecurrentLM
    model = kind(args.vocabulary, size=args.size, **({} if args.model == "lstm" else {"max_length": args.context}))
    model.compile(keras.optimizers.AdamW(1e-3), FusedCrossEntropy())

    def stretch(every):
        with tempfile.TemporaryDirectory() as folder:
            innermost(model.optimizer)._iterations.assign(0)  # a run of its own
            resume, begins = Resume(folder, every=every or 100), []
            batches = resume.data(lambda step: (ids[:, :-1], ids[:, 1:]))
            clock = keras.callbacks.LambdaCallback(
                on_train_batch_begin=lambda batch, logs: begins.append(time.perf_counter())
            )
            callbacks = [clock] if every is None else [resume, clock]
            options = {"steps_per_epoch": args.epoch, "epochs": args.steps // args.epoch}
            options |= {"callbacks": callbacks, "verbose": 0}
            model.fit(batches, **options, **resume.fit_arguments())
            seconds = begins[-1] - begins[1]
            longest = max(after - before for before, after in itertools.pairwise(begins[1:]))
            size = sum(path.stat().st_size for path in pathlib.Path(folder).rglob("*") if path.is_file())
            return seconds, longest, size / max(1, len(list(pathlib.Path(folder).glob("step-*"))))

    stretch(None), stretch(100)  # compiles
    times, stops, size = {every: [] for every in EVERY}, {every: [] for every in EVERY}, 0
    for _ in range(args.repeat):
        for every in EVERY:
            seconds, longest, bytes_ = stretch(every)
            times[every].append(seconds)
            stops[every].append(longest)
            size = max(size, bytes_)
    base = statistics.median(times[None])
    print(
        f"{args.model} {args.size}, {args.backend}: {model.count_params():,} weights, {size / 1e6:.1f} MB a checkpoint, "
        f"{base / args.steps * 1e3:.1f} ms a step"
    )
    for every in EVERY[1:]:
        longest = statistics.median(stops[every]) * 1e3
        print(
            f"a checkpoint every {every} steps: {statistics.median(times[every]) / base - 1:+.1%} of the time, the longest step "
            f"{longest:.0f} ms"
        )


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["transformer", "lstm"], default="transformer")
    parser.add_argument("--size", default="nano")
    parser.add_argument("--backend", choices=["tensorflow", "jax", "torch"], default="tensorflow")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--epoch", type=int, default=None, help="steps of an epoch (default all)")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--context", type=int, default=64)
    args = parser.parse_args()
    args.epoch = args.epoch or args.steps
    return args


if __name__ == "__main__":
    main()
