"""The NumPy sampler is the model's: equal draws over random cases, and a margin that tells where they may differ."""

import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_seqlm.generation import random, samplers
from seqlm_runtime.sampler import sample, uniform

BORDER = 1e-4


def random_cases(rows, vocabulary, seed):
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(rows, vocabulary)) * rng.uniform(0.5, 5, (rows, 1))).astype("float32")
    options = samplers.options_for(
        rows,
        temperature=rng.choice([0.0, 0.3, 0.8, 1.0, 1.6], rows),
        top_k=rng.choice([0, 0, 1, 5, 40, vocabulary, 10 * vocabulary], rows),
        top_p=rng.choice([1.0, 1.0, 0.9, 0.5, 0.1], rows),
        min_p=rng.choice([0.0, 0.0, 0.05, 0.3, 1.0], rows),
        repetition_penalty=rng.choice([1.0, 1.3, 0.8], rows),
        seed=rng.integers(0, 2**31, rows),
    )
    seen = (rng.random((rows, vocabulary)) < 0.1).astype("float32")
    return logits, options, seen, rng.integers(0, 2000, rows).astype("int32")


@pytest.mark.backends
def test_uniform_equals_the_backends_bit_by_bit():
    rng = np.random.default_rng(4)
    seeds, positions = rng.integers(-(2**31), 2**31, (2, 500)).astype("int32")
    assert uniform(seeds, positions).tolist() == keras.ops.convert_to_numpy(random.uniform(seeds, positions)).tolist()
    assert uniform(5, 7).dtype == np.float32
    assert uniform(5, 7) == uniform([5], [7])[0]


@pytest.mark.backends
@pytest.mark.parametrize(("rows", "vocabulary"), [(500, 260), (60, 5000)])
def test_ids_equal_the_backends(rows, vocabulary):
    logits, options, seen, position = random_cases(rows, vocabulary, seed=rows)
    theirs = keras.ops.convert_to_numpy(samplers.sample(logits, options, seen, position, (0, 1, 3)))
    ours, margin = sample(logits, options, seen, position, (0, 1, 3), with_margin=True)
    assert ours.dtype == np.int32
    clear = margin >= BORDER
    assert clear.mean() > 0.85
    assert ours[clear].tolist() == theirs[clear].tolist()


def test_top_p_that_the_best_id_reaches_to_the_last_bit():
    logits = np.array([0.0, -np.log(2), -np.log(4), -np.log(4)], "float32")  # 1/2, 1/4, 1/8, 1/8
    rows = np.tile(logits, (200, 1))
    assert set(sample(rows, {"temperature": 1.0, "top_p": 0.5}, position=np.arange(200))) == {0}
    assert set(sample(rows, {"temperature": 1.0, "top_p": 0.51}, position=np.arange(200))) == {0, 1}


@pytest.mark.parametrize("min_p", [1.5, np.inf])
def test_min_p_above_1_keeps_the_best(min_p):
    assert sample(np.array([0.0, 3.0, 2.0], "float32"), {"temperature": 1.0, "min_p": min_p}) == 1


def test_margin_covers_a_change_of_logits_within_rounding():
    logits, options, seen, position = random_cases(600, 100, seed=2)
    ours, margin = sample(logits, options, seen, position, with_margin=True)
    noise = np.random.default_rng(9).uniform(-2e-6, 2e-6, logits.shape).astype("float32")
    moved = sample(logits + noise, options, seen, position)
    assert set(np.flatnonzero(ours != moved)) <= set(np.flatnonzero(margin < BORDER))


def test_margin_of_a_greedy_row_is_the_gap_of_the_two_best():
    ids, margin = sample([[1.0, 5.0, 4.75, 0.0]], {"temperature": 0.0}, with_margin=True)
    assert (ids.tolist(), margin.tolist()) == ([1], [0.25])
    assert sample([[1.0]], {}, with_margin=True)[1].tolist() == [np.inf]


def test_margin_of_a_sampled_row_is_the_distance_to_the_nearest_border():
    seed = next(seed for seed in range(100) if 0.55 < uniform(seed, 3) < 0.65)
    ids, margin = sample(np.log([0.5, 0.25, 0.25]), {"temperature": 1.0, "seed": seed}, position=3, with_margin=True)
    assert ids.tolist() == [1]
    np.testing.assert_allclose(margin, [uniform(seed, 3) - 0.5], atol=1e-6)


def test_margin_tells_of_two_ids_about_to_change_places_at_the_edge_of_top_k():
    logits = np.log([0.5, 0.25, 0.25]) + [0.0, 1e-5, 0.0]
    seed = next(seed for seed in range(100) if 0.7 < uniform(seed, 0) < 0.9)
    ids, margin = sample(logits, {"temperature": 1.0, "top_k": 2, "seed": seed}, with_margin=True)
    assert ids.tolist() == [1]  # the other of the two would come with the next rounding
    assert margin[0] < 2e-5
    assert sample(logits, {"temperature": 1.0, "top_k": 1, "seed": seed}, with_margin=True)[1][0] > 0.1


def test_margin_ignores_an_edge_too_small_to_reach_the_draw():
    logits = np.log([0.6, 0.4, 1e-6, 1e-6])
    seed = next(seed for seed in range(100) if 0.2 < uniform(seed, 0) < 0.4)
    _, margin = sample(logits, {"temperature": 1.0, "top_k": 3, "seed": seed}, with_margin=True)
    assert margin[0] > 0.15


def test_one_row_of_one_dimension_and_options_as_single_numbers():
    assert sample(np.array([0.0, 1.0, 3.0, 2.0]), {"temperature": 0}, suppressed_ids=[2]).tolist() == [3]
    penalised = {"temperature": 0.0, "repetition_penalty": 2.0}
    assert sample([0.0, 1.0, 3.0, 2.0], penalised, seen=[0, 0, 1, 0]).tolist() == [3]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_rows_still_give_a_valid_id(temperature):
    logits = np.full((3, 5), [[np.nan], [np.inf], [-np.inf]], np.float32)
    ids = sample(logits, {"temperature": temperature, "top_k": 2, "top_p": 0.5}, suppressed_ids=(0, 4))
    assert set(ids.tolist()) <= {1, 2, 3}


def test_unknown_option_is_refused():
    with pytest.raises(ValueError, match=r"\['topk'\]"):
        sample([0.0, 1.0], {"topk": 3})


def test_it_needs_numpy_alone():
    script = "import sys, seqlm_runtime.sampler; print([m for m in ('keras', 'tensorflow', 'keras_seqlm') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
