"""The whole state of a training run as NumPy arrays, and back: weights, optimizer, seeds, carried state, metrics."""

import collections
import json
import math
import random
import re
import warnings

import keras
import numpy as np
from keras import ops

from keras_seqlm.checkpoints import copies
from keras_seqlm.checkpoints.carried import carried_by
from keras_seqlm.checkpoints.checkpoint import CheckpointError
from keras_seqlm.nesting import innermost

GROUPS = ("model", "carried", "optimizer", "metrics", "random")
KERAS_RANDOM, NUMPY_RANDOM, PYTHON_RANDOM, TORCH_RANDOM = (
    f"random/{library}" for library in ("keras", "numpy", "python", "torch")
)


def variables_of(model):
    """Every variable that a step reads or writes: a dict `group/number -> variable`, for all but the last of `GROUPS`.

    The model's hold the seed generators of dropout and a carried recurrent state, too; those that layers of Keras carry beside
    them are a group of their own. The optimizer's are its slots, its step, accumulated gradients, averaged weights and loss
    scale.
    """
    optimizer = getattr(model, "optimizer", None)
    groups = {
        "model": model.variables,
        "carried": carried_by(model),
        "optimizer": [] if optimizer is None else optimizer.variables,
        "metrics": model.metrics_variables,
    }
    return {f"{group}/{i:05d}": variable for group, found in groups.items() for i, variable in enumerate(found)}


def identity_of(model):
    """What a checkpoint says of its model beside the arrays: a dict that JSON takes.

    `paths`: name -> path of each variable; `model`: how to build it, None where Keras cannot say; `averages`: weight ->
    its average among the optimizer's variables, where it keeps some.
    """
    named = variables_of(model)
    return {
        "paths": {name: variable.path for name, variable in named.items()},
        "model": config_of(model),
        "averages": _averages(model, named),
    }


def model_of(checkpoint):
    """The model that a checkpoint is of, built anew with the checkpoint's weights; averaged ones where they were validated.

    Raises:
        CheckpointError: the checkpoint does not say how its model is built, or its classes are not known here.
    """
    config = checkpoint.meta.get("model")
    if config is None:
        raise CheckpointError(
            f"{checkpoint.folder} does not say how its model is built: a version before wrote it, or the model has no "
            "get_config; build the model, and give it to Resume(...).restore"
        )
    try:
        model = keras.saving.deserialize_keras_object(config)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:500]
        raise CheckpointError(
            f"the model of {checkpoint.folder} cannot be built here: {reason}; import the module that defines its classes first"
        ) from error
    if not model.built:
        model.build()
    averages = checkpoint.meta.get("averages", {})
    names = {name: averages.get(there, there) for name, there in _matched(model, checkpoint, ("model",)).items()}
    arrays = checkpoint.arrays(names=set(names.values()))
    assign(model, {name: arrays[there] for name, there in names.items()})
    return model


def config_of(model):
    """How to build a model, as `keras.saving.deserialize_keras_object` takes it; None where Keras cannot say."""
    try:
        config = keras.saving.serialize_keras_object(model)
        json.dumps(config)
    except (NotImplementedError, TypeError, ValueError):  # a model of one's own without get_config
        return None
    return {key: value for key, value in config.items() if key != "compile_config"}


def _averages(model, named):
    optimizer = innermost(getattr(model, "optimizer", None))
    if not getattr(optimizer, "use_ema", False):
        return {}
    names = {id(variable): name for name, variable in named.items()}
    pairs = zip(optimizer._trainable_variables, optimizer._model_variables_moving_average, strict=True)
    return {names[id(weight)]: names[id(average)] for weight, average in pairs}


def size_of(model):
    """Bytes of all variables."""
    sizes = {"bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}  # NumPy does not know these by name
    return sum(
        math.prod(variable.shape) * (sizes.get(dtype) or np.dtype(dtype).itemsize)
        for variable in variables_of(model).values()
        for dtype in [keras.backend.standardize_dtype(variable.dtype)]
    )


def arrays_of(model, groups=GROUPS):
    """Copies of the variables of these groups under the names of `variables_of`: NumPy arrays after `copies.to_host`.

    Until then those of an accelerator with room for them lie there, since training would wait for their way to the host.
    "random" are the generators that belong to no model: Keras's global one, Python's, NumPy's and torch's.

    What lies spread over several JAX processes comes as it is (see `is_spread`): the next step overwrites it.
    """
    if keras.backend.backend() == "jax":
        model.jax_state_sync()  # while `fit` runs, the numbers are away
    named = {name: variable for name, variable in variables_of(model).items() if name.split("/")[0] in groups}
    values = {name: _of_this_process(variable.value) for name, variable in named.items()}
    spread = {name: value for name, value in values.items() if is_spread(value)}
    whole = {name: value for name, value in values.items() if name not in spread}
    whole = copies.beside(whole) or {name: _to_numpy(value) for name, value in whole.items()}
    random_numbers = _random() if "random" in groups else {}
    return {**{name: spread.get(name, whole.get(name)) for name in values}, **random_numbers}


def is_spread(array):
    """Whether an array lies in several JAX processes, none of which has all of it."""
    return not getattr(array, "is_fully_addressable", True)


def read(model, checkpoint, groups=("model", "carried", "optimizer")):
    """The arrays of a checkpoint under the names of `variables_of(model)`, after a look whether it is of this model.

    A variable is known by its path, as Keras names it: "block_0/attention/query/kernel". Keras counts the layers of a
    process that have no name of their own (dense, dense_1, ...); where a model is not the first of its process, so that
    all paths differ by such counts alone and stand in the same order, the order decides.

    Args:
        model: built; compiled where the optimizer's are wanted.
        checkpoint: a `Checkpoint`.
        groups: which ones; those of "metrics" may be fewer here or there.

    Raises:
        CheckpointError: variables that are missing, too many, or of another shape or dtype; all of them are named, and
            nothing was changed.
    """
    names = _matched(model, checkpoint, groups)
    shardings = shardings_of(model)
    if shardings is not None:
        shardings = {names[name]: sharding for name, sharding in shardings.items() if name in names}
    here = {there: name for name, there in names.items()}
    return {here[name]: array for name, array in checkpoint.arrays(shardings, here).items()}


def _matched(model, checkpoint, groups):
    """Name here -> name in the checkpoint."""
    here, paths = variables_of(model), checkpoint.meta.get("paths", {})
    names, wrong = {}, []
    roots = (_root({name: variable.path for name, variable in here.items()}), _root(paths))
    for group in groups:
        ours = {name: variable.path for name, variable in here.items() if name.startswith(f"{group}/")}
        theirs = {name: paths.get(name, name) for name in sorted(checkpoint.shapes) if name.startswith(f"{group}/")}
        if group == "carried" and ours and not theirs:
            warnings.warn(
                f"{checkpoint.folder} was written by a version that did not save {', '.join(sorted(set(ours.values())))}: that "
                "is zero when the run goes on",
                stacklevel=4,
            )
            continue
        if group == "optimizer" and paths:
            wrong += _take_rates_out(ours, theirs)
        found = _by_path(ours, theirs, roots)
        if group != "metrics":
            wrong += [f"{path} is not in the checkpoint" for name, path in ours.items() if name not in found]
            used = set(found.values())
            wrong += [f"{path} is in the checkpoint alone" for name, path in theirs.items() if name not in used]
        for name, there in found.items():
            if _fits(here[name], *checkpoint.shapes[there]):
                names[name] = there
            elif group != "metrics":
                form = " ".join(map(str, checkpoint.shapes[there]))
                variable = here[name]
                wrong.append(f"{variable.path} is {variable.dtype} {tuple(variable.shape)} here and {form} there")
    if wrong:
        raise CheckpointError(
            f"{checkpoint.folder} is of another model or optimizer: {'; '.join(wrong[:20])}"
            + (f"; and {len(wrong) - 20} more" if len(wrong) > 20 else "")
            + ". Nothing was changed; use the model it was written with, or another folder"
        )
    return names


def _take_rates_out(ours, theirs):
    """Where a learning rate, a variable if it is a number, became a schedule or was one: say so, and compare the rest."""
    rates = [[name for name, path in paths.items() if path.endswith("/learning_rate")] for paths in (ours, theirs)]
    if len(rates[0]) == len(rates[1]):
        return []
    for paths, names in zip((ours, theirs), rates, strict=True):
        for name in names:
            del paths[name]
    here, there = ("a number" if names else "a schedule" for names in rates)
    return [f"the learning rate is {here} here and was {there} there, so compile the model with {there}"]


def _by_path(ours, theirs, roots):
    """Name -> name, of two dicts name -> path in the order of the variables; `roots`: what both models are called."""
    if ours.keys() == theirs.keys() and all(path == name for name, path in theirs.items()):
        return dict(zip(ours, theirs, strict=True))  # the checkpoint knows no paths
    if sorted(ours.values()) != sorted(theirs.values()):
        if len(ours) == len(theirs) and all(map(_one_path, ours.values(), theirs.values())):
            return dict(zip(ours, theirs, strict=True))
        ours, theirs = (
            {name: _within(path, root) for name, path in paths.items()}
            for paths, root in zip((ours, theirs), roots, strict=True)
        )
    left = collections.defaultdict(list)
    for name, path in theirs.items():
        left[path].append(name)
    return {name: left[path].pop(0) for name, path in ours.items() if left[path]}  # one path twice: in their order


def _one_path(ours, theirs):
    """Whether two paths say the same but for counts, and for the model around a part that is built in it or before it.

    A head that builds its backbone gives its name to the backbone's paths; Keras, which builds the backbone first where it reads
    a config, does not.
    """
    short, long = sorted((f"/{_uncounted(ours)}", f"/{_uncounted(theirs)}"), key=len)
    return long.endswith(short)


def _uncounted(path):
    return re.sub(r"_[0-9]+(?=[/_]|$)", "", path)


def _within(path, root):
    """A path without the counts in the names of its model and of its optimizer."""
    first, _, rest = path.partition("/")
    return f"{_uncounted(first)}/{rest.replace(root, _uncounted(root))}"


def _root(paths):
    return next((path.partition("/")[0] for name, path in paths.items() if name.startswith("model/")), "")


def assign(model, arrays):
    """Write arrays, named and formed as by `arrays_of`, into the variables."""
    if keras.backend.backend() == "jax":
        model.jax_state_sync()
    named = variables_of(model)
    for name, array in arrays.items():
        if name in named:
            named[name].assign(_from_numpy(array, named[name]))


def assign_random(arrays):
    """Set the generators that belong to no model back, as `arrays_of` found them."""
    if KERAS_RANDOM in arrays:
        _global_generator().state.assign(arrays[KERAS_RANDOM])
    if NUMPY_RANDOM in arrays:
        *words, position, has_normal = arrays[NUMPY_RANDOM].tolist()
        np.random.set_state(("MT19937", words, position, has_normal, float(arrays[f"{NUMPY_RANDOM}_normal"])))
    if PYTHON_RANDOM in arrays:
        version, _, normal = random.getstate()
        normal = float(arrays[f"{PYTHON_RANDOM}_normal"])
        random.setstate((version, tuple(arrays[PYTHON_RANDOM].tolist()), None if np.isnan(normal) else normal))
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
    tables = [array for name, array in arrays.items() if name.startswith(("model/", "optimizer/")) and array.ndim]
    return all(_all_finite(array) for array in tables if array.dtype.kind not in "iub")


def _all_finite(array):
    if isinstance(array, np.ndarray):
        return np.isfinite(np.asarray(array, "float32")).all()
    return bool(ops.all(ops.isfinite(array)))


def _random():
    """The generators outside of the model: a layer or a callback may draw from them where it has no seed of its own."""
    _, words, position, has_normal, normal = np.random.get_state()
    python = random.getstate()
    keras_state = _global_generator().state
    random.setstate(python)  # Keras's generator, where it is made here, draws its seed from Python's
    _, python_words, python_normal = python
    states = {
        KERAS_RANDOM: np.array(ops.convert_to_numpy(keras_state)),
        NUMPY_RANDOM: np.array([*words.tolist(), position, has_normal], "uint32"),
        f"{NUMPY_RANDOM}_normal": np.array(normal, "float64"),
        PYTHON_RANDOM: np.array(python_words, "uint32"),
        f"{PYTHON_RANDOM}_normal": np.array(np.nan if python_normal is None else python_normal, "float64"),
    }
    if keras.backend.backend() == "torch":  # a dropout layer without a seed of its own draws from torch's generators
        import torch

        generators = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]
        states |= {f"{TORCH_RANDOM}/{i}": state.numpy() for i, state in enumerate(generators)}
    return states


def _global_generator():
    from keras.src.random.seed_generator import global_seed_generator  # no public way leads to it

    return global_seed_generator()


def _fits(variable, dtype, shape):
    # Counts and seeds are 32 bits wide on one backend and 64 on another.
    both_whole = "int" in dtype and "int" in variable.dtype
    return tuple(variable.shape) == shape and (both_whole or dtype == keras.backend.standardize_dtype(variable.dtype))


def _of_this_process(value):
    return value.addressable_data(0) if is_spread(value) and value.is_fully_replicated else value


def _to_numpy(value):
    if keras.backend.backend() == "tensorflow" and hasattr(value, "values"):
        value = ops.copy(value)  # of several replicas: NumPy cannot read a scalar of theirs
    # A copy: on a CPU the array may be a view of memory that the next step writes to.
    return np.array(keras.ops.convert_to_numpy(value))


def _from_numpy(array, variable):
    if keras.backend.backend() == "jax":
        import jax

        value = variable.value
        if isinstance(array, np.ndarray) and isinstance(value, jax.Array) and not value.is_fully_addressable:
            return jax.make_array_from_callback(array.shape, value.sharding, lambda index: array[index])
    return array
