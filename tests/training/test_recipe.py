"""The recipe: its fields, its scope, its optimizer, and that `fit` trains on the right batches at the right steps."""

import dataclasses
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from cases import on_all
from training_toy import LENGTH, VOCABULARY, Batches, compiled, new_model

from keras_seqlm.nesting import innermost
from keras_seqlm.training import HistoryCSV, Recipe, SafeOptimizer, WarmupSchedule, read_history
from keras_seqlm.training.optimizers import decays

pytestmark = pytest.mark.neutral

SHORT = Recipe(steps=6, batch_size=4, warmup_steps=2, learning_rate=0.01, validate_every=1)


def test_json_round_trip(tmp_path):
    recipe = Recipe(optimizer="sgd", clip_norm=None, steps=np.int64(7), learning_rate=1, validate_every=3)
    recipe.to_json(tmp_path / "run" / "recipe.json")
    assert Recipe.from_json(tmp_path / "run" / "recipe.json") == recipe
    fields = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert fields["steps"] == 7 and fields["clip_norm"] is None
    assert Recipe.from_dict({}) == Recipe()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["recipe.json"]


def test_an_unknown_field_is_refused():
    with pytest.raises(ValueError, match="no field learning_rates"):
        Recipe.from_dict({"learning_rates": 1e-3})


@pytest.mark.parametrize(
    "field, value",
    [
        ("optimizer", "adamz"),
        ("optimizer", None),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", "fast"),
        ("schedule", "step"),
        ("warmup_steps", -1),
        ("final_learning_rate_fraction", 1.5),
        ("weight_decay", -0.1),
        ("beta_1", 1.0),
        ("beta_2", -0.1),
        ("clip_norm", 0.0),
        ("precision", "float8"),
        ("batch_size", 0),
        ("batch_size", True),
        ("steps", 2.5),
        ("seed", -1),
        ("distribution", "two"),
        ("validate_every", 0),
        ("decay_fraction", 0.0),
        ("accumulate", 0),
        ("accumulate", 2000),
        ("ema", 1.0),
        ("label_smoothing", 1.0),
        ("z_loss", -1e-4),
        ("rematerialize", 1),
        ("steps_per_execution", 0),
        ("jit_compile", "yes"),
    ],
)
def test_each_field_is_checked(field, value):
    with pytest.raises(ValueError, match=f"{field} must be"):
        Recipe(**{field: value})


@pytest.mark.backends
def test_scope_seeds_sets_the_precision_and_sets_it_back():
    before = keras.config.dtype_policy().name
    recipe = Recipe(precision="mixed_bfloat16", seed=5)
    weights = []
    for _ in range(2):
        with recipe.scope():
            model = new_model("tied")
            model.build()
        weights.append(model.get_weights())
        assert model.compute_dtype == "bfloat16" and model.variable_dtype == "float32"
    assert keras.config.dtype_policy().name == before
    for first, second in zip(*weights, strict=True):
        np.testing.assert_array_equal(first, second)
    with pytest.raises(RuntimeError, match="mine"), recipe.scope():
        raise RuntimeError("mine")
    assert keras.config.dtype_policy().name == before


@pytest.mark.parametrize("name", on_all(["untied", "lstm"], "lstm"))
def test_fit_equals_a_loop_over_the_batches(name):
    fitted = SHORT.fit(compiled(SHORT, name), Batches(), progress=False).history["loss"]
    model = compiled(SHORT, name)
    looped = [model.train_on_batch(*Batches().batch(step), return_dict=True)["loss"] for step in range(6)]
    np.testing.assert_allclose(fitted, looped, rtol=0, atol=2e-6)


class StopAt(keras.callbacks.Callback):
    def __init__(self, path, epoch):
        super().__init__()
        self.path, self.epoch = path, epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            self.model.save(self.path)
            self.model.stop_training = True


@pytest.mark.backends
def test_a_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    whole = SHORT.fit(compiled(SHORT, "tied"), Batches(), progress=False).history["loss"]
    path = tmp_path / "model.keras"
    history = HistoryCSV(tmp_path / "history.csv")
    SHORT.fit(compiled(SHORT, "tied"), Batches(), callbacks=[history, StopAt(path, 3)], progress=False)
    model = keras.saving.load_model(path)
    model.jit_compile = keras.backend.backend() == "jax"
    rest = SHORT.fit(model, Batches(), callbacks=[history], first_step=4, progress=False).history["loss"]
    np.testing.assert_allclose(rest, whole[4:], rtol=0, atol=1e-6)
    rows = read_history(tmp_path / "history.csv")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose([row["loss"] for row in rows], whole, rtol=1e-5)
    assert all(a["seconds"] <= b["seconds"] for a, b in zip(rows, rows[1:], strict=False))


def test_a_longer_recipe_stretches_the_learning_rate():
    model = compiled(SHORT, "bigram")
    SHORT.fit(model, Batches(), progress=False)
    longer = dataclasses.replace(SHORT, steps=10)
    longer.fit(model, Batches(), first_step=6, progress=False)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.001, rel=1e-4)
    assert int(model.optimizer.iterations) == 10
    assert innermost(model.optimizer).get_config()["learning_rate"]["config"]["steps"] == 10


def test_a_first_step_that_does_not_fit_is_refused():
    model = compiled(SHORT, "bigram")
    with pytest.raises(ValueError, match="first_step=0, or start over"):
        SHORT.fit(model, Batches(), first_step=2)
    with pytest.raises(ValueError, match="between 0 and steps - 1 = 5"):
        SHORT.fit(model, Batches(), first_step=6)
    with pytest.raises(ValueError, match=r"batches\(first_step\)"):
        SHORT.fit(model, Batches().batch(0), first_step=2)


def test_the_last_piece_may_be_short(tmp_path):
    recipe = dataclasses.replace(SHORT, steps=5, validate_every=2)
    history = recipe.fit(
        compiled(recipe, "bigram"),
        Batches(),
        Batches().batch(99),
        callbacks=[HistoryCSV(tmp_path / "history.csv")],
        progress=False,
    )
    assert len(history.history["loss"]) == len(history.history["val_loss"]) == 3
    rows = read_history(tmp_path / "history.csv")
    assert [row["step"] for row in rows] == [2, 4, 5]
    assert rows[-1]["learning_rate"] == pytest.approx(float(recipe.learning_rate_schedule()(4)), rel=1e-5)


def test_batches_of_another_size_than_the_recipe_says_are_refused():
    with pytest.raises(ValueError, match="batch_size=4, and the data has batches of 6 rows"):
        SHORT.fit(compiled(SHORT, "bigram"), Batches(rows=6))


@pytest.mark.parametrize("name", on_all(["tied", "gru"], "tied"))
def test_weight_decay_pulls_at_matrices_and_token_tables_only(name):
    from keras_seqlm.models import RecurrentLM

    recipe = Recipe(learning_rate=0.1, warmup_steps=0, weight_decay=0.5)
    model = RecurrentLM(VOCABULARY, cell="gru", size="nano", hidden_dim=8) if name == "gru" else new_model("tied")
    recipe.compile(model)
    for variable in model.trainable_variables:
        variable.assign(np.ones(variable.shape, "float32"))
    model.optimizer.apply([keras.ops.zeros(v.shape) for v in model.trainable_variables], model.trainable_variables)
    for variable in model.trainable_variables:
        value = keras.ops.convert_to_numpy(variable.value)
        kept = len(variable.shape) < 2 or "bias" in variable.name or "/positions/" in variable.path
        assert decays(variable) is not kept
        np.testing.assert_allclose(value, 1.0 if kept else 0.95, rtol=1e-6, err_msg=variable.path)
    assert {decays(variable) for variable in model.trainable_variables} == {True, False}


def test_the_optimizer_has_the_numbers_of_the_recipe():
    model = new_model("tied")
    Recipe(optimizer="Adam", beta_2=0.95, weight_decay=0.0, clip_norm=None, schedule="linear").compile(model)
    assert type(model.optimizer) is SafeOptimizer
    optimizer = innermost(model.optimizer)
    config = optimizer.get_config()
    assert type(optimizer).__name__ == "Adam"  # torch has a class of its own
    assert (config["beta_1"], config["beta_2"], config["weight_decay"], config["global_clipnorm"]) == (
        0.9,
        0.95,
        0.0,
        None,
    )
    assert isinstance(optimizer._learning_rate, WarmupSchedule)
    Recipe(optimizer="sgd").compile(new_model("tied"))


def test_a_model_without_weights_is_refused():
    class Plain(keras.Model):
        def build(self, input_shape):
            self.built = True

    with pytest.raises(ValueError, match="call it once on a batch"):
        Recipe().compile(Plain())


def test_plain_compile_and_fit_need_no_recipe():
    model = new_model("lstm")
    model.compile("adamw", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    history = model.fit(*Batches(rows=8).batch(0), batch_size=4, epochs=2, verbose=0)
    assert history.history["loss"][1] < history.history["loss"][0]


def test_text_to_trained_model_through_the_data_room(tmp_path):
    from keras_seqlm.data import causal_blocks
    from keras_seqlm.tokenizers import ByteTokenizer

    (tmp_path / "text.txt").write_text("the quick brown fox. " * 60)
    tokenizer = ByteTokenizer()
    train, validation = causal_blocks(
        str(tmp_path / "text.txt"), tokenizer, LENGTH, 4, segment_ids=True, cache_dir=tmp_path / "cache"
    )
    recipe = dataclasses.replace(SHORT, steps=60, validate_every=30, learning_rate=0.02)
    with recipe.scope():
        from keras_seqlm.models import TransformerLM

        model = TransformerLM(tokenizer.vocabulary_size, num_layers=1, hidden_dim=16, num_heads=2, max_length=LENGTH)
    history = HistoryCSV(tmp_path / "history.csv")
    recipe.compile(model)
    model.jit_compile = keras.backend.backend() == "jax"
    recipe.fit(model, train, validation, callbacks=[history], progress=False)
    first, last = read_history(tmp_path / "history.csv")
    assert last["validation_loss"] < first["validation_loss"] < np.log(tokenizer.vocabulary_size)
    nats_per_byte = last["validation_loss"] * validation.num_targets / validation.num_bytes
    assert last["validation_bits_per_byte"] == pytest.approx(nats_per_byte / np.log(2), rel=1e-4)


def test_a_recipe_and_a_saved_model_load_where_only_the_package_was_imported(tmp_path):
    model = new_model("tied")
    SHORT.compile(model)
    model.save(tmp_path / "model.keras")
    program = (
        f"import keras, keras_seqlm; print(keras.saving.load_model({str(tmp_path / 'model.keras')!r}).optimizer.name)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-1500:]


def test_making_a_recipe_starts_no_device(forks):
    program = (
        "import tensorflow as tf; from keras_seqlm.training import Recipe; Recipe(); cpu = tf.config.list_physical_devices('CPU')[0];"
        "tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)"
    )
    done = forks("tensorflow").run([sys.executable, "-c", program], timeout=120)
    assert done.returncode == 0, done.stderr[-1500:]
