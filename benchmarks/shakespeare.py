"""Character Shakespeare at nanoGPT's CPU settings, beside a plain PyTorch program on the same machine.

usage: shakespeare.py FILE [--peer torch_lm.py] [--repeat 3] [--steps 1200] [--backend torch]

FILE is tinyshakespeare. Settings of both sides: 4 layers, 4 heads, width 128, context 64, batch 12; validation over the
whole last tenth of the file in blocks of 64. Seconds run from the first batch to the last step, tracing and compilation
included, imports and validation not. Three tables come out: the race (a run of ours with its own number of steps and its
whole schedule, just after the peer's 2000 steps), the loss after 2000 steps, and an LSTM of the same number of
parameters, steps and batches.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

SHAPES = {
    "transformer": {"num_layers": 4, "num_heads": 4, "hidden_dim": 128, "max_length": 64},
    "lstm": {"num_layers": 2, "hidden_dim": 222},  # parameters within 1% of the Transformer's
}


def train(file, model, steps, learning_rate, seed):
    """One run of ours in this process; prints its figures as JSON."""
    import keras

    import keras_seqlm as seqlm

    tokenizer = seqlm.tokenizers.CharacterTokenizer.train(file)
    with tempfile.TemporaryDirectory() as cache:
        blocks, validation = seqlm.data.causal_blocks(file, tokenizer, 64, 12, seed=seed, cache_dir=cache)
        recipe = seqlm.training.Recipe(
            learning_rate=learning_rate, steps=steps, batch_size=12, seed=seed, validate_every=steps
        )
        with recipe.scope():
            if model == "transformer":
                network = seqlm.models.TransformerLM(tokenizer.vocabulary_size, **SHAPES[model])
            else:
                network = seqlm.models.RecurrentLM(tokenizer.vocabulary_size, cell=model, **SHAPES[model])
            network.build()
        ended = []
        clock = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: ended.append(time.perf_counter()))
        start = time.perf_counter()
        recipe.fit(network, blocks, callbacks=[clock], progress=False)
        seconds = ended[-1] - start
        loss = network.evaluate(validation, verbose=0)
    figures = {"seconds": seconds, "loss": float(loss), "parameters": network.count_params(), "steps": steps}
    print(json.dumps(figures | {"backend": keras.backend.backend(), "ms_per_step": 1000 * seconds / steps}))


def ours(args, model, steps, learning_rate, seed, backend):
    """One run of ours in a process of its own."""
    words = [sys.executable, __file__, args.file, "--one", model, "--steps", str(steps), "--seed", str(seed)]
    words += ["--learning-rate", str(learning_rate)]
    done = subprocess.run(words, env={**os.environ, "KERAS_BACKEND": backend}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def peer(args, seed):
    """The PyTorch program: its seconds and its loss."""
    words = [sys.executable, args.peer, "shakespeare", args.file, "--seed", str(seed)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    seconds, loss = re.search(r"seconds=(\d+) validation_nats=([\d.]+)", done.stdout).groups()
    return {"seconds": float(seconds), "loss": float(loss)}


def main():
    """Both sides, in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--peer", help="the PyTorch program to race; without it only ours runs")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1200, help="of our run in the race")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="of our run in the race")
    parser.add_argument("--backend", default="torch", help="of our run in the race")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", choices=sorted(SHAPES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return train(args.file, args.one, args.steps, args.learning_rate, args.seed)
    rows = []
    for seed in range(args.repeat):
        other = peer(args, seed) if args.peer else {"seconds": float("nan"), "loss": float("nan")}
        own = ours(args, "transformer", args.steps, args.learning_rate, seed, args.backend)
        rows.append((other, own))
        print(
            f"| race {seed} | peer {other['seconds']:.0f} s, {other['loss']:.4f} nats | ours {own['seconds']:.1f} s, "
            f"{own['loss']:.4f} nats, {own['steps']} steps, {own['ms_per_step']:.1f} ms a step |",
            flush=True,
        )
    for name, side in (("peer", 0), (f"ours ({args.backend})", 1)):
        seconds, loss = (statistics.median(row[side][key] for row in rows) for key in ("seconds", "loss"))
        print(f"| median | {name} | {seconds:.1f} s | {loss:.4f} nats |", flush=True)
    for model, rate in (("transformer", 1e-3), ("lstm", 4e-3)):
        own = ours(args, model, 2000, rate, 0, "tensorflow" if model == "lstm" else args.backend)
        print(
            f"| 2000 steps | {model}, {own['parameters']:,} parameters, {own['backend']} | {own['loss']:.4f} nats | "
            f"{own['seconds']:.0f} s |",
            flush=True,
        )


if __name__ == "__main__":
    main()
