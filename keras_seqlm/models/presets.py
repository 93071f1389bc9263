"""The one dial: what each `size` sets. Every part can be overridden by its own argument."""

import numbers

# base is GPT-2's 124M shape. The recurrent sizes have about as many parameters as the Transformer beside them
# (without embeddings: 12 * layers * hidden_dim ** 2 against 8 * layers * hidden_dim ** 2 of an LSTM).
TRANSFORMER_SIZES = {
    "nano": {"num_layers": 2, "hidden_dim": 96, "num_heads": 3, "max_length": 128},
    "micro": {"num_layers": 4, "hidden_dim": 128, "num_heads": 4, "max_length": 256},
    "tiny": {"num_layers": 6, "hidden_dim": 256, "num_heads": 8, "max_length": 256},
    "small": {"num_layers": 8, "hidden_dim": 512, "num_heads": 8, "max_length": 512},
    "base": {"num_layers": 12, "hidden_dim": 768, "num_heads": 12, "max_length": 1024},
}
RECURRENT_SIZES = {
    "nano": {"num_layers": 1, "hidden_dim": 160},
    "micro": {"num_layers": 2, "hidden_dim": 224},
    "tiny": {"num_layers": 2, "hidden_dim": 512},
    "small": {"num_layers": 3, "hidden_dim": 1024},
    "base": {"num_layers": 4, "hidden_dim": 1600},
}
SIZES = tuple(TRANSFORMER_SIZES)


def parts_of(size, table):
    """The arguments that `size` stands for in `table`.

    Raises:
        ValueError: an unknown size.
    """
    if size not in table:
        raise ValueError(f"size must be one of {list(table)}, got {size!r}")
    return dict(table[size])


def count(name, given, default=None):
    """The whole number of 1 or more that the argument `name` was given as; `default` where it is None.

    Raises:
        ValueError: anything else: 0 is no way to ask for the default.
    """
    if given is None:
        return default
    if isinstance(given, bool) or not isinstance(given, numbers.Integral) or given < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, or None, got {given!r}")
    return int(given)
