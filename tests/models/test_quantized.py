"""Models whose weights Keras's `quantize` made integers: near the exact ones, saved and read, trained and exported."""

import json

import keras
import numpy as np
import pytest
from cases import on_all
from helpers import MODELS, array, compile_plainly, ids_of, logits_without_state, new_model, randomize, run

from keras_seqlm.layers import TokenEmbedding, TransformerBlock
from keras_seqlm.layers.quantization import float_weights, quantizable_parts
from keras_seqlm.losses import FusedCrossEntropy
from keras_seqlm.models import LanguageModel

pytestmark = pytest.mark.neutral

IDS = ids_of(2, 9)
WEIGHTS_ALONE = keras.quantizers.Int8QuantizationConfig(activation_quantizer=None)
BACKEND = keras.backend.backend()


def quantized(name, mode="int8", config=None, filters=None, **options):
    model = new_model(name, **options)
    model.quantize(mode, config=config, filters=filters)
    return model


def logits_of(model, ids=IDS):
    return array(run(model, logits_without_state, ids))


def log_softmax(logits):
    logits = logits.astype("float64")
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def reloaded(model, folder, **options):
    model.save(folder / "model.keras")
    return keras.saving.load_model(folder / "model.keras", **options)


def rounded(kernel, axis):
    """A matrix as 8-bit integers and what one stands for, in float64: 127 steps to the largest of each row or column."""
    kernel = kernel.astype("float64")
    step = (np.abs(kernel).max(axis=axis, keepdims=True) + 1e-7) / 127
    return np.clip(np.round(kernel / step), -127, 127), step


def assert_rounded(found, kernel, axis):
    """Integers are NumPy's, but where float32 and float64 see a half on different sides."""
    expected, step = rounded(kernel, axis)
    halves = np.abs(np.abs(kernel / step) % 1 - 0.5) < 1e-4
    assert found.dtype == "int8"
    assert (np.abs(found - expected) <= halves).all()


@pytest.mark.backends
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_integers_and_scales_are_those_of_numpy(dtype):
    exact = new_model("untied", num_layers=1, dtype=dtype)
    model = quantized("untied", num_layers=1, dtype=dtype)
    pairs = list(zip(quantizable_parts(exact), quantizable_parts(model), strict=True))
    assert len(pairs) == 2 + 5  # the embedding and the projection; five products of the block
    for before, after in pairs:
        axis = 1 if isinstance(before, TokenEmbedding) else 0
        kernel = array(before.table if axis else before.kernel)
        integers, scale = (after._table, after.table_scale) if axis else (after._kernel, after.kernel_scale)
        assert_rounded(array(integers), kernel, axis)
        _, step = rounded(kernel, axis)
        np.testing.assert_allclose(1 / array(scale), step.ravel(), rtol=1e-6)
        # what the integers stand for lies within half a step
        assert (np.abs(float_weights(after)["0"] - kernel) <= 0.5001 * step).all()


@pytest.mark.backends
def test_a_product_of_integers_lies_within_the_steps():
    """With x = x' + a and w = w' + b, |a| and |b| at most half a step, x w - x' w' = a w + x b - a b."""
    exact, model = new_model("gru"), quantized("gru", filters="output_projection")
    assert [part.quantization_mode for part in quantizable_parts(model)] == [None, "int8"]
    hidden, _ = exact.hidden_states({"token_ids": IDS})
    x = array(hidden).astype("float64")
    kernel, bias = (
        array(part).astype("float64") for part in (exact.output_projection.kernel, exact.output_projection.bias)
    )
    inputs, input_step = rounded(x, -1)
    integers, step = rounded(kernel, 0)
    logits = logits_of(model)
    by_hand = (inputs @ integers) * input_step * step + bias
    np.testing.assert_allclose(logits, by_hand, atol=2 * np.abs(x).max() * step.max() / 100)
    a, b = input_step / 2, step / 2
    bound = a * np.abs(kernel).sum(0) + np.abs(x).sum(-1, keepdims=True) * b + x.shape[-1] * a * b
    difference = np.abs(logits - array(exact(IDS)))
    assert (difference <= bound + 1e-5).all() and difference.max() > 1e-4


@pytest.mark.parametrize("name", [pytest.param("rnn", marks=pytest.mark.backends), "rotary"])
def test_the_model_is_the_exact_one_with_numpys_weights(name):
    """Quantised without activations it computes what a float32 model computes with the weights that NumPy rounds."""
    exact, twin = new_model(name, num_layers=1), new_model(name, num_layers=1)
    model = quantized(name, None, WEIGHTS_ALONE, num_layers=1)
    for part in quantizable_parts(twin):
        axis = 1 if isinstance(part, TokenEmbedding) else 0
        weight = part.table if axis else part.kernel
        integers, step = rounded(array(weight), axis)
        weight.assign(integers * step)
    logits, exact = logits_of(model), logits_of(exact)
    np.testing.assert_allclose(logits, logits_of(twin), atol=1e-4 * np.abs(exact).max())
    assert 1e-3 < np.sqrt(np.mean((logits - exact) ** 2) / np.mean(exact**2)) < 0.05


@pytest.mark.parametrize("name", MODELS)
def test_the_config_says_what_is_quantised(name):
    model = quantized(name, num_layers=1)
    config = json.loads(json.dumps(model.get_config()))
    twin = type(model).from_config(config)
    assert json.loads(json.dumps(twin.get_config())) == config
    assert {part.quantization_mode for part in quantizable_parts(twin)} == {"int8"}
    twin.build()
    found, expected = (
        sorted(f"{weight.name} {weight.dtype} {tuple(weight.shape)}" for weight in each.weights)
        for each in (twin, model)
    )
    assert found == expected


@pytest.mark.parametrize("name", on_all(["lstm", "rotary"], "lstm"))
def test_saved_and_read(name, tmp_path):
    model = quantized(name, num_layers=1)
    twin = reloaded(model, tmp_path)
    logits = logits_of(model)
    np.testing.assert_array_equal(logits_of(twin), logits)
    chosen = np.take_along_axis(log_softmax(logits[:, :-1]), IDS[:, 1:, None], -1)[..., 0]
    np.testing.assert_allclose(twin.score(IDS), chosen.sum(-1), rtol=1e-4)
    compile_plainly(twin)
    assert twin.evaluate(IDS[:, :-1], IDS[:, 1:], verbose=0) == pytest.approx(-chosen.mean(), rel=1e-4)
    # What it writes is the most probable in one pass over the text, but where activations are rounded otherwise.
    text = np.concatenate([IDS[:, :5], twin.generate(IDS[:, :5], 4, eos_id=None, suppressed_ids=())], axis=1)
    logits = logits_of(model, text)[:, 4:-1]
    chosen = np.take_along_axis(logits, text[:, 5:, None], -1)[..., 0]
    assert (chosen > logits.max(-1) - 0.05).all()


MODES = {
    "weights": (None, WEIGHTS_ALONE),
    "int4": ("int4", None),
    "int4 by column": (None, keras.quantizers.Int4QuantizationConfig(block_size=None)),
    "int4 by groups": (None, keras.quantizers.Int4QuantizationConfig(block_size=8)),
    "float8": ("float8", None),
}


@pytest.mark.parametrize(
    "label", [pytest.param(label, marks=[pytest.mark.backends] * ("by" not in label)) for label in MODES]
)
def test_other_modes_are_saved_and_read(label, tmp_path):
    model = quantized("lstm", *MODES[label])
    expected = MODES[label][0] or MODES[label][1].mode
    assert model.bridge.quantization_mode == expected
    assert (model.token_embedding.quantization_mode == "int8") == (expected == "int8")
    twin = reloaded(model, tmp_path)
    np.testing.assert_array_equal(logits_of(twin), logits_of(model))
    assert np.abs(logits_of(model) - logits_of(new_model("lstm"))).max() > 1e-3


def test_half_precision(tmp_path):
    model = quantized("gru", dtype="mixed_bfloat16")
    np.testing.assert_array_equal(logits_of(reloaded(model, tmp_path)), logits_of(model))
    with pytest.raises(ValueError, match="doesn't work well with compute_dtype='float16'"):
        quantized("gru", dtype="mixed_float16")
    # A scale of the table that was rounded to bfloat16 would be off by 2^-9 of it: half a step of the largest integers.
    model = new_model("rnn", dtype="bfloat16")
    table = array(keras.ops.cast(model.token_embedding.table, "float32"))
    model.quantize("int8")
    _, step = rounded(table, 1)
    assert (np.abs(array(model.token_embedding.table) - table) <= 0.5001 * step).all()


def test_what_cannot_be_quantised_is_refused():
    with pytest.raises(ValueError, match="mode must be 'int8', 'int4' or 'float8', got 'gptq'"):
        new_model("rnn").quantize(config=keras.quantizers.GPTQConfig(["a text"], tokenizer=len))
    with pytest.raises(ValueError, match="mode 'int4' found nothing to quantise"):
        new_model("rnn").quantize("int4")
    with pytest.raises(ValueError, match="mode 'int8' found nothing to quantise"):
        new_model("rnn").quantize("int8", filters="no_such_layer")
    with pytest.raises(ValueError, match="already quantized"):
        quantized("lstm").quantize("int8")


def test_a_file_of_another_class_is_refused(tmp_path):
    model = quantized("lstm")
    config = model.get_config()
    config["quantization"].append(None)
    with pytest.raises(ValueError, match="says of 3 parts of RecurrentLM how they are quantised, and it has 2"):
        type(model).from_config(config)


@pytest.mark.backends
def test_adapters_on_integers(tmp_path):
    """`enable_lora` after `quantize`: they train, the integers stay, and a file holds both merged and rounded again."""
    model = quantized("lstm", num_layers=1)
    integers, scale = array(model.bridge._kernel), array(model.bridge.kernel_scale)
    model.bridge.enable_lora(2)
    compile_plainly(model, keras.optimizers.Adam(0.05))
    losses = [float(model.train_on_batch(IDS[:, :-1], IDS[:, 1:])) for _ in range(4)]
    assert losses[-1] < losses[0] - 0.1
    np.testing.assert_array_equal(array(model.bridge._kernel), integers)
    a, b = array(model.bridge.lora_kernel_a), array(model.bridge.lora_kernel_b)
    assert np.abs(b).max() > 0.01
    twin = reloaded(model, tmp_path, compile=False)  # the optimizer's file is of the adapters, which are no more
    assert_rounded(array(twin.bridge._kernel), (integers / scale + a @ b).astype("float32"), axis=0)
    np.testing.assert_array_equal(logits_of(reloaded(twin, tmp_path)), logits_of(twin))


def test_training_goes_on(tmp_path):
    """Integers are fixed; what is no integer trains, and the optimizer is read with it."""
    model = compile_plainly(quantized("gru", num_layers=1), keras.optimizers.Adam(0.01))
    model.train_on_batch(IDS[:, :-1], IDS[:, 1:])
    twin = reloaded(model, tmp_path)
    losses = [[float(each.train_on_batch(IDS[:, :-1], IDS[:, 1:])) for _ in range(2)] for each in (model, twin)]
    assert losses[0] == losses[1] and losses[0][1] < losses[0][0]


def test_the_fused_loss_reads_the_rows_that_the_integers_give():
    model = quantized("rnn")
    model.compile(loss=FusedCrossEntropy(), jit_compile=False)
    fused = model.evaluate(IDS[:, :-1], IDS[:, 1:], verbose=0)
    assert fused == pytest.approx(compile_plainly(model).evaluate(IDS[:, :-1], IDS[:, 1:], verbose=0), abs=1e-5)
    model = quantized("gru")
    model.compile(loss=FusedCrossEntropy(), jit_compile=False)
    with pytest.raises(ValueError, match="output_projection is quantized"):
        model.evaluate(IDS[:, :-1], IDS[:, 1:], verbose=0)


@pytest.mark.backends
def test_blocks_alone(tmp_path):
    inputs = keras.Input((None,), dtype="int32")
    model = keras.Model(inputs, TransformerBlock(8, 2, 16)(TokenEmbedding(40, 8)(inputs)))
    with pytest.warns(UserWarning, match="does not have a `quantize`"):
        model.quantize("int8")
    assert sum(part.quantization_mode == "int8" for part in quantizable_parts(model)) == 5
    np.testing.assert_array_equal(logits_of(reloaded(model, tmp_path)), logits_of(model))


@keras.saving.register_keras_serializable("tests")
class Bag(LanguageModel):
    """A mean of embeddings through layers without names of their own, some of them in a list."""

    def __init__(self, vocabulary_size, name=None, dtype=None, trainable=True):
        super().__init__(name, dtype, trainable)
        self.vocabulary_size = vocabulary_size
        self.embedding = TokenEmbedding(vocabulary_size, 4)
        self.middle = [keras.layers.Dense(6), keras.Sequential([keras.layers.Dense(5)])]
        self.last = keras.layers.Dense(vocabulary_size)

    def build(self, inputs_shape=None, state_shape=None):
        self.embedding.build()
        for layer, width in zip((*self.middle, self.last), (4, 6, 5), strict=True):
            layer.build((None, None, width))

    def hidden_states(self, inputs, state=None, training=None):
        x = self.embedding(inputs["token_ids"])
        for layer in self.middle:
            x = layer(x)
        return x, state

    def projection(self):
        return self.last, None


def test_a_model_of_ones_own_whose_layers_have_no_names(tmp_path):
    model = Bag(40)
    model.build()
    randomize(model)
    model.quantize("int8", filters=lambda layer: layer is not model.middle[0])
    assert [part.quantization_mode for part in quantizable_parts(model)].count("int8") == 3
    keras.layers.Dense(3)  # Keras goes on counting: the twin's layers have other names
    twin = reloaded(model, tmp_path)
    assert twin.last.name != model.last.name
    np.testing.assert_array_equal(logits_of(twin), logits_of(model))


@pytest.mark.parametrize("name", on_all(["lstm", "rotary"], "lstm"))
def test_keras_exports_what_was_read(name, tmp_path):
    twin = reloaded(quantized(name, num_layers=1) if name == "rotary" else new_model(name, num_layers=1), tmp_path)
    if BACKEND == "torch":
        with pytest.raises(ValueError, match="tf_saved_model on torch holds .* give input_signature"):
            twin.export(tmp_path / "artifact")
        import torch

        signature = [keras.InputSpec(shape=IDS.shape, dtype="int32")] if name == "lstm" else None
        twin.export(tmp_path / "artifact.pt2", "torch", verbose=False, input_signature=signature)
        artifact = torch.export.load(tmp_path / "artifact.pt2").module()
        for ids in [IDS] if name == "lstm" else [IDS, IDS[:1, :5]]:
            np.testing.assert_allclose(array(artifact(torch.tensor(ids))), array(twin(ids)), atol=1e-5)
        return
    import tensorflow as tf

    twin.export(tmp_path / "artifact", verbose=False)
    artifact = tf.saved_model.load(tmp_path / "artifact")
    expected = logits_of(twin)
    np.testing.assert_allclose(artifact.serve(IDS).numpy(), expected, atol=2e-5)
    np.testing.assert_allclose(artifact.serve(IDS[:1, :5]).numpy(), expected[:1, :5], atol=2e-5)


@pytest.mark.tensorflow
def test_keras_exports_to_litert(tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    model = reloaded(quantized("rotary", "int4", num_layers=1), tmp_path)
    model.export(tmp_path / "model.tflite", "litert", verbose=False)
    artifact = Interpreter(str(tmp_path / "model.tflite"))
    place = artifact.get_input_details()[0]["index"]
    artifact.resize_tensor_input(place, IDS.shape)
    artifact.allocate_tensors()
    artifact.set_tensor(place, IDS)
    artifact.invoke()
    np.testing.assert_allclose(
        artifact.get_tensor(artifact.get_output_details()[0]["index"]), logits_of(model), atol=2e-5
    )
    with pytest.raises(ValueError, match="LiteRT's converter knows no products of integers"):
        quantized("lstm").export(tmp_path / "other.tflite", "litert")
    with pytest.raises(ValueError, match="litert on tensorflow holds RecurrentLM for a fixed number of tokens"):
        new_model("gru").export(tmp_path / "other.tflite", "litert")
