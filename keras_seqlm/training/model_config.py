"""What a model is made of, value by value, as far as it is the same in every process that builds the model."""

import functools
import types

import keras

from keras_seqlm.checkpoints import state
from keras_seqlm.checkpoints.carried import attributes_of
from keras_seqlm.training.code import code_of, is_users, names_in

# Names, and what they stand for in the list of classes, are counted anew in each process; seeds and shapes are of the state.
_LEFT_OUT = {"name", "seed", "module", "registered_name", "build_config", "build_input_shape", "compile_config"}
_LEFT_OUT |= {"shared_object_id"}
_NODES = ("inbound_nodes", "input_layers", "output_layers")  # they name layers
_OF_NO_NODE = {"class_name", "shape", "dtype", *_LEFT_OUT}
# What training sets on a model, or a user on any layer, and what is held elsewhere.
OF_TRAINING = {"loss", "stop_training", "compiled", "jit_compile", "run_eagerly", "steps_per_execution", "built"}
OF_TRAINING |= {"training", "history"}
PLAIN = (bool, int, float, str, type(None))


def config_of(model, said=None):
    """Place -> value of what a model is made of, as `layers.1.activation`.

    That is what its config says. A class of a user's need not say what it is made of: there it is what its layers' configs
    say, and the numbers that it keeps, under the names that it has for them. And it is what functions do that layers keep.

    Args:
        model: a Keras model.
        said: what `state.config_of` gives, where it is known.
    """
    found = values_of(state.config_of(model) if said is None else said)
    found |= {place: value for place, value in _kept("", model).items() if place not in found}
    for place, layer, is_said in _below("", model, {id(model)}):
        more = {**({} if is_said else _own_config(place, layer)), **_kept(place, layer)}
        found |= {name: value for name, value in more.items() if name not in found}
    return found


def _below(place, owner, seen):
    """`(place, layer, whether the config of what holds it says what it is)` of all layers in another one."""
    listed = isinstance(owner, keras.Sequential) or hasattr(type(owner), "operations")
    is_said = listed or not is_users(type(owner))
    if listed:
        layers = [layer for layer in owner.layers if not isinstance(layer, keras.layers.InputLayer)]
        held = {f"layers.{number}": layer for number, layer in enumerate(layers)}
    else:
        held = {name: one for name, one in attributes_of(owner) if isinstance(one, keras.layers.Layer)}
    for name, layer in held.items():
        if id(layer) not in seen:
            seen.add(id(layer))
            inner = f"{place}.{name}".lstrip(".")
            yield inner, layer, is_said
            yield from _below(inner, layer, seen)


def _own_config(place, layer):
    try:
        config = keras.saving.serialize_keras_object(layer)
    except (NotImplementedError, TypeError, ValueError):  # a class of one's own that does not say it
        config = {"class_name": type(layer).__name__, "config": {"trainable": layer.trainable}}
    return {f"{place}.{name}": value for name, value in values_of(config).items()}


def _kept(place, layer):
    """What functions do that a layer keeps; and of a layer of a user's class the numbers that its own code speaks of."""
    found, names = {}, names_in_class(type(layer))
    for name, value in vars(layer).items():
        inner = f"{place}.{name.lstrip('_')}".lstrip(".")
        if name in OF_TRAINING:
            continue
        if isinstance(value, types.FunctionType | types.MethodType | functools.partial):
            found |= {f"{inner}.{key}": code for key, code in code_of(value).items()}
        elif name in names and "seed" not in name and _is_number(value):
            found[inner] = list(value) if isinstance(value, tuple) else value
    return found


@functools.cache
def names_in_class(kind):
    """The names that the methods of a user's class use; of Keras's classes none."""
    methods = [value for one in kind.__mro__ if is_users(one) for value in vars(one).values()]
    return set().union(*(names_in(method.__code__) for method in methods if isinstance(method, types.FunctionType)))


def _is_number(value):
    if isinstance(value, list | tuple):
        return bool(value) and all(_is_number(one) for one in value)
    return isinstance(value, bool | int | float)


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
        if not _is_lambda(value):
            _walk_dict(place, value, found, numbers)
    elif isinstance(value, list | tuple) and not all(isinstance(one, PLAIN) for one in value):
        # Whether a model that takes what it is first called with has an input layer depends on when it is asked.
        parts = [one for one in value if not (isinstance(one, dict) and _counted(one, numbers) == "InputLayer")]
        found[f"{place}.count".lstrip(".")] = len(parts)
        for number, one in enumerate(parts):
            _walk(f"{place}.{number}", one, found, numbers)
    elif isinstance(value, PLAIN) or isinstance(value, list | tuple):
        found[place.lstrip(".")] = list(value) if isinstance(value, tuple) else value


def _is_lambda(value):
    """Whether this is a function without a name: Keras writes its code, which is another on each line of a file, see `_kept`."""
    code = value.get("value")
    whole = set(value) == {"value"} and isinstance(code, list | tuple) and len(code) == 3 and isinstance(code[0], str)
    return whole or value.get("class_name") == "__lambda__"


def _walk_dict(place, value, found, numbers):
    kind = _counted(value, numbers)
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
