"""Toy data and models of this room's tests, and the program that the tests of strategies run in processes of their own."""

import json
import os
import sys

VOCABULARY, LENGTH = 23, 8
SMALL = {"num_layers": 1, "hidden_dim": 16}
MODELS = {
    "tied": ("TransformerLM", {**SMALL, "num_heads": 2, "max_length": LENGTH}),
    "untied": ("TransformerLM", {**SMALL, "num_heads": 2, "max_length": LENGTH, "tie_embedding": False}),
    "lstm": ("RecurrentLM", {**SMALL, "cell": "lstm"}),
}


class Batches:
    """Batches that are a function of the step, as those of `data.causal_blocks`: x is one random walk, y its next ids."""

    def __init__(self, rows=4, segment_ids=False):
        self.rows, self.segment_ids = rows, segment_ids

    def batch(self, step):
        import numpy as np

        random = np.random.default_rng([7, step])
        ids = (np.cumsum(random.integers(0, 3, (self.rows, LENGTH + 1)), axis=1) % VOCABULARY).astype("int32")
        segments = np.cumsum(random.random((self.rows, LENGTH)) < 0.2, axis=1).astype("int32")
        x = {"token_ids": ids[:, :-1], "segment_ids": segments} if self.segment_ids else ids[:, :-1]
        return x, ids[:, 1:]

    def batches(self, first_step=0):
        while True:
            yield self.batch(first_step)
            first_step += 1


def new_model(name, **options):
    """A Transformer, an LSTM, or "bigram": an embedding and a linear layer, for tests that only need something to train."""
    from keras_seqlm import layers, models

    if name == "bigram":
        import keras

        embedding = layers.TokenEmbedding(VOCABULARY, 8)
        return keras.Sequential([keras.Input((LENGTH,), dtype="int32"), embedding, keras.layers.Dense(VOCABULARY)])
    kind, arguments = MODELS[name]
    return getattr(models, kind)(VOCABULARY, size="nano", **{**arguments, **options})


def compiled(recipe, name, **options):
    """A new model, compiled by the recipe; without XLA, which compiles longer on TensorFlow than these runs last."""
    import keras

    with recipe.scope():
        model = new_model(name, **options)
    recipe.compile(model)
    model.jit_compile = keras.backend.backend() == "jax"
    return model


def train(recipe, name, segment_ids=False):
    """The losses of all steps, one for each."""
    data = Batches(recipe.batch_size, segment_ids)
    return recipe.fit(compiled(recipe, name), data, progress=False).history["loss"]


def refusals(recipe):
    """What is said to a model that does not go with several replicas."""
    import dataclasses

    half = dataclasses.replace(recipe, precision="mixed_float16")
    odd = dataclasses.replace(recipe, batch_size=3)
    outside = new_model("tied")
    outside.build()  # JAX: a model without weights gets them in the scope when it is compiled, and is right
    with recipe.scope():
        carrying, inside = new_model("lstm", stateful_batch_size=4), new_model("tied")
    attempts = {
        "outside": lambda: recipe.compile(outside),
        "carried": lambda: recipe.compile(carrying),
        "half": lambda: compiled(half, "tied"),
        "odd": lambda: odd.fit(inside, Batches(3)),
        "odd scope": lambda: odd.scope().__enter__(),
    }
    said = {}
    for name, attempt in attempts.items():
        try:
            attempt()
        except ValueError as error:
            said[name] = str(error)
    return said


def main(distribution):
    """Print the losses of each model on one device and on all, and what is refused."""
    import dataclasses

    if distribution == "mirrored":
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    from keras_seqlm.training import Recipe
    from keras_seqlm.training import distribution as strategies

    # The clip bites at each step, so that one made before the sum would show.
    single = Recipe(steps=10, batch_size=4, warmup_steps=2, learning_rate=0.01, clip_norm=0.3, validate_every=1)
    spread = dataclasses.replace(single, distribution=distribution)
    losses = {}
    for case in ("tied", "untied+segments", "lstm"):
        name, segment_ids = case.removesuffix("+segments"), case.endswith("+segments")
        losses[case] = [train(recipe, name, segment_ids) for recipe in (single, spread)]
    replicas = strategies.strategy(distribution).num_replicas
    print(json.dumps({"replicas": replicas, "losses": losses, "refused": refusals(spread)}))


if __name__ == "__main__":
    if sys.argv[1] == "data-parallel":
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    main(sys.argv[1])
