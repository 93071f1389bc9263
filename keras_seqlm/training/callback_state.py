"""What callbacks remember from epoch to epoch, as part of a checkpoint."""

import warnings

import keras
import numpy as np

# What Keras's own keep between epochs; they have no `get_state`.
OF_KERAS = {
    keras.callbacks.EarlyStopping: ("wait", "best", "best_epoch", "best_weights", "stopped_epoch"),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
    keras.callbacks.ModelCheckpoint: ("best", "_batches_seen_since_last_saving", "_last_batch_seen"),
}
_PLAIN = (bool, int, float, str, type(None), np.ndarray, np.generic)


class CallbackStates:
    """The states of the callbacks of one `fit`: those that have `get_state()` and `set_state(state)`, and Keras's own.

    A state is a dict of numbers, texts, None, NumPy arrays and lists of these. A callback of another's whose numbers, texts,
    arrays or lists change while training, and which has no such methods, is named in a warning; other attributes (dicts,
    sets) and what a subclass of Keras's adds are not looked at. Several callbacks of one class are told apart by their order.

    Args:
        callbacks: all of them.
    """

    def __init__(self, callbacks):
        self._callbacks = dict(_named(callbacks))
        self._first = {name: _attributes(callback) for name, callback in self._callbacks.items()}
        self._warned = False

    def get(self):
        """`(meta, arrays)`: what JSON takes, and name -> NumPy array."""
        meta, arrays = {}, {}
        for name, callback in self._callbacks.items():
            state = _state_of(callback)
            if state:
                meta[name] = _without_arrays(state, f"callbacks/{name}", arrays)
        self._warn()
        return meta, arrays

    def set(self, meta, arrays):
        """Give back what `get` gave, in this process or another one."""
        for name, content in meta.items():
            if name not in self._callbacks:
                warnings.warn(
                    f"the checkpoint holds the state of the callback {name}, and fit was given none; it is left out",
                    stacklevel=2,
                )
                continue
            callback, state = self._callbacks[name], _with_arrays(content, arrays)
            if hasattr(callback, "set_state"):
                callback.set_state(state)
            else:
                for attribute, value in state.items():
                    setattr(callback, attribute, value)

    def _warn(self):
        if self._warned:
            return
        changed = {}
        for name, callback in self._callbacks.items():
            if _state_of(callback) is None and not type(callback).__module__.startswith(("keras.", "keras_seqlm.")):
                now = _attributes(callback)
                changed[name] = [one for one in now if _differ(now[one], self._first[name].get(one))]
        for name, attributes in changed.items():
            if attributes:
                self._warned = True
                warnings.warn(
                    f"the callback {name} has no get_state() and set_state(state), so what it remembers "
                    f"({', '.join(attributes)}) is not in the checkpoints, and starts anew when the run goes on",
                    stacklevel=2,
                )


def _named(callbacks):
    counts = {}
    for callback in callbacks:
        name = type(callback).__name__
        number = counts[name] = counts.get(name, -1) + 1
        yield (f"{name}-{number}" if number else name), callback


def _state_of(callback):
    if hasattr(callback, "get_state"):
        return callback.get_state()
    for kind, attributes in OF_KERAS.items():
        if isinstance(callback, kind):
            return {name: getattr(callback, name) for name in attributes if hasattr(callback, name)}
    return None


def _attributes(callback):
    known = vars(keras.callbacks.Callback())
    return {
        name: list(value) if isinstance(value, list) else value
        for name, value in vars(callback).items()
        if name not in known and name != "_model" and isinstance(value, (*_PLAIN, list))
    }


def _differ(a, b):
    if type(a) is not type(b):
        return True
    return len(a) != len(b) if isinstance(a, list) else not np.array_equal(a, b)


def _without_arrays(value, name, arrays):
    """`value` as JSON takes it, its arrays put into `arrays`."""
    if isinstance(value, dict):
        return {"dict": {key: _without_arrays(one, f"{name}/{key}", arrays) for key, one in value.items()}}
    if isinstance(value, list | tuple):
        return {"list": [_without_arrays(one, f"{name}/{i}", arrays) for i, one in enumerate(value)]}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float | np.generic) or keras.ops.is_tensor(value) and not value.shape:
        return np.asarray(keras.ops.convert_to_numpy(value)).item()
    arrays[name] = np.array(keras.ops.convert_to_numpy(value))
    return {"array": name}


def _with_arrays(value, arrays):
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return arrays[value["array"]]
    if "list" in value:
        return [_with_arrays(one, arrays) for one in value["list"]]
    return {key: _with_arrays(one, arrays) for key, one in value["dict"].items()}
