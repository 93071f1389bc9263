"""Class weights: in the loss of plain fit, held to NumPy; validation is not weighed."""

import keras
import numpy as np
import pytest
from helpers import array

from keras_seqlm.models import RecurrentEncoder
from keras_seqlm.tasks import TextClassification, TextEmbedding, TokenTagging
from keras_seqlm.tasks.class_weights import class_weights_of
from keras_seqlm.tokenizers import ByteTokenizer

pytestmark = pytest.mark.neutral

ROWS = [{"text": f"{word} {i}", "label": word} for word, n in (("card", 6), ("cash", 2)) for i in range(n)]
SPANS = [{"text": f"at {i} for two", "spans": [{"label": "time", "start": 3, "end": 4}]} for i in range(8)]


def encoder():
    return RecurrentEncoder(260, cell="gru", size="nano", num_layers=1, hidden_dim=8)


def log_p(logits):
    logits = logits.astype("float64")
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


@pytest.mark.backends
@pytest.mark.parametrize(("wanted", "weights"), [("balanced", [8 / 12, 2.0]), ({"cash": 3.0}, [1.0, 3.0])])
def test_rows_weigh_by_their_class(wanted, weights):
    task = TextClassification.begin_with(ROWS, encoder(), ByteTokenizer())
    train = task.examples(ROWS, 8, class_weights=wanted)
    x, y, w = train.batch(0)
    np.testing.assert_allclose(w, np.take(weights, y), rtol=1e-6)
    losses = -np.take_along_axis(log_p(array(task.model(x))), y[:, None], 1)[:, 0]
    task.model.compile(keras.optimizers.SGD(0.0), loss=task.model.default_loss(), jit_compile=False)
    loss = task.model.fit(train, verbose=0).history["loss"][0]
    assert loss == pytest.approx((np.take(weights, y) * losses).sum() / 8, rel=1e-4)
    validation = task.examples(ROWS, 8, complete=True)
    assert task.model.evaluate(validation, verbose=0) == pytest.approx(losses.mean(), rel=1e-4)
    plain = task.examples(ROWS, 8)
    assert len(plain.batch(0)) == 2 and plain.content_hash != train.content_hash


@pytest.mark.backends
def test_tokens_weigh_by_their_tag():
    task = TokenTagging.begin_with(SPANS, encoder(), ByteTokenizer())
    assert task.tags == ["O", "B-time", "I-time"]
    train = task.examples(SPANS, 4, class_weights={"time": 5.0, "O": 0.5})
    x, y, w = train.batch(0)
    assert set(w[y == 0]) == {0.5} and set(w[y == 1]) == {5.0} and set(w[y == -1]) == {0.0}
    losses = -np.take_along_axis(log_p(array(task.model(x))), np.maximum(y, 0)[..., None], 2)[..., 0]
    task.model.compile(keras.optimizers.SGD(0.0), loss=task.model.default_loss(), jit_compile=False)
    loss = task.model.train_on_batch(x, y, sample_weight=w)
    assert float(loss) == pytest.approx((w * losses).sum() / (y >= 0).sum(), rel=1e-4)
    task.model.fit(train, epochs=1, verbose=0)
    balanced = task.examples(SPANS, 4, class_weights="balanced")
    counted = np.concatenate([balanced.batch(step)[2].ravel() for step in range(2)])
    assert counted.sum() == pytest.approx((counted > 0).sum(), rel=1e-5)  # of mean 1 over all tokens that count


def test_what_cannot_be_is_refused():
    task = TextClassification.begin_with(ROWS, encoder(), ByteTokenizer())
    for wanted, said in (
        ("even", "'balanced' or a dict"),
        ({"coin": 2}, "'coin', which is no class; there are card, cash"),
        ({"cash": -1}, "at least 0, got -1"),
        ({"cash": 0, "card": 0}, "nothing would be learned"),
    ):
        with pytest.raises(ValueError, match=said):
            task.examples(ROWS, 4, class_weights=wanted)
    with pytest.raises(ValueError, match="validation is not weighed"):
        task.examples(ROWS, 4, complete=True, class_weights="balanced")
    pairs = [{"text": "a", "pair": "b"}] * 2
    vectors = TextEmbedding.begin_with(pairs, encoder(), ByteTokenizer())
    with pytest.raises(ValueError, match="this TextEmbedding has no one class a row"):
        vectors.examples(pairs, 4, class_weights="balanced")
    numbers = [{"text": "a", "value": 1.0}] * 4
    number = TextClassification.begin_with(numbers, encoder(), ByteTokenizer())
    with pytest.raises(ValueError, match="no one class a row"):
        number.examples(numbers, 4, class_weights="balanced")


def test_a_label_s_weight_is_that_of_its_b_and_its_i():
    tagger = TokenTagging.begin_with(SPANS, encoder(), ByteTokenizer())
    names, means = tagger.class_names()
    assert class_weights_of({"time": 5.0, "O": 0.5}, names, np.zeros(1, int), means).tolist() == [0.5, 5.0, 5.0]


def test_a_class_without_examples_weighs_one():
    np.testing.assert_allclose(class_weights_of("balanced", ["a", "b", "c"], np.array([0, 0, 2, -1])), [0.75, 1.0, 1.5])
