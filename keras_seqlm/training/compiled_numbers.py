"""The class and the numbers of what a model was compiled with: optimizer, schedule of the learning rate, losses."""

import json
import sys
import warnings

import keras
import numpy as np


def numbers_of(optimizer):
    """The class of an optimizer and the numbers of its config, `schedule` those of its learning rate; None without one."""
    if optimizer is None:
        return None
    try:
        numbers = _plain(optimizer)
    except NotImplementedError:
        warnings.warn(
            f"{type(optimizer).__name__} does not say its numbers, or its learning-rate schedule does not (get_config), so "
            "that a change of them between two starts is not seen",
            stacklevel=outside(),
        )
        return None
    schedule = schedule_of(optimizer)
    return numbers if schedule is None else {**numbers, "schedule": schedule}


def schedule_of(optimizer):
    """The class and the numbers of a learning-rate schedule; None where the optimizer has none."""
    rate = getattr(optimizer, "_learning_rate", None)
    return _plain(rate) if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule) else None


def loss_of(model):
    """The class and the numbers of a model's loss, of several each under its name, with their weights; None without one."""
    loss = getattr(model, "loss", None)
    if not isinstance(loss, dict | list | tuple):
        return _numbers_of_loss(loss)
    found = {".".join(map(str, path)): _numbers_of_loss(one) for path, one in keras.tree.flatten_with_path(loss)}
    weights = getattr(getattr(model, "_compile_loss", None), "_user_loss_weights", None)
    return as_json({**found, "loss_weights": weights if weights is None or _is_plain(weights) else str(weights)})


def _numbers_of_loss(loss):
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    if isinstance(loss, keras.losses.Loss):
        try:
            return _plain(loss)
        except (NotImplementedError, TypeError):
            return {"class": type(loss).__name__}
    return {"class": loss.__name__} if hasattr(loss, "__name__") else None


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
    return value is None or isinstance(value, bool | int | float | str | np.number)


def _number(value):
    if isinstance(value, list | tuple):
        return [_number(one) for one in value]
    return value.item() if isinstance(value, np.number) else value
