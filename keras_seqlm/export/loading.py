"""The model as an export sees it: read back from its run folder, at float32, without cuDNN.

A quantised model is seen as the float32 weights that its integers and scales stand for, and not as its products of
integers: an artifact has the numbers of the weights, without the rounding of activations that Keras adds to them, and
may be quantised by the means of its own format.
"""

import pathlib

from keras_seqlm.layers.quantization import KEY, float_weights
from keras_seqlm.models import SequenceModel, merge_lora
from keras_seqlm.tasks import FillMask, RowTask, TextGeneration, load


def load_at_float32(run_folder):
    """The task of a run folder, its model rebuilt with every dtype policy at float32 and the weights copied.

    Raises:
        ValueError: the rebuilt model has other weights than the saved one.
    """
    task = _exported(run_folder)
    task.model = at_float32(task.model)
    return task


def load_reference(run_folder):
    """The same for the side that an export is compared with: a model saved at float32 is taken as it is.

    Were it rebuilt here as well, a fault of the rebuilding would stand on both sides and show on neither.
    """
    task = _exported(run_folder)
    task.model = merge_lora(task.model)
    policies = {layer.dtype_policy.name for layer in task.model._flatten_layers()}
    below = getattr(task.model, "backbone", task.model)
    if policies != {"float32"} or getattr(below, "use_cudnn", False) is True:
        task.model = at_float32(task.model)
    return task


def _exported(run_folder):
    task = load(pathlib.Path(run_folder))
    if not isinstance(task, TextGeneration) and not answers_rows(task):
        raise ValueError(
            f"{run_folder} holds a {type(task).__name__}, whose model reads a source before it writes, and encoder-decoders are "
            "not exported yet: use it in Python, or by `seqlm predict`"
        )
    return task


def answers_rows(task):
    """Whether a task answers rows, and is exported as `seqlm_runtime.row_tasks` has it."""
    return isinstance(task, RowTask | FillMask)


def at_float32(model):
    """A copy of `model` with every dtype policy in its config set to float32 and cuDNN switched off.

    Adapters are merged first. Quantised weights become the float32 weights that they stand for: see `keras_seqlm.layers.quantization.float_weights`.
    """
    if not isinstance(model, SequenceModel):
        raise ValueError(f"expected a model of keras_seqlm, got {type(model).__name__}")
    model = merge_lora(model)
    copy = type(model).from_config(_rewritten(model.get_config()))
    copy.build()
    # In order, since paths need not be unique: a layer that is built before its owner has a path without it.
    ours, theirs = copy._flatten_layers(), model._flatten_layers()
    told = "the model rebuilt from its config has other weights than the saved one"
    if len(ours) != len(theirs):
        raise ValueError(f"{told}: they lie in {len(ours)} layers, and not in {len(theirs)}")
    for part, saved in zip(ours, theirs, strict=True):
        weights = float_weights(saved)
        try:
            part.load_own_variables(weights)
        except ValueError as error:
            raise ValueError(f"{told}, in its layer {saved.name}: {error}") from error
    return copy


def _rewritten(config):
    if isinstance(config, dict):
        if config.get("class_name", "").endswith("DTypePolicy"):
            return "float32"
        return {
            key: "float32" if key == "dtype" else False if key == "use_cudnn" else _rewritten(value)
            for key, value in config.items()
            if key != KEY
        }
    if isinstance(config, list):
        return [_rewritten(value) for value in config]
    return config
