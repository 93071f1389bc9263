import keras
import numpy as np
import pytest
from helpers import array, randomize
from keras import ops

from keras_seqlm.cache import cache_slots
from keras_seqlm.layers import TransformerBlock
from keras_seqlm.layers.normalization import LayerNormalization

pytestmark = pytest.mark.backends


def normalized(norm, x, weights):
    if norm == "rms":
        (scale,) = weights
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale
    gamma, beta = weights
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * gamma + beta


def causal_attention(layer, x):
    w_qkv, b_qkv, w_o, b_o = (array(weight) for weight in layer.weights)
    query, key, value = (
        (x @ w_qkv + b_qkv).reshape(*x.shape[:2], layer.num_heads, 3, -1)[..., part, :] for part in range(3)
    )
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
    weights = np.exp(np.where(np.tril(np.ones(scores.shape[2:])), scores, -np.inf))
    weights = weights / weights.sum(-1, keepdims=True)
    return np.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape) @ w_o + b_o


def feed_forward(layer, x):
    w_1, b_1, w_2, b_2 = (array(weight) for weight in layer.weights)
    return np.maximum(x @ w_1 + b_1, 0) @ w_2 + b_2


def random_block(**options):
    block = TransformerBlock(16, 4, 24, activation="relu", **options)
    block.build()
    randomize(block)
    return block


def five_slots():
    row = ops.zeros((2,), "int32")
    return cache_slots(row, row + 5, 5, 8, heads=4)


X = np.random.default_rng(0).standard_normal((2, 5, 16)).astype("float32")


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("norm_first", [True, False])
def test_formula(norm, norm_first):
    block = random_block(norm=norm, norm_first=norm_first)
    norms = [
        lambda x, layer=layer: normalized(norm, x, [array(weight) for weight in layer.weights])
        for layer in (block.attention_norm, block.feed_forward_norm)
    ]
    if norm_first:
        x = X + causal_attention(block.attention, norms[0](X))
        x = x + feed_forward(block.feed_forward, norms[1](x))
    else:
        x = norms[0](X + causal_attention(block.attention, X))
        x = norms[1](x + feed_forward(block.feed_forward, x))
    np.testing.assert_allclose(array(block(X)), x, atol=1e-5)


@pytest.mark.parametrize("options", [{"center": False}, {"scale": False}, {"axis": 1}])
def test_the_layer_norm_is_kerass_with_any_option(options):
    if "axis" in options and keras.backend.backend() == "torch":
        pytest.skip("Keras on torch knows the last axis alone")
    ours, kerass = LayerNormalization(**options), keras.layers.LayerNormalization(**options)
    np.testing.assert_allclose(array(ours(X, training=True)), array(kerass(X)), atol=1e-5)


def test_dropout_in_training_only():
    block = random_block(dropout=0.5)
    calm = array(block(X))
    np.testing.assert_array_equal(array(block(X, training=False)), calm)
    assert np.abs(array(block(X, training=True)) - calm).max() > 1e-3


def test_residual_branches_shrink_the_last_products():
    def spread(branches):
        block = TransformerBlock(64, 4, 256, residual_branches=branches)
        block.build()
        return [array(layer.kernel).std() for layer in (block.attention.output_projection, block.feed_forward.down)]

    np.testing.assert_allclose(np.array(spread(1)) / np.array(spread(16)), 4.0, rtol=0.05)


def test_half_precision_computes_in_half_and_keeps_the_cache():
    block = random_block(dtype="mixed_bfloat16")
    cache = tuple(ops.full((2, 4, 8, 4), 1.001, "float32") for _ in range(2))
    mask, slots = ops.ones((1, 1, 5, 8), "bool"), five_slots()
    output, (keys, values) = block(X, attention_mask=mask, cache=cache, slots=slots)
    assert "bfloat16" in str(output.dtype)
    for leaf in (keys, values):
        np.testing.assert_array_equal(array(leaf)[:, :, 5:], np.float32(1.001))


def test_unknown_norm():
    with pytest.raises(ValueError, match=r"norm must be one of \['layer', 'rms'\], got 'batch'"):
        TransformerBlock(16, 4, 24, norm="batch")


def test_config_round_trip():
    options = {
        "num_kv_heads": 2,
        "head_dim": 6,
        "causal": False,
        "norm": "rms",
        "norm_first": False,
        "epsilon": 1e-3,
        "dropout": 0.1,
        "attention_dropout": 0.2,
        "attention_scale": 1.0,
        "use_bias": False,
        "qkv_bias": True,
    }
    config = TransformerBlock(16, 4, 24, **options).get_config()
    assert {name: config[name] for name in options} == options
    assert TransformerBlock.from_config(config).get_config() == config


def test_each_bias_is_its_own():
    block = TransformerBlock(16, 4, 24, activation="swiglu", use_bias=False, qkv_bias=True)
    block.build()
    assert [weight.path for weight in block.weights if weight.name == "bias"] == [block.attention.qkv.path + "/bias"]
    block = TransformerBlock(16, 4, 24, activation="swiglu", feed_forward_bias=False, output_bias=False)
    block.build()
    assert [weight.path for weight in block.weights if weight.name == "bias"] == [block.attention.qkv.path + "/bias"]


class Biased(keras.layers.Layer):
    """A block whose attention has a trained bias, as T5's relative positions."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def build(self, input_shape):
        self.bias = self.add_weight(name="bias", shape=(1, 4, 5, 5), initializer="random_normal")

    def call(self, x, training=None):
        return self.block(x, bias=self.bias, training=training)


def weights_after(steps, rematerialize, frozen=False):
    """The weights after some steps of plain gradient descent, with dropout, and the seeds it has come to."""
    keras.utils.set_random_seed(1)
    block = random_block(dropout=0.3)
    block.rematerialize = rematerialize
    block.feed_forward.trainable = not frozen
    model = keras.Sequential([keras.Input((5, 16)), Biased(block)])
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=keras.backend.backend() == "jax")
    before = model.get_weights()
    for _ in range(steps):
        model.train_on_batch(X, 0 * X)
    moved = [np.abs(a - b).max() > 1e-4 for a, b in zip(before, model.get_weights(), strict=True)]
    assert all(moved) is not frozen
    return [array(variable) for variable in model.variables]


@pytest.mark.parametrize("frozen", [False, True])
def test_rematerialisation_changes_no_number(frozen):
    kept, again = (weights_after(2, rematerialize, frozen) for rematerialize in (False, True))
    for left, right in zip(kept, again, strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-6)


def test_rematerialisation_leaves_decoding_alone():
    block = random_block()
    cache = tuple(ops.zeros((2, 4, 8, 4)) for _ in range(2))
    mask, slots = ops.ones((1, 1, 5, 8), "bool"), five_slots()
    plain = block(X, attention_mask=mask, cache=cache, slots=slots)
    block.rematerialize = True
    again = block(X, attention_mask=mask, cache=cache, slots=slots)
    np.testing.assert_array_equal(array(plain[0]), array(again[0]))


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX shows what it keeps")
def test_rematerialisation_keeps_the_input_and_the_weights_alone():
    import jax

    block = random_block(dropout=0.1)
    values = [weight.value for weight in block.trainable_weights]
    seeds = [variable for variable in block.variables if "seed" in variable.path]
    x = np.zeros((3, 64, 16), "float32")

    def output(values, x):
        mapping = [*zip(block.trainable_weights, values, strict=True), *((seed, seed.value) for seed in seeds)]
        with keras.StatelessScope(state_mapping=mapping):
            return block(x, training=True)

    def kept():
        _, backward = jax.vjp(output, values, x)
        return sum(leaf.nbytes for leaf in jax.tree.leaves(backward))

    whole = kept()
    block.rematerialize = True
    needed = x.nbytes + sum(value.nbytes for value in values)
    assert kept() <= needed + 64 < whole / 10
