"""Names that Keras and JAX do not promise, and that we rely on: each is listed here, and stands in the version in use."""

import ast
import pathlib

import keras
import pytest

ROOT = pathlib.Path(__file__).parents[1]
OURS = {"_rows", "_number", "_starts", "_block_starts", "_take", "_mean_since"}  # of another object of our own
SYSTEM = {"os", "sys", "self", "cls"}
OF_MODELS = {"_flatten_layers", "_loss_tracker", "_seed_generators", "_compile_loss", "_compile_metrics"}
OF_COMPILED_METRICS = {"_flat_metrics", "_flat_weighted_metrics"}
OF_COMPILED_LOSSES = {"_user_loss_weights"}
OF_OPTIMIZERS = {
    "_clip_gradients",
    "_trainable_variables",
    "_model_variables_moving_average",
    "_iterations",
    "_learning_rate",
    "_accumulated_gradients",
    "_use_weight_decay",
    "_apply_weight_decay",
    "_var_key",
}
OF_BACKENDS = {
    "_all_reduce_sum_gradients": "tensorflow",  # of an optimizer
    "_distribute_strategy": "tensorflow",  # of a model
    "_jax_state": "jax",
    "_jax_state_synced": "jax",
    "_should_torch_compile": "torch",
    "_parallel_update_step": "torch",  # of an optimizer
    "_u_product": "torch",  # of Nadam, on each backend; looked at on torch
    "_layout": "jax",  # of a variable
    "_cache_size": "jax",  # of a function that JAX has compiled
}


def private_names(path):
    """Private attributes of objects of others in a file, also those that `getattr` names."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id in SYSTEM):
            name = node.attr
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr"):
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
        else:
            continue
        if name.startswith("_") and not name.startswith("__"):
            yield name


def test_every_private_name_is_listed():
    found = {name for path in (ROOT / "keras_seqlm").rglob("*.py") for name in private_names(path)}
    listed = OF_MODELS | OF_COMPILED_METRICS | OF_COMPILED_LOSSES | OF_OPTIMIZERS | set(OF_BACKENDS) | OURS
    assert found - listed == set(), "list it here, with the object that must have it"
    assert listed - found == set(), "nobody relies on it any more"


@pytest.mark.backends
def test_keras_has_them(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dropout(0.5, seed=1), keras.layers.Dense(1)])
    optimizer = keras.optimizers.Adam(0.1, use_ema=True, gradient_accumulation_steps=2)
    model.compile(optimizer, "mse", metrics=["mae"])
    model.train_on_batch(keras.ops.ones((2, 3)), keras.ops.ones((2, 1)))
    assert all(hasattr(model, name) for name in OF_MODELS - {"_seed_generators"})
    assert hasattr(model.layers[0], "_seed_generators")
    assert all(hasattr(model._compile_loss, name) for name in OF_COMPILED_LOSSES)
    assert all(hasattr(model._compile_metrics, name) for name in OF_COMPILED_METRICS)
    assert all(hasattr(optimizer, name) for name in OF_OPTIMIZERS)
    assert len(optimizer._model_variables_moving_average) == len(optimizer._trainable_variables) == 2
    from keras.src.random.seed_generator import global_seed_generator

    assert isinstance(global_seed_generator(), keras.random.SeedGenerator)
    remembered = (
        keras.callbacks.EarlyStopping(),
        keras.callbacks.ReduceLROnPlateau(),
        keras.callbacks.ModelCheckpoint("a.keras"),
        keras.callbacks.OrbaxCheckpoint(str(tmp_path)),
        keras.callbacks.TensorBoard(str(tmp_path)),
    )
    from keras_seqlm.training.callback_state import OF_KERAS

    for callback in remembered:
        if not isinstance(callback, keras.callbacks.TensorBoard):  # which begins a file
            callback.set_model(model)
            callback.on_train_begin()
        assert all(hasattr(callback, name) for name in OF_KERAS[type(callback)]), type(callback)


@pytest.mark.backends
def test_the_backend_has_them():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    backend = keras.backend.backend()
    nadam = keras.optimizers.Nadam()
    nadam.build(model.trainable_variables)
    objects = [model, model.optimizer, nadam, *model.variables]
    if backend == "jax":
        import jax

        model.jax_state_sync()
        objects.append(jax.jit(lambda x: x))
    names = {name for name, of in OF_BACKENDS.items() if of == backend}
    assert names
    made = {"_jax_state", "_jax_state_synced"}  # while `fit` runs
    for name in names - made:
        assert any(hasattr(one, name) for one in objects), name


@pytest.mark.backends
def test_a_fit_shows_its_callbacks_and_its_state():
    from keras_seqlm.training.running import callback_list, callbacks_of, fit_of, is_fitting

    seen = {}

    class Look(keras.callbacks.Callback):
        def set_model(self, model):
            super().set_model(model)
            seen["early"] = callbacks_of(model)

        def on_train_batch_begin(self, batch, logs=None):
            seen["frame"], seen["list"] = fit_of(self._model) is not None, callback_list(self._model)
            seen["running"], seen["state"] = is_fitting(self._model), getattr(self._model, "_jax_state", "none")
            seen["synced"] = getattr(self._model, "_jax_state_synced", "none")

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    look = Look()
    model.fit(keras.ops.ones((2, 3)), keras.ops.ones((2, 1)), callbacks=[look], verbose=0)
    assert seen["early"] == [look] and seen["frame"] and seen["running"] and look in seen["list"].callbacks
    assert not is_fitting(model) and fit_of(model) is None
    assert (seen["synced"] == "none") == (keras.backend.backend() != "jax")


def test_keras_has_an_upper_bound():
    assert '"keras>=3.15,<3.16"' in (ROOT / "pyproject.toml").read_text()
