"""Learning rates by layer: held to NumPy's SGD and to a run of each layer's own rate; saved and gone on exactly."""

import keras
import numpy as np
import pytest
from helpers import CONTEXT, VOCABULARY, array, ids_of, new_model

from keras_seqlm.models import Classifier, RecurrentEncoder, TransformerEncoder, add_lora
from keras_seqlm.training import Recipe, Resume, SafeOptimizer
from keras_seqlm.training.layer_rates import layer_factors, scale_rates

pytestmark = pytest.mark.neutral


def classifier():
    encoder = TransformerEncoder(VOCABULARY, size="nano", num_layers=2, hidden_dim=16, num_heads=2, max_length=CONTEXT)
    model = Classifier(encoder, num_classes=3)
    model.build()
    return model


def test_factors_fall_from_the_head_to_the_embeddings():
    model = classifier()
    found = {variable.path.partition("/")[2]: factor for variable, factor in layer_factors(model, 0.5)}
    wanted = {
        "classes": 1,
        "output_norm": 0.5,
        "block_1": 0.5,
        "block_0": 0.25,
        "token_embedding": 0.125,
        "positions": 0.125,
    }
    for path, factor in found.items():
        name = next(part for part in path.split("/") if part in wanted)
        assert factor == wanted[name], path
    for recurrent in (
        new_model("lstm"),
        Classifier(RecurrentEncoder(VOCABULARY, size="nano", num_layers=2, hidden_dim=8), 3),
    ):
        if not recurrent.built:
            recurrent.build()
        on = layer_factors(recurrent, 0.5)
        assert len(on) == len(recurrent.trainable_variables) and {factor for _, factor in on} == {1, 0.5, 0.25, 0.125}
        tuned = add_lora(recurrent, 2)
        adapters = [factor for variable, factor in layer_factors(tuned, 0.5) if "lora" in variable.path]
        assert set(adapters) == {0.5, 0.25}
    with pytest.raises(ValueError, match="Sequential does not tell it"):
        layer_factors(keras.Sequential([keras.layers.Dense(1)]), 0.5)


@pytest.mark.backends
@pytest.mark.parametrize("wrapped", [False, True])
def test_sgd_is_numpy_s(wrapped):
    """w -= f lr (wd w + g), by each weight's own f; Keras's decay comes first."""
    weights = [keras.Variable(np.full(3, 2.0, "float32")) for _ in range(3)]
    gradients = [np.array([1.0, -2.0, 0.5], "float32") * (i + 1) for i in range(3)]
    optimizer = keras.optimizers.SGD(0.1, weight_decay=0.2)
    optimizer.exclude_from_weight_decay(var_list=[weights[2]])
    scale_rates(optimizer, [(weights[0], 0.25), (weights[2], 0.5)])
    whole = SafeOptimizer(optimizer) if wrapped else optimizer
    whole.build(weights)
    wanted = [np.full(3, 2.0) for _ in range(3)]
    for _ in range(3):
        whole.apply([keras.ops.convert_to_tensor(one) for one in gradients], weights)
        for i, (factor, decay) in enumerate(((0.25, 0.2), (1.0, 0.2), (0.5, 0.0))):
            wanted[i] = wanted[i] - factor * 0.1 * decay * wanted[i] - factor * 0.1 * gradients[i]
    for weight, value in zip(weights, wanted, strict=True):
        np.testing.assert_allclose(array(weight), value, rtol=1e-6)
    assert optimizer.weight_decay == 0.2


@pytest.mark.backends
@pytest.mark.parametrize("kind", ["AdamW", "SGD", "Lion", "RMSprop"])
def test_each_weight_goes_as_with_an_optimizer_of_its_own_rate(kind):
    options = {"weight_decay": 0.3, **({"momentum": 0.9} if kind == "SGD" else {})}
    make = getattr(keras.optimizers, kind)
    random = np.random.default_rng(0)
    start = [random.standard_normal((2, 3)).astype("float32") for _ in range(2)]
    steps = [[random.standard_normal((2, 3)).astype("float32") for _ in range(2)] for _ in range(4)]
    together = [keras.Variable(value) for value in start]
    optimizer = make(0.05, **options)
    scale_rates(optimizer, [(together[1], 0.3)])
    optimizer.build(together)
    for step in steps:
        optimizer.apply([keras.ops.convert_to_tensor(one) for one in step], together)
    for i, rate in enumerate((0.05, 0.05 * 0.3)):
        alone = keras.Variable(start[i])
        own = make(rate, **options)
        own.build([alone])
        for step in steps:
            own.apply([keras.ops.convert_to_tensor(step[i])], [alone])
        np.testing.assert_allclose(array(together[i]), array(alone), rtol=2e-5, atol=1e-6)
    assert np.abs(array(together[1]) - start[1]).max() > 1e-3


@pytest.mark.backends
def test_a_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    class Data:
        def batches(self, first_step=0):
            step = first_step
            while True:
                yield ids_of(4, 6, seed=step), ids_of(4, seed=100 + step, vocabulary_size=7) - 4
                step += 1

    recipe = Recipe(steps=6, batch_size=4, warmup_steps=2, layer_decay=0.5, optimizer="adamw", validate_every=6)

    def end(name, *stops):
        for steps in stops:
            import dataclasses

            part = dataclasses.replace(recipe, steps=steps)
            part = dataclasses.replace(part, schedule="constant")
            with part.scope():
                model = classifier()
            part.fit(model, Data(), progress=False, resume=Resume(tmp_path / name, every=2))
        return [array(weight) for weight in model.weights]

    whole, gone_on = end("whole", 6), end("parts", 4, 6)
    for one, other in zip(whole, gone_on, strict=True):
        np.testing.assert_array_equal(one, other)


def test_another_decay_is_refused_when_a_run_goes_on(tmp_path):
    batch = (ids_of(4, 6), ids_of(4, vocabulary_size=7) - 4)

    class Data:
        def batches(self, first_step=0):
            while True:
                yield batch

    for steps, decay in ((2, 0.5), (4, 0.9)):
        recipe = Recipe(steps=steps, batch_size=4, warmup_steps=0, schedule="constant", layer_decay=decay)
        with recipe.scope():
            model = classifier()
        if decay == 0.5:
            recipe.fit(model, Data(), progress=False, resume=Resume(tmp_path, every=2))
        else:
            with pytest.raises(ValueError, match="layer_decay was 0.5 and is 0.9"):
                recipe.fit(model, Data(), progress=False, resume=Resume(tmp_path, every=2))
