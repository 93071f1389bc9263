import keras
import numpy as np
import pytest
from cases import on_all
from helpers import CONTEXT, array, arrays, compile_plainly, cross_entropy, ids_of, new_model, run, tiny, whole_logits

from keras_seqlm.models import RECURRENT_SIZES, SIZES, RecurrentLM

pytestmark = pytest.mark.neutral


def test_size_sets_what_is_not_given():
    model = RecurrentLM(50, size="nano", num_layers=2)
    assert (model.num_layers, model.hidden_dim, model.embedding_dim) == (2, 160, 160)
    assert set(SIZES) == set(RECURRENT_SIZES)


def test_the_leaves_of_the_state():
    assert sorted(tiny("gru").initial_state(2)) == ["h_0", "h_1", "position"]
    state = tiny("lstm").initial_state(2, max_length=5)
    assert sorted(state) == ["c_0", "c_1", "h_0", "h_1", "position"]
    assert state["c_1"].shape == (2, 16)


def test_projections():
    hidden = np.random.default_rng(0).standard_normal((1, 2, 16)).astype("float32")
    tied = tiny("rnn")
    expected = hidden @ array(tied.token_embedding.table).T + array(tied.output_bias)
    np.testing.assert_allclose(array(tied.logits_of(hidden)), expected, atol=1e-5)
    bridged = tiny("lstm")
    bridge = hidden @ array(bridged.bridge.kernel) + array(bridged.bridge.bias)  # the last of the hidden states
    expected = bridge @ array(bridged.token_embedding.table).T + array(bridged.output_bias)
    np.testing.assert_allclose(array(bridged.logits_of(bridge)), expected, atol=1e-5)
    untied = tiny("gru")
    expected = hidden @ array(untied.output_projection.kernel) + array(untied.output_projection.bias)
    np.testing.assert_allclose(array(untied.logits_of(hidden)), expected, atol=1e-5)


def test_it_reads_without_limit():
    model, ids = tiny("lstm"), ids_of(1, 3 * CONTEXT)
    state, pieces = model.initial_state(1), []
    for start in range(0, 3 * CONTEXT, CONTEXT):
        logits, state = model(ids[:, start : start + CONTEXT], state=state)
        pieces.append(array(logits))
    assert array(state["position"]).tolist() == [3 * CONTEXT]
    np.testing.assert_allclose(np.concatenate(pieces, 1), array(model(ids)), atol=1e-5)


def carried(model):
    return {name: array(variable) for name, variable in model.carried.items()}


@pytest.mark.parametrize("cell", ["rnn", "gru", pytest.param("lstm", marks=pytest.mark.backends)])
def test_training_carries_the_state_from_batch_to_batch(cell):
    """Pieces of one sequence, at a learning rate of 0: the losses and states of the sequence read at once."""
    model = compile_plainly(new_model(cell, stateful_batch_size=2), keras.optimizers.SGD(0.0))
    ids = ids_of(2, 13)
    whole = array(model(ids[:, :-1]))
    state = model.initial_state(2)
    for start in range(0, 12, 4):
        x, y = ids[:, start : start + 4], ids[:, start + 1 : start + 5]
        expected = cross_entropy(whole[:, start : start + 4], y)
        assert model.train_on_batch(x, y) == pytest.approx(expected, abs=1e-5)
        _, state = model(x, state=state)
        for name, leaf in carried(model).items():
            np.testing.assert_allclose(leaf, array(state[name]), atol=1e-5)


def state_after(model, tokens):
    """The state of a document of at most 16 tokens read alone, each leaf (hidden,)."""
    ids, lengths = np.zeros((1, 16), "int32"), np.array([len(tokens)], "int32")
    ids[0, : len(tokens)] = tokens

    def read(model, ids, lengths):
        return model({"token_ids": ids, "lengths": lengths}, state=model.initial_state(1))[1]

    return {name: leaf[0] for name, leaf in arrays(run(model, read, ids, lengths)).items()}


@pytest.mark.parametrize("cell", ["rnn", "gru", pytest.param("lstm", marks=pytest.mark.backends)])
def test_what_is_carried_has_not_read_padding(cell):
    """Two padded batches: the state of each row is that of its real tokens alone, and so are the losses."""
    model = compile_plainly(new_model(cell, stateful_batch_size=2), keras.optimizers.SGD(0.0))
    ids, read = ids_of(2, 13), [[], []]
    for lengths in ([4, 2], [0, 3]):
        inputs = {"token_ids": ids[:, :4].copy(), "lengths": np.array(lengths, "int32")}
        for row, length in enumerate(lengths):
            read[row].extend(inputs["token_ids"][row, :length])
            inputs["token_ids"][row, length:] = 7
        weight = (np.arange(4) < inputs["lengths"][:, None]).astype("float32")
        model.train_on_batch(inputs, ids[:, 1:5], sample_weight=weight)
        for row, tokens in enumerate(read):
            state = state_after(model, tokens)
            for name, leaf in carried(model).items():
                np.testing.assert_allclose(leaf[row], state[name], atol=1e-5)


@pytest.mark.backends
def test_padding_of_any_segment_leaves_what_is_carried():
    """Its number may be the text's or another; a row of padding alone begins no document."""
    model = compile_plainly(new_model("lstm", stateful_batch_size=3), keras.optimizers.SGD(0.0))
    ids = ids_of(3, 9)
    model.train_on_batch({"token_ids": ids[:, :4], "segment_ids": np.ones((3, 4), "int32")}, ids[:, 1:5])
    segments = np.array([[0, 0, 0, 0], [0, 0, 5, -1], [7, 7, 7, 7]], "int32")
    lengths = np.array([3, 2, 0], "int32")
    inputs = {"token_ids": ids[:, 4:8], "segment_ids": segments, "lengths": lengths}
    model.train_on_batch(inputs, ids[:, 5:9])
    for row, length in enumerate(lengths):
        state = state_after(model, ids[row, : 4 + length])
        for name, leaf in carried(model).items():
            np.testing.assert_allclose(leaf[row], state[name], atol=1e-5)


def test_padding_changes_nothing_before_it():
    ids, lengths = ids_of(2, 8), np.array([8, 3], "int32")
    for training in (False, True):
        logits = array(tiny("lstm")({"token_ids": ids, "lengths": lengths}, training=training))
        alone = array(tiny("lstm")(ids[1:, :3], training=training))
        np.testing.assert_allclose(logits[1:, :3], alone, atol=1e-5)


@pytest.mark.backends
def test_the_state_goes_on_inside_a_document_only():
    """Row 0 goes on from the batch before, row 1 starts anew, row 2 goes on and ends: by segment 0."""
    model = compile_plainly(new_model("lstm", stateful_batch_size=3), keras.optimizers.SGD(0.0))
    ids = ids_of(3, 9)
    model.train_on_batch({"token_ids": ids[:, :4], "segment_ids": np.ones((3, 4), "int32")}, ids[:, 1:5])
    segments = np.array([[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]], "int32")
    loss = model.train_on_batch({"token_ids": ids[:, 4:8], "segment_ids": segments}, ids[:, 5:9])
    last = whole_logits(model, ids[2, :6])[4:], whole_logits(model, ids[2, 6:8])
    rows = whole_logits(model, ids[0, :8])[4:], whole_logits(model, ids[1, 4:8]), np.concatenate(last)
    assert loss == pytest.approx(cross_entropy(np.stack(rows), ids[:, 5:9]), abs=1e-5)
    for row, document in enumerate((ids[0, :8], ids[1, 4:8], ids[2, 6:8])):
        state = state_after(model, document)
        for name, leaf in carried(model).items():
            np.testing.assert_allclose(leaf[row], state[name], atol=1e-5)


@pytest.mark.backends
def test_validation_neither_reads_nor_changes_what_is_carried():
    model = compile_plainly(new_model("lstm", stateful_batch_size=2), keras.optimizers.SGD(0.0))
    ids = ids_of(2, 9)
    x, y = ids[:, :-1], ids[:, 1:]
    model.train_on_batch(x, y)
    before = carried(model)
    assert min(np.abs(leaf).max() for leaf in before.values()) > 1e-2
    expected = cross_entropy(array(tiny("lstm")(x)), y)  # the same weights, and no memory
    assert model.evaluate(x, y, verbose=0) == pytest.approx(expected, abs=1e-5)
    model.evaluate(x[:1], y[:1], verbose=0)  # another batch size
    model.predict(x, verbose=0)
    model.generate([4, 5], max_new_tokens=3)
    for name, leaf in carried(model).items():
        np.testing.assert_array_equal(leaf, before[name])
    model.reset_state()
    assert all(np.all(leaf == 0) for leaf in carried(model).values())
    assert model.train_on_batch(x, y) == pytest.approx(expected, abs=1e-5)


def test_what_is_carried_reaches_fit():
    """Two epochs of `fit` without shuffling go on where the last batch ended, validation between them."""
    model = compile_plainly(new_model("gru", stateful_batch_size=2), keras.optimizers.SGD(0.0))
    ids = ids_of(2, 9)
    x = np.concatenate([ids[:, 0:4], ids[:, 4:8]])  # batch 1: the first halves, batch 2: the second
    y = np.concatenate([ids[:, 1:5], ids[:, 5:9]])
    state = model.initial_state(2)
    losses = []
    for start in (0, 4, 0, 4):
        logits, state = model(ids[:, start : start + 4], state=state)
        losses.append(cross_entropy(array(logits), ids[:, start + 1 : start + 5]))
    history = model.fit(x, y, batch_size=2, epochs=2, shuffle=False, validation_data=(x, y), verbose=0).history
    np.testing.assert_allclose(history["loss"], np.mean(np.reshape(losses, (2, 2)), 1), atol=1e-5)
    assert history["val_loss"][0] == pytest.approx(history["val_loss"][1], abs=1e-6)
    for name, leaf in arrays(state).items():
        if name != "position":
            np.testing.assert_allclose(carried(model)[name], leaf, atol=1e-5)


def test_a_training_batch_of_another_size_is_refused():
    model = compile_plainly(new_model("lstm", stateful_batch_size=2))
    ids = ids_of(3, 5)
    with pytest.raises(
        ValueError, match="carries the state of 2 rows from batch to batch, and got a training batch of 3"
    ):
        model.train_on_batch(ids[:, :-1], ids[:, 1:])


def test_dropout_in_training_only():
    model, ids = new_model("gru", dropout=0.3), ids_of(2, 8)
    np.testing.assert_array_equal(array(model(ids)), array(model(ids, training=False)))
    assert np.abs(array(model(ids, training=True)) - array(model(ids))).max() > 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "LSTM"}, r"cell must be one of \['gru', 'lstm', 'rnn'\], got 'LSTM'"),
        ({"size": "huge"}, r"size must be one of \['nano', .*\], got 'huge'"),
        ({"num_layers": 0}, "num_layers must be a whole number of at least 1, or None, got 0"),
        ({"hidden_dim": 2.0}, "hidden_dim must be a whole number of at least 1, or None, got 2.0"),
        ({"stateful_batch_size": 0}, "stateful_batch_size must be a whole number of at least 1"),
        ({"use_cudnn": "yes"}, "use_cudnn must be 'auto', True or False, got 'yes'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        RecurrentLM(50, **options)


@pytest.mark.parametrize("cell", on_all(["rnn", "gru", "lstm"], "lstm"))
def test_weights_in_half_precision(cell):
    model = RecurrentLM(20, cell=cell, num_layers=1, hidden_dim=8, dtype="bfloat16")
    logits = model(np.ones((2, 3), "int32"))
    assert all(variable.dtype == "bfloat16" for variable in model.trainable_variables)
    assert np.isfinite(keras.ops.convert_to_numpy(logits)).all()
