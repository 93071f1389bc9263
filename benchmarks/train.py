#!/usr/bin/env python3
"""Training speed: tokens/s, peak memory and FLOP utilisation of our models, of plain Keras and of plain PyTorch.

usage: train.py [--models transformer lstm] [--backends tensorflow jax torch] [--kinds ours plain] [--peer torch_lm.py] [--repeat 3] [--steps 10]

Same shapes for all: vocabulary 8192, batch 16, context 256, float32, AdamW, random ids. The Transformer has 4 layers of
width 256 with 4 heads and a tied embedding, the LSTM 2 layers of width 512 on embeddings of 256. Every contender runs in
a process of its own; a round runs each once, so that a machine's moods strike all alike, and the table gives medians over
the rounds. A step's time is the median over the steps after the second; tracing and compilation are shown apart.

ours      `compile(loss=FusedCrossEntropy())` and `fit` of `TransformerLM` or `RecurrentLM`; on TensorFlow, whose XLA
          Keras leaves off on a CPU, once more with `compile(jit_compile=True)`
plain     the same network in `keras.layers`, with Keras's loss and `fit`
peer      the script given as --peer: `torch_lm.py speed gpt|lstm`, eager and with --compile

FLOP utilisation is model FLOPs (products of the forward pass, three times) over what one large float32 product reaches on
this machine in the same run.
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

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
VOCABULARY, BATCH, CONTEXT = 8192, 16, 256
LAYERS, WIDTH, HEADS = 4, 256, 4  # of the Transformer
RECURRENT_LAYERS, HIDDEN, EMBEDDING = 2, 512, 256
JIT = {"auto": "auto", "on": True, "off": False}
SKIPPED = 2  # steps that compile


def main():
    args = arguments()
    if args.child:
        print(json.dumps(child(*args.child, args.steps, args.jit)))
        return
    peaks = []
    for model in args.models:
        contenders = list_of_contenders(model, args)
        results = {name: [] for name in contenders}
        for number in range(args.repeat):
            peaks.append(largest_product())
            for name, command in contenders.items():
                results[name].append(run(command))
                print(f"round {number + 1}, {model}, {name}: {results[name][-1]}", file=sys.stderr, flush=True)
        print(f"one float32 product of 2048 x 2048 x 2048: {max(peaks) / 1e9:.0f} GFLOP/s\n")
        print_table(model, results, max(peaks))


def list_of_contenders(model, args):
    """Name -> command, in the order of the table."""
    found = {}
    if args.peer:
        peer = [sys.executable, args.peer, "speed", "gpt" if model == "transformer" else "lstm"]
        found = {"peer, eager": peer, "peer, compiled": [*peer, "--compile"]}
    for backend in args.backends:
        for kind in args.kinds:
            command = [sys.executable, __file__, "--child", kind, model, backend, "--steps", str(args.steps)]
            found[f"{kind}, {backend}"] = command
            if (kind, backend) == ("ours", "tensorflow"):
                found[f"{kind}, {backend}, XLA"] = [*command, "--jit", "on"]
    return found


def run(command):
    """Tokens/s, compile seconds and peak memory of one process; the peer prints a line, we print JSON."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=out, stderr=errors, text=True)
        _, status, usage = os.wait4(process.pid, 0)
        out.seek(0), errors.seek(0)
        text = out.read()
        if status:
            sys.exit(f"{' '.join(command)} ended with {status}: {errors.read()[-2000:]}")
    last = text.strip().splitlines()[-1]
    said = re.search(r"tokens/s=(\d+)", last)
    result = {"tokens_per_second": float(said[1])} if said else json.loads(last)
    return result | {"peak_gb": usage.ru_maxrss / 2**20}


def print_table(model, results, peak):
    flops = flops_per_token(model)
    rows = {
        name: {key: statistics.median(r[key] for r in found) if key in found[0] else None for key in keys_of(found)}
        for name, found in results.items()
    }
    base = rows.get("peer, eager", next(iter(rows.values())))["tokens_per_second"]
    print(f"{model}: {flops / 1e6:.1f} million FLOPs a token, forward and backward\n")
    print(
        "| | tokens/s | beside the first | FLOP utilisation | peak memory, GB | compilation, s |\n|---|---|---|---|---|---|"
    )
    for name, row in rows.items():
        speed, compiled = row["tokens_per_second"], row.get("compile_seconds")
        print(
            f"| {name} | {speed:,.0f} | {speed / base:.2f}x | {speed * flops / peak:.0%} | {row['peak_gb']:.1f} | "
            f"{'-' if compiled is None else f'{compiled:.1f}'} |"
        )
    print(flush=True)


def keys_of(found):
    return sorted(set().union(*found))


def flops_per_token(model):
    """Products of the forward pass, times three for the backward pass."""
    if model == "transformer":
        attention = 2 * CONTEXT * WIDTH  # half of the scores are masked, and two products are made of them
        weights = LAYERS * (12 * WIDTH * WIDTH) + WIDTH * VOCABULARY
        return 3 * (2 * weights + LAYERS * attention)
    gates = 4 * HIDDEN * (EMBEDDING + HIDDEN) + 4 * HIDDEN * (2 * HIDDEN) * (RECURRENT_LAYERS - 1)
    return 3 * 2 * (gates + HIDDEN * VOCABULARY)


def largest_product():
    """FLOP/s of one large product."""
    import torch

    a, b = torch.ones(2048, 2048), torch.ones(2048, 2048)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(times)


def child(kind, model, backend, steps, jit):
    """Train for a few steps and tell how fast."""
    os.environ["KERAS_BACKEND"] = backend
    import keras
    import numpy as np

    from keras_seqlm.losses import FusedCrossEntropy

    ids = np.random.default_rng(0).integers(0, VOCABULARY, (BATCH, CONTEXT + 1)).astype("int32")
    network = {"ours": ours, "plain": plain}[kind](keras, model)
    loss = FusedCrossEntropy() if kind == "ours" else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(optimizer=keras.optimizers.AdamW(3e-4, weight_decay=0.01), loss=loss, jit_compile=JIT[jit])

    class Batches(keras.utils.PyDataset):
        num_batches = steps

        def __getitem__(self, index):
            return ids[:, :-1], ids[:, 1:]

    times = [time.perf_counter()]

    class Clock(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            float(logs["loss"])  # JAX is told to be done
            times.append(time.perf_counter())

    history = network.fit(Batches(), epochs=1, verbose=0, shuffle=False, callbacks=[Clock()])
    lasted = [after - before for before, after in zip(times, times[1:], strict=False)]
    step = statistics.median(lasted[SKIPPED:])
    return {
        "tokens_per_second": BATCH * CONTEXT / step,
        "compile_seconds": sum(lasted[:SKIPPED]) - SKIPPED * step,
        "loss": history.history["loss"][-1],
    }


def ours(keras, model):
    from keras_seqlm.models import RecurrentLM, TransformerLM

    if model == "transformer":
        return TransformerLM(VOCABULARY, num_layers=LAYERS, hidden_dim=WIDTH, num_heads=HEADS, max_length=CONTEXT)
    widths = {"num_layers": RECURRENT_LAYERS, "hidden_dim": HIDDEN, "embedding_dim": EMBEDDING}
    return RecurrentLM(VOCABULARY, cell="lstm", tie_embedding=False, **widths)


def plain(keras, model):
    """What one writes with `keras.layers`."""
    layers, ids = keras.layers, keras.Input((CONTEXT,), dtype="int32")
    if model == "lstm":
        x = layers.Embedding(VOCABULARY, EMBEDDING)(ids)
        for _ in range(RECURRENT_LAYERS):
            x = layers.LSTM(HIDDEN, return_sequences=True)(x)
        return keras.Model(ids, layers.Dense(VOCABULARY)(x))
    tokens = layers.ReversibleEmbedding(VOCABULARY, WIDTH)
    positions = keras.ops.cumsum(keras.ops.ones_like(ids), axis=1) - 1
    x = tokens(ids) + layers.Embedding(CONTEXT, WIDTH)(positions)
    for _ in range(LAYERS):
        y = layers.LayerNormalization(epsilon=1e-5)(x)
        x = x + layers.MultiHeadAttention(HEADS, WIDTH // HEADS)(y, y, use_causal_mask=True)
        y = layers.LayerNormalization(epsilon=1e-5)(x)
        y = layers.Dense(4 * WIDTH, activation=lambda z: keras.activations.gelu(z, approximate=True))(y)
        x = x + layers.Dense(WIDTH)(y)
    return keras.Model(ids, tokens(layers.LayerNormalization(epsilon=1e-5)(x), reverse=True))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["transformer", "lstm"], default=["transformer", "lstm"])
    parser.add_argument("--backends", nargs="+", default=["tensorflow", "jax", "torch"])
    parser.add_argument("--kinds", nargs="+", choices=["ours", "plain"], default=["ours", "plain"])
    parser.add_argument("--peer", help="a script that trains the same in plain PyTorch")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--jit", choices=list(JIT), default="auto", help="of a --child: its jit_compile")
    parser.add_argument("--child", nargs=3, metavar=("KIND", "MODEL", "BACKEND"), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
