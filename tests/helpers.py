"""What several test files share: tiny models by name, a mock model, NumPy's view of tensors, the rule of near ties."""

import functools

import keras
import numpy as np
from keras import ops

from keras_seqlm.generation.compiled import compiled
from keras_seqlm.generation.random import uniform
from keras_seqlm.models import RecurrentLM, TransformerLM

if keras.backend.backend() == "jax":
    import jax

    # Compiling takes most of these tests' time; the fresh processes of test_saving.py run with all optimisations.
    jax.config.update("jax_disable_most_optimizations", True)

VOCABULARY = 40
CONTEXT = 32
SUPPRESSED = (0, 1, 3)

_RECURRENT = {"size": "nano", "num_layers": 2, "hidden_dim": 16}
_TRANSFORMER = {"size": "nano", "num_layers": 2, "hidden_dim": 16, "num_heads": 4, "max_length": CONTEXT}
MODELS = {
    "rnn": (RecurrentLM, {**_RECURRENT, "cell": "rnn"}),
    "gru": (RecurrentLM, {**_RECURRENT, "cell": "gru", "tie_embedding": False}),
    "lstm": (RecurrentLM, {**_RECURRENT, "cell": "lstm", "embedding_dim": 12}),
    "learned": (TransformerLM, _TRANSFORMER),
    "rotary": (
        TransformerLM,
        {
            **_TRANSFORMER,
            "positions": "rotary",
            "num_kv_heads": 2,
            "norm": "rms",
            "activation": "swiglu",
            "use_bias": False,
        },
    ),
    "sinusoidal": (TransformerLM, {**_TRANSFORMER, "positions": "sinusoidal", "activation": "gelu"}),
    "post_norm": (TransformerLM, {**_TRANSFORMER, "norm_first": False, "activation": "relu"}),
    "untied": (TransformerLM, {**_TRANSFORMER, "tie_embedding": False, "num_kv_heads": 1, "activation": "geglu"}),
}


def new_model(name, vocabulary_size=VOCABULARY, **options):
    """A fresh model whose weights are the same on every backend; biases and norms are no zeros and ones."""
    kind, parts = MODELS[name]
    model = kind(vocabulary_size, **{**parts, **options})
    model.build()
    randomize(model)
    return model


@functools.cache
def cut_products(dtype):
    """2 where this machine cuts the digits of products in `dtype` off, as TensorFlow does in bfloat16 on a processor without
    AVX-512, and 1 where it rounds them: by so much is what it computes farther from the exact numbers.
    """
    draws = np.random.default_rng(0)
    a, b = (ops.cast(draws.standard_normal(shape).astype("float32"), dtype) for shape in ((32, 64), (64, 32)))
    exact = np.matmul(*(ops.convert_to_numpy(ops.cast(part, "float32")).astype("float64") for part in (a, b)))
    found = ops.convert_to_numpy(ops.cast(ops.matmul(a, b), "float32"))
    rounded = ops.convert_to_numpy(ops.cast(ops.cast(exact.astype("float32"), dtype), "float32"))
    return 1 if np.abs(found - exact).max() < 1.5 * np.abs(rounded - exact).max() else 2


@functools.cache
def tiny(name):
    """The one model of that name that tests share which do not change it."""
    return new_model(name)


def randomize(layer, seed=3, scale=0.35):
    random = np.random.default_rng(seed)
    for weight in layer.trainable_weights:
        centre = 1.0 if weight.name in ("gamma", "scale") else 0.0
        weight.assign(centre + scale * random.standard_normal(weight.shape))


def ids_of(*shape, seed=5, vocabulary_size=VOCABULARY):
    return np.random.default_rng(seed).integers(4, vocabulary_size, shape).astype("int32")


def array(tensor):
    return np.array(ops.convert_to_numpy(tensor))


def arrays(state):
    return {name: array(leaf) for name, leaf in state.items()}


class AddingModel:
    """A model whose next id is the sum of `id + 1` over all ids read so far, the one after it second best.

    A padded id that is read, or an id that is read twice, shows at once.
    """

    vocabulary_size, max_length, variables = VOCABULARY, None, ()

    def initial_state(self, batch_size, max_length=None):
        return {"position": ops.zeros((batch_size,), "int32"), "total": ops.zeros((batch_size,), "int32")}

    def __call__(self, inputs, state):
        ids, lengths = inputs["token_ids"], inputs["lengths"]
        real = ops.arange(ops.shape(ids)[1], dtype="int32")[None] < lengths[:, None]
        totals = state["total"][:, None] + ops.cumsum(ops.where(real, ids + 1, 0), axis=1)
        state = {"position": state["position"] + lengths, "total": totals[:, -1]}
        best, second = (ops.one_hot(ops.mod(totals + k, VOCABULARY), VOCABULARY, dtype="float32") for k in (0, 1))
        return 5.0 * best + 4.0 * second, state


def run(model, function, *tensors):
    """`function(model, *tensors)`: eager, but on JAX compiled, where every operation would be compiled by itself."""
    if keras.backend.backend() == "jax":
        return compiled(model, function)(*tensors)
    return function(model, *tensors)


def logits_without_state(model, token_ids):
    return model(token_ids)


def whole_logits(model, ids):
    """Logits (time, vocabulary) of one sequence in one pass without state; padded, so that shapes are few."""
    padded = np.zeros((1, -(-len(ids) // CONTEXT) * CONTEXT), "int32")
    padded[0, : len(ids)] = ids
    return array(run(model, logits_without_state, padded))[0, : len(ids)]


def choice(logits, position, temperature, seed):
    """The next id after `position` tokens by its definition, and how far it is from another one.

    The distance is that of the two best logits (greedy), or of the draw and the nearest border of the cumulative
    distribution.
    """
    logits = logits.astype("float64")
    logits[list(SUPPRESSED)] = -1e30
    if temperature == 0:
        second, first = np.sort(logits)[-2:]
        return int(np.argmax(logits)), first - second
    weights = np.exp((logits - logits.max()) / temperature)
    borders = np.cumsum(weights) / weights.sum()
    draw = float(array(uniform(np.array([seed], "int32"), np.array([position], "int32")))[0])
    return int(np.searchsorted(borders, draw, side="right")), np.abs(borders - draw).min()


def assert_written_by(model, prompt, text, temperature=0.0, seed=0, border=1e-4):
    """Every id of `text` is what a whole pass over all before it chooses, but where the choice hangs on rounding."""
    everything = [*map(int, prompt), *map(int, text)]
    logits = whole_logits(model, everything)
    for position in range(len(prompt), len(everything)):
        chosen, distance = choice(logits[position - 1], position, temperature, seed)
        assert chosen == everything[position] or distance < border, f"step {position - len(prompt)} of {list(text)}"


def assert_same_text(model, prompt, left, right, temperature=0.0, seed=0, border=1e-4):
    """Two texts after `prompt` are equal, or part first where the choice hangs on rounding.

    What follows such a step has another history and is held to a whole pass instead.
    """
    left, right = list(map(int, left)), list(map(int, right))
    if left != right:
        step = next(i for i, pair in enumerate(zip(left, right, strict=True)) if pair[0] != pair[1])
        read = [*map(int, prompt), *left[:step]]
        _, distance = choice(whole_logits(model, read)[-1], len(read), temperature, seed)
        assert distance < border, f"texts part at step {step}, no near tie ({distance:.2e}): {left} and {right}"
        for text in (left, right):
            assert_written_by(model, prompt, text, temperature, seed, border)


def cross_entropy(logits, targets, weights=None):
    """Mean -ln p(target), as `SparseCategoricalCrossentropy(from_logits=True)` averages it, in float64."""
    logits = logits.astype("float64")
    log_sum = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    losses = log_sum - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    return losses.mean() if weights is None else (losses * weights).sum() / weights.size


def compile_plainly(model, optimizer="adam", **options):
    """Compiled with Keras's own loss; without XLA, whose compilation takes longer than these tests."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, jit_compile=keras.backend.backend() == "jax", **options)
    return model
