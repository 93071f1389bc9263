"""How a run is spread over the devices of one machine, and how the data get there.

Not at all ("single"), by `tf.distribute` ("mirrored"), or by `keras.distribution` ("data-parallel"). A strategy has
`num_replicas`, `scope()`, `check(model)` and `prepare(optimizer)`. What Keras would train wrongly, or not at all, is
refused before the first step, with the reason and the way out.
"""

import contextlib
import functools
import warnings

import keras

BUILD_INSIDE = (
    "build (or load) it inside the recipe's scope:\n\n    with recipe.scope():\n        model = TransformerLM(...)\n"
)


def strategy(name):
    """The strategy called `name`, one of `STRATEGIES`.

    Raises:
        ValueError: an unknown name, or a strategy that the backend in use does not have.
    """
    if name not in STRATEGIES:
        raise ValueError(f"distribution must be one of {list(STRATEGIES)}, got {name!r}")
    return STRATEGIES[name]()


class Single:
    """One device: Keras as it is."""

    num_replicas = 1

    def scope(self):
        return contextlib.nullcontext()

    def check(self, model):
        other = getattr(model, "_distribute_strategy", None)
        if other is not None and other.num_replicas_in_sync > 1:
            raise ValueError(
                f"the model was built inside a strategy of {other.num_replicas_in_sync} replicas, and the recipe says "
                "distribution='single'; use distribution='mirrored', or build the model outside that strategy"
            )

    def prepare(self, optimizer):
        pass


class Mirrored:
    """`tf.distribute.MirroredStrategy` over the machine's GPUs, or over its logical CPUs where there is no GPU.

    Every replica reads its part of the batch; gradients are summed, then clipped, and every replica makes the same step.
    """

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
        _refuse_carried_state(model)
        if model.compiled:
            _refuse_in_mirrored(model)

    def prepare(self, optimizer):
        clip_after_all_reduce(optimizer)


class DataParallel:
    """`keras.distribution.DataParallel` over the local devices of JAX: the batch is split, variables are copied."""

    def __init__(self):
        _needs("data-parallel", "jax", "keras.distribution")
        import jax

        if jax.process_count() > 1:
            raise ValueError(
                f"this recipe trains on one machine, and JAX runs {jax.process_count()} processes; "
                "set keras.distribution yourself, use distribution='single' and give each process its shard of the data"
            )
        self._distribution = keras.distribution.DataParallel(devices=keras.distribution.list_devices())
        self.num_replicas = self._distribution.num_model_replicas

    def scope(self):
        return self._distribution.scope()

    def check(self, model):
        if any(len(variable.value.sharding.device_set) != self.num_replicas for variable in model.trainable_variables):
            raise ValueError(f"the model was built outside the distribution's scope; {BUILD_INSIDE}")

    def prepare(self, optimizer):
        pass  # JAX differentiates the whole batch, so Keras clips the whole gradient


STRATEGIES = {"single": Single, "mirrored": Mirrored, "data-parallel": DataParallel}


def clip_after_all_reduce(optimizer):
    """Make an optimizer of the TensorFlow backend clip the summed gradient, and not each replica's own part.

    Keras clips before the replicas' gradients are summed, which silently trains on other numbers than one device
    does. The optimizer is changed in place and saves as what it was, so that a model file needs nothing from here.

    Args:
        optimizer: any Keras optimizer; one that scales the loss is changed inside. Calling twice does no harm.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    clips = optimizer.clipnorm or optimizer.global_clipnorm or optimizer.clipvalue
    if not clips or getattr(optimizer, "clips_after_all_reduce", False):
        return
    if not hasattr(optimizer, "_all_reduce_sum_gradients") or not hasattr(optimizer, "_clip_gradients"):
        optimizer.clipnorm = optimizer.global_clipnorm = optimizer.clipvalue = None
        warnings.warn(
            f"Keras {keras.__version__} sums the replicas' gradients in a way that is unknown here: training goes on "
            "without clipping, because clipping each replica's part would change the numbers.",
            stacklevel=2,
        )
        return
    all_reduce, clip = optimizer._all_reduce_sum_gradients, optimizer._clip_gradients

    def all_reduce_and_clip(gradients_and_variables):
        gradients, variables = zip(*all_reduce(gradients_and_variables), strict=True)
        return list(zip(clip(gradients), variables, strict=True))

    optimizer._all_reduce_sum_gradients = all_reduce_and_clip
    optimizer._clip_gradients = lambda gradients: gradients
    optimizer.clips_after_all_reduce = True


class _Steps(keras.utils.PyDataset):
    """The batches from a step on, for the backends that read NumPy: Keras may start it anew and nothing is lost."""

    def __init__(self, train, first_step):
        super().__init__()
        self._train, self._first_step = train, first_step
        self._next, self._batches = None, None

    num_batches = None  # without end

    def __getitem__(self, index):
        if index != self._next:
            self._batches, self._next = iter(self._train.batches(self._first_step + index)), index
        self._next += 1
        return next(self._batches)


def feed(train, first_step):
    """What `fit` is given to read `train` from a step on; data without `batches` is handed through."""
    if not hasattr(train, "batches"):
        return train
    if keras.backend.backend() == "tensorflow" and hasattr(train, "as_tf_dataset"):
        return train.as_tf_dataset(first_step)  # shapes are static there, which XLA and strategies like
    return _Steps(train, first_step)


def feed_validation(validation):
    """What `fit` is given as `validation_data`."""
    if keras.backend.backend() == "tensorflow" and hasattr(validation, "as_tf_dataset"):
        return validation.as_tf_dataset()
    return validation


@functools.cache  # a model remembers its strategy, so a process has one for each set of devices
def _mirrored(devices):
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(list(devices))


def _needs(name, backend, library):
    here = keras.backend.backend()
    if here == backend:
        return
    ways = {"tensorflow": "'mirrored'", "jax": "'data-parallel'"}
    way = f"distribution={ways[here]} on the {here} backend" if here in ways else "distribution='single'"
    raise ValueError(
        f"distribution={name!r} is {library}, which needs the {backend} backend, and the backend is {here}; "
        f"use {way}, or set KERAS_BACKEND={backend} before keras is imported"
    )


def _refuse_carried_state(model):
    rows = getattr(model, "stateful_batch_size", None)
    if rows is not None:
        raise ValueError(
            f"the model carries the state of {rows} rows from batch to batch, and a replica sees only its part of the "
            "rows; build it with stateful_batch_size=None, or use distribution='single'"
        )


def _refuse_in_mirrored(model):
    """Settings of `compile` that fail under several replicas or, worse, train on other numbers."""
    optimizer = model.optimizer
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    losses = keras.tree.flatten(model.loss)
    faults = {
        "a scaled loss (mixed_float16): Keras looks for overflow on the first replica alone, and one on another "
        "replica would turn the weights into NaN; use precision='mixed_bfloat16'": optimizer is not inner,
        "gradient_accumulation_steps: Keras raises; use a larger batch": inner.gradient_accumulation_steps,
        "use_ema: Keras raises; use keras.callbacks.SwapEMAWeights, or leave it out": inner.use_ema,
        "steps_per_execution above 1: Keras raises; leave it at 1": model.steps_per_execution > 1,
        "jit_compile=True: TensorFlow cannot compile the exchange of gradients; use 'auto'": model.jit_compile is True,
        "reduction='mean_with_sample_weight': a replica with few real tokens would weigh too much; use "
        "'sum_over_batch_size'": any(getattr(loss, "reduction", None) == "mean_with_sample_weight" for loss in losses),
    }
    found = [fault for fault, present in faults.items() if present]
    if found:
        raise ValueError("the model was compiled with what does not go with several replicas: " + "; ".join(found))
