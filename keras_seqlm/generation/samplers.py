"""How the next token is chosen: greedily, or by one draw from the filtered distribution, row by row."""

import functools

import keras
import numpy as np
from keras import ops

from keras_seqlm.generation import exact_sums
from keras_seqlm.generation.random import uniform
from seqlm_runtime.options import OPTIONS, check_option

_BACKEND = keras.backend.backend()
_LARGEST = float(np.finfo("float32").max)  # stands for infinity, so that no difference of two logits is NaN
_TEMPERATURES = (1e-6, 1e6)
# Top-k and top-p see how far a scaled logit lies below the best in steps of 2**-19. The last of the 2**24 steps, 32,
# holds all that is further: its weight, exp(-32) = 2**-46, is less than a unit of the sums, so it is never drawn.
_DEPTH = 32


def sample(logits, options, seen, position, suppressed_ids=(), uses=None, numbers=None):
    """Choose the next token of every row.

    A row depends on its own logits, options and position alone, so it is written the same alone and in a batch. Half
    of the work is skipped while all rows are greedy, and each filter while no row asks for it. The draw and the sums
    of top-p are made in whole numbers (`exact_sums`), so they are the same to the last bit on every backend; no filter
    sorts the vocabulary: top-k and top-p are exact but for ties of 2**-19 in the scaled logits.

    Args:
        logits: float32 tensor (batch, vocabulary). NaN and -inf count as the lowest finite logit.
        options: dict of (batch,) tensors, as `options_for` makes it. In this order: `repetition_penalty` (Keskar et
            al. 2019) divides the positive and multiplies the negative logits of seen ids; `temperature` 0 takes the
            best logit (the lowest id of equals), otherwise divides (at least by 1e-6, at most by 1e6); `top_k` (Fan et
            al. 2018), `top_p` (Holtzman et al. 2020) and `min_p` (Nguyen et al. 2024) keep the most probable ids;
            `seed` names the row's stream of random numbers.
        seen: float32 tensor (batch, vocabulary), 1 for the ids of prompt and text so far, else 0. Only looked at
            where a row has a `repetition_penalty`.
        position: int32 tensor (batch,), the counter of the row's random number.
        suppressed_ids: tuple of ids that are never chosen.
        uses: None, or the names of the options that some row uses, as `uses_of` tells them. Then what is not named is
            not computed, whatever the options hold, and nothing is asked of the device: no conditions in the graph,
            on torch no wait.
        numbers: None, or float32 tensor (batch,), `uniform(options["seed"], position)` if it is known already: on
            torch making it takes more kernels than all the rest.

    Returns:
        int32 tensor (batch,).

    Raises:
        ValueError: a suppressed id lies outside the vocabulary, all ids are suppressed, the size of the vocabulary is
            unknown or too large, or `uses` holds an unknown name.

    Example:

    >>> logits = np.array([[0.0, 3.0, 2.0, 1.0]], "float32")
    >>> position = np.array([5], "int32")
    >>> int(sample(logits, options_for(1), np.zeros((1, 4), "float32"), position, suppressed_ids=(1,))[0])
    2
    """
    logits = ops.convert_to_tensor(logits, dtype="float32")
    _check(logits.shape, suppressed_ids, uses)
    if logits.shape[0] == 0:  # Keras on torch has no maximum of nothing
        return ops.zeros((0,), dtype="int32")
    options = {name: ops.convert_to_tensor(options[name], dtype=dtype) for name, (dtype, _) in OPTIONS.items()}

    def sampled():
        return options["temperature"] > 0.0

    def choose(names, wanted, then, otherwise):
        if uses is None:
            return ops.cond(ops.any(wanted()), then, otherwise)
        return then() if uses & names else otherwise()

    penalty = options["repetition_penalty"][:, None]
    logits = choose(
        {"repetition_penalty"}, lambda: penalty != 1.0, lambda: _penalise(logits, seen, penalty), lambda: logits
    )
    logits = _finite(logits, tuple(suppressed_ids))
    best, greedy = _best(logits)

    def drawn():
        return ops.where(sampled(), _draw(logits - best, options, position, sampled, uses, choose, numbers), greedy)

    return choose({"temperature"}, sampled, drawn, lambda: greedy)


def _check(shape, suppressed_ids, uses):
    vocabulary = shape[-1]
    if vocabulary is None:
        raise ValueError(f"logits must have a known vocabulary, (batch, vocabulary); got the shape {shape}.")
    if vocabulary >= exact_sums.VOCABULARIES:
        raise ValueError(
            f"a vocabulary must be smaller than {exact_sums.VOCABULARIES} to be sampled; got {vocabulary}."
        )
    outside = [token for token in suppressed_ids if not 0 <= token < vocabulary]
    if outside:
        raise ValueError(
            f"suppressed_ids must lie in 0 ... {vocabulary - 1}, the vocabulary of the logits; got {outside}."
        )
    if len(set(suppressed_ids)) == vocabulary:
        raise ValueError(f"suppressed_ids must leave an id to choose; all {vocabulary} of the vocabulary are in them.")
    known = [name for name in OPTIONS if name != "seed"]
    if uses is not None and not uses <= set(known):
        raise ValueError(f"uses must be a set of names among {known}; got {sorted(uses)}.")


def _penalise(logits, seen, penalty):
    penalised = ops.where(logits > 0.0, logits / penalty, logits * penalty)
    return ops.where(ops.convert_to_tensor(seen, dtype="float32") > 0.0, penalised, logits)


def _finite(logits, suppressed_ids):
    """The logits without NaN and infinity, but for the suppressed ids, which are -inf."""
    if _BACKEND == "torch":
        logits = logits.nan_to_num(nan=-_LARGEST, posinf=_LARGEST, neginf=-_LARGEST)
        return logits + _bias_on(logits.device, suppressed_ids, logits.shape[-1]) if suppressed_ids else logits
    # A comparison with NaN is false, so one `where` cures NaN and -inf together.
    logits = ops.minimum(ops.where(logits >= -_LARGEST, logits, -_LARGEST), _LARGEST)
    return ops.where(_mask(suppressed_ids, logits.shape[-1]), -np.inf, logits) if suppressed_ids else logits


def _mask(ids, vocabulary):
    mask = np.zeros((1, vocabulary), dtype=bool)
    mask[0, list(ids)] = True
    return mask


@functools.lru_cache(maxsize=16)
def _bias_on(device, ids, vocabulary):
    """-inf for the ids, else 0, (1, vocabulary): made once, since a copy from the host waits."""
    import torch

    with torch.inference_mode(False):  # it outlives the mode that it is first asked for in
        return torch.from_numpy(np.where(_mask(ids, vocabulary), np.float32(-np.inf), np.float32(0))).to(device)


def _clip(x, low, high):
    # Keras on torch copies the numbers to the device, and waits.
    return x.clamp(low, high) if _BACKEND == "torch" else ops.clip(x, low, high)


def _only(weights, kept):
    return weights * kept if _BACKEND == "torch" else ops.where(kept, weights, 0.0)


def _best(logits):
    """The best logit (batch, 1) and the lowest id (batch,) that has it."""
    if _BACKEND == "torch":
        best, ids = logits.max(dim=-1, keepdim=True)  # the first of equals
        return best, ops.cast(ids[:, 0], "int32")
    best = ops.max(logits, axis=-1, keepdims=True)
    vocabulary = logits.shape[-1]
    ids = ops.arange(vocabulary, dtype="int32")[None]
    # (`argmax` leaves open which of equals it takes.)
    return best, ops.min(ops.where(logits >= best, ids, vocabulary), axis=-1)


def _draw(below, options, position, sampled, uses, choose, numbers):
    """One id a row from its logits less the best (batch, vocabulary)."""
    vocabulary = below.shape[-1]
    scaled = exact_sums.made(below / _clip(options["temperature"], *_TEMPERATURES)[:, None])  # at most 0
    weights = ops.exp(scaled)  # the best id has weight 1
    top_k, top_p, min_p = options["top_k"], options["top_p"], options["min_p"]

    def wants_k():
        return sampled() & (top_k > 0) & (top_k < vocabulary)

    def wants_p():
        return sampled() & (top_p < 1.0)

    def top():
        keys = exact_sums.keys_of(scaled * -(2.0**exact_sums.KEY_BITS / _DEPTH))

        def keep_k():
            behind = (top_k - 1) & (2**31 - 1)  # 0, which is off, becomes the largest int32
            key = exact_sums.key_of_index(keys, _clip(behind, 0, vocabulary - 1))
            return _only(weights, keys <= key)

        first = choose({"top_k"}, wants_k, keep_k, lambda: weights)

        def keep_p():
            return _only(first, keys <= exact_sums.key_of_part(keys, first, top_p))

        return choose({"top_p"}, wants_p, keep_p, lambda: first)

    kept = choose({"top_k", "top_p"}, lambda: wants_k() | wants_p(), top, lambda: weights)
    if uses is None or "min_p" in uses:  # cheaper than a condition
        kept = _only(kept, weights >= min_p[:, None])
    return exact_sums.draw(kept, uniform(options["seed"], position) if numbers is None else numbers)


def uses_of(options):
    """The names of the options that some row uses, which `sample` takes as `uses`.

    Args:
        options: dict of (batch,) NumPy arrays, as `options_for` makes it.

    Returns:
        A frozenset, empty where all rows are greedy without a penalty.

    Example:

    >>> sorted(uses_of(options_for(2, temperature=[0.0, 0.8], top_k=[5, 0])))
    ['temperature']
    """
    sampled = options["temperature"] > 0
    rows = {
        "temperature": sampled,
        "top_k": sampled & (options["top_k"] > 0),
        "top_p": sampled & (options["top_p"] < 1),
        "min_p": sampled & (options["min_p"] > 0),
        "repetition_penalty": options["repetition_penalty"] != 1,
    }
    return frozenset(name for name, used in rows.items() if np.any(used))


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


def _rows(name, value, batch_size):
    dtype = OPTIONS[name][0]
    values = np.asarray(value)
    if values.ndim and values.shape != (batch_size,):
        raise ValueError(
            f"{name} must be one value or one per row, here {batch_size}; got an array of shape {values.shape}."
        )
    check_option(name, value)
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
