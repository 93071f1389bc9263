#!/usr/bin/env python3
"""Decoding speed on a CPU: ours in Python, as SavedModel and as LiteRT beside transformers, KerasHub and CTranslate2.

usage: decode.py [FOLDER] [--peer decode.py] [--contenders jax saved_model ...] [--repeat 3] [--size base] [--batches 1 8]
       decode.py --flat [--contenders tensorflow jax torch] [--size base]

GPT-2's 124M shape with random weights in float32, a prompt of 64 tokens, 128 new ones, greedy, batch 1 and 8. Every
contender runs in a process of its own; a round runs each once, so that a machine's moods strike all alike, and the
tables give medians over the rounds. A call's time is the median of three after the first, which is shown apart.

tensorflow, jax, torch        `model.generate`
saved_model, saved_model:xla  the signatures `generate` and `generate_xla` in TensorFlow's C library: text in, text out
litert, litert:int8           `seqlm_runtime.LiteRTModel`, one row at a time
the others                    the script given as --peer, which has one shape: that of the defaults

The served models have a character tokenizer of as many ids. FOLDER (else a temporary one) keeps what peers and exports
need; ours are exported anew by each run. The last line is the bound: the weights that a token reads, all but the
positions, over the bandwidth that reading a large array reaches here in the same run. A step of 8 rows reads them once.

--flat shows what a token costs by the number of tokens written, (time of n) - (time of 1) over n - 1, and how often a
call with another prompt length or batch size runs the model's Python again, which on TensorFlow and JAX is tracing.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
BACKENDS = ("tensorflow", "jax", "torch")
SERVED = ("saved_model", "saved_model:xla", "litert", "litert:int8")
PEERS = ("transformers", "keras_hub:tensorflow", "keras_hub:jax", "ctranslate2:float32", "ctranslate2:int8")
PEERS_SHAPE = {"size": "base", "vocabulary": 50257, "prompt": 64, "new_tokens": 128, "batches": [1, 8]}
MAX_LENGTH = 1024
SPECIAL_IDS = 4  # of a character tokenizer
FIRST_CHARACTER = 0x100
LINE = re.compile(r"batch (\d+) +([\d.]+) tokens/s +first call ([\d.]+) s")
WRITTEN = (1, 16, 32, 64, 128, 256, 512)
PROMPTS, ROWS = (33, 64, 65, 100), (1, 2, 3, 4, 5, 8)  # of the look at traces


def main(words=None):
    args = arguments(words)
    if args.child:
        child(args)
    elif args.flat:
        for backend in args.contenders:
            print(needed(f"flat:{backend}", args), flush=True)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            args.folder = os.path.abspath(args.folder or temporary)
            compare(args)


def compare(args):
    prepare(args)
    results, machine = {name: [] for name in args.contenders}, []
    for number in range(args.repeat):
        machine.append(json.loads(needed("machine:torch", args)))
        for name, found in results.items():
            if found and "failed" in found[-1]:
                continue
            found.append(run(name, args))
            print(
                f"round {number + 1}, {name}: {found[-1].get('failed') or found[-1]['batches']}",
                file=sys.stderr,
                flush=True,
            )
    bandwidth = max(said["bandwidth"] for said in machine)
    print(tables(results, args.batches, bandwidth, machine[0]["weights"]), flush=True)


def prepare(args):
    """What the contenders read from the folder."""
    if any(name in PEERS and not name.startswith("keras_hub") for name in args.contenders):
        gpt2 = os.path.join(args.folder, "gpt2")
        os.makedirs(gpt2, exist_ok=True)
        statement = "import runpy, sys; runpy.run_path(sys.argv[1])['make_checkpoint'](sys.argv[2])"
        subprocess.run([sys.executable, "-c", statement, args.peer, gpt2], check=True)
    if any(name in SERVED for name in args.contenders):
        needed("export:tensorflow", args)


def run(contender, args):
    """What one process says, batch -> numbers, or why it failed; `text` is all that it printed."""
    root = str(pathlib.Path(__file__).resolve().parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        environment = {**os.environ, "PYTHONPATH": path}
        process = subprocess.Popen(command_of(contender, args), stdout=out, stderr=errors, text=True, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        out.seek(0), errors.seek(0)
        text, last = out.read(), [line.strip() for line in errors.read().splitlines() if line.strip()][-1:]
    if status:
        return {"failed": " ".join(last)[:300], "text": text}
    return {"batches": numbers_of(text, usage.ru_maxrss / 2**20), "text": text}


def needed(work, args):
    """What a process prints without which nothing goes on."""
    said = run(work, args)
    if "failed" in said:
        sys.exit(f"{work} failed: {said['failed']}")
    return said["text"]


def command_of(contender, args):
    if contender in PEERS:
        return [sys.executable, args.peer, args.folder, "--one", contender]
    names = ("size", "vocabulary", "prompt", "new_tokens", "repeat")
    words = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in names]
    words = [sys.executable, __file__, *([args.folder] if args.folder else []), *words]
    return [*words, "--batches", *map(str, args.batches), "--child", contender]


def numbers_of(text, peak_gb):
    """From the lines that the peers and we print: batch -> tokens/s, seconds of the first call, peak memory."""
    return {
        int(batch): {"tokens_per_second": float(speed), "first_seconds": float(first), "peak_gb": peak_gb}
        for batch, speed, first in LINE.findall(text)
    }


def tables(results, batches, bandwidth, weights):
    """A Markdown table for each batch size, and the bound.

    Args:
        results: contender -> what `run` returned, a list of rounds.
        batches: batch sizes.
        bandwidth: bytes/s. weights: how many of them a token reads.
    """
    lines = []
    for batch in batches:
        rounds = {
            name: [r["batches"][batch] for r in found if batch in r.get("batches", {})]
            for name, found in results.items()
        }
        rows = {
            name: {key: statistics.median(r[key] for r in found) for key in found[0]}
            for name, found in rounds.items()
            if found
        }
        base = rows.get("transformers", {}).get("tokens_per_second")
        lines += [f"batch {batch}", ""]
        lines += ["| | tokens/s | beside transformers | of the bound | first call, s | peak memory, GB |"]
        lines += ["|---|---|---|---|---|---|"]
        for name, found in results.items():
            failure = next((r["failed"] for r in found if "failed" in r), None)
            if name in rows:
                row, speed = rows[name], rows[name]["tokens_per_second"]
                bound = batch * bandwidth / (weights * bytes_of(name))
                beside = "-" if base is None else f"{speed / base:.2f}x"
                cells = (
                    f"{speed:.1f} | {beside} | {speed / bound:.0%} | {row['first_seconds']:.1f} | {row['peak_gb']:.1f}"
                )
                lines.append(f"| {name} | {cells} |")
            elif failure:
                lines.append(f"| {name} | failed: {failure} | - | - | - | - |")
        lines.append("")
    bounds = ", ".join(f"{bandwidth / (weights * size):.1f} in {kind}" for kind, size in (("float32", 4), ("int8", 1)))
    lines.append(
        f"bound: memory is read at {bandwidth / 1e9:.1f} GB/s, a token reads {weights / 1e6:.1f} million weights: "
        f"at batch 1 at most {bounds} tokens/s"
    )
    return "\n".join(lines)


def bytes_of(contender):
    """Of one weight."""
    return 1 if contender.endswith("int8") else 4


def child(args):
    kind, _, variant = args.child.partition(":")
    work = {"machine": machine, "export": export, "flat": flat}.get(kind)
    if work:
        os.environ["KERAS_BACKEND"] = variant
        work(args)
        return
    if kind in BACKENDS:
        os.environ["KERAS_BACKEND"] = kind
    calls = {"saved_model": calls_of_saved_model, "litert": calls_of_litert}.get(kind, calls_of_model)
    for batch, call in calls(variant, args):
        report(args.child, batch, args.new_tokens, call)


def report(name, batch, new_tokens, call):
    """Time a call four times and print the line that the peers print."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        written = call()
        times.append(time.perf_counter() - start)
        if written != batch * new_tokens:
            sys.exit(f"{batch * new_tokens} tokens were asked for, {written} came")
    usual = statistics.median(times[1:])
    speed = batch * new_tokens / usual
    print(
        f"{name:22} batch {batch}  {speed:7.1f} tokens/s   first call {times[0]:.1f} s, then {usual:.2f} s", flush=True
    )


def calls_of_model(variant, args):
    """Pairs of a batch size and a function that writes and says how many tokens."""
    model = new_model(args)
    for batch in args.batches:
        ids = prompts_of(args, batch)
        yield batch, lambda ids=ids: sum(map(len, written_by(model, ids, args.new_tokens)))


def calls_of_saved_model(variant, args):
    import numpy as np

    from seqlm_runtime import SavedModel

    xla = variant == "xla"
    model = SavedModel(os.path.join(args.folder, "ours", "served", "1"), xla=xla)
    options = {"max_new_tokens": args.new_tokens, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    options |= {"repetition_penalty": 1.0, "seed": 0}
    for batch in args.batches:
        inputs = {name: [value] * batch for name, value in options.items()}
        inputs["text"] = texts_of(args, batch)

        def call(inputs=inputs):
            return int(np.sum(model.run("generate_xla" if xla else "generate", **inputs)["num_tokens"]))

        yield batch, call


def calls_of_litert(variant, args):
    from seqlm_runtime import LiteRTModel

    name = "ours-int8.tflite" if variant == "int8" else "ours.tflite"
    model = LiteRTModel(os.path.join(args.folder, "ours", name), num_threads=os.cpu_count())
    [text] = texts_of(args, 1)
    if 1 in args.batches:
        yield 1, lambda: model.generate(text, args.new_tokens)["num_tokens"]


def prompts_of(args, batch, prompt=None):
    import numpy as np

    ids = np.random.default_rng(0).integers(SPECIAL_IDS, args.vocabulary, (batch, prompt or args.prompt))
    return list(ids.astype("int32"))


def texts_of(args, batch):
    """Texts of as many characters as the prompt has tokens after its `bos`."""
    characters = [ids[1:] - SPECIAL_IDS + FIRST_CHARACTER for ids in prompts_of(args, batch)]
    return ["".join(map(chr, row)) for row in characters]


def new_model(args):
    import keras

    from keras_seqlm.models import TransformerLM

    keras.utils.set_random_seed(0)
    model = TransformerLM(args.vocabulary, size=args.size, max_length=MAX_LENGTH)
    model.build()
    return model


def written_by(model, prompts, new_tokens):
    return model.generate(prompts, new_tokens, eos_id=None, suppressed_ids=())


def export(args):
    """Write a model with a tokenizer as run folder, SavedModel and LiteRT files."""
    import numpy as np

    from keras_seqlm import export
    from keras_seqlm.tasks import TextGeneration
    from keras_seqlm.tokenizers import CharacterTokenizer

    characters = "".join(map(chr, range(FIRST_CHARACTER, FIRST_CHARACTER + args.vocabulary - SPECIAL_IDS)))
    tokenizer, model = CharacterTokenizer(CharacterTokenizer.files_of(characters)), new_model(args)
    table = np.array(model.token_embedding.table)
    table[tokenizer.eos_id] = 0  # a logit of 0 is never the largest: no text ends early
    model.token_embedding.table.assign(table)
    folder = os.path.join(args.folder, "ours")
    TextGeneration(model, tokenizer).save(os.path.join(folder, "run"))
    del model, table  # the exports are processes beside this one
    export.saved_model(os.path.join(folder, "run"), os.path.join(folder, "served", "1"), overwrite=True)
    for quantize in ("none", "int8"):
        name = os.path.join(folder, "ours.tflite")
        export.litert(os.path.join(folder, "run"), name, quantize=quantize, overwrite=True)


def machine(args):
    """Bytes/s that memory gives to all threads, and how many weights a token reads."""
    import torch

    from keras_seqlm.models.presets import TRANSFORMER_SIZES

    array, ones = torch.ones(2**14, 2**14), torch.ones(2**14)
    times = []
    for read in [array.sum, lambda: array @ ones] * 5:
        start = time.perf_counter()
        read()
        times.append(time.perf_counter() - start)
    layers, width = (TRANSFORMER_SIZES[args.size][part] for part in ("num_layers", "hidden_dim"))
    blocks = layers * (12 * width**2 + 13 * width)  # of a block: kernels, biases, two norms
    weights = blocks + 2 * width + args.vocabulary * width  # the embedding is the projection, too
    print(json.dumps({"bandwidth": array.numel() * 4 / min(times), "weights": weights}))


def flat(args):
    """Print what a token costs by the number written, and what is traced when prompts and batches change."""
    backend, model = os.environ["KERAS_BACKEND"], new_model(args)
    eager, passes, of_model = backend == "torch", [0], model.hidden_states

    def counted(*arguments, **options):
        passes[0] += 1
        return of_model(*arguments, **options)

    model.hidden_states = counted

    def timed(ids, new_tokens):
        before, start = passes[0], time.perf_counter()
        written_by(model, ids, new_tokens)
        return time.perf_counter() - start, "-" if eager else passes[0] - before

    ids = prompts_of(args, 1)
    written = [number for number in WRITTEN if args.prompt + number <= MAX_LENGTH]
    first = {number: timed(ids, number) for number in written}
    again = {number: [] for number in written}
    for _ in range(args.repeat):
        for number in written:  # a short call is soon disturbed, and soon made again
            again[number] += [timed(ids, number)[0] for _ in range(max(1, min(8, 64 // number)))]
    usual = {number: statistics.median(times) for number, times in again.items()}
    each = {number: (usual[number] - usual[1]) / (number - 1) for number in written[1:]}
    print(f"{backend}: a prompt of {args.prompt}, batch 1\n")
    print(
        "| tokens written | ms a token | beside 16 | passes traced by the first call | it took, s |\n|---|---|---|---|---|"
    )
    for number, seconds in each.items():
        took, traced = first[number]
        print(f"| {number} | {seconds * 1e3:.2f} | {seconds / each[written[1]]:.2f}x | {traced} | {took:.1f} |")
    print(f"\n| passes traced | {' | '.join(f'batch {batch}' for batch in ROWS)} |\n|{'---|' * (len(ROWS) + 1)}")
    for prompt in PROMPTS:
        traced = [timed(prompts_of(args, batch, prompt), WRITTEN[1])[1] for batch in ROWS]
        print(f"| prompt {prompt} | {' | '.join(map(str, traced))} |")
    print(flush=True)


def arguments(words=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="where checkpoints and exports lie")
    parser.add_argument("--peer", help="a script that decodes with other libraries; without it peers are left out")
    parser.add_argument("--contenders", nargs="+", choices=[*PEERS, *BACKENDS, *SERVED], metavar="NAME")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--size", default=PEERS_SHAPE["size"])
    parser.add_argument("--vocabulary", type=int, default=PEERS_SHAPE["vocabulary"])
    parser.add_argument("--prompt", type=int, default=PEERS_SHAPE["prompt"])
    parser.add_argument("--new-tokens", type=int, default=PEERS_SHAPE["new_tokens"])
    parser.add_argument("--batches", nargs="+", type=int, default=PEERS_SHAPE["batches"])
    parser.add_argument("--flat", action="store_true", help="time per token by tokens written, and traces")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if args.contenders is None:
        args.contenders = [*BACKENDS] if args.flat else [*(PEERS if args.peer else ()), *BACKENDS, *SERVED]
    if args.flat and not set(args.contenders) <= set(BACKENDS):
        parser.error(f"--flat looks at {', '.join(BACKENDS)}; got {', '.join(args.contenders)}")
    if set(args.contenders) & set(PEERS):
        if not args.peer:
            parser.error("the peers need --peer, the path of their script")
        if {name: getattr(args, name) for name in PEERS_SHAPE} != PEERS_SHAPE:
            parser.error(f"the peers have one shape, {PEERS_SHAPE}; name --contenders of ours for another")
    return args


if __name__ == "__main__":
    main()
