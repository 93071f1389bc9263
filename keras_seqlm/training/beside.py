"""What of a user's `fit` does not go with `Resume` as it is: some of Keras's callbacks, optimizers that it does not know of."""

import hashlib
import pathlib
import warnings

import keras

from keras_seqlm.checkpoints.carried import attributes_of, unknown_to_keras
from keras_seqlm.devices.processes import is_chief
from keras_seqlm.files import replacing
from keras_seqlm.nesting import innermost, nested
from keras_seqlm.training.compiled_numbers import outside
from keras_seqlm.training.model_config import OF_TRAINING, names_in_class
from keras_seqlm.training.plain_values import fingerprint

BEGIN_OF_TRAINING = ("set_model", "on_train_begin")


def warn_of_optimizers(model):
    """Name the optimizers that a model keeps for a `train_step` of its own: only `model.optimizer` is in a checkpoint."""
    known = {id(one) for one in nested(model.optimizer)} if model.optimizer is not None else set()
    found = {}
    for layer in model._flatten_layers():
        for place, one in attributes_of(layer):
            if isinstance(one, keras.optimizers.Optimizer) and id(one) not in known:
                found.setdefault(id(one), place if layer is model else f"{layer.name}.{place}")
    if others := sorted(found.values()):
        warnings.warn(
            f"the model's {', '.join(others)} {'is' if len(others) == 1 else 'are'} not in the checkpoints, which hold model.optimizer "
            "alone: moments and step of it start anew when the run goes on",
            stacklevel=3,
        )


def warn_of_no_list():
    """Say that `Resume` is not in a list of callbacks that it can look at, and so not the last one."""
    warnings.warn(
        "Resume does not find itself in the list of callbacks of a running model.fit: what those that come after it do at a step "
        "or an epoch's end is not in its checkpoints, nor what callbacks that it does not find remember. Give it to model.fit "
        "itself, in the list of callbacks",
        stacklevel=3,
    )


def warn_of_lost_position(step):
    """Say that the data of a run that goes on from a step begin anew."""
    warnings.warn(
        f"the state of step {step} was restored, and the position in the data is lost: an iterator cannot be moved. Give fit "
        "resume.data(make_batch), where make_batch(step) makes the batch of a step",
        stacklevel=3,
    )


class Unsaved:
    """What training changes of a model or its optimizers that Keras does not list, so that no checkpoint has it.

    That is what layers keep in the backend's own way, a `tf.Variable` or a buffer of torch; and plain attributes of layers,
    metrics and losses, as far as the code of a user's class speaks of them. An optimizer's are looked at, too, which a
    callback may set.

    Args:
        model: as training begins.
    """

    def __init__(self, model):
        self._model, self._seen = model, {}
        self._seen = self._look()

    def warn(self):
        """Name what changed since training began, once."""
        now = self._look()
        if changed := sorted(name for name, value in now.items() if self._seen.setdefault(name, value) != value):
            self._seen |= dict.fromkeys(changed)
            warnings.warn(
                f"{', '.join(changed[:10])}{' and more' if len(changed) > 10 else ''}: changed by training, and not in the "
                "checkpoints, since Keras does not list it, so that it starts anew when the run goes on; of a layer or a metric "
                "make it with self.add_weight(...), of an optimizer set it in a callback as training begins",
                stacklevel=outside(),
            )

    def _look(self):
        """Name -> fingerprint, but for what was named already."""
        told = {name for name, value in self._seen.items() if value is None}
        found = {}
        for place, value in self._values():
            if place not in told and (seen := fingerprint(value)) is not None:
                found[place] = seen
        return found

    def _values(self):
        for place, values in unknown_to_keras(self._model).items():
            # A copy, since NumPy cannot read what several replicas hold; and a sparse one not at all.
            yield place, [keras.ops.convert_to_numpy(keras.ops.copy(one)) for one in values if not _is_sparse(one)]
        losses = [one for one in keras.tree.flatten(self._model.loss) if isinstance(one, keras.losses.Loss)]
        for one in [*self._model._flatten_layers(), *self._metrics(), *losses]:
            names = names_in_class(type(one)) - OF_TRAINING
            own = ((name, value) for name, value in vars(one).items() if name in names and not _is_kerass(value))
            yield from ((f"{one.name}.{name}", value) for name, value in own)
        for optimizer in nested(self._model.optimizer):
            for name, value in vars(optimizer).items():
                if name[0] != "_" and name not in OF_TRAINING and not _is_kerass(value):
                    yield f"{type(optimizer).__name__}.{name}", value

    def _metrics(self):
        compiled = self._model._compile_metrics
        inner = [] if compiled is None or not compiled.built else compiled.metrics
        return [*self._model.metrics, *inner]


def _is_kerass(value):
    """Whether a value is, or holds, what Keras lists, and a checkpoint has."""
    kinds = (keras.Variable, keras.random.SeedGenerator, keras.metrics.Metric, keras.layers.Layer)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
    return any(isinstance(one, kinds) for one in parts)


def _is_sparse(value):
    return getattr(value, "is_sparse", False) is True


def refuse_others(callbacks):
    """See that no callback holds other weights than the model's own when a checkpoint is saved, or restores by itself.

    Args:
        callbacks: of the `fit` that begins.

    Raises:
        ValueError: one does; what to use in its place is named.
    """
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.SwapEMAWeights) and callback.swap_on_epoch:
            raise ValueError(
                "keras.callbacks.SwapEMAWeights(swap_on_epoch=True) leaves averaged weights in the model when an epoch "
                "ends, and a run that goes on would take them for its own; use keras_seqlm.training.ValidateAverage(), "
                "which validates with averaged weights, too, and gives the model its own back"
            )
        if isinstance(callback, keras.callbacks.BackupAndRestore):
            raise ValueError(
                "keras.callbacks.BackupAndRestore goes on from a backup of its own, and would overwrite what Resume has "
                "restored; leave it out, Resume does what it does"
            )


def keep_rows(callbacks, written):
    """Let a `CSVLogger` that would begin its file anew append to it, since the run goes on; a warning says so.

    What came into the file after the checkpoint leaves it, since the same rows are written again.

    Args:
        callbacks: of the `fit` that begins; none of them has begun.
        written: what `rows_written` gave when the checkpoint was saved.
    """
    for callback in callbacks:
        if not isinstance(callback, keras.callbacks.CSVLogger):
            continue
        path = pathlib.Path(callback.filename)
        if not path.is_file() or not path.stat().st_size:
            continue
        if not callback.append:
            callback.append = True
            warnings.warn(
                f"CSVLogger(append=False) would wipe the rows of {path} that were written before, so this one appends "
                "to them; say CSVLogger(filename, append=True)",
                stacklevel=2,
            )
        size, sha256 = written.get(str(callback.filename), (None, None))
        content = path.read_bytes()
        if (
            size is not None
            and size < len(content)
            and is_chief()
            and hashlib.sha256(content[:size]).hexdigest() == sha256
        ):
            with replacing(path) as beside:
                beside.write_bytes(content[:size])


def rows_written(callbacks):
    """Name of the file of each `CSVLogger` -> [its size, the SHA-256 of what it holds] at this moment."""
    files = {str(one.filename) for one in callbacks if isinstance(one, keras.callbacks.CSVLogger)}
    held = {name: pathlib.Path(name).read_bytes() for name in sorted(files) if pathlib.Path(name).is_file()}
    return {name: [len(content), hashlib.sha256(content).hexdigest()] for name, content in held.items()}


def may_change_the_model(callbacks, *events):
    """Whether a callback of another's listens to one of these events, in which it may change the model as a run goes on that it
    has changed before: one that halves the learning rate as an epoch begins, or sets weights as training begins.

    Args:
        callbacks: of a `fit`.
        events: names of methods, as `on_epoch_begin`.
    """
    return any(_listens(callback, event) for callback in callbacks for event in events)


def _listens(callback, event):
    heard, nobody = getattr(callback, event), getattr(keras.callbacks.Callback, event)
    function = getattr(heard, "__func__", heard)  # a `LambdaCallback` holds a function of the user's
    # Keras's own do nothing to the model but as an epoch begins; ours look after themselves.
    ours = ("keras_seqlm.", "keras.src.") if event in BEGIN_OF_TRAINING else ("keras_seqlm.",)
    return function is not nobody and not str(getattr(function, "__module__", "")).startswith(ours)


def refuse_updates(model, folder):
    """A run that starts at step 0 with updates behind it would save the state of 12 of them under the name of step 8."""
    if model.optimizer is None:
        return
    made = int(keras.ops.convert_to_numpy(innermost(model.optimizer)._iterations))
    if made:
        raise ValueError(
            f"the model's optimizer has made {made} steps, and {folder} has no checkpoint, so that steps would be counted "
            "wrongly; compile the model anew (its weights stay), or go on in the folder of the run that made them"
        )
