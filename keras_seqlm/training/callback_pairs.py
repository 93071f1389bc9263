"""Which callback gets which state, where several are of one class."""

import inspect
import itertools
import pathlib
import warnings

import keras
import numpy as np

from keras_seqlm.training.plain_values import PLAIN


def named(callbacks):
    """Name -> callback: its class, and its number from the second one of a class on."""
    counts, found = {}, {}
    for callback in callbacks:
        kind = type(callback).__name__
        number = counts[kind] = counts.get(kind, -1) + 1
        found[f"{kind}-{number}" if number else kind] = callback
    return found


def made_with(callback, but=()):
    """The plain arguments that a callback was made with, by name, as far as it keeps them under their names.

    Args:
        callback: a Keras callback.
        but: attributes that change while it is in use.
    """
    names = {
        name
        for kind in type(callback).__mro__
        if issubclass(kind, keras.callbacks.Callback) and "__init__" in vars(kind)
        for name in inspect.signature(kind.__init__).parameters
    } - {"verbose"}
    found = {}
    for attribute, value in vars(callback).items():
        name = attribute.lstrip("_")
        value = str(value) if isinstance(value, pathlib.PurePath) else value
        value = value.item() if isinstance(value, np.generic) else value
        if name in names and attribute not in but and isinstance(value, PLAIN):
            found[name] = value
    if isinstance(found.get("min_delta"), int | float):
        found["min_delta"] = abs(found["min_delta"])  # Keras turns its sign when it learns which way is better
    return dict(sorted(found.items()))


def described(name, arguments):
    """A callback as its user wrote it."""
    if not arguments:
        return name
    return f"{_kind(name)}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def pairs(before, now):
    """Name in the checkpoint -> name here: those of one class that were made with the same first, then the most alike.

    Where several of a class are no different, their order decides. One that watches another quantity than before is another
    one. A warning says where a state goes on in a callback, one of several of its class, that was made with something else.

    Args:
        before: name -> arguments, as `made_with` found them; None in a checkpoint that does not know them.
        now: the same of the callbacks here.
    """

    def difference(pair):
        there, here = pair
        old, new = before[there], now[here]
        differ = 0 if old is None else sum(old.get(name) != new.get(name) for name in old.keys() | new.keys())
        return differ, abs(_number(there) - _number(here)), _number(there), _number(here)

    found = {}
    likely = [pair for pair in itertools.product(before, now) if _may_be(*pair, before, now)]
    for there, here in sorted(likely, key=difference):
        if there not in found and here not in found.values():
            found[there] = here
    for there, here in found.items():
        _warn_of_a_guess(there, here, before, now)
    return found


def _may_be(there, here, before, now):
    same = before[there] is None or all(before[there].get(name) == now[here].get(name) for name in ("monitor", "mode"))
    return same and _kind(there) == _kind(here)


def _warn_of_a_guess(there, here, before, now):
    alike = [arguments for name, arguments in now.items() if _kind(name) == _kind(here)]
    several = len(alike) > 1 or sum(_kind(name) == _kind(here) for name in before) > 1
    if not several or before[there] == now[here]:
        return
    if before[there] is None and all(one == alike[0] for one in alike):
        return
    reason = "is of one that was made otherwise"
    if before[there] is None:
        reason = "a version before saved, which knew them by their order alone"
    warnings.warn(
        f"of several callbacks {_kind(here)}, {described(here, now[here])} goes on with the state of "
        f"{described(there, before[there])}, which {reason}; give them in the order and with the arguments of before, or see "
        "that it is the right one",
        stacklevel=2,
    )


def _kind(name):
    return name.partition("-")[0]


def _number(name):
    return int(name.partition("-")[2] or 0)
