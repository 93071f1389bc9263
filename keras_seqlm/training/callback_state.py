"""What callbacks remember from epoch to epoch, as part of a checkpoint."""

import warnings

import keras

from keras_seqlm.training.callback_pairs import described, made_with, named, pairs
from keras_seqlm.training.callbacks import RunCallback
from keras_seqlm.training.plain_values import fingerprint, from_json, to_json

# What Keras's own keep between epochs; they have no `get_state`.
OF_KERAS = {
    keras.callbacks.EarlyStopping: ("wait", "best", "best_epoch", "best_weights", "stopped_epoch"),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
    keras.callbacks.ModelCheckpoint: ("best", "_batches_seen_since_last_saving", "_last_batch_seen"),
    keras.callbacks.OrbaxCheckpoint: (
        "best",
        "_batches_seen_since_last_saving",
        "_last_batch_seen",
        "_total_batches_seen",
    ),
    keras.callbacks.TensorBoard: ("_global_train_batch", "_global_test_batch"),
}
# What these, and ours, set anew as a run goes on; it needs no saving.
SET_ANEW = {
    **dict.fromkeys(OF_KERAS, ("monitor_op", "min_delta", "_current_epoch")),
    RunCallback: ("step", "started", "chief", "_piece_start", "_mean_since", "_clock", "_last"),
}


class CallbackStates:
    """The states of the callbacks of one `fit`: those that have `get_state()` and `set_state(state)`, and Keras's own.

    A state is a dict of numbers, texts, None, NumPy arrays, and dicts, lists, tuples, sets and deques of these. A callback of
    another's that has no such methods, and in which such things change while training, is named in a warning; so is a subclass
    of one of Keras's whose own attributes do. What an object of another class holds is not looked at, and of an array or a
    container of very many values only some are.

    Callbacks of one class are told apart by what they were made with, such as `monitor` or `filepath`: see `pairs`.

    Args:
        callbacks: all of them.
    """

    def __init__(self, callbacks):
        self._callbacks = named(callbacks)
        self._first = {name: _fingerprints(callback) for name, callback in self._callbacks.items()}
        self._made_with = {name: made_with(one, _of_keras(one)) for name, one in self._callbacks.items()}
        self._warned = set()

    def get(self):
        """`(meta, arrays)`: what JSON takes, and name -> NumPy array."""
        meta, arrays = {}, {}
        for name, callback in self._callbacks.items():
            saved, more = {}, {}
            try:
                of_keras = {one: getattr(callback, one) for one in _of_keras(callback) if hasattr(callback, one)}
                if of_keras:
                    saved["of_keras"] = to_json(of_keras, f"callbacks/{name}/of_keras", more)["dict"]
                own = callback.get_state() if hasattr(callback, "get_state") else None
                if own is not None and not (isinstance(own, dict) and not own):
                    saved["state"] = to_json(own, f"callbacks/{name}/state", more)
            except TypeError as error:
                self._warn(
                    name,
                    f"the state of the callback {name} cannot be saved ({error}), and starts anew when the run goes on; "
                    "get_state() may give numbers, texts, None, arrays, and dicts, lists, tuples, sets and deques of these",
                )
                continue
            if saved:
                meta[name] = {**saved, "made_with": self._made_with[name]}
                arrays |= more
        self._look_for_changes()
        return meta, arrays

    def set(self, meta, arrays):
        """Give back what `get` gave, in this process or another one."""
        before = {
            name: content.get("made_with") if isinstance(content, dict) else None for name, content in meta.items()
        }
        found = pairs(before, self._made_with)
        for name, content in meta.items():
            if name in found:
                _give(name, self._callbacks[found[name]], content, arrays)
            else:
                warnings.warn(
                    f"the checkpoint holds the state of the callback {described(name, before[name])}, and fit was given none; "
                    "it is left out",
                    stacklevel=2,
                )

    def _look_for_changes(self):
        for name, callback in self._callbacks.items():
            ours = type(callback).__module__.startswith(("keras.", "keras_seqlm."))
            if ours or name in self._warned or hasattr(callback, "get_state"):
                continue
            now, first = _fingerprints(callback), self._first[name]
            known = {
                one
                for kinds in (OF_KERAS, SET_ANEW)
                for kind in kinds
                if isinstance(callback, kind)
                for one in kinds[kind]
            }
            changed = [one for one in now if one not in known and now[one] != first.get(one)]
            if changed:
                self._warn(
                    name,
                    f"the callback {name} has no get_state() and set_state(state), so what it remembers "
                    f"({', '.join(changed)}) is not in the checkpoints, and starts anew when the run goes on",
                )

    def _warn(self, name, message):
        if name not in self._warned:
            self._warned.add(name)
            warnings.warn(message, stacklevel=4)


def _of_keras(callback):
    """The attributes that are saved of one of Keras's own, and of its subclasses."""
    return next((names for kind, names in OF_KERAS.items() if isinstance(callback, kind)), ())


def _give(name, callback, content, arrays):
    if not (isinstance(content, dict) and "made_with" in content):  # of a version before
        content = {"state": content} if hasattr(callback, "set_state") else {"of_keras": content["dict"]}
    for attribute, value in content.get("of_keras", {}).items():
        setattr(callback, attribute, from_json(value, arrays))
    if "state" in content and hasattr(callback, "set_state"):
        callback.set_state(from_json(content["state"], arrays))
    elif "state" in content:
        warnings.warn(
            f"the checkpoint holds what get_state() of the callback {name} gave, and it has no set_state(state) to take it: it "
            "is left out",
            stacklevel=3,
        )


def _fingerprints(callback):
    """Attribute -> fingerprint, of those that hold plain values."""
    known = vars(keras.callbacks.Callback())
    found = {name: fingerprint(value) for name, value in vars(callback).items() if name not in known}
    return {name: value for name, value in found.items() if value is not None}
