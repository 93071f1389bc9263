"""The sampler of `keras_seqlm.generation` in NumPy: one seed, the same text as from the model and from a server."""

import numpy as np

from seqlm_runtime.options import DEFAULTS

_LARGEST = np.finfo(np.float32).max  # stands for infinity, so that no difference of two logits is NaN
_TEMPERATURES = np.float32([1e-6, 1e6])
# What `keras_seqlm.generation` explains: weights are summed as whole numbers of units of 2**-43, and top-k and top-p see
# how far a scaled logit lies below the best in 2**24 steps from 0 to 32.
_VOCABULARIES = 2**20
_UNITS = np.float32(2.0**43)
_KEYS, _DEPTH = 2.0**24, 32.0
_PARTS = 2**30


def uniform(seed, position):
    """One uniform number in [0, 1) for each pair of a seed and a position, by Threefry-2x32-20.

    Args:
        seed: int32 scalar or array, the stream of random numbers.
        position: int32 scalar or array, the number of the draw in its stream.

    Returns:
        float32 scalar or array, multiples of 2**-24.

    Reference: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (2011).

    Example:

    >>> float(uniform(0, 0))
    0.4184570908546448
    """
    seed, position = np.broadcast_arrays(np.asarray(seed, np.int64), np.asarray(position, np.int64))
    # 64-bit words cut to 32 bits after every step: NumPy warns when a 32-bit scalar overflows.
    key, low = seed.astype(np.uint64), np.uint64(0xFFFFFFFF)
    keys = (key & low, np.zeros_like(key), (key ^ np.uint64(0x1BD11BDA)) & low)
    x0, x1 = (position.astype(np.uint64) + keys[0]) & low, keys[1]
    for group in range(5):
        for rotation in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x0 = (x0 + x1) & low
            x1 = (((x1 << np.uint64(rotation)) | (x1 >> np.uint64(32 - rotation))) & low) ^ x0
        x0 = (x0 + keys[(group + 1) % 3]) & low
        x1 = (x1 + keys[(group + 2) % 3] + np.uint64(group + 1)) & low
    return ((x0 >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-24))[()]


def sample(logits, options, seen=None, position=0, suppressed_ids=(), with_margin=False):
    """Choose the next token of one or more rows.

    Args:
        logits: array (batch, vocabulary), or (vocabulary,) for one row.
        options: dict of temperature, top_k, top_p, min_p, repetition_penalty and seed, each one value or one per row.
            A missing one is off, temperature 0 is greedy.
        seen: array (batch, vocabulary) or (vocabulary,), not 0 for the ids of prompt and text so far. None: no id.
        position: the counter of the random number, one value or one per row.
        suppressed_ids: ids that are never chosen.
        with_margin: whether to return as well how near the choice was to another one.

    Returns:
        int32 array (batch,). With `with_margin` a pair of it and a float array (batch,): for a greedy row the
        difference of the two best logits, for a sampled row the distance of the draw from the nearest border between
        two tokens, as a part of the whole. Where a filter is about to keep another set of ids, and the probability of
        the id at its edge would reach from the draw to that border, the margin is the filter's.

    Raises:
        ValueError: an unknown option, all ids suppressed, or a vocabulary of 2**20 ids or more.

    Example:

    >>> int(sample(np.array([0.0, 3.0, 2.0]), {"temperature": 0.0}, suppressed_ids=(1,))[0])
    2
    """
    unknown = sorted(set(options) - set(DEFAULTS))
    if unknown:
        raise ValueError(f"Unknown options {unknown}: the sampler knows {sorted(DEFAULTS)}.")
    logits = np.atleast_2d(np.asarray(logits, np.float32))
    vocabulary = logits.shape[1]
    if vocabulary >= _VOCABULARIES:
        raise ValueError(f"a vocabulary must be smaller than {_VOCABULARIES} to be sampled; got {vocabulary}.")
    if len(set(suppressed_ids)) == vocabulary:
        raise ValueError(f"suppressed_ids must leave an id to choose; all {vocabulary} of the vocabulary are in them.")
    seen = np.zeros(logits.shape, bool) if seen is None else np.broadcast_to(np.asarray(seen) > 0, logits.shape)
    rows = len(logits)
    columns = {name: np.broadcast_to(options.get(name, default), (rows,)) for name, default in DEFAULTS.items()}
    positions = np.broadcast_to(position, (rows,))
    chosen = np.zeros(rows, np.int32)
    margins = np.zeros(rows, np.float64)
    for row in range(rows):
        option = {name: column[row] for name, column in columns.items()}
        values = _adjust(logits[row], seen[row], np.float32(option["repetition_penalty"]), suppressed_ids)
        choose = _draw if option["temperature"] > 0 else _greedy
        chosen[row], margins[row] = choose(values, option, positions[row])
    return (chosen, margins) if with_margin else chosen


def _adjust(logits, seen, penalty, suppressed_ids):
    with np.errstate(over="ignore", invalid="ignore"):
        if penalty != 1:
            logits = np.where(seen, np.where(logits > 0, logits / penalty, logits * penalty), logits)
        logits = np.minimum(np.where(logits >= -_LARGEST, logits, -_LARGEST), _LARGEST)
    logits[list(suppressed_ids)] = -np.inf
    return logits


def _greedy(logits, option, position):
    if len(logits) == 1:
        return 0, np.inf
    second, first = np.partition(logits, -2)[-2:]
    return np.argmax(logits), float(first) - float(second)


def _draw(logits, option, position):
    temperature = np.clip(np.float32(option["temperature"]), *_TEMPERATURES)
    with np.errstate(over="ignore", under="ignore"):
        scaled = (logits - logits.max()) / temperature  # at most 0
        weights = np.exp(scaled)  # the best id has weight 1
        keys = np.minimum(scaled * np.float32(-_KEYS / _DEPTH), np.float32(_KEYS - 1)).astype(np.int32)
    considered = weights
    if 0 < option["top_k"] < len(logits):
        last = np.partition(keys, option["top_k"] - 1)[option["top_k"] - 1]
        considered = np.where(keys <= last, weights, np.float32(0))
    drawable = considered
    if option["top_p"] < 1:
        order = np.argsort(keys)
        cumulative = np.cumsum(_whole(considered)[order])
        last = keys[order[np.searchsorted(cumulative, _border(cumulative[-1], option["top_p"], 1), "right")]]
        drawable = np.where(keys <= last, considered, np.float32(0))
    least = (
        np.float32(min(option["min_p"], 1)) if option["min_p"] > 0 else np.float32(0)
    )  # as the served graph takes it
    amounts = _whole(np.where(weights >= least, drawable, np.float32(0)))
    cumulative = np.cumsum(amounts)
    border = _border(cumulative[-1], uniform(option["seed"], position), 0)
    chosen = int(np.searchsorted(cumulative, border, "right"))

    kept = amounts > 0
    borders = cumulative[kept][:-1]  # no border lies at either end: beyond it there is no other token
    distance = np.min(np.abs(borders - border).astype(float), initial=np.inf) / float(cumulative[-1])
    return chosen, min(distance, _filter_margin(option, temperature, scaled, weights, considered, kept, distance))


def _whole(weights):
    """Weights as whole numbers of units, what is left over cut away."""
    return (weights * _UNITS).astype(np.int64)


def _border(total, part, reached):
    """The largest sum that does not exceed a part of the total, or with `reached` 1 that does not reach it."""
    return (int(total) * int(np.float32(part) * np.float32(_PARTS)) - reached) // _PARTS


def _filter_margin(option, temperature, scaled, weights, considered, kept, distance):
    """How far the filters are from keeping another set, or the draw from noticing it, whichever is more."""
    use_p, use_min_p = option["top_p"] < 1, option["min_p"] > 0
    if not (use_p or use_min_p or option["top_k"] > 0):
        return np.inf
    temperature = float(temperature)
    lowest = float(scaled[kept].min())
    highest = float(np.max(scaled[~kept], initial=-np.inf))
    margin = (lowest - highest) * temperature  # in logits: two ids change places
    if use_p:
        mass = considered.sum(dtype=np.float64)
        held = considered[kept].sum(dtype=np.float64) / mass
        margin = min(margin, abs(held - option["top_p"]), abs(held - np.exp(lowest) / mass - option["top_p"]))
    if use_min_p:
        edge = np.log(float(option["min_p"]))
        margin = min(margin, abs(lowest - edge) * temperature, abs(edge - highest) * temperature)
    moved = np.exp(max(lowest, highest)) / weights[kept].sum(dtype=np.float64)
    return max(margin, distance - moved)
