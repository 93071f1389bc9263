"""The model as an export sees it: read back from its run folder, at float32, without cuDNN."""

import pathlib

import keras

from keras_seqlm.models import LanguageModel
from keras_seqlm.tasks import load


def load_at_float32(run_folder):
    """The task of a run folder, its model rebuilt with every dtype policy at float32 and the weights copied.

    Raises:
        ValueError: the rebuilt model has other weights than the saved one.
    """
    task = load(pathlib.Path(run_folder))
    task.model = at_float32(task.model)
    return task


def load_reference(run_folder):
    """The same for the side that an export is compared with: a model saved at float32 is taken as it is.

    Were it rebuilt here as well, a fault of the rebuilding would stand on both sides and show on neither.
    """
    task = load(pathlib.Path(run_folder))
    policies = {layer.dtype_policy.name for layer in task.model._flatten_layers()}
    if policies != {"float32"} or getattr(task.model, "use_cudnn", False) is True:
        task.model = at_float32(task.model)
    return task


def at_float32(model):
    """A copy of `model` with every dtype policy in its config set to float32 and cuDNN switched off."""
    if not isinstance(model, LanguageModel):
        raise ValueError(f"expected a LanguageModel, got {type(model).__name__}")
    copy = type(model).from_config(_rewritten(model.get_config()))
    copy.build()
    # In order, since paths need not be unique: a layer that is built before its owner has a path without it.
    ours, theirs = ([(variable.name, tuple(variable.shape)) for variable in one.weights] for one in (copy, model))
    if ours != theirs:
        odd = next(
            (pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]), f"{len(ours)} and {len(theirs)}"
        )
        raise ValueError(f"the model rebuilt from its config has other weights than the saved one: {odd}")
    for variable, saved in zip(copy.weights, model.weights, strict=True):
        variable.assign(keras.ops.cast(saved, variable.dtype))
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
