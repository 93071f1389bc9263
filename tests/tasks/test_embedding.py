"""Vectors of texts: learned from pairs and from labels at toy size, and their figures by hand."""

import keras
import numpy as np
import pytest

from keras_seqlm.data import Rows
from keras_seqlm.models import Embedder, RecurrentEncoder, TransformerEncoder
from keras_seqlm.tasks import TextEmbedding, load
from keras_seqlm.tokenizers import ByteTokenizer

pytestmark = pytest.mark.neutral

WORDS = ["card", "cash", "rate", "pin", "app", "fee", "tax", "atm", "rent", "loan", "bank", "iban"]


def labelled(count, seed=0):
    """Texts with one of twelve words in capitals or not, among others; the word is the label."""
    draws = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        word = WORDS[draws.integers(len(WORDS))]
        fillers = "".join(draws.choice(list("..,,??! "), 4))
        made.append(
            {"text": f"{fillers}{word.upper() if draws.random() < 0.5 else word}{fillers[::-1]}", "label": word}
        )
    return made


def pairs(count, seed=0):
    rows = labelled(count, seed)
    return [{"text": row["text"], "pair": f"{row['label']} {i}"} for i, row in enumerate(rows)]


def tiny_task(data, **options):
    keras.utils.set_random_seed(0)
    encoder = RecurrentEncoder(260, cell="gru", size="nano", num_layers=1, hidden_dim=32)
    return TextEmbedding.begin_with(data, encoder, ByteTokenizer(), embedding_dim=16, **options)


@pytest.mark.backends
def test_it_learns_from_labels_and_is_loaded_again(tmp_path):
    task, test = tiny_task(labelled(240)), labelled(96, seed=1)
    before = task.evaluate(test)["recall_at_1"]
    model = task.model
    model.compile(keras.optimizers.Adam(1e-2), loss=model.default_loss())
    made = task.examples(labelled(240), 32)
    history = model.fit(made, validation_data=task.examples(test, 32, complete=True), epochs=10, verbose=0).history
    figures = task.evaluate(test)
    assert figures["recall_at_1"] > max(0.9, before) and figures["count"] == 96
    assert history["val_loss"][-1] < history["val_loss"][0]
    vectors = task.predict([row["text"] for row in test])
    assert vectors.dtype == np.float32 and vectors.shape == (96, 16)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    task.save(tmp_path / "run")
    np.testing.assert_allclose(load(tmp_path / "run").predict(test), vectors, atol=1e-5)


def test_pairs_are_twos_of_one_id():
    data = pairs(20)
    task = tiny_task(data)
    made = task.examples(data + data[:3], 8)
    assert made.num_rows == 46
    for step in range(6):
        _, y = made.batch(step)
        assert (y[::2] == y[1::2]).all()
    assert len({int(one) for one in made._targets}) == 20  # a pair that stands twice has one id
    model = task.model
    model.compile(keras.optimizers.Adam(1e-2), loss=model.default_loss())
    loss = model.fit(made, epochs=4, verbose=0).history["loss"]
    assert loss[-1] < loss[0]


def test_figures_by_hand(monkeypatch):
    task = tiny_task(pairs(4))
    at = {"a": [1, 0], "b": [0, 1], "c": [-1, 0.1], "d": [0.1, 1]}
    monkeypatch.setattr(task, "predict", lambda texts, batch_size: np.array([at[text] for text in texts], float))
    rows = [{"text": text, "label": label} for text, label in (("a", "x"), ("b", "y"), ("d", "y"), ("c", "x"))]
    assert task.evaluate(rows)["recall_at_1"] == 0.5  # b and d find each other
    found = task.evaluate([{"text": "a", "pair": "d"}, {"text": "b", "pair": "c"}, {"text": "c", "pair": "c"}])
    assert found["recall_at_1"] == pytest.approx(2 / 3)  # of b the nearest is d
    values = [
        {"text": "b", "pair": "d", "value": "5"},
        {"text": "a", "pair": "d", "value": 2},
        {"text": "a", "pair": "c", "value": 3},
    ]
    assert task.evaluate(values)["spearman"] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="each kind alone"):
        task.evaluate(rows + values)


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"text": "a"}, "neither pair nor label"),
        ({"pair": "a"}, "it has no text"),
        ({"text": "a", "pair": 5}, "expected a text, got 5"),
        ({"text": "a", "pair": "b", "value": 3}, "for figures alone"),
    ],
)
def test_a_broken_row_is_named(row, reason):
    with pytest.raises(ValueError, match="row 5") as error:
        tiny_task(pairs(4)).examples([*pairs(4), row], 2)
    assert reason in str(error.value)
    data = Rows([*pairs(4), row], tolerance=0.5)
    assert tiny_task(pairs(4)).examples(data, 2).num_rows == 8


def test_no_texts_and_other_losses():
    task = tiny_task(pairs(4))
    assert task.predict([]).shape == (0, 16)
    bare = TextEmbedding(Embedder(TransformerEncoder(260, size="nano", num_layers=1, max_length=8)), ByteTokenizer())
    assert bare.predict([]).shape == (0, 96) and bare.predict(["a text that is longer"]).shape == (1, 96)
    with pytest.raises(ValueError, match="leave them at 0"):
        task.model.default_loss(label_smoothing=0.1)
