"""What a model's own config says, value by value, as far as it is the same in every process that builds the model."""

from keras_seqlm.checkpoints import state

# Names, and what they stand for in the list of classes, are counted anew in each process; seeds and shapes are of the state.
_LEFT_OUT = {"name", "seed", "module", "registered_name", "build_config", "build_input_shape", "compile_config"}
_LEFT_OUT |= {"shared_object_id"}
_NODES = ("inbound_nodes", "input_layers", "output_layers")  # they name layers
_OF_NO_NODE = {"class_name", "shape", "dtype", *_LEFT_OUT}
PLAIN = (bool, int, float, str, type(None))


def config_of(model):
    """Place -> value of a model's config, as `layers.1.activation`; nothing where Keras cannot say it."""
    return values_of(state.config_of(model))


def values_of(config):
    """The same of what a checkpoint's `meta["model"]` holds, or of None.

    Example:

    >>> values_of({"class_name": "Dense", "config": {"name": "dense_1", "units": 4, "activation": "relu"}})
    {'class': 'Dense', 'units': 4, 'activation': 'relu'}
    """
    found = {}
    _walk("", config, found, {})
    return found


def _walk(place, value, found, numbers):
    """Add the values of one part of a config; `numbers` counts the layers by their names."""
    if isinstance(value, dict):
        _walk_dict(place, value, found, numbers)
    elif isinstance(value, list | tuple) and not all(isinstance(one, PLAIN) for one in value):
        # Whether a model that takes what it is first called with has an input layer depends on when it is asked.
        parts = [one for one in value if not (isinstance(one, dict) and _counted(one, numbers) == "InputLayer")]
        found[f"{place}.count".lstrip(".")] = len(parts)
        for number, one in enumerate(parts):
            _walk(f"{place}.{number}", one, found, numbers)
    elif isinstance(value, PLAIN) or isinstance(value, list | tuple):
        found[place.lstrip(".")] = list(value) if isinstance(value, tuple) else value


def _walk_dict(place, value, found, numbers):
    kind = _counted(value, numbers)
    if kind == "__lambda__":
        return  # its code, which is another in each version of Python
    if kind is not None:
        found[f"{place}.class".lstrip(".")] = kind
        if "DTypePolicy" in str(kind):  # its name is what it is
            found[place.lstrip(".")] = value.get("config", {}).get("name")
    for name, one in value.items():
        if name in _NODES:
            found[f"{place}.{name}".lstrip(".")] = list(_leaves(one, numbers))
        elif name == "config" and kind is not None:
            _walk(place, one, found, numbers)
        elif name not in _LEFT_OUT | {"class_name"}:
            _walk(f"{place}.{name}", one, found, numbers)


def _counted(value, numbers):
    """The class of a part, whose name is given a number."""
    inner = value.get("config")
    name = value.get("name") or (inner.get("name") if isinstance(inner, dict) else None)
    if isinstance(name, str):
        numbers.setdefault(name, len(numbers))
    return value.get("class_name")


def _leaves(value, numbers):
    """What stands in the nodes of a layer, in order, with numbers in place of names of layers."""
    if isinstance(value, dict):
        for name, one in value.items():
            if name not in _OF_NO_NODE:
                yield from _leaves(one, numbers)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _leaves(one, numbers)
    else:
        yield numbers.get(value, value) if isinstance(value, str) else value
