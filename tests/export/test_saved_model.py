"""A SavedModel in TensorFlow's C library, XLA off as on the stock server: it says what its model says, to any request."""

import importlib
import json
import pathlib
import sys

import numpy as np
import pytest
from helpers import array
from sentences import ARCHITECTURES, PROMPTS, READ

from keras_seqlm import export
from keras_seqlm.export.inspection import forbidden_ops
from keras_seqlm.export.questions import MODES
from seqlm_runtime import SavedModel
from seqlm_runtime.graph_file import read_graph

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="TensorFlow's C library is used on Linux only")

LIMIT = 80  # max_new_tokens_limit of the fixture
OFF = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "seed": 0}
OPTIONS = {
    "max_new_tokens": (np.int32, (None,)),
    "temperature": (np.float32, (None,)),
    "top_k": (np.int32, (None,)),
    "top_p": (np.float32, (None,)),
    "min_p": (np.float32, (None,)),
    "repetition_penalty": (np.float32, (None,)),
    "seed": (np.int32, (None,)),
}
TEXT = {"text": (object, (None,))}
WRITTEN = {
    "generated_text": (object, (None,)),
    "token_ids": (np.int32, (None, None)),
    "num_tokens": (np.int32, (None,)),
    "truncated": (np.bool_, (None,)),
}
SIGNATURES = {
    "serving_default": (TEXT, WRITTEN),
    "generate_text": (TEXT, WRITTEN),
    "generate": ({**TEXT, **OPTIONS}, WRITTEN),
    "generate_xla": ({**TEXT, **OPTIONS}, WRITTEN),
    "score": (
        TEXT,
        {"log_probability": (np.float32, (None,)), "num_tokens": (np.int32, (None,)), "truncated": (np.bool_, (None,))},
    ),
    "logits": (
        {"token_ids": (np.int32, (None, None)), "lengths": (np.int32, (None,))},
        {"logits": (np.float32, (None, None, 260))},
    ),
}
# One batch whose rows want different things, of one prompt each from PROMPTS.
MIXED = {**MODES["mixed"], "max_new_tokens": [12, 40, 0, 20, 7, 33, 1, 60]}


def latin(texts):
    return [(text if isinstance(text, bytes) else text.encode()).decode("latin-1") for text in texts]


def request(texts, **options):
    """A request to `generate`: every option as a row of values, those not given being off."""
    given = {"max_new_tokens": 16, **OFF, **options}
    rows = {name: value if isinstance(value, list) else [value] * len(texts) for name, value in given.items()}
    return {"text": latin(texts), **rows}


def texts_of(answer):
    return [text.encode("latin-1").decode("utf-8") for text in answer["generated_text"]]  # strict: it is valid UTF-8


def ids_of(answer):
    return [ids[:count] for ids, count in zip(answer["token_ids"], answer["num_tokens"], strict=True)]


@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_signatures_are_those_that_are_promised(saved_model, name):
    with SavedModel(saved_model(name), xla=True) as model:
        found = {
            signature: tuple({key: (info.dtype, info.shape) for key, info in part.items()} for part in parts)
            for signature, parts in model.signatures.items()
        }
    # The compiled core has one width, whatever is asked for.
    compiled = {**WRITTEN, "token_ids": (np.int32, (None, LIMIT))}
    assert found == SIGNATURES | {"generate_xla": (SIGNATURES["generate_xla"][0], compiled)}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_served_text_is_the_models_text(saved_model, trained, serve, name):
    task, prompts = trained(name), list(PROMPTS[:8])
    long = "the cat sat on the mat. " * 10
    served, default, alone, again, score, cut = serve(
        saved_model(name),
        [
            ("generate", request(prompts, **MIXED)),
            ("serving_default", {"text": latin(prompts)}),
            ("generate", request(prompts[3:4], **{key: values[3:4] for key, values in MIXED.items()})),
            ("generate", request(prompts, **MIXED)),
            ("score", {"text": latin([*prompts, "\x00", "x" * 40])}),
            ("generate", request([long, "a"], max_new_tokens=[20, 5])),
        ],
    )
    wanted = task.write(prompts, **MIXED)
    assert ids_of(served) == [text.token_ids for text in wanted]
    assert texts_of(served) == [text.text for text in wanted]
    assert served["truncated"] == [text.truncated for text in wanted]
    assert served == again, "one request, one answer"
    assert ids_of(alone) == ids_of(served)[3:4], "a row alone is the row in a batch"
    assert texts_of(default) == task.generate(prompts)
    beyond = [ids[count:] for ids, count in zip(served["token_ids"], served["num_tokens"], strict=True)]
    assert any(beyond) and not any(map(any, beyond)), "what lies beyond a row's text is 0"
    assert score["log_probability"] == pytest.approx(task.score([*prompts, "\x00", "x" * 40]), abs=2e-3)
    assert score["num_tokens"] == [len(text.encode()) for text in [*prompts, "\x00", "x" * 40]]
    long_texts = task.write([long, "a"], [20, 5])
    assert ids_of(cut) == [text.token_ids for text in long_texts]
    assert cut["truncated"] == [text.truncated for text in long_texts] == [name == "transformer", False]


@pytest.mark.parametrize("name", ["gru", "transformer"])
def test_the_served_logits_are_the_models_logits(saved_model, trained, serve, name):
    ids = np.random.default_rng(1).integers(4, 260, (3, 20)).astype("int32")
    lengths = [20, 1, 7]
    (answer,) = serve(saved_model(name), [("logits", {"token_ids": ids.tolist(), "lengths": lengths})])
    wanted = array(trained(name).model(ids))
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(np.array(answer["logits"])[row, :length], wanted[row, :length], atol=1e-5)


HOSTILE_TEXTS = [
    *(b"", b" ", b"\n", b"\x00", b"a\x00b", b"\xff\xfe", b"\xc3", b"\xf0\x9f", b"caf\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbfx"),
    *("\u202e\u200f abc", "👩\u200d👩\u200d👧", "秦川雄帝宅", "e" + "\u0301" * 500, "ﷺ\u2028\u0085\r\n\t", "x" * 20_000),
]  # fmt: skip
HOSTILE_OPTIONS = [
    {"max_new_tokens": 0},
    {"max_new_tokens": -1},
    {"max_new_tokens": 2**31 - 1},
    {"max_new_tokens": -(2**31)},
    {"temperature": float("nan")},
    {"temperature": -1.0},
    {"temperature": float("inf")},
    {"temperature": 1e-30, "seed": 3},
    {"temperature": 1.0, "top_p": 0.0},
    {"temperature": 1.0, "top_p": 2.0},
    {"temperature": 1.0, "top_p": float("nan")},
    {"temperature": 1.0, "top_p": -1.0},
    {"temperature": 1.0, "top_k": -5},
    {"temperature": 1.0, "top_k": 2**31 - 1},
    {"temperature": 1.0, "min_p": float("nan")},
    {"temperature": 1.0, "min_p": 9.0},
    {"repetition_penalty": 0.0},
    {"repetition_penalty": -2.0},
    {"repetition_penalty": float("nan")},
    {"repetition_penalty": float("inf")},
    {"temperature": 1.0, "seed": -1},
    {"temperature": 1.0, "seed": -(2**31)},
]


@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_no_request_fails_or_gives_what_is_no_text(saved_model, trained, serve, name):
    plainly = {"max_new_tokens": 16, **OFF}
    columns = {key: [row.get(key, plainly[key]) for row in HOSTILE_OPTIONS] for key in OPTIONS}
    prompt = "the cat"
    texts, options, empty, empty_default, empty_score, scores, plain = serve(
        saved_model(name),
        [
            ("serving_default", {"text": latin(HOSTILE_TEXTS)}),
            ("generate", request([prompt] * len(HOSTILE_OPTIONS), **columns)),
            ("generate", request([])),
            ("serving_default", {"text": []}),
            ("score", {"text": []}),
            ("score", {"text": latin(HOSTILE_TEXTS)}),
            ("generate", request([prompt] * 4, max_new_tokens=[16, 80, 16, 16], temperature=[0.0, 0.0, 1.0, 1e6])),
        ],
    )
    assert len(texts_of(texts)) == len(HOSTILE_TEXTS)
    assert all(count <= 64 for count in texts["num_tokens"])
    assert all(i == 2 or 3 < i < 260 or i == 0 for ids in texts["token_ids"] for i in ids)
    assert np.isfinite(scores["log_probability"]).all() and scores["log_probability"][0] == 0.0
    for answer in (empty, empty_default):
        assert answer["generated_text"] == answer["num_tokens"] == answer["truncated"] == answer["token_ids"] == []
    assert empty_score == {"log_probability": [], "num_tokens": [], "truncated": []}

    new, (greedy, longest, sampled, hottest) = ids_of(options), ids_of(plain)
    assert len(texts_of(options)) == len(new) and all(0 <= i < 260 for ids in new for i in ids)
    by_option = {json.dumps(option): ids for option, ids in zip(HOSTILE_OPTIONS, new, strict=True)}

    def got(**option):
        return by_option[json.dumps(option)]

    nan = float("nan")
    assert got(max_new_tokens=0) == got(max_new_tokens=-1) == got(max_new_tokens=-(2**31)) == []
    huge = got(max_new_tokens=2**31 - 1)
    assert huge == trained(name).write(prompt, LIMIT)[0].token_ids == longest and len(huge) <= LIMIT
    assert got(temperature=nan) == got(temperature=-1.0) == got(temperature=1e-30, seed=3) == greedy
    assert got(temperature=float("inf")) == hottest
    assert got(temperature=1.0, top_p=0.0) == got(temperature=1.0, top_p=-1.0) == greedy
    for off in ({"top_p": 2.0}, {"top_p": nan}, {"top_k": -5}, {"top_k": 2**31 - 1}, {"min_p": nan}):
        assert got(temperature=1.0, **off) == sampled
    for off in (0.0, -2.0, nan):
        assert got(repetition_penalty=off) == greedy


@pytest.mark.slow
def test_the_compiled_signature_writes_the_same(saved_model, serve):
    """That of every architecture writes what the model does in `test_every_artifact_agrees_with_its_model`."""
    wish = request(list(PROMPTS[:8]), **MIXED)
    requests = [("generate", wish), ("generate_xla", wish), ("generate_xla", request([]))]
    plain, compiled, nothing = serve(saved_model("lstm"), requests, xla=True)
    assert ids_of(plain) == ids_of(compiled) and plain["generated_text"] == compiled["generated_text"]
    assert plain["truncated"] == compiled["truncated"]
    assert nothing["generated_text"] == []  # compiled for one row


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_xla_is_in_the_compiled_signature_alone(saved_model, name):
    found = read_graph(saved_model(name))
    assert found.xla("generate_xla")
    assert {signature for signature in found.signatures if found.xla(signature)} == {"generate_xla"}
    assert forbidden_ops(saved_model(name)) == []


def test_signatures_that_write_alike_call_one_function(saved_model):
    """Each held the whole of it, which was traced six times for them."""
    graph = read_graph(saved_model("lstm"))
    called = []
    for signature in ("serving_default", "generate_text", "generate"):
        outputs = graph.signatures[signature].outputs.values()
        called.append(graph.called(graph.upstream([info.tensor for info in outputs])))
    assert [name for name in set.intersection(*called) if name.startswith("__inference_answer")]


def test_what_lies_in_the_folder(saved_model):
    folder = pathlib.Path(saved_model("lstm"))
    assert sorted(path.name for path in folder.parent.iterdir()) == ["1", "batching.txt", "models.config"]
    sidecar = json.loads((folder / "assets.extra" / "seqlm.json").read_text())
    assert sidecar["max_new_tokens_limit"] == LIMIT and sidecar["vocabulary_size"] == 260
    assert sorted(sidecar["files"]) == [
        "assets.extra/tf_serving_warmup_requests",
        "assets.extra/tokenizer/seqlm_tokenizer.json",
        "fingerprint.pb",
        "saved_model.pb",
        "variables/variables.data-00000-of-00001",
        "variables/variables.index",
    ]
    assert sidecar["max_length"] is None and sidecar["model"] == "RecurrentLM" and len(sidecar["tokenizer_hash"]) == 16
    assert sidecar["max_prompt_tokens"] == READ
    default = pathlib.Path(saved_model("rnn"), "assets.extra", "seqlm.json")
    assert json.loads(default.read_text())["max_prompt_tokens"] == 4096


def test_nothing_of_it_writes_and_every_loader_of_tensorflow_reads_it(saved_model, in_fork, tmp_path):
    path = saved_model("lstm")
    graph = read_graph(path)
    functions = [node for function in graph.functions.values() for node in function.nodes]
    ops = {node.op for node in (*graph.nodes.values(), *functions)}
    assert "RestoreV2" in ops and not ops & {"SaveV2", "MergeV2Checkpoints", "ShardedFilename"} and graph.at_start == []
    script = """
        import json, shutil, sys
        import tensorflow as tf
        from tensorflow.python.saved_model.fingerprinting_utils import write_fingerprint
        path, copy = sys.argv[1:]
        texts = [tf.saved_model.load(path).signatures["generate_text"](text=tf.constant(["The"]))["generated_text"].numpy()[0]]
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            signature = tf.compat.v1.saved_model.load(session, ["serve"], path).signature_def["generate_text"]
            inputs, outputs = signature.inputs["text"].name, signature.outputs["generated_text"].name
            texts += session.run(outputs, {inputs: ["The"]}).tolist()
        shutil.copytree(path, copy)
        write_fingerprint(copy)
        read = [tf.saved_model.experimental.read_fingerprint(folder).saved_model_checksum for folder in (path, copy)]
        print(json.dumps([texts[0].decode() == texts[1].decode() != "", read[0] == read[1]]))
    """
    assert in_fork(script, path, str(tmp_path / "copy"), backend="tensorflow") == [True, True]


def test_a_model_that_has_to_run_something_after_loading_is_refused(tmp_path):
    import tensorflow as tf

    from keras_seqlm.export.served_part import save_served_part

    module = tf.Module()
    pairs = tf.lookup.KeyValueTensorInitializer(["a"], [1])
    module.table = tf.lookup.StaticHashTable(pairs, 0)
    module.f = tf.function(
        lambda text: {"y": module.table.lookup(text)}, input_signature=[tf.TensorSpec([None], tf.string)]
    )
    with pytest.raises(ValueError, match="has to run something after it is loaded .* in a variable or a constant"):
        save_served_part(module, str(tmp_path / "1"), {"f": module.f})


def test_an_existing_version_is_kept_unless_told(saved_model, run_folder, monkeypatch, tmp_path):
    module = importlib.import_module("keras_seqlm.export.saved_model")  # `export.saved_model` is the function
    monkeypatch.setattr(module, "run_clean", lambda *_, path, **__: pathlib.Path(path).mkdir())
    target = tmp_path / "books" / "1"
    target.mkdir(parents=True)
    (target / "kept").write_text("x")
    with pytest.raises(FileExistsError, match="name another version, or overwrite it"):
        export.saved_model(run_folder("lstm"), target)
    assert (target / "kept").exists()
    assert export.saved_model(run_folder("lstm"), target, overwrite=True) == target
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["1", "batching.txt", "books", "models.config"]


@pytest.mark.parametrize("path", ["books", "books/v1", "books/1.5", "books/-1"])
def test_a_folder_that_is_no_version_is_refused(run_folder, tmp_path, path):
    with pytest.raises(ValueError, match="a folder named by its version, as in saved_models/NAME/1"):
        export.saved_model(run_folder("lstm"), tmp_path / path)


def test_a_limit_below_one_is_refused(run_folder, tmp_path):
    with pytest.raises(ValueError, match="max_new_tokens_limit must be at least 1, got 0"):
        export.saved_model(run_folder("lstm"), tmp_path / "1", max_new_tokens_limit=0)


def test_the_next_version(tmp_path):
    assert export.next_version(tmp_path / "none") == 1
    for name in ("1", "3", "10", ".11.part-7", "latest"):
        (tmp_path / name).mkdir()
    assert export.next_version(tmp_path) == 11
    assert export.next_version(tmp_path / "1") == 1


def test_a_failed_export_leaves_nothing(run_folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for path in ("tokenizer", "task.json"):
        (run / path).symlink_to(run_folder("lstm") / path)
    content = (run_folder("lstm") / "model.keras").read_bytes()
    (run / "model.keras").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"model\.keras is damaged"):
        export.saved_model(run, tmp_path / "books" / "1")
    assert list((tmp_path / "books").iterdir()) == []


@pytest.mark.slow
def test_a_model_trained_under_jax(corpus, in_fork, serve, tmp_path):
    """Its export, which TensorFlow makes, gives the logits that it has on JAX."""
    pytest.importorskip("jax")
    script = """
        import json, sys
        del sys.modules["tensorflow"]  # which has been kept from being imported, to save time
        import keras, numpy as np
        sys.path.insert(0, sys.argv[1])
        from sentences import train_on_sentences
        from keras_seqlm import export
        task = train_on_sentences(sys.argv[2], "gru", "float32")
        export.saved_model(task, sys.argv[3], max_new_tokens_limit=16, max_prompt_tokens=32)
        logits = task.model(np.array(json.loads(sys.argv[4]), "int32"))
        print(json.dumps([keras.backend.backend(), np.asarray(logits).tolist()]))
    """
    ids, path = [[1, *b"the cat sat"], [1, *b"a dog ran\n\n"]], tmp_path / "jax" / "1"
    backend, logits = in_fork(script, pathlib.Path(__file__).parents[1], corpus, path, json.dumps(ids), backend="jax")
    (answer,) = serve(str(path), [("logits", {"token_ids": ids, "lengths": [len(row) for row in ids]})])
    assert backend == "jax" and np.ptp(logits) > 1
    np.testing.assert_allclose(answer["logits"], logits, atol=1e-4)
