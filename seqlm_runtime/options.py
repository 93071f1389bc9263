"""What a request may ask of the sampler: one table for the model, the server's graph and the phone."""

import numpy as np

# Name, type and default of every option; a served signature takes them in this order.
OPTIONS = {
    "temperature": ("float32", 0.0),
    "top_k": ("int32", 0),
    "top_p": ("float32", 1.0),
    "min_p": ("float32", 0.0),
    "repetition_penalty": ("float32", 1.0),
    "seed": ("int32", 0),
}
DEFAULTS = {name: value for name, (_, value) in OPTIONS.items()}
# Strict comparisons throughout, so that NaN is outside every range.
_RANGES = {
    "temperature": (lambda x: (x >= 0) & (x < np.inf), "a finite number of 0 (greedy) or more"),
    "top_k": (lambda x: (x >= 0) & (x < 2**31), "an integer of 0 (off) or more, below 2**31"),
    "top_p": (lambda x: (x > 0) & (x <= 1), "above 0 and at most 1 (off)"),
    "min_p": (lambda x: (x >= 0) & (x <= 1), "between 0 (off) and 1"),
    "repetition_penalty": (lambda x: (x > 0) & (x < np.inf), "a finite number above 0; 1 is off"),
    "seed": (lambda x: (x >= 0) & (x < 2**31), "an integer from 0 to 2**31 - 1"),
}


def check_option(name, value):
    """Refuse a value of an option, or an array of them, that is outside its range or of another kind.

    Raises:
        ValueError: it is.
    """
    values, (inside, wanted) = np.asarray(value), _RANGES[name]
    kinds = "iu" if OPTIONS[name][0] == "int32" else "iuf"
    if values.size and (values.dtype.kind not in kinds or not np.all(inside(values))):
        raise ValueError(f"{name} must be {wanted}; got {value!r}.")
