"""Encoders and heads against Hugging Face's BERT and RoBERTa, torch's LSTM and encoder, and rows alone."""

import keras
import numpy as np
import pytest
from cases import on_all
from helpers import array, randomize
from keras import ops

from keras_seqlm.models import (
    Classifier,
    Embedder,
    MaskedLM,
    RecurrentEncoder,
    RecurrentLM,
    SpanFinder,
    Tagger,
    TransformerEncoder,
    TransformerLM,
    backbone_of,
)

pytestmark = pytest.mark.neutral

VOCABULARY, WIDTH, HEADS = 50, 16, 4
SMALL = {"size": "nano", "num_layers": 2, "hidden_dim": WIDTH}
TRANSFORMER = {**SMALL, "num_heads": HEADS, "max_length": 24}
BERT = {**TRANSFORMER, "norm_first": False, "embedding_norm": True, "epsilon": 1e-12}
BACKBONES = {
    "pre_norm": lambda: TransformerEncoder(VOCABULARY, **TRANSFORMER, num_kv_heads=2, positions="rotary", norm="rms"),
    "bert": lambda: TransformerEncoder(VOCABULARY, **BERT, num_token_types=2),
    "bidirectional": lambda: RecurrentEncoder(VOCABULARY, **SMALL, cell="lstm", embedding_dim=12),
    "forward": lambda: RecurrentEncoder(VOCABULARY, **SMALL, cell="gru", bidirectional=False),
    "causal": lambda: TransformerLM(VOCABULARY, **TRANSFORMER),
    "recurrent": lambda: RecurrentLM(VOCABULARY, **SMALL, cell="gru", embedding_dim=12),
}
HEADS_OF = {
    "masked": MaskedLM,
    "classes": lambda backbone: Classifier(backbone, 3, hidden_dim=7),
    "mean": lambda backbone: Classifier(backbone, 3, pooling="mean"),
    "max": lambda backbone: Classifier(backbone, 3, pooling="max"),
    "tags": lambda backbone: Tagger(backbone, 5),
    "span": SpanFinder,
    "vector": lambda backbone: Embedder(backbone, 6),
}
IDS = np.random.default_rng(3).integers(4, VOCABULARY, (3, 10)).astype("int32")
LENGTHS = np.array([10, 6, 2], "int32")


def built(name):
    model = BACKBONES[name]()
    model.build()
    randomize(model)
    return model


@pytest.mark.parametrize("name", on_all(BACKBONES, "pre_norm", "bidirectional"))
def test_a_row_alone_is_the_row_beside_others_and_padding_shows_nowhere(name):
    model = built(name)
    padded = np.where(np.arange(10) < LENGTHS[:, None], IDS, 0)
    together = array(model.hidden_states(model.checked_inputs({"token_ids": padded, "lengths": LENGTHS}))[0])
    other = np.where(np.arange(10) < LENGTHS[:, None], IDS, 7)
    others = array(model.hidden_states(model.checked_inputs({"token_ids": other, "lengths": LENGTHS}))[0])
    assert together.shape == (3, 10, model.width)
    for row, size in enumerate(LENGTHS):
        alone = array(model.hidden_states(model.checked_inputs(IDS[row : row + 1, :size]))[0])
        np.testing.assert_allclose(together[row, :size], alone[0], atol=2e-5)
        np.testing.assert_allclose(others[row, :size], alone[0], atol=2e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_packed_documents_do_not_see_each_other(name):
    model = built(name)
    segment_ids = np.repeat(np.array([[1] * 4 + [2] * 6], "int32"), 3, axis=0)
    packed = array(model.hidden_states(model.checked_inputs({"token_ids": IDS, "segment_ids": segment_ids}))[0])
    for part in (slice(0, 4), slice(4, 10)):
        alone = array(model.hidden_states(model.checked_inputs(IDS[:, part]))[0])
        np.testing.assert_allclose(packed[:, part], alone, atol=2e-5)


@pytest.mark.parametrize("name", ["pre_norm", "bidirectional", "causal"])
def test_what_a_token_knows_of_those_behind_it(name):
    model = built(name)
    changed = IDS.copy()
    changed[:, 6] = (changed[:, 6] + 1) % VOCABULARY
    before, after = (array(model.hidden_states(model.checked_inputs(ids))[0]) for ids in (IDS, changed))
    assert (np.abs(before - after)[:, :6].max() > 1e-4) is np.bool_(not model.causal)


@pytest.mark.parametrize("head", HEADS_OF)
@pytest.mark.parametrize("name", on_all(["bert", "bidirectional", "causal"], "bidirectional"))
def test_heads_answer_a_row_alone_as_beside_others_and_come_back_from_a_file(tmp_path, name, head):
    model = HEADS_OF[head](built(name))
    model.build()
    together = array(model({"token_ids": IDS, "lengths": LENGTHS}))
    alone = array(model({"token_ids": IDS[1:2, :6], "lengths": LENGTHS[1:2]}))
    row = together[1:2, :, :6] if head == "span" else together[1:2, :6] if together.ndim == 3 else together[1:2]
    np.testing.assert_allclose(row, alone, atol=3e-5)
    model.save(tmp_path / "head.keras")
    again = keras.saving.load_model(tmp_path / "head.keras")
    np.testing.assert_allclose(array(again({"token_ids": IDS, "lengths": LENGTHS})), together, atol=1e-6)


def test_poolings_by_hand():
    from keras_seqlm.layers.pooling import pool

    hidden = np.random.default_rng(0).standard_normal((3, 10, 4)).astype("float32")
    hidden[1, 6:], hidden[2, 2:] = np.nan, np.inf
    rows = [hidden[row, :size] for row, size in enumerate(LENGTHS)]
    wanted = {
        "first": [row[0] for row in rows],
        "last": [row[-1] for row in rows],
        "mean": [row.mean(axis=0) for row in rows],
        "max": [row.max(axis=0) for row in rows],
    }
    for name, values in wanted.items():
        found = array(pool(ops.convert_to_tensor(hidden), ops.convert_to_tensor(LENGTHS), name))
        np.testing.assert_allclose(found, values, atol=1e-6)


def test_a_span_is_found_in_the_context_alone():
    model = SpanFinder(built("causal"))
    model.build()
    types = np.zeros_like(IDS)
    types[:, 4:8] = 1
    logits = array(model({"token_ids": IDS, "lengths": LENGTHS, "token_types": types}))
    possible = (types == 1) & (np.arange(10) < LENGTHS[:, None])
    possible[:, 0] = True
    assert logits.shape == (3, 2, 10)
    assert (logits[:, 0] > -1e29).tolist() == possible.tolist() == (logits[:, 1] > -1e29).tolist()


@pytest.mark.parametrize("untie", on_all([False, True], 1))
def test_a_head_trains_what_it_reads_and_leaves_the_logits_of_the_backbone(untie):
    """Weight decay would pull them to zero, and Keras warns of weights without a gradient."""
    backbone = RecurrentLM(VOCABULARY, **SMALL, cell="gru", tie_embedding=not untie)
    model = Classifier(backbone, 3)
    model.build()
    kept = {variable.path: array(variable) for variable in backbone.of_logits_alone}
    assert len(kept) == (2 if untie else 1)
    before = [array(variable) for variable in model.trainable_variables]
    model.compile(keras.optimizers.AdamW(0.1, weight_decay=0.5), model.default_loss())
    model.fit({"token_ids": IDS, "lengths": LENGTHS}, np.array([0, 1, 2]), verbose=0)
    assert len(model.variables) == len(model.trainable_variables) + len(model.non_trainable_variables)
    for variable in backbone.of_logits_alone:
        np.testing.assert_array_equal(array(variable), kept[variable.path])
    for variable, old in zip(model.trainable_variables, before, strict=True):
        assert not np.array_equal(array(variable), old), variable.path
    assert len(backbone.trainable_variables) == len(before) - 2 + len(kept)


@pytest.mark.backends
def test_a_frozen_backbone_is_frozen_when_it_comes_back_from_a_file(tmp_path):
    model = Classifier(built("bidirectional"), 3)
    model.build()
    model.backbone.trainable = False
    model.save(tmp_path / "frozen.keras")
    again = keras.saving.load_model(tmp_path / "frozen.keras")
    fresh = Classifier(again.backbone, 3)
    fresh.build()
    for one in (model, again, fresh):
        assert [variable.path.split("/")[-2] for variable in one.trainable_variables] == ["classes", "classes"]
    again.backbone.trainable = True
    assert len(again.trainable_variables) == 2 + len(again.backbone.trainable_variables) > 4


def test_what_is_refused():
    model = built("causal")
    with pytest.raises(ValueError, match="of a head give its own backbone"):
        Tagger(MaskedLM(model), 3)
    with pytest.raises(ValueError, match="pooling must be one of"):
        Classifier(model, 3, pooling="middle")
    with pytest.raises(ValueError, match="answers must be"):
        Classifier(model, 3, answers="two")
    with pytest.raises(ValueError, match="would not look at token_types"):
        Classifier(model, 3)({"token_ids": IDS, "token_types": IDS})
    with pytest.raises(TypeError, match="put a head on it"):
        built("bert").default_loss()
    carrying = RecurrentLM(VOCABULARY, **SMALL, stateful_batch_size=2)
    carrying.build()
    with pytest.raises(ValueError, match="carries its state"):
        Tagger(carrying, 3)
    plain = backbone_of(carrying)
    np.testing.assert_array_equal(array(plain(IDS)), array(carrying(IDS)))
    assert backbone_of(Tagger(plain, 3)) is plain


def linear(weight):
    """A torch Linear's weight (out, in) as a kernel."""
    return weight.detach().numpy().T


def take_attention(block, q, k, v, o):
    """Weights and biases, each a pair of torch tensors, in our order: by head its query, its key, its value."""
    kernels = [linear(weight).reshape(WIDTH, HEADS, WIDTH // HEADS) for weight, _ in (q, k, v)]
    biases = [bias.detach().numpy().reshape(HEADS, WIDTH // HEADS) for _, bias in (q, k, v)]
    block.attention.qkv.kernel.assign(np.stack(kernels, axis=2).reshape(WIDTH, 3 * WIDTH))
    block.attention.qkv.bias.assign(np.stack(biases, axis=1).reshape(-1))
    block.attention.output_projection.kernel.assign(linear(o[0]))
    block.attention.output_projection.bias.assign(o[1].detach().numpy())


def take(layer, module):
    """A torch Linear or LayerNorm."""
    weight, bias = module.weight.detach().numpy(), module.bias.detach().numpy()
    ours = (layer.kernel, layer.bias) if hasattr(layer, "kernel") else (layer.gamma, layer.beta)
    for variable, value in zip(ours, (weight.T if weight.ndim == 2 else weight, bias), strict=True):
        variable.assign(value)


def take_bert(encoder, bert, offset):
    embeddings = bert.embeddings
    encoder.token_embedding._table.assign(embeddings.word_embeddings.weight.detach().numpy())
    encoder.position_embedding.table.assign(embeddings.position_embeddings.weight.detach().numpy())
    encoder.type_embedding._table.assign(embeddings.token_type_embeddings.weight.detach().numpy())
    take(encoder.norm_of_embedding, embeddings.LayerNorm)
    for block, layer in zip(encoder.blocks, bert.encoder.layer, strict=True):
        part = layer.attention.self
        pairs = [(one.weight, one.bias) for one in (part.query, part.key, part.value, layer.attention.output.dense)]
        take_attention(block, *pairs)
        take(block.attention_norm, layer.attention.output.LayerNorm)
        take(block.feed_forward.up, layer.intermediate.dense)
        take(block.feed_forward.down, layer.output.dense)
        take(block.feed_forward_norm, layer.output.LayerNorm)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_hugging_face_says_the_same(family):
    import torch
    import transformers

    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "intermediate_size": 4 * WIDTH,
        "initializer_range": 0.4,
    }
    torch.manual_seed(0)
    if family == "bert":
        config = transformers.BertConfig(**shape, max_position_embeddings=24, layer_norm_eps=1e-12)
        theirs, parts = transformers.BertForMaskedLM(config).eval(), {"num_token_types": 2}
        body, head = theirs.bert, theirs.cls.predictions
        transform, norm, bias = head.transform.dense, head.transform.LayerNorm, head.bias
    else:
        config = transformers.RobertaConfig(
            **shape, max_position_embeddings=26, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-12
        )
        theirs = transformers.RobertaForMaskedLM(config).eval()
        parts = {"num_token_types": 1, "position_offset": 2}
        body, transform, norm, bias = (
            theirs.roberta,
            theirs.lm_head.dense,
            theirs.lm_head.layer_norm,
            theirs.lm_head.bias,
        )
    encoder = TransformerEncoder(VOCABULARY, **BERT, **parts)
    model = MaskedLM(encoder, epsilon=1e-12)
    model.build()
    take_bert(encoder, body, parts.get("position_offset", 0))
    take(model.transform, transform)
    take(model.transform_norm, norm)
    model.output_bias.assign(bias.detach().numpy())
    types = np.where(np.arange(10) < 4, 0, 1)[None].repeat(3, axis=0) if family == "bert" else np.zeros_like(IDS)
    real = np.arange(10) < LENGTHS[:, None]
    with torch.no_grad():
        wanted = theirs(
            input_ids=torch.tensor(IDS.astype("int64")),
            attention_mask=torch.tensor(real.astype("int64")),
            token_type_ids=torch.tensor(types.astype("int64")),
        ).logits.numpy()
    found = array(model({"token_ids": IDS, "lengths": LENGTHS, "token_types": types.astype("int32")}))
    assert np.abs(wanted).max() > 1
    np.testing.assert_allclose(found[real], wanted[real], atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("cell", ["lstm", "rnn"])
def test_torch_reads_both_ways_alike(cell):
    import torch

    torch.manual_seed(1)
    kind = torch.nn.LSTM if cell == "lstm" else torch.nn.RNN
    theirs = kind(12, WIDTH, num_layers=2, bidirectional=True, batch_first=True)
    model = RecurrentEncoder(VOCABULARY, **SMALL, cell=cell, embedding_dim=12)
    model.build()
    order = [0, 1, 2, 3] if cell == "lstm" else [0]  # both order the gates i, f, g, o
    for direction, layers in (("", model.forward_layers), ("_reverse", model.backward_layers)):
        for i, stack in enumerate(layers):
            cell_of = stack.layers[0].cell

            def gates(name, i=i, direction=direction):
                weight = getattr(theirs, f"{name}_l{i}{direction}").detach().numpy()
                return np.concatenate([np.split(weight, len(order))[gate] for gate in order])

            cell_of.kernel.assign(gates("weight_ih").T)
            cell_of.recurrent_kernel.assign(gates("weight_hh").T)
            cell_of.bias.assign(gates("bias_ih") + gates("bias_hh"))
    x = array(model.token_embedding(IDS)) * 12**0.5
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.tensor(x), torch.tensor(LENGTHS), batch_first=True)
    with torch.no_grad():
        wanted, _ = torch.nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True, total_length=10)
    found = array(model({"token_ids": IDS, "lengths": LENGTHS}))
    real = np.arange(10) < LENGTHS[:, None]
    np.testing.assert_allclose(found[real], wanted.numpy()[real], atol=1e-5)
