"""A served graph reads long texts in parts, a turn's rows being those that are so long: the numbers are the model's."""

import numpy as np
import pytest
from cases import some_of
from helpers import CONTEXT, array, arrays, ids_of, tiny

from keras_seqlm.export.reading import PART, InGroups, InParts, served_prompt_room
from keras_seqlm.generation import score


@pytest.mark.parametrize("select", [True, False])
@pytest.mark.parametrize("name", some_of(["rnn", "gru", "lstm"], "lstm"))
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


@pytest.mark.parametrize("name", ["learned", "rotary"])
def test_reading_in_groups_is_reading_at_once(name):
    import tensorflow as tf

    model, lengths = tiny(name), np.array([31, 0, 1, 16, 17, 5, 31], "int32")
    token_ids = ids_of(len(lengths), 31)
    groups = tf.function(lambda ids, lengths: InGroups(model, ids, lengths, CONTEXT).state(CONTEXT), autograph=False)
    found = arrays(groups(token_ids, lengths))
    wanted = arrays(model.read({"token_ids": token_ids, "lengths": lengths}, CONTEXT))
    assert sorted(found) == sorted(wanted) and found["position"].tolist() == lengths.tolist()
    for row, length in enumerate(lengths):
        for leaf in set(wanted) - {"position"}:  # what padding has written is never seen
            np.testing.assert_allclose(found[leaf][row, :, :length], wanted[leaf][row, :, :length], atol=1e-5)


def test_only_the_rows_that_are_long_are_read_wide(monkeypatch):
    model, shapes = tiny("learned"), []
    read = type(model).read
    monkeypatch.setattr(
        type(model),
        "read",
        lambda self, inputs, room: shapes.append(inputs["token_ids"].shape) or read(self, inputs, room),
    )
    InGroups(model, ids_of(5, 31), np.array([3, 31, 16, 0, 2], "int32"), CONTEXT).state(CONTEXT)
    assert [tuple(shape) for shape in shapes] == [(4, 16), (1, 31)]


@pytest.mark.parametrize(("name", "reader"), [("lstm", InParts), ("learned", InGroups)])
def test_the_score_in_parts_is_the_score(name, reader):
    model, lengths = tiny(name), [0, 1, PART, 32, 2 * PART - 1]
    token_ids = ids_of(len(lengths), 1 + max(lengths))
    options = () if reader is InParts else (CONTEXT,)
    found = array(reader(model, token_ids, np.array(lengths, "int32"), *options).log_probabilities())
    wanted = [0.0, *(row.sum() for row in score(model, [token_ids[i, : n + 1] for i, n in enumerate(lengths) if n]))]
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_a_batch_of_none_is_read():
    state = InParts(tiny("gru"), np.zeros((0, 1), "int32"), np.zeros(0, "int32")).state()
    assert {array(leaf).shape[0] for leaf in state.values()} == {0}
    state = InGroups(tiny("learned"), np.zeros((0, 1), "int32"), np.zeros(0, "int32"), CONTEXT).state(20)
    assert {array(leaf).shape[0] for leaf in state.values()} == {0}


def test_how_much_of_a_prompt_an_export_reads():
    assert served_prompt_room(tiny("lstm")) == 4096 and served_prompt_room(tiny("lstm"), 10**6) == 10**6
    assert served_prompt_room(tiny("learned")) == 31 and served_prompt_room(tiny("learned"), 8) == 8
    with pytest.raises(ValueError, match="with its context of 32 this model reads 31 at most"):
        served_prompt_room(tiny("learned"), 32)
