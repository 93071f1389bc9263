"""What is saved of callbacks, whose it is, and what is said of those of which nothing is."""

import collections
import random

import keras
import numpy as np
import pytest

from keras_seqlm.training.callback_state import CallbackStates
from keras_seqlm.training.plain_values import from_json, to_json

pytestmark = pytest.mark.neutral


def saved(*callbacks, wait=5):
    """What a checkpoint holds of these, the first one having waited longest."""
    states = CallbackStates(callbacks)
    for i, one in enumerate(callbacks):
        one.wait = wait + i
    return states.get()


def test_states_go_by_what_callbacks_were_made_with():
    early = keras.callbacks.EarlyStopping
    meta, arrays = saved(early(patience=2), early(patience=9))
    (alone,) = two = [early(patience=9)]
    with pytest.warns(UserWarning, match=r"state of the callback EarlyStopping\(.*patience=2.*fit was given none"):
        CallbackStates(two).set(meta, arrays)
    assert alone.wait == 6

    alike = [early(), early()]
    meta, arrays = saved(early(), early())
    CallbackStates(alike).set(meta, arrays)  # by their order
    assert [one.wait for one in alike] == [5, 6]

    patient, other = early(patience=2), early(patience=8)
    with pytest.warns(
        UserWarning, match=r"of several callbacks EarlyStopping, .*patience=8.*is of one that was made otherwise"
    ):
        CallbackStates([other, patient]).set(*saved(early(patience=2), early(patience=9)))
    assert (patient.wait, other.wait) == (5, 6)

    one = early(patience=3)  # one of its class: a patience may be raised
    CallbackStates([one]).set(*saved(early(patience=2)))
    assert one.wait == 5
    with pytest.warns(UserWarning, match=r"EarlyStopping\(.*monitor='val_loss'.*it is left out"):
        CallbackStates([watches := early(monitor="loss")]).set(*saved(early()))
    assert watches.wait == 0

    used = early(min_delta=0.1)
    used.min_delta = -0.1  # as Keras leaves it
    CallbackStates([early(min_delta=0.2), used]).set(*saved(early(min_delta=0.1), early(min_delta=0.2)))
    assert used.wait == 5


def test_a_users_class_is_told_apart_by_its_arguments():
    class Counts(keras.callbacks.Callback):
        def __init__(self, every):
            super().__init__()
            self._every, self.wait = every, 0

        def get_state(self):
            return {"wait": self.wait}

        def set_state(self, state):
            self.wait = state["wait"]

    often, rarely = Counts(1), Counts(100)
    CallbackStates([rarely, often]).set(*saved(Counts(1), Counts(100)))
    assert (often.wait, rarely.wait) == (5, 6)


def test_states_of_a_version_before_are_given_by_order():
    def old(wait):
        return {"dict": {"wait": wait, "best": 0.5}}

    by_loss = keras.callbacks.EarlyStopping(monitor="val_loss", patience=4)
    by_error = keras.callbacks.EarlyStopping(monitor="val_error", patience=7, mode="min")
    with pytest.warns(UserWarning, match="which a version before saved, which knew them by their order alone"):
        CallbackStates([by_loss, by_error]).set({"EarlyStopping": old(2), "EarlyStopping-1": old(3)}, {})
    assert (by_loss.wait, by_error.wait, by_loss.best) == (2, 3, 0.5)
    one = keras.callbacks.EarlyStopping()
    CallbackStates([one]).set({"EarlyStopping": old(2)}, {})
    assert one.wait == 2

    class Counts(keras.callbacks.Callback):
        def get_state(self):
            return {}

        def set_state(self, state):
            self.state = state

    counts = Counts()
    CallbackStates([counts]).set({"Counts": {"dict": {"seen": {"list": [1, 2]}}}}, {})
    assert counts.state == {"seen": [1, 2]}


CHANGES = {
    "dict": ({"a": 1}, lambda value: value.update(a=2)),
    "nested": ({"a": [{"b": (1, {2})}]}, lambda value: value["a"][0].update(b=(1, {3}))),
    "deque": (collections.deque([1], maxlen=1), lambda value: value.append(2)),
    "set": ({1}, lambda value: value.add(2)),
    "list of arrays": ([np.zeros(2)], lambda value: value[0].fill(1)),
    "counter": (collections.Counter("ab"), lambda value: value.update("a")),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_what_changes_in_a_container_is_named(kind, recwarn):
    class Remembers(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.memory, self.constant = CHANGES[kind][0], {"a": [1, (2, {3})], "b": collections.deque([np.ones(2)])}

    callback = Remembers()
    states = CallbackStates([callback])
    states.get()
    assert not recwarn
    CHANGES[kind][1](callback.memory)
    with pytest.warns(
        UserWarning, match=r"the callback Remembers has no get_state.*\(memory\) is not in the checkpoints"
    ):
        states.get()
    states.get()
    assert not recwarn  # once


DRAWS = {
    "generator": (lambda: np.random.default_rng(0), lambda value: value.random()),
    "state": (lambda: np.random.RandomState(0), lambda value: value.random()),
    "Python's": (lambda: random.Random(0), lambda value: value.random()),
    "Keras's": (lambda: keras.random.SeedGenerator(0), lambda value: value.next()),
    "metric": (keras.metrics.Mean, lambda value: value.update_state(1.0)),
    "variable": (lambda: keras.Variable(1.0), lambda value: value.assign(2.0)),
}


@pytest.mark.backends
@pytest.mark.parametrize("kind", DRAWS)
def test_generators_and_variables_that_change_are_named(kind, recwarn):
    class Draws(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.inside, self.alone = {"a": [DRAWS[kind][0]()]}, DRAWS[kind][0]()

    callback = Draws()
    states = CallbackStates([callback])
    states.get()
    assert not [one for one in recwarn if "Draws" in str(one.message)]
    DRAWS[kind][1](callback.alone)
    with pytest.warns(UserWarning, match=r"the callback Draws has no get_state.*\(alone\) is not in the checkpoints"):
        states.get()
    callback = Draws()
    states = CallbackStates([callback])
    DRAWS[kind][1](callback.inside["a"][0])
    with pytest.warns(UserWarning, match=r"\(inside\) is not in"):
        states.get()


def test_what_others_of_kerass_callbacks_count_goes_on(tmp_path):
    def made():
        return [keras.callbacks.OrbaxCheckpoint(str(tmp_path)), keras.callbacks.TensorBoard(str(tmp_path))]

    orbax, board = before = made()
    orbax.best, orbax._total_batches_seen, orbax._batches_seen_since_last_saving, orbax._last_batch_seen = 0.5, 7, 3, 2
    board._global_train_batch = 7
    orbax_again, board_again = again = made()
    CallbackStates(again).set(*CallbackStates(before).get())
    assert (orbax_again.best, orbax_again._total_batches_seen, orbax_again._last_batch_seen) == (0.5, 7, 2)
    assert orbax_again._batches_seen_since_last_saving == 3 and board_again._global_train_batch == 7


def test_a_tuple_that_is_another_is_named():
    class Remembers(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.memory = (1, 2)

    states = CallbackStates([callback := Remembers()])
    callback.memory = (1, 3)
    with pytest.warns(UserWarning, match=r"\(memory\)"):
        states.get()


def test_a_state_comes_back_as_what_it_was():
    class Holds(keras.callbacks.Callback):
        def get_state(self):
            return self.given

        def set_state(self, state):
            self.state = state

    holds = Holds()
    holds.given = given = {
        "table": {1: 0.5, (2, "a"): [True, None]},
        "last": collections.deque([1, 2], maxlen=3),
        "names": {"a", "b"},
        "pair": (1, np.float32(2.0)),
        "nested": [{"x": np.arange(3)}],
    }
    states = CallbackStates([holds])
    states.set(*states.get())
    nested, expected = holds.state.pop("nested"), given.pop("nested")
    assert holds.state == given and holds.state["last"].maxlen == 3 and type(holds.state["pair"]) is tuple
    np.testing.assert_array_equal(nested[0]["x"], expected[0]["x"])

    meta, arrays = states.get()
    with pytest.warns(UserWarning, match="what get_state.. of the callback Holds gave, and it has no set_state"):
        CallbackStates([type("Holds", (keras.callbacks.Callback,), {})()]).set(meta, arrays)

    for holds.given, kind in (
        ({"a": object()}, "object"),
        ({"a": [np.complex64(1)]}, "array of complex64"),
        (b"", "bytes"),
    ):
        with pytest.warns(UserWarning, match=f"state of the callback Holds cannot be saved.*is of type {kind}"):
            assert CallbackStates([holds]).get() == ({}, {})


def test_arrays_whose_names_would_be_the_same_are_kept_apart():
    one, two, three = np.zeros(2), np.ones(2), np.full(2, 2.0)
    state, arrays = {"block/kernel": one, "block": {"kernel": two}, "block/kernel~": three}, {}
    again = from_json(to_json(state, "s", arrays), arrays)
    np.testing.assert_array_equal(again["block/kernel"], one)
    np.testing.assert_array_equal(again["block"]["kernel"], two)
    np.testing.assert_array_equal(again["block/kernel~"], three)


def test_a_callback_that_cannot_be_saved_does_not_keep_those_behind_it_from_it():
    class Holds(keras.callbacks.Callback):
        def get_state(self):
            return {"lock": object()}

    with pytest.warns(UserWarning, match="the state of the callback Holds cannot be saved"):
        meta, _ = CallbackStates([Holds(), keras.callbacks.EarlyStopping()]).get()
    assert list(meta) == ["EarlyStopping"]
