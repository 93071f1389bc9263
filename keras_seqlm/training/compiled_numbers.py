"""The class and the numbers of what a model was compiled with: optimizer, schedule of the learning rate, losses."""

import hashlib
import inspect
import json
import re
import sys
import warnings

import keras
import numpy as np

from keras_seqlm.nesting import innermost
from keras_seqlm.training.code import code_of, is_users

_NUMBERS = int | float | np.number


def numbers_of(optimizer):
    """The class of an optimizer and its numbers, `schedule` those of its learning rate; None without one.

    The numbers are those of its config, and of one of a user's class those that it keeps and its config does not say.
    """
    if optimizer is None:
        return None
    try:
        numbers = {**_kept(optimizer), **_plain(optimizer)}
        numbers |= {name: getattr(optimizer, name) for name in ("layer_decay",) if hasattr(optimizer, name)}
    except NotImplementedError:
        warnings.warn(
            f"{type(optimizer).__name__} does not say its numbers, or its learning-rate schedule does not (get_config), so "
            "that a change of them between two starts is not seen",
            stacklevel=outside(),
        )
        return None
    schedule = schedule_of(optimizer) or _function_of(optimizer)
    return numbers if schedule is None else {**numbers, "schedule": schedule}


def _kept(optimizer):
    """Name -> number of what an optimizer keeps as plain attributes, other than those that any has."""
    known = vars(keras.optimizers.SGD(name="any")).keys()
    own = {name: value for name, value in vars(optimizer).items() if name not in known and _is_plain(value)}
    return as_json({name.lstrip("_"): _number(value) for name, value in own.items() if is_users(type(optimizer))})


def not_decayed(model):
    """Paths, without Keras's counts, of the weights that the optimizer of a built model leaves out of its weight decay.

    None where nothing decays, or nobody knows.
    """
    optimizer = innermost(model.optimizer)
    if not getattr(optimizer, "weight_decay", None) or not hasattr(optimizer, "_use_weight_decay"):
        return None
    left_out = [one.path for one in model.variables if not optimizer._use_weight_decay(one)]
    return sorted("/".join(re.sub(r"_[0-9]+$", "", part) for part in path.split("/")[-2:]) for path in left_out)


def schedule_of(optimizer):
    """The class and the numbers of a learning-rate schedule; None where the optimizer has none."""
    rate = getattr(optimizer, "_learning_rate", None)
    return _plain(rate) if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule) else None


def _function_of(optimizer):
    """Of a learning rate that is a function: its name, a hash of its source, and what it gives before the first step."""
    rate = getattr(optimizer, "_learning_rate", None)
    if isinstance(rate, keras.Variable | keras.optimizers.schedules.LearningRateSchedule) or not callable(rate):
        return None
    try:
        source = hashlib.sha256(inspect.getsource(rate).encode()).hexdigest()[:12]
    except (OSError, TypeError):  # an object that is called, or typed in by hand
        source = None
    name = getattr(rate, "__qualname__", type(rate).__qualname__)
    return {"class": name, "source": source, "value": float(keras.ops.convert_to_numpy(rate()))}


def loss_of(model):
    """The class and the numbers of a model's loss, of several each under its name, with their weights; None without one."""
    loss = getattr(model, "loss", None)
    compiled = getattr(model, "_compile_loss", None)
    weights = getattr(compiled, "_user_loss_weights", None)
    if not isinstance(loss, dict | list | tuple):
        found = _numbers_of_loss(loss)
        if found is None or compiled is None:
            return found
        (weight,) = keras.tree.flatten(weights)  # None, a number, or a list of one
        return as_json({**found, "loss_weights": _number(weight) if isinstance(weight, _NUMBERS) else 1.0})
    found = {".".join(map(str, path)): _numbers_of_loss(one) for path, one in keras.tree.flatten_with_path(loss)}
    return as_json({**found, "loss_weights": weights if weights is None or _is_plain(weights) else str(weights)})


def same_numbers(before, now):
    """Whether two values of JSON are the same; what is no number is not equal to itself, and no change."""
    return before == now or json.dumps(before, sort_keys=True) == json.dumps(now, sort_keys=True)


def in_one_spelling(loss):
    """Name -> number of what `loss_of` gave, of several as `a.class`; the class as Keras's own function of it is called."""
    found = {}
    for name, value in (loss or {}).items():
        if isinstance(value, dict) and "class" in value:
            found |= {f"{name}.{one}": number for one, number in in_one_spelling(value).items()}
        else:
            found[name] = _snake(value) if name == "class" else value
    return found


def _snake(name):
    return re.sub("(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _numbers_of_loss(loss):
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    if isinstance(loss, keras.losses.Loss):
        return as_json(dict(_values("", loss)))
    if not callable(loss):
        return None
    return {**_numbers_of_its_class(loss), **code_of(loss), "class": getattr(loss, "__name__", type(loss).__name__)}


def _numbers_of_its_class(function):
    """Those that Keras calls one of its own functions with: the defaults of the class of that name."""
    for kind in vars(keras.losses).values():
        if (
            isinstance(kind, type)
            and _snake(kind.__name__) == getattr(function, "__name__", None)
            and function is getattr(kind(), "fn", None)
        ):
            return _numbers_of_loss(kind())
    return {}


def _values(place, thing):
    """Place -> plain value of what a loss was made with: by its config, and by its attributes, which may say more."""
    if isinstance(thing, keras.losses.Loss):
        yield f"{place}.class".lstrip("."), type(thing).__name__
        yield from _code(place, type(thing).call)
        try:
            config = thing.get_config()
        except (NotImplementedError, TypeError):
            config = {}
        kept = {name.lstrip("_"): value for name, value in vars(thing).items()}
        for values in (
            kept.pop("fn_kwargs", {}),
            kept,
            config,
        ):  # an attribute may say more than what the config makes of it
            for name, value in values.items():
                if name not in ("name", "dtype", "dtype_policy"):
                    yield from _values(f"{place}.{name}", value)
    elif isinstance(thing, dict):
        if thing.get("class_name") == "__lambda__":
            return  # its code as Keras writes it, which is another on each line of a file
        inner = thing.get("config") if "class_name" in thing else None
        for name, value in (inner if isinstance(inner, dict) else thing).items():
            if inner is None or name != "name":
                yield from _values(f"{place}.{name}", value)
        if isinstance(inner, dict):
            yield f"{place}.class".lstrip("."), thing["class_name"]
    elif isinstance(thing, list | tuple) and not _is_plain(thing):
        for number, value in enumerate(thing):
            yield from _values(f"{place}.{number}", value)
    elif _is_plain(thing):
        yield place.lstrip("."), _number(thing)
    elif callable(thing):
        yield from _code(place, thing)


def _code(place, function):
    return ((f"{place}.{name}".lstrip("."), value) for name, value in code_of(function).items())


def as_json(settings):
    """Settings as they come back from JSON: a tuple is a list.

    Raises:
        TypeError: JSON does not take them.
    """
    try:
        return json.loads(json.dumps(settings or {}))
    except (TypeError, ValueError) as error:
        raise TypeError(f"settings must be a dict that JSON takes: {error}") from error


def outside():
    """The `stacklevel` of the caller's first caller that is not of this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals["__name__"].startswith("keras_seqlm"):
        frame, level = frame.f_back, level + 1
    return level


def _plain(thing):
    config = thing.get_config()
    values = {name: _number(value) for name, value in _flat(config) if name != "name" and _is_plain(value)}
    return {"class": type(thing).__name__, **as_json(values)}


def _flat(config):
    """Name -> value of a config, and of those of what it holds (as an optimizer that wraps another), but for their rates."""
    for name, value in config.items():
        inner = value.get("config") if isinstance(value, dict) else None
        if isinstance(inner, dict) and name != "learning_rate":
            yield f"{name}.class", value.get("class_name")
            yield from ((f"{name}.{one}", v) for one, v in _flat(inner) if one not in ("name", "learning_rate"))
        else:
            yield name, value


def _is_plain(value):
    if isinstance(value, list | tuple):
        return all(_is_plain(one) for one in value)
    return value is None or isinstance(value, bool | str | _NUMBERS)


def _number(value):
    if isinstance(value, list | tuple):
        return [_number(one) for one in value]
    return value.item() if isinstance(value, np.number) else value
