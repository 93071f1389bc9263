"""Draws against softmax in float64, at the sizes of real vocabularies and at the edges of every constant of the sampler."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

from keras_seqlm.generation import exact_sums
from keras_seqlm.generation.samplers import options_for, sample
from seqlm_runtime import sampler as runtime_sampler

pytestmark = pytest.mark.backends

BACKEND = keras.backend.backend()
TIE = 2.0**-24  # the random number is a multiple of it
FILTERS = (
    {"temperature": 1.0},
    {"temperature": 0.7},
    {"temperature": 1.5, "top_k": 50},
    {"temperature": 1.1, "top_p": 0.9},
    {"temperature": 1.0, "min_p": 0.0213},
    {"temperature": 0.9, "top_k": 130, "top_p": 0.8, "min_p": 1.13e-4},
)


def compiled(function, xla=False):
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=xla)
    return function


def distributions(vocabulary):
    """Logits (5, vocabulary), float32. Those drawn at random are rounded, so that no two are nearly equal."""
    rng = np.random.default_rng(vocabulary)
    normal = np.round(rng.normal(size=(2, vocabulary)) * [[1], [3]] * 256) / 256
    floor = np.full(vocabulary, -np.log(vocabulary) - 0.0137)  # half of the mass on one id: every error of exp adds up
    floor[vocabulary // 3] = 0
    return np.stack([np.zeros(vocabulary), *normal, -np.log(rng.permutation(vocabulary) + 1.0), floor]).astype(
        "float32"
    )


def reference(logits, temperature, top_k=0, top_p=1.0, min_p=0.0):
    """The cumulative weights of the ids that the filters keep, by the definitions, in float64."""
    temperature, top_p, min_p = np.float32([temperature, top_p, min_p]).astype("float64")
    scaled = (logits.astype("float64") - float(logits.max())) / temperature
    weights = np.exp(scaled)
    order = np.argsort(-scaled, kind="stable")
    kept = np.ones(len(logits), bool)
    if 0 < top_k < len(logits):
        kept &= scaled >= scaled[order[top_k - 1]]
    if top_p < 1:
        cumulative = np.cumsum(np.where(kept, weights, 0)[order])
        kept &= scaled >= scaled[order[np.searchsorted(cumulative, top_p * cumulative[-1])]]
    return np.cumsum(np.where(kept & (weights >= min_p), weights, 0))


def wrong(ids, cumulative, numbers):
    """Which of the ids are none that the numbers fall on, give or take the last bit."""
    first, last = (
        np.searchsorted(cumulative, (numbers.astype("float64") + step) * cumulative[-1], "right")
        for step in (-TIE, TIE)
    )
    return (ids < first) | (ids > last)


@pytest.mark.parametrize(
    ("vocabulary", "copies", "calls", "xla"),
    [(260, 20, 5, False), (50257, 1, 8, False), (250000, 1, 2, False), (260, 2, 1, True), (50257, 1, 1, True)],
)
def test_draws_are_those_of_a_softmax_in_float64(vocabulary, copies, calls, xla):
    if xla and BACKEND != "tensorflow":
        pytest.skip("TensorFlow's")
    cases = [(logits, options) for logits in distributions(vocabulary) for options in FILTERS]
    rows = len(cases) * copies
    chosen = {
        name: np.tile([options.get(name, default) for _, options in cases], copies)
        for name, default in (("temperature", 1.0), ("top_k", 0), ("top_p", 1.0), ("min_p", 0.0))
    }
    options = options_for(rows, **chosen, seed=np.arange(rows))
    logits = np.tile(np.stack([logits for logits, _ in cases]), (copies, 1))
    tensors = ops.convert_to_tensor(logits), {name: ops.convert_to_tensor(value) for name, value in options.items()}
    seen = ops.zeros((rows, 1))
    run = compiled(lambda logits, options, position: sample(logits, options, seen, position), xla)
    borders = [reference(logits, **options) for logits, options in cases]
    for call in range(calls):
        position = np.full(rows, call, "int32")
        ids = ops.convert_to_numpy(run(*tensors, ops.convert_to_tensor(position)))
        numbers = runtime_sampler.uniform(options["seed"], position)
        for case, cumulative in enumerate(borders):
            faults = wrong(ids[case :: len(cases)], cumulative, numbers[case :: len(cases)])
            assert not faults.any(), (case, np.flatnonzero(faults))
    some = slice(0, 300)  # the last call once more, in NumPy
    ours = runtime_sampler.sample(logits[some], {name: value[some] for name, value in options.items()}, None, call)
    for row, token in enumerate(ours):
        assert not wrong(token, borders[row % len(cases)], numbers[row]), row


WIDTH = 60001


@functools.cache
def position_of(number):
    """A position whose random number, with seed 0, is near a number."""
    return int(np.argmin(np.abs(runtime_sampler.uniform(0, np.arange(2**20)) - number)))


@functools.cache
def sample_of_one_row():
    return compiled(lambda logits, options, position: sample(logits, options, ops.zeros((1, 1)), position))


def chosen_at(number, logits, **options):
    """The id that falls on a random number near the given one, and that number; on the backend as in NumPy."""
    position = np.array([position_of(number)], "int32")
    row = np.full((1, WIDTH), -np.inf, "float32")  # one width, so that it is compiled once
    row[0, : len(logits)] = logits
    options = options_for(1, **options)
    token = int(ops.convert_to_numpy(sample_of_one_row()(row, options, position))[0])
    assert token == runtime_sampler.sample(row, options, None, position)[0]
    return token, runtime_sampler.uniform(0, position[0])


def groups(*depths):
    """Logits of one best id and then of 20,000 ids at each depth below it."""
    return np.float32(np.concatenate([[0.0], -np.repeat(depths, 20000)]))


@pytest.mark.parametrize(("options", "last"), [({"top_k": 20001}, 20000), ({"top_p": 0.9996}, 40000)])
def test_filters_tell_apart_what_lies_far_below_the_best(options, last):
    # The groups hold 2.2e-3, 5.0e-4 and 3.0e-4 of the whole.
    logits = groups(48.0, 52.5, 54.0)
    token, number = chosen_at(1 - 1e-6, logits, temperature=3.0, **options)
    assert last - 20000 < token <= last
    assert not wrong(token, reference(logits, 3.0, **options), number)


@pytest.mark.parametrize("depth", [21.0, 23.0])
def test_what_lies_very_far_below_the_best_is_still_drawn(depth):
    logits = groups(depth, depth, depth)
    token, number = chosen_at(1 - 30000 * np.exp(-depth), logits, temperature=1.0)
    assert token > 0 and not wrong(token, reference(logits, 1.0), number)


def test_filters_tell_apart_what_is_nearly_equal():
    logits = [-(2.0**-18), 0.0, -(2.0**-18)]
    for number in (0.01, 0.99):
        assert chosen_at(number, logits, temperature=1.0, top_k=1)[0] == 1
        assert chosen_at(number, logits, temperature=1.0, top_p=0.3)[0] == 1
    assert chosen_at(0.99, logits, temperature=1.0, top_k=2)[0] == 2  # equals are kept together


@pytest.mark.parametrize(("temperature", "gap"), [(1e-5, 1e-5), (1e-9, 1e-6), (1e5, 1e5), (1e8, 1e6)])
def test_temperatures_are_held_between_1e_minus_6_and_1e6(temperature, gap):
    share = np.e / (1 + np.e)
    assert chosen_at(share - 0.02, [gap, 0.0], temperature=temperature)[0] == 0
    assert chosen_at(share + 0.02, [gap, 0.0], temperature=temperature)[0] == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_of_any_size_are_told_apart(temperature):
    options = options_for(5, temperature=temperature)
    logits = np.array(
        [
            [1e30, 2e30, -1e30],
            [3e38, np.inf, np.nan],
            [-np.inf, -1e35, np.nan],
            [-1e36, -1e37, 5.0],
            [0.0, 3.0, 3e38],
        ],
        "float32",
    )
    arguments = (logits, options, np.zeros_like(logits), np.zeros(5, "int32"), (2,))
    assert ops.convert_to_numpy(sample(*arguments)).tolist() == [1, 1, 1, 0, 1]
    assert runtime_sampler.sample(*arguments).tolist() == [1, 1, 1, 0, 1]


def test_all_ids_suppressed_is_refused():
    for function in (sample, runtime_sampler.sample):
        with pytest.raises(ValueError, match="must leave an id"):
            function(np.zeros((1, 2), "float32"), options_for(1), np.zeros((1, 2)), np.zeros(1, "int32"), (0, 1))


def test_a_vocabulary_whose_sums_would_overflow_is_refused():
    logits = np.zeros((1, exact_sums.VOCABULARIES), "float32")
    for function in (sample, runtime_sampler.sample):
        with pytest.raises(ValueError, match="smaller than 1048576"):
            function(logits, options_for(1), logits, np.zeros(1, "int32"))
