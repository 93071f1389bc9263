"""Which parts of a layer are quantised, and what its numbers are without quantisation.

The config keeps it, so that what is read back has the same parts.
"""

import keras
from keras import ops

from keras_seqlm.layers.embeddings import TokenEmbedding

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


def float_weights(layer):
    """The own weights of a layer in float32, quantised ones as the numbers that their integers and scales stand for.

    What `enable_lora` added is merged, as in a file. Of `float8` the weights are those that it trains.

    Returns:
        A dict `"0"`, `"1"` ... -> tensor: what `load_own_variables` of the same layer without quantisation takes.

    Raises:
        ValueError: a quantised layer of a kind that is not known here.
    """
    stored, mode = {}, layer.quantization_mode
    layer.save_own_variables(stored)
    stored = [ops.convert_to_numpy(value) for value in stored.values()]
    if mode is not None:
        if not isinstance(layer, (keras.layers.Dense, TokenEmbedding)):
            raise ValueError(
                f"{layer.name} is a quantised {type(layer).__name__}, whose numbers are not known here; leave it out by "
                "quantize(filters=...)"
            )
        stored = _embedding_weights(*stored) if isinstance(layer, TokenEmbedding) else _dense_weights(layer, stored)
    return {str(i): value if value.dtype.kind in "iub" else value.astype("float32") for i, value in enumerate(stored)}


def _embedding_weights(table, scale):
    return [table.astype("float32") / scale[:, None]]


def _dense_weights(layer, stored):
    names = [name for name in layer.variable_serialization_spec[layer.quantization_mode] if hasattr(layer, name)]
    held = dict(zip((name for name in names if name != "bias" or layer.use_bias), stored, strict=True))
    kernel, scale = held["kernel"], held["kernel_scale"].astype("float32")
    if layer.quantization_mode == "int4":
        kernel = ops.convert_to_numpy(keras.quantizers.unpack_int4(kernel, layer.units, axis=-1))
    if "g_idx" in held:  # scales and zeros of groups of rows
        groups = held["g_idx"].astype("int32")
        kernel = (kernel.astype("float32") - held["kernel_zero"][groups]) * scale[groups]
    elif layer.quantization_mode != "float8":
        kernel = kernel.astype("float32") / scale
    return [kernel, held["bias"]] if layer.use_bias else [kernel]


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
