"""One function of tensors, compiled for the backend at hand, with a model's weights passed in."""

import weakref

import keras

_COMPILED = weakref.WeakKeyDictionary()  # model -> _Table


class _Table(dict):
    """(function, its constants) -> the compiled form; and the variables that all of them read."""

    variables = ()


def compiled(model, function, *constants, donate=(), xla=False):
    """`function(model, *constants, *tensors)` as a call of tensors: traced once for each set of shapes.

    TensorFlow: a `tf.function`. JAX: `jax.jit`, the weights being arguments. torch: eager, without gradients. A model
    whose variables are others than at the last call (after `enable_lora`, `quantize`) is traced anew.

    Args:
        model: a `keras.Model`; kept weakly, so its compiled functions go when it goes.
        function: takes the model, the constants, then tensors or nested dicts of them, and returns the same.
        constants: hashable values that the trace may hold.
        donate: numbers of the tensors (among those after the constants) that are used up by a call, so that JAX may
            write its results into their memory.
        xla: whether TensorFlow compiles by XLA, which costs seconds, and pays where a model is large or a text long.
    """
    if not getattr(model, "built", True):
        model.build()  # JAX: variables made inside a trace would leak out of it
    table = _COMPILED.setdefault(model, _Table())
    variables = tuple(model.variables)
    if len(variables) != len(table.variables) or any(
        a is not b for a, b in zip(variables, table.variables, strict=True)
    ):
        table.clear()
        table.variables = variables
    key = (function, constants, xla)
    if key not in table:
        table[key] = _compile(weakref.ref(model), function, constants, donate, xla)
    return table[key]


def traces(model, function):
    """How often `function` has been traced for `model`, whatever its constants: what a test looks at (0 on torch)."""
    return sum(run.traces() for key, run in _COMPILED.get(model, {}).items() if key[0] is function)


def _compile(model, function, constants, donate, xla):
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        table = {}

        # One concrete function for each set of shapes: a new shape is a new bucket here, and nothing to be warned of.
        def run(*tensors):
            tensors = tf.nest.map_structure(tf.convert_to_tensor, tensors)
            key = tuple((tuple(leaf.shape), leaf.dtype) for leaf in tf.nest.flatten(tensors))
            if key not in table:
                graph = tf.function(
                    lambda *tensors: function(model(), *constants, *tensors), autograph=False, jit_compile=xla
                )
                table[key] = graph.get_concrete_function(*tensors)
            return table[key](*tensors)

        run.traces = lambda: len(table)
        return run
    if backend == "jax":
        import jax

        def stateless(values, *tensors):
            with keras.StatelessScope(state_mapping=list(zip(model().variables, values, strict=True))):
                return function(model(), *constants, *tensors)

        jitted = jax.jit(stateless, donate_argnums=[i + 1 for i in donate])

        def run(*tensors):
            if isinstance(model(), keras.Model):
                model().jax_state_sync()  # a callback asks while `fit` has the numbers
            return jitted([variable.value for variable in model().variables], *tensors)

        run.traces = jitted._cache_size
        return run

    import torch

    def run(*tensors):
        with torch.no_grad():
            return function(model(), *constants, *tensors)

    run.traces = lambda: 0
    return run
