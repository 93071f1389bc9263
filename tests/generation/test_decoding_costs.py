"""What a token costs: traces, room in the cache, waits and kernels; and what must not change with it."""

import importlib

import keras
import numpy as np
import pytest
from helpers import CONTEXT, SUPPRESSED, VOCABULARY, array, assert_written_by, ids_of, new_model, tiny, whole_logits

from keras_seqlm import products
from keras_seqlm.generation import generate
from keras_seqlm.generation.compiled import traces
from keras_seqlm.generation.score import log_probabilities
from keras_seqlm.models import TransformerLM

pytestmark = pytest.mark.neutral

host = importlib.import_module("keras_seqlm.generation.generate")
BACKEND = keras.backend.backend()


def texts(results):
    return [result.token_ids.tolist() for result in results]


@pytest.mark.backends
def test_batch_sizes_and_lengths_of_a_bucket_share_a_trace():
    model = new_model("rotary")
    for rows in (3, 4):
        for length, count in ((2, 3), (13, 11)):
            generate(model, [ids_of(length, seed=row) for row in range(rows)], count)
    assert traces(model, host._start) == traces(model, host.advance) == (0 if BACKEND == "torch" else 1)


@pytest.mark.backends
@pytest.mark.parametrize("name", ["rotary", "learned"])
def test_the_room_grows_with_the_text(name, monkeypatch):
    """From 16 to the whole context, and past several calls: the text is that of a cache that was large from the start."""
    model = tiny(name)
    prompts = [ids_of(3).tolist(), ids_of(9, seed=2).tolist()]
    whole = texts(generate(model, prompts, 22, temperature=[0.0, 1.3], seed=4))
    rooms = []
    grown = host._with_room
    monkeypatch.setattr(host, "_with_room", lambda state, room: rooms.append(room) or grown(state, room))
    monkeypatch.setattr(host, "SMALLEST_ROOM", 16)
    monkeypatch.setattr(host, "LONGEST_CALL", 16)
    assert texts(generate(model, prompts, 22, temperature=[0.0, 1.3], seed=4)) == whole
    assert rooms == [CONTEXT]


@pytest.mark.skipif(BACKEND != "jax", reason="the loop of several tokens between two looks is JAX's")
@pytest.mark.backends
@pytest.mark.parametrize("name", ["rotary", "learned", "lstm"])
def test_steps_between_two_looks_leave_no_trace(name, monkeypatch):
    """As on an accelerator: calls end within 8 steps, and a cache that is full then is given room and read again."""
    monkeypatch.setattr(products, "on_accelerator", lambda: True)
    monkeypatch.setattr(host, "SMALLEST_ROOM", 16)
    monkeypatch.setattr(host, "LONGEST_CALL", 16)
    model = new_model(name, **({} if name == "lstm" else {"max_length": 64}))
    prompts, counts = [ids_of(3).tolist(), ids_of(10, seed=2).tolist(), [5]], [55, 50, 7]
    for temperature in (0.0, 1.3):
        results = generate(model, prompts, counts, temperature=temperature, seed=4, suppressed_ids=SUPPRESSED)
        assert [len(result.token_ids) for result in results] == counts
        for prompt, result in zip(prompts, results, strict=True):
            assert_written_by(model, prompt, result.token_ids, temperature, 4)


@pytest.mark.skipif(BACKEND != "jax", reason="JAX says what it writes over")
@pytest.mark.backends
def test_the_state_is_written_over():
    import jax

    model = tiny("learned")
    state = model.initial_state(2, 32)
    seen = []

    def step(model, state):
        logits, state = model({"token_ids": np.array([[4], [5]], "int32")}, state=state)
        return state

    run = host.compiled(model, step, donate=(0,))
    after = run(state)
    seen = [name for name, leaf in state.items() if name.startswith("kv_cache") and not leaf.is_deleted()]
    assert not seen and all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(after))


@pytest.mark.backends
def test_after_lora_the_new_weights_write():
    model = new_model("learned", tie_embedding=False)
    prompt = ids_of(4).tolist()
    before = texts(generate(model, [prompt], 8))
    projection = model.output_projection
    projection.enable_lora(2)
    lora_a, lora_b = projection.lora_kernel_a, projection.lora_kernel_b
    lora_a.assign(np.random.default_rng(0).standard_normal(lora_a.shape))
    lora_b.assign(np.random.default_rng(1).standard_normal(lora_b.shape))
    after = texts(generate(model, [prompt], 8))
    read = list(prompt)
    for new in after[0]:
        assert new == int(np.argmax(whole_logits(model, read)[-1]))
        read.append(new)
    assert after != before


def test_after_quantize_the_new_weights_write():
    twins = [new_model("rotary") for _ in range(2)]
    prompt = ids_of(4).tolist()
    float_text = texts(generate(twins[0], [prompt], 8))
    for twin in twins:
        twin.quantize("int4")
    left, right = (texts(generate(twin, [prompt], 8)) for twin in twins)
    assert left == right and left != float_text


@pytest.mark.backends
def test_sliding_never_draws_with_a_number_twice():
    """All logits equal, so that a text is its random numbers: with one counter a row they have no period."""
    model = TransformerLM(VOCABULARY, size="nano", num_layers=1, hidden_dim=8, num_heads=1, max_length=16)
    model.build()
    for weight in model.weights:
        weight.assign(np.zeros(weight.shape))
    prompts = [[5], [5, 6, 7]]
    results = texts(generate(model, prompts, 120, temperature=1.0, seed=[3, 4], slide=True))
    from seqlm_runtime.sampler import uniform

    for prompt, text, seed in zip(prompts, results, (3, 4), strict=True):
        numbers = [uniform(seed, position) for position in range(len(prompt), len(prompt) + 120)]
        assert text == [int(number * VOCABULARY) for number in numbers]
    alone = texts(generate(model, prompts[1:], 120, temperature=1.0, seed=4, slide=True))
    assert alone == results[1:]


@pytest.mark.backends
def test_scores_come_in_chunks(monkeypatch):
    score = importlib.import_module("keras_seqlm.generation.score")
    model, ids = new_model("learned"), ids_of(2, 22)
    whole = array(log_probabilities(model, keras.ops.convert_to_tensor(ids)))
    monkeypatch.setattr(score, "LOGITS_AT_ONCE", VOCABULARY * 2 * 8)  # 8 steps of 2 rows
    sizes = []
    logits_of = model.logits_of
    model.logits_of = lambda hidden: sizes.append(tuple(hidden.shape)) or logits_of(hidden)
    chunked = array(log_probabilities(model, keras.ops.convert_to_tensor(ids)))
    np.testing.assert_allclose(chunked, whole, atol=1e-5)
    assert set(sizes) == {(2, 8, 16)}


@pytest.mark.skipif(BACKEND != "torch", reason="kernels are launched one by one on torch")
@pytest.mark.backends
@pytest.mark.parametrize(("name", "of_a_layer"), [("learned", 12), ("rotary", 29)])
def test_kernels_and_waits_of_a_token(name, of_a_layer):
    """Where the root mean square is six kernels and not one, as on a GPU; a wait is an operation whose result the host must know."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    free = (
        "view",
        "t.default",
        "transpose",
        "permute",
        "expand",
        "slice",
        "select",
        "split",
        "unsqueeze",
        "squeeze",
        "alias",
        "detach",
        "_unsafe_view",
        "lift_fresh",  # a number of Python's, which stays one
    )
    waits = ("_local_scalar_dense", "nonzero", "item")

    class Count(TorchDispatchMode):
        kernels, waited = 0, 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called = str(function).removeprefix("aten.")
            self.kernels += not called.startswith(free)
            self.waited += called.startswith(waits)
            return function(*args, **(kwargs or {}))

    def count(layers):
        model = new_model(name, num_layers=layers)
        prompt = (ids_of(2, 8), np.array([8, 5], "int32"), np.array([20, 20], "int32"), np.zeros(2, "int32"))
        carry = host.compiled(model, host._start, 32, False)(*map(torch.as_tensor, prompt))
        given = {name: torch.zeros(2) for name in host.OPTIONS}
        seen = []
        for steps in (2, 12):
            with torch.no_grad(), Count() as mode:
                host.advance(model, 32, (), frozenset(), dict(carry), given, torch.tensor(-1), steps)
            seen.append((mode.kernels, mode.waited))
        return np.subtract(*seen[::-1]) / 10

    (two, waits_of_two), (four, waits_of_four) = count(2), count(4)
    assert (four - two) / 2 <= of_a_layer
    assert two - 2 * of_a_layer <= 64
    assert waits_of_two == waits_of_four == 1  # of the loop on a CPU, which looks at every token; on a GPU every eighth
