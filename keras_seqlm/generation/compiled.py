"""One function of tensors, compiled for the backend at hand, with a model's weights passed in."""

import weakref

import keras

_COMPILED = weakref.WeakKeyDictionary()  # model -> {(function, its constants): the compiled form}


def compiled(model, function, *constants):
    """`function(model, *constants, *tensors)` as a call of tensors: traced once for each set of shapes.

    TensorFlow: a `tf.function` (without XLA, whose compilation costs more than most texts). JAX: `jax.jit`, the
    weights being arguments. torch: eager, without gradients.

    Args:
        model: a `keras.Model`; kept weakly, so its compiled functions go when it goes.
        function: takes the model, the constants, then tensors or nested dicts of them, and returns the same.
        constants: hashable values that the trace may hold.
    """
    if not getattr(model, "built", True):
        model.build()  # JAX: variables made inside a trace would leak out of it
    table = _COMPILED.setdefault(model, {})
    key = (function, constants)
    if key not in table:
        table[key] = _compile(weakref.ref(model), function, constants)
    return table[key]


def traces(model, function, *constants):
    """How often `function` has been traced for `model`: what a test of the buckets looks at (0 on torch)."""
    run = _COMPILED.get(model, {}).get((function, constants))
    return 0 if run is None else run.traces()


def _compile(model, function, constants):
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        table = {}

        # One concrete function for each set of shapes: a new shape is a new bucket here, and nothing to be warned of.
        def run(*tensors):
            key = tuple((tuple(leaf.shape), leaf.dtype) for leaf in tf.nest.flatten(tensors))
            if key not in table:
                graph = tf.function(lambda *tensors: function(model(), *constants, *tensors), autograph=False)
                table[key] = graph.get_concrete_function(*tensors)
            return table[key](*tensors)

        run.traces = lambda: len(table)
        return run
    if backend == "jax":
        import jax

        @jax.jit
        def stateless(values, *tensors):
            with keras.StatelessScope(state_mapping=list(zip(model().variables, values, strict=True))):
                return function(model(), *constants, *tensors)

        def run(*tensors):
            return stateless([variable.value for variable in model().variables], *tensors)

        run.traces = stateless._cache_size
        return run

    import torch

    def run(*tensors):
        with torch.no_grad():
            return function(model(), *constants, *tensors)

    run.traces = lambda: 0
    return run
