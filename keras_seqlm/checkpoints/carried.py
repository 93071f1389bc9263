"""What layers carry from step to step that Keras does not list among a model's variables."""

import keras

MOST = 100  # elements of a container that are looked at: what holds more is a table, and no state


def carried_by(model):
    """The variables and generators that layers keep aside, as `keras.layers.LSTM(stateful=True)` does its states.

    Args:
        model: a Keras model.

    Returns:
        A list of `keras.Variable`, in the order of the layers.
    """
    known = {id(variable) for variable in [*model.variables, *model.metrics_variables]}
    found = []
    for layer in model._flatten_layers():
        for value in list(vars(layer).values()):
            for variable in _variables_in(value):
                if id(variable) not in known:
                    known.add(id(variable))
                    found.append(variable)
    return found


def attributes_of(thing):
    """`(place, value)` of each attribute of an object, and of what lists, tuples and dicts among them hold: `blocks.0`."""
    for name, value in vars(thing).items():
        if name in ("_layers", "_tracked") or name.startswith("_self_"):  # lists of Keras and TensorFlow of the others
            continue
        yield name, value
        if name == "_modules":  # where torch keeps what is set as an attribute
            yield from value.items()
        elif isinstance(value, dict):
            yield from ((f"{name}.{key}", one) for key, one in value.items())
        elif isinstance(value, list | tuple):
            yield from ((f"{name}.{number}", one) for number, one in enumerate(value))


def unknown_to_keras(model):
    """What layers keep in the backend's own way, a `tf.Variable`, a buffer of torch, which no checkpoint has.

    Returns:
        A dict of `layer.attribute` to a list of such values.
    """
    kind = _backends_own()
    if kind is None:
        return {}
    known = {id(variable.value) for variable in [*model.variables, *carried_by(model), *model.metrics_variables]}
    found = {}
    for layer in model._flatten_layers():
        held = vars(layer) if keras.backend.backend() == "tensorflow" else dict(layer.named_buffers())
        for name, value in held.items():
            if values := [one for one in _shallow(value) if isinstance(one, kind) and id(one) not in known]:
                found[f"{layer.name}.{name}"] = values
    return found


def _variables_in(value):
    for one in _shallow(value):
        if isinstance(one, keras.Variable):
            yield one
        elif isinstance(one, keras.random.SeedGenerator):
            yield one.state
        elif isinstance(one, list | tuple):  # of stacked cells, one more
            yield from (inner for inner in _shallow(one) if isinstance(inner, keras.Variable))


def _shallow(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return list(value) if len(value) <= MOST else []
    return [value]


def _backends_own():
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.Variable
    if keras.backend.backend() == "torch":
        import torch

        return torch.Tensor
    return None
