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
    "gru": ("RecurrentLM", {**SMALL, "cell": "gru", "embedding_dim": 8}),
    "rnn": ("RecurrentLM", {**SMALL, "cell": "rnn", "tie_embedding": False}),
}
# What several devices must train as one does: case -> model, its options, its data. A new model adds a line.
CASES = {
    "tied": ("gru", {}, {"validate": True}),
    "untied": ("untied", {"vocabulary_size": VOCABULARY + 1}, {"segment_ids": True, "tf_data": True}),
    "text": ("lstm", {"vocabulary_size": 260}, {"text": True}),
    "masked": ("masked", {"vocabulary_size": 261}, {"text": "masked"}),
    "sources": ("sources", {"vocabulary_size": 261}, {"text": "denoising"}),
    "attentive": ("sources", {"vocabulary_size": 261, "encoder": "gru", "decoder": "lstm"}, {"text": "denoising"}),
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
    if name == "masked":
        parts = {"size": "nano", **SMALL, "num_heads": 2, "max_length": LENGTH, **options}
        return models.MaskedLM(models.TransformerEncoder(name="encoder", **parts))
    if name == "sources":
        of_transformers = {} if "encoder" in options else {"num_heads": 2, "max_length": LENGTH}
        return models.Seq2SeqLM(**{"size": "nano", **SMALL, **of_transformers, **options})
    kind, arguments = MODELS[name]
    return getattr(models, kind)(**{"vocabulary_size": VOCABULARY, "size": "nano", **arguments, **options})


def compiled(recipe, name, **options):
    """A new model, compiled by the recipe; without XLA, which compiles longer on TensorFlow than these runs last."""
    import keras

    with recipe.scope():
        model = new_model(name, **options)
    recipe.compile(model)
    model.jit_compile = keras.backend.backend() == "jax"
    return model


def train(recipe, name, options, segment_ids=False, validate=False, text=False, tf_data=False):
    """The losses of all pieces, training and validation, and the weights after them."""
    batches = Batches(recipe.batch_size, segment_ids)
    data = (
        blocks(recipe.batch_size, "causal" if text is True else text)
        if text
        else (as_tf_data(batches) if tf_data else batches, held() if validate else None)
    )
    model = compiled(recipe, name, **options)
    history = recipe.fit(model, *data, progress=False).history
    weights = {variable.path.partition("/")[2]: whole(variable) for variable in model.trainable_variables}
    return history["loss"] + history.get("val_loss", []), weights


def as_tf_data(batches):
    """The same as a `tf.data.Dataset`, which cannot be asked for a step."""
    if sys.modules.get("tensorflow", True) is None:
        del sys.modules["tensorflow"]  # which has been kept from being imported, to save time
    import tensorflow as tf

    spec = tf.TensorSpec((batches.rows, LENGTH), "int32")
    x = {"token_ids": spec, "segment_ids": spec} if batches.segment_ids else spec
    return tf.data.Dataset.from_generator(batches.batches, output_signature=(x, spec))


def blocks(rows, objective="causal"):
    """Training and validation batches of `data.objective_blocks`."""
    import pathlib
    import tempfile

    from keras_seqlm.data import objective_blocks, prepared
    from keras_seqlm.tokenizers import ByteTokenizer

    path = pathlib.Path(tempfile.mkdtemp(), "sums.txt")
    path.write_text("".join(f"{a} + {b} = {a + b}\n" for a in range(20) for b in range(20)))
    tokenizer, how = prepared(ByteTokenizer(), objective), {"validation_fraction": 0.02, "cache_dir": path.parent}
    return objective_blocks(path, tokenizer, objective, LENGTH, rows, seed=1, **how)


def held(rows=4):
    """Validation data that know nothing of processes: two batches whose rows hold unequally many targets."""
    import keras
    import numpy as np

    class Held(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            weights = (np.arange(LENGTH) < 2 * np.arange(1, rows + 1)[:, None]).astype("float32")
            return *Batches(rows).batch(1000 + index), weights

    return Held()


def whole(variable):
    """NumPy's view of a variable; also where other processes hold parts of it."""
    import keras

    if keras.backend.backend() == "jax" and not variable.value.is_fully_addressable:
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(variable.value, tiled=True)
    return keras.ops.convert_to_numpy(variable)


def refusals(recipe):
    """What is said to a model, or to data, that do not go with several replicas."""
    import dataclasses

    recipe = dataclasses.replace(recipe, steps=1)
    odd = dataclasses.replace(recipe, batch_size=3)
    outside = new_model("tied")
    outside.build()  # JAX: a model without weights gets them in the scope when it is compiled, and is right
    with recipe.scope():
        carrying, inside = new_model("lstm", stateful_batch_size=4), new_model("tied")
    x, y = Batches(4).batch(0)
    masked = Batches(4)
    masked.batch = lambda step: ({"token_ids": x, "padding_mask": x > 0}, y)
    attempts = {
        "outside": lambda: recipe.compile(outside),
        "carried": lambda: recipe.compile(carrying),
        "odd": lambda: odd.fit(inside, Batches(3)),
        "odd scope": lambda: odd.scope().__enter__(),
        "odd width": lambda: compiled(recipe, "tied", hidden_dim=9, num_heads=3),
        "odd validation": lambda: recipe.fit(inside, Batches(4), (x[:3], y[:3]), progress=False),
        "bool": lambda: recipe.fit(inside, masked, progress=False),
    }
    said = {}
    for name, attempt in attempts.items():
        try:
            attempt()
        except ValueError as error:
            said[name] = str(error)
    return said


def shards(recipe, name, by_hand=False):
    """Shape of each weight of a model, and of its slots, and the shape of what one device holds of it (JAX)."""
    import keras

    from keras_seqlm.devices import strategy

    scope = recipe.scope()
    if by_hand:
        mesh = strategy(recipe.distribution)._distribution.device_mesh
        layout_map = new_model(name).layout_map(mesh)
        scope = keras.distribution.ModelParallel(layout_map=layout_map, batch_dim_name="batch").scope()
    with scope:
        model, optimizer = new_model(name), keras.optimizers.AdamW()
        model.build()
        optimizer.build(model.trainable_variables)
    values = [variable.value for variable in [*model.trainable_variables, *optimizer.variables]]
    return [[value.shape, value.sharding.shard_shape(value.shape)] for value in values]


def main(*words):
    """Print the losses and weights of each case on one device and by each distribution, and what is refused.

    A word is a distribution; "data-parallel=tied,untied" is one for those cases alone. Of several processes the first one alone
    trains on one device, too.
    """
    import dataclasses

    distributions = [word.partition("=")[0] for word in words]
    only = {distribution: word.partition("=")[2] for distribution, word in zip(distributions, words, strict=True)}

    if "mirrored" in distributions:
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    from keras_seqlm.devices import strategy
    from keras_seqlm.training import Recipe

    replicas = {distribution: strategy(distribution).num_replicas for distribution in distributions}
    # The clip bites at each step, so that one made before the sum would show.
    single = Recipe(steps=20, batch_size=4, warmup_steps=2, learning_rate=0.01, clip_norm=0.3, validate_every=5)
    spread = [dataclasses.replace(single, distribution=distribution) for distribution in distributions]
    losses, weights, sums = {}, {}, {}
    first = os.environ.get("KERAS_DISTRIBUTION_PROCESS_ID", "0") == "0"
    for case in os.environ.get("CASES", " ".join(CASES)).split():
        name, options, data = CASES[case]
        one, before = train(single, name, options, **data) if first else (None, {})
        for recipe in spread:
            distribution = recipe.distribution
            if only[distribution] and case not in only[distribution].split(","):
                continue
            all_, after = train(recipe, name, options, **data)
            losses[f"{distribution} {case}"] = [one, all_]
            differences = {path: float(abs(before[path] - after[path]).max()) for path in before}
            weights[f"{distribution} {case}"] = differences
            sums[f"{distribution} {case}"] = [float(abs(weight).sum()) for weight in after.values()]
    result = {"replicas": replicas, "losses": losses, "weights": weights, "sums": sums}
    if "KERAS_DISTRIBUTION_NUM_PROCESSES" not in os.environ:
        result["refused"] = {recipe.distribution: refusals(recipe) for recipe in spread}
        cut = [recipe for recipe in spread if recipe.distribution.startswith("model-parallel")]
        result["shards"] = [
            [shards(recipe, name, by_hand) for by_hand in (False, True)] for recipe in cut for name in MODELS
        ]
    print(json.dumps(result))


if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={os.environ.get('DEVICES', 2)}"
    main(*sys.argv[1:])
