"""What a run is made of beside its state: settings, data, optimizer and loss; and what of it changed between two starts."""

import hashlib
import json
import re
import sys
import warnings
import weakref

import keras
import numpy as np

from keras_seqlm.checkpoints import CheckpointError
from keras_seqlm.devices import processes
from keras_seqlm.devices.feed import name_of
from keras_seqlm.nesting import innermost

ALL_THE_SAME = (
    "Give the same, name another folder, or go on all the same with allow_changes=True (command line: --allow-changes)"
)
ADVICE = {
    "data": "What can have changed is the data, its batch size or its seed; or make_batch depends on more than the step. ",
}
_LEFT = weakref.WeakKeyDictionary()  # optimizer -> (its numbers as the user wrote them, as the last training left them)
_OF_A_BEST = (
    "wait",
    "best",
    "best_epoch",
    "best_weights",
    "stopped_epoch",
)  # what Keras's callbacks remember of the best loss so far


class Identity:
    """Holds what a run is made of against what its checkpoint says, and says it to the next checkpoints.

    What changed is refused, or with `allow_changes` told; what is not named this time is kept as it was. What a checkpoint
    does not say, as one of a version before, is not held against anything.

    Args:
        checkpoint: the run goes on from it; None where a run begins.
        settings: a dict that JSON takes.
        allow_changes: go on although something changed.

    Attributes:
        settings: those given, and those that the checkpoint alone names.
        comparable_from: validation losses from this step on are of the same settings, data and loss.

    Raises:
        TypeError: settings that JSON does not take.
    """

    def __init__(self, checkpoint, settings, allow_changes):
        self._before = {} if checkpoint is None else checkpoint.meta
        self._checkpoint, self._allow = checkpoint, allow_changes
        known = ("data", "validation", "optimizer", "loss")
        self._data, self._validation, self._optimizer, self._loss = map(self._before.get, known)
        self._known, self._new_rate = False, None
        self.comparable_from = self._before.get("comparable_from", 0)
        self._changed_validation = []
        settings, before = as_json(settings), self._before.get("settings", {})
        self._refuse("settings", changes(before, settings), of_validation=True)
        self.settings = {**before, **settings}
        if missing := sorted(before.keys() - settings.keys()):
            said = "; ".join(f"{name} was {before[name]!r}" for name in missing)
            self._say(
                f"{checkpoint.folder} is of a run whose settings name more: {said}. It is kept for the next start, and not "
                "held against anything in this one; name it in settings"
            )

    def hold_data(self, train, validation=None):
        """Hold data with `batches(first_step)`, and what `fit` takes as `validation_data`, against those of before.

        Raises:
            CheckpointError: they are others.
        """
        data, validation = identity_of_data(train), identity_of_validation(validation)
        changed = data_changes(self._before.get("data"), data, "the batch of step 0")
        changed += data_changes(self._before.get("validation"), validation, "validation")
        self._refuse("data", changed, of_validation=True)
        self._data, self._validation = data, validation or self._validation

    def know(self, model):
        """Remember the numbers of a compiled model as they are before training changes them; all but the first time does
        nothing but look at the schedule of the learning rate.
        """
        optimizer = innermost(getattr(model, "optimizer", None))
        if not self._known:
            self._known = True
            numbers = numbers_of(optimizer)
            written, left = _LEFT.get(optimizer, (None, None)) if optimizer is not None else (None, None)
            # What training has set, as a callback lowers a learning rate, is not what the user wrote.
            numbers = written if left is not None and numbers == left else numbers
            self._optimizer, self._loss = numbers or self._optimizer, loss_of(model) or self._loss
        elif self._optimizer and (schedule := schedule_of(optimizer)):
            self._optimizer = {**self._optimizer, "schedule": schedule}

    def leave(self, model):
        """Remember what training leaves of the optimizer's numbers, so that another `fit` of this process does not take them
        for the user's; after a `fit`, also one that failed.
        """
        optimizer = innermost(getattr(model, "optimizer", None))
        if self._known and optimizer is not None:
            try:
                _LEFT[optimizer] = self._optimizer, numbers_of(optimizer)
            except RuntimeError:  # JAX gave the numbers to a step that failed: this optimizer is of no more use
                _LEFT.pop(optimizer, None)

    def hold_model(self, model):
        """Hold optimizer and loss of a compiled model, which `know` has seen, against those of before.

        Raises:
            CheckpointError: a number changed, other than those of a schedule.
        """
        before, now = self._before.get("optimizer") or {}, self._optimizer or {}
        names = (before.keys() & now.keys()) - {"schedule", "learning_rate"}
        changed = changes({name: before[name] for name in names}, now)
        old, new = (numbers.get("learning_rate") for numbers in (before, now))
        if None not in (old, new) and old != new:
            if new == self._rate_of_checkpoint():  # which a callback lowered: no other number than before
                self._optimizer = {**now, "learning_rate": old}
            else:
                changed += changes({"learning_rate": old}, now)
                self._new_rate = new
        self._refuse("numbers", [f"the optimizer's {one}" for one in changed])
        before, now = self._before.get("loss"), self._loss
        self._refuse("numbers", [f"the loss's {one}" for one in changes(before or {}, now or {})], of_validation=True)

    def set_learning_rate(self, model):
        """Give the optimizer the new learning rate, where it was allowed to change and the checkpoint's was written over it."""
        if self._new_rate is not None:
            innermost(model.optimizer).learning_rate = self._new_rate

    def tell(self, of_other_length, compares=True):
        """Warn of what goes on and is another: a schedule of the learning rate, and what validation losses are of.

        Args:
            of_other_length: whether the run may have other steps than before, and the schedule with it.
            compares: whether checkpoints have losses that were to be compared; whether callbacks have is known here.
        """
        before, now = ((made or {}).get("schedule") or {} for made in (self._before.get("optimizer"), self._optimizer))
        if of_other_length and before.get("steps") != now.get("steps"):
            before = {name: value for name, value in before.items() if name not in ("steps", "warmup_steps")}
        if changed := changes(before, now):
            self._say(
                f"the schedule of the learning rate is another than that of {self._checkpoint.folder}: {'; '.join(changed)}; "
                "training goes on by the new one"
            )
        if self._changed_validation and (compares or any(map(_has_best, self._before.get("callbacks", {}).values()))):
            self._say(
                f"validation losses of {self._checkpoint.folder} and of what follows are not compared, since "
                f"{'; '.join(self._changed_validation)}: the best one, of checkpoints as of callbacks, is looked for anew from "
                f"step {self.comparable_from} on"
            )

    def callbacks(self, states, callbacks):
        """The states of callbacks, without what Keras's own remember of a best loss where that was of another validation.

        Args:
            states: name -> what `CallbackStates.get` gave.
            callbacks: those of this `fit`.
        """
        if not self._changed_validation:
            return states
        keras_own = {type(one).__name__ for one in callbacks if not hasattr(one, "set_state")}
        kept = {}
        for name, state in states.items():
            parts = ["of_keras", *(["dict"] if name.partition("-")[0] in keras_own else [])]
            less = {part: _without_best(state[part]) for part in parts if part in state}
            kept[name] = {**state, **less}
        return kept

    def meta(self):
        """What a checkpoint says of it, as JSON takes it."""
        return {
            "settings": self.settings,
            "data": self._data,
            "validation": self._validation,
            "optimizer": self._optimizer,
            "loss": self._loss,
            "comparable_from": self.comparable_from,
        }

    def _refuse(self, what, changed, of_validation=False):
        if not changed:
            return
        if not self._allow:
            raise CheckpointError(
                f"{self._checkpoint.folder} is of a run with other {what}: {'; '.join(changed)}. {ADVICE.get(what, '')}"
                f"{ALL_THE_SAME}"
            )
        if processes.is_chief():
            print(f"changed since the run began: {'; '.join(changed)}", file=sys.stderr)
        if of_validation:
            self._changed_validation += changed
            self.comparable_from = self._checkpoint.step + 1

    def _rate_of_checkpoint(self):
        paths = self._before.get("paths", {})
        names = [
            name for name, path in paths.items() if path.endswith("/learning_rate") and name.startswith("optimizer/")
        ]
        return float(self._checkpoint.arrays(names=names)[names[0]]) if len(names) == 1 else None

    def _say(self, message):
        if processes.is_chief():
            warnings.warn(message, stacklevel=_outside())


def _has_best(state):
    return any("best" in state.get(part, {}) for part in ("dict", "of_keras"))


def _without_best(state):
    return {key: value for key, value in state.items() if key not in _OF_A_BEST}


def identity_of_data(train):
    """What data are, by the batch of step 0, since every batch depends on nothing but its step.

    Args:
        train: has `batches(first_step)`.

    Returns:
        A dict that JSON takes: name of each array -> [dtype, shape, SHA-256]; where data say them also `content`, the hash
        of all of their text, and `weights`, those of several texts.
    """
    found = _arrays_of(next(iter(train.batches(0))))
    content, weights = getattr(train, "content_hash", None), getattr(train, "weights", None)
    if isinstance(content, str):
        found["content"] = content
    if isinstance(weights, dict) and all(isinstance(one, float) for one in weights.values()):
        found["weights"] = list(weights.values())
    return found


def identity_of_validation(validation):
    """What validation data are, as far as they can be seen without being read away: arrays, and data that know their batches.

    Args:
        validation: what `fit` takes as `validation_data`.

    Returns:
        As `identity_of_data`, of the first batch or of all arrays, with `targets` or `batches`, how many there are; None
        of what cannot be seen.
    """
    if isinstance(validation, tuple | list):
        return _arrays_of(validation)
    if hasattr(validation, "batches"):
        targets = getattr(validation, "num_targets", None)
        return identity_of_data(validation) | ({} if targets is None else {"targets": int(targets)})
    if isinstance(validation, keras.utils.PyDataset):  # which may draw its batches, or their order
        forms = {name: [form[0], [None] * len(form[1])] for name, form in _arrays_of(validation[0]).items()}
        return forms | {"batches": validation.num_batches}
    return None


def data_changes(before, now, of="the batch of step 0"):
    """What of two `identity_of_data` differs, as texts; nothing where one of the two is unknown.

    Args:
        of: what the arrays are of.
    """
    if before is None or now is None:
        return []
    parts = {"content": "their text is another", "weights": "the weights of their texts are others"}
    counts = ("targets", "batches")
    changed = [said for part, said in parts.items() if part in before and part in now and before[part] != now[part]]
    changed += [
        f"{of} has {now[count]} {count}, and had {before[count]}"
        for count in counts
        if count in before and count in now and before[count] != now[count]
    ]
    for name in sorted((before.keys() | now.keys()) - {*parts, *counts}):
        old, new = before.get(name), now.get(name)
        if old is None or new is None:
            changed.append(f"{name} is in {of} only {'there' if new is None else 'here'}")
        elif _width_aside(old[:2]) != _width_aside(new[:2]):
            changed.append(f"{name} of {of} was {_form(old)} and is {_form(new)}")
        elif old[2:] != new[2:]:
            changed.append(f"{name} of {of} holds something else")
    return changed


def _width_aside(form):
    return [re.sub("u?int[0-9]+", "int", form[0]), *form[1:]]


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
            stacklevel=_outside(),
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


def changes(before, now):
    """`name was X and is Y` for what two dicts both name and differ in."""
    return [
        f"{name} was {_shown(before[name], now[name])} and is {_shown(now[name], before[name])}"
        for name in sorted(before.keys() & now.keys())
        if before[name] != now[name]
    ]


def as_json(settings):
    """Settings as they come back from JSON: a tuple is a list.

    Raises:
        TypeError: JSON does not take them.
    """
    try:
        return json.loads(json.dumps(settings or {}))
    except (TypeError, ValueError) as error:
        raise TypeError(f"settings must be a dict that JSON takes: {error}") from error


def _arrays_of(batch):
    found = {}
    for path, leaf in keras.tree.flatten_with_path(batch):
        array = leaf if isinstance(leaf, np.ndarray) or leaf is None else np.asarray(keras.ops.convert_to_numpy(leaf))
        if array is not None:
            # Integers are 32 bits wide on one backend and 64 on another.
            same = array.astype("int64") if array.dtype.kind in "iu" else array
            content = repr(array.tolist()).encode() if array.dtype == object else _bytes_of(same)
            found[name_of(path)] = [array.dtype.name, list(array.shape), hashlib.sha256(content).hexdigest()]
    return found


def _bytes_of(array):
    return np.ascontiguousarray(array).reshape(-1).view("uint8")  # also of dtypes that no buffer knows, as bfloat16


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


def _shown(value, other):
    """A number as one would write it, unless that hides the difference: a learning rate of 0.001 is kept in float32."""
    short = [f"{one:.6g}" if isinstance(one, float) else repr(one) for one in (value, other)]
    return short[0] if short[0] != short[1] else repr(value)


def _form(leaf):
    return f"{leaf[0]} {tuple(leaf[1])}"


def _outside():
    """The `stacklevel` of the caller's first caller that is not of this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals["__name__"].startswith("keras_seqlm"):
        frame, level = frame.f_back, level + 1
    return level
