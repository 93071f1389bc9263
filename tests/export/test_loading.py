"""The model that is exported: the saved one at float32, its weights unchanged."""

import itertools
import sys

import keras
import numpy as np
import pytest
from helpers import array, arrays, ids_of, new_model, randomize

from keras_seqlm import export
from keras_seqlm.export.loading import at_float32, load_at_float32, load_reference
from keras_seqlm.layers.quantization import float_weights
from keras_seqlm.models import RecurrentLM
from keras_seqlm.tasks import TextGeneration
from keras_seqlm.tokenizers import ByteTokenizer


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *itertools.product(["gru", "lstm", "learned", "rotary", "post_norm", "untied"], ["float32", "mixed_bfloat16"]),
        *(("gru", "mixed_float16"), ("learned", "mixed_float16"), ("learned", "bfloat16")),
    ],
)
def test_every_policy_becomes_float32(name, dtype):
    model = new_model(name, dtype=dtype)
    copy = at_float32(model)
    for layer in copy._flatten_layers():
        assert layer.dtype_policy.name == "float32", layer
    assert {str(variable.dtype) for variable in copy.trainable_variables} == {"float32"}
    for ours, theirs in zip(copy.trainable_variables, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(array(ours), array(keras.ops.cast(theirs, "float32")))
    ids = ids_of(2, 9)
    whole = array(copy(ids))
    state = copy.initial_state(2, 16)
    stepped, state = copy(ids, state=state)
    np.testing.assert_allclose(array(stepped), whole, atol=2e-5)
    assert {str(leaf.dtype) for name, leaf in arrays(state).items() if name != "position"} == {"float32"}


@pytest.mark.parametrize("name", ["lstm", "learned", "rotary", "post_norm", "untied"])
def test_a_float32_model_is_copied_exactly(name):
    model = new_model(name)
    copy = at_float32(model)
    assert copy is not model
    np.testing.assert_array_equal(array(copy(ids_of(2, 9))), array(model(ids_of(2, 9))))


def test_the_reference_is_the_saved_model_itself_where_it_can_be(tmp_path, monkeypatch):
    """Else a fault of the rebuilding would stand on both sides of a comparison."""
    monkeypatch.setattr("keras_seqlm.export.loading.at_float32", lambda model: "rebuilt")
    for dtype in ("float32", "mixed_bfloat16"):
        model = RecurrentLM(260, cell="gru", size="nano", hidden_dim=8, dtype=dtype)
        model.build()
        TextGeneration(model, ByteTokenizer()).save(tmp_path / dtype)
    assert isinstance(load_reference(tmp_path / "float32").model, RecurrentLM)
    assert load_reference(tmp_path / "mixed_bfloat16").model == "rebuilt"


def test_cudnn_and_the_carried_state_do_no_harm(tmp_path):
    model = RecurrentLM(260, cell="lstm", size="nano", hidden_dim=16, stateful_batch_size=3, use_cudnn=True)
    model.build()
    randomize(model)
    TextGeneration(model, ByteTokenizer()).save(tmp_path / "run")
    task = load_at_float32(tmp_path / "run")
    assert task.model.use_cudnn is False
    assert task.generate("a", 5) == TextGeneration(at_float32(model), ByteTokenizer()).generate("a", 5)


def test_something_else_is_refused():
    with pytest.raises(ValueError, match="expected a model of keras_seqlm, got Sequential"):
        at_float32(keras.Sequential([keras.layers.Dense(2)]))


def test_a_model_whose_config_lies_is_refused():
    class Growing(RecurrentLM):
        """Its config names one layer more than it has."""

        def get_config(self):
            return {**super().get_config(), "num_layers": self.num_layers + 1}

    model = Growing(40, cell="gru", size="nano", hidden_dim=8)
    model.build()
    with pytest.raises(ValueError, match="other weights than the saved one"):
        at_float32(model)


@pytest.mark.parametrize(
    ("mode", "config"),
    [
        (None, keras.quantizers.Int8QuantizationConfig(activation_quantizer=None)),
        ("int4", None),
        (None, keras.quantizers.Int4QuantizationConfig(block_size=None)),
        (None, keras.quantizers.Int4QuantizationConfig(block_size=8)),
    ],
)
@pytest.mark.parametrize("name", ["lstm", "untied"])
def test_integers_become_the_numbers_that_they_stand_for(name, mode, config):
    """Quantised in its weights alone, a model computes with these very numbers."""
    model = new_model(name, num_layers=1)
    exact = array(model(ids_of(2, 9)))
    model.quantize(mode, config=config)
    copy = at_float32(model)
    assert {layer.dtype_policy.name for layer in copy._flatten_layers()} == {"float32"}
    logits = array(model(ids_of(2, 9)))
    np.testing.assert_allclose(array(copy(ids_of(2, 9))), logits, atol=2e-5)
    assert np.abs(logits - exact).max() > 1e-3


def test_eight_bit_floats_become_the_weights_that_they_train():
    model = new_model("gru")
    exact = array(model(ids_of(2, 9)))
    model.quantize("float8")
    np.testing.assert_array_equal(array(at_float32(model)(ids_of(2, 9))), exact)


def test_adapters_are_merged():
    model = new_model("lstm")
    model.bridge.enable_lora(2)
    model.bridge.lora_kernel_b.assign(np.ones((2, 12)))
    np.testing.assert_allclose(array(at_float32(model)(ids_of(2, 9))), array(model(ids_of(2, 9))), atol=1e-5)


def test_a_quantised_layer_that_is_not_known_is_refused():
    layer = keras.layers.EinsumDense("btd,dv->btv", (None, 5), name="odd")
    layer.build((None, None, 4))
    layer.quantize("int8")
    with pytest.raises(ValueError, match="odd is a quantised EinsumDense"):
        float_weights(layer)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="TensorFlow's C library is used on Linux only")
def test_artifacts_of_quantised_models(uncompiled, tmp_path):
    """They agree with the model as `verify` reads it, and with the quantised one, which takes no part in the export."""
    import tensorflow as tf

    model = new_model("lstm", 260, num_layers=1)
    model.quantize(config=keras.quantizers.Int8QuantizationConfig(activation_quantizer=None))
    TextGeneration(model, ByteTokenizer()).save(tmp_path / "run")
    saved = export.saved_model(tmp_path / "run", tmp_path / "lstm" / "1", 16, max_prompt_tokens=32)
    ids = ids_of(2, 9, vocabulary_size=260)
    artifact = tf.saved_model.load(str(saved))
    logits = artifact.signatures["logits"](token_ids=tf.constant(ids), lengths=tf.constant([9, 9]))["logits"]
    np.testing.assert_allclose(logits.numpy(), array(model(ids)), atol=1e-4)
    file = export.litert(tmp_path / "run", tmp_path / "lstm.tflite", max_prompt_tokens=32)
    report = export.verify(tmp_path / "run", saved, file, prompts=["", "the cat"])
    assert report.ok and all(agreement.exact for agreement in report), str(report)
