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
# Every option is a finite number within these: `minimum` and `maximum` are allowed themselves, `above` is not.
RANGES = {
    "temperature": {"minimum": 0},
    "top_k": {"minimum": 0, "maximum": 2**31 - 1},
    "top_p": {"above": 0, "maximum": 1},
    "min_p": {"minimum": 0, "maximum": 1},
    "repetition_penalty": {"above": 0},
    "seed": {"minimum": 0, "maximum": 2**31 - 1},
}
# What each does, and the value that does nothing.
MEANINGS = {
    "temperature": "0 takes the best logit, else the logits are divided by it; above 1e6 it is 1e6",
    "top_k": "keeps that many of the best ids; 0 keeps all",
    "top_p": "keeps the fewest of the best ids that hold this part; 1 keeps all",
    "min_p": "keeps ids at least this part as probable as the best; 0 keeps all",
    "repetition_penalty": "above 1 makes ids that were read less likely; 1 is off, above 1e6 it is 1e6",
    "seed": "the stream of random numbers; greedy rows ask for none",
}


_WORDS = {"minimum": "at least", "above": "above", "maximum": "at most"}


def check_option(name, value):
    """Refuse a value of an option, or an array of them, that is outside its range or of another kind.

    Raises:
        ValueError: it is.
    """
    values, integer = np.asarray(value), OPTIONS[name][0] == "int32"
    if values.size and not (values.dtype.kind in ("iu" if integer else "iuf") and _inside(values, RANGES[name])):
        bounds = " and ".join(f"{word} {RANGES[name][key]}" for key, word in _WORDS.items() if key in RANGES[name])
        kind = "an integer" if integer else "a finite number"
        raise ValueError(f"{name} must be {kind}, {bounds} ({MEANINGS[name]}); got {value!r}.")


def _inside(values, bounds):
    """Strict comparisons throughout, so that NaN is outside."""
    large_enough = values > bounds["above"] if "above" in bounds else values >= bounds["minimum"]
    return np.all(large_enough & (values <= bounds.get("maximum", np.finfo("float32").max)))
