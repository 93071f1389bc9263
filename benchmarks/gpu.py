#!/usr/bin/env python3
"""On a GPU: training and decoding speed of our models on JAX and torch beside plain PyTorch and transformers.

usage: gpu.py [--peer gpu.py] [--cases jax-gpt jax-lstm ...] [--steps 25] [--limit 100] [--total 560] [--profile jax-gpt]

GPT-2's 124M shape and an LSTM of 2 x 1024, both with vocabulary 50304, batch 16 x 1024, bfloat16, AdamW, random ids, by
plain `compile` and `fit`; decoding greedily from a prompt of 64 to 128 new tokens at batch 1, 8 and 64. Needs Keras and
the backend of each case, no TensorFlow. Every case is a process of its own, one after the other in the order of worth; a
row is printed as its case ends, and the table once more at the end, when every peer is known. What runs over --limit
seconds is killed, what no time is left for within --total is not begun, and either is said in its row.

A step's time goes from the end of the 5th step to the end of the last. The clock is an `async_safe` callback, as Keras's
own progress bar is: one that is not makes Keras wait for every step's loss, and the device for the step after it.
Decoding: the best of two calls after the first.

beside    tokens/s over those of the peer: compiled PyTorch, eager PyTorch for eager torch, cuDNN's LSTM, `generate`
of bound  of training: model FLOPs (products of the forward pass, three times) over --peak; of decoding at batch 1: the
          bytes of the weights that a token reads over --bandwidth
GB        the most memory that was in use on the device
first, s  the first 5 steps, or the first call, compilation included

--profile names cases that run a few steps (or a call at batch 1) more under the backend's profiler, and prints which
kernels took the time. --small runs the same paths at toy size, on a CPU, too. --cache FOLDER keeps what JAX compiles
and tunes: later cases start sooner, and their first steps no longer tell what compilation costs.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

WARM = 5  # steps before the clock starts
PROFILED = 8  # steps under the profiler
HEAVIEST = 25  # kernels that are shown
LONGEST_IDLE = 6
LEAST_SECONDS = 20  # left, or a case is not begun
PROMPT = 64
CALLS = 3  # of decoding, the first of which compiles


@dataclasses.dataclass(frozen=True)
class Shape:
    """What all cases of one run share."""

    vocabulary: int = 50304
    context: int = 1024
    batch: int = 16
    layers: int = 12
    width: int = 768
    heads: int = 12
    kv_heads: int = 4  # where they are grouped
    recurrent_layers: int = 2
    hidden: int = 1024
    batches: tuple = (1, 8, 64)  # of decoding
    new_tokens: int = 128


FULL = Shape()
SMALL = Shape(
    vocabulary=512,
    context=128,
    batch=4,
    layers=2,
    width=64,
    heads=4,
    kv_heads=2,
    hidden=64,
    batches=(1, 2),
    new_tokens=20,
)


@dataclasses.dataclass(frozen=True)
class Case:
    """One process. `backend` "peer" is the script given as --peer, called with the words `arguments`."""

    name: str
    backend: str
    work: str  # "gpt", "lstm" or "decode"
    beside: str | None = None  # the peer's case that it is compared with
    arguments: tuple = ()
    dtype: str = "mixed_bfloat16"
    model: dict = dataclasses.field(default_factory=dict)
    fused: bool = True
    packed: bool = False
    jit: bool | str = "auto"


CASES = (  # by worth: what comes first is there when the time is spent
    Case("peer-gpt", "peer", "gpt", arguments=("train", "gpt")),
    Case("jax-gpt", "jax", "gpt", "peer-gpt"),
    Case("peer-lstm", "peer", "lstm", arguments=("train", "lstm")),
    Case("jax-lstm", "jax", "lstm", "peer-lstm"),
    Case("jax-rotary", "jax", "gpt", "peer-gpt", model={"positions": "rotary"}),
    Case("jax-packed", "jax", "gpt", "peer-gpt", packed=True),
    Case("jax-decode-float32", "jax", "decode", "peer-decode-float32", dtype="float32"),
    Case("jax-decode-bfloat16", "jax", "decode", "peer-decode-bfloat16", dtype="bfloat16"),
    Case("peer-gpt-eager", "peer", "gpt", arguments=("train", "gpt", "--eager")),
    Case("torch-gpt", "torch", "gpt", "peer-gpt-eager"),
    Case("jax-grouped", "jax", "gpt", "peer-gpt", model={"num_kv_heads": "kv_heads"}),
    Case("jax-dropout", "jax", "gpt", "peer-gpt", model={"dropout": 0.1}),
    Case("torch-gpt-jit", "torch", "gpt", "peer-gpt", jit=True),
    Case("torch-lstm", "torch", "lstm", "peer-lstm"),
    Case("jax-plain-loss", "jax", "gpt", "peer-gpt", fused=False),
    Case("jax-decode-mixed", "jax", "decode", "peer-decode-bfloat16"),
    Case("torch-decode", "torch", "decode", "peer-decode-float32", dtype="float32"),
    Case("peer-decode-float32", "peer", "decode", arguments=("decode",), dtype="float32"),
    Case("peer-decode-bfloat16", "peer", "decode", arguments=("decode", "--dtype", "bfloat16"), dtype="bfloat16"),
)
BY_NAME = {case.name: case for case in CASES}
COLUMNS = "| case | tokens/s | beside | of bound | GB | first, s |\n|---|---|---|---|---|---|"


def main(words=None):
    args = arguments(words)
    if args.child:
        child(BY_NAME[args.child], args)
        return
    print(COLUMNS, flush=True)
    rows, profiles = [], []
    for case in [BY_NAME[name] for name in args.cases]:
        for said in run(case, args):
            if "kernels" in said:
                profiles.append(profile_table(case, said))
                continue
            rows.append((case, said))
            print(row(case, said, rows, args), flush=True)
    print("\n\n".join(["", *profiles]), flush=True)
    print(f"\n{COLUMNS}\n" + "\n".join(row(case, said, rows, args) for case, said in rows), flush=True)


def run(case, args):
    """The dicts that a case's process prints, as they come; then, if it did not end well, one with `failed`."""
    limit = min(args.limit, args.total - (time.perf_counter() - args.began))
    if limit < min(LEAST_SECONDS, args.limit):
        yield {"failed": "not begun: no time left"}
        return
    with tempfile.TemporaryDirectory() as folder:
        said, errors = pathlib.Path(folder, "said"), pathlib.Path(folder, "errors")
        with said.open("w") as out, errors.open("w") as err:  # no pipes: workers of a compiler would hold them open
            process = subprocess.Popen(
                command_of(case, args), env=environment_of(case, args), stdout=out, stderr=err, process_group=0
            )
        try:
            deadline, shown = time.perf_counter() + limit, 0
            while True:
                over = process.poll() is not None  # asked before reading, so that the last line is read, too
                lines = [line for line in said.read_text().split("\n")[:-1] if line.startswith("{")]
                for line in lines[shown:]:
                    yield from of_peer(json.loads(line), case) if case.backend == "peer" else [json.loads(line)]
                shown = len(lines)
                if over or time.perf_counter() > deadline:
                    break
                time.sleep(0.1)
        finally:
            with contextlib.suppress(ProcessLookupError):  # nothing is left of it, which is well
                os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
        if not over:
            yield {"failed": f"killed after {limit:.0f} s"}
        elif status:
            last = [line.strip() for line in errors.read_text().splitlines() if line.strip()][-1:]
            yield {"failed": f"ended with {status}: {' '.join(last)[:300]}"}
        elif not shown:
            yield {"failed": "said nothing"}


def environment_of(case, args):
    root = str(pathlib.Path(__file__).resolve().parents[1])
    found = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    found["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    if case.backend != "peer":
        found["KERAS_BACKEND"] = case.backend
    if args.cache:
        found["JAX_COMPILATION_CACHE_DIR"] = os.path.abspath(args.cache)
    return found


def command_of(case, args):
    if case.backend == "peer":
        return [sys.executable, args.peer, *case.arguments]
    words = ["--steps", str(args.steps), *(["--small"] if args.small else [])]
    words += ["--profile", case.name] if case.name in args.profile else []
    return [sys.executable, __file__, "--child", case.name, *words]


def of_peer(said, case):
    """The peer's one line as what our processes say."""
    if case.work != "decode":
        return [{"tokens_s": said["tokens_s"], "gb": said["gb"], "first_s": said["first_5_steps_s"]}]
    found = [(int(key[1:].split("_")[0]), value) for key, value in said.items() if key.endswith("_tokens_s")]
    return [{"batch": batch, "tokens_s": tokens_s, "gb": None, "first_s": None} for batch, tokens_s in found]


def row(case, said, rows, args):
    """A line of the table, with what is known of the peer so far."""
    batch = said.get("batch")
    name = case.name if batch is None else f"{case.name}, batch {batch}"
    if "failed" in said:
        return f"| {case.name} | {said['failed']} | - | - | - | - |"
    same = [s for c, s in rows if c.name == case.beside and s.get("batch") == batch and "failed" not in s]
    beside = f"{said['tokens_s'] / same[0]['tokens_s']:.2f}x" if same else "-"
    share = share_of_bound(case, said, SMALL if args.small else FULL, args)
    cells = [f"{said['tokens_s']:,.0f}", beside, "-" if share is None else f"{share:.1%}"]
    cells += ["-" if said[key] is None else f"{said[key]:.1f}" for key in ("gb", "first_s")]
    return f"| {name} | {' | '.join(cells)} |"


def share_of_bound(case, said, shape, args):
    """Of the peak of FLOP/s while training, of the memory's bandwidth while one row is written, else None."""
    if case.work != "decode":
        return said["tokens_s"] * flops_per_token(case, shape) / (args.peak * 1e12)
    if said["batch"] != 1:
        return None
    blocks = shape.layers * (12 * shape.width**2 + 13 * shape.width)  # of a block: kernels, biases, two norms
    weights = blocks + 2 * shape.width + shape.vocabulary * shape.width  # of the positions one row alone is read
    return said["tokens_s"] * weights * (4 if case.dtype == "float32" else 2) / (args.bandwidth * 1e12)


def flops_per_token(case, shape):
    """Products of the forward pass, times three for the backward pass. Packed documents count as one causal text."""
    if case.work == "gpt":
        attention = 2 * shape.context * shape.width  # half of the scores are masked, and two products are made of them
        kept = shape.kv_heads / shape.heads if "num_kv_heads" in case.model else 1  # of keys and values
        weights = shape.layers * (10 + 2 * kept) * shape.width**2 + shape.width * shape.vocabulary
        return 3 * (2 * weights + shape.layers * attention)
    gates = shape.recurrent_layers * 4 * shape.hidden * 2 * shape.hidden
    return 3 * 2 * (gates + shape.hidden * shape.vocabulary)


def child(case, args):
    """Run one case in this process and print what it says, a JSON object a line."""
    import keras

    shape = SMALL if args.small else FULL
    keras.utils.set_random_seed(0)
    decode(case, shape, args) if case.work == "decode" else train(case, shape, args)


def train(case, shape, args):
    import keras
    import numpy as np

    from keras_seqlm.losses import FusedCrossEntropy

    draw = np.random.default_rng(0)
    ids = draw.integers(0, shape.vocabulary, (shape.batch, shape.context + 1)).astype("int32")
    x, y = ids[:, :-1], ids[:, 1:]
    if case.packed:  # documents of 1 to half a context of tokens
        borders = draw.random(x.shape) < 4 / shape.context
        x = {"token_ids": x, "segment_ids": np.cumsum(borders, axis=1).astype("int32") + 1}
    model = new_model(case, shape)
    loss = FusedCrossEntropy() if case.fused else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.AdamW(3e-4, weight_decay=0.1), loss=loss, jit_compile=case.jit)

    class Batches(keras.utils.PyDataset):
        def __init__(self, steps):
            super().__init__()
            self.steps = steps

        def __len__(self):
            return self.steps

        def __getitem__(self, index):
            return x, y

    class Clock(keras.callbacks.Callback):
        async_safe = True

        def on_train_batch_end(self, batch, logs=None):
            now = time.perf_counter()  # the step has ended, since Keras has made a number of its loss
            if batch + 1 == WARM:
                self.warm = now
            if batch + 1 == args.steps:
                seconds = (now - self.warm) / (args.steps - WARM)
                speed = {"tokens_s": shape.batch * shape.context / seconds, "ms": seconds * 1e3}
                tell(
                    **speed, first_s=self.warm - began, gb=most_memory(), loss=logs["loss"], params=model.count_params()
                )

    began = time.perf_counter()
    model.fit(Batches(args.steps), epochs=1, verbose=0, shuffle=False, callbacks=[Clock()])
    if case.name in args.profile:
        profile = Profile(case)
        profile.start()
        model.fit(Batches(PROFILED), epochs=1, verbose=0, shuffle=False)
        profile.stop(PROFILED, "step")


def decode(case, shape, args):
    import numpy as np

    model, draw = new_model(case, shape), np.random.default_rng(0)
    model.build()
    for batch in shape.batches:
        prompts = list(draw.integers(0, shape.vocabulary, (batch, PROMPT)).astype("int32"))
        times = []
        for _ in range(CALLS):
            began = time.perf_counter()
            written = model.generate(prompts, shape.new_tokens, eos_id=None, suppressed_ids=())
            times.append(time.perf_counter() - began)
            if sum(map(len, written)) != batch * shape.new_tokens:
                sys.exit(f"{batch * shape.new_tokens} tokens were asked for, {sum(map(len, written))} came")
        speed = batch * shape.new_tokens / min(times[1:])
        tell(batch=batch, tokens_s=speed, first_s=times[0], gb=most_memory())
        if case.name in args.profile and batch == shape.batches[0]:
            profile = Profile(case)
            profile.start()
            model.generate(prompts, shape.new_tokens, eos_id=None, suppressed_ids=())
            profile.stop(shape.new_tokens, "token")


def new_model(case, shape):
    from keras_seqlm.models import RecurrentLM, TransformerLM

    if case.work == "lstm":
        widths = {"num_layers": shape.recurrent_layers, "hidden_dim": shape.hidden}
        return RecurrentLM(shape.vocabulary, cell="lstm", dtype=case.dtype, **widths)
    widths = {"num_layers": shape.layers, "hidden_dim": shape.width, "num_heads": shape.heads}
    options = {name: getattr(shape, value) if name == "num_kv_heads" else value for name, value in case.model.items()}
    return TransformerLM(shape.vocabulary, max_length=shape.context, dtype=case.dtype, **widths, **options)


def tell(**said):
    print(json.dumps(said), flush=True)


def most_memory():
    """GiB in use on the device at the most, or None on a CPU."""
    if os.environ["KERAS_BACKEND"] == "torch":
        import torch

        return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    import jax

    found = jax.local_devices()[0].memory_stats()
    return found["peak_bytes_in_use"] / 2**30 if found else None


class Profile:
    """Where the device's time goes between `start` and `stop`."""

    def __init__(self, case):
        self.on_torch = case.backend == "torch"

    def start(self):
        if self.on_torch:
            from torch.profiler import profile

            self.session = profile()
            self.session.start()
        else:
            import jax

            self.folder = tempfile.TemporaryDirectory()
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # it would slow down what it looks at
            jax.profiler.start_trace(self.folder.name, profiler_options=options)

    def stop(self, times, unit):
        """Print name, calls and seconds of every kernel, and over how many steps or tokens they were counted."""
        if self.on_torch:
            self.session.stop()
            spans = torch_spans(self.session)
        else:
            import jax

            jax.profiler.stop_trace()
            spans = jax_spans(self.folder.name)
            self.folder.cleanup()
        tell(**summed_up(spans), times=times, unit=unit)


def torch_spans(session):
    """(start, end, name) of what ran on the device, without marks that span several kernels; on a CPU of the operators."""
    import torch

    events = [event for event in session.events() if not event.is_user_annotation]
    if torch.cuda.is_available():
        events = [event for event in events if str(event.device_type).endswith("CUDA")]
    else:
        events = [event for event in events if event.cpu_parent is None]
    return [(event.time_range.start * 1e3, event.time_range.end * 1e3, event.name) for event in events]


def jax_spans(folder):
    """(start, end, name) of the events on the device's streams; on a CPU of every one that names an HLO operation."""
    import jax

    [path] = pathlib.Path(folder).rglob("*.xplane.pb")
    planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
    streams = [line for plane in planes if "/device:GPU" in plane.name for line in plane.lines]
    on_device = bool(streams)
    streams = [line for line in streams if line.name.startswith("Stream")] or streams
    lines = streams if on_device else [line for plane in planes for line in plane.lines]
    return [
        (event.start_ns, event.start_ns + event.duration_ns, re.sub(r"[._]\d+$", "", event.name))
        for line in lines
        for event in line.events
        if on_device or "hlo_op" in dict(event.stats)
    ]


def summed_up(spans):
    """`kernels`: (name, calls, seconds) each; `idle`: as `idle_times`; `seconds` from the first start to the last end.

    Args:
        spans: (start, end, name) of the kernels, in nanoseconds.

    Example:

    >>> summed_up([(0, 1000, "a"), (500, 2000, "b"), (5000, 6000, "a")])
    {'kernels': [('a', 2, 2e-06), ('b', 1, 1.5e-06)], 'idle': [('a', 1, 3e-06)], 'seconds': 6e-06}
    """
    count, took = collections.Counter(), collections.Counter()
    for start, end, name in spans:
        count[name] += 1
        took[name] += end - start
    kernels = [(name, count[name], took[name] / 1e9) for name in took]
    seconds = max((end for _, end, _ in spans), default=0) - min((start for start, _, _ in spans), default=0)
    return {"kernels": kernels, "idle": idle_times(spans), "seconds": seconds / 1e9}


def idle_times(spans):
    """(before which kernel, how often, seconds in all) of the times in which no kernel ran, the longest first.

    Args:
        spans: (start, end, name) of the kernels, in nanoseconds.

    Example:

    >>> idle_times([(0, 1000, "a"), (500, 2000, "b"), (5000, 6000, "a")])
    [('a', 1, 3e-06)]
    """
    count, seconds, until = collections.Counter(), collections.Counter(), None
    for start, end, name in sorted(spans):
        if until is not None and start > until:
            count[name] += 1
            seconds[name] += (start - until) / 1e9
        until = end if until is None else max(until, end)
    return [(name, count[name], total) for name, total in seconds.most_common()]


KINDS = (  # the first that fits; names of cuDNN's attention hold those of products, too
    ("attention", r"sdpa|flash|fmha|attention"),
    ("products", r"gemm|nvjet|xmma|cutlass|cublas|wgmma|dot|matmul|addmm|::mm|\bmm\b|linear"),
    ("copies", r"memcpy|memset|copy|transpose|concatenate|slice|pad"),
    ("sums", r"reduce|norm|softmax|sum"),
)


def kind_of(kernel):
    return next((kind for kind, words in KINDS if re.search(words, kernel, re.IGNORECASE)), "the rest")


def profile_table(case, said):
    """The heaviest kernels of a case, and what kinds of work the time goes into."""
    kernels = sorted(said["kernels"], key=lambda kernel: -kernel[2])
    wall, busy = said["seconds"], sum(kernel[2] for kernel in kernels)
    if not busy:
        return f"{case.name}: the profiler saw no kernels"
    each = f"ms a {said['unit']}"
    head = (
        f"{case.name}: {wall / said['times'] * 1e3:.2f} {each} under the profiler; kernels fill {busy / wall:.0%} of it"
    )
    kinds = collections.Counter()
    for name, _, seconds in kernels:
        kinds[kind_of(name)] += seconds
    lines = [f"{head}: " + ", ".join(f"{kind} {share / busy:.0%}" for kind, share in kinds.most_common()), ""]
    for name, often, seconds in said["idle"][:LONGEST_IDLE]:
        waits = f"{often / said['times']:.1f} times a {said['unit']}, {seconds / said['times'] * 1e3:.3f} ms in all"
        lines.insert(-1, f"idle before {name[:90]}: {waits}")
    lines += [f"| kernel | kind | calls a {said['unit']} | {each} | of the kernels |", "|---|---|---|---|---|"]
    for name, calls, seconds in kernels[:HEAVIEST]:
        numbers = f"{calls / said['times']:.1f} | {seconds / said['times'] * 1e3:.3f} | {seconds / busy:.1%}"
        lines.append(f"| {name[:90].replace('|', '/')} | {kind_of(name)} | {numbers} |")
    return "\n".join(lines)


def arguments(words=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="a script that does the same in plain PyTorch; without it peers are left out")
    parser.add_argument(
        "--cases", nargs="+", choices=list(BY_NAME), default=None, metavar="CASE", help=", ".join(BY_NAME)
    )
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--limit", type=float, default=100, help="seconds for a case")
    parser.add_argument("--total", type=float, default=float("inf"), help="seconds for all")
    parser.add_argument("--profile", nargs="+", choices=list(BY_NAME), default=[], metavar="CASE")
    parser.add_argument("--peak", type=float, default=989, help="TFLOP/s of the device in bfloat16")
    parser.add_argument("--bandwidth", type=float, default=3.0, help="TB/s that the device's memory gives")
    parser.add_argument("--cache", help="folder for what JAX compiles and tunes")
    parser.add_argument("--small", action="store_true", help="toy sizes, to try the paths")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    args.began = time.perf_counter()
    if args.steps <= WARM:
        parser.error(f"--steps must be above {WARM}, after which the clock starts; got {args.steps}")
    if args.cases is None:
        args.cases = [case.name for case in CASES if args.peer or case.backend != "peer"]
    if not args.peer and any(BY_NAME[name].backend == "peer" for name in args.cases):
        parser.error("the cases of the peer need --peer, the path of its script")
    return args


if __name__ == "__main__":
    main()
