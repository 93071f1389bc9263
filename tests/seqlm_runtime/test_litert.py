"""The LiteRT runner against a plain loop: a toy network of exact numbers that remembers which signature read what.

Its state is the position, the sum of the real tokens and a trace of calls; its logits fall off on both sides of a
target that position and sum decide.
"""

import hashlib
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from seqlm_runtime import sampler
from seqlm_runtime.litert import LiteRTModel
from seqlm_runtime.seals import folder_hashes, sealed
from seqlm_runtime.tokenizers import ByteTokenizer

VOCABULARY = 260
# What the toy is made of and our models are not: the gate is told.
TOY_OPS = ("ABS", "FLOOR_MOD", "SUM")
CODES = {"prefill_4": 1, "prefill_8": 2, "decode": 3}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    import tensorflow as tf

    def read(token_ids, lengths, position, total, trace, code):
        real = tf.cast(tf.range(token_ids.shape[1])[None] < lengths[:, None], tf.float32)
        total = total + tf.reduce_sum(tf.cast(token_ids, tf.float32) * real, axis=1, keepdims=True)
        position = position + lengths
        target = tf.math.floormod(total * 7.0 + tf.cast(position, tf.float32)[:, None] * 13.0, float(VOCABULARY))
        logits = -tf.abs(tf.range(VOCABULARY, dtype=tf.float32)[None] - target) / 4.0
        return {"logits": logits, "position": position, "total": total, "trace": trace * 4 + code}

    def signature(length, code):
        specs = [
            tf.TensorSpec([1, length], tf.int32, "token_ids"),
            tf.TensorSpec([1], tf.int32, "lengths"),
            tf.TensorSpec([1], tf.int32, "position"),
            tf.TensorSpec([1, 1], tf.float32, "total"),
            tf.TensorSpec([1], tf.int32, "trace"),
        ]
        return tf.function(lambda *inputs: read(*inputs, code), input_signature=specs)

    folder = tmp_path_factory.mktemp("litert")
    module = tf.Module()
    module.functions = {
        "prefill_4": signature(4, CODES["prefill_4"]),
        "prefill_8": signature(8, CODES["prefill_8"]),
        "decode": signature(1, CODES["decode"]),
    }
    tf.saved_model.save(module, str(folder / "toy"), signatures=module.functions)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "toy"), signature_keys=list(module.functions))
    content = converter.convert()
    (folder / "toy.tflite").write_bytes(content)
    tokenizer = ByteTokenizer()
    (folder / "toy.tokenizer").mkdir()
    for name, data in tokenizer.files.items():
        (folder / "toy.tokenizer" / name).write_bytes(data)
    sidecar = {
        "format": 1,
        "sha256": hashlib.sha256(content).hexdigest(),
        "state": {
            "position": {"shape": [1], "dtype": "int32"},
            "total": {"shape": [1, 1], "dtype": "float32"},
            "trace": {"shape": [1], "dtype": "int32"},
        },
        "prefill_lengths": [4, 8],
        "max_length": 40,
        "vocabulary_size": VOCABULARY,
        "bos_id": 1,
        "eos_id": 2,
        "suppressed_ids": [0, 1, 3],
        "tokenizer_hash": tokenizer.hash,
        "tokenizer_files": folder_hashes(folder / "toy.tokenizer"),
    }
    (folder / "toy.json").write_text(json.dumps(sealed(sidecar)))
    return folder


@pytest.fixture
def copy(exported, tmp_path):
    """A function that copies the export, with changes to its sidecar, and gives the path of the .tflite file."""

    def make(name="toy", **changes):
        shutil.copy(exported / "toy.tflite", tmp_path / f"{name}.tflite")
        sidecar = json.loads((exported / "toy.json").read_text()) | changes
        (tmp_path / f"{name}.json").write_text(json.dumps(sealed(sidecar)))
        shutil.copytree(exported / "toy.tokenizer", tmp_path / "toy.tokenizer", dirs_exist_ok=True)
        return tmp_path / f"{name}.tflite"

    return make


@pytest.fixture(scope="module")
def model(exported):
    return LiteRTModel(exported / "toy.tflite", num_threads=1, allow_ops=TOY_OPS)


def toy_logits(ids):
    target = (sum(ids) * 7 + len(ids) * 13) % VOCABULARY
    return (-np.abs(np.arange(VOCABULARY) - target) / 4.0).astype(np.float32)


def toy_text(prompt_ids, count, eos_id=2, **options):
    """What the runner should write, by a loop that reads everything anew for each token."""
    ids, written = list(prompt_ids), []
    for _ in range(count):
        seen = np.isin(np.arange(VOCABULARY), ids)
        chosen = int(sampler.sample(toy_logits(ids), options, seen, len(ids), (0, 1, 3))[0])
        if chosen == eos_id:
            return written, "eos"
        ids.append(chosen)
        written.append(chosen)
    return written, "length"


def calls(state):
    trace, names = int(state["trace"][0]), []
    while trace:
        names.append(next(name for name, code in CODES.items() if code == trace % 4))
        trace //= 4
    return names[::-1]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, ["decode"]),
        (2, ["prefill_4"]),
        (4, ["prefill_4"]),
        (5, ["prefill_4", "decode"]),
        (7, ["prefill_4", "prefill_4"]),
        (8, ["prefill_8"]),
        (22, ["prefill_8", "prefill_8", "prefill_4", "prefill_4"]),
        (39, ["prefill_8"] * 4 + ["prefill_4", "prefill_4"]),
    ],
)
def test_prompt_is_read_in_chunks(model, count, expected):
    ids = np.arange(10, 10 + count)
    logits, state = model.step(ids, model.initial_state())
    assert calls(state) == expected
    assert (state["position"].tolist(), state["total"].tolist()) == ([count], [[float(ids.sum())]])
    np.testing.assert_array_equal(logits, toy_logits(ids.tolist()))


def test_padding_never_reaches_past_the_context(copy):
    model = LiteRTModel(copy(max_length=11), allow_ops=TOY_OPS)
    _, state = model.step([5] * 11, model.initial_state())
    assert calls(state) == ["prefill_8", "decode", "decode", "decode"]
    model = LiteRTModel(copy(max_length=12), allow_ops=TOY_OPS)
    assert calls(model.step([5] * 11, model.initial_state())[1]) == ["prefill_8", "prefill_4"]
    model = LiteRTModel(copy(max_length=None), allow_ops=TOY_OPS)
    assert calls(model.step([5] * 11, model.initial_state())[1]) == ["prefill_8", "prefill_4"]


def test_a_prompt_read_in_parts_is_the_prompt_read_at_once(model):
    ids = list(range(30, 51))
    state = model.initial_state()
    for start, end in ((0, 3), (3, 4), (4, 15), (15, 21)):
        logits, state = model.step(ids[start:end], state)
    np.testing.assert_array_equal(logits, model.logits(ids))


def test_step_leaves_the_state_it_was_given(model):
    state = model.initial_state()
    _, first = model.step([9], state)
    model.step([10], first)
    assert state["total"].tolist() == [[0.0]] and first["total"].tolist() == [[9.0]]


@pytest.mark.parametrize(
    ("ids", "message"),
    [([], "one or more"), ([[1, 2]], "one or more"), ([1.5], "one or more"), ([260], "0 ... 259"), ([-1], "0 ... 259")],
)
def test_ids_that_are_none_are_refused(model, ids, message):
    with pytest.raises(ValueError, match=message):
        model.logits(ids)


def test_more_than_the_context_is_refused(model):
    _, state = model.step([5] * 39, model.initial_state())
    with pytest.raises(ValueError, match="holds 40 tokens: 39 are read and 2 more"):
        model.step([5, 5], state)


@pytest.mark.parametrize("prompt", ["", "Once", "a prompt of 24 letters..", b"\xff\0"])
def test_greedy_text(model, prompt):
    result = model.generate(prompt, max_new_tokens=10)
    expected, stop_reason = toy_text([1, *ByteTokenizer().encode(prompt)], 10)
    assert result["token_ids"].tolist() == expected
    assert result["token_ids"].dtype == np.int32
    assert result["stop_reason"] == stop_reason
    assert result["num_tokens"] == len(expected)
    assert result["truncated"] is False
    assert result["text"] == ByteTokenizer().decode(expected)


def test_sampled_text_is_that_of_the_seed(model):
    options = {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.1}
    texts = set()
    for seed in (1, 2, 2**31 - 1):
        result = model.generate("Once", max_new_tokens=12, seed=seed, **options)
        expected, stop_reason = toy_text([1, *ByteTokenizer().encode("Once")], 12, seed=seed, **options)
        assert (result["token_ids"].tolist(), result["stop_reason"]) == (expected, stop_reason)
        texts.add(tuple(expected))
    assert len(texts) == 3


def test_threads_share_one_model(model):
    """Four threads on one interpreter wrote each other's text."""
    prompts = [f"thread {i}, " + "word " * (i % 5) for i in range(40)]
    wanted = [model.generate(prompt, max_new_tokens=12)["token_ids"].tolist() for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda prompt: model.generate(prompt, max_new_tokens=12)["token_ids"].tolist(), prompts * 3)
    assert list(found) == wanted * 3


def test_end_of_text_stops_and_is_not_among_the_ids(copy):
    prompt_ids = [1, *ByteTokenizer().encode("Once")]
    greedy, _ = toy_text(prompt_ids, 10, eos_id=None)
    eos_id = greedy[3]
    result = LiteRTModel(copy(eos_id=eos_id), allow_ops=TOY_OPS).generate("Once", max_new_tokens=10)
    expected, stop_reason = toy_text(prompt_ids, 10, eos_id=eos_id)
    assert stop_reason == "eos" and 0 < len(expected) <= 3
    assert result["token_ids"].tolist() == expected
    assert result["stop_reason"] == "eos"
    without = LiteRTModel(copy(eos_id=None), allow_ops=TOY_OPS).generate("Once", max_new_tokens=10)
    assert (without["token_ids"].tolist(), without["stop_reason"]) == (greedy, "length")


def test_a_long_prompt_keeps_its_end(model):
    prompt = "x" * 100 + "the end of a long story"
    ids = [1, *ByteTokenizer().encode(prompt)]
    result = model.generate(prompt, max_new_tokens=10)
    assert (result["truncated"], result["stop_reason"]) == (True, "length")
    assert result["token_ids"].tolist() == toy_text(ids[-39:], 1)[0]
    fits = model.generate("x" * 20, max_new_tokens=1000)
    assert fits["truncated"] is False
    assert fits["token_ids"].tolist() == toy_text([1, *ByteTokenizer().encode("x" * 20)], 19)[0]


def test_a_prompt_is_read_up_to_the_ids_that_the_sidecar_allows(copy):
    prompt = "x" * 1_000_000 + "the end"
    ids = ByteTokenizer().encode(prompt[-12:]).tolist()
    for context in (40, None):
        result = LiteRTModel(copy(max_prompt_tokens=12, max_length=context), allow_ops=TOY_OPS).generate(
            prompt, max_new_tokens=5
        )
        assert result["truncated"] is True and result["token_ids"].tolist() == toy_text(ids, 5)[0]
    most = LiteRTModel(copy(max_length=None), allow_ops=TOY_OPS)
    assert most.max_prompt_tokens == 4096, "a sidecar of an earlier version names no number"
    result = most.generate(prompt, max_new_tokens=2)
    assert result["token_ids"].tolist() == toy_text(ByteTokenizer().encode(prompt[-4096:]).tolist(), 2)[0]


def test_without_a_context_nothing_is_cut(copy):
    prompt = "a story that goes on and on, far beyond forty letters"
    result = LiteRTModel(copy(max_length=None), allow_ops=TOY_OPS).generate(prompt, max_new_tokens=20)
    assert result["truncated"] is False
    assert result["token_ids"].tolist() == toy_text([1, *ByteTokenizer().encode(prompt)], 20)[0]


def test_no_new_token(model):
    result = model.generate("Once", max_new_tokens=0)
    assert (result["text"], result["num_tokens"], result["stop_reason"]) == ("", 0, "length")


def test_without_bos_an_empty_prompt_is_refused(copy):
    model = LiteRTModel(copy(), allow_ops=TOY_OPS)
    model.tokenizer.bos_id = None
    assert model.generate("ab", max_new_tokens=3)["token_ids"].tolist() == toy_text(ByteTokenizer().encode("ab"), 3)[0]
    with pytest.raises(ValueError, match="nothing to write on from"):
        model.generate("")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_new_tokens", -1),
        ("max_new_tokens", 2.5),
        ("max_new_tokens", 2.0),
        ("max_new_tokens", True),
        ("max_new_tokens", "3"),
        ("max_new_tokens", None),
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("seed", 2**31),
    ],
)
def test_options_out_of_range_are_refused(model, option, value):
    with pytest.raises(ValueError, match=f"{option} must be"):
        model.generate("Once", **{option: value})


def test_variants_share_the_tokenizer(copy):
    assert LiteRTModel(copy("toy-int8"), allow_ops=TOY_OPS).generate("a", max_new_tokens=1)["num_tokens"] == 1


def test_damaged_file_is_refused(copy):
    path = copy()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="sha256"):
        LiteRTModel(path, allow_ops=TOY_OPS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 1"),
        ({"state": {}}, "no leaf 'position'"),
        ({"state": {"position": {"shape": [1]}}}, "leaf 'position'"),
        ({"eos_id": "two"}, r"\['eos_id'\]"),
        ({"max_prompt_tokens": 0}, r"\['max_prompt_tokens'\] are no whole numbers, too small"),
        ({"max_prompt_tokens": 40}, "max_prompt_tokens is 40, with a max_length of 40"),
        ({"max_prompt_tokens": "all"}, r"\['max_prompt_tokens'\] are no whole numbers"),
        ({"prefill_lengths": [4, 16]}, "the signature 'prefill_16' is missing"),
        ({"tokenizer_hash": "0" * 16}, "was trained with 0000"),
    ],
)
def test_sidecar_that_does_not_fit_is_refused(copy, changes, message):
    with pytest.raises(ValueError, match=message):
        LiteRTModel(copy(**changes), allow_ops=TOY_OPS)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe{}"])
def test_damaged_sidecar_is_refused(copy, content):
    path = copy()
    path.with_suffix(".json").write_bytes(content)
    with pytest.raises(ValueError, match="toy.json"):
        LiteRTModel(path, allow_ops=TOY_OPS)


def test_missing_parts_are_named(copy, tmp_path):
    with pytest.raises(FileNotFoundError, match="No LiteRT model at"):
        LiteRTModel(tmp_path / "none.tflite")
    path = copy()
    shutil.rmtree(tmp_path / "toy.tokenizer")
    with pytest.raises(FileNotFoundError, match="toy.tokenizer"):
        LiteRTModel(path, allow_ops=TOY_OPS)
    path.with_suffix(".json").unlink()
    with pytest.raises(FileNotFoundError, match="toy.json"):
        LiteRTModel(path, allow_ops=TOY_OPS)


def test_missing_litert_is_named(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(ImportError, match="pip install ai-edge-litert"):
        LiteRTModel(exported / "toy.tflite", allow_ops=TOY_OPS)
