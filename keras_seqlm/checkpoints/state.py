"""The whole state of a training run as NumPy arrays, and back: weights, optimizer, seeds, carried state, metrics."""

import math

import keras
import numpy as np
from keras import ops

from keras_seqlm.checkpoints.checkpoint import CheckpointError

GROUPS = ("model", "optimizer", "metrics", "random")
TORCH_RANDOM = "random/torch"


def variables_of(model):
    """Every variable that a step reads or writes: a dict `group/number -> variable`, for the first three of `GROUPS`.

    The model's hold the seed generators of dropout and a carried recurrent state, too; the optimizer's its slots, its step,
    accumulated gradients, averaged weights and loss scale.
    """
    groups = {
        "model": model.variables,
        "optimizer": [] if model.optimizer is None else model.optimizer.variables,
        "metrics": model.metrics_variables,
    }
    return {f"{group}/{i:05d}": variable for group, found in groups.items() for i, variable in enumerate(found)}


def size_of(model):
    """Bytes of all variables."""
    sizes = {"bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}  # NumPy does not know these by name
    return sum(
        math.prod(variable.shape) * (sizes.get(dtype) or np.dtype(dtype).itemsize)
        for variable in variables_of(model).values()
        for dtype in [keras.backend.standardize_dtype(variable.dtype)]
    )


def arrays_of(model, groups=GROUPS):
    """Copies of the variables of these groups, as NumPy arrays under the names of `variables_of`; "random": of torch.

    What lies spread over several JAX processes comes as it is: a `jax.Array` that the next step overwrites.
    """
    if keras.backend.backend() == "jax":
        model.jax_state_sync()  # while `fit` runs, the numbers are away
    named = {name: variable for name, variable in variables_of(model).items() if name.split("/")[0] in groups}
    arrays = {name: _to_numpy(variable.value) for name, variable in named.items()}
    return arrays | _torch_random() if "random" in groups else arrays


def check(model, checkpoint):
    """See that a checkpoint is of this model, before a byte of it is read.

    Raises:
        CheckpointError: variables that are missing, too many, or of another shape or dtype; all of them are named.
    """
    here = {name: variable for name, variable in variables_of(model).items() if not name.startswith("metrics/")}
    there = {name: form for name, form in checkpoint.shapes.items() if not name.startswith(("metrics/", "random/"))}
    paths = checkpoint.meta.get("paths", {})
    wrong = [
        f"{variable.path} is {variable.dtype} {tuple(variable.shape)} here and {' '.join(map(str, there[name]))} there"
        for name, variable in here.items()
        if name in there and not _fits(variable, *there[name])
    ]
    wrong += [f"{variable.path} is not in the checkpoint" for name, variable in here.items() if name not in there]
    wrong += [f"{paths.get(name, name)} is in the checkpoint alone" for name in there if name not in here]
    if wrong:
        raise CheckpointError(
            f"{checkpoint.folder} is of another model or optimizer: {'; '.join(wrong[:20])}"
            + (f"; and {len(wrong) - 20} more" if len(wrong) > 20 else "")
            + ". Nothing was changed; use the model it was written with, or another folder"
        )


def assign(model, arrays):
    """Write arrays, named and formed as by `arrays_of`, into the variables."""
    if keras.backend.backend() == "jax":
        model.jax_state_sync()
    named = variables_of(model)
    for name, array in arrays.items():
        if name in named:
            named[name].assign(_from_numpy(array, named[name]))


def assign_random(arrays):
    """Set torch's generators back, as `arrays_of` found them; elsewhere the seeds are variables, and nothing is to do."""
    if keras.backend.backend() != "torch":
        return
    import torch

    states = {name: torch.from_numpy(array) for name, array in arrays.items() if name.startswith(TORCH_RANDOM)}
    for name, generator in states.items():
        number = int(name.rsplit("/", 1)[1])
        if number == 0:
            torch.set_rng_state(generator)
        elif number <= torch.cuda.device_count():
            torch.cuda.set_rng_state(generator, number - 1)


def shardings_of(model):
    """Name -> `jax.sharding.Sharding` of each variable; None on other backends."""
    if keras.backend.backend() != "jax":
        return None
    model.jax_state_sync()
    return {name: variable.value.sharding for name, variable in variables_of(model).items()}


def is_finite(arrays):
    """Whether no weight and no slot of the optimizer has a NaN or an infinity in it; counts and metrics may.

    Where arrays lie in several processes, all of these ask at once.
    """
    tables = [array for name, array in arrays.items() if not name.startswith("metrics/") and array.ndim]
    return all(_all_finite(array) for array in tables if array.dtype.kind not in "iub")


def _all_finite(array):
    if isinstance(array, np.ndarray):
        return np.isfinite(np.asarray(array, "float32")).all()
    return bool(ops.all(ops.isfinite(array)))


def _torch_random():
    """On torch, a dropout layer without a seed of its own draws from torch's generators and not from Keras's."""
    if keras.backend.backend() != "torch":
        return {}
    import torch

    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]
    return {f"{TORCH_RANDOM}/{i}": state.numpy() for i, state in enumerate(states)}


def _fits(variable, dtype, shape):
    # Counts and seeds are 32 bits wide on one backend and 64 on another.
    both_whole = "int" in dtype and "int" in variable.dtype
    return tuple(variable.shape) == shape and (both_whole or dtype == keras.backend.standardize_dtype(variable.dtype))


def _to_numpy(value):
    if keras.backend.backend() == "jax":
        import jax

        if isinstance(value, jax.Array) and not value.is_fully_addressable:  # of several processes
            if not value.is_fully_replicated:
                return value
            value = value.addressable_data(0)
    # A copy: on a CPU the array may be a view of memory that the next step writes to.
    return np.array(keras.ops.convert_to_numpy(value))


def _from_numpy(array, variable):
    if keras.backend.backend() == "jax":
        import jax

        value = variable.value
        if isinstance(array, np.ndarray) and isinstance(value, jax.Array) and not value.is_fully_addressable:
            return jax.make_array_from_callback(array.shape, value.sharding, lambda index: array[index])
    return array
