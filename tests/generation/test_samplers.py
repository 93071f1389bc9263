"""The sampler: each filter against hand-made distributions, rows that do not touch each other, no XLA in the graph."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from cases import on_all
from keras import ops

from keras_seqlm.generation import samplers
from keras_seqlm.generation.random import uniform
from keras_seqlm.generation.samplers import OPTIONS, clamp, options_for, sample, uses_of
from seqlm_runtime import sampler as runtime_sampler

pytestmark = pytest.mark.neutral

BACKEND = keras.backend.backend()


def run(logits, options, seen=None, position=None, suppressed_ids=(), uses=None):
    """The ids of `sample` as a list, compiled as a server or a trainer would run it."""
    logits = np.asarray(logits, "float32")
    seen = np.zeros_like(logits) if seen is None else np.asarray(seen, "float32")
    position = np.zeros(len(logits), "int32") if position is None else np.asarray(position, "int32")

    def function(logits, options, seen, position):
        return sample(logits, options, seen, position, suppressed_ids, uses)

    if BACKEND == "jax":
        import jax

        function = jax.jit(function)
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        function = tf.function(function)
    ids = function(logits, options, seen, position)
    assert keras.backend.standardize_dtype(ids.dtype) == "int32"
    return ops.convert_to_numpy(ids).tolist()


def draws(logits, count=4000, **options):
    """How often each id is drawn from one row of logits, over `count` positions."""
    options = options_for(count, **({"temperature": 1.0} | options))
    ids = run(np.tile(logits, (count, 1)), options, position=np.arange(count))
    return np.bincount(ids, minlength=len(logits)) / count


def softmax(logits):
    weights = np.exp(np.asarray(logits) - np.max(logits))
    return weights / weights.sum()


def test_greedy_takes_the_best_and_of_equals_the_lowest_id():
    assert run([[0, 2, 1, 2], [5, 1, 1, 1], [1, 1, 1, 1]], options_for(3)) == [1, 0, 0]


@pytest.mark.backends
def test_suppressed_ids_are_never_chosen():
    assert run([[9, 8, 7, 6]], options_for(1), suppressed_ids=(0, 1)) == [2]
    options = options_for(500, temperature=1e6)
    ids = run(np.tile([9.0, 8.0, 7.0, 6.0], (500, 1)), options, position=np.arange(500), suppressed_ids=(0, 3))
    assert set(ids) == {1, 2}


def test_suppressed_id_outside_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match=r"0 \.\.\. 3.*\[4\]"):
        run([[9, 8, 7, 6]], options_for(1), suppressed_ids=(4,))


@pytest.mark.backends
def test_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    options = options_for(2, repetition_penalty=2.0)
    # 4 / 2 = 2 falls below 3; -1 * 2 = -2 falls below -1.5.
    assert run([[4, 3, 0], [-1, -1.5, -9]], options, seen=[[1, 0, 0], [1, 0, 0]]) == [1, 1]
    assert run([[4, 3, 0], [-1, -1.5, -9]], options, seen=[[0, 0, 0], [0, 1, 0]]) == [0, 0]


def test_draws_follow_the_distribution():
    logits = np.log([0.4, 0.3, 0.2, 0.1])
    np.testing.assert_allclose(draws(logits), [0.4, 0.3, 0.2, 0.1], atol=0.03)
    np.testing.assert_allclose(draws(logits, temperature=0.5), softmax(logits / 0.5), atol=0.03)


@pytest.mark.backends
def test_top_k_keeps_k_ids_in_their_proportions():
    logits = np.log([0.1, 0.4, 0.2, 0.3])
    np.testing.assert_allclose(draws(logits, top_k=2), [0, 4 / 7, 0, 3 / 7], atol=0.03)
    assert draws(logits, count=200, top_k=1)[1] == 1.0
    assert np.count_nonzero(draws(logits, top_k=4)) == np.count_nonzero(draws(logits, top_k=400)) == 4


@pytest.mark.backends
def test_top_p_keeps_the_fewest_ids_that_reach_the_mass():
    logits = np.log([0.1, 0.4, 0.2, 0.3])
    np.testing.assert_allclose(draws(logits, top_p=0.69), [0, 4 / 7, 0, 3 / 7], atol=0.03)
    np.testing.assert_allclose(draws(logits, top_p=0.71), [0, 4 / 9, 2 / 9, 3 / 9], atol=0.03)
    assert draws(logits, count=200, top_p=1e-6)[1] == 1.0


def test_top_p_counts_the_mass_of_what_top_k_kept():
    # Of 0.4 and 0.3 the first has 0.57 of the mass: enough for 0.5, though it has 0.4 of the whole.
    assert draws(np.log([0.1, 0.4, 0.2, 0.3]), count=200, top_k=2, top_p=0.5)[1] == 1.0


def test_min_p_keeps_a_fraction_of_the_best():
    logits = np.log([0.1, 0.4, 0.2, 0.3])
    np.testing.assert_allclose(draws(logits, min_p=0.6), [0, 4 / 7, 0, 3 / 7], atol=0.03)
    assert draws(logits, count=200, min_p=1.0)[1] == 1.0


def test_an_id_of_probability_zero_is_never_drawn():
    frequencies = draws([-np.inf, 0.0, -200.0, 0.0, np.nan], count=3000)
    assert frequencies[[0, 2, 4]].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("number", "expected"), [(0.0, 1), (1 - 2.0**-24, 3)])
def test_the_ends_of_the_random_numbers_fall_on_ids_of_positive_probability(monkeypatch, number, expected):
    monkeypatch.setattr(samplers, "uniform", lambda seed, position: ops.full(ops.shape(seed), number, dtype="float32"))
    logits = [[-np.inf, 0.0, 0.1, 0.3, -np.inf]]
    assert run(logits, options_for(1, temperature=1.0)) == [expected]


def mixed_batch(rows=12, vocabulary=50):
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 2, (rows, vocabulary)).astype("float32")
    options = options_for(
        rows,
        temperature=rng.choice([0.0, 0.7, 1.5], rows),
        top_k=rng.choice([0, 3, 10], rows),
        top_p=rng.choice([1.0, 0.8], rows),
        min_p=rng.choice([0.0, 0.1], rows),
        repetition_penalty=rng.choice([1.0, 1.4], rows),
        seed=rng.integers(0, 2**31, rows),
    )
    seen = (rng.random((rows, vocabulary)) < 0.2).astype("float32")
    return logits, options, seen, rng.integers(0, 99, rows).astype("int32")


@pytest.mark.backends
def test_a_row_alone_is_the_row_in_a_batch():
    logits, options, seen, position = mixed_batch()
    together = run(logits, options, seen, position)
    for row in range(0, len(logits), 3):
        alone = {name: values[row : row + 1] for name, values in options.items()}
        assert run(logits[[row]], alone, seen[[row]], position[[row]]) == [together[row]]


def test_a_row_does_not_feel_the_filters_of_another():
    count = 300
    logits = np.tile(np.log([0.4, 0.3, 0.2, 0.1]), (count, 1))
    plain = options_for(count, temperature=1.0)
    ids = run(logits, plain, position=np.arange(count))
    filtered = options_for(count, temperature=1.0, top_k=[1] + [0] * (count - 1), top_p=[0.1] + [1.0] * (count - 1))
    assert run(logits, filtered, position=np.arange(count))[1:] == ids[1:]


@pytest.mark.backends
def test_what_is_not_used_is_left_out_and_changes_nothing():
    logits, options, seen, position = mixed_batch()
    together = run(logits, options, seen, position)
    assert run(logits, options, seen, position, uses=uses_of(options)) == together
    for row in range(0, len(logits), 4):
        alone = {name: values[row : row + 1] for name, values in options.items()}
        assert run(logits[[row]], alone, seen[[row]], position[[row]], uses=uses_of(alone)) == [together[row]]


def test_what_uses_does_not_name_is_not_computed():
    logits = np.log([[0.1, 0.4, 0.2, 0.3]] * 300)
    options = options_for(300, temperature=1.0, top_k=1, top_p=0.1, min_p=1.0, repetition_penalty=9.0)
    seen, position = [[0, 1, 0, 0]] * 300, np.arange(300)
    assert set(run(logits, options, seen, position, uses=frozenset())) == {1}
    plain = run(logits, options_for(300, temperature=1.0), None, position)
    assert run(logits, options, seen, position, uses=frozenset({"temperature"})) == plain


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, set()),
        ({"top_k": 5, "top_p": 0.5, "min_p": 0.1, "seed": 3}, set()),  # greedy rows have no use for a filter
        ({"temperature": [0.0, 0.5], "top_k": [5, 0]}, {"temperature"}),
        ({"temperature": [0.0, 0.5], "top_k": [0, 5]}, {"temperature", "top_k"}),
        ({"temperature": 1.0, "top_p": [1.0, 0.9], "min_p": [0.1, 0.0]}, {"temperature", "top_p", "min_p"}),
        ({"repetition_penalty": [1.0, 0.9]}, {"repetition_penalty"}),
    ],
)
def test_uses_of(options, names):
    assert uses_of(options_for(2, **options)) == frozenset(names)


def test_unknown_use_is_refused():
    with pytest.raises(ValueError, match=r"uses must be .* got \['heat'\]"):
        run([[0.0, 1.0]], options_for(1), uses=frozenset({"heat"}))


@pytest.mark.backends
def test_a_random_number_that_is_known_already_is_taken():
    logits = np.zeros((4, 100), "float32")
    options = options_for(4, temperature=1.0, seed=[0, 1, 2, 3])
    position = np.arange(4).astype("int32")
    numbers = uniform(options["seed"], position)
    ids = sample(logits, options, logits, position, uses=uses_of(options), numbers=numbers)
    assert ops.convert_to_numpy(ids).tolist() == run(logits, options, position=position)
    numbers = np.array([0.0, 0.255, 0.505, 0.995], "float32")
    ids = sample(logits, options, logits, position, numbers=ops.convert_to_tensor(numbers))
    assert ops.convert_to_numpy(ids).tolist() == [0, 25, 50, 99]


@pytest.mark.skipif(BACKEND != "torch", reason="counts torch's operations")
@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({}, 4),
        ({"temperature": 0.8}, 23),
        ({"temperature": 0.8, "top_k": 5}, 50),
        ({"temperature": 0.8, "top_p": 0.9}, 56),
        ({"temperature": 0.8, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.2}, 88),
    ],
)
def test_on_torch_nothing_waits_for_the_device_and_few_kernels_run(options, most):
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    # What reads a value on the host, and how a Python number or an array of the host becomes a tensor.
    waits = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal.", "lift_fresh", "_to_copy.device")
    views = ("slice", "select", "unsqueeze", "view", "expand", "detach", "t.", "squeeze", "alias")
    kernels = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), named=None):
            name = str(function).removeprefix("aten.")
            assert not name.startswith(waits), name
            assert not (name.startswith("_to_copy") and (named or {}).get("device") is not None), name
            if not name.startswith(views):
                kernels.append(name)
            return function(*arguments, **(named or {}))

    options = options_for(2, **options)
    uses = uses_of(options)
    logits, seen = torch.randn(2, 50), torch.zeros(2, 50)
    tensors = {name: ops.convert_to_tensor(values) for name, values in options.items()}
    position = torch.tensor([3, 4], dtype=torch.int32)
    numbers = uniform(tensors["seed"], position)
    sample(logits, tensors, seen, position, (0, 1), uses, numbers)  # makes the mask of the suppressed ids, once
    with Watch():
        ids = sample(logits, tensors, seen, position, (0, 1), uses, numbers)
    assert ids.shape == (2,)
    assert len(kernels) <= most, (len(kernels), kernels)
    del kernels[:]
    with Watch():
        uniform(tensors["seed"], position)  # waits for nothing either


@pytest.mark.backends
def test_seed_and_position_decide_the_draw():
    logits = np.zeros((4, 1000))
    options = options_for(4, temperature=1.0, seed=[1, 1, 2, 1])
    first, same, other_seed, other_position = run(logits, options, position=[7, 7, 7, 8])
    assert first == same
    assert len({first, other_seed, other_position}) == 3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", on_all([np.nan, np.inf, -np.inf], 0))
def test_broken_rows_still_give_a_valid_id(temperature, value):
    logits = np.stack([np.full(5, value), np.array([0, value, 1, 0, 0])]).astype("float32")
    options = options_for(2, temperature=temperature, top_k=3, top_p=0.9)
    ids = run(logits, options, suppressed_ids=(0, 4))
    assert set(ids) <= {1, 2, 3}


@pytest.mark.parametrize("temperature", on_all([1e-30, 1e-6, 1e6, 3e38], 0))
def test_extreme_temperatures(temperature):
    frequencies = draws([0.0, 1.0, 2.0], count=600, temperature=temperature)
    expected = [0, 0, 1] if temperature < 1 else [1 / 3, 1 / 3, 1 / 3]
    np.testing.assert_allclose(frequencies, expected, atol=0.08)


def test_empty_batch():
    assert run(np.zeros((0, 7)), options_for(0, temperature=1.0, top_k=2)) == []


@pytest.mark.backends
def test_in_a_loop_it_writes_what_it_writes_step_by_step():
    table = np.random.default_rng(8).normal(0, 2, (9, 9)).astype("float32")
    options = options_for(2, temperature=[0.0, 1.3], top_k=5, seed=3)

    def step(index, tokens, written):
        logits = ops.take(ops.convert_to_tensor(table), tokens, axis=0)
        position = ops.cast(ops.zeros_like(tokens) + index, "int32")
        tokens = sample(logits, options, ops.zeros_like(logits), position, (0,))
        return index + 1, tokens, written * 9 + tokens

    def loop(start):
        state = (ops.convert_to_tensor(0, dtype="int32"), start, ops.zeros_like(start))
        return ops.while_loop(lambda index, *_: index < 6, step, state)[2]

    if BACKEND == "tensorflow":
        import tensorflow as tf

        loop = tf.function(loop)
    written = ops.convert_to_numpy(loop(ops.convert_to_tensor([1, 1], dtype="int32"))).tolist()

    tokens, expected = [1, 1], [0, 0]
    for index in range(6):
        tokens = run(table[tokens], options, position=[index] * 2, suppressed_ids=(0,))
        expected = [total * 9 + token for total, token in zip(expected, tokens, strict=True)]
    assert written == expected


@pytest.mark.tensorflow
@pytest.mark.skipif(BACKEND != "tensorflow", reason="looks into a TensorFlow graph")
def test_graph_has_no_xla_op_and_takes_any_batch():
    import tensorflow as tf

    specs = {name: tf.TensorSpec([None], dtype) for name, (dtype, _) in OPTIONS.items()}
    rows = tf.TensorSpec([None, 40], tf.float32)
    function = tf.function(lambda logits, options, seen, at: sample(logits, clamp(options), seen, at, (0, 1)))
    concrete = function.get_concrete_function(rows, specs, rows, tf.TensorSpec([None], tf.int32))
    definition = concrete.graph.as_graph_def()
    nodes = list(definition.node) + [node for inner in definition.library.function for node in inner.node_def]
    operations = {node.op for node in nodes}
    assert not {op for op in operations if op.startswith("Xla") or "Random" in op or "Sort" in op or "TopK" in op}
    assert not [node for node in nodes if node.attr["_XlaMustCompile"].b]
    assert concrete(tf.zeros([3, 40]), options_for(3), tf.zeros([3, 40]), tf.zeros([3], tf.int32)).shape == (3,)


@pytest.mark.tensorflow
@pytest.mark.skipif(BACKEND != "tensorflow" or sys.platform != "linux", reason="needs TensorFlow's C library")
def test_a_server_without_xla_draws_what_the_runtime_draws(tmp_path):
    import tensorflow as tf

    rows, options, seen, position = mixed_batch()
    specs = [tf.TensorSpec([None], dtype, name) for name, (dtype, _) in OPTIONS.items()]
    wide = [tf.TensorSpec([None, rows.shape[1]], tf.float32, name) for name in ("logits", "seen")]
    module = tf.Module()

    @tf.function(input_signature=[*wide, tf.TensorSpec([None], tf.int32, "position"), *specs])
    def served(logits, seen, position, *values):
        return {"ids": sample(logits, clamp(dict(zip(OPTIONS, values, strict=True))), seen, position, (0, 1))}

    module.served = served
    tf.saved_model.save(module, str(tmp_path / "1"), signatures={"sample": served})
    np.savez(tmp_path / "inputs.npz", logits=rows, seen=seen, position=position, **options)
    # XLA can only be switched off for a whole process.
    script = (
        "import sys, numpy as np; from seqlm_runtime import SavedModel; inputs = dict(np.load(sys.argv[2]));"
        "print(SavedModel(sys.argv[1], trusted=True).run('sample', **inputs)['ids'].tolist())"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "1"), str(tmp_path / "inputs.npz")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    expected = runtime_sampler.sample(rows, options, seen, position, (0, 1)).tolist()
    assert result.stdout.strip().splitlines()[-1] == str(expected)


@pytest.mark.tensorflow
@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow has unknown sizes")
def test_unknown_vocabulary_is_refused():
    import tensorflow as tf

    rows = tf.TensorSpec([1, None], tf.float32)
    function = tf.function(lambda logits: sample(logits, options_for(1), logits, np.zeros(1, "int32")))
    with pytest.raises(ValueError, match="known vocabulary"):
        function.get_concrete_function(rows)


def test_options_for_spreads_single_values_over_the_rows():
    options = options_for(3, temperature=0.5, top_k=[1, 2, 3], seed=9)
    assert list(options) == list(OPTIONS)
    assert options["temperature"].tolist() == [0.5] * 3
    assert options["top_k"].tolist() == [1, 2, 3]
    assert options["seed"].tolist() == [9, 9, 9]
    assert {name: values.dtype for name, values in options.items()} == {
        name: np.dtype(dtype) for name, (dtype, _) in OPTIONS.items()
    }


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("temperature", value) for value in (-0.1, np.nan, np.inf, "warm", None)],
        *[("top_k", value) for value in (-1, 2.5, 2**31)],
        *[("top_p", value) for value in (0, -1, 1.01, np.nan)],
        *[("min_p", value) for value in (-0.1, 1.1, np.nan)],
        *[("repetition_penalty", value) for value in (0, -1, np.nan, np.inf)],
        *[("seed", value) for value in (-1, 2**31, 2**80, 0.5)],
    ],
)
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(ValueError, match=f"{option} must be"):
        options_for(2, **{option: value})
    if not isinstance(value, str):
        with pytest.raises(ValueError, match=f"{option} must be"):
            options_for(2, **{option: [OPTIONS[option][1], value]})


def test_options_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"top_p must be one value or one per row, here 2; .*\(3,\)"):
        options_for(2, top_p=[0.5, 0.5, 0.5])


def test_clamp_brings_any_request_into_range():
    wild = {
        "temperature": [np.nan, -1, np.inf, -np.inf, 0.7],
        "top_k": [-5, 0, 3, 2**31 - 1, -(2**31)],
        "top_p": [np.nan, 2, 0, -np.inf, 0.9],
        "min_p": [np.nan, -1, 2, np.inf, 0.1],
        "repetition_penalty": [np.nan, 0, -1, np.inf, 1.2],
        "seed": [-1, 0, 5, 2**31 - 1, -(2**31)],
    }
    wild = {name: np.array(values, OPTIONS[name][0]) for name, values in wild.items()}
    tame = {name: ops.convert_to_numpy(values) for name, values in clamp(wild).items()}
    np.testing.assert_allclose(tame["temperature"], [0, 0, 1e6, 0, 0.7])
    assert tame["top_k"].tolist() == [0, 0, 3, 2**31 - 1, 0]
    np.testing.assert_allclose(tame["top_p"], [1, 1, 1e-6, 1e-6, 0.9])
    np.testing.assert_allclose(tame["min_p"], [0, 0, 1, 1, 0.1])
    np.testing.assert_allclose(tame["repetition_penalty"], [1, 1, 1, 1e6, 1.2])
    ids = run(np.tile([0.0, 3.0, 1.0], (5, 1)), tame, seen=np.ones((5, 3)))
    assert set(ids) <= {0, 1, 2}
    assert ids[:2] == [1, 1]
