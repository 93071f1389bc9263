"""LoRA on a whole model: adapters beside its kernels, the model that has them, and the one into which they are merged."""

import hashlib

import numpy as np
from keras import ops

from keras_seqlm.layers.lora import LowRank
from keras_seqlm.models.heads import Head
from keras_seqlm.models.sequence_model import ADAPTERS, SequenceModel, adaptable

KERNELS = ("q", "k", "v", "output", "feed_forward", "input", "recurrent")  # what is adapted where nobody says otherwise


def add_lora(model, rank, alpha=None, on=None):
    """The model with a low-rank adapter beside each kernel of some kinds; all else of it but a head is frozen.

    At first it computes what `model` does. Compile and fit it as any: only adapters, and the layers of a head, are trained, and
    have slots in the optimizer. Its files and checkpoints hold base and adapters apart; `merge_lora` makes them one.

    Args:
        model: a language model, an encoder, or a head on one, whose backbone is adapted then. It stays as it is, and shares no
            weights with the result.
        rank: r, of each adapter.
        alpha: the update is (alpha / r) x A B; default r, which scales by 1.
        on: names of what is adapted: "q", "k", "v" and "output" of attention, each with its own adapter also where one kernel
            holds them; "feed_forward"; "input" and "recurrent" of recurrent layers, whose gates share one; "embedding", the table
            of tokens. Default all that the model has but the table.

    Returns:
        A model of the same class.

    Raises:
        ValueError: a model that is quantised or has adapters already, a name that nothing in it has, a rank or an alpha that
            cannot be.

    Example:

    >>> from keras_seqlm.models import Classifier, TransformerEncoder
    >>> model = Classifier(TransformerEncoder(vocabulary_size=260, size="nano", max_length=32), num_classes=3)
    >>> model.build()
    >>> tuned = add_lora(model, rank=4, on=("q", "v"))
    >>> sum(int(np.prod(weight.shape)) for weight in tuned.trainable_weights), model.count_params()
    (3363, 252195)

    Reference: Hu et al. 2021, arXiv:2106.09685.
    """
    if not isinstance(model, SequenceModel):
        raise ValueError(
            f"add_lora takes a model of keras_seqlm, got {type(model).__name__}; layers of Keras's have enable_lora"
        )
    below = model.backbone if isinstance(model, Head) else model
    if below.lora is not None:
        raise ValueError("the model has adapters already: merge_lora(model) makes them a part of it, then add others")
    if any(layer.quantization_mode is not None for layer in model._flatten_layers()):
        raise ValueError("the model is quantised; add adapters before, and quantise what merge_lora gives")
    known = parts_of(below)
    names = [name for name in KERNELS if name in known] if on is None else list(dict.fromkeys(on))
    if not names or set(names) - set(known):
        raise ValueError(
            f"on must name parts that {type(below).__name__} has, {', '.join(known)}; got {', '.join(names) or on}"
        )
    alpha = rank if alpha is None else alpha
    if not model.built:
        model.build()
    config = model.get_config()
    inner = config["backbone"]["config"] if isinstance(model, Head) else config
    inner |= {
        "trainable": True,
        ADAPTERS: {"rank": rank, "alpha": alpha, "on": names},
    }  # also of a backbone that was frozen
    tuned = type(model).from_config(config)
    tuned.build()
    for ours, theirs in zip(without_adapters(tuned), model.weights, strict=True):
        ours.assign(theirs)
    return tuned


def merge_lora(model):
    """The model without adapters, whose kernels have their updates in them: the same numbers, up to rounding.

    Args:
        model: what `add_lora` gave, which stays as it is; one without adapters is given back.

    Example:

    >>> from keras_seqlm.models import RecurrentLM
    >>> model = RecurrentLM(vocabulary_size=260, cell="gru", size="nano")
    >>> merged = merge_lora(add_lora(model, rank=2))
    >>> merged.lora is None, merged.count_params() == model.count_params()
    (True, True)
    """
    if not has_lora(model):
        return model
    merged = type(model).from_config(_without(model.get_config()))
    merged.build()
    layers = [layer for layer in model._flatten_layers() if hasattr(layer, "adapted")]
    updates = {id(kernel): adapter for layer in layers for kernel, adapter in layer.adapted()}
    for ours, theirs in zip(merged.weights, without_adapters(model), strict=True):
        adapter = updates.get(id(theirs))
        ours.assign(theirs if adapter is None else ops.cast(theirs, "float32") + adapter.update())
    return merged


def has_lora(model):
    """Whether a model, or the backbone of a head, has adapters."""
    below = model.backbone if isinstance(model, Head) else model
    return getattr(below, "lora", None) is not None


def parts_of(model):
    """Names of what in a model can be adapted."""
    found = {name for layer in model._flatten_layers() for name in adaptable(layer)}
    return [*(name for name in KERNELS if name in found), *sorted(found - set(KERNELS))]


def without_adapters(model):
    """The weights of a model without those of its adapters, in their order: those of the model that `add_lora` was given."""
    own = _of_adapters(model)
    return [weight for weight in model.weights if id(weight) not in own]


def base_of(model):
    """The frozen weights of a model with adapters, in the order of `backbone_of(model).weights` before it had some."""
    return without_adapters(model.backbone if isinstance(model, Head) else model)


def learned(model):
    """The weights of a model with adapters that are not its base: the adapters', and a head's."""
    base = {id(weight) for weight in base_of(model)}
    return [weight for weight in model.weights if id(weight) not in base]


def content_of(weights):
    """A SHA-256 of the numbers, shapes and dtypes of weights, in their order."""
    found = hashlib.sha256()
    for weight in weights:
        values = np.ascontiguousarray(ops.convert_to_numpy(weight))
        found.update(f"{values.dtype} {values.shape} ".encode() + values.tobytes())
    return found.hexdigest()


def _of_adapters(model):
    adapters = [layer for layer in model._flatten_layers() if isinstance(layer, LowRank)]
    return {id(weight) for adapter in adapters for weight in adapter.weights}


def _without(config):
    """A config in which no model has adapters."""
    if isinstance(config, dict):
        return {key: _without(value) for key, value in config.items() if key != ADAPTERS}
    return config
