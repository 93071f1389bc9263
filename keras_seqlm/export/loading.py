"""The model as an export sees it: read back from its run folder, at float32, without cuDNN."""

import pathlib

import keras

from keras_seqlm.models import LanguageModel
from keras_seqlm.tasks import load


def load_at_float32(run_folder):
    """The task of a run folder, its model rebuilt with every dtype policy at float32 and the weights copied by path.

    Raises:
        ValueError: the rebuilt model has other weights than the saved one.
    """
    task = load(pathlib.Path(run_folder))
    task.model = at_float32(task.model)
    return task


def at_float32(model):
    """A copy of `model` with every dtype policy in its config set to float32 and cuDNN switched off."""
    if not isinstance(model, LanguageModel):
        raise ValueError(f"expected a LanguageModel, got {type(model).__name__}")
    config = _rewritten(model.get_config())
    copy = type(model).from_config(config)
    copy.build()
    weights = {variable.path: variable for variable in model.weights}
    missing = [variable.path for variable in copy.weights if variable.path not in weights]
    if missing:
        raise ValueError(f"the model rebuilt at float32 has weights that the saved one lacks: {missing[:5]}")
    for variable in copy.weights:
        variable.assign(keras.ops.cast(weights[variable.path], variable.dtype))
    return copy


def _rewritten(config):
    if isinstance(config, dict):
        if config.get("class_name", "").endswith("DTypePolicy"):
            return "float32"
        return {
            key: "float32" if key == "dtype" else False if key == "use_cudnn" else _rewritten(value)
            for key, value in config.items()
        }
    if isinstance(config, list):
        return [_rewritten(value) for value in config]
    return config
