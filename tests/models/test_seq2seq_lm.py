"""Encoder-decoders against torch's Transformer, Hugging Face's Marian and the papers' formulas; rows alone; beams."""

import json

import keras
import numpy as np
import pytest
from cases import on_all
from helpers import array, arrays, ids_of, randomize, run
from keras import ops

from keras_seqlm.generation import generate, score
from keras_seqlm.layers import CrossAttention
from keras_seqlm.losses import CrossEntropy, FusedCrossEntropy
from keras_seqlm.models import (
    RecurrentEncoder,
    RecurrentLM,
    Seq2SeqLM,
    TransformerEncoder,
    TransformerLM,
    add_lora,
    merge_lora,
)
from keras_seqlm.models.adapters import learned, parts_of
from keras_seqlm.training.layer_rates import layer_factors

pytestmark = pytest.mark.neutral

VOCABULARY, WIDTH, HEADS, CONTEXT = 40, 16, 4, 24
SMALL = {"size": "nano", "num_layers": 2, "hidden_dim": WIDTH}
TRANSFORMER = {**SMALL, "num_heads": HEADS, "max_length": CONTEXT}
MODELS = {
    "transformer": TRANSFORMER,
    "post_norm": {**TRANSFORMER, "norm_first": False, "positions": "sinusoidal", "share_embedding": False},
    "additive": {**SMALL, "encoder": "lstm", "attention": "additive", "num_layers": 3},
    "general": {**SMALL, "encoder": "gru", "attention": "general"},
    "to_lstm": {**TRANSFORMER, "decoder": "lstm", "source_vocabulary_size": 50},
    "from_gru": {**TRANSFORMER, "encoder": "gru", "decoder": "transformer", "tie_embedding": False},
}
ON_ALL_BACKENDS = ("transformer", "additive")
every_model = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.backends) if name in ON_ALL_BACKENDS else name for name in MODELS]
)
SOURCES, TARGETS = ids_of(3, 9, seed=1), ids_of(3, 7, seed=2)
LENGTHS = np.array([9, 4, 1], "int32")
# To trace a step takes longer than to make three without; JAX compiles each operation by itself then.
JITTED = {"jit_compile": True} if keras.backend.backend() == "jax" else {"run_eagerly": True}
INPUTS = {"token_ids": TARGETS, "source_ids": SOURCES, "source_lengths": LENGTHS}


def new_model(name, **options):
    model = Seq2SeqLM(VOCABULARY, **{**MODELS[name], **options})
    model.build()
    randomize(model)
    return model


def whole(model, inputs):
    return model(inputs)


def encoded(model, inputs, targets=1):
    return model.encode(inputs, 8, targets)


def call(model, inputs, state):
    return model(inputs, state=state)


@every_model
def test_a_row_alone_is_the_row_beside_others_and_padding_shows_nowhere(name):
    model = new_model(name)
    together = array(run(model, whole, INPUTS))
    other = np.where(np.arange(9) < LENGTHS[:, None], SOURCES, 7)
    np.testing.assert_array_equal(array(run(model, whole, {**INPUTS, "source_ids": other})), together)
    for row, size in enumerate(LENGTHS):
        alone = {"token_ids": TARGETS[row : row + 1], "source_ids": SOURCES[row : row + 1, :size]}
        np.testing.assert_allclose(array(run(model, whole, alone))[0], together[row], atol=2e-5)
    changed = SOURCES.copy()
    changed[:, 0] = (changed[:, 0] + 1) % VOCABULARY
    assert np.abs(array(run(model, whole, {**INPUTS, "source_ids": changed})) - together).max(axis=(1, 2)).min() > 1e-3


@every_model
def test_the_whole_pass_is_a_beginning_and_single_tokens(name):
    model = new_model(name)
    expected = array(run(model, whole, INPUTS))
    assert np.abs(expected).max() > 0.1  # not a comparison of zeros
    lengths = np.array([3, 1, 2], "int32")
    state = arrays(run(model, encoded, {"source_ids": SOURCES, "source_lengths": LENGTHS}))
    kept = {leaf: value for leaf, value in state.items() if leaf.startswith("memory_")}
    logits, state = run(model, call, {"token_ids": TARGETS[:, :3], "lengths": lengths}, state)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(array(logits)[row, :length], expected[row, :length], atol=2e-5)
    done = lengths.copy()
    while done.min() < 7:
        reads = (done < 7).astype("int32")
        token_ids = np.take_along_axis(TARGETS, np.minimum(done, 6)[:, None], axis=1)
        logits, state = run(model, call, {"token_ids": token_ids, "lengths": reads}, arrays(state))
        for row in np.flatnonzero(reads):
            np.testing.assert_allclose(array(logits)[row, 0], expected[row, done[row]], atol=2e-5)
        done += reads
    for leaf, value in kept.items():  # handed back as it came
        np.testing.assert_array_equal(array(state[leaf]), value)


@every_model
def test_a_beam_shares_one_memory(name):
    """Five rows a source: of the memory there are as many bytes as of one row, and each row is what it is alone."""
    model, beams = new_model(name), 5
    source = {"source_ids": SOURCES[:2], "source_lengths": LENGTHS[:2]}
    one = arrays(run(model, encoded, source))
    state = arrays(model.encode(source, 8, beams))
    for leaf, value in state.items():
        assert value.shape[0] == (2 if leaf.startswith("memory_") else 2 * beams) and value.ndim <= 4
        assert value.nbytes == one[leaf].nbytes * (1 if leaf.startswith("memory_") else beams)
    targets = ids_of(2 * beams, 4, seed=9)
    logits, state = run(model, call, {"token_ids": targets[:, :3]}, state)
    step, state = run(model, call, {"token_ids": targets[:, 3:]}, arrays(state))
    assert all(leaf.shape[0] == 2 for name, leaf in state.items() if name.startswith("memory_"))
    repeated = {name: np.repeat(leaf, beams, axis=0) for name, leaf in source.items()}
    expected = array(run(model, whole, {"token_ids": targets, **repeated}))
    np.testing.assert_allclose(np.concatenate([array(logits), array(step)], axis=1), expected, atol=2e-5)


@pytest.mark.parametrize("name", ["transformer", "additive", "general"])
def test_no_row_of_a_beam_has_a_copy_of_the_memory(name):
    """In the program of a step nothing is as large as a memory for every row."""
    jax = pytest.importorskip("jax")
    if keras.backend.backend() != "jax":
        pytest.skip("JAX shows the shapes of a program")
    model, beams, long = new_model(name), 16, 64
    if name == "transformer":
        model = new_model(name, max_source_length=long)
    state = model.encode({"source_ids": ids_of(2, long)}, 8, beams)
    text = str(
        jax.make_jaxpr(lambda state, ids: model({"token_ids": ids}, state=state)[0])(state, ids_of(2 * beams, 1))
    )
    memory = max(int(np.prod(leaf.shape)) for leaf_name, leaf in state.items() if leaf_name.startswith("memory_"))
    sizes = [
        np.prod([int(n) for n in shape.split(",")]) for shape in __import__("re").findall(r"f32\[([\d,]+)\]", text)
    ]
    # the scores of additive attention are as wide as its keys until they are summed
    assert name == "additive" or max(sizes) < memory * beams / 4


@every_model
def test_written_text_is_that_of_whole_passes(name):
    model = new_model(name)
    sources = [SOURCES[row, :size] for row, size in enumerate(LENGTHS)]
    prompts = [[1], [1, 5, 6], [1]]
    together = generate(model, prompts, 6, source_ids=sources)
    for prompt, source, result in zip(prompts, sources, together, strict=True):
        ids = [*prompt, *result.token_ids]
        logits = array(run(model, whole, {"token_ids": np.array([ids]), "source_ids": source[None]}))[0]
        for step in range(len(prompt), len(ids)):
            assert logits[step - 1].max() - logits[step - 1, ids[step]] < 1e-4
        alone = generate(model, [prompt], 6, source_ids=source)[0]
        np.testing.assert_array_equal(alone.token_ids, result.token_ids)
    rows = score(model, [[1, *result.token_ids] for result in together], source_ids=sources)
    for source, result, row in zip(sources, together, rows, strict=True):
        ids = np.array([[1, *result.token_ids]])
        logits = array(run(model, whole, {"token_ids": ids, "source_ids": source[None]})).astype("float64")[0]
        expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        np.testing.assert_allclose(row, expected[np.arange(6), ids[0, 1:]], atol=1e-4)


@pytest.mark.backends
def test_sampled_text_and_text_that_slides():
    model = new_model("additive")
    sampled = [model.generate([1], 8, source_ids=SOURCES[0], temperature=1.5, seed=seed).tolist() for seed in (3, 3, 4)]
    assert sampled[0] == sampled[1] != sampled[2]
    model = new_model("transformer", max_length=8, max_source_length=CONTEXT)
    slid = model.generate([1], 20, source_ids=SOURCES[0], slide=True)
    assert len(slid) == 20 and len(model.generate([1], 20, source_ids=SOURCES[0])) == 7


@every_model
def test_files_and_configs(tmp_path, name):
    model = new_model(name, dropout=0.1, tokenizer_hash="0123")
    config = json.loads(json.dumps(model.get_config()))
    twin = Seq2SeqLM.from_config(config)
    assert twin.get_config() == model.get_config() and twin.tokenizer_hash == "0123"
    shared = name not in ("post_norm", "to_lstm")
    assert model.share_embedding is shared
    assert (model.encoder.token_embedding is model.decoder.token_embedding) is shared
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert len(again.weights) == len(model.weights)
    assert (again.encoder.token_embedding is again.decoder.token_embedding) is shared
    np.testing.assert_array_equal(array(run(again, whole, INPUTS)), array(run(model, whole, INPUTS)))


@every_model
def test_fit_by_the_fused_loss_gives_the_numbers_of_the_plain_one(name):
    losses = []
    for loss in (CrossEntropy(), FusedCrossEntropy(chunk_size=5)):
        model = new_model(name)
        model.compile(keras.optimizers.Adam(0.01), loss, **JITTED)
        losses.append(model.fit(INPUTS, np.roll(TARGETS, -1, 1), epochs=3, verbose=0, shuffle=False).history["loss"])
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert losses[0][-1] < losses[0][0] - 0.05
    assert type(model.default_loss()) is FusedCrossEntropy


@pytest.mark.parametrize("name", on_all(["transformer", "additive", "general"], "transformer"))
def test_half_precision_keeps_the_state_and_trains_every_weight(name):
    model = new_model(name, dtype="mixed_bfloat16")
    exact = new_model(name)
    np.testing.assert_allclose(array(run(model, whole, INPUTS)), array(run(exact, whole, INPUTS)), atol=0.4)
    state = arrays(run(model, encoded, {"source_ids": SOURCES, "source_lengths": LENGTHS}))
    state = {leaf: value.astype("float32") if "float" in str(value.dtype) else value for leaf, value in state.items()}
    _, after = run(model, call, {"token_ids": TARGETS[:, :1]}, state)
    dtype = keras.backend.standardize_dtype
    assert all(dtype(after[leaf].dtype) == dtype(value.dtype) for leaf, value in state.items())
    before = [array(weight) for weight in model.trainable_weights]
    model.compile(keras.optimizers.Adam(0.01), FusedCrossEntropy(), **JITTED)
    assert np.isfinite(model.train_on_batch(INPUTS, TARGETS))
    moved = [
        weight.path for weight, old in zip(model.trainable_weights, before, strict=True) if (array(weight) == old).all()
    ]
    assert not moved and all(np.isfinite(array(weight)).all() for weight in model.weights)


@pytest.mark.parametrize("name", ["transformer", "additive", "general"])
def test_integers_for_weights_say_nearly_the_same(tmp_path, name):
    model = new_model(name, hidden_dim=32)
    exact = array(run(model, whole, INPUTS))
    model.quantize("int8")
    found = array(run(model, whole, INPUTS))
    assert 0 < np.abs(found - exact).max() < 0.1 * np.abs(exact).max()
    model.save(tmp_path / "int8.keras")
    again = keras.saving.load_model(tmp_path / "int8.keras")
    np.testing.assert_allclose(array(run(again, whole, INPUTS)), found, atol=1e-6)


@pytest.mark.parametrize("name", ["transformer", "general"])
def test_shapes_are_known_before_there_are_numbers(name):
    inputs = {leaf: keras.KerasTensor((None,) * value.ndim, "int32") for leaf, value in INPUTS.items()}
    assert new_model(name).compute_output_spec(inputs).shape == (None, None, VOCABULARY)


@pytest.mark.backends
def test_rematerialisation_changes_no_number():
    weights = []
    for again in (False, True):
        model = new_model("transformer")
        for block in (*model.encoder.blocks, *model.decoder.blocks):
            block.rematerialize = again
        model.compile(keras.optimizers.SGD(0.1), CrossEntropy(), jit_compile=keras.backend.backend() == "jax")  # traced
        model.train_on_batch(INPUTS, TARGETS)
        weights.append([array(weight) for weight in model.weights])
    for left, right in zip(*weights, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)


def test_two_parts_of_ones_own_and_a_causal_encoder():
    encoder = RecurrentLM(VOCABULARY, **SMALL, cell="gru", tie_embedding=False)
    decoder = TransformerLM(30, **TRANSFORMER, positions="rotary", num_kv_heads=2, memory_dim=encoder.width)
    model = Seq2SeqLM(encoder=encoder, decoder=decoder)
    model.build()
    assert model.vocabulary_size == 30 and model.source_vocabulary_size == VOCABULARY and not model.share_embedding
    idle = {variable.path for variable in encoder.of_logits_alone}
    assert len(idle) == 2 and not idle & {variable.path for variable in model.trainable_variables}
    encoder.trainable = False
    assert not {v.path for v in encoder.variables} & {v.path for v in model.trainable_variables}
    assert model({**INPUTS, "token_ids": TARGETS % 30}).shape == (3, 7, 30)


def test_types_of_source_and_target():
    encoder = TransformerEncoder(VOCABULARY, **TRANSFORMER, num_token_types=2)
    decoder = TransformerLM(VOCABULARY, **TRANSFORMER, num_token_types=2, memory_dim=WIDTH)
    model = Seq2SeqLM(encoder=encoder, decoder=decoder)
    model.build()
    plain = array(model(INPUTS))
    for leaf, like in (("source_types", SOURCES), ("token_types", TARGETS)):
        np.testing.assert_array_equal(array(model({**INPUTS, leaf: 0 * like})), plain)
        assert np.abs(array(model({**INPUTS, leaf: 0 * like + 1})) - plain).max() > 1e-3


@pytest.mark.parametrize(
    "options, message",
    [
        ({"encoder": "mamba"}, "encoder must be one of"),
        ({"encoder": "lstm", "num_heads": 2}, "num_heads is of another kind of part than 'lstm' to 'lstm'"),
        ({"attention": "general"}, "attention is of another kind of part"),
        ({"encoder": "lstm", "attention": "dot"}, r"attention must be one of \['additive', 'general'\], got 'dot'"),
        ({"vocabulary_size": None}, "give vocabulary_size"),
        ({"source_vocabulary_size": 9, "share_embedding": True}, "shared before it is made"),
        ({"encoder": "gru", "hidden_dim": 15}, "hidden_dim must be even"),
        ({"encoder": TransformerLM(40, **TRANSFORMER)}, "give both parts"),
        (
            {"vocabulary_size": None, "encoder": TransformerLM(9, **TRANSFORMER), "decoder": RecurrentLM(9, **SMALL)},
            "with memory_dim=16, the width of the encoder, got RecurrentLM with memory_dim=None",
        ),
    ],
)
def test_what_cannot_be_built(options, message):
    with pytest.raises(ValueError, match=message):
        Seq2SeqLM(**{"vocabulary_size": VOCABULARY, **options})


def test_what_is_refused_in_a_call():
    model = new_model("transformer")
    state = model.encode({"source_ids": SOURCES})
    for wrong, message in (
        (lambda: model(TARGETS), "reads a source: give a dict with 'source_ids'"),
        (lambda: model(INPUTS, state=state), "leave source_ids, source_lengths out beside a state"),
        (lambda: model({**INPUTS, "source_lengths": np.array([10, 1, 1])}), "source_lengths must be from 0 to 9"),
        (lambda: model({**INPUTS, "source_ids": ids_of(3, CONTEXT + 1)}), "sources are 25 tokens long"),
        (lambda: model({**INPUTS, "segment_ids": TARGETS}), "would not look at segment_ids"),
        (lambda: model.initial_state(2), "model.encode"),
        (lambda: model.generate([1]), "writes after a source: give source_ids"),
        (lambda: model.generate([[1], [1]], source_ids=[[4]]), "one sequence for each of 2 rows, got 1"),
        (lambda: model.generate([1], source_ids=[]), "one sequence for each of 1 rows, got 0"),
        (lambda: model.generate([[1]], source_ids=[[]]), "source 0 is empty"),
        (lambda: model.generate([1], source_ids=[4, 99]), "source 0 holds id 99"),
        (lambda: model.score([1, 4], source_ids=ids_of(25)), "source 0 has 25 ids, and the encoder reads 24 at most"),
        (lambda: model.decoder(TARGETS), "make models.Seq2SeqLM"),
        (lambda: model.export("nowhere"), "is not exported yet"),
        (lambda: TransformerLM(9, **TRANSFORMER).generate([1], source_ids=[4]), "reads no source"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


# The formulas of the papers, in NumPy and float64, one row, one step after the other.


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gru(cell, x, h):
    """Cho et al. 2014, with the reset gate behind the product."""
    kernel, recurrent, bias = (
        array(weight).astype("float64") for weight in (cell.kernel, cell.recurrent_kernel, cell.bias)
    )
    (x_z, x_r, x_g), (h_z, h_r, h_g) = np.split(x @ kernel + bias[0], 3), np.split(h @ recurrent + bias[1], 3)
    z, r = sigmoid(x_z + h_z), sigmoid(x_r + h_r)
    return z * h + (1 - z) * np.tanh(x_g + r * h_g)


@pytest.mark.backends
@pytest.mark.parametrize("attention", ["additive", "general"])
def test_the_attention_of_the_papers(attention):
    """Bahdanau et al. 2014, appendix A.1.2 and A.2.2; Luong et al. 2015, section 3.1, equations 5, 7 and 8."""
    encoder = RecurrentEncoder(VOCABULARY, **{**SMALL, "num_layers": 1, "hidden_dim": 5}, cell="gru")
    decoder = RecurrentLM(
        VOCABULARY, **{**SMALL, "num_layers": 1}, cell="gru", embedding_dim=12, memory_dim=10, attention=attention
    )
    model = Seq2SeqLM(encoder=encoder, decoder=decoder)
    model.build()
    randomize(model)
    found = array(run(model, whole, INPUTS))
    annotations = array(encoder({"token_ids": SOURCES, "lengths": LENGTHS})).astype("float64")
    stack = decoder.recurrent
    w_start, b_start, keys, w_s, b_o, w_c = (
        array(weight).astype("float64")
        for weight in (
            stack.start.kernel,
            stack.start.bias,
            stack.keys.kernel,
            stack.output_of_state.kernel,
            stack.output_of_state.bias,
            stack.output_of_context.kernel,
        )
    )
    table, bridge, bridge_bias, out_bias = (
        array(weight).astype("float64")
        for weight in (
            decoder.token_embedding.table,
            decoder.bridge.kernel,
            decoder.bridge.bias,
            decoder.output_bias,
        )
    )
    if attention == "additive":
        v, w_a, b_a = (array(w).astype("float64") for w in (stack.scores, stack.query.kernel, stack.query.bias))
        cell = stack.attending.layers[0].cell
    else:
        cell = stack.above.layers[0].cell
    for row, size in enumerate(LENGTHS):
        m = annotations[row, :size]
        s = np.tanh(m.mean(axis=0) @ w_start + b_start)
        for t, token in enumerate(TARGETS[row]):
            y = table[token] * np.sqrt(12)
            if attention == "additive":
                e = np.array([v @ np.tanh(s @ w_a + b_a + m_i @ keys) for m_i in m])
                a = np.exp(e) / np.exp(e).sum()
                c = sum(a_i * m_i for a_i, m_i in zip(a, m, strict=True))
                s = gru(cell, np.concatenate([y, c]), s)
            else:
                s = gru(cell, y, s)
                e = np.array([s @ (m_i @ keys) for m_i in m])
                a = np.exp(e) / np.exp(e).sum()
                c = sum(a_i * m_i for a_i, m_i in zip(a, m, strict=True))
            hidden = np.tanh(s @ w_s + c @ w_c + b_o)
            expected = table @ (hidden @ bridge + bridge_bias) + out_bias
            np.testing.assert_allclose(found[row, t], expected, atol=1e-5)


# torch's and Hugging Face's weights.


def numbers(tensor):
    return tensor.detach().numpy()


def take(layer, module):
    """A torch Linear or LayerNorm."""
    ours = (layer.kernel, layer.bias) if hasattr(layer, "kernel") else (layer.gamma, layer.beta)
    weight = numbers(module.weight)
    for variable, value in zip(ours, (weight.T if weight.ndim == 2 else weight, numbers(module.bias)), strict=True):
        variable.assign(value)


def by_head(pairs):
    """Kernel and bias of several torch products side by side, by head: the first's columns, the second's ..."""
    kernels = [numbers(weight).T.reshape(WIDTH, HEADS, -1) for weight, _ in pairs]
    biases = [numbers(bias).reshape(HEADS, -1) for _, bias in pairs]
    return np.concatenate(kernels, axis=2).reshape(WIDTH, -1), np.concatenate(biases, axis=1).reshape(-1)


def take_attention(layer, query, key, value, output):
    """Self- or cross-attention from four pairs of weight and bias."""
    parts = {"qkv": (query, key, value)} if hasattr(layer, "qkv") else {"query": (query,), "kv": (key, value)}
    for name, pairs in parts.items():
        for variable, one in zip((getattr(layer, name).kernel, getattr(layer, name).bias), by_head(pairs), strict=True):
            variable.assign(one)
    take(layer.output_projection, output)


def of_torch(module):
    """What `take_attention` takes of `torch.nn.MultiheadAttention`."""
    weights, biases = module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)
    return [*zip(weights, biases, strict=True), module.out_proj]


def of_marian(module):
    return [*((one.weight, one.bias) for one in (module.q_proj, module.k_proj, module.v_proj)), module.out_proj]


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("through", ["whole", "steps"])
def test_torch_transformer_says_the_same(norm_first, through):
    import torch

    torch.manual_seed(0)
    theirs = torch.nn.Transformer(
        WIDTH, HEADS, 2, 2, 48, dropout=0.1, activation="gelu", batch_first=True, norm_first=norm_first
    ).eval()
    for weight in theirs.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    table, projection = torch.nn.Embedding(VOCABULARY, WIDTH), torch.nn.Linear(WIDTH, VOCABULARY, bias=False)
    options = {
        **TRANSFORMER,
        "intermediate_dim": 48,
        "activation": "gelu",
        "norm_first": norm_first,
        "final_norm": True,
    }
    encoder = TransformerEncoder(VOCABULARY, **options)
    decoder = TransformerLM(VOCABULARY, **options, memory_dim=WIDTH, tie_embedding=False)
    model = Seq2SeqLM(encoder=encoder, decoder=decoder, share_embedding=True)
    model.build()
    encoder.token_embedding._table.assign(numbers(table.weight))
    decoder.output_projection.kernel.assign(numbers(projection.weight).T)
    for ours, part in ((encoder, theirs.encoder), (decoder, theirs.decoder)):
        for block, layer in zip(ours.blocks, part.layers, strict=True):
            take_attention(block.attention, *of_torch(layer.self_attn))
            norms = [block.attention_norm, block.cross_attention_norm, block.feed_forward_norm]
            if part is theirs.decoder:
                take_attention(block.cross_attention, *of_torch(layer.multihead_attn))
            for norm, name in zip([one for one in norms if one is not None], ("norm1", "norm2", "norm3"), strict=False):
                take(norm, getattr(layer, name))
            take(block.feed_forward.up, layer.linear1)
            take(block.feed_forward.down, layer.linear2)
        take(ours.output_norm, part.norm)
    positions = [torch.tensor(array(part.position_embedding.table)) for part in (encoder, decoder)]
    source, target = (torch.tensor(ids.astype("int64")) for ids in (SOURCES, TARGETS))
    hidden = torch.tensor(np.arange(9) >= LENGTHS[:, None])
    with torch.no_grad():
        wanted = theirs(
            table(source) + positions[0][:9],
            table(target) + positions[1][:7],
            tgt_mask=torch.nn.Transformer.generate_square_subsequent_mask(7),
            src_key_padding_mask=hidden,
            memory_key_padding_mask=hidden,
            tgt_is_causal=True,
        )
        wanted = numbers(projection(wanted))
    if through == "whole":
        found = array(run(model, whole, INPUTS))
    else:
        state = run(model, encoded, {"source_ids": SOURCES, "source_lengths": LENGTHS})
        parts = []
        for t in range(7):
            logits, state = run(model, call, {"token_ids": TARGETS[:, t : t + 1]}, arrays(state))
            parts.append(array(logits))
        found = np.concatenate(parts, axis=1)
    assert np.abs(wanted).max() > 0.2
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_hugging_face_marian_says_the_same():
    """Post-norm, positions of its own, token vectors times the root of the width; its greedy translations, too."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.MarianConfig(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        activation_function="gelu",
        max_position_embeddings=CONTEXT,
        scale_embedding=True,
        init_std=0.3,
        pad_token_id=0,
        decoder_start_token_id=1,
        eos_token_id=2,
        forced_eos_token_id=None,
    )
    theirs = transformers.MarianMTModel(config).eval()
    body = theirs.model
    options = {
        **TRANSFORMER,
        "intermediate_dim": 48,
        "activation": "gelu",
        "norm_first": False,
        "scale_embedding": True,
    }
    encoder = TransformerEncoder(VOCABULARY, **options)
    decoder = TransformerLM(VOCABULARY, **options, memory_dim=WIDTH)
    model = Seq2SeqLM(encoder=encoder, decoder=decoder, share_embedding=True)
    model.build()
    encoder.token_embedding._table.assign(numbers(body.shared.weight))
    for ours, part in ((encoder, body.encoder), (decoder, body.decoder)):
        ours.position_embedding.table.assign(numbers(part.embed_positions.weight))
        for block, layer in zip(ours.blocks, part.layers, strict=True):
            take_attention(block.attention, *of_marian(layer.self_attn))
            take(block.attention_norm, layer.self_attn_layer_norm)
            if part is body.decoder:
                take_attention(block.cross_attention, *of_marian(layer.encoder_attn))
                take(block.cross_attention_norm, layer.encoder_attn_layer_norm)
            take(block.feed_forward.up, layer.fc1)
            take(block.feed_forward.down, layer.fc2)
            take(block.feed_forward_norm, layer.final_layer_norm)
    source, target = (torch.tensor(ids.astype("int64")) for ids in (SOURCES, TARGETS))
    mask = torch.tensor((np.arange(9) < LENGTHS[:, None]).astype("int64"))
    with torch.no_grad():
        wanted = numbers(theirs(input_ids=source, attention_mask=mask, decoder_input_ids=target).logits)
        written = theirs.generate(
            input_ids=source, attention_mask=mask, max_new_tokens=8, num_beams=1, do_sample=False, bad_words_ids=[[0]]
        )
    found = array(run(model, whole, INPUTS))
    assert np.abs(wanted).max() > 1
    np.testing.assert_allclose(found, wanted, atol=1e-5 * max(1, np.abs(wanted).max()))
    sources = [SOURCES[row, :size] for row, size in enumerate(LENGTHS)]
    ours = model.generate([[1]] * 3, 8, source_ids=sources, eos_id=2, suppressed_ids=(0,))
    for row, text in zip(written, ours, strict=True):
        assert [i for i in row[1:].tolist() if i not in (0, 2)] == text.tolist()


def test_a_memory_of_another_number_of_rows_is_refused():
    from keras_seqlm.layers.cross_attention import fold

    assert tuple(fold(ops.ones((6, 2, 8)), ops.ones((3, 1)), (2, 4)).shape) == (3, 4, 2, 4)
    with pytest.raises(ValueError, match="no multiple"):
        fold(ops.ones((5, 2, 8)), ops.ones((3, 1)), (8,))


@pytest.mark.parametrize("name", MODELS)  # by the same layers on every backend, and minutes on JAX
def test_every_adapter_is_heard_and_merged(name):
    """Those of both parts; a kernel that a loop reads by itself would leave its adapter out."""
    model = new_model(name)
    tuned = add_lora(model, rank=2, on=parts_of(model))
    plain = array(run(model, whole, INPUTS))
    np.testing.assert_allclose(array(run(tuned, whole, INPUTS)), plain, atol=1e-5)
    again = type(tuned).from_config(tuned.get_config())
    again.build()
    assert [weight.shape for weight in again.weights] == [weight.shape for weight in tuned.weights]
    random = np.random.default_rng(3)
    for weight in learned(tuned):
        weight.assign(0.2 * random.standard_normal(weight.shape))
    logits = array(run(tuned, whole, INPUTS))
    np.testing.assert_allclose(array(run(merge_lora(tuned), whole, INPUTS)), logits, atol=2e-5)
    assert {id(weight) for weight in tuned.trainable_weights} == {id(weight) for weight in learned(tuned)}
    for weight in learned(tuned):
        kept = array(weight)
        weight.assign(kept + random.standard_normal(kept.shape))  # not one number, which a normalization takes out
        assert np.abs(array(tuned(INPUTS)) - logits).max() > 1e-6, weight.path
        weight.assign(kept)


@pytest.mark.parametrize("name", ["k", "v"])
def test_an_adapter_of_a_source_s_keys_leaves_its_values_and_the_other_way_round(name):
    layer, source = CrossAttention(hidden_dim=8, num_heads=2, memory_dim=6), ops.convert_to_tensor(np.eye(6)[None])
    layer.adapt(2, 2, [name])
    before = layer.memory(source)
    [(_, b)] = layer.kv.lora.pairs
    b.assign(ops.ones(b.shape))
    changed = [np.abs(array(new) - array(old)).max() > 0 for new, old in zip(layer.memory(source), before, strict=True)]
    assert changed == [name == "k", name == "v"]


@pytest.mark.parametrize("name", MODELS)
def test_rates_fall_from_the_decoders_top_to_the_sources_embeddings(name):
    model = new_model(name)
    factors = {variable.path.partition("/")[2]: factor for variable, factor in layer_factors(model, 0.5)}
    floors = len(model.floors())
    assert min(factors.values()) == 0.5**floors
    assert {path for path, factor in factors.items() if factor == 0.5**floors} >= {
        path for path in factors if path.startswith("encoder/token_embedding")
    }
    on_top = [path for path, factor in factors.items() if factor == 1]
    assert all(any(word in path for word in ("norm", "projection", "bridge", "output_bias")) for path in on_top), on_top
