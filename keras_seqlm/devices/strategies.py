"""How a run is spread over devices, by one word, and how the data get there.

Not at all ("single"), by `tf.distribute` ("mirrored"), by `keras.distribution` ("data-parallel", "model-parallel"), or on
torch by `torch.distributed` ("data-parallel"). A
strategy has `num_replicas`, `sums_gradients`, `scope()`, `check(model)`, `start(model)`, `training(model)`, `callbacks()`,
`feed(train, first_step)` and `feed_validation(validation)`; that of torch's processes is in a file of its own. What Keras
would train wrongly, or not at all, is refused before the first step, with the reason and the way out.
"""

import contextlib
import functools
import re
import warnings

import keras

from keras_seqlm.devices.cluster import join, refuse_environment
from keras_seqlm.devices.feed import Steps, check_rows, check_tensors, own_rows
from keras_seqlm.layers.layouts import AXIS, axes_of
from keras_seqlm.losses import CrossEntropy
from keras_seqlm.nesting import nested

BUILD_INSIDE = (
    "build (or load) it inside the recipe's scope:\n\n    with recipe.scope():\n        model = TransformerLM(...)\n"
)


def strategy(name):
    """The strategy called `name`. The first call joins the processes of the run, where the environment names some.

    Raises:
        ValueError: an unknown name, a strategy that the backend in use does not have, or an environment in which it
            would train wrong numbers.
        RuntimeError: JAX could not join the processes.
    """
    check_name(name)
    refuse_environment(name)
    kind, _, size = name.partition(":")
    return STRATEGIES[kind](int(size)) if size else STRATEGIES[kind]()


def check_name(name):
    """Refuse what is not one of `STRATEGIES`, or "model-parallel:N"; asks no device, so that it can be said beforehand."""
    if name not in STRATEGIES and not (isinstance(name, str) and re.fullmatch("model-parallel:[1-9][0-9]*", name)):
        raise ValueError(f"distribution must be one of {[*STRATEGIES, 'model-parallel:N']}, got {name!r}")


class Single:
    """One device: Keras as it is."""

    num_replicas = 1
    sums_gradients = False  # whether the optimizer itself sums those of the replicas, so that it must clip afterwards

    def scope(self):
        """The context in which a model is built and trained."""
        return contextlib.nullcontext()

    def check(self, model):
        """Refuse a model that was built elsewhere, or that would be trained wrongly here (ValueError)."""
        other = getattr(model, "_distribute_strategy", None)
        if other is not None and other.num_replicas_in_sync > 1:
            raise ValueError(
                f"the model was built inside a {type(other).__name__} of {other.num_replicas_in_sync} replicas, and the "
                "recipe says distribution='single'; use distribution='mirrored', or build the model outside that strategy"
            )

    def start(self, model):
        """Called once before the first step of a `fit`, when model and optimizer have the numbers to go on from."""

    def training(self, model):
        """The context of `model.fit`."""
        return self.scope()

    def callbacks(self):
        """Callbacks that `fit` needs here, after the user's own."""
        return []

    def feed(self, train, first_step):
        """What `fit` is given to read `train` from a step on; data without `batches` is handed through."""
        if not hasattr(train, "batches"):
            return train
        if keras.backend.backend() == "tensorflow" and hasattr(train, "as_tf_dataset"):
            return train.as_tf_dataset(first_step)  # shapes are static there, which XLA and strategies like
        return Steps(train, first_step)

    def feed_validation(self, validation):
        """What `fit` is given as `validation_data`."""
        if keras.backend.backend() == "tensorflow" and hasattr(validation, "as_tf_dataset"):
            return validation.as_tf_dataset()
        return validation


class Mirrored(Single):
    """`tf.distribute.MirroredStrategy` over the machine's GPUs, or over its logical CPUs where there is no GPU.

    Every replica reads its part of the batch; gradients are summed, then clipped, and every replica makes the same step.
    """

    sums_gradients = True

    def __init__(self):
        _needs("mirrored", "tensorflow", "tf.distribute")
        import tensorflow as tf

        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        self._strategy = _mirrored(tuple(device.name for device in devices))
        self.num_replicas = self._strategy.num_replicas_in_sync

    def scope(self):
        return self._strategy.scope()

    def check(self, model):
        # A model keeps the strategy it was built in; there is no public way to ask for it outside of that scope.
        if getattr(model, "_distribute_strategy", None) is not self._strategy:
            raise ValueError(f"the model was built outside the strategy's scope; {BUILD_INSIDE}")
        if self.num_replicas == 1:
            return
        refuse_carried_state(model)
        if model.compiled:
            _refuse_in_mirrored(model)

    def feed(self, train, first_step):
        check_tensors(train, self.num_replicas)
        check_rows(train, self.num_replicas)
        return super().feed(train, first_step)

    def feed_validation(self, validation):
        check_tensors(validation, self.num_replicas)
        check_rows(validation, self.num_replicas, first_only=True)
        return super().feed_validation(validation)


class DataParallel(Single):
    """`keras.distribution.DataParallel` over all devices of JAX, in all processes: the batch is split, variables are copied."""

    def __init__(self):
        _needs("data-parallel", "jax", "keras.distribution")
        join()
        self._spread(keras.distribution.DataParallel(devices=keras.distribution.list_devices()))

    def _spread(self, distribution):
        distribution.auto_shard_dataset = False  # each process is handed its own rows below, and not a part of them
        self._distribution = distribution
        self.num_replicas = distribution.num_model_replicas
        self._parts = min(self.num_replicas, distribution.num_processes)

    def scope(self):
        return self._distribution.scope()

    def check(self, model):
        mesh = self._distribution.device_mesh.backend_mesh
        if any(getattr(variable.value.sharding, "mesh", None) != mesh for variable in model.trainable_variables):
            raise ValueError(f"the model was built outside the distribution's scope; {BUILD_INSIDE}")

    def feed(self, train, first_step):
        check_rows(train, self.num_replicas)
        return self._own_rows(train, functools.partial(super().feed, first_step=first_step))

    def feed_validation(self, validation):
        if validation is None:
            return None
        check_rows(validation, self.num_replicas)
        return self._own_rows(validation, super().feed_validation)

    def _own_rows(self, data, feed):
        """The rows of this process: JAX puts what the processes bring together to one batch."""
        if self._parts == 1:
            return feed(data)
        if hasattr(data, "element_spec"):
            return self._distribution.distribute_tf_dataset(data)
        return own_rows(data, self._distribution.data_shard_id, self._parts, feed)


class ModelParallel(DataParallel):
    """`keras.distribution.ModelParallel` on JAX: weights and optimizer slots are cut over devices, and so is the batch.

    Args:
        devices: how many share one model; the rest of them multiply it and split the batch. Default: all of a process.
    """

    def __init__(self, devices=None):
        _needs("model-parallel", "jax", "keras.distribution")
        join()
        import jax

        devices, all_devices = devices or jax.local_device_count(), jax.device_count()
        replicas, processes = all_devices // devices, jax.process_count()
        if all_devices % devices or max(replicas, processes) % min(replicas, processes):
            fitting = [n for n in range(1, all_devices + 1) if all_devices % n == 0]
            raise ValueError(
                f"distribution='model-parallel:{devices}' would cut the model over {devices} of {all_devices} devices in "
                f"{processes} processes, which does not come out even; use a number of {fitting}"
            )
        mesh = keras.distribution.DeviceMesh((replicas, devices), ["batch", AXIS])
        self._spread(CutByPath(layout_map=keras.distribution.LayoutMap(mesh), batch_dim_name="batch"))


class CutByPath(keras.distribution.ModelParallel):
    """Keras's `ModelParallel` asks its map by a path alone; here a weight's shape has a say, too, and is checked."""

    def get_variable_layout(self, variable):
        if getattr(variable, "_layout", None) is not None:
            return variable._layout  # an optimizer's slot lies as its weight does
        axes = axes_of(variable.path, variable.shape, self.device_mesh.shape[-1])
        return keras.distribution.TensorLayout(axes, self.device_mesh)


def _automatic():
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return Mirrored() if len(tf.config.list_logical_devices("GPU")) > 1 else Single()
    if backend == "jax":
        join()
        return DataParallel() if keras.distribution.get_device_count() > 1 else Single()
    from keras_seqlm.devices.torch_processes import TORCHRUN, TorchDataParallel, gpus, is_launched

    if is_launched():
        return TorchDataParallel()
    if gpus() > 1:
        warnings.warn(
            f"this machine has {gpus()} GPUs, and distribution='auto' takes one of them: on torch each needs a process of its "
            f"own. Start it with `{TORCHRUN.format(gpus())}`, or say distribution='single'",
            stacklevel=2,
        )
    return Single()


def _data_parallel():
    if keras.backend.backend() != "torch":
        return DataParallel()
    from keras_seqlm.devices.torch_processes import TorchDataParallel

    return TorchDataParallel()


STRATEGIES = {
    "auto": _automatic,
    "single": Single,
    "mirrored": Mirrored,
    "data-parallel": _data_parallel,
    "model-parallel": ModelParallel,
}


@functools.cache  # a model remembers its strategy, so a process has one for each set of devices
def _mirrored(devices):
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(list(devices))


def _needs(name, backend, library):
    here = keras.backend.backend()
    if here == backend:
        return
    ways = {"tensorflow": "'mirrored'", "jax": "'data-parallel'", "torch": "'data-parallel' (under torchrun)"}
    way = f"distribution={ways[here]} on the {here} backend" if here in ways else "distribution='single'"
    raise ValueError(
        f"distribution={name!r} is {library}, which needs the {backend} backend, and the backend is {here}; "
        f"use {way}, or set KERAS_BACKEND={backend} before keras is imported"
    )


def refuse_carried_state(model):
    """Refuse a model that carries the state of all rows from batch to batch, of which a replica sees a part (ValueError)."""
    rows = getattr(model, "stateful_batch_size", None)
    if rows is not None:
        raise ValueError(
            f"the model carries the state of {rows} rows from batch to batch, and a replica sees only its part of the "
            "rows; build it with stateful_batch_size=None, or use distribution='single'"
        )


def _refuse_in_mirrored(model):
    """Settings of `compile` that fail under several replicas or, worse, train on other numbers."""
    optimizers = list(nested(model.optimizer))
    losses = keras.tree.flatten(model.loss)
    owner = next(kind for kind in type(model).__mro__ if "train_step" in vars(kind))
    step_of = owner.__module__.partition(".")[0]
    faults = {
        "a scaled loss (mixed_float16): Keras looks for overflow on the first replica alone, and one on another "
        "replica would turn the weights into NaN; use SafeOptimizer, or precision='mixed_bfloat16'": any(
            type(optimizer) is keras.optimizers.LossScaleOptimizer for optimizer in optimizers
        ),
        "gradient_accumulation_steps: Keras raises; use a larger batch": any(
            optimizer.gradient_accumulation_steps for optimizer in optimizers
        ),
        "use_ema: Keras raises; leave it out": any(optimizer.use_ema for optimizer in optimizers),
        "steps_per_execution above 1: Keras raises; leave it at 1": model.steps_per_execution > 1,
        "jit_compile=True: TensorFlow cannot compile the exchange of gradients; use 'auto'": model.jit_compile is True,
        "reduction='mean_with_sample_weight': a replica with few real tokens would weigh too much; use "
        "'sum_over_batch_size'": any(getattr(loss, "reduction", None) == "mean_with_sample_weight" for loss in losses),
        "ignore_class of a loss of Keras's: each replica would take the mean over its own tokens; use losses.CrossEntropy, "
        "which takes it over those of all": type(model).compute_loss is keras.Model.compute_loss
        and any(
            getattr(loss, "ignore_class", None) is not None and not isinstance(loss, CrossEntropy) for loss in losses
        ),
        "a train_step of its own: Keras divides no loss by the replicas there, so that the steps (or the loss that is "
        "shown) have another scale; put the loss into compute_loss": step_of not in ("keras", "keras_seqlm"),
    }
    found = [fault for fault, present in faults.items() if present]
    if found:
        raise ValueError("the model was compiled with what does not go with several replicas: " + "; ".join(found))
