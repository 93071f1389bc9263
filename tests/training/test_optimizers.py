"""What a recipe trains with, each against NumPy or against the run that it must equal."""

import dataclasses

import keras
import ml_dtypes
import numpy as np
import pytest
from cases import on_all
from keras import ops
from training_toy import VOCABULARY, Batches, compiled, new_model

from keras_seqlm.half_precision import refuse_lost_decays
from keras_seqlm.layers import TokenEmbedding
from keras_seqlm.nesting import innermost
from keras_seqlm.training import HistoryCSV, Recipe, read_history
from keras_seqlm.training.optimizers import decays, is_hidden_matrix, new_optimizer

pytestmark = pytest.mark.neutral

PLAIN = Recipe(
    steps=6, batch_size=4, learning_rate=0.05, schedule="constant", warmup_steps=0, weight_decay=0.2, validate_every=2
)


def array(tensor):
    return np.array(ops.convert_to_numpy(tensor), "float64")


def weights_of(model):
    return [array(weight) for weight in model.trainable_variables]


def clipped(gradients, norm):
    total = np.sqrt(sum((gradient**2).sum() for gradient in gradients))
    return [gradient * min(1.0, norm / total) for gradient in gradients]


def adamw(weight, gradients, rates, decay, beta_1=0.9, beta_2=0.99):
    """Loshchilov and Hutter 2019, algorithm 2, with the decay scaled by the learning rate, as in every library."""
    m = v = np.zeros_like(weight)
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        weight = weight - rate * decay * weight
        m, v = beta_1 * m + (1 - beta_1) * gradient, beta_2 * v + (1 - beta_2) * gradient**2
        weight = weight - rate * (m / (1 - beta_1**t)) / (np.sqrt(v / (1 - beta_2**t)) + 1e-7)
    return weight


def muon(weight, gradients, rates, decay, momentum=0.95):
    """Jordan et al. 2024: Nesterov momentum, made orthogonal by five Newton-Schulz steps; scaled as Liu et al. 2025."""
    m = np.zeros_like(weight)
    for gradient, rate in zip(gradients, rates, strict=True):
        weight = weight - rate * decay * weight
        m = momentum * m + gradient
        x = gradient + momentum * m
        wide = x.shape[0] <= x.shape[1]
        x = x if wide else x.T
        x = x / (np.linalg.norm(x) + 1e-7)
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        weight = weight - rate * 0.2 * np.sqrt(max(x.shape)) * (x if wide else x.T)
    return weight


def apply_random_gradients(model, updates=5):
    """Apply them by the model's optimizer; returns them, one list of arrays for each update.

    None is near 0, where Adam divides by nearly nothing and rounding shows.
    """
    random = np.random.default_rng(4)

    def gradient(shape):
        return (random.choice([-1, 1], shape) * random.uniform(0.5, 2.0, shape)).astype("float32")

    variables, optimizer = model.trainable_variables, innermost(model.optimizer)
    if not model.optimizer.built:
        model.optimizer.build(variables)
    steps = [[gradient(variable.shape) for variable in variables] for _ in range(updates)]
    for gradients in steps:
        optimizer.apply([ops.convert_to_tensor(gradient) for gradient in gradients], variables)
    return [[gradient.astype("float64") for gradient in gradients] for gradients in steps]


@pytest.mark.backends
@pytest.mark.parametrize("clip_norm", [None, 3.0])
def test_adamw_equals_numpy(clip_norm):
    recipe = dataclasses.replace(PLAIN, clip_norm=clip_norm, schedule="linear", warmup_steps=2)
    model = compiled(recipe, "tied")
    before = weights_of(model)
    steps = apply_random_gradients(model)
    if clip_norm is not None:
        steps = [clipped(gradients, clip_norm) for gradients in steps]
    rates = [0.05 / 3, 0.1 / 3, 0.05, 0.05 - 0.045 / 4, 0.05 - 0.045 / 2]
    for i, variable in enumerate(model.trainable_variables):
        decay = 0.2 if decays(variable) else 0.0
        expected = adamw(before[i], [gradients[i] for gradients in steps], rates, decay)
        np.testing.assert_allclose(array(variable), expected, rtol=0, atol=5e-6, err_msg=variable.path)


IDS = np.array([[1, 1, 1, 4], [4, 1, 0, 5]], "int32")


def table_after_adamw_on_repeated_ids(layer, table):
    model = keras.Sequential([keras.Input((4,), dtype="int32"), layer])
    layer.set_weights([table])
    # A clip of the norm would hide the fault of Keras's own: it makes gradients dense.
    recipe = dataclasses.replace(PLAIN, clip_norm=None, weight_decay=0.0)
    recipe.compile(model)
    model.jit_compile = keras.backend.backend() == "jax"
    for _ in range(3):
        model.train_on_batch(IDS, IDS % 3)
    return array(layer.weights[0])


@pytest.mark.backends
def test_adamw_on_repeated_ids_equals_numpy():
    """Keras's own Embedding fails this on TensorFlow, whose sparse gradient reaches Adam with its repeated rows unsummed."""
    table = np.random.default_rng(1).normal(size=(6, 3))
    weight, gradients = table, []
    for t in range(1, 4):
        probabilities = np.exp(weight[IDS]) / np.exp(weight[IDS]).sum(axis=-1, keepdims=True)
        gradient = np.zeros_like(table)
        np.add.at(gradient, IDS, (probabilities - np.eye(3)[IDS % 3]) / IDS.size)
        gradients.append(gradient)
        weight = adamw(table, gradients, [0.05] * t, decay=0.0)
    found = table_after_adamw_on_repeated_ids(TokenEmbedding(6, 3), table)
    np.testing.assert_allclose(found, weight, rtol=0, atol=1e-5)
    if keras.backend.backend() == "tensorflow":
        wrong = table_after_adamw_on_repeated_ids(keras.layers.Embedding(6, 3), table)
        assert np.abs(wrong - weight).max() > 1e-3, "Keras's own embedding is right now: ours has no reason left"


@pytest.mark.parametrize("name", on_all(["untied", "gru"], "untied"))
def test_muon_equals_numpy_and_leaves_both_ends_to_adamw(name):
    recipe = dataclasses.replace(PLAIN, optimizer="muon", clip_norm=None)
    model = compiled(recipe, name)
    before = weights_of(model)
    steps = apply_random_gradients(model, updates=3)
    of_muon = set()
    for i, variable in enumerate(model.trainable_variables):
        gradients, decay = [gradients[i] for gradients in steps], 0.2 if decays(variable) else 0.0
        by_muon = variable.path.endswith("kernel") and "output_projection" not in variable.path
        of_muon |= {"/".join(variable.path.split("/")[-2:])} if by_muon else set()
        expected = (muon if by_muon else adamw)(before[i], gradients, [0.05] * 3, decay)
        np.testing.assert_allclose(array(variable), expected, rtol=0, atol=1e-4, err_msg=variable.path)
    kernels = {"untied": {"qkv/kernel", "output/kernel", "up/kernel", "down/kernel"}}
    assert of_muon == kernels.get(name, {"gru_cell/kernel", "gru_cell/recurrent_kernel", "bridge/kernel"})


@pytest.mark.backends
def test_muon_trains_weights_in_bfloat16():
    """Near NumPy's update: Newton and Schulz's steps make much of bfloat16's rounding, and the direction stays."""
    recipe = dataclasses.replace(PLAIN, optimizer="muon", clip_norm=None, precision="bfloat16")
    with recipe.scope():
        dense = keras.layers.Dense(24)
        dense.build((None, 16))
    optimizer = innermost(new_optimizer(recipe, dense))
    before = weights_of(dense)
    random = np.random.default_rng(4)
    steps = [[ops.cast(random.standard_normal(v.shape), v.dtype) for v in dense.trainable_variables] for _ in range(2)]
    for gradients in steps:
        optimizer.apply(gradients, dense.trainable_variables)
    for i, (variable, update, decay) in enumerate(
        zip(dense.trainable_variables, (muon, adamw), (0.2, 0.0), strict=True)
    ):
        assert keras.backend.standardize_dtype(variable.dtype) == "bfloat16"
        moved = update(before[i], [array(gradients[i]) for gradients in steps], [0.05] * 2, decay) - before[i]
        assert np.linalg.norm(array(variable) - before[i] - moved) < 0.1 * np.linalg.norm(moved), variable.path


@pytest.mark.backends
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"beta_2": 0.999}, "adamw has beta_2=0.999"),
        ({"beta_1": 0.9999, "optimizer": "muon"}, "muon has beta_1=0.9999"),
        ({"ema": 0.999}, "ema=0.999"),
        ({"ema": 0.993, "accumulate": 4}, "ema=0.998"),
    ],
)
def test_decay_rates_that_bfloat16_rounds_to_1_are_refused(options, said):
    with pytest.raises(ValueError, match=f"{said}.*, which bfloat16 rounds to 1"):
        Recipe(precision="bfloat16", **options)
    model = new_model("tied", dtype="bfloat16")  # built outside of the recipe's precision
    model.build()
    with pytest.raises(ValueError, match="which bfloat16 rounds to 1"):
        Recipe(**options).compile(model)
    Recipe(precision="mixed_bfloat16", **options)
    Recipe(precision="bfloat16", optimizer="sgd", beta_2=0.999)  # which has no betas


def test_muon_leaves_the_last_layer_of_a_sequential_model_to_adamw():
    embedding, middle, last = keras.layers.Embedding(9, 4), keras.layers.Dense(5), keras.layers.Dense(9)
    model = keras.Sequential([keras.Input((3,), dtype="int32"), embedding, middle, last])
    assert is_hidden_matrix(middle.kernel, model)
    assert not any(is_hidden_matrix(v, model) for v in (embedding.embeddings, middle.bias, last.kernel))
    Recipe(optimizer="muon").compile(model)
    model.optimizer.build(model.trainable_variables)
    by_adamw = [velocity is not None for velocity in innermost(model.optimizer).adam_velocities]
    assert by_adamw == [True, False, True, True, True]


@pytest.mark.backends
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_saved_optimizer_goes_on_as_it_was(tmp_path, optimizer):
    model = compiled(dataclasses.replace(PLAIN, optimizer=optimizer, ema=0.9, accumulate=2), "untied")
    apply_random_gradients(model, updates=2)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for left, right in zip(model.optimizer.variables, again.optimizer.variables, strict=True):
        np.testing.assert_array_equal(array(left), array(right), err_msg=left.path)
    assert again.optimizer.get_config() == model.optimizer.get_config()


@pytest.mark.backends
def test_accumulation_equals_a_larger_batch():
    class Pairs:
        """Two batches of `Batches` as one."""

        def batches(self, first_step=0):
            while True:
                pair = [Batches().batch(step) for step in (2 * first_step, 2 * first_step + 1)]
                yield tuple(np.concatenate(parts) for parts in zip(*pair, strict=True))
                first_step += 1

    few = dataclasses.replace(PLAIN, accumulate=2, clip_norm=0.3)
    large = dataclasses.replace(PLAIN, batch_size=8, steps=3, validate_every=1, clip_norm=0.3)
    models = compiled(few, "bigram"), compiled(large, "bigram")
    few.fit(models[0], Batches(), progress=False)
    large.fit(models[1], Pairs(), progress=False)
    for left, right in zip(*map(weights_of, models), strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-5)


@pytest.mark.parametrize("accumulate", on_all([1, 2], 1))
def test_the_averaged_weights_are_validated_and_left_in_the_model(accumulate):
    recipe = dataclasses.replace(PLAIN, ema=0.8, accumulate=accumulate)
    held_out = Batches().batch(99)
    plain = compiled(dataclasses.replace(recipe, ema=None), "bigram")
    trajectory = []
    for step in range(6):
        plain.train_on_batch(*Batches().batch(step))
        trajectory.append(weights_of(plain))
    average, losses = trajectory[0], []
    for step, weights in enumerate(trajectory):
        if step >= accumulate:
            momentum = 0.8 ** (1 / accumulate)
            average = [momentum * a + (1 - momentum) * w for a, w in zip(average, weights, strict=True)]
        else:
            average = weights
        if step % 2:
            for variable, value in zip(plain.trainable_variables, average, strict=True):
                variable.assign(value.astype("float32"))
            losses.append(plain.evaluate(*held_out, batch_size=4, verbose=0))

    model = compiled(recipe, "bigram")
    history = recipe.fit(model, Batches(), held_out, progress=False).history
    np.testing.assert_allclose(history["val_loss"], losses, rtol=0, atol=1e-5)
    for left, right in zip(weights_of(model), average, strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-5)


@pytest.mark.backends
def test_validation_gives_the_weights_back_bit_for_bit():
    recipe = dataclasses.replace(PLAIN, ema=0.8, precision="bfloat16")
    models = compiled(recipe, "bigram"), compiled(recipe, "bigram")
    recipe.fit(models[0], Batches(), progress=False)
    recipe.fit(models[1], Batches(), Batches().batch(99), progress=False)
    for left, right in zip(*map(weights_of, models), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("name", on_all(["bigram", "tied"], "bigram"))
def test_label_smoothing_and_z_loss_are_in_the_loss(name):
    recipe = dataclasses.replace(PLAIN, label_smoothing=0.1, z_loss=0.01)
    model = compiled(recipe, name)
    x, y = Batches().batch(0)
    logits = array(model(x))
    log_sum = np.log(np.exp(logits).sum(-1))
    target = (1 - 0.1) * np.eye(VOCABULARY)[y] + 0.1 / VOCABULARY
    expected = (log_sum - (target * logits).sum(-1) + 0.01 * log_sum**2).mean()
    assert model.evaluate(x, y, batch_size=4, verbose=0) == pytest.approx(expected, rel=1e-5)


@pytest.mark.backends
def test_rematerialisation_changes_no_loss():
    recipe = dataclasses.replace(PLAIN, validate_every=1)
    losses = []
    for rematerialize in (False, True):
        recipe = dataclasses.replace(recipe, rematerialize=rematerialize)
        model = compiled(recipe, "tied", dropout=0.2)
        assert model.blocks[0].rematerialize is rematerialize
        losses.append(recipe.fit(model, Batches(), progress=False).history["loss"])
    np.testing.assert_allclose(*losses, rtol=0, atol=1e-5)


def test_rematerialisation_of_what_has_no_blocks_is_refused():
    with pytest.raises(ValueError, match="is for Transformer blocks"):
        compiled(Recipe(rematerialize=True), "lstm")


@pytest.mark.backends
def test_several_steps_in_one_call_train_as_one_by_one(tmp_path):
    several = dataclasses.replace(PLAIN, steps_per_execution=2, validate_every=4)
    if keras.backend.backend() == "torch":
        with pytest.raises(ValueError, match="needs the tensorflow or jax backend"):
            compiled(several, "tied")
        return
    models = []
    for recipe in (several, dataclasses.replace(several, steps_per_execution=1)):
        history = HistoryCSV(tmp_path / f"{recipe.steps_per_execution}.csv")
        models.append(compiled(recipe, "bigram"))
        recipe.fit(models[-1], Batches(), callbacks=[history], progress=False)
        assert [row["step"] for row in read_history(history.path)] == [4, 6]
    for left, right in zip(*map(weights_of, models), strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-6)


def test_steps_that_a_call_does_not_divide_are_refused():
    with pytest.raises(ValueError, match="steps must be a multiple of steps_per_execution = 4, got 6"):
        Recipe(steps=6, steps_per_execution=4)
    with pytest.raises(ValueError, match="validate_every must be a multiple of steps_per_execution = 4, got 6"):
        Recipe(steps=8, steps_per_execution=4, validate_every=6)


def test_compilation_is_the_recipes():
    for jit_compile in (True, False):
        model = new_model("tied")
        Recipe(jit_compile=jit_compile).compile(model)
        assert model.jit_compile is jit_compile


def test_a_recipe_of_before_these_fields_is_still_read():
    old = {
        field: getattr(PLAIN, field) for field in ("optimizer", "learning_rate", "schedule", "steps", "distribution")
    }
    recipe = Recipe.from_dict(old)
    assert (recipe.accumulate, recipe.ema, recipe.label_smoothing, recipe.z_loss) == (1, None, 0.0, 0.0)
    assert (recipe.rematerialize, recipe.steps_per_execution, recipe.jit_compile) == (False, 1, "auto")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_what_is_refused_is_what_the_dtype_rounds_to_1(dtype):
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    for decay in 1 - 2.0 ** -np.arange(4, 16, 0.5):
        if float(np.asarray(decay, kind)) == 1.0:
            with pytest.raises(ValueError, match=f"which {dtype} rounds to 1"):
                refuse_lost_decays({"beta_2": decay}, dtype, "adam")
        else:
            refuse_lost_decays({"beta_2": decay}, dtype, "adam")
