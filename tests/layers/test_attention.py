import numpy as np
import pytest
from helpers import array, randomize
from keras import ops

from keras_seqlm.layers import SelfAttention, attend, write_cache

pytestmark = pytest.mark.backends
random = np.random.default_rng(0)


def softmax(x):
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def attention(query, key, value, mask=None, bias=None):
    """Head by head in loops, with the key-value heads shared by neighbours."""
    batch, heads, time, width = query.shape
    output = np.zeros((batch, heads, time, width))
    probabilities = np.zeros((batch, heads, time, key.shape[2]))
    for b in range(batch):
        for h in range(heads):
            shared = h // (heads // key.shape[1])
            scores = query[b, h].astype("float64") @ key[b, shared].T / np.sqrt(width)
            if bias is not None:
                scores = scores + np.broadcast_to(bias, probabilities.shape)[b, h]
            if mask is not None:
                scores = np.where(np.broadcast_to(mask, probabilities.shape)[b, h], scores, -np.inf)
            probabilities[b, h] = softmax(scores)
            output[b, h] = probabilities[b, h] @ value[b, shared]
    return output, probabilities


def rotated(x, positions, base):
    half = x.shape[-1] // 2
    turn = np.exp(1j * positions[:, None, :, None] * base ** (-2.0 * np.arange(half) / x.shape[-1]))
    turned = (x[..., :half] + 1j * x[..., half:]) * turn
    return np.concatenate([turned.real, turned.imag], -1)


def multi_head(layer, x, mask, bias=None, positions=None):
    """The formula of the class, with its weights."""
    heads, kv_heads, width = layer.num_heads, layer.num_kv_heads, layer.head_dim
    weights = [array(weight) for weight in layer.weights]
    w_qkv, b_qkv, w_o, b_o = weights if layer.use_bias else (weights[0], 0.0, weights[1], 0.0)
    query, key, value = (
        part.reshape(*x.shape[:2], -1, width).transpose(0, 2, 1, 3)
        for part in np.split(x @ w_qkv + b_qkv, [heads * width, (heads + kv_heads) * width], axis=-1)
    )
    if layer.rotary_base is not None:
        query, key = rotated(query, positions, layer.rotary_base), rotated(key, positions, layer.rotary_base)
    output, probabilities = attention(query, key, value, mask, bias)
    return output.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1) @ w_o + b_o, probabilities


def normal(*shape):
    return random.standard_normal(shape).astype("float32")


@pytest.mark.parametrize(
    ("kv_heads", "extras"), [(4, "none"), (4, "mask"), (4, "bias"), (2, "none"), (2, "both"), (1, "both")]
)
def test_scaled_dot_product(kv_heads, extras):
    query, key, value = normal(2, 4, 3, 5), normal(2, kv_heads, 6, 5), normal(2, kv_heads, 6, 5)
    mask = random.random((2, 1, 3, 6)) < 0.6 if extras in ("mask", "both") else None
    if mask is not None:
        mask[..., 0] = True
    bias = normal(1, 4, 3, 6) if extras in ("bias", "both") else None
    tensors = [ops.convert_to_tensor(part) for part in (query, key, value)]
    output, probabilities = attend(*tensors, mask=mask, bias=bias)
    expected = attention(query, key, value, mask, bias)
    np.testing.assert_allclose(array(output), expected[0], atol=1e-5)
    np.testing.assert_allclose(array(probabilities), expected[1], atol=1e-5)


def test_a_row_without_visible_keys_gives_numbers():
    parts = [ops.convert_to_tensor(normal(1, 2, 3, 4)) for _ in range(3)]
    output, _ = attend(*parts, mask=np.zeros((1, 1, 3, 3), bool))
    assert np.isfinite(array(output)).all()


OPTIONS = {
    "plain": {},
    "no bias": {"use_bias": False},
    "grouped": {"num_kv_heads": 2},
    "one key-value head, own width": {"num_kv_heads": 1, "head_dim": 6},
    "rotary": {"rotary_base": 30.0},
    "rotary and grouped": {"rotary_base": 30.0, "num_kv_heads": 2, "use_bias": False},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_multi_head(name):
    layer = SelfAttention(16, 4, **OPTIONS[name])
    layer.build()
    randomize(layer)
    x = normal(2, 5, 16)
    positions = np.array([np.arange(5), [3, 4, 0, 1, 2]], "int32")
    causal = np.tril(np.ones((5, 5), bool))[None, None]
    expected, probabilities = multi_head(layer, x, causal, positions=positions)
    np.testing.assert_allclose(array(layer(x, positions=positions)), expected, atol=1e-5)
    output, scores = layer(x, positions=positions, return_scores=True)
    np.testing.assert_allclose(array(output), expected, atol=1e-5)
    np.testing.assert_allclose(array(scores), probabilities, atol=1e-5)

    mask = random.random((2, 1, 5, 5)) < 0.5
    mask[..., 2] = True
    bias = normal(1, 4, 5, 5)
    expected, _ = multi_head(layer, x, mask, bias, positions)
    output = layer(x, positions=positions, attention_mask=mask, bias=bias)
    np.testing.assert_allclose(array(output), expected, atol=1e-5)


def test_dropout_reaches_the_probabilities_in_training_only():
    layer = SelfAttention(16, 4, dropout=0.5)
    x = normal(2, 5, 16)
    calm = array(layer(x, training=False))
    np.testing.assert_array_equal(calm, array(layer(x)))
    assert np.abs(array(layer(x, training=True)) - calm).max() > 1e-3


def written(cache, new, position, lengths):
    cache = cache.copy()
    for row in range(len(cache)):
        for t in range(lengths[row]):
            if position[row] + t < cache.shape[2]:
                cache[row, :, position[row] + t] = new[row, :, t]
    return cache


def test_cache_takes_the_real_tokens_and_nothing_else():
    cache, new = normal(5, 2, 8, 3), normal(5, 2, 4, 3)
    position = np.array([0, 3, 6, 8, 5], "int32")
    lengths = np.array([4, 2, 2, 0, 0], "int32")  # the padding of rows 2 to 4 reaches past the end
    tensors = [ops.convert_to_tensor(part) for part in (cache, new, position, lengths)]
    np.testing.assert_array_equal(array(write_cache(*tensors)), written(cache, new, position, lengths))


@pytest.mark.parametrize("single", ["scatter", "slice"])
def test_one_new_token(single):
    rows = 3 if single == "scatter" else 1
    cache, new = normal(rows, 2, 8, 3), normal(rows, 2, 1, 3)
    position, lengths = np.array([7, 0, 4], "int32")[:rows], np.ones(rows, "int32")
    tensors = [ops.convert_to_tensor(part) for part in (cache, new, position, lengths)]
    result = array(write_cache(*tensors, single=single))
    np.testing.assert_array_equal(result, written(cache, new, position, lengths))


@pytest.mark.parametrize("time", [1, 3])
def test_cache_keeps_its_own_type(time):
    cache = ops.cast(normal(1, 2, 8, 3), "float16")
    new = ops.convert_to_tensor(normal(1, 2, time, 3))
    result = write_cache(cache, new, ops.zeros((1,), "int32"), ops.ones((1,), "int32"))
    assert "float16" in str(result.dtype)


def test_heads_must_divide():
    with pytest.raises(ValueError, match=r"hidden_dim=16 and num_heads=3; choose one of \[1, 2, 4, 8, 16\]"):
        SelfAttention(16, 3)
    with pytest.raises(ValueError, match="num_kv_heads must divide num_heads, got 3 and 4"):
        SelfAttention(16, 4, num_kv_heads=3)
    with pytest.raises(ValueError, match="even head_dim, got 3"):
        SelfAttention(6, 2, rotary_base=10.0)
    assert SelfAttention(16, 3, head_dim=5).head_dim == 5


def test_what_a_call_needs_is_asked_for():
    with pytest.raises(ValueError, match="positions"):
        SelfAttention(16, 4, rotary_base=10.0)(normal(1, 3, 16))
    cache = (ops.zeros((1, 4, 8, 4)), ops.zeros((1, 4, 8, 4)))
    with pytest.raises(ValueError, match="attention_mask"):
        row = ops.zeros((1,), "int32")
        SelfAttention(16, 4)(normal(1, 3, 16), cache=cache, position=row, lengths=row + 3)


def test_config_round_trip():
    layer = SelfAttention(16, 4, num_kv_heads=2, head_dim=6, rotary_base=100.0, dropout=0.1, use_bias=False)
    assert SelfAttention.from_config(layer.get_config()).get_config() == layer.get_config()
