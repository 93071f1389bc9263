"""The sidecar says what the artifact is, its test vectors are what the artifact does, and the guide has words for all of it."""

import base64
import json
import pathlib
import re

import numpy as np
import pytest

from keras_seqlm import tokenizers
from keras_seqlm.export import sidecar, vectors
from seqlm_runtime import LiteRTModel, SavedModel
from seqlm_runtime.sampler import sample, uniform

GUIDE = (pathlib.Path(__file__).parents[2] / "guides" / "sidecar.md").read_text("utf-8")
NAMES = ("lstm", "transformer")


def beside(path):
    """The sidecar of an artifact, and the folder that it lies in."""
    path = pathlib.Path(path)
    file = path.with_suffix(".json") if path.suffix == ".tflite" else path / "assets.extra" / "seqlm.json"
    return json.loads(file.read_text("utf-8")), file.parent


def tensors(signature, key):
    return {name: (tensor["dtype"], tensor["shape"]) for name, tensor in signature[key].items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_signatures_of_a_saved_model_are_those_in_its_file(saved_model, name):
    said = beside(saved_model(name))[0]["signatures"]
    with SavedModel(saved_model(name), xla=True) as model:
        found = model.signatures
    assert set(said) == set(found)
    for signature, parts in found.items():
        for key, infos in zip(("inputs", "outputs"), parts, strict=True):
            dtypes = {"object": "string"}
            wanted = {}
            for tensor, info in infos.items():
                dtype = np.dtype(info.dtype).name
                wanted[tensor] = (dtypes.get(dtype, dtype), list(info.shape))
            assert tensors(said[signature], key) == wanted, signature
        assert "state" not in said[signature]


@pytest.mark.parametrize("name", NAMES)
def test_the_signatures_of_a_litert_file_are_those_in_it(litert, name):
    from ai_edge_litert.interpreter import Interpreter

    said = beside(litert(name))[0]
    interpreter = Interpreter(model_path=litert(name))
    assert set(said["signatures"]) == set(interpreter.get_signature_list())
    leaves = {leaf: (info["dtype"], info["shape"]) for leaf, info in said["state"].items()}
    for signature, parts in said["signatures"].items():
        runner = interpreter.get_signature_runner(signature)
        assert sorted(parts["state"]) == sorted(leaves)
        for key, details in (("inputs", runner.get_input_details()), ("outputs", runner.get_output_details())):
            found = {part: (np.dtype(info["dtype"]).name, info["shape"].tolist()) for part, info in details.items()}
            if key == "outputs":  # the file keeps no shapes of outputs before they are computed
                found = {
                    part: (dtype, {**leaves, "logits": (0, [1, 260])}[part][1]) for part, (dtype, _) in found.items()
                }
            assert {**tensors(parts, key), **leaves} == found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["saved_model", "litert"])
def test_the_tokenizer_beside_it_gives_the_vectors(request, name, kind):
    said, folder = beside(request.getfixturevalue(kind)(name))
    tokenizer = tokenizers.load(folder / said["tokenizer"]["folder"])
    assert tokenizer.hash == said["tokenizer_hash"] == said["tokenizer"]["hash"]
    assert sorted(path.name for path in (folder / said["tokenizer"]["folder"]).iterdir()) == said["tokenizer"]["files"]
    assert (
        json.loads((folder / said["tokenizer"]["folder"] / said["tokenizer"]["config"]).read_text())["type"] == "byte"
    )
    rows = said["test_vectors"]["tokenizer"]
    assert len(rows["encode"]) > 15 and len(rows["decode"]) > 30
    for row in rows["encode"]:
        text = row["text"] if "text" in row else base64.b64decode(row["base64"])
        assert tokenizer.encode(text).tolist() == row["ids"]
    for row in rows["decode"]:
        assert tokenizer.decode(row["ids"]) == row["text"]
        assert tokenizer.decode_bytes(row["ids"]) == base64.b64decode(row["base64"])
    assert said["tokenizer"]["before_prompt"] == [1] and said["stop"]["eos_id"] == 2


def test_the_vectors_of_the_sampler_hang_on_no_rounding(litert):
    found = beside(litert("lstm"))[0]["test_vectors"]
    for draw in found["random"]:
        assert uniform(draw["seed"], draw["position"]) == draw["bits"] / 2**24
    choices, random = found["sampler"]["choices"], np.random.default_rng(1)
    used = {name for choice in choices for name in choice["options"]}
    assert used == {"temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"} and len(choices) > 60
    for choice in choices:
        logits = np.array(found["sampler"]["logits"][choice["logits"]], "float32")
        seen = np.isin(np.arange(len(logits)), choice["seen"])
        position, suppressed = choice["position"], tuple(choice["suppressed_ids"])
        assert sample(logits, choice["options"], seen, position, suppressed)[0] == choice["token"]
        if choice["logits"] != 3:  # ties, where the rule itself is tried
            moved = logits * np.float32(1 + 1e-6) + random.uniform(-1e-5, 1e-5, len(logits)).astype("float32")
            assert sample(moved, choice["options"], seen, position, suppressed)[0] == choice["token"]


@pytest.mark.parametrize("name", NAMES)
def test_a_litert_file_writes_its_vectors(litert, name):
    said, _ = beside(litert(name))
    model = LiteRTModel(litert(name))
    rows = said["test_vectors"]["written"]
    ways = [row["options"]["temperature"] for row in rows]
    assert 0.0 in ways and 0.8 in ways and [row["truncated"] for row in rows].count(True) == 1
    for row in rows:
        got = model.generate(row["prompt"], row["max_new_tokens"], **row["options"])
        assert got["token_ids"].tolist() == row["token_ids"] and got["text"] == row["text"]
        assert got["stop_reason"] == row["stop_reason"] and got["truncated"] == row["truncated"]
        assert row["margin"] >= vectors.SURE
        assert row["prompt_ids"] == [1, *model.tokenizer.encode(row["prompt"]).tolist()][-len(row["prompt_ids"]) :]


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_answers_its_vectors(saved_model, serve, name):
    rows = beside(saved_model(name))[0]["test_vectors"]["written"]
    off = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "seed": 0}
    columns = {key: [row["options"].get(key, value) for row in rows] for key, value in off.items()}
    texts = [row["prompt"].encode().decode("latin-1") for row in rows]
    budgets = [row["max_new_tokens"] for row in rows]
    (got,) = serve(saved_model(name), [("generate", {"text": texts, "max_new_tokens": budgets, **columns})])
    for i, row in enumerate(rows):
        assert got["token_ids"][i][: got["num_tokens"][i]] == row["token_ids"]
        assert got["generated_text"][i].encode("latin-1").decode() == row["text"]
        assert got["truncated"][i] == row["truncated"]
    assert len(rows) >= 3


def test_what_has_no_words_is_refused(saved_model):
    import tensorflow as tf

    spec = tf.TensorSpec([None], tf.string, "text")
    shout = tf.function(lambda text: {"text": text}).get_concrete_function(text=spec)
    with pytest.raises(ValueError, match="the signature 'shout' has no words"):
        sidecar.traced_signature("shout", shout)
    with pytest.raises(ValueError, match="the tensor 'text' has no words"):
        sidecar.traced_signature("score", shout)


def keys_of(content):
    if isinstance(content, dict):
        for key, value in content.items():
            yield key
            if key not in ("signatures", "special_ids", "files", "tokenizer_files"):  # names, not fields
                yield from keys_of(value)
    elif isinstance(content, list):
        for item in content:
            yield from keys_of(item)


def test_the_guide_says_every_field(saved_model, litert):
    words = set(re.findall(r"[a-z_0-9]+", " ".join(re.findall(r"`([^`]+)`", GUIDE))))
    leaves = set(beside(litert("transformer"))[0]["state"]) - {"position"}
    for path in (saved_model("transformer"), litert("transformer"), litert("lstm")):
        content = beside(path)[0]
        missing = set(keys_of(content)) - words - leaves - {"h_0", "c_0"}
        assert not missing, missing
        parts = {key for signature in content["signatures"].values() for key in signature}
        assert parts - words == set()


def test_a_list_of_numbers_is_one_line():
    content = {"a": list(range(200)), "b": {"c": "x" * 200, "d": [{"e": 1.5, "f": None}] * 20}, "g": [], "h": {}}
    text = sidecar.as_json(content)
    assert json.loads(text) == content
    assert sum(line.startswith(' "a": [0, 1, 2') for line in text.splitlines()) == 1
    assert text.count('   {"e": 1.5, "f": null}') == 20
