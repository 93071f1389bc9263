"""Which parts of a layer are quantised: kept in its config, so that what is read back has the same parts."""

import keras

KEY = "quantization"


def quantizable_parts(layer):
    """The layers inside, itself included, that Keras can quantise: `Dense`, `TokenEmbedding` and others of that kind.

    They come in the order in which they were made, which is the same in every process and on every backend; names are
    not, where Keras gives them.
    """
    untouched = keras.layers.Layer.quantize
    parts = (part for part in layer._flatten_layers() if not isinstance(part, keras.Model))
    return [part for part in parts if type(part).quantize is not untouched]


def quantization_config(layer):
    """What the config of `layer` says of its quantised parts: {} if there are none, else one entry a part, or None."""
    parts = quantizable_parts(layer)
    if all(part.quantization_mode is None for part in parts):
        return {}
    serialize = keras.saving.serialize_keras_object
    return {
        KEY: [
            part.quantization_mode
            and {"dtype": serialize(part.dtype_policy), "config": serialize(getattr(part, "quantization_config", None))}
            for part in parts
        ]
    }


def restore_quantization(layer, entries):
    """Prepare the parts of a layer that is not built yet to be built as `quantization_config` found them.

    Args:
        layer: a layer just made, whose parts were made in its `__init__`.
        entries: what the config holds under `KEY`, or None.

    Returns:
        `layer`.

    Raises:
        ValueError: the layer has not as many parts as there are entries.
    """
    if entries is None:
        return layer
    parts = quantizable_parts(layer)
    if len(parts) != len(entries):
        raise ValueError(
            f"the config says of {len(entries)} parts of {type(layer).__name__} how they are quantised, and it has "
            f"{len(parts)}; every part must be made in __init__, and this must be the class that was saved"
        )
    for part, entry in zip(parts, entries, strict=True):
        if entry is not None:
            part.dtype_policy = keras.dtype_policies.get(entry["dtype"])
            part.quantization_config = keras.saving.deserialize_keras_object(entry["config"])
    return layer


class Quantizable(keras.layers.Layer):
    """A layer made of layers, which is saved and read with its parts quantised as they are.

    Its parts are made in `__init__`. A block of a quantised model can so be used and saved by itself.
    """

    def get_config(self):
        return {**super().get_config(), **quantization_config(self)}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        entries = config.pop(KEY, None)
        return restore_quantization(super().from_config(config), entries)
