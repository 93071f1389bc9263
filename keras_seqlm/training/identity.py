"""What a run is made of beside its state: settings, data, model, optimizer and loss; and what of it changed between two starts."""

import collections
import sys
import warnings
import weakref

from keras_seqlm.checkpoints import CheckpointError
from keras_seqlm.devices import processes
from keras_seqlm.nesting import innermost
from keras_seqlm.training.compiled_numbers import (
    as_json,
    in_one_spelling,
    loss_of,
    not_decayed,
    numbers_of,
    outside,
    same_numbers,
    schedule_of,
)
from keras_seqlm.training.identity_of_data import data_changes, identity_of_data, identity_of_validation
from keras_seqlm.training.model_config import config_of, values_of
from keras_seqlm.training.running import fit_of

ALL_THE_SAME = (
    "Give the same, name another folder, or go on all the same with allow_changes=True (command line: --allow-changes)"
)
OF_DATA = "What can have changed is the data, its batch size or its seed; or make_batch depends on more than the step. "
NOT_DECAYED = "weights without decay"
_LEFT = weakref.WeakKeyDictionary()  # optimizer -> (its numbers as the user wrote them, as the last training left them)
_TRAINED = weakref.WeakSet()  # models that this process has trained
# What Keras's callbacks remember of the best loss so far.
_OF_A_BEST = ("wait", "best", "best_epoch", "best_weights", "stopped_epoch")


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
        loss_is_another: whether `hold_model` found, and was allowed, another loss than before.
        comparable_from: validation losses from this step on are of the same settings, data and loss.

    Raises:
        TypeError: settings that JSON does not take.
    """

    def __init__(self, checkpoint, settings, allow_changes):
        self._before = {} if checkpoint is None else checkpoint.meta
        self._checkpoint, self._allow = checkpoint, allow_changes
        known = ("data", "validation", "optimizer", "loss", "class_weight")
        self._data, self._validation, self._optimizer, self._loss, self._class_weight = map(self._before.get, known)
        self._config = self._before.get("config")
        self._known, self._says, self._new_rate, self._rate_by_hand = False, False, None, None
        self.comparable_from = self._before.get("comparable_from", 0)
        self._changed_validation, self.loss_is_another = [], False
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
        self._refuse_what_changes(data, identity_of_data(train))
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
            self._says = numbers is not None
            written, left = _LEFT.get(optimizer, (None, None)) if optimizer is not None else (None, None)
            # What training has set, as a callback lowers a learning rate, is not what the user wrote.
            if None not in (left, numbers) and numbers.get("learning_rate") != left.get("learning_rate"):
                self._rate_by_hand = numbers.get("learning_rate")
            numbers = written if left is not None and numbers == left else numbers
            self._optimizer, self._loss = numbers or self._optimizer, loss_of(model) or self._loss
            self._config = config_of(model)
        elif self._optimizer and (schedule := schedule_of(optimizer)):
            self._optimizer = {**self._optimizer, "schedule": schedule}
        if (frame := fit_of(model)) is not None:
            weights = frame.f_locals.get("class_weight") or {}
            self._class_weight = {str(name): float(weight) for name, weight in dict(weights).items()}
        if self._optimizer and optimizer is not None and model.built:
            self._optimizer = {**self._optimizer, NOT_DECAYED: not_decayed(model)}

    def leave(self, model):
        """Remember what training leaves of the optimizer's numbers, so that another `fit` of this process does not take them
        for the user's; after a `fit`, also one that failed.
        """
        _TRAINED.add(model)
        optimizer = innermost(getattr(model, "optimizer", None))
        if self._says and optimizer is not None:
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
        names = (before.keys() & now.keys()) - {"schedule", "learning_rate", NOT_DECAYED}
        changed = changes({name: before[name] for name in names}, now)
        old, new = (numbers.get("learning_rate") for numbers in (before, now))
        if None not in (old, new) and old != new:
            if new == self._rate_of_checkpoint():  # which a callback lowered: no other number than before
                self._optimizer = {**now, "learning_rate": old}
            else:
                changed += changes({"learning_rate": old}, now)
                self._new_rate = new
        elif new is not None and new == self._rate_by_hand and (kept := self._rate_of_checkpoint()) not in (None, new):
            self._say(
                f"the learning rate was set to {new:.6g} since the last fit, and that of {self._checkpoint.folder} goes on, "
                f"{kept:.6g}, as {new:.6g} is the number that the run began with; set it in a callback once fit has begun"
            )
        self._refuse("numbers", [f"the optimizer's {one}" for one in changed])
        before, now = (in_one_spelling(made) for made in (self._before.get("loss"), self._loss))
        changed = [f"the loss's {one}" for one in changes(before, now)]
        self._refuse("numbers", changed, of_validation=True)
        self.loss_is_another = bool(changed)
        before, now = self._before.get("class_weight"), self._class_weight
        if None not in (before, now):
            self._refuse("numbers", changes({"fit's class_weight": before}, {"fit's class_weight": now}))

    def hold_parts(self, model):
        """Hold what the model that `know` has seen is made of against that of before; its weights fit.

        Raises:
            CheckpointError: a part of it changed.
        """
        before, now = self._before.get("config") or {}, self._config
        # What a callback has changed, as one that lets layers train, is no other model where it goes on in this process.
        left, moved = values_of(self._before.get("model")), self._before.get("left", {}) if model in _TRAINED else {}
        self._config = {
            name: before.get(name, one) if left.get(name) == one or name in moved else one for name, one in now.items()
        }
        self._refuse("parts", [f"the model's {one}" for one in changes(before, self._config)])
        lists = [(made or {}).get(NOT_DECAYED) for made in (self._before.get("optimizer"), self._optimizer)]
        if None not in lists:
            old, new = map(collections.Counter, lists)
            changed = [f"it does not decay {name} any more" for name in sorted((new - old).elements())]
            changed += [f"it decays {name} now" for name in sorted((old - new).elements())]
            self._refuse("numbers", [f"of the optimizer, {'; '.join(changed)}"] if changed else [])

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
        if self.loss_is_another:
            states = {name: _without_losses(name, one) for name, one in states.items()}
        keras_own = {type(one).__name__ for one in callbacks if not hasattr(one, "set_state")}
        kept = {}
        for name, state in states.items():
            parts = ["of_keras", *(["dict"] if name.partition("-")[0] in keras_own else [])]
            less = {part: _without_best(state[part]) for part in parts if part in state}
            kept[name] = {**state, **less}
        return kept

    def meta(self, model, said):
        """What a checkpoint says of it, as JSON takes it.

        Args:
            model: that is saved.
            said: what `state.config_of` gives of it.
        """
        now = config_of(model, said)
        return {
            "settings": self.settings,
            "data": self._data,
            "validation": self._validation,
            "optimizer": self._optimizer,
            "loss": self._loss,
            "class_weight": self._class_weight,
            "config": self._config,
            "left": {name: one for name, one in now.items() if self._config.get(name) != one},
            "comparable_from": self.comparable_from,
        }

    def _refuse(self, what, changed, of_validation=False):
        if not changed:
            return
        if not self._allow:
            advice = (OF_DATA if what == "data" else "") + ALL_THE_SAME
            raise CheckpointError(
                f"{self._checkpoint.folder} is of a run with other {what}: {'; '.join(changed)}. {advice}"
            )
        if processes.is_chief():
            print(f"changed since the run began: {'; '.join(changed)}", file=sys.stderr)
        if of_validation:
            self._changed_validation += changed
            self.comparable_from = self._checkpoint.step + 1

    def _refuse_what_changes(self, first, second):
        if not (changed := data_changes(first, second)):
            return
        said = (
            f"the data, asked twice for the batch of step 0, gave two ({'; '.join(changed)}), so that a run that goes on would have other "
            "batches than one left alone: make_batch(step) must depend on nothing but the step, as with "
            "np.random.default_rng([seed, step])"
        )
        if not self._allow:
            raise CheckpointError(f"{said}. Or go on all the same with allow_changes=True")
        self._say(said)

    def _rate_of_checkpoint(self):
        paths = self._before.get("paths", {})
        names = [
            name for name, path in paths.items() if path.endswith("/learning_rate") and name.startswith("optimizer/")
        ]
        return float(self._checkpoint.arrays(names=names)[names[0]]) if len(names) == 1 else None

    def _say(self, message):
        if processes.is_chief():
            warnings.warn(message, stacklevel=outside())


def _has_best(state):
    return any("best" in state.get(part, {}) for part in ("dict", "of_keras"))


def _without_best(state):
    return {key: value for key, value in state.items() if key not in _OF_A_BEST}


def _without_losses(name, state):
    """The state of a `RollBack` without the losses that it holds new ones against."""
    if name.partition("-")[0] != "RollBack" or "dict" not in state.get("state", {}):
        return state
    return {**state, "state": {"dict": {**state["state"]["dict"], "losses": {"list": []}}}}


def changes(before, now):
    """`name was X and is Y` for what two dicts both name and differ in."""
    return [
        f"{name} was {_shown(before[name], now[name])} and is {_shown(now[name], before[name])}"
        for name in sorted(before.keys() & now.keys())
        if not same_numbers(before[name], now[name])
    ]


def _shown(value, other):
    """A number as one would write it, unless that hides the difference: a learning rate of 0.001 is kept in float32."""
    short = [f"{one:.6g}" if isinstance(one, float) else repr(one) for one in (value, other)]
    return short[0] if short[0] != short[1] else repr(value)
