"""LoRA: held to its formula, to merged kernels and to peft; the base stays, bit for bit, and optimizers hold what trains alone."""

import keras
import numpy as np
import pytest
from cases import on_all
from helpers import CONTEXT, VOCABULARY, array, cross_entropy, ids_of, new_model, run
from keras import ops

from keras_seqlm.layers import RecurrentStack
from keras_seqlm.layers.dense import Dense
from keras_seqlm.losses import CrossEntropy
from keras_seqlm.models import Classifier, MaskedLM, RecurrentEncoder, TransformerEncoder, add_lora, merge_lora
from keras_seqlm.models.adapters import base_of, learned, parts_of, without_adapters

pytestmark = pytest.mark.neutral

ATTENTION = ["q", "k", "v", "output", "feed_forward", "embedding"]
RECURRENT = ["input", "recurrent", "embedding"]


def tuned(name, rank=3, alpha=5, on=None, **options):
    """A model with adapters that are no zeros."""
    model = add_lora(new_model(name, **options), rank, alpha, on)
    draw(model)
    return model


def draw(model, seed=4, scale=0.2):
    random = np.random.default_rng(seed)
    for weight in learned(model):
        weight.assign(scale * random.standard_normal(weight.shape))


def pieces(model):
    """layer name -> NumPy arrays of A and B of each part."""
    return {
        layer.path.partition("/")[2]: [tuple(map(array, pair)) for pair in layer.pairs]
        for layer in model._flatten_layers()
        if type(layer).__name__ == "LowRank"
    }


@pytest.mark.parametrize("name", on_all(["gru", "lstm", "rotary", "untied"], "gru", "untied"))
def test_it_begins_as_the_model_and_ends_as_the_merged_one(name):
    model = new_model(name)
    parts = RECURRENT if name in ("gru", "lstm") else ATTENTION
    assert parts_of(model) == parts
    on = add_lora(model, 3, on=parts)
    ids = ids_of(2, 9)
    forward = lambda model, ids: model(ids)  # noqa: E731
    np.testing.assert_allclose(array(run(on, forward, ids)), array(run(model, forward, ids)), atol=1e-6)
    draw(on)
    merged = merge_lora(on)
    logits = array(run(on, forward, ids))
    assert merged.lora is None and len(merged.weights) == len(model.weights)
    np.testing.assert_allclose(array(run(merged, forward, ids)), logits, atol=2e-6 * max(1, np.abs(logits).max()))
    assert np.abs(logits - array(run(model, forward, ids))).max() > 0.05
    for before, base in zip(model.weights, without_adapters(on), strict=True):
        np.testing.assert_array_equal(array(before), array(base))


@pytest.mark.backends
def test_merged_kernels_are_the_formula():
    """Each kernel W becomes W + (alpha / r) A B; in the fused one each head's queries, keys and values have their own."""
    model = tuned("rotary", on=ATTENTION)  # 4 heads share 2 of keys and values, of width 4
    merged, found = merge_lora(model), pieces(model)
    before = array(model.blocks[1].attention.qkv._kernel)
    after = array(merged.blocks[1].attention.qkv.kernel)
    q, k, v = [5 / 3 * a @ b for a, b in found["block_1/attention/qkv/lora"]]
    wanted = before.copy()
    for group in range(2):
        start = group * 16
        wanted[:, start : start + 8] += q[:, group * 8 : group * 8 + 8]
        wanted[:, start + 8 : start + 12] += k[:, group * 4 : group * 4 + 4]
        wanted[:, start + 12 : start + 16] += v[:, group * 4 : group * 4 + 4]
    np.testing.assert_allclose(after, wanted, atol=1e-5)
    for layer in ("attention/output", "feed_forward/gate", "feed_forward/up", "feed_forward/down"):
        [(a, b)] = found[f"block_0/{layer}/lora"]
        own, theirs = model.blocks[0], merged.blocks[0]
        for name in layer.split("/"):
            name = "output_projection" if name == "output" else name
            own, theirs = getattr(own, name), getattr(theirs, name)
        np.testing.assert_allclose(array(theirs.kernel), array(own._kernel) + 5 / 3 * a @ b, atol=1e-5)
    [(a, b)] = found["token_embedding/lora"]
    wanted = array(model.token_embedding._table) + 5 / 3 * a @ b
    np.testing.assert_allclose(array(merged.token_embedding.table), wanted, atol=1e-5)
    np.testing.assert_allclose(array(model.token_embedding.table), wanted, atol=1e-5)


@pytest.mark.parametrize(("name", "columns"), [("q", slice(0, 8)), ("k", slice(8, 12)), ("v", slice(12, 16))])
def test_one_of_queries_keys_and_values_leaves_the_others(name, columns):
    model = tuned("rotary", on=[name])
    kernel = array(merge_lora(model).blocks[0].attention.qkv.kernel) - array(model.blocks[0].attention.qkv._kernel)
    changed = np.abs(kernel).max(axis=0).reshape(2, 16) > 0
    assert changed[:, columns].all() and changed.sum() == changed[:, columns].size
    assert [weight.name for weight in learned(model)] == [f"a_{name}", f"b_{name}"] * 2


@pytest.mark.parametrize("cell", on_all(["rnn", "gru", "lstm"], "gru"))
@pytest.mark.parametrize("way", ["cudnn", "scan", "scan_by_hand"])
def test_recurrent_kernels_take_their_updates_in_every_loop(cell, way, monkeypatch):
    """Also where a layer of Keras's reads its own variables, as on its way into cuDNN."""
    stack = RecurrentStack(cell, 6, num_layers=2)
    stack.adapt(2, 3, ["input", "recurrent"])
    stack.build((None, None, 4))
    random = np.random.default_rng(0)
    for weight in stack.weights:
        weight.assign(0.4 * random.standard_normal(weight.shape))
    plain = RecurrentStack(cell, 6, num_layers=2)
    plain.build((None, None, 4))
    for i, (ours, theirs) in enumerate(zip(plain.layers, stack.layers, strict=True)):
        for name, adapter in zip(("kernel", "recurrent_kernel"), stack.adapters_of(i), strict=True):
            a, b = map(array, adapter.pairs[0])
            getattr(ours.cell, name).assign(array(getattr(theirs.cell, name)) + 1.5 * a @ b)
        ours.cell.bias.assign(theirs.cell.bias)
    x = random.standard_normal((3, 5, 4)).astype("float32")
    wanted = array(plain(x)[0])
    monkeypatch.setattr(stack, "_choose", lambda *_: way)
    np.testing.assert_allclose(array(stack(x, training=way == "scan_by_hand")[0]), wanted, atol=1e-5)


def compiled(model, optimizer="adam", **options):
    model.compile(optimizer=optimizer, loss=CrossEntropy(), jit_compile=False, **options)
    return model


@pytest.mark.parametrize("name", on_all(["learned", "lstm"], "lstm"))
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_training_moves_adapters_alone(name, precision):
    model = new_model(name, dtype=precision)
    x, y = ids_of(8, 6), ids_of(8, 6, seed=6)
    on = compiled(add_lora(model, 2, on=parts_of(model)), keras.optimizers.Adam(0.05))
    before = [array(weight) for weight in base_of(on)]
    loss = on.fit(x, y, batch_size=4, epochs=6, verbose=0).history["loss"]
    assert loss[-1] < loss[0] - 0.05
    for old, weight in zip(before, base_of(on), strict=True):
        np.testing.assert_array_equal(old, array(weight))
    assert all(np.abs(array(weight)).max() > 0 for weight in learned(on))
    assert not {id(weight) for weight in on.trainable_weights} ^ {id(weight) for weight in learned(on)}
    slots = [variable for variable in on.optimizer.variables if len(variable.shape)]
    assert len(slots) == 2 * len(learned(on))  # Adam's two, of what trains and of nothing else
    assert sum(np.prod(slot.shape) for slot in slots) == 2 * sum(np.prod(weight.shape) for weight in learned(on))


@pytest.mark.backends
def test_a_step_of_sgd_is_numpy_s():
    """On a Dense layer: dA = s x^T (dy B^T), dB = s (x A)^T dy."""
    layer = Dense(3)
    layer.adapt(2, 6)
    model = keras.Sequential([keras.Input((4,)), layer])
    random = np.random.default_rng(1)
    for weight in layer.weights:
        weight.assign(random.standard_normal(weight.shape))
    kernel, bias, a, b = map(array, (layer._kernel, layer.bias, *layer.lora.pairs[0]))
    x, y = (random.standard_normal((5, size)).astype("float32") for size in (4, 3))
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    loss = model.train_on_batch(x, y)
    out = x @ kernel + bias + 3 * x @ a @ b
    assert float(loss) == pytest.approx(((out - y) ** 2).mean(), rel=1e-5)
    d = 2 * (out - y) / out.size
    np.testing.assert_allclose(array(layer.lora.pairs[0][0]), a - 0.1 * 3 * x.T @ (d @ b.T), atol=1e-5)
    np.testing.assert_allclose(array(layer.lora.pairs[0][1]), b - 0.1 * 3 * (x @ a).T @ d, atol=1e-5)
    np.testing.assert_array_equal(array(layer._kernel), kernel)


@pytest.mark.backends
def test_a_fused_loss_sees_the_table_s_update():
    model = tuned("learned", on=["embedding"])
    x, y = ids_of(3, 7), ids_of(3, 7, seed=8)
    model.compile("sgd", loss=model.default_loss(), jit_compile=False)
    loss = model.evaluate(x, y, batch_size=3, verbose=0)
    assert loss == pytest.approx(cross_entropy(array(merge_lora(model)(x)), y), abs=1e-4)


@pytest.mark.backends
def test_a_head_trains_whole_and_files_hold_both_apart(tmp_path):
    encoder = TransformerEncoder(VOCABULARY, size="nano", num_layers=1, hidden_dim=16, num_heads=2, max_length=CONTEXT)
    model = Classifier(encoder, num_classes=3)
    model.build()
    on = add_lora(model, 2, on=["q", "v"])
    names = [weight.path.rpartition("/")[2] for weight in on.trainable_weights]
    assert sorted(names) == ["a_q", "a_v", "b_q", "b_v", "bias", "kernel"]
    draw(on)
    on.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert again.backbone.lora == {"rank": 2, "alpha": 2, "on": ["q", "v"]}
    for ours, theirs in zip(again.weights, on.weights, strict=True):
        np.testing.assert_array_equal(array(ours), array(theirs))
    assert len(again.trainable_weights) == 6
    again.backbone.trainable = True  # says no more than that adapters train
    assert len(again.trainable_weights) == 6
    again.backbone.trainable = False
    assert len(again.trainable_weights) == 2
    np.testing.assert_allclose(array(merge_lora(again)(ids_of(2, 5))), array(on(ids_of(2, 5))), atol=1e-5)


def test_a_masked_head_on_lstms():
    model = MaskedLM(RecurrentEncoder(VOCABULARY, size="nano", num_layers=2, hidden_dim=8))
    model.build()
    model.backbone.trainable = False  # as a run with a frozen backbone leaves it
    on = add_lora(model, 2)
    assert on.backbone.lora["on"] == ["input", "recurrent"]  # and not the table, where nobody asks for it
    assert len(on.trainable_weights) == 2 * 2 * 2 * 2 + 5
    draw(on)
    np.testing.assert_allclose(array(merge_lora(on)(ids_of(2, 5))), array(on(ids_of(2, 5))), atol=1e-5)


@pytest.mark.backends
def test_rematerialised_blocks_train_the_same():
    x, y = ids_of(4, 6), ids_of(4, 6, seed=6)
    losses = []
    for again in (False, True):
        model = compiled(tuned("learned"), keras.optimizers.SGD(0.1))
        for block in model.blocks:
            block.rematerialize = again
        losses.append(model.fit(x, y, batch_size=4, epochs=3, verbose=0).history["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0][2] < losses[0][0]


def test_what_cannot_be_is_refused():
    model = new_model("learned")
    for options, said in (
        ({"rank": 0}, "rank must be"),
        ({"rank": 2, "alpha": -1}, "alpha must be"),
        ({"rank": 2, "on": ["recurrent"]}, "output, feed_forward, embedding; got recurrent"),
        ({"rank": 2, "on": []}, "on must name parts"),
    ):
        with pytest.raises(ValueError, match=said):
            add_lora(model, **options)
    on = add_lora(model, 2)
    with pytest.raises(ValueError, match="has adapters already: merge_lora"):
        add_lora(on, 2)
    with pytest.raises(ValueError, match="quantise what merge_lora"):
        on.quantize("int8")
    model.quantize("int8")
    with pytest.raises(ValueError, match="the model is quantised"):
        add_lora(model, 2)
    with pytest.raises(ValueError, match="layers of Keras's have enable_lora"):
        add_lora(keras.Sequential([keras.layers.Dense(2)]), 2)
    assert merge_lora(new_model("gru")).lora is None


def test_writing_goes_by_the_adapters():
    """Compiled functions of the model, the cache and all."""
    model = tuned("rotary", on=ATTENTION)
    merged = merge_lora(model)
    prompt = [int(i) for i in ids_of(5)]
    assert model.generate(prompt, 6, eos_id=None).tolist() == merged.generate(prompt, 6, eos_id=None).tolist()
    assert model.score([prompt])[0] == pytest.approx(merged.score([prompt])[0], abs=1e-4)


def test_numbers_of_peft():
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.linear = torch.nn.Embedding(11, 6), torch.nn.Linear(6, 5)

        def forward(self, ids):
            return self.linear(self.table(ids))

    torch.manual_seed(0)
    theirs = peft.get_peft_model(Net(), peft.LoraConfig(r=3, lora_alpha=7, target_modules=["table", "linear"]))
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "lora" in name:
                weight.copy_(torch.randn(weight.shape))
    held = {
        name.partition("base_model.model.")[2]: weight.detach().numpy() for name, weight in theirs.named_parameters()
    }

    from keras_seqlm.layers import TokenEmbedding

    table, linear = TokenEmbedding(11, 6), Dense(5)
    table.adapt(3, 7, ["embedding"])
    linear.adapt(3, 7)
    table.build()
    linear.build((None, 6))
    for variable, name in (
        (table._table, "table.base_layer.weight"),
        (table.lora.pairs[0][0], "table.lora_embedding_A.default"),
        (table.lora.pairs[0][1], "table.lora_embedding_B.default"),
        (linear._kernel, "linear.base_layer.weight"),
        (linear.bias, "linear.base_layer.bias"),
        (linear.lora.pairs[0][0], "linear.lora_A.default.weight"),
        (linear.lora.pairs[0][1], "linear.lora_B.default.weight"),
    ):
        transposed = name.startswith("linear") and not name.endswith("bias") or "embedding_" in name
        variable.assign(held[name].T if transposed else held[name])
    ids = np.random.default_rng(2).integers(0, 11, (2, 7))
    wanted = theirs(torch.tensor(ids)).detach().numpy()
    np.testing.assert_allclose(array(linear(table(ops.convert_to_tensor(ids)))), wanted, atol=1e-5)
    merged = theirs.merge_and_unload()
    np.testing.assert_allclose(array(linear.kernel).T, merged.linear.weight.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(array(table.table), merged.table.weight.detach().numpy(), atol=1e-5)
