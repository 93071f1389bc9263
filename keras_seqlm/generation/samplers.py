"""How the next token is chosen: greedily, or by one draw from the filtered distribution, row by row."""

import numpy as np
from keras import ops

from keras_seqlm.generation.random import uniform

# Name, type and default of every option; a served signature takes them in this order.
OPTIONS = {
    "temperature": ("float32", 0.0),
    "top_k": ("int32", 0),
    "top_p": ("float32", 1.0),
    "min_p": ("float32", 0.0),
    "repetition_penalty": ("float32", 1.0),
    "seed": ("int32", 0),
}

# Finite stand-ins for infinity, so that no difference of two logits is NaN. A suppressed id stands below every other.
_LARGEST = 1e29
_SUPPRESSED = -1e30
_NO_THRESHOLD = -3e38
_TEMPERATURES = (1e-6, 1e6)
_DEPTH = 80.0  # exp(-80) is 1.8e-35: what lies further below the best logit is never drawn
_HALVINGS = 24


def sample(logits, options, seen, position, suppressed_ids=(), uses=None):
    """Choose the next token of every row.

    A row depends on its own logits, options and position alone, so it is written the same alone and in a batch. Half
    of the work is skipped while all rows are greedy, and each filter while no row asks for it. No filter sorts the
    vocabulary: the thresholds of top-k and top-p are found by halving an interval, exact but for ties.

    Args:
        logits: float32 tensor (batch, vocabulary). NaN counts as the lowest logit, -inf as never.
        options: dict of (batch,) tensors, as `options_for` makes it. In this order: `repetition_penalty` (Keskar et
            al. 2019) divides the positive and multiplies the negative logits of seen ids; `temperature` 0 takes the
            best logit (the lowest id of equals), otherwise divides; `top_k` (Fan et al. 2018), `top_p` (Holtzman et
            al. 2020) and `min_p` (Nguyen et al. 2024) keep the most probable ids; `seed` names the row's stream of
            random numbers.
        seen: float32 tensor (batch, vocabulary), 1 for the ids of prompt and text so far, else 0.
        position: int32 tensor (batch,), tokens that the row has read so far: the counter of its random number.
        suppressed_ids: tuple of ids that are never chosen.

    Returns:
        int32 tensor (batch,).

    Raises:
        ValueError: a suppressed id lies outside the vocabulary, or the size of the vocabulary is unknown.

    Example:

    >>> logits = np.array([[0.0, 3.0, 2.0, 1.0]], "float32")
    >>> position = np.array([5], "int32")
    >>> int(sample(logits, options_for(1), np.zeros((1, 4), "float32"), position, suppressed_ids=(1,))[0])
    2
    """
    logits = ops.convert_to_tensor(logits, dtype="float32")
    if logits.shape[-1] is None:
        raise ValueError(f"logits must have a known vocabulary, (batch, vocabulary); got the shape {logits.shape}.")
    if logits.shape[0] == 0:  # Keras on torch has no maximum of nothing
        return ops.zeros((0,), dtype="int32")
    options = {name: ops.convert_to_tensor(options[name], dtype=dtype) for name, (dtype, _) in OPTIONS.items()}
    penalty = options["repetition_penalty"][:, None]
    if seen is not None:
        logits = ops.cond(ops.any(penalty != 1.0), lambda: _penalise(logits, seen, penalty), lambda: logits)
    logits = _suppress(logits, suppressed_ids)
    best = ops.max(logits, axis=-1, keepdims=True)
    greedy = _first(logits >= best)
    sampled = options["temperature"] > 0.0
    drawn = ops.cond(ops.any(sampled), lambda: _draw(logits, best, greedy, options, position), lambda: greedy)
    return ops.where(sampled, drawn, greedy)


def _penalise(logits, seen, penalty):
    penalised = ops.where(logits > 0.0, logits / penalty, logits * penalty)
    return ops.where(ops.convert_to_tensor(seen, dtype="float32") > 0.0, penalised, logits)


def _suppress(logits, suppressed_ids):
    # A comparison with NaN is false, so one `where` cures NaN and -inf together.
    logits = ops.minimum(ops.where(logits >= -_LARGEST, logits, -_LARGEST), _LARGEST)
    if not suppressed_ids:
        return logits
    vocabulary = logits.shape[-1]
    outside = [token for token in suppressed_ids if not 0 <= token < vocabulary]
    if outside:
        raise ValueError(
            f"suppressed_ids must lie in 0 ... {vocabulary - 1}, the vocabulary of the logits; got {outside}."
        )
    mask = np.zeros((1, vocabulary), dtype=bool)
    mask[0, list(suppressed_ids)] = True
    return ops.where(mask, _SUPPRESSED, logits)


def _first(hits):
    """The lowest id whose flag is set, or the size of the vocabulary. (`argmax` leaves open which of equals it takes.)"""
    vocabulary = hits.shape[-1]
    ids = ops.arange(vocabulary, dtype="int32")[None]
    return ops.min(ops.where(hits, ids, vocabulary), axis=-1)


def _draw(logits, best, greedy, options, position):
    vocabulary = logits.shape[-1]
    temperature = ops.clip(options["temperature"], *_TEMPERATURES)[:, None]
    scaled = (logits - best) / temperature  # (batch, vocabulary), at most 0
    sampled = options["temperature"] > 0.0

    threshold = ops.full_like(best, _NO_THRESHOLD)  # (batch, 1)
    use_k = ops.logical_and(sampled, ops.logical_and(options["top_k"] > 0, options["top_k"] < vocabulary))
    threshold = ops.cond(
        ops.any(use_k), lambda: _top_k_threshold(scaled, threshold, use_k, options["top_k"]), lambda: threshold
    )
    use_p = ops.logical_and(sampled, options["top_p"] < 1.0)
    threshold = ops.cond(
        ops.any(use_p), lambda: _top_p_threshold(scaled, threshold, use_p, options["top_p"]), lambda: threshold
    )

    weights = ops.exp(scaled)  # the best id has weight 1
    kept = ops.logical_and(scaled >= threshold, weights >= options["min_p"][:, None])
    weights = ops.where(kept, weights, 0.0)
    cumulative = ops.cumsum(weights, axis=-1)
    border = uniform(options["seed"], position)[:, None] * cumulative[:, -1:]
    drawn = _first(ops.logical_and(cumulative > border, weights > 0.0))
    # The border can round up to the whole sum; then nothing lies beyond it.
    return ops.where(drawn < vocabulary, drawn, greedy)


def _top_k_threshold(scaled, threshold, use_k, top_k):
    wanted = ops.cast(top_k, "float32")[:, None]  # counts are exact in float32 up to 2**24, and faster than in int32

    def enough(middle):
        return ops.sum(ops.cast(scaled >= middle, "float32"), axis=-1, keepdims=True) >= wanted

    return ops.where(use_k[:, None], _highest(enough, threshold), threshold)


def _top_p_threshold(scaled, threshold, use_p, top_p):
    weights = ops.where(scaled >= threshold, ops.exp(scaled), 0.0)
    wanted = ops.sum(weights, axis=-1, keepdims=True) * top_p[:, None]

    def enough(middle):
        return ops.sum(ops.where(scaled >= middle, weights, 0.0), axis=-1, keepdims=True) >= wanted

    return ops.where(use_p[:, None], ops.maximum(threshold, _highest(enough, threshold)), threshold)


def _highest(enough, like):
    """The highest threshold (batch, 1) in -80 ... 0 that still keeps enough, to 80 / 2**24."""

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) * 0.5
        keep = enough(middle)
        return ops.where(keep, middle, low), ops.where(keep, high, middle)

    return ops.fori_loop(0, _HALVINGS, halve, (ops.full_like(like, -_DEPTH), ops.zeros_like(like)))[0]


def options_for(batch_size, *, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, seed=0):
    """The options of `sample` for a batch, checked.

    Args:
        batch_size: number of rows.
        temperature: 0 for greedy, or a finite number above 0.
        top_k: keep that many of the most probable ids; 0 keeps all.
        top_p: keep the fewest ids whose probabilities sum to this, in (0, 1]; 1 keeps all.
        min_p: keep ids at least this fraction as probable as the best one, in [0, 1]; 0 keeps all.
        repetition_penalty: above 0; 1 changes nothing, above 1 makes seen ids less likely.
        seed: 0 ... 2**31 - 1. One seed for the batch is the seed of every row, so that a row alone is the row in a batch.

        Each is one value for all rows or a sequence of one value per row.

    Returns:
        dict of NumPy arrays (batch_size,), int32 and float32.

    Raises:
        ValueError: a value outside its range, or a sequence of another length.

    Example:

    >>> options_for(2, temperature=[0.0, 0.8], seed=7)["seed"]
    array([7, 7], dtype=int32)
    """
    given = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
    }
    return {name: _rows(name, value, batch_size) for name, value in given.items()}


# Strict comparisons throughout, so that NaN is outside every range.
_RANGES = {
    "temperature": (lambda x: (x >= 0) & (x < np.inf), "a finite number of 0 (greedy) or more"),
    "top_k": (lambda x: (x >= 0) & (x < 2**31), "an integer of 0 (off) or more, below 2**31"),
    "top_p": (lambda x: (x > 0) & (x <= 1), "above 0 and at most 1 (off)"),
    "min_p": (lambda x: (x >= 0) & (x <= 1), "between 0 (off) and 1"),
    "repetition_penalty": (lambda x: (x > 0) & (x < np.inf), "a finite number above 0; 1 is off"),
    "seed": (lambda x: (x >= 0) & (x < 2**31), "an integer from 0 to 2**31 - 1"),
}


def _rows(name, value, batch_size):
    dtype = OPTIONS[name][0]
    values = np.asarray(value)
    if values.ndim and values.shape != (batch_size,):
        raise ValueError(
            f"{name} must be one value or one per row, here {batch_size}; got an array of shape {values.shape}."
        )
    inside, wanted = _RANGES[name]
    kinds = "iu" if dtype == "int32" else "iuf"
    if values.size and (values.dtype.kind not in kinds or not np.all(inside(values))):
        raise ValueError(f"{name} must be {wanted}; got {value!r}.")
    return np.broadcast_to(values, (batch_size,)).astype(dtype)


def clamp(options):
    """Bring options that came with a request into their ranges, inside a graph, where nothing can be refused.

    Args:
        options: dict of (batch,) tensors. NaN and negative temperatures become 0 (greedy), infinite ones large; a
            negative `top_k` 0; `top_p` NaN or above 1 becomes 1, 0 or less keeps the most probable id alone; `min_p`
            is clipped to [0, 1], NaN to 0; a `repetition_penalty` of NaN, 0 or less becomes 1.

    Returns:
        A dict of the same keys.

    Example:

    >>> wild = options_for(1) | {"temperature": np.array([np.nan], "float32")}
    >>> float(clamp(wild)["temperature"][0])
    0.0
    """
    options = {name: ops.convert_to_tensor(options[name], dtype=dtype) for name, (dtype, _) in OPTIONS.items()}
    temperature, top_p, min_p = options["temperature"], options["top_p"], options["min_p"]
    penalty = options["repetition_penalty"]
    # Each `where` asks for the good range, because every comparison with NaN is false.
    return options | {
        "temperature": ops.where(temperature > 0.0, ops.minimum(temperature, _TEMPERATURES[1]), 0.0),
        "top_k": ops.maximum(options["top_k"], 0),
        "top_p": ops.where(top_p < 1.0, ops.maximum(top_p, 1e-6), 1.0),
        "min_p": ops.where(min_p > 0.0, ops.minimum(min_p, 1.0), 0.0),
        "repetition_penalty": ops.where(penalty > 0.0, ops.clip(penalty, 1e-6, 1e6), 1.0),
    }


def uses_of(options):
    off = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
    return frozenset(name for name, value in off.items() if (options[name] != value).any())
