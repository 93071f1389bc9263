"""No request to a SavedModel costs more than its bounds, and what is beyond them is said or refused."""

import sys

import numpy as np
import pytest
from cases import some_of
from sentences import CONTEXT, PROMPTS, READ

from keras_seqlm.generation import score
from seqlm_runtime import LiteRTModel
from seqlm_runtime.prompts import read_ids

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="TensorFlow's C library is used on Linux only")

LONG = " ".join(prompt for prompt in PROMPTS if prompt.isascii()) * 60  # a byte is a character, and one id


def latin(text):
    return text.encode().decode("latin-1")


def ids_of(answer):
    return [ids[:count] for ids, count in zip(answer["token_ids"], answer["num_tokens"], strict=True)]


@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_a_long_prompt_is_read_alike_by_model_server_and_phone(saved_model, litert, trained, serve, name):
    most = {"lstm": READ, "transformer": CONTEXT - 1}[name]
    prompts = [LONG, LONG[: most - 1], LONG[:most], "é" * most + "the cat", "a dog"]
    wanted = trained(name).write(prompts, 8, max_prompt_tokens=most)
    assert [text.truncated for text in wanted] == [True, False, True, True, False]
    request = {"text": [latin(text) for text in prompts], "max_new_tokens": [8]}
    (served,) = serve(saved_model(name), [("generate", request)])
    assert ids_of(served) == [text.token_ids for text in wanted]
    assert served["truncated"] == [text.truncated for text in wanted]
    runner = LiteRTModel(litert(name))
    assert runner.max_prompt_tokens == most
    for prompt, text in list(zip(prompts, wanted, strict=True))[:: 2 if name == "transformer" else 4]:
        found = runner.generate(prompt, max_new_tokens=8)
        assert (found["token_ids"].tolist(), found["truncated"]) == (text.token_ids, text.truncated)
        assert found["stop_reason"] == text.stop_reason


def test_the_prompt_beats_the_number_of_new_tokens(saved_model, trained, serve):
    """127 of 128 tokens asked for threw the whole prompt away but for its last id."""
    prompts = ["x" * (CONTEXT - 2), "x" * (CONTEXT - 5), "the cat", ""]
    limits = [60, 3, 1000, 0]
    request = {"text": prompts, "max_new_tokens": limits}
    (served,) = serve(saved_model("transformer"), [("generate", request)])
    wanted = trained("transformer").write(prompts, [min(limit, 80) for limit in limits])
    assert ids_of(served) == [text.token_ids for text in wanted]
    assert served["truncated"] == [False] * 4 and served["num_tokens"][0] <= 1 and served["num_tokens"][3] == 0


@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_a_score_counts_the_last_token_and_says_what_it_left_out(saved_model, trained, serve, name):
    task, longest = trained(name), {"lstm": READ, "transformer": CONTEXT}[name]
    texts = ["", "x" * longest, "x" * (longest + 1), LONG * 2]
    (answer,) = serve(saved_model(name), [("score", {"text": [latin(text) for text in texts]})])
    assert answer["num_tokens"] == [0, longest, longest, longest]
    assert answer["truncated"] == [False, False, True, True]
    for text, found in zip(texts[1:], answer["log_probability"][1:], strict=True):
        ids, _ = read_ids(task.tokenizer, text, longest + 1, end=False)
        wanted = score(task.model, [ids])[0].sum(dtype="float64")
        assert len(ids) == longest + 1 and found == pytest.approx(wanted, rel=1e-5)


LOGITS = {
    "an id above the vocabulary": ([[5, 260]], [2], "token_ids must lie in 0 ... 259, and hold] [260]"),
    "an id below 0": ([[5, -1]], [2], "token_ids must lie in 0 ... 259, and hold] [-1]"),
    "more ids than columns": ([[5, 6]], [3], "lengths must lie in 0 ... columns of token_ids, which are] [2]"),
    "fewer than none": ([[5, 6]], [-1], "lengths must lie in 0 ... columns"),
}


@pytest.mark.parametrize(("name", "longest"), [("lstm", READ + 80), ("transformer", CONTEXT)])
def test_logits_of_what_the_model_does_not_read_are_refused(saved_model, serve, name, longest):
    """They were wrong numbers: the last row of a table for an id or a position beyond it."""
    beyond = ([[5] * (longest + 1)], [1], f"this model reads {longest} tokens at most")
    cases = [*LOGITS.values(), beyond]
    requests = [("logits", {"token_ids": ids, "lengths": lengths}) for ids, lengths, _ in cases]
    requests += [
        ("logits", {"token_ids": [[5, -7, 999]], "lengths": [1]}),
        ("logits", {"token_ids": [[5]], "lengths": [1]}),
        ("logits", {"token_ids": [[]], "lengths": [0]}),
    ]
    *said, padded, plain, none = serve(saved_model(name), requests, refused=True)
    for found, (_, _, message) in zip(said, cases, strict=True):
        assert isinstance(found, str) and message in found, found
    np.testing.assert_allclose(padded["logits"][0][0], plain["logits"][0][0], atol=1e-5)  # padding may hold any number
    assert none["logits"] == [[]]


def test_options_may_be_left_out_or_given_once_for_all_rows(saved_model, trained, serve):
    prompts = ["the cat", "a dog ran", ""]
    alone, one, none = serve(
        saved_model("lstm"),
        [
            ("generate", {"text": prompts}),
            ("generate", {"text": prompts, "temperature": [0.9], "seed": [1, 2, 3], "max_new_tokens": [9]}),
            ("generate", {"text": []}),
        ],
    )
    task = trained("lstm")
    assert ids_of(alone) == [text.token_ids for text in task.write(prompts, 64)]
    assert ids_of(one) == [text.token_ids for text in task.write(prompts, 9, temperature=0.9, seed=[1, 2, 3])]
    assert none["generated_text"] == []


def test_the_defaults_stand_in_the_signature(saved_model):
    """A server fills them in; as one row each, so that it can do so in a batch of requests of one row."""
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2

    with open(f"{saved_model('lstm')}/saved_model.pb", "rb") as stream:
        meta = saved_model_pb2.SavedModel.FromString(stream.read()).meta_graphs[0]
    for name in ("generate", "generate_xla"):
        signature = meta.signature_def[name]
        found = {key: tf.make_ndarray(value).tolist() for key, value in signature.defaults.items()}
        assert found == {
            "max_new_tokens": [64],
            "temperature": [0.0],
            "top_k": [0],
            "top_p": [1.0],
            "min_p": [0.0],
            "repetition_penalty": [1.0],
            "seed": [0],
        }
        assert set(signature.inputs) == {"text", *found}


COSTS = """
    import json, resource, sys, time
    from seqlm_runtime import SavedModel

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def seconds(texts, times):
        took = []
        for _ in range(times):
            start = time.perf_counter()
            model.run(signature, text=texts)
            took.append(time.perf_counter() - start)
        return min(took)

    model, costs = SavedModel(sys.argv[1]), []
    words = "To be, or not to be: that is the question. "
    long = (words * (10_000_000 // len(words) + 1))[:10_000_000].encode()
    for signature in ("generate_text", "score"):
        for rows in (1, 32):
            short = [b"To be"] * rows
            usual, before = seconds(short, 5), peak()
            took = seconds([long, *short[1:]], 5)
            costs.append((signature, rows, (took - usual) * 1e3, peak() - before))
    print(json.dumps(costs))
"""


@pytest.mark.alone
@pytest.mark.parametrize("name", some_of(["lstm", "transformer"], "lstm"))
def test_ten_megabytes_cost_no_more_than_what_is_read_of_them(saved_model, in_python, name):
    """52 seconds and 8.5 GB beside 31 short rows it was."""
    for signature, rows, milliseconds, megabytes in in_python(COSTS, saved_model(name)):
        assert milliseconds <= 150 and megabytes <= 100, (signature, rows, milliseconds, megabytes)
