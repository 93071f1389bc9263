import importlib

import keras
import numpy as np
import pytest
from cases import on_all
from helpers import (
    CONTEXT,
    MODELS,
    SUPPRESSED,
    VOCABULARY,
    AddingModel,
    array,
    assert_same_text,
    assert_written_by,
    choice,
    ids_of,
    new_model,
    tiny,
    whole_logits,
)
from keras import ops

from keras_seqlm.generation import generate as generate_alone
from keras_seqlm.generation.compiled import traces
from keras_seqlm.models import TransformerLM

pytestmark = pytest.mark.neutral

host = importlib.import_module("keras_seqlm.generation.generate")  # the package shows the function of that name
PROMPTS = [ids_of(n, seed=n).tolist() for n in (3, 1, 8, 5)]
EVERYWHERE = ("lstm", "rotary")
MARKED = [pytest.param(name, marks=pytest.mark.backends) if name in EVERYWHERE else name for name in MODELS]


def generate(model, prompts, max_new_tokens=64, eos_id=2, suppressed_ids=SUPPRESSED, **options):
    """As a task calls it, with its tokenizer's ids."""
    return generate_alone(model, prompts, max_new_tokens, eos_id=eos_id, suppressed_ids=suppressed_ids, **options)


def texts(results):
    return [result.token_ids.tolist() for result in results]


# The loop, with a model that adds.

ADDER = AddingModel()


def adding(prompt, count, eos_id=2, suppressed_ids=SUPPRESSED, penalty=1.0):
    """What `AddingModel` writes, and why it stops."""
    text = list(prompt)
    while len(text) < len(prompt) + count:
        logits = np.zeros(VOCABULARY)
        total = sum(text) + len(text)
        logits[[total % VOCABULARY, (total + 1) % VOCABULARY]] = 5.0, 4.0
        logits[text] /= penalty
        logits[list(suppressed_ids)] = -np.inf
        new = int(np.argmax(logits))
        if new == eos_id:
            return text[len(prompt) :], "eos"
        text.append(new)
    return text[len(prompt) :], "length"


@pytest.mark.backends
def test_ragged_prompts_and_limits_and_the_end_id():
    prompts = [*PROMPTS, [33, 7], [4]]
    limits = [12, 5, 0, 1, 9, 16]
    results = generate(ADDER, prompts, limits)
    for result, prompt, limit in zip(results, prompts, limits, strict=True):
        text, reason = adding(prompt, limit)
        assert (result.token_ids.tolist(), result.stop_reason, result.truncated) == (text, reason, False)
        assert result.token_ids.dtype == np.int32
    assert {result.stop_reason for result in results} == {"eos", "length"}
    assert results[4].token_ids.tolist() == [] and results[4].stop_reason == "eos"  # 34 + 8 = 2 at once


@pytest.mark.backends
def test_another_end_id_or_none():
    prompt = [19, 9]  # 30, 21, 4, 8, 17, 35 ...
    text, _ = adding(prompt, 12, eos_id=None)
    assert texts(generate(ADDER, [prompt], 12, eos_id=None)) == [text]
    end = text[4]
    assert end not in text[:4]
    assert texts(generate(ADDER, [prompt], 12, eos_id=end)) == [text[:4]]


def test_ids_that_are_never_written():
    prompt = [9, 9]
    assert adding(prompt, 3, None, ())[0] == [20, 1, 3]
    for suppressed_ids in (SUPPRESSED, (20,), (20, 21), ()):
        text, _ = adding(prompt, 12, None, suppressed_ids)
        options = {"eos_id": None, "suppressed_ids": (*suppressed_ids, None)}
        assert texts(generate(ADDER, [prompt], 12, **options)) == [text]


@pytest.mark.parametrize("longest", [1, 3, 5])
def test_writing_in_pieces_changes_nothing(longest, monkeypatch):
    whole = generate(ADDER, PROMPTS, [13, 2, 0, 7])
    monkeypatch.setattr(host, "LONGEST_CALL", longest)
    pieces = generate(ADDER, PROMPTS, [13, 2, 0, 7])
    assert texts(pieces) == texts(whole)
    assert [each.stop_reason for each in pieces] == [each.stop_reason for each in whole]


@pytest.mark.backends
def test_a_function_that_stops():
    kinds = set()
    ends = {30: 20, 4: 3}  # by the first new id: in the second call, in the first, never

    def stop(new):
        kinds.add(new.dtype)
        return len(new) == ends.get(int(new[0]))

    prompts = [[14, 14], [27, 14], [10, 9]]
    results = generate(ADDER, prompts, 40, eos_id=None, stop=stop)
    for prompt, result, count, reason in zip(prompts, results, (20, 3, 40), ("stop", "stop", "length"), strict=True):
        assert (result.token_ids.tolist(), result.stop_reason) == (adding(prompt, count, eos_id=None)[0], reason)
    assert kinds == {np.dtype("int32")}


def test_stop_before_the_end_id_and_after():
    prompt = [19, 9]  # 30, 21, 4, 8, 17, 35 ...
    text, _ = adding(prompt, 12, eos_id=None)
    end = text[4]
    first = generate(ADDER, [prompt], 12, eos_id=end, stop=lambda new: len(new) == 3)[0]
    assert (first.token_ids.tolist(), first.stop_reason) == (text[:3], "stop")
    later = generate(ADDER, [prompt], 12, eos_id=end, stop=lambda new: len(new) == 6)[0]
    assert (later.token_ids.tolist(), later.stop_reason) == (text[:4], "eos")


def test_nothing_to_write():
    assert generate(ADDER, [], 5) == []
    for limits in (0, [0, 0]):
        results = generate(ADDER, [[4], [5, 6]], limits)
        assert texts(results) == [[], []]
        assert [result.stop_reason for result in results] == ["length", "length"]


@pytest.mark.backends
def test_a_seen_id_is_less_likely():
    prompts = [[20, 21], [5, 32, 7], [12] * 9]  # the second sees its sum, 7, in the prompt
    results = generate(ADDER, prompts, 14, repetition_penalty=[2.0, 2.0, 1.0], eos_id=None)
    for prompt, text, penalty in zip(prompts, texts(results), (2.0, 2.0, 1.0), strict=True):
        assert text == adding(prompt, 14, None, penalty=penalty)[0]
    assert texts(results)[1][0] == 8
    assert texts(results)[0] != adding(prompts[0], 14, None)[0]


# The models.


@pytest.mark.parametrize("name", MARKED)
def test_greedy_is_the_argmax_of_whole_passes(name):
    model = tiny(name)
    results = generate(model, PROMPTS, [10, 10, 3, 10], eos_id=None)
    for prompt, text, count in zip(PROMPTS, texts(results), [10, 10, 3, 10], strict=True):
        assert len(text) == count
        assert_written_by(model, prompt, text)


OPTIONS = {"temperature": [0.0, 1.5, 0.8, 1.2], "seed": [1, 2, 3, 4]}


@pytest.mark.parametrize("name", on_all(EVERYWHERE, "rotary"))
def test_a_row_alone_is_the_row_in_a_batch_sampled_or_greedy(name):
    model = tiny(name)
    together = texts(generate(model, PROMPTS, 10, eos_id=None, **OPTIONS))
    for row, (prompt, text) in enumerate(zip(PROMPTS, together, strict=True)):
        temperature, seed = OPTIONS["temperature"][row], OPTIONS["seed"][row]
        alone = generate(model, [prompt], 10, eos_id=None, temperature=temperature, seed=seed)
        assert_same_text(model, prompt, texts(alone)[0], text, temperature, seed)
        assert_written_by(model, prompt, text, temperature, seed)


def test_a_seed_is_a_text_and_another_seed_another():
    model = tiny("lstm")
    write = [texts(generate(model, PROMPTS, 10, temperature=1.5, seed=seed, eos_id=None)) for seed in (5, 5, 6)]
    assert write[0] == write[1] != write[2]


@pytest.mark.parametrize("name", EVERYWHERE)
def test_what_was_compiled_outlives_a_new_random_seed(name):
    """Seeding clears TensorFlow's caches, and with them whatever an eager operation owns."""
    model = tiny(name)
    before = texts(generate(model, PROMPTS, 10, eos_id=None, **OPTIONS))
    keras.utils.set_random_seed(5)
    assert texts(generate(model, PROMPTS, 10, eos_id=None, **OPTIONS)) == before


def test_a_model_writes_one_text_or_a_list():
    model = tiny("learned")
    several = model.generate(PROMPTS, max_new_tokens=4, suppressed_ids=SUPPRESSED)
    assert [len(text) for text in several] == [4] * 4
    one = model.generate(np.array(PROMPTS[0]), max_new_tokens=4, suppressed_ids=SUPPRESSED)
    assert_same_text(model, PROMPTS[0], one, several[0])
    assert len(model.generate([PROMPTS[0]], max_new_tokens=4)) == 1
    assert model.generate([]) == []


@pytest.mark.parametrize("name", on_all(EVERYWHERE, "rotary"))
def test_prompts_and_limits_of_one_bucket_share_a_trace(name):
    model = new_model(name)
    for length, count in ((3, 1), (9, 7), (16, 16), (1, 9)):
        generate(model, [ids_of(length)], count, eos_id=None, temperature=0.1 * length, seed=length, top_k=length)
    for rows in (3, 4):
        generate(model, [ids_of(5)] * rows, 3, temperature=1.0, top_k=5)
    found = (traces(model, host._start), traces(model, host.advance))
    assert found == ((0, 0) if keras.backend.backend() == "torch" else (2, 2))  # one row, and up to four


def test_a_recurrent_model_writes_past_any_length(monkeypatch):
    monkeypatch.setattr(host, "LONGEST_CALL", 64)
    model, prompt = tiny("lstm"), ids_of(3 * CONTEXT + 5).tolist()
    result = generate(model, [prompt], 150, eos_id=None)[0]
    assert (len(result.token_ids), result.stop_reason, result.truncated) == (150, "length", False)
    assert_written_by(model, prompt, result.token_ids)


@pytest.mark.backends
def test_a_prompt_that_does_not_fit_loses_its_beginning():
    model, prompt = tiny("rotary"), ids_of(40)
    kept = prompt[-(CONTEXT - 1) :]
    result = generate(model, [prompt], 8, eos_id=None)[0]
    assert (len(result.token_ids), result.truncated, result.stop_reason) == (1, True, "length")
    assert_written_by(model, kept, result.token_ids)
    assert_same_text(model, kept, generate(model, [kept], 8, eos_id=None)[0].token_ids, result.token_ids)


@pytest.mark.backends
def test_the_prompt_beats_the_number_of_new_tokens():
    model = tiny("learned")
    prompts = [ids_of(length) for length in (24, 25, CONTEXT - 1, CONTEXT, CONTEXT + 1, 3)]
    results = generate(model, prompts, [8, 8, 8, 8, 0, CONTEXT - 1], eos_id=None)
    assert [result.truncated for result in results] == [False, False, False, True, True, False]
    assert [len(result.token_ids) for result in results] == [8, 7, 1, 1, 0, CONTEXT - 3]
    assert {result.stop_reason for result in results} == {"length"}
    assert_written_by(model, prompts[1], results[1].token_ids)


def test_a_huge_limit_stops_at_the_end_of_the_context():
    model, prompt = tiny("learned"), ids_of(10).tolist()
    for limit in (CONTEXT, 10**6, 2**40):
        result = generate(model, [prompt], limit, eos_id=None)[0]
        assert (len(result.token_ids), result.truncated, result.stop_reason) == (CONTEXT - 10, False, "length")
        assert_written_by(model, prompt, result.token_ids)


@pytest.mark.parametrize("name", on_all(["lstm", "learned"], "lstm"))
def test_a_prompt_is_read_up_to_the_ids_that_are_allowed(name):
    model, prompt = tiny(name), ids_of(20)
    results = generate(model, [prompt, prompt[:5]], 4, eos_id=None, max_prompt_tokens=6)
    assert [result.truncated for result in results] == [True, False]
    for read, result in zip((prompt[-6:], prompt[:5]), results, strict=True):
        assert_written_by(model, read, result.token_ids)


@pytest.mark.parametrize(("name", "wrong"), [("lstm", 0), ("lstm", 1.5), ("learned", -1), ("learned", CONTEXT)])
def test_a_prompt_of_no_ids_or_more_than_the_model_reads_is_refused(name, wrong):
    with pytest.raises(ValueError, match=f"max_prompt_tokens .*{wrong}"):
        generate(tiny(name), [[5]], 4, max_prompt_tokens=wrong)


def test_a_context_of_one_token_writes_one():
    model = TransformerLM(VOCABULARY, size="nano", num_layers=1, hidden_dim=8, num_heads=1, max_length=1)
    result = generate(model, [[5, 6, 7]], 4, eos_id=None)[0]
    assert (len(result.token_ids), result.truncated, result.stop_reason) == (1, True, "length")
    assert result.token_ids[0] == np.argmax(array(model(np.array([[7]]))))


@pytest.mark.backends
def test_a_row_at_the_end_of_its_context_stands_still_while_others_write():
    model, prompts = tiny("rotary"), [ids_of(6).tolist(), ids_of(CONTEXT - 2).tolist(), ids_of(CONTEXT).tolist()]
    results = generate(model, prompts, [20, 2, 0], eos_id=None)
    assert [len(result.token_ids) for result in results] == [20, 2, 0]
    assert [result.truncated for result in results] == [False, False, True]
    for prompt, result in zip(prompts, results, strict=True):
        assert_written_by(model, prompt, result.token_ids)


@pytest.mark.parametrize(("name", "length"), [("learned", 30), ("rotary", 40)])
def test_sliding_reads_the_newer_half_anew(name, length):
    model, prompt = tiny(name), ids_of(length).tolist()
    result = generate(model, [prompt, [9, 8]], 50, eos_id=None, slide=True)[0]
    assert (len(result.token_ids), result.truncated, result.stop_reason) == (50, length >= CONTEXT, "length")
    read = list(prompt)
    for new in result.token_ids.tolist():
        if len(read) >= CONTEXT:
            read = read[-CONTEXT // 2 :]
        chosen, distance = choice(whole_logits(model, read)[-1], len(read), 0.0, 0)
        assert new == chosen or distance < 1e-4
        read.append(new)


def test_sliding_hears_the_end_id_and_the_stop():
    model, prompt = tiny("learned"), ids_of(10).tolist()
    text = generate(model, [prompt], 60, temperature=1.5, seed=3, eos_id=None, slide=True)[0].token_ids.tolist()
    end = text[40]
    result = generate(model, [prompt], 60, temperature=1.5, seed=3, eos_id=end, slide=True)[0]
    assert (result.token_ids.tolist(), result.stop_reason) == (text[: text.index(end)], "eos")
    stopped = generate(
        model, [prompt], 60, temperature=1.5, seed=3, eos_id=None, slide=True, stop=lambda new: len(new) == 45
    )
    assert (stopped[0].token_ids.tolist(), stopped[0].stop_reason) == (text[:45], "stop")


class Falling(TransformerLM):
    """The lower an id, the likelier, whatever was read."""

    def logits_of(self, hidden):
        return ops.zeros_like(super().logits_of(hidden)) + ops.arange(VOCABULARY, 0, -1, dtype="float32")


@pytest.mark.backends
def test_sliding_forgets_no_id_that_is_penalised():
    model = Falling(VOCABULARY, size="nano", num_layers=1, hidden_dim=8, num_heads=2, max_length=8)
    [result] = generate(model, [[2, 1]], 20, eos_id=None, suppressed_ids=(), slide=True, repetition_penalty=100.0)
    assert result.token_ids.tolist() == [0, *range(3, 22)]


@pytest.mark.backends
def test_padding_is_not_seen():
    prompts, lengths = np.array([[5, 6, 0, 0], [7, 8, 9, 5]], "int32"), np.array([2, 4], "int32")
    carry = host.start(ADDER, None, *map(ops.convert_to_tensor, (prompts, lengths, lengths)))
    assert [np.flatnonzero(row).tolist() for row in ops.convert_to_numpy(carry["seen"])] == [[5, 6], [5, 7, 8, 9]]


def test_sliding_with_a_context_of_one_token():
    model = TransformerLM(VOCABULARY, size="nano", num_layers=1, hidden_dim=8, num_heads=1, max_length=1)
    result = generate(model, [[5]], 4, eos_id=None, slide=True)[0]
    assert len(result.token_ids) == 4
    assert generate(model, [[5]], 4, eos_id=None)[0].stop_reason == "length"


@pytest.mark.parametrize("name", ["gru", "rotary"])
def test_half_precision_writes(name):
    model = new_model(name, dtype="mixed_bfloat16")
    results = generate(model, PROMPTS, 6, eos_id=None)
    assert [len(result.token_ids) for result in results] == [6] * 4
    for prompt, result in zip(PROMPTS, results, strict=True):  # logits of a pass and of steps differ by bfloat16's step
        assert_written_by(model, prompt, result.token_ids, border=0.15)


@pytest.mark.backends
@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[4], []], {}, "sequence 1 is empty; give at least one id"),
        ([[]], {}, "sequence 0 is empty"),
        ([[4, VOCABULARY]], {}, "holds id 40, and this model knows 0 to 39"),
        ([[4], [-1, 5]], {}, "sequence 1 holds id -1"),
        ([np.array([2**32 + 4])], {}, "holds id 4294967300"),
        ([[4.5]], {}, "must be integers, got float64"),
        ([[4]], {"max_new_tokens": -1}, "max_new_tokens must be whole numbers of 0 or more, got -1"),
        ([[4]], {"max_new_tokens": 2.5}, "max_new_tokens must be whole numbers of 0 or more, got 2.5"),
        ([[4]], {"max_new_tokens": 2.0}, "max_new_tokens must be whole numbers"),
        ([[4]], {"max_new_tokens": True}, "max_new_tokens must be whole numbers"),
        ([[4]], {"max_new_tokens": [3, 4]}, "a number or one for each of 1 prompts, got 2"),
        ([[4]], {"temperature": float("nan")}, "temperature must be a finite number, at least 0"),
        ([[4]], {"temperature": -0.5}, "temperature must be a finite number, at least 0"),
        ([[4]], {"top_p": 0.0}, "top_p must be a finite number, above 0"),
        ([[4]], {"seed": [1, 2]}, "seed must be one value or one per row"),
        ([[4]], {"suppressed_ids": (VOCABULARY,)}, "suppressed_ids must be ids from 0 to 39, got 40"),
        ([[4]], {"eos_id": -7}, "eos_id must be ids from 0 to 39, got -7"),
        ([[4]], {"eos_id": 2.7}, "eos_id must be ids from 0 to 39, got 2.7"),
        ([[[4, 5]]], {}, r"sequence 0 must be a list of ids, got an array of shape \(1, 2\)"),
    ],
)
def test_errors(prompts, options, message):
    with pytest.raises(ValueError, match=message):
        generate(tiny("lstm"), prompts, **options)
