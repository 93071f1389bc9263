import numpy as np
import pytest
from helpers import CONTEXT, VOCABULARY, ids_of, tiny, whole_logits

from keras_seqlm.generation import score

pytestmark = pytest.mark.neutral


def log_probabilities(model, ids):
    logits = whole_logits(model, ids)[:-1].astype("float64")
    normalised = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return normalised[np.arange(len(ids) - 1), ids[1:]]


@pytest.mark.backends
@pytest.mark.parametrize("name", ["lstm", "rotary"])
def test_scores_are_log_softmax(name):
    model = tiny(name)
    sequences = [ids_of(n, seed=n).tolist() for n in (2, 9, 17, 5)]
    rows = score(model, sequences)
    for row, ids in zip(rows, sequences, strict=True):
        assert row.shape == (len(ids) - 1,)
        np.testing.assert_allclose(row, log_probabilities(model, ids), atol=1e-5)
    sums = model.score(sequences)
    assert sums.dtype == np.float64
    np.testing.assert_allclose(sums, [log_probabilities(model, ids).sum() for ids in sequences], atol=1e-4)
    assert model.score(sequences[1]) == pytest.approx(sums[1], abs=1e-4)
    assert isinstance(model.score(sequences[1]), float)


def test_probabilities_of_all_continuations_sum_to_one():
    model = tiny("learned")
    sums = model.score([[4, 9, last] for last in range(VOCABULARY)])
    first = model.score([4, 9])
    assert np.exp(sums - first).sum() == pytest.approx(1.0, abs=1e-5)


def test_a_transformer_scores_one_id_more_than_its_context():
    model, ids = tiny("learned"), ids_of(CONTEXT + 2)
    expected = log_probabilities(model, ids[:CONTEXT])
    np.testing.assert_allclose(score(model, [ids[: CONTEXT + 1]])[0][:-1], expected, atol=1e-5)
    with pytest.raises(ValueError, match="reads 32 tokens at most, got a sequence of 34"):
        score(model, [ids])
    assert len(score(tiny("lstm"), [ids])[0]) == CONTEXT + 1


def test_nothing_to_score():
    assert score(tiny("lstm"), []) == []


@pytest.mark.backends
@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([[4, 5], [6]], "needs at least two ids to be scored, got one of 1"),
        ([[]], "is empty"),
        ([[4, VOCABULARY]], "holds id 40, and this model knows 0 to 39"),
        ([[4, -1]], "holds id -1"),
    ],
)
def test_errors(sequences, message):
    with pytest.raises(ValueError, match=message):
        score(tiny("lstm"), sequences)
