"""Every architecture and option held against `reference.py`, which shares nothing with the package, and that against PyTorch."""

import functools

import keras
import ml_dtypes
import numpy as np
import pytest
import reference
from helpers import (
    CONTEXT,
    MODELS,
    VOCABULARY,
    array,
    arrays,
    compile_plainly,
    cut_products,
    ids_of,
    new_model,
    randomize,
    run,
    tiny,
)
from reference_weights import weights_of

from keras_seqlm.models import RecurrentLM, TransformerLM

pytestmark = pytest.mark.neutral

# name -> (a model of helpers.MODELS, what differs from it). Between them every option, and those that meet somewhere.
LLAMA3 = {
    "type": "llama3",
    "factor": 8.0,
    "low_frequency_factor": 1.0,
    "high_frequency_factor": 4.0,
    "original_max_length": 72,  # of four frequencies of base 100 one stays, two lie between, one is divided
}
VARIANTS = {
    **{name: (name, {}) for name in MODELS},
    "window": ("rotary", {"window": 3, "feed_forward_bias": True, "activation": "gelu"}),
    "llama3": (
        "rotary",
        {
            "num_layers": 1,
            "num_heads": 2,
            "num_kv_heads": 1,
            "rotary_base": 100.0,
            "rotary_scaling": LLAMA3,
            "qkv_bias": True,
            "epsilon": 1e-3,
        },
    ),
    "faint": (
        "learned",
        {
            "num_layers": 1,
            "tie_embedding": False,
            "positions": "rotary",
            "rotary_base": 100.0,
            "rotary_scaling": {"type": "linear", "factor": 4.0},
            "use_bias": False,
        },
    ),
    "wide_heads": (
        "learned",
        {"num_layers": 1, "num_heads": 3, "head_dim": 6, "output_bias": False, "window": 5, "epsilon": 1e-3},
    ),
    "unscaled": (
        "sinusoidal",
        {"num_layers": 1, "attention_scale": 1.0, "scale_embedding": False, "qkv_bias": False},
    ),
    "scaled": (
        "post_norm",
        {"num_layers": 1, "scale_embedding": True, "norm": "rms", "feed_forward_bias": False, "num_kv_heads": 2},
    ),
    "bridged_gru": ("gru", {"num_layers": 1, "tie_embedding": True, "embedding_dim": 10}),
    "untied_lstm": ("lstm", {"num_layers": 1, "tie_embedding": False}),
}
TIME = 12
BORDERS = [[12], [1, 7, 12]]  # where the documents of each row end
SEGMENTS = np.array([[9 - np.searchsorted(ends, t, side="right") for t in range(TIME)] for ends in BORDERS], "int32")
READ = [(8, 3), (1, 1), (1, 6), (1, 1), (1, 1)]  # tokens of the two rows in each call with state
BOUND = 5e-6  # of the largest logit, in float32; up to 1.5e-6 was seen


def some(names, everywhere=()):
    """Parameters, those `everywhere` on all three backends: on JAX each of them costs a compilation or more."""
    parts = [(name, name if isinstance(name, tuple) else (name,)) for name in names]
    return [pytest.param(*part, marks=[pytest.mark.backends] * (name in everywhere)) for name, part in parts]


def options_of(name):
    """What a model is built with, as the reference takes it."""
    kind, more = VARIANTS[name]
    return {**MODELS[kind][1], **more}


@functools.cache
def model_of(name):
    kind, more = VARIANTS[name]
    if not more:
        return tiny(kind)
    model = new_model(kind, **more)
    if name == "faint":  # its first norm has little but epsilon to divide by
        model.token_embedding.table.assign(0.01 * array(model.token_embedding.table))
    return model


@functools.cache
def weights_by_name(name):
    return weights_of(model_of(name), options_of(name))


def forward(name):
    return reference.recurrent if "cell" in options_of(name) else reference.transformer


@functools.cache
def expected(name, packed=False):
    """The reference's logits of two sequences."""
    rows = zip(ids_of(2, TIME), SEGMENTS if packed else [None, None], strict=True)
    return np.array([forward(name)(weights_by_name(name), options_of(name), *row) for row in rows])


def assert_close(logits, target, bound=BOUND):
    assert np.abs(target).max() > 0.1  # not a comparison of zeros
    assert np.abs(logits - target).max() < bound * np.abs(target).max()


def whole(model, ids):
    return model(ids)


def whole_and_packed(model, ids, segment_ids):
    return model(ids), model({"token_ids": ids, "segment_ids": segment_ids})


def in_training(model, ids):
    return model(ids, training=True)


def in_pieces(model, ids, lengths, state):
    return model({"token_ids": ids, "lengths": lengths}, state=state)


def read_in_pieces(model, ids):
    """The logits of prompts, of single tokens, and of prompts that go on, ragged, through the state."""
    state, logits, done = arrays(model.initial_state(2)), [[], []], [0, 0]
    for lengths in READ:
        chunk = np.full((2, 8 if max(lengths) > 1 else 1), 7, "int32")
        for row, length in enumerate(lengths):
            chunk[row, :length] = ids[row, done[row] : done[row] + length]
        new, state = run(model, in_pieces, chunk, np.array(lengths, "int32"), state)
        new, state = array(new), arrays(state)
        for row, length in enumerate(lengths):
            logits[row].extend(new[row, :length])
            done[row] += length
    return np.array(logits)


@pytest.mark.parametrize("name", some(VARIANTS, everywhere=(*MODELS, "window", "llama3", "wide_heads")))
def test_whole_sequences_and_packed_documents(name):
    logits, packed = run(model_of(name), whole_and_packed, ids_of(2, TIME), SEGMENTS)
    assert_close(array(logits), expected(name))
    assert_close(array(packed), expected(name, packed=True))


@pytest.mark.parametrize("name", some(VARIANTS, everywhere=("lstm", "learned", "window")))
def test_prompts_and_steps(name):
    assert_close(read_in_pieces(model_of(name), ids_of(2, TIME)), expected(name))


@pytest.mark.parametrize("name", some(MODELS, everywhere=("rnn", "gru", "lstm", "learned")))
def test_training_computes_the_same_numbers(name):
    """Where a gradient is by hand, or a product has another form, training has a forward pass of its own."""
    assert_close(array(run(model_of(name), in_training, ids_of(2, TIME))), expected(name))


@pytest.mark.parametrize("name", some(["gru", "lstm", "learned", "window"], everywhere=("window",)))
def test_greedy_text_and_score(name):
    """Each new id is the reference's best one, or as good as it; and ln p of a sequence is the sum of the reference's."""
    model, prompt = model_of(name), ids_of(1, 5)[0]
    ids = [*prompt, *model.generate(prompt, max_new_tokens=12)]
    assert len(ids) == 17
    logits = forward(name)(weights_by_name(name), options_of(name), ids)
    for position in range(5, 17):
        behind = logits[position - 1].max() - logits[position - 1, ids[position]]
        assert behind < 2 * BOUND * np.abs(logits).max(), f"token {position} of {ids}"
    assert model.score(ids) == pytest.approx(-len(ids[1:]) * loss_of(logits[:-1], ids[1:]), rel=1e-5)


def loss_of(logits, targets):
    """Mean -ln p(target), in float64."""
    logits = logits - logits.max(-1, keepdims=True)
    losses = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, np.asarray(targets)[..., None], -1)[..., 0]
    return losses.mean()


@pytest.mark.parametrize("name", ["rnn", "gru", "lstm", "learned", "rotary", "post_norm"])
def test_loss_and_gradients(name):
    """Along a random direction in each weight, the gradient is the difference of two losses of the reference."""
    rate, step, random = 10.0, 1e-6, np.random.default_rng(1)
    model, options, x, y = new_model(name), options_of(name), ids_of(2, TIME), ids_of(2, TIME, seed=6)
    before = weights_of(model, options)
    compile_plainly(model, keras.optimizers.SGD(rate), run_eagerly=True)
    loss = model.train_on_batch({"token_ids": x, "segment_ids": SEGMENTS}, y)

    def reference_loss(weights):
        rows = zip(x, SEGMENTS, strict=True)
        return loss_of(np.array([forward(name)(weights, options, *row) for row in rows]), y)

    assert loss == pytest.approx(reference_loss(before), rel=1e-6)
    after = weights_of(model, options)
    slopes, expected_slopes = {}, {}
    for weight in before:
        direction = random.standard_normal(before[weight].shape)
        slopes[weight] = np.sum((before[weight] - after[weight]) * direction) / rate
        losses = [reference_loss({**before, weight: before[weight] + h * direction}) for h in (step, -step)]
        expected_slopes[weight] = (losses[0] - losses[1]) / (2 * step)
    largest = max(map(abs, expected_slopes.values()))
    for weight, slope in slopes.items():
        assert abs(slope - expected_slopes[weight]) < 1e-5 * largest, weight


# Half precision. The reference, rounding wherever a layer ends, says what a type itself costs. An implementation rounds
# in other places, too, and may err twice as much; 1.4 times were seen.

TYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
LARGE = {"num_layers": 2, "hidden_dim": 16, "num_heads": 4, "max_length": CONTEXT, "tie_embedding": False}


def rounding(policy):
    kind = TYPES[policy.removeprefix("mixed_")]
    return lambda x: np.asarray(x).astype(kind).astype("float64")


def large_model(policy):
    """A Transformer whose scores leave float16 unless they are scaled first, and whose states do if they are squared.

    In each head two numbers of every query and key are 200: they add 80,000 to all scores alike, which softmax cancels;
    kept in half precision such scores have lost what the other two numbers say.
    """
    model = TransformerLM(VOCABULARY, **LARGE, dtype=policy)
    model.build()
    randomize(model)
    model.token_embedding.table.assign(array(model.token_embedding.table) * 1000.0)
    for block in model.blocks:
        qkv = block.attention.qkv
        kernel, bias = array(qkv.kernel).reshape(16, 4, 3, 4), array(qkv.bias).reshape(4, 3, 4)
        kernel[:, :, :2, :2], bias[:, :2, :2] = 0.0, 200.0
        qkv.kernel.assign(kernel.reshape(16, 48))
        qkv.bias.assign(bias.reshape(48))
    return model


POLICIES = ("mixed_float16", "mixed_bfloat16", "bfloat16")
HALF = [(name, policy) for name in ("gru", "lstm", "rotary", "large") for policy in POLICIES]


@pytest.mark.parametrize(
    ("name", "policy"), some(HALF, everywhere=[("lstm", "mixed_bfloat16"), ("large", "mixed_float16")])
)
def test_half_precision(name, policy):
    if name == "large":
        model, options, function = large_model(policy), LARGE, reference.transformer
    else:
        model, options, function = new_model(name, dtype=policy), options_of(name), forward(name)
    ids, weights = ids_of(2, TIME), weights_of(model, options)
    exact = np.array([function(weights, options, row) for row in ids])
    rounded = np.array([function(weights, options, row, rounded=rounding(policy)) for row in ids])
    cost = np.abs(rounded - exact).max()
    assert cost < 0.08 * np.abs(exact).max()
    for logits in (array(run(model, whole, ids)), read_in_pieces(model, ids)):
        assert np.abs(logits - exact).max() < 2 * cost * cut_products(model.compute_dtype)


def test_a_state_that_grows_slowly_in_half_precision():
    """Many steps, in the end of the size of bfloat16's own: summed up in it, they would be rounded one way, or lost."""
    options, policy = {"cell": "lstm", "num_layers": 1, "hidden_dim": 16}, "mixed_bfloat16"
    model, ids = RecurrentLM(VOCABULARY, **options, dtype=policy), ids_of(2, 250)
    model.build()
    randomize(model, scale=0.1)
    model.recurrent.layers[0].cell.bias.assign(np.repeat([-7.0, 12.0, 2.0, 2.0], 16))  # little comes in, all is kept
    weights = weights_of(model, options)
    exact = np.array([reference.recurrent(weights, options, row) for row in ids])
    rounded = np.array([reference.recurrent(weights, options, row, rounded=rounding(policy)) for row in ids])
    for function in (whole, in_training):
        logits = array(run(model, function, ids))
        assert np.abs(logits - exact).max() < 2 * np.abs(rounded - exact).max()


# What a fresh model holds.


def fresh(kind, **options):
    model = kind(1000, **options)
    model.build()
    return weights_of(model, options)


def assert_drawn(weight, deviation, truncated=False):
    """Mean 0 and the deviation given; a truncated normal ends at two deviations of the normal that it is cut from."""
    assert abs(weight.mean()) < 5 * deviation / np.sqrt(weight.size)
    assert weight.std() == pytest.approx(deviation, rel=4 / np.sqrt(weight.size))
    if truncated:
        assert 2.0 < np.abs(weight).max() / deviation < 2 / 0.8796 + 0.01


@pytest.mark.parametrize("activation", ["gelu_tanh", "swiglu"])
def test_a_fresh_transformer(activation):
    """Normals for tables, kernels by their fan-in, and those that write to the stream smaller by sqrt(2 * num_layers)."""
    width, middle, layers = 64, 160, 3
    options = {"num_layers": layers, "hidden_dim": width, "num_heads": 4, "head_dim": 32, "intermediate_dim": middle}
    weights = fresh(TransformerLM, **options, max_length=100, activation=activation)
    assert_drawn(weights["token_embedding"], width**-0.5)
    assert_drawn(weights["positions"], 0.02)
    for name, weight in weights.items():
        part = name.split("/")[-1]
        if part in ("query", "key", "value", "gate", "up"):
            assert_drawn(weight, width**-0.5, truncated=True)
        elif part in ("output", "down"):
            fan_in = 4 * 32 if part == "output" else middle
            assert_drawn(weight, (fan_in * 2 * layers) ** -0.5, truncated=True)
        elif "/" in part or part not in ("token_embedding", "positions"):
            np.testing.assert_array_equal(weight, 1.0 if part.endswith("norm") else 0.0)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_fresh_recurrent_model(cell):
    """As Keras's layers: Glorot's uniform kernels, orthogonal recurrent ones, and a forget gate that starts open."""
    width, gates = 64, {"rnn": "h", "gru": "zrg", "lstm": "ifgo"}[cell]
    weights = fresh(RecurrentLM, cell=cell, num_layers=2, hidden_dim=width, embedding_dim=48)
    assert_drawn(weights["token_embedding"], 48**-0.5)
    assert_drawn(weights["bridge"], (2 / (width + 48)) ** 0.5)
    for i, features in enumerate((48, width)):
        kernel, recurrent = (np.concatenate([weights[f"layer_{i}/{k}_{g}"] for g in gates]) for k in "WU")
        limit = (6 / (features + len(gates) * width)) ** 0.5
        assert_drawn(kernel, limit / 3**0.5)
        assert 0.99 * limit < np.abs(kernel).max() <= limit
        np.testing.assert_allclose(recurrent.T @ recurrent, np.eye(width), atol=1e-5)
    for name, weight in weights.items():
        if "/b" in name or name in ("a", "bridge_bias"):
            np.testing.assert_array_equal(weight, 1.0 if name.endswith("b_f") else 0.0)


@pytest.mark.parametrize("activation", ["gelu_tanh", "swiglu"])
def test_a_fresh_model_knows_nothing(activation):
    """Logits at unit scale, whatever the depth: the first loss is about half a nat above the logarithm of the vocabulary."""
    options = {"num_layers": 4, "hidden_dim": 64, "num_heads": 4, "max_length": 64, "activation": activation}
    model = TransformerLM(1000, **options)
    assert array(model(ids_of(2, 64, vocabulary_size=1000))).std() == pytest.approx(1.0, abs=0.1)


# The reference against other houses' models, which get our weights: a mistake that it shares with the package shows here.


def torch_module(module, weights):
    """A module in float64 with these weights, every one of which it must know."""
    import torch

    module = module.double().eval()
    result = module.load_state_dict({name: torch.tensor(weight) for name, weight in weights.items()}, strict=False)
    assert not result.unexpected_keys and set(result.missing_keys) <= {"lm_head.weight"}, result
    return module


def torch_logits(module, ids):
    import torch

    with torch.no_grad():
        return module(torch.tensor(ids, dtype=torch.long)).logits.double().numpy()


def stacked(parts):
    """(heads, features, head_dim) or (heads, head_dim) side by side."""
    return np.concatenate(list(parts), axis=-1)


def renamed(weights, names, of_matrix=lambda name, weight: weight):
    """`names`: theirs -> ours."""
    return {theirs: of_matrix(theirs, weights[ours]) for theirs, ours in names.items() if ours in weights}


def test_gpt2_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=16, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2
    )
    w = weights_by_name("learned")
    theirs = {"transformer.wte.weight": w["token_embedding"], "transformer.wpe.weight": w["positions"]}
    names = {"ln_1": "attention_norm", "ln_2": "feed_forward_norm", "attn.c_proj": "output", "mlp.c_fc": "up", "mlp.c_proj": "down"}  # fmt: skip
    for i in range(2):
        for suffix, ours in ((".weight", ""), (".bias", "_bias")):
            qkv = [stacked(w[f"block_{i}/{part}{ours}"]) for part in ("query", "key", "value")]
            theirs[f"transformer.h.{i}.attn.c_attn{suffix}"] = stacked(qkv)
            for their_name, name in names.items():
                theirs[f"transformer.h.{i}.{their_name}{suffix}"] = w[f"block_{i}/{name}{ours}"]
    theirs |= {"transformer.ln_f.weight": w["output_norm"], "transformer.ln_f.bias": w["output_norm_bias"]}
    logits = torch_logits(torch_module(transformers.GPT2LMHeadModel(config), theirs), ids_of(2, TIME))
    assert_close(logits, expected("learned"), 1e-10)


def of_llama(w, layers):
    """Our weights under the names of transformers' Llama, whose matrices are transposed."""
    theirs = {"model.embed_tokens.weight": w["token_embedding"], "model.norm.weight": w["output_norm"]}
    names = {"self_attn.o_proj": "output", "mlp.gate_proj": "gate", "mlp.up_proj": "up", "mlp.down_proj": "down"}
    for i in range(layers):
        ours, block = f"block_{i}/", f"model.layers.{i}."
        for letter, part in (("q", "query"), ("k", "key"), ("v", "value")):
            theirs[f"{block}self_attn.{letter}_proj.weight"] = stacked(w[f"{ours}{part}"]).T
            if f"{ours}{part}_bias" in w:
                theirs[f"{block}self_attn.{letter}_proj.bias"] = stacked(w[f"{ours}{part}_bias"])
                theirs[f"{block}self_attn.o_proj.bias"] = np.zeros_like(w["output_norm"])
        for their_name, name in names.items():
            theirs[f"{block}{their_name}.weight"] = w[f"{ours}{name}"].T
        theirs[f"{block}input_layernorm.weight"] = w[f"{ours}attention_norm"]
        theirs[f"{block}post_attention_layernorm.weight"] = w[f"{ours}feed_forward_norm"]
    return theirs


LLAMAS = {
    "plain": ("rotary", {}, {"rope_type": "default", "rope_theta": 10000.0}),
    "linear": (
        "rotary",
        {"rotary_base": 50.0, "rotary_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_type": "linear", "rope_theta": 50.0, "factor": 4.0},
    ),
    "llama3": (
        "llama3",
        {},
        {
            "rope_type": "llama3",
            "rope_theta": 100.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 72,
        },
    ),
    "mistral": ("rotary", {"window": 3}, {"rope_type": "default", "rope_theta": 10000.0}),
}


@pytest.mark.parametrize("name", LLAMAS)
def test_llama_and_mistral_of_transformers(name):
    transformers = pytest.importorskip("transformers")
    variant, more, rope = LLAMAS[name]
    options, weights = {**options_of(variant), **more}, weights_by_name(variant)
    if name == "mistral":
        config_of, model_of_theirs = transformers.MistralConfig, transformers.MistralForCausalLM
        own = {"sliding_window": options["window"]}
    else:
        config_of, model_of_theirs = transformers.LlamaConfig, transformers.LlamaForCausalLM
        own = {"attention_bias": "block_0/query_bias" in weights}
    config = config_of(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=64,
        num_hidden_layers=options["num_layers"],
        num_attention_heads=options["num_heads"],
        num_key_value_heads=options["num_kv_heads"],
        max_position_embeddings=128,
        rms_norm_eps=options.get("epsilon", 1e-5),
        rope_parameters=rope,
        tie_word_embeddings=True,
        **own,
    )
    ids = ids_of(2, TIME)
    model = torch_module(model_of_theirs(config), of_llama(weights, options["num_layers"]))
    logits = np.array([reference.transformer(weights, options, row) for row in ids])
    assert_close(torch_logits(model, ids), logits, 5e-6)  # its norms and rotations are in float32 whatever comes


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer_layers_of_torch(norm_first, activation):
    torch = pytest.importorskip("torch")
    w, ids = weights_by_name("learned"), ids_of(1, TIME)[0]
    options = {**options_of("learned"), "num_layers": 1, "norm_first": norm_first, "activation": activation}
    layer = torch.nn.TransformerEncoderLayer(16, 4, 64, 0.0, activation, norm_first=norm_first, batch_first=True)
    names = {"self_attn.out_proj": "output", "linear1": "up", "linear2": "down", "norm1": "attention_norm", "norm2": "feed_forward_norm"}  # fmt: skip
    theirs = {}
    for suffix, ours in (("weight", ""), ("bias", "_bias")):
        theirs[f"self_attn.in_proj_{suffix}"] = stacked(
            stacked(w[f"block_0/{part}{ours}"]) for part in ("query", "key", "value")
        ).T
        theirs |= {f"{their_name}.{suffix}": w[f"block_0/{name}{ours}"].T for their_name, name in names.items()}
    x = torch.tensor(w["token_embedding"][ids] + w["positions"][:TIME])[None]
    with torch.no_grad():
        mask = torch.nn.Transformer.generate_square_subsequent_mask(TIME, dtype=torch.float64)
        x = torch_module(layer, theirs)(x, src_mask=mask)
        if norm_first:
            x = torch.nn.functional.layer_norm(x, (16,), *(torch.tensor(w[f"output_norm{s}"]) for s in ("", "_bias")))
        logits = (x @ torch.tensor(w["token_embedding"]).T).numpy()[0]
    assert_close(logits, reference.transformer(w, options, ids), 1e-10)


@pytest.mark.parametrize("name", ["rnn", "gru", "lstm"])
def test_recurrent_layers_of_torch(name):
    """A GRU's gates stand r, z, n there; where a cell has one bias here, the second one is zero."""
    torch = pytest.importorskip("torch")
    w, ids, features = weights_by_name(name), ids_of(1, TIME)[0], options_of(name).get("embedding_dim", 16)
    gates, theirs = {"rnn": "h", "gru": "rzg", "lstm": "ifgo"}[name], {}
    for i in range(2):
        for letter, their_name in (("W", "weight_ih"), ("U", "weight_hh"), ("b", "bias_ih"), ("b'", "bias_hh")):
            parts = [w.get(f"layer_{i}/{letter}_{gate}", np.zeros(16)) for gate in gates]
            theirs[f"{their_name}_l{i}"] = np.concatenate(parts)
    layers = getattr(torch.nn, name.upper())(features, 16, num_layers=2, batch_first=True)
    with torch.no_grad():
        x = torch.tensor(w["token_embedding"][ids] * features**0.5)[None]
        h = torch_module(layers, theirs)(x)[0][0].numpy()
    if name == "gru":
        logits = h @ w["V"].T + w["a"]
    else:
        h = h @ w["bridge"].T + w["bridge_bias"] if "bridge" in w else h
        logits = h @ w["token_embedding"].T + w["a"]
    assert_close(logits, expected(name)[0], 1e-10)
