"""A served graph reads long texts in parts, a turn's rows being those that are so long: the numbers are the model's."""

import numpy as np
import pytest
from helpers import array, ids_of, tiny

from keras_seqlm.export.reading import PART, InParts, served_prompt_room
from keras_seqlm.generation import score


@pytest.mark.parametrize("select", [True, False])
@pytest.mark.parametrize("name", ["rnn", "gru", "lstm"])
def test_reading_in_parts_is_reading_at_once(name, select):
    import tensorflow as tf

    model, lengths = tiny(name), np.array([0, 1, PART, PART + 1, 3 * PART, 70, 5], "int32")
    token_ids = ids_of(len(lengths), 71)
    parts = tf.function(lambda ids, lengths: InParts(model, ids, lengths, select).state(), autograph=False)
    found = parts(token_ids, lengths)
    for row, length in enumerate(lengths):
        wanted = model.initial_state(1)
        if length:
            wanted = model.read({"token_ids": token_ids[row : row + 1, :length]})
        assert sorted(found) == sorted(wanted)
        for leaf, value in wanted.items():
            np.testing.assert_allclose(array(found[leaf])[row], array(value)[0], atol=2e-6)


def test_the_score_in_parts_is_the_score():
    model, lengths = tiny("lstm"), [0, 1, PART, 40, 2 * PART + 1]
    token_ids = ids_of(len(lengths), 1 + max(lengths))
    found = array(InParts(model, token_ids, np.array(lengths, "int32")).log_probabilities())
    wanted = [0.0, *(row.sum() for row in score(model, [token_ids[i, : n + 1] for i, n in enumerate(lengths) if n]))]
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_a_batch_of_none_is_read():
    state = InParts(tiny("gru"), np.zeros((0, 1), "int32"), np.zeros(0, "int32")).state()
    assert {array(leaf).shape[0] for leaf in state.values()} == {0}


def test_how_much_of_a_prompt_an_export_reads():
    assert served_prompt_room(tiny("lstm")) == 4096 and served_prompt_room(tiny("lstm"), 10**6) == 10**6
    assert served_prompt_room(tiny("learned")) == 31 and served_prompt_room(tiny("learned"), 8) == 8
    with pytest.raises(ValueError, match="with its context of 32 this model reads 31 at most"):
        served_prompt_room(tiny("learned"), 32)
