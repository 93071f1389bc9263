"""A model's weights under the names of `reference.py`, taken apart by the layout that the package documents."""

import re

import numpy as np
from helpers import array

from keras_seqlm.models import RecurrentLM

# Keras's order of the gates in a kernel's columns; our names are those of `reference.py`.
GATES = {"rnn": "h", "gru": "zrg", "lstm": "ifgo"}
NAMES = {
    r"token_embedding/table": "token_embedding",
    r"positions/table": "positions",
    r"(block_\d+)/attention/output/kernel": r"\1/output",
    r"(block_\d+)/attention/output/bias": r"\1/output_bias",
    r"(block_\d+)/feed_forward/(gate|up|down)/kernel": r"\1/\2",
    r"(block_\d+)/feed_forward/(gate|up|down)/bias": r"\1/\2_bias",
    r"(block_\d+)/(attention|feed_forward)_norm/(gamma|scale)": r"\1/\2_norm",
    r"(block_\d+)/(attention|feed_forward)_norm/beta": r"\1/\2_norm_bias",
    r"output_norm/(gamma|scale)": "output_norm",
    r"output_norm/beta": "output_norm_bias",
}
NAMES_OF_TRANSFORMER = {**NAMES, r"output_projection/kernel": "output_projection"}


def weights_of(model, options):
    """A dict of float64 arrays. A weight that no name is known of is an error."""
    split = of_recurrent if isinstance(model, RecurrentLM) else of_transformer
    found = {}
    for weight in model.trainable_weights:
        path = weight.path.split("/", 1)[1]  # behind the model's own name
        found |= split(path, array(weight).astype("float64"), options)
    assert sum(part.size for part in found.values()) == model.count_params()
    return found


def of_transformer(path, weight, options):
    part = re.fullmatch(r"(block_\d+)/attention/qkv/(kernel|bias)", path)
    if part is None:
        return {named(path, NAMES_OF_TRANSFORMER): weight}
    # By key-value head: the queries that share it, its key, its value.
    block, suffix = part[1], "" if part[2] == "kernel" else "_bias"
    heads = options["num_heads"]
    kv_heads = options.get("num_kv_heads") or heads
    width = weight.shape[-1] // (heads + 2 * kv_heads)
    columns = [weight[..., i * width : (i + 1) * width] for i in range(heads + 2 * kv_heads)]
    names = [name for _ in range(kv_heads) for name in [*["query"] * (heads // kv_heads), "key", "value"]]
    return {
        f"{block}/{name}{suffix}": np.array([c for c, n in zip(columns, names, strict=True) if n == name])
        for name in ("query", "key", "value")
    }


def of_recurrent(path, weight, options):
    cell = options["cell"]
    part = re.fullmatch(rf"recurrent/{cell}_(\d+)/\w+_cell/(kernel|recurrent_kernel|bias)", path)
    if part is None:
        names = {
            "token_embedding/table": "token_embedding",
            "output_bias": "a",
            "output_projection/kernel": "V",
            "output_projection/bias": "a",
            "bridge/kernel": "bridge",
            "bridge/bias": "bridge_bias",
        }
        return {named(path, names): weight.T if path.endswith("kernel") else weight}
    rows = {"kernel": [("W", weight.T)], "recurrent_kernel": [("U", weight.T)], "bias": [("b", weight)]}
    if cell == "gru":
        rows["bias"] = [("b", weight[0]), ("b'", weight[-1])]
    return {
        f"layer_{part[1]}/{letter}_{gate}": rows_of_gate
        for letter, stacked in rows[part[2]]
        for gate, rows_of_gate in zip(GATES[cell], np.split(stacked, len(GATES[cell])), strict=True)
    }


def named(path, names):
    for pattern, name in names.items():
        if re.fullmatch(pattern, path):
            return re.sub(pattern, name, path)
    raise KeyError(f"a weight that the reference does not know: {path}")
