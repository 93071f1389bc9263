"""What a run with adapters has learned, as a small file beside the run that it began with: adapters and head, unmerged."""

import json
import os
import pathlib

import keras
from keras import ops

from keras_seqlm.checkpoints.state import config_of
from keras_seqlm.files import replacing
from keras_seqlm.models import backbone_of
from keras_seqlm.models.adapters import base_of, content_of, has_lora, learned

FORMAT = 1


def save_adapters(model, path, base):
    """Write the adapters and the head of a model, and which base they stand on.

    Args:
        model: with adapters (`models.add_lora`).
        path: of the file.
        base: the run folder whose model the adapters were added to. Kept is the way to it from the file, and a hash of its
            numbers.

    Raises:
        ValueError: the model has no adapters.
    """
    from safetensors.numpy import save_file

    if not has_lora(model):
        raise ValueError("the model has no adapters: save it whole, or begin with models.add_lora")
    weights = learned(model)
    about = {
        "format": FORMAT,
        "base": pathlib.PurePath(os.path.relpath(base, pathlib.Path(path).parent)).as_posix(),
        "base_content": content_of(base_of(model)),
        "model": config_of(model),
        "paths": [weight.path for weight in weights],
    }
    arrays = {f"{i:05d}": ops.convert_to_numpy(weight) for i, weight in enumerate(weights)}
    with replacing(path) as beside:
        save_file(arrays, beside, {"about": json.dumps(about)})


def about_adapters(path):
    """What a file of adapters says of itself: `base`, `base_content`, `model`, `paths`.

    Raises:
        ValueError: it is damaged, or of another version.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})["about"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is no file of adapters, or damaged: {error}; train again or restore it from a copy"
        ) from error
    if about.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {about.get('format')}, and this version of keras_seqlm reads {FORMAT}; use the one that wrote it"
        )
    return about


def load_adapters(path, load, base=None):
    """The model of a file of adapters on its base, unmerged.

    Args:
        path: of the file.
        load: `tasks.load`.
        base: the run folder of the base, where it is not where the file says.

    Raises:
        FileNotFoundError: the base is not there.
        ValueError: the base has other numbers than those that the adapters were made for, or the file is damaged.
    """
    from safetensors.numpy import load_file

    path, about = pathlib.Path(path), about_adapters(path)
    folder = pathlib.Path(os.path.normpath(path.parent / about["base"])) if base is None else pathlib.Path(base)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{path} holds adapters for the model of {folder}, which is not there: bring that run back, or say where it is "
            "(in Python: tasks.load(..., base=FOLDER))"
        )
    model = keras.saving.deserialize_keras_object(about["model"])
    if not model.built:
        model.build()
    theirs = backbone_of(load(folder).model).weights
    found = content_of(theirs)
    if found != about["base_content"]:
        raise ValueError(
            f"{path} holds adapters for the model of {about['base']} as it was, of content {about['base_content'][:12]}; that of "
            f"{folder} has content {found[:12]}: it was trained on, or is another run. Restore it from a copy, or train the adapters anew"
        )
    for ours, weight in zip(base_of(model), theirs, strict=True):
        ours.assign(weight)
    arrays, weights = load_file(path), learned(model)
    shapes = [tuple(weight.shape) for weight in weights]
    if [arrays[name].shape for name in sorted(arrays)] != shapes:
        raise ValueError(f"{path} is damaged: it does not hold the weights of the model that it names")
    for weight, name in zip(weights, sorted(arrays), strict=True):
        weight.assign(arrays[name])
    return model
