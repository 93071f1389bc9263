"""Metrics of an epoch that a run goes on within: their variables, which of them the checkpoint holds, and which it does not."""

import json
import re
import warnings

import keras

from keras_seqlm.checkpoints import state
from keras_seqlm.training.compiled_numbers import outside


def build_metrics(model, checkpoint, batch):
    """Make the variables of compiled metrics, and of the means of several losses, which TensorFlow makes in the first step.

    The model is run once for it; whatever of it changes as it is called is set back.

    Args:
        model: built and compiled.
        checkpoint: a `Checkpoint`, whose metrics are wanted.
        batch: of the training data.
    """
    there = sum(name.startswith("metrics/") for name in checkpoint.shapes)
    metrics, losses = model._compile_metrics, model._compile_loss
    has_all = metrics is None or metrics.built
    if has_all and there <= len(model.metrics_variables):
        return
    before = state.arrays_of(model, ("model", "carried"))
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
    predictions = model(x, training=False)
    if not has_all:
        model.compute_metrics(x, y, predictions, sample_weight)
    if there > len(model.metrics_variables) and losses is not None and not losses.built:
        losses(y, predictions, sample_weight)
    model.reset_metrics()
    state.assign(model, before)


def kinds_of_metrics(model):
    """What a checkpoint says of `model.metrics_variables`: a dict `metrics/number -> text`, that of the metric it belongs to.

    Metrics of one name that count otherwise, or those of two outputs, have other texts.
    """
    kinds = {}
    for where, metric in _metrics(model):
        for place, variable in enumerate(metric.variables):
            kinds[id(variable)] = f"{where}{_kind(metric)} {place}"
    return {
        name: kinds[id(variable)]
        for name, variable in state.variables_of(model).items()
        if name.startswith("metrics/") and id(variable) in kinds
    }


def read_metrics(model, checkpoint, first, last, loss_is_another=False):
    """The arrays of the metrics that a checkpoint holds, as `state.read` gives them; a warning names what it does not hold.

    Args:
        model: built and compiled, metrics built.
        checkpoint: a `Checkpoint` of within an epoch.
        first: the step after which the epoch began; `last`: of the checkpoint.
        loss_is_another: the means of the loss so far are of another one, and are left.
    """
    before = checkpoint.meta.get("metrics")
    if before is None:  # of a version before: known by their paths
        return state.read(model, checkpoint, ("metrics",))
    if loss_is_another:
        losses = {f"{where}{_kind(metric)}" for where, metric in _metrics(model) if is_of_loss(model, metric)}
        before = {name: kind for name, kind in before.items() if kind.rpartition(" ")[0] not in losses}
    left, found = {}, {}
    for name, kind in before.items():
        left.setdefault(kind, []).append(name)
    now = kinds_of_metrics(model)
    for name, kind in now.items():
        if left.get(kind):
            found[name] = left[kind].pop(0)
    if lost := sorted({_shown(kind) for name, kind in now.items() if name not in found}):
        several = len(lost) > 1
        reason = "which the model was not compiled with"
        if loss_is_another:
            reason = "which it was not compiled with, or which are of the loss of before"
        warnings.warn(
            f"{checkpoint.folder} holds nothing of the metric{'s' * several} {', '.join(lost)}, {reason}: of the epoch that began after step {first}, {'they count' if several else 'it counts'} the steps after "
            f"{last} alone. Compile the model with the metrics of before until the epoch is over, or go by the epochs after it",
            stacklevel=outside(),
        )
    arrays = checkpoint.arrays(names=set(found.values()))
    return {name: arrays[there] for name, there in found.items()}


def is_of_loss(model, metric):
    """Whether a metric is the mean of the model's loss, or of one of several."""
    return metric is model._loss_tracker or any(metric is one for one in getattr(model._compile_loss, "metrics", ()))


def _metrics(model):
    """`(where, metric)` of each: of which output, and whether it is a weighted one."""
    for metric in model.metrics:
        if metric is not model._compile_metrics:
            yield "", metric
        elif metric.built:
            for weighted, listed in (("", metric._flat_metrics), ("weighted ", metric._flat_weighted_metrics)):
                for one in filter(None, listed):
                    yield from (
                        (f"{weighted}{f'{one.output_name} ' if one.output_name else ''}", m) for m in one.metrics
                    )


def _kind(metric):
    """Name, class and plain numbers of a metric, without the count that Keras gives to a name of its own making."""
    try:
        config = metric.get_config()
    except NotImplementedError:
        config = {}
    plain = {
        name: value
        for name, value in config.items()
        if name != "name" and isinstance(value, bool | int | float | str | list | tuple)
    }
    name = re.sub(r"_[0-9]+$", "", metric.name)
    return f"{name} {type(metric).__name__} {json.dumps(plain, sort_keys=True, default=str)}"


def _shown(kind):
    return kind.partition(" {")[0].rpartition(" ")[0]
