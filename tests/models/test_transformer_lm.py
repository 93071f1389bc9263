import numpy as np
import pytest
from helpers import array, ids_of, new_model, tiny

from keras_seqlm.models import SIZES, TRANSFORMER_SIZES, TransformerLM

pytestmark = pytest.mark.neutral


def test_size_sets_what_is_not_given():
    model = TransformerLM(50, size="nano", hidden_dim=48)
    assert (model.num_layers, model.hidden_dim, model.num_heads, model.max_length) == (2, 48, 3, 128)
    assert model.intermediate_dim == 4 * 48
    assert TransformerLM(50, size="nano", activation="swiglu").intermediate_dim == 256
    assert set(SIZES) == set(TRANSFORMER_SIZES)


def test_base_is_gpt2():
    """124,439,808 parameters with GPT-2's vocabulary and tied embeddings; counted by the formula, not built."""
    width, layers, context = (TRANSFORMER_SIZES["base"][name] for name in ("hidden_dim", "num_layers", "max_length"))
    block = 12 * width**2 + 13 * width
    assert 50257 * width + context * width + layers * block + 2 * width == 124_439_808
    model = TransformerLM(50, size="nano")
    model.build()
    assert model.count_params() == 50 * 96 + 128 * 96 + 2 * (12 * 96**2 + 13 * 96) + 2 * 96


def test_tied_and_untied_projection():
    tied, untied = tiny("learned"), tiny("untied")
    assert not any("output_projection" in weight.path for weight in tied.weights if "attention" not in weight.path)
    hidden = np.random.default_rng(0).standard_normal((1, 2, 16)).astype("float32")
    np.testing.assert_allclose(array(tied.logits_of(hidden)), hidden @ array(tied.token_embedding.table).T, atol=1e-5)
    kernel = array(untied.output_projection.kernel)
    np.testing.assert_allclose(array(untied.logits_of(hidden)), hidden @ kernel, atol=1e-5)


def test_a_later_token_changes_no_earlier_logit():
    for name in ("learned", "rotary", "post_norm"):
        model, ids = tiny(name), ids_of(1, 8)
        other = ids.copy()
        other[0, 5] = (other[0, 5] + 1) % 30 + 4
        left, right = array(model(ids)), array(model(other))
        np.testing.assert_array_equal(left[:, :5], right[:, :5])
        assert np.abs(left[:, 5:] - right[:, 5:]).max() > 1e-3


def test_the_cache_has_the_key_value_heads():
    state = tiny("rotary").initial_state(3, 24)
    assert sorted(state) == ["kv_cache_k_0", "kv_cache_k_1", "kv_cache_v_0", "kv_cache_v_1", "position"]
    assert state["kv_cache_v_1"].shape == (3, 2, 24, 4)
    assert tiny("learned").initial_state(3)["kv_cache_k_0"].shape == (3, 4, 32, 4)


def test_positions_matter_to_every_kind():
    """Without positions a causal Transformer of one token repeated gives the same logits everywhere."""
    ids = np.full((1, 6), 9, "int32")
    for name in ("learned", "sinusoidal"):
        logits = array(tiny(name)(ids))[0]
        assert np.abs(logits[1:] - logits[0]).max() > 1e-3
    order = array(tiny("rotary")(np.array([[5, 6, 7], [6, 5, 7]], "int32")))[:, -1]
    assert np.abs(order[0] - order[1]).max() > 1e-3


def test_dropout_in_training_only():
    model, ids = new_model("learned", dropout=0.3), ids_of(2, 8)
    np.testing.assert_array_equal(array(model(ids)), array(model(ids, training=False)))
    assert np.abs(array(model(ids, training=True)) - array(model(ids))).max() > 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "huge"}, r"size must be one of \['nano', .*\], got 'huge'"),
        ({"positions": "relative"}, r"positions must be one of \['learned', 'sinusoidal', 'rotary'\], got 'relative'"),
        ({"activation": "tanh"}, "activation must be one of .* got 'tanh'"),
        ({"norm": "batch"}, r"norm must be one of \['layer', 'rms'\], got 'batch'"),
        ({"hidden_dim": 16, "num_heads": 3}, "num_heads must divide hidden_dim, got hidden_dim=16 and num_heads=3"),
        ({"num_heads": 4, "num_kv_heads": 3}, "num_kv_heads must divide num_heads, got 3 and 4"),
        ({"hidden_dim": 9, "num_heads": 3, "positions": "sinusoidal"}, "even hidden_dim, got 9"),
        ({"hidden_dim": 6, "num_heads": 2, "positions": "rotary"}, "even head_dim, got 3"),
        ({"num_layers": 0}, "num_layers must be a whole number of at least 1, or None, got 0"),
        ({"num_kv_heads": 0}, "num_kv_heads must be a whole number of at least 1"),
        ({"window": True}, "window must be a whole number of at least 1, or None, got True"),
        ({"rotary_base": 5e5}, "rotary_base and rotary_scaling are of positions='rotary', and these are 'learned'"),
        ({"rotary_scaling": {"type": "linear", "factor": 2.0}}, "are of positions='rotary'"),
        ({"positions": "rotary", "rotary_scaling": "linear"}, "must be a dict whose 'type' is one of"),
        ({"positions": "rotary", "rotary_scaling": {"rope_type": "llama3"}}, "rope_type for type"),
        ({"positions": "rotary", "rotary_scaling": {"type": "linear", "factor": "2"}}, "each a number above 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        TransformerLM(50, **{"size": "nano", **options})


@pytest.mark.backends
def test_row_38_a_sequence_beyond_the_context_is_refused():
    model = TransformerLM(50, num_layers=1, hidden_dim=16, num_heads=2, max_length=8)
    assert model(np.ones((1, 8), "int32")).shape == (1, 8, 50)
    with pytest.raises(ValueError, match="are 9 tokens long, and this model reads 8 at most"):
        model(np.ones((1, 9), "int32"))
    model.compile("adam", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="reads 8 at most"):
        model.fit(np.ones((2, 9), "int32"), np.ones((2, 9), "int32"), verbose=0)
