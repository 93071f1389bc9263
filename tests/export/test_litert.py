"""A LiteRT file: signatures, sidecar and tokenizer as promised, builtin operations only, and its model's ids."""

import hashlib
import importlib
import json
import pathlib
import shutil

import numpy as np
import pytest
from helpers import array
from sentences import ARCHITECTURES, CONTEXT, PROMPTS, QUANTIZED

from keras_seqlm import export, tokenizers
from keras_seqlm.export.inspection import forbidden_ops
from keras_seqlm.models import TransformerLM
from keras_seqlm.tasks import TextGeneration
from keras_seqlm.tokenizers import CharacterTokenizer
from seqlm_runtime import LiteRTModel

LITERT_MODULE = importlib.import_module("keras_seqlm.export.litert")  # `export.litert` is the function
CACHES = {f"kv_cache_{kind}_{i}": [1, 2, CONTEXT, 8] for i in (0, 1) for kind in "kv"}
STATES = {
    "rnn": {"h_0": [1, 32]},
    "gru": {"h_0": [1, 32], "h_1": [1, 32]},
    "lstm": {"h_0": [1, 32], "c_0": [1, 32]},
    "transformer": CACHES,  # two key-value heads for four heads
}


def names_of(run):
    """The operations of a LiteRT file by name, custom ones as they are called."""
    from ai_edge_litert import schema_py_generated as schema

    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    model = schema.Model.GetRootAs(pathlib.Path(run).read_bytes(), 0)
    codes = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength())]
    return {names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())] for code in codes}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_signatures_take_and_give_what_is_promised(litert, name):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=litert(name))
    prefills = [16, 32, 64] if name == "transformer" else [16, 64, 256]
    lengths = {**{f"prefill_{length}": length for length in prefills}, "decode": 1}
    leaves = {"position": [1], **STATES[name]}
    assert sorted(interpreter.get_signature_list()) == sorted(lengths)
    for signature, length in lengths.items():
        runner = interpreter.get_signature_runner(signature)
        inputs = {key: (info["shape"].tolist(), info["dtype"]) for key, info in runner.get_input_details().items()}
        outputs = {key: info["dtype"] for key, info in runner.get_output_details().items()}
        types = {leaf: np.int32 if leaf == "position" else np.float32 for leaf in leaves}
        assert inputs == {
            "token_ids": ([1, length], np.int32),
            "lengths": ([1], np.int32),
            **{leaf: (shape, types[leaf]) for leaf, shape in leaves.items()},
        }
        assert outputs == {"logits": np.float32, **types}
        zeros = {key: np.zeros(shape, dtype) for key, (shape, dtype) in inputs.items()}
        shapes = {key: list(value.shape) for key, value in runner(**zeros | {"lengths": np.ones(1, "int32")}).items()}
        assert shapes == {"logits": [1, 260], **leaves}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_sidecar_describes_the_file(litert, trained, name):
    path = pathlib.Path(litert(name))
    sidecar = json.loads(path.with_suffix(".json").read_text())
    assert sidecar["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sidecar["state"] == {
        "position": {"shape": [1], "dtype": "int32"},
        **{leaf: {"shape": shape, "dtype": "float32"} for leaf, shape in STATES[name].items()},
    }
    assert sidecar["max_length"] == (CONTEXT if name == "transformer" else None)
    assert (sidecar["bos_id"], sidecar["eos_id"], sidecar["suppressed_ids"]) == (1, 2, [0, 1, 3])
    assert sidecar["tokenizer_hash"] == trained(name).tokenizer.hash
    assert path.with_suffix(".tokenizer").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_builtin_operations_alone(litert, name):
    for quantize in ("none", "float16", "int8") if name in QUANTIZED else ("none",):
        found = names_of(litert(name, quantize))
        assert "FULLY_CONNECTED" in found and not found & {"CUSTOM", "VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE"}
        assert forbidden_ops(litert(name, quantize)) == []


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "seed": 7}], ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_writes_the_ids_of_the_model(litert, trained, name, options):
    runner = LiteRTModel(litert(name))
    prompts = [*PROMPTS[:8], "the cat sat on the mat. " * 3]
    for prompt, wanted in zip(prompts, trained(name).write(prompts, 20, **options), strict=True):
        got = runner.generate(prompt, max_new_tokens=20, **options)
        assert got["token_ids"].tolist() == wanted.token_ids and got["text"] == wanted.text
        assert got["stop_reason"] == wanted.stop_reason and got["truncated"] == wanted.truncated


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_its_logits_are_the_models(litert, trained, name):
    runner, ids = LiteRTModel(litert(name)), np.random.default_rng(2).integers(4, 260, 37).astype("int32")
    wanted = array(trained(name).model(ids[None]))[0]
    for length in (1, 2, 16, 17, 37):
        np.testing.assert_allclose(runner.logits(ids[:length]), wanted[length - 1], atol=1e-5)


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_files_are_smaller_and_near(litert, trained, name):
    exact = pathlib.Path(litert(name))
    wanted = LiteRTModel(exact).logits([1, 120, 108, 105])
    for quantize, near in (("float16", 0.02), ("int8", 1.0)):
        path = pathlib.Path(litert(name, quantize))
        assert path.name == f"{name}-{quantize}.tflite" and path.parent == exact.parent
        assert path.stat().st_size < exact.stat().st_size
        assert not path.with_suffix(".tokenizer").exists(), "it shares the tokenizer of the exact file"
        difference = np.abs(LiteRTModel(path).logits([1, 120, 108, 105]) - wanted).max()
        assert 0 < difference < near


def test_a_damaged_file_is_found_by_its_hash(litert, tmp_path):
    source = pathlib.Path(litert("lstm"))
    content = source.read_bytes()
    shutil.copy(source.with_suffix(".json"), tmp_path)
    shutil.copytree(source.with_suffix(".tokenizer"), tmp_path / "lstm.tokenizer")
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    for damaged in (flipped, content[:middle], b"", content + b"\0"):
        (tmp_path / "lstm.tflite").write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged or was replaced"):
            LiteRTModel(tmp_path / "lstm.tflite")
    (tmp_path / "lstm.tflite").write_bytes(content)
    assert LiteRTModel(tmp_path / "lstm.tflite").vocabulary_size == 260


@pytest.mark.parametrize(
    ("path", "quantize", "message"),
    [("a.lite", "none", "named NAME.tflite"), ("a.tflite", "int4", "quantize must be one of")],
)
def test_wrong_names_are_refused(run_folder, tmp_path, path, quantize, message):
    with pytest.raises(ValueError, match=message):
        export.litert(run_folder("lstm"), tmp_path / path, quantize)


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_an_existing_file_is_kept_unless_told(run_folder, monkeypatch, tmp_path, quantize):
    def write(_, path, **__):
        pathlib.Path(path).write_text("new")
        return {"format": 1}

    monkeypatch.setattr(LITERT_MODULE, "run_clean", write)
    target = tmp_path / ("books.tflite" if quantize == "none" else "books-int8.tflite")
    target.write_text("old")
    with pytest.raises(FileExistsError, match="name another, or overwrite it"):
        export.litert(run_folder("lstm"), tmp_path / "books.tflite", quantize)
    assert target.read_text() == "old"
    assert export.litert(run_folder("lstm"), tmp_path / "books.tflite", quantize, overwrite=True) == target
    assert target.read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{target.stem}.json", target.name]


def test_the_tokenizer_of_another_model_is_kept(run_folder, tmp_path):
    other = CharacterTokenizer.train(texts=["abc"])
    other.save(tmp_path / "books.tokenizer")
    where = {"path": str(tmp_path / "part"), "tokenizer_path": str(tmp_path / "books.tokenizer")}
    with pytest.raises(FileExistsError, match="the tokenizer of another model, whose files need it"):
        LITERT_MODULE.write_litert(str(run_folder("lstm")), **where, quantize="int8", overwrite=False)
    assert tokenizers.load(tmp_path / "books.tokenizer").hash == other.hash
    assert [path.name for path in tmp_path.iterdir()] == ["books.tokenizer"]


def test_a_failed_export_leaves_nothing(run_folder, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.keras").write_bytes(b"no model")
    with pytest.raises((ValueError, FileNotFoundError)):
        export.litert(tmp_path / "run", tmp_path / "out" / "books.tflite")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_context_of_one_token_has_no_prefill(tmp_path):
    """Its export failed: one token was a prefill by its length, and `decode` by its name."""
    model = TransformerLM(260, size="nano", num_layers=1, hidden_dim=16, num_heads=2, max_length=1)
    model.build()
    task, path = TextGeneration(model, tokenizers.ByteTokenizer()), str(tmp_path / "one.tflite")
    export.litert(task, path)
    lite = LiteRTModel(path)
    (written,) = task.write("", 3)
    assert lite.prefill_lengths == []
    assert (
        lite.generate("", max_new_tokens=3)["token_ids"].tolist() == written.token_ids and len(written.token_ids) == 1
    )
