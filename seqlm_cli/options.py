"""What several verbs share: their common options, the table of sizes, and the answer as JSON."""

import errno
import functools
import importlib.util
import pathlib

BACKENDS = ("tensorflow", "jax", "torch")


def add_common(p, backend=True):
    """Add `--json`, and `--backend` where the verb runs a model on the backend of one's choice."""
    p.add_argument("--json", metavar="FILE", help="write the result as JSON, too")
    if backend:
        add_backend(p)


def add_backend(p):
    """Add `--backend`; `main` sets it before Keras is imported."""
    p.add_argument("--backend", choices=BACKENDS, help="default: KERAS_BACKEND, else tensorflow")


def add_checkpoint(p):
    """Add `--checkpoint`."""
    p.add_argument(
        "--checkpoint",
        metavar="best|newest|STEP",
        help="read a checkpoint of the run (default: the finished model, else the newest)",
    )


def write_answer(args, content):
    """Write the result as JSON where `--json` names a file."""
    from keras_seqlm.files import write_json

    if args.json:
        folder = pathlib.Path(args.json).absolute().parent
        if not folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, "--json names a folder that is not there", str(folder))
        write_json(args.json, content)


@functools.cache  # of several parsers in one start
def size_table():
    """The table of `--size`, read from `keras_seqlm/models/presets.py` without importing Keras."""
    package = importlib.util.find_spec("keras_seqlm").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location("seqlm_presets", pathlib.Path(package) / "models" / "presets.py")
    presets = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(presets)
    lines = ["sizes (every part can be overridden):"]
    lines.append("  size    transformer: layers x hidden_dim, heads, context    recurrent: layers x hidden_dim")
    for size, t in presets.TRANSFORMER_SIZES.items():
        r = presets.RECURRENT_SIZES[size]
        parts = f"{t['num_layers']} x {t['hidden_dim']}, {t['num_heads']}, {t['max_length']}"
        lines.append(f"  {size:7} {parts:51} {r['num_layers']} x {r['hidden_dim']}")
    return "\n".join(lines)
