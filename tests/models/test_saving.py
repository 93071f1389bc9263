"""`.keras` files: the same numbers in a fresh process, on every backend, after nothing but `import keras_seqlm`."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers import MODELS, SUPPRESSED, array, arrays, assert_same_text, compile_plainly, ids_of, new_model, tiny

from keras_seqlm.layers import RecurrentStack, TokenEmbedding, TransformerBlock
from keras_seqlm.models import RecurrentLM, TransformerLM

pytestmark = pytest.mark.neutral

ROOT = pathlib.Path(__file__).parents[2]
IDS = ids_of(2, 9)
PROMPTS = [[4, 9, 6], [12, 5, 5, 30, 8, 7, 6]]
SAMPLING = {"temperature": 1.3, "seed": 11, "top_k": 20, "top_p": 0.95}

# Runs in the fresh process: logits of every file, texts of every language model.
SCRIPT = """
import json, os, pathlib, sys
import numpy as np
if os.environ["KERAS_BACKEND"] != "tensorflow":
    sys.modules["tensorflow"] = None  # as where it is not installed: Keras would take four seconds to import it
import keras_seqlm
import keras

folder = pathlib.Path(sys.argv[1])
task = json.loads((folder / "task.json").read_text())
ids, answers = np.array(task["ids"], "int32"), {}
for file in sorted(folder.glob("*.keras")):
    model = keras.saving.load_model(file)
    inputs = [ids, ids[:, ::-1]] if file.stem == "shared" else ids
    run = model
    if keras.backend.backend() == "jax":  # operation by operation, compiling takes far longer
        import jax
        run = jax.jit(lambda inputs: model(inputs))
    logits = keras.ops.convert_to_numpy(keras.ops.cast(run(inputs), "float32"))
    np.save(folder / f"{file.stem}-{keras.backend.backend()}.npy", logits)
    if file.stem in task["texts"]:
        texts = [model.generate(task["prompts"], 12, suppressed_ids=(0, 1, 3), **options) for options in ({}, task["sampling"])]
        answers[file.stem] = [[ids.tolist() for ids in text] for text in texts]
(folder / f"{keras.backend.backend()}.json").write_text(json.dumps(answers))
"""


def composed():
    """A user's functional model around ours: a language model, and layers of this package as layers."""
    inputs = keras.Input((None,), dtype="int32")
    logits = new_model("rotary")(inputs)
    return keras.Model(inputs, keras.layers.Dense(3, name="on_top")(logits))


def shared():
    """One embedding that reads two inputs, a block and a recurrent stack behind it."""
    left, right = keras.Input((9,), dtype="int32"), keras.Input((9,), dtype="int32")
    embedding = TokenEmbedding(40, 16)
    one = TransformerBlock(16, 2, 32)(embedding(left))
    two, _ = RecurrentStack("gru", 16)(embedding(right))
    return keras.Model([left, right], keras.layers.Dense(4)(keras.layers.Add()([one, two])))


TEXTS = ("lstm", "rotary")
OTHERS = {
    "gru": lambda: new_model("gru", stateful_batch_size=2),
    "learned": lambda: new_model("learned"),
    "half": lambda: new_model("learned", dtype="mixed_bfloat16"),
    "composed": composed,
    "shared": shared,
}
FILES = (*TEXTS, *OTHERS)


@pytest.fixture(scope="module")
def models():
    return {name: OTHERS[name]() if name in OTHERS else new_model(name) for name in FILES}


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory):
    """The models' files, and the answers of a fresh process on each backend beside them."""
    folder = tmp_path_factory.mktemp("files")
    for name, model in models.items():
        model.save(folder / f"{name}.keras")
    task = {"ids": IDS.tolist(), "prompts": PROMPTS, "sampling": SAMPLING, "texts": TEXTS}
    (folder / "task.json").write_text(json.dumps(task))
    processes = {}
    for backend in ("tensorflow", "jax", "torch"):
        environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        processes[backend] = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(folder)],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
    for backend, process in processes.items():
        _, errors = process.communicate(timeout=300)
        if process.returncode:
            pytest.fail(f"the fresh process on {backend} failed:\n{errors[-3000:]}")
    return folder


def logits_of(name, model):
    inputs = [IDS, IDS[:, ::-1]] if name == "shared" else IDS
    return array(keras.ops.cast(model(inputs), "float32"))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
@pytest.mark.parametrize("name", FILES)
def test_a_fresh_process_computes_the_same_numbers(name, backend, models, folder):
    found, expected = np.load(folder / f"{name}-{backend}.npy"), logits_of(name, models[name])
    if name == "half":  # the backends round products to bfloat16 at different places
        np.testing.assert_allclose(found, expected, atol=1e-6 if backend == keras.backend.backend() else 0.1)
    else:
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
@pytest.mark.parametrize("name", TEXTS)
def test_three_backends_write_the_same_text(name, backend, models, folder):
    answers = json.loads((folder / f"{backend}.json").read_text())[name]
    greedy, sampled = answers
    for prompt, there, here in zip(
        PROMPTS, greedy, models[name].generate(PROMPTS, 12, suppressed_ids=(0, 1, 3)), strict=True
    ):
        assert len(there) == 12 and not set(there) & set(SUPPRESSED)
        assert_same_text(models[name], prompt, here, there)
    here = models[name].generate(PROMPTS, 12, suppressed_ids=(0, 1, 3), **SAMPLING)
    assert [text.tolist() for text in here] != greedy
    # top-k and top-p move the borders of the draw, so near ties are not looked for: none is met with this seed
    assert [text.tolist() for text in here] == sampled


@pytest.mark.backends
@pytest.mark.parametrize("name", ["lstm", "rotary"])
def test_save_and_load(name, tmp_path):
    model = tiny(name)
    model.save(tmp_path / "model.keras")
    twin = keras.saving.load_model(tmp_path / "model.keras")
    assert twin.get_config() == model.get_config()
    logits, state = twin(IDS, state=twin.initial_state(2))
    expected, expected_state = model(IDS, state=model.initial_state(2))
    np.testing.assert_array_equal(array(logits), array(expected))
    for leaf, value in arrays(state).items():
        np.testing.assert_array_equal(value, array(expected_state[leaf]))


@pytest.mark.backends
def test_training_goes_on_where_the_file_ends(tmp_path):
    model = compile_plainly(new_model("gru", stateful_batch_size=2))
    x, y = IDS[:, :-1], IDS[:, 1:]
    model.train_on_batch(x, y)
    model.save(tmp_path / "model.keras")
    twin = keras.saving.load_model(tmp_path / "model.keras")
    for name, variable in model.carried.items():
        assert np.abs(array(variable)).max() > 0
        np.testing.assert_array_equal(array(twin.carried[name]), array(variable))
    losses = [[each.train_on_batch(x, y) for _ in range(2)] for each in (model, twin)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert losses[0][0] != losses[0][1]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [None, "mixed_bfloat16"])
def test_config_round_trip(name, dtype):
    model = new_model(name, dtype=dtype, dropout=0.1, tokenizer_hash="0123456789abcdef")
    config = json.loads(json.dumps(model.get_config()))
    twin = type(model).from_config(config)
    assert twin.get_config() == model.get_config()
    assert twin.dtype_policy.name == (dtype or "float32")
    assert twin.tokenizer_hash == "0123456789abcdef"
    twin.build()
    assert [weight.shape for weight in twin.weights] == [weight.shape for weight in model.weights]


@pytest.mark.parametrize("kind", [RecurrentLM, TransformerLM])
def test_a_clone_has_the_same_parts(kind):
    model = kind(30, size="nano", num_layers=1, trainable=False, name="mine")
    twin = keras.models.clone_model(model)
    assert twin.get_config() == model.get_config()
    assert twin.name == "mine" and not twin.trainable


def test_weights_alone(tmp_path):
    model = tiny("lstm")
    model.save_weights(tmp_path / "model.weights.h5")
    twin = type(model).from_config(model.get_config())
    twin.build()
    twin.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(array(twin(IDS)), array(model(IDS)))
