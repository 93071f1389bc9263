import gc
import weakref

import keras
import numpy as np
import pytest
from helpers import AddingModel, array, compile_plainly, ids_of, new_model, tiny
from keras import ops

from keras_seqlm.generation.buckets import bucket, buckets
from keras_seqlm.generation.compiled import compiled, traces
from keras_seqlm.generation.score import log_probabilities
from keras_seqlm.models import RecurrentLM

pytestmark = pytest.mark.backends
TRACED = keras.backend.backend() != "torch"


def scaled_logits(model, factor, inputs):
    return {"logits": factor * model(inputs["token_ids"]), "ids": (inputs["token_ids"],)}


def test_it_computes_what_the_function_computes():
    model, ids = tiny("rotary"), ops.convert_to_tensor(ids_of(2, 8))
    eager = array(model(ids))
    outputs = compiled(model, scaled_logits, 2.0)({"token_ids": ids})
    np.testing.assert_allclose(array(outputs["logits"]), 2 * eager, atol=1e-4)
    np.testing.assert_array_equal(array(outputs["ids"][0]), array(ids))
    third = compiled(model, scaled_logits, 3.0)({"token_ids": ids})  # another constant is another function
    np.testing.assert_allclose(array(third["logits"]), 3 * eager, atol=1e-4)


def test_it_is_made_once_and_traced_once_for_each_set_of_shapes():
    model = new_model("gru")
    assert traces(model, log_probabilities) == 0
    for shape in ((1, 8), (1, 8), (2, 8)):
        compiled(model, log_probabilities)(ops.convert_to_tensor(ids_of(*shape, seed=shape[0])))
    assert traces(model, log_probabilities) == (2 if TRACED else 0)
    assert compiled(model, log_probabilities) is compiled(model, log_probabilities)


def test_weights_are_those_of_now():
    model, ids = compile_plainly(new_model("gru")), ids_of(2, 8)
    run = compiled(model, log_probabilities)
    before = array(run(ops.convert_to_tensor(ids)))
    model.train_on_batch(ids[:, :-1], ids[:, 1:])
    after = array(run(ops.convert_to_tensor(ids)))
    assert np.abs(after - before).max() > 1e-3
    loss = model.test_on_batch(ids[:, :-1], ids[:, 1:])  # Keras's own function, compiled after the step
    assert -after.mean() == pytest.approx(loss, abs=1e-5)
    assert traces(model, log_probabilities) == (1 if TRACED else 0)


def test_it_is_asked_while_a_plain_fit_trains():
    """On JAX the numbers are with `fit` then, and variables are empty: it was an error of no words."""
    said = []

    class Asks(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            said.append(array(compiled(self.model, log_probabilities)(ids)))

    model, ids = compile_plainly(new_model("rnn")), ops.convert_to_tensor(ids_of(2, 8))
    model.fit(ids_of(4, 7), ids_of(4, 7, seed=5), batch_size=2, verbose=0, callbacks=[Asks()])
    np.testing.assert_array_equal(said[-1], array(compiled(model, log_probabilities)(ids)))
    assert np.abs(said[0] - said[1]).max() > 1e-4


@pytest.mark.backends
def test_a_weight_that_took_the_place_of_another():
    class Scale:
        variables = (keras.Variable(2.0),)

    def scaled(model, x):
        return x * model.variables[0]

    model = Scale()
    assert float(compiled(model, scaled)(ops.ones(()))) == 2.0
    model.variables = (keras.Variable(5.0),)
    assert float(compiled(model, scaled)(ops.ones(()))) == 5.0


def test_a_model_that_has_not_been_built():
    model = RecurrentLM(30, cell="rnn", size="nano", num_layers=1, hidden_dim=8)
    text = model.generate([4, 5], max_new_tokens=4, eos_id=None)
    assert model.built and len(text) == 4
    np.testing.assert_array_equal(model.generate([4, 5], max_new_tokens=4, eos_id=None), text)


def test_a_model_that_goes_takes_its_functions_along():
    model = AddingModel()
    state = model.initial_state(1)
    ids = ops.convert_to_tensor(np.array([[4, 5]], "int32"))

    def function(model, ids, state):
        return model({"token_ids": ids, "lengths": ops.ones((1,), "int32")}, state)

    kept = weakref.ref(compiled(model, function))
    compiled(model, function)(ids, state)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None and kept() is None


def test_buckets():
    assert [bucket(n) for n in (0, 1, 16, 17, 32, 33, 1000)] == [16, 16, 16, 32, 32, 64, 1024]
    assert buckets(16) == [16] and buckets(5) == [5] and buckets(40) == [16, 32, 40]
    assert all(bucket(n) in buckets(64) for n in range(65))
