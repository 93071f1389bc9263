"""A server is warm before its first request: its requests, files beside the versions, and what it does not write to its log."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from sentences import CONTEXT, SENTENCES

from keras_seqlm import export, models, tasks, tokenizers
from keras_seqlm.export.signatures import pad_to_buckets
from keras_seqlm.export.warm_up import WARM_UP, warm_up_requests, write_server_files, write_warm_up
from keras_seqlm.tokenizers import ByteTokenizer
from keras_seqlm.tokenizers.sentence_piece_op import _NOTHING_MAPPED
from seqlm_runtime.prompts import read_ids
from seqlm_runtime.tokenizers.charsmap import Charsmap
from seqlm_runtime.warm_up import read_warm_up

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="TensorFlow's C library is used on Linux only")
SIGNATURES = ["serving_default", "generate_text", "score", "generate", "generate"]


@pytest.fixture(scope="module")
def pairs(once, fast_exports):
    """The SavedModel of a model that reads byte pairs, which the SentencePiece operation merges."""

    def make(path):
        tokenizer = tokenizers.BytePairTokenizer.train(texts=SENTENCES * 20, vocabulary_size=300)
        model = models.RecurrentLM(tokenizer.vocabulary_size, cell="gru", size="nano", hidden_dim=8)
        model.build()
        with fast_exports():
            export.saved_model(tasks.TextGeneration(model, tokenizer), path, max_prompt_tokens=40)

    return str(once("saved_models/pairs/1", make))


def test_a_request_of_every_signature_for_every_bucket(saved_model):
    requests = read_warm_up(saved_model("transformer"))
    assert [name for name, _ in requests] == SIGNATURES * 3 + ["logits"] * 7
    lengths = [len(read_ids(ByteTokenizer(), inputs["text"][0])[0]) for name, inputs in requests if name == "score"]
    assert [16, 32, CONTEXT - 1] == [bucket for bucket in (16, 32, 63) for n in lengths if bucket // 2 < n <= bucket]
    assert [inputs["token_ids"].shape for name, inputs in requests if name == "logits"] == [
        (1, n) for n in (16, 32, 64, 8, 4, 2, 1)
    ]
    given = {name: inputs for name, inputs in requests if name == "generate"}["generate"]
    assert (
        given["temperature"] == np.float32(0.8) and given["seed"].dtype == np.int32 and given["max_new_tokens"] == [2]
    )


def test_what_is_written_is_what_is_read(tmp_path):
    requests = warm_up_requests(ByteTokenizer(), 100, 120)
    (tmp_path / "assets.extra").mkdir()
    write_warm_up(tmp_path / WARM_UP, requests)
    found = read_warm_up(tmp_path)
    assert [name for name, _ in found] == [name for name, _ in requests]
    for (_, wanted), (_, inputs) in zip(requests, found, strict=True):
        assert sorted(inputs) == sorted(wanted)
        for name, value in wanted.items():
            assert inputs[name].dtype == value.dtype and inputs[name].tolist() == value.tolist()
    assert read_warm_up(tmp_path / "none") == []
    content = (tmp_path / WARM_UP).read_bytes()
    for damaged in (content[:-40], content[:5], b"\xff" * 40):
        (tmp_path / WARM_UP).write_bytes(damaged)
        with pytest.raises(ValueError, match="holds no warm-up requests, or is cut"):
            read_warm_up(tmp_path)


def test_tensorflow_finds_the_checksums_right(saved_model):
    import tensorflow as tf

    path = pathlib.Path(saved_model("lstm")) / WARM_UP
    assert len(list(tf.data.TFRecordDataset(str(path)))) == len(read_warm_up(saved_model("lstm")))


def test_the_official_reader_reads_the_same(saved_model):
    logs = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    import tensorflow as tf

    path = pathlib.Path(saved_model("lstm"))
    records = list(tf.data.TFRecordDataset(str(path / WARM_UP)).as_numpy_iterator())
    for record, (signature, inputs) in zip(records, read_warm_up(path), strict=True):
        request = logs.PredictionLog.FromString(record).predict_log.request
        assert request.model_spec.signature_name == signature and set(request.inputs) == set(inputs)
        for name, value in inputs.items():
            assert tf.make_ndarray(request.inputs[name]).tolist() == value.tolist()


@linux_only
@pytest.mark.parametrize("name", ["transformer", "pairs"])
def test_every_request_is_answered(saved_model, pairs, in_python, name):
    """One that fails keeps the stock server from loading the model."""
    path = pairs if name == "pairs" else saved_model(name)
    script = "import sys; from seqlm_runtime import SavedModel; print(SavedModel(sys.argv[1]).warm_up())"
    assert in_python(script, path) == len(read_warm_up(path)) > 15


@linux_only
def test_nothing_is_said_in_the_servers_log(pairs):
    """SentencePiece said of every model that its charsmap is empty."""
    script = """
import sys
from seqlm_runtime import SavedModel
assert SavedModel(sys.argv[1]).run("generate_text", text=["the cat"])["num_tokens"] > 0
"""
    done = subprocess.run(
        [sys.executable, "-c", script, pairs],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "0"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "Reading SavedModel from" in done.stderr, "TensorFlow's own lines are there"
    assert "charsmap" not in done.stdout + done.stderr
    charsmap = Charsmap(_NOTHING_MAPPED)
    assert not charsmap.single and not charsmap.longer


def test_files_for_the_server_lie_beside_the_versions(saved_model, tmp_path):
    folder = pathlib.Path(saved_model("lstm")).parent
    config = (folder / "models.config").read_text()
    assert 'name: "lstm"' in config and 'base_path: "/models/lstm"' in config
    assert "max_batch_size { value: 32 }" in (folder / "batching.txt").read_text()
    (tmp_path / "models.config").write_text("mine")
    write_server_files(tmp_path, "books")
    assert (tmp_path / "models.config").read_text() == "mine" and (tmp_path / "batching.txt").exists()


def test_the_official_reader_reads_the_config(tmp_path):
    configs = pytest.importorskip("tensorflow_serving.config.model_server_config_pb2")
    from google.protobuf import text_format

    write_server_files(tmp_path, "books")
    found = text_format.Parse((tmp_path / "models.config").read_text(), configs.ModelServerConfig())
    (model,) = found.model_config_list.config
    assert (model.name, model.base_path, model.model_platform) == ("books", "/models/books", "tensorflow")


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((1, 1), (1, 16)),
        ((3, 16), (4, 16)),
        ((4, 17), (4, 32)),
        ((5, 33), (8, 40)),
        ((9, 40), (16, 40)),
        ((0, 1), (1, 16)),
    ],
)
def test_a_compiler_sees_one_shape_for_a_bucket_of_batch_and_prompt(shape, wanted):
    import tensorflow as tf

    rows = shape[0]
    ids, lengths, budget, options = pad_to_buckets(
        tf.ones(shape, tf.int32), tf.fill([rows], 2), tf.fill([rows], 3), {"seed": tf.fill([rows], 5)}, 40
    )
    assert ids.shape == wanted and lengths.shape == budget.shape == options["seed"].shape == wanted[:1]
    assert (lengths.numpy()[rows:] == 1).all() and not budget.numpy()[rows:].any()
    assert (ids.numpy()[:rows, : shape[1]] == 1).all() and ids.numpy().sum() == rows * shape[1]
