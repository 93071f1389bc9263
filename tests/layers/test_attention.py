import keras
import numpy as np
import pytest
from helpers import array, randomize
from keras import ops

from keras_seqlm.cache import cache_slots, first_cache, single_tokens_written, write_cache
from keras_seqlm.layers import SelfAttention, as_bias, attend, causal_mask, rotary_frequencies, rotation
from keras_seqlm.layers.attention import bias_dtype, visibility

pytestmark = pytest.mark.backends
random = np.random.default_rng(0)


def softmax(x):
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def attention(query, key, value, mask=None, bias=None, scale=None):
    """Head by head in loops, in float64, with the key-value heads shared by neighbours."""
    batch, heads, time, width = query.shape
    output = np.zeros((batch, heads, time, width))
    probabilities = np.zeros((batch, heads, time, key.shape[2]))
    for b in range(batch):
        for h in range(heads):
            shared = h // (heads // key.shape[1])
            scores = query[b, h].astype("float64") @ key[b, shared].astype("float64").T
            scores = scores / np.sqrt(width) if scale is None else scores * scale
            if bias is not None:
                scores = scores + np.broadcast_to(bias, probabilities.shape)[b, h]
            if mask is not None:
                scores = np.where(np.broadcast_to(mask, probabilities.shape)[b, h], scores, -np.inf)
            probabilities[b, h] = softmax(scores)
            output[b, h] = probabilities[b, h] @ value[b, shared].astype("float64")
    return output, probabilities


def rotated(x, positions, base):
    half = x.shape[-1] // 2
    turn = np.exp(1j * positions[:, None, :, None] * base ** (-2.0 * np.arange(half) / x.shape[-1]))
    turned = (x[..., :half] + 1j * x[..., half:]) * turn
    return np.concatenate([turned.real, turned.imag], -1)


def columns_of(layer):
    """The columns of W_QKV that make queries, keys and values: by key-value head its queries, its key, its value."""
    shared, width = layer.num_heads // layer.num_kv_heads, layer.head_dim
    found = {"query": [], "key": [], "value": []}
    column = 0
    for _ in range(layer.num_kv_heads):
        for name, heads in (("query", shared), ("key", 1), ("value", 1)):
            found[name] += range(column, column + heads * width)
            column += heads * width
    return found.values()


def multi_head(layer, x, mask, bias=None, turn=None):
    """The formula of the class, with its weights; `turn` is a pair of positions and the base of the rotation."""
    width = layer.head_dim
    weights = {
        weight.path.split("/")[-2] + "/" + weight.name: array(weight).astype("float64") for weight in layer.weights
    }
    projected = x @ weights["qkv/kernel"] + weights.get("qkv/bias", 0.0)
    query, key, value = (
        projected[..., columns].reshape(*x.shape[:2], -1, width).transpose(0, 2, 1, 3) for columns in columns_of(layer)
    )
    if turn is not None:
        query, key = rotated(query, *turn), rotated(key, *turn)
    output, probabilities = attention(query, key, value, mask, bias, layer.scale)
    output = output.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1)
    return output @ weights["output/kernel"] + weights.get("output/bias", 0.0), probabilities


def normal(*shape):
    return random.standard_normal(shape).astype("float32")


CASES = [
    (kv_heads, extras, causal)
    for kv_heads in (4, 2, 1)
    for extras in ("none", "mask", "bias", "both")
    for causal in (False, True)
]


@pytest.mark.parametrize(("kv_heads", "extras", "causal"), CASES)
def test_scaled_dot_product(kv_heads, extras, causal):
    keys = 3 if causal else 6
    query, key, value = normal(2, 4, 3, 5), normal(2, kv_heads, keys, 5), normal(2, kv_heads, keys, 5)
    mask = random.random((2, 1, 3, keys)) < 0.6 if extras in ("mask", "both") else None
    if mask is not None:
        mask[..., 0] = True
    bias = normal(1, 4, 3, keys) if extras in ("bias", "both") else None
    scale = 1.0 if extras == "both" else None
    tensors = [ops.convert_to_tensor(part) for part in (query, key, value)]
    seen = mask
    if causal:
        seen = np.tril(np.ones((3, 3), bool)) & (True if mask is None else mask)
    expected = attention(query, key, value, seen, bias, scale)
    options = {"causal": causal, "mask": mask, "bias": bias, "scale": scale}
    np.testing.assert_allclose(array(attend(*tensors, **options)), expected[0], atol=1e-5)
    output, probabilities = attend(*tensors, return_scores=True, **options)
    np.testing.assert_allclose(array(output), expected[0], atol=1e-5)
    np.testing.assert_allclose(array(probabilities), expected[1], atol=1e-5)


@pytest.mark.parametrize("bias_heads", [None, 1, 4])
def test_one_query_of_shared_heads(bias_heads):
    query, key, value = normal(2, 4, 1, 5), normal(2, 2, 6, 5), normal(2, 2, 6, 5)
    bias = None if bias_heads is None else normal(1, bias_heads, 1, 6)
    tensors = [ops.convert_to_tensor(part) for part in (query, key, value)]
    expected, _ = attention(query, key, value, None, bias)
    np.testing.assert_allclose(array(attend(*tensors, bias=bias)), expected, atol=1e-5)


@pytest.mark.parametrize(("size", "head_dim"), [(40, 64), (45, 64), (40, 128), (60, 128)])
def test_what_is_hidden_stays_hidden_in_float16(size, head_dim):
    """The key that query 0 must not see has the highest score, by up to 81,000."""
    query = np.full((1, 1, 2, head_dim), size, "float16")
    key = np.stack([np.full(head_dim, -size), np.full(head_dim, size)]).astype("float16")[None, None]
    value = np.zeros((1, 1, 2, head_dim), "float16")
    value[:, :, 1] = 1.0
    tensors = [ops.convert_to_tensor(part) for part in (query, key, value)]
    biased = {"bias": as_bias(causal_mask(2), bias_dtype(2, "float16"))}
    ways = [visibility(2, "float16"), visibility(2, "float16", window=2), biased, {"mask": causal_mask(2)}]
    for seen in ways if size < 60 or keras.backend.backend() != "torch" else ways[:1]:  # a bias hides up to 65504
        output = array(ops.cast(attend(*tensors, **seen), "float32"))
        assert np.abs(output[0, 0, 0]).max() == 0 and output[0, 0, 1].min() == 1, seen


@pytest.mark.parametrize("return_scores", [False, True])
@pytest.mark.parametrize(("dtype", "step"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_large_scores_in_half_precision(dtype, step, return_scores):
    """Entries of 40: a score before it is scaled is beyond float16, and in bfloat16 rounded to multiples of 512."""
    query = ops.cast(normal(1, 4, 16, 64) + 40.0 * np.sign(normal(1, 4, 1, 64)), dtype)
    key, value = ops.cast(normal(1, 2, 16, 64) + 40.0, dtype), ops.cast(normal(1, 2, 16, 64), dtype)
    rounded = [array(ops.cast(part, "float32")) for part in (query, key, value)]
    causal = np.tril(np.ones((16, 16), bool))
    expected, _ = attention(*rounded, causal)
    output = attend(query, key, value, causal=True, return_scores=return_scores)
    output = array(ops.cast(output[0] if return_scores else output, "float32"))
    # The query is rounded once more where it is scaled in half precision; a score is off by no more than a step of it.
    scores = np.einsum("bhqd,bhkd->bhqk", rounded[0], np.repeat(rounded[1], 2, 1)) / 8
    bound = 4 * step * (1 + np.abs(expected)) + 1e-3 * np.abs(scores).max() * step * np.abs(rounded[2]).max()
    assert (np.abs(output - expected) <= bound).all(), np.abs(output - expected).max()


def test_a_row_without_visible_keys_gives_numbers():
    parts = [ops.convert_to_tensor(normal(1, 2, 3, 4)) for _ in range(3)]
    for dtype in ("float32", "float16", "bfloat16"):
        half = [ops.cast(part, dtype) for part in parts]
        nothing = np.zeros((1, 1, 3, 3), bool)
        for options in ({"mask": nothing}, {"bias": as_bias(nothing, dtype)}, {"mask": nothing, "causal": True}):
            assert np.isfinite(array(ops.cast(attend(*half, **options), "float32"))).all()


@pytest.mark.parametrize("window", [None, 1, 3])
def test_what_a_query_sees(window):
    steps = np.arange(6)
    distance = steps[:, None] - steps[None]
    expected = (distance >= 0) & (distance < (window or 6))
    np.testing.assert_array_equal(array(causal_mask(6, window))[0, 0], expected)
    same = np.array([0, 0, 0, 1, 1, 1])[:, None] == np.array([0, 0, 0, 1, 1, 1])
    parts = [normal(1, 2, 6, 4) for _ in range(3)]
    for mask in (None, same[None, None]):
        seen = visibility(6, "float32", mask, window)
        assert isinstance(seen["causal"], bool)
        output = attend(*(ops.convert_to_tensor(part) for part in parts), **seen)
        both = expected if mask is None else expected & same
        np.testing.assert_allclose(array(output), attention(*parts, mask=both)[0], atol=1e-5)


OPTIONS = {
    "plain": {},
    "no bias": {"use_bias": False},
    "bias of the output alone": {"use_bias": False, "output_bias": True},
    "grouped": {"num_kv_heads": 2},
    "one key-value head, own width": {"num_kv_heads": 1, "head_dim": 6},
    "rotary": {"base": 30.0},
    "rotary and grouped": {"base": 30.0, "num_kv_heads": 2, "use_bias": False},
    "a scale of one's own": {"scale": 1.0, "num_kv_heads": 2},
    "both ways": {"causal": False},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_multi_head(name):
    options = dict(OPTIONS[name])
    base = options.pop("base", None)
    layer = SelfAttention(16, 4, **options)
    layer.build()
    randomize(layer)
    x = normal(2, 5, 16)
    positions = np.array([np.arange(5), [3, 4, 0, 1, 2]], "int32")
    turned, turn = None, None
    if base is not None:
        turned, turn = rotation(positions, rotary_frequencies(layer.head_dim, base)), (positions, base)
    causal = np.tril(np.ones((5, 5), bool))[None, None] if layer.causal else None
    expected, probabilities = multi_head(layer, x, causal, turn=turn)
    np.testing.assert_allclose(array(layer(x, rotation=turned)), expected, atol=1e-5)
    output, scores = layer(x, rotation=turned, return_scores=True)
    np.testing.assert_allclose(array(output), expected, atol=1e-5)
    np.testing.assert_allclose(array(scores), probabilities, atol=1e-5)
    other, _ = multi_head(layer, x, None if layer.causal else np.tril(np.ones((5, 5), bool)), turn=turn)
    np.testing.assert_allclose(array(layer(x, rotation=turned, causal=not layer.causal)), other, atol=1e-5)

    mask = random.random((2, 1, 5, 5)) < 0.5
    mask[..., 0] = True
    bias = normal(1, 4, 5, 5)
    expected, _ = multi_head(layer, x, mask if causal is None else mask & causal, bias, turn)
    np.testing.assert_allclose(array(layer(x, rotation=turned, attention_mask=mask, bias=bias)), expected, atol=1e-5)


def test_dropout_reaches_the_probabilities_in_training_only():
    layer = SelfAttention(16, 4, dropout=0.5)
    x = normal(2, 5, 16)
    calm = array(layer(x, training=False))
    np.testing.assert_array_equal(calm, array(layer(x)))
    assert np.abs(array(layer(x, training=True)) - calm).max() > 1e-3


def test_the_scores_are_those_before_dropout():
    parts = [ops.convert_to_tensor(normal(1, 2, 3, 4)) for _ in range(3)]
    _, calm = attend(*parts, return_scores=True)
    output, probabilities = attend(*parts, dropout=lambda p: 0.0 * p, return_scores=True)
    np.testing.assert_array_equal(array(probabilities), array(calm))
    assert np.abs(array(output)).max() == 0


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
    slots = cache_slots(ops.convert_to_tensor(position), ops.convert_to_tensor(lengths), 4, 8, heads=2)
    result = write_cache(ops.convert_to_tensor(cache), ops.convert_to_tensor(new), slots)
    np.testing.assert_array_equal(array(result), written(cache, new, position, lengths))


WAYS = ["scatter", "slice"] + ["in place"] * (keras.backend.backend() == "torch")


@pytest.mark.parametrize("way", WAYS)
def test_one_new_token(way):
    rows = 1 if way == "slice" else 3
    cache, new = normal(rows, 2, 8, 3), normal(rows, 2, 1, 3)
    position, lengths = np.array([7, 0, 4], "int32")[:rows], np.ones(rows, "int32")
    given = ops.convert_to_tensor(cache.copy())
    with single_tokens_written(way):
        slots = cache_slots(ops.convert_to_tensor(position), ops.convert_to_tensor(lengths), 1, 8, heads=2)
        result = write_cache(given, ops.convert_to_tensor(new), slots)
    np.testing.assert_array_equal(array(result), written(cache, new, position, lengths))
    np.testing.assert_array_equal(array(given), array(result) if way == "in place" else cache)


@pytest.mark.parametrize("way", WAYS)
def test_a_full_cache_takes_no_more(way):
    """A row that stands still, with a cache that is full: it writes past the end, or over its own last slot."""
    rows = 1 if way == "slice" else 2
    cache, new = normal(rows, 2, 8, 3), normal(rows, 2, 1, 3)
    position = np.array([8, 3], "int32")[:rows]
    with single_tokens_written(way):
        slots = cache_slots(ops.convert_to_tensor(position), ops.zeros((rows,), "int32"), 1, 8, heads=2)
        result = array(write_cache(ops.convert_to_tensor(cache.copy()), ops.convert_to_tensor(new), slots))
    np.testing.assert_array_equal(result[0, :, :7], cache[0, :, :7])
    if way == "scatter" and keras.backend.backend() == "jax":
        np.testing.assert_array_equal(result[0], cache[0])


def test_the_first_keys_of_a_cache():
    new = normal(2, 3, 4, 5)
    cache = array(first_cache(ops.convert_to_tensor(new), 6))
    np.testing.assert_array_equal(cache, np.concatenate([new, np.zeros((2, 3, 2, 5))], axis=2))


@pytest.mark.parametrize("time", [1, 3])
def test_cache_keeps_its_own_type(time):
    row = ops.zeros((1,), "int32")
    slots = cache_slots(row, row + 1, time, 8, heads=2)
    new = ops.convert_to_tensor(normal(1, 2, time, 3))
    result = write_cache(ops.cast(normal(1, 2, 8, 3), "float16"), new, slots)
    assert "float16" in str(result.dtype)
    with pytest.raises(ValueError, match="int8 would need scales"):
        write_cache(ops.zeros((1, 2, 8, 3), "int8"), new, slots)


def test_an_unknown_way_of_writing():
    with (
        pytest.raises(ValueError, match="one of .*'scatter', 'slice', 'in place'.*, got 'copy'"),
        single_tokens_written("copy"),
    ):
        pass


def test_heads_must_divide():
    with pytest.raises(ValueError, match=r"hidden_dim=16 and num_heads=3; choose one of \[1, 2, 4, 8, 16\]"):
        SelfAttention(16, 3)
    with pytest.raises(ValueError, match="num_kv_heads must divide num_heads, got 3 and 4"):
        SelfAttention(16, 4, num_kv_heads=3)
    with pytest.raises(ValueError, match="scale must be a finite number above 0, or None .* got 0"):
        SelfAttention(16, 4, scale=0)
    assert SelfAttention(16, 3, head_dim=5).head_dim == 5


def test_what_a_call_needs_is_asked_for():
    cache, row = (ops.zeros((1, 4, 8, 4)), ops.zeros((1, 4, 8, 4))), ops.zeros((1,), "int32")
    for missing in (
        {"slots": cache_slots(row, row + 3, 3, 8, heads=4)},
        {"attention_mask": np.ones((1, 1, 3, 8), bool)},
    ):
        with pytest.raises(ValueError, match="needs slots, .* and attention_mask or bias"):
            SelfAttention(16, 4)(normal(1, 3, 16), cache=cache, **missing)


def test_config_round_trip():
    options = {"num_kv_heads": 2, "head_dim": 6, "causal": False, "scale": 1.0, "dropout": 0.1, "use_bias": False}
    config = SelfAttention(16, 4, output_bias=True, **options).get_config()
    assert SelfAttention.from_config(config).get_config() == config
    assert {name: config[name] for name in options} == options and config["output_bias"] is True
