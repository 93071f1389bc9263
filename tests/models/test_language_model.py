"""The contract, for every architecture: state in, state out."""

import keras
import numpy as np
import pytest
from helpers import (
    CONTEXT,
    MODELS,
    VOCABULARY,
    array,
    arrays,
    compile_plainly,
    cross_entropy,
    ids_of,
    new_model,
    run,
    tiny,
    whole_logits,
)
from keras import ops

from keras_seqlm.models import LanguageModel, RecurrentLM

pytestmark = pytest.mark.neutral

TOLERANCE = 1e-5
ON_ALL_BACKENDS = ("lstm", "rotary")
MARKED = [pytest.param(name, marks=pytest.mark.backends) if name in ON_ALL_BACKENDS else name for name in MODELS]
every_model = pytest.mark.parametrize("name", MARKED)
TRANSFORMERS = [name for name in MODELS if name not in ("rnn", "gru", "lstm")]


def call(model, inputs, state):
    return model(inputs, state=state)


def whole(model, inputs):
    return model(inputs)


def read(model, ids, lengths, state):
    """One call with state; the leaves as NumPy, so that each call starts from tensors of its own."""
    logits, state = run(model, call, {"token_ids": ids, "lengths": np.asarray(lengths, "int32")}, state)
    return array(logits), arrays(state)


def read_whole(model, ids, **inputs):
    return array(run(model, whole, {"token_ids": ids, **inputs}))


def read_in_chunks(model, ids, table, garbage=7):
    """Feed `table[k][r]` tokens of row r in call k, garbage behind them; the logits at the real places in order."""
    rows = len(ids)
    state, done, logits = model.initial_state(rows), np.zeros(rows, int), [[] for _ in range(rows)]
    for lengths in table:
        chunk = np.full((rows, 8 if max(lengths) > 1 else 1), garbage, "int32")
        for row, length in enumerate(lengths):
            chunk[row, :length] = ids[row, done[row] : done[row] + length]
        new, state = read(model, chunk, lengths, state)
        for row, length in enumerate(lengths):
            logits[row].extend(new[row, :length])
        done += lengths
        np.testing.assert_array_equal(state["position"], done)
    return [np.array(row) for row in logits], state


@every_model
def test_prompt_and_steps_equal_the_whole_pass(name):
    """Ragged prompts, then one token at a time; a row that has all its tokens stands idle."""
    model, ids = tiny(name), ids_of(3, 12)
    expected = read_whole(model, ids)
    prompts = [5, 1, 8]
    steps = [[1 if prompts[row] + k < 12 else 0 for row in range(3)] for k in range(11)]
    logits, _ = read_in_chunks(model, ids, [prompts, *steps])
    for row in range(3):
        np.testing.assert_allclose(logits[row], expected[row], atol=TOLERANCE)
    assert np.abs(expected).max() > 0.1  # not a comparison of zeros


@every_model
def test_prompts_continue_in_ragged_chunks(name):
    model, ids = tiny(name), ids_of(3, 12)
    expected = read_whole(model, ids)
    table = [[5, 0, 1], [0, 5, 5], [4, 1, 0], [3, 5, 5], [0, 1, 1]]
    logits, _ = read_in_chunks(model, ids, table)
    for row in range(3):
        np.testing.assert_allclose(logits[row], expected[row], atol=TOLERANCE)


@every_model
def test_garbage_in_the_padding_changes_nothing(name):
    model, ids = tiny(name), ids_of(3, 12)
    table = [[5, 0, 2], [1, 4, 0], [4, 2, 5]]
    left, left_state = read_in_chunks(model, ids, table, garbage=0)
    right, right_state = read_in_chunks(model, ids, table, garbage=VOCABULARY - 1)
    for row in range(3):
        np.testing.assert_array_equal(left[row], right[row])
    for leaf, end in left_state.items():
        np.testing.assert_array_equal(end, right_state[leaf])


@every_model
def test_a_row_alone_is_the_row_in_a_batch(name):
    model, ids = tiny(name), ids_of(3, 12)
    together, _ = read_in_chunks(model, ids, [[5, 2, 4], [1, 1, 0], [1, 1, 1]])
    for row, table in enumerate(([[5], [1], [1]], [[2], [1], [1]], [[4], [1]])):
        alone, _ = read_in_chunks(model, ids[row : row + 1], table)
        np.testing.assert_allclose(alone[0], together[row], atol=TOLERANCE)


@every_model
def test_idle_rows_keep_their_state(name):
    model, ids = tiny(name), ids_of(3, 12)
    _, before = read_in_chunks(model, ids, [[4, 4, 2]])
    _, after = read(model, ids[:, 4:], [0, 2, 0], before)
    assert after["position"].tolist() == [4, 6, 2]
    for leaf, value in before.items():
        np.testing.assert_array_equal(after[leaf][[0, 2]], value[[0, 2]])
        assert np.abs(after[leaf][1].astype("float32") - value[1]).max() > 0


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@every_model
def test_leaves_keep_type_precision_and_batch_axis(name, dtype):
    model = tiny(name) if dtype == "float32" else new_model(name, dtype=dtype)
    state = model.initial_state(3)
    assert all(leaf.shape[0] == 3 and len(leaf.shape) <= 4 for leaf in state.values())
    assert "int32" in str(state["position"].dtype)
    # 1.001 is not a bfloat16; an idle row hands it back untouched.
    state = {leaf: array(value) if leaf == "position" else 1.001 + array(value) for leaf, value in state.items()}
    inputs = {"token_ids": ids_of(3, 8), "lengths": np.array([0, 5, 0], "int32")}
    logits, after = run(model, call, inputs, state)
    assert "float32" in str(logits.dtype)
    assert sorted(after) == sorted(state)
    for leaf, value in after.items():
        assert tuple(value.shape) == state[leaf].shape
        assert str(state[leaf].dtype) in str(value.dtype)
        np.testing.assert_array_equal(array(value)[0], state[leaf][0])
        np.testing.assert_array_equal(array(value)[2], state[leaf][2])


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_cache_of_half_precision_stays_one(name):
    model = tiny(name)
    state = {
        leaf: ops.cast(value, "float16") if "cache" in leaf else value for leaf, value in model.initial_state(1).items()
    }
    _, after = model(ids_of(1, 3), state=state)
    assert all("float16" in str(value.dtype) for leaf, value in after.items() if "cache" in leaf)


@pytest.mark.parametrize("name", [pytest.param("learned", marks=pytest.mark.backends), *TRANSFORMERS[1:]])
def test_the_context_ends_with_an_error(name):
    model, ids = tiny(name), ids_of(2, CONTEXT)
    _, state = read(model, ids, [CONTEXT - 2, CONTEXT - 3], model.initial_state(2))
    token_ids = ids[:, :3]
    read(model, token_ids, [2, 3], state)  # fits to the last place
    with pytest.raises(ValueError, match="would be 33 tokens long; this model reads 32 at most"):
        model({"token_ids": token_ids, "lengths": np.array([3, 0], "int32")}, state=state)
    with pytest.raises(ValueError, match="would be 33 tokens long"):
        model(token_ids, state=state)
    with pytest.raises(ValueError, match="would be 33 tokens long"):
        model(ids_of(2, CONTEXT + 1), state=model.initial_state(2))


@pytest.mark.parametrize(
    "name", [pytest.param("rotary", marks=pytest.mark.backends), *TRANSFORMERS[:1], *TRANSFORMERS[2:]]
)
def test_padding_beyond_the_end_is_never_written(name):
    model, ids = tiny(name), ids_of(2, CONTEXT)
    expected = read_whole(model, ids)
    _, state = read(model, ids, [CONTEXT - 2, 20], model.initial_state(2))
    chunk = np.full((2, 8), 7, "int32")  # six places of row 0 lie behind the end of its cache
    chunk[0, :1], chunk[1] = ids[0, CONTEXT - 2], ids[1, 20:28]
    logits, after = read(model, chunk, [1, 8], state)
    np.testing.assert_allclose(logits[0, 0], expected[0, CONTEXT - 2], atol=TOLERANCE)
    np.testing.assert_allclose(logits[1], expected[1, 20:28], atol=TOLERANCE)
    for leaf in (leaf for leaf in after if "cache" in leaf):
        np.testing.assert_array_equal(after[leaf][0, :, : CONTEXT - 2], state[leaf][0, :, : CONTEXT - 2])
        np.testing.assert_array_equal(after[leaf][0, :, CONTEXT - 1 :], state[leaf][0, :, CONTEXT - 1 :])
    logits, _ = read(model, np.array([ids[0, -1:], ids[1, 28:29]]), [1, 1], after)
    np.testing.assert_allclose(logits[0, 0], expected[0, -1], atol=TOLERANCE)


@pytest.mark.backends
@pytest.mark.parametrize("name", ["learned", "rotary"])
def test_a_smaller_cache_is_enough_and_its_end_an_error(name):
    model, ids = tiny(name), ids_of(1, 12)
    state = model.initial_state(1, 12)
    assert state["kv_cache_k_0"].shape[2] == 12
    logits, state = read(model, ids, [12], state)
    np.testing.assert_allclose(logits[0], whole_logits(model, ids[0]), atol=TOLERANCE)
    with pytest.raises(ValueError, match="13 tokens long; this model reads 32 at most, and its state has room for 12"):
        model(ids[:, :1], state=state)


@every_model
def test_packed_documents_are_what_each_is_alone(name):
    model = tiny(name)
    ids = ids_of(3, 12)
    borders = [[4, 5, 12], [1, 12], [12]]
    segment_ids = np.zeros((3, 12), "int32")
    for row, ends in enumerate(borders):
        for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            segment_ids[row, start:end] = 3 - number  # numbers of any order
    logits = read_whole(model, ids, segment_ids=segment_ids)
    for row, ends in enumerate(borders):
        for start, end in zip([0, *ends], ends, strict=False):
            alone = whole_logits(model, ids[row, start:end])
            np.testing.assert_allclose(logits[row, start:end], alone, atol=TOLERANCE)
    assert np.abs(logits - read_whole(model, ids))[:2].max() > 1e-2  # a border matters


@pytest.mark.backends
@pytest.mark.parametrize("name", ["lstm", "rotary"])
def test_inputs_may_be_ids_a_dict_or_floats(name):
    model, ids = tiny(name), ids_of(3, 12)
    plain = read_whole(model, ids)
    for inputs in ({"token_ids": ids}, ids, ids.astype("float32"), ids.astype("uint8")):
        np.testing.assert_array_equal(array(run(model, whole, inputs)), plain)
    # Every leaf, as a symbolic build under a distribution strategy feeds them.
    segment_ids = np.repeat([[0.0] * 5 + [1.0] * 7], 3, axis=0)
    floats = array(run(model, whole, {"token_ids": ids.astype("float32"), "segment_ids": segment_ids}))
    np.testing.assert_array_equal(floats, read_whole(model, ids, segment_ids=segment_ids.astype("int32")))
    inputs = {"token_ids": ids[:, :8].astype("float32"), "lengths": np.array([2.0, 0.0, 8.0], "float32")}
    _, state = run(model, call, inputs, model.initial_state(3))
    assert "int32" in str(state["position"].dtype) and array(state["position"]).tolist() == [2, 0, 8]
    with pytest.raises(ValueError, match=r"needs 'token_ids', got a dict with \['ids'\]"):
        model({"ids": ids})


@pytest.mark.backends
@pytest.mark.parametrize("name", ["lstm", "rotary"])
def test_inputs_that_would_not_be_looked_at_are_refused(name):
    model, ids = tiny(name), ids_of(2, 5)
    state = model.initial_state(2)
    for other in ("attention_mask", "padding_mask", "segments_ids"):
        with pytest.raises(ValueError, match=f"reads token_ids, lengths, segment_ids, and would not look at {other}"):
            model({"token_ids": ids, other: np.ones((2, 5), "int32")})
    with pytest.raises(ValueError, match="segment_ids are for whole sequences, without a state"):
        model({"token_ids": ids, "segment_ids": ids}, state=state)
    for lengths in ([6, 2], [-1, 2]):
        inputs = {"token_ids": ids, "lengths": np.array(lengths, "int32")}
        for call in (lambda inputs: model(inputs, state=state), model, lambda inputs: model.read(inputs, 16)):
            with pytest.raises(ValueError, match=r"lengths must be from 0 to 5, the tokens of a row, got \["):
                call(inputs)


def test_float_ids_are_not_rounded_in_half_precision():
    model = new_model("gru", vocabulary_size=300, dtype="mixed_bfloat16")
    ids = np.array([[259, 257, 299]], "int32")
    np.testing.assert_array_equal(read_whole(model, ids.astype("float32")), read_whole(model, ids))


@pytest.mark.parametrize("name", MODELS)
def test_the_first_call_may_be_any(name):
    """With state, state given by position, NumPy leaves: on a model that has not been built."""
    kind, parts = MODELS[name]
    model = kind(VOCABULARY, **parts)
    logits, state = model(ids_of(2, 3), arrays(model.initial_state(2)))
    assert logits.shape == (2, 3, VOCABULARY)
    assert array(state["position"]).tolist() == [3, 3]


@pytest.mark.parametrize(
    ("name", "as_dict"), [("lstm", True), pytest.param("learned", False, marks=pytest.mark.backends)]
)
def test_fit_evaluate_and_predict_are_kerass(name, as_dict):
    model = compile_plainly(new_model(name), keras.optimizers.Adam(0.02))
    ids = ids_of(8, 9)
    x, y = ids[:, :-1], ids[:, 1:]
    inputs = {"token_ids": x} if as_dict else x
    logits = model.predict(inputs, batch_size=4, verbose=0)
    np.testing.assert_allclose(logits, array(model(x)), atol=TOLERANCE)
    assert model.evaluate(inputs, y, batch_size=8, verbose=0) == pytest.approx(cross_entropy(logits, y), abs=1e-5)
    weights = np.random.default_rng(0).random((8, 8)).astype("float32")
    weighted = model.evaluate(inputs, y, sample_weight=weights, batch_size=8, verbose=0)
    assert weighted == pytest.approx(cross_entropy(logits, y, weights), abs=1e-5)
    history = model.fit(inputs, y, sample_weight=np.ones((8, 8)), batch_size=4, epochs=6, verbose=0)
    assert history.history["loss"][-1] < 0.85 * history.history["loss"][0]


@pytest.mark.parametrize("name", ["gru", pytest.param("rotary", marks=pytest.mark.backends)])
def test_fit_reads_segment_ids(name):
    model = compile_plainly(new_model(name))
    ids, segment_ids = ids_of(4, 9), np.repeat([[0, 0, 0, 1, 1, 1, 1, 1]], 4, axis=0).astype("int32")
    inputs = {"token_ids": ids[:, :-1], "segment_ids": segment_ids}
    expected = cross_entropy(array(model(inputs)), ids[:, 1:])
    assert model.train_on_batch(inputs, ids[:, 1:]) == pytest.approx(expected, abs=1e-5)
    assert abs(model.test_on_batch({"token_ids": ids[:, :-1]}, ids[:, 1:]) - expected) > 1e-3


def test_what_a_subclass_must_write():
    model = LanguageModel()
    for call in (
        lambda: model.hidden_states({}),
        lambda: model.logits_of(None),
        lambda: model.initial_state(1),
        model.build,
    ):
        with pytest.raises(TypeError, match="LanguageModel must define"):
            call()


@pytest.mark.tensorflow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's functions may not make variables")
def test_tensorflow_traces_a_training_step_once():
    """The optimizer's variables are there before: the step that makes them would be traced anew without them."""
    traces = []

    class Counting(RecurrentLM):
        def compute_loss(self, *args, **kwargs):
            traces.append(1)
            return super().compute_loss(*args, **kwargs)

    model = compile_plainly(Counting(VOCABULARY, **MODELS["rnn"][1]))
    model.build()
    ids = ids_of(2, 9)
    model.fit(ids[:, :-1], ids[:, 1:], epochs=2, verbose=0)
    assert len(traces) == 1 and len(model.optimizer.variables) > 2
