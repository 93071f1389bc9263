"""What an exported model answers: the generation loop and the score, traced from text to text.

TensorFlow is imported in the functions: only the clean process of an export runs them.
"""

from keras import ops

from keras_seqlm.generation.buckets import SMALLEST, buckets
from keras_seqlm.generation.loop import advance, start
from keras_seqlm.generation.samplers import OPTIONS, clamp
from keras_seqlm.generation.score import log_probabilities

DEFAULT_NEW_TOKENS = 64
RECURRENT_PREFILLS = (16, 64, 256)


def serving_module(model, tokenizer, max_new_tokens_limit):
    """A `tf.Module` with a `tf.function` for each signature of a SavedModel.

    The module keeps the variables in a list and the model in a closure: a module that holds a Keras model is converted
    without its weights, silently.

    Args:
        model: a language model at float32.
        tokenizer: its tokenizer.
        max_new_tokens_limit: the most tokens that a request can ask for.

    Returns:
        The module and a dict signature -> concrete function.
    """
    import tensorflow as tf

    module = tf.Module()
    module.variables_of_the_model = [variable.value for variable in model.variables]
    module.tokenizer = tokenizer.in_graph()
    context = model.max_length
    eos_id = tf.constant(-1 if tokenizer.eos_id is None else tokenizer.eos_id, tf.int32)
    suppressed_ids = tokenizer.suppressed_ids

    def ids_of(text):
        ids, lengths = module.tokenizer.tokenize(text)
        if tokenizer.bos_id is not None:
            ids = tf.concat([tf.fill([tf.shape(ids)[0], 1], tokenizer.bos_id), ids], axis=1)
            lengths = lengths + 1
        return ids, lengths

    def write(ids, lengths, budget, options, room, cache_length):
        carry = start(model, cache_length, ids, lengths, budget)
        token_ids, written, _ = advance(model, room, suppressed_ids, None, carry, options, eos_id)
        return token_ids, written

    compiled_write = tf.function(
        lambda ids, lengths, budget, options: write(
            ids, lengths, budget, options, max_new_tokens_limit, tf.shape(ids)[1] + max_new_tokens_limit
        ),
        jit_compile=True,
        autograph=False,
    )

    def answer(text, max_new_tokens, options, xla=False):
        ids, lengths = ids_of(text)
        wanted = tf.clip_by_value(max_new_tokens, 0, max_new_tokens_limit)
        ids, kept = keep_last(ids, lengths, None if context is None else tf.maximum(context - wanted, 1))
        budget = wanted if context is None else tf.minimum(wanted, context - kept)
        options = clamp(options)
        if xla:
            ids = pad_to_bucket(ids)
            token_ids, written = compiled_write(ids, kept, budget, options)
        else:
            room = tf.reduce_max(tf.concat([budget, [0]], axis=0))
            token_ids, written = write(ids, kept, budget, options, room, tf.shape(ids)[1] + room)
        return {
            "generated_text": module.tokenizer.detokenize(token_ids, written),
            "token_ids": token_ids,
            "num_tokens": written,
            "truncated": kept < lengths,
        }

    def generate_text(text):
        rows = tf.zeros_like(tf.strings.length(text))
        defaults = {name: tf.cast(rows, dtype) + tf.cast(value, dtype) for name, (dtype, value) in OPTIONS.items()}
        return answer(text, rows + DEFAULT_NEW_TOKENS, defaults)

    def score(text):
        ids, lengths = ids_of(text)
        if context is not None:
            lengths = tf.minimum(lengths, context)
            ids = ids[:, :context]
        # One more column, so that a batch of empty texts still has a target to leave out.
        ids = tf.pad(ids, [[0, 0], [0, 1]])
        rows = log_probabilities(model, ids)
        counted = tf.sequence_mask(lengths - 1, tf.shape(rows)[1])
        return {"log_probability": tf.reduce_sum(tf.where(counted, rows, 0.0), axis=1), "num_tokens": lengths - 1}

    def logits(token_ids, lengths):
        values = model({"token_ids": token_ids})
        real = tf.sequence_mask(lengths, tf.shape(token_ids)[1])
        return {"logits": tf.where(real[:, :, None], values, 0.0)}

    def generate(text, max_new_tokens, **options):
        return answer(text, max_new_tokens, options)

    def generate_xla(text, max_new_tokens, **options):
        return answer(text, max_new_tokens, options, xla=True)

    functions = (generate_text, generate, generate_xla, score, logits)
    return module, _traced({function.__name__: function for function in functions})


def _traced(functions):
    """A concrete function for each signature's function, and `serving_default`, which is `generate_text`."""
    import tensorflow as tf

    text = {"text": tf.TensorSpec([None], tf.string, "text")}
    options = {name: tf.TensorSpec([None], tf.as_dtype(dtype), name) for name, (dtype, _) in OPTIONS.items()}
    request = {**text, "max_new_tokens": tf.TensorSpec([None], tf.int32, "max_new_tokens"), **options}
    ids = {
        "token_ids": tf.TensorSpec([None, None], tf.int32, "token_ids"),
        "lengths": tf.TensorSpec([None], tf.int32, "lengths"),
    }
    specs = {"generate_text": text, "generate": request, "generate_xla": request, "score": text, "logits": ids}
    signatures = {
        name: tf.function(function, autograph=False).get_concrete_function(**specs[name])
        for name, function in functions.items()
    }
    return {"serving_default": signatures["generate_text"], **signatures}


def keep_last(ids, lengths, most):
    """The last `most` (batch,) ids of each row, moved to the left; the new width is the longest row.

    Returns:
        ids (batch, width) and lengths (batch,).
    """
    import tensorflow as tf

    if most is None:
        return ids, lengths
    kept = tf.minimum(lengths, most)
    width = tf.reduce_max(tf.concat([kept, [1]], axis=0))
    index = (lengths - kept)[:, None] + tf.range(width)[None]
    index = tf.minimum(index, tf.maximum(lengths - 1, 0)[:, None])
    return tf.gather(ids, index, batch_dims=1), kept


def pad_to_bucket(ids):
    """`ids` with zeros on the right up to the next bucket, so that a compiler sees few widths."""
    import tensorflow as tf

    width = tf.shape(ids)[1]
    sizes = tf.constant([SMALLEST << i for i in range(20)])
    target = tf.reduce_min(tf.boolean_mask(sizes, sizes >= tf.minimum(width, sizes[-1])))
    return tf.pad(ids, [[0, 0], [0, tf.maximum(target - width, 0)]])


def litert_module(model):
    """A `tf.Module` with the signatures of a LiteRT file: `prefill_N` for each bucket, and `decode`.

    Inputs are `token_ids` (1, N), `lengths` (1,) and the leaves of the state, outputs `logits` (1, vocabulary) of the
    last real token and the leaves. Shapes are fixed, so the converter needs builtin operations only.

    Returns:
        The module, a dict signature -> concrete function, the prompt buckets, and the leaves as name -> array of zeros.
    """
    import tensorflow as tf

    module = tf.Module()
    module.variables_of_the_model = [variable.value for variable in model.variables]
    prefills = RECURRENT_PREFILLS if model.max_length is None else buckets(model.max_length)
    zeros = {name: ops.convert_to_numpy(leaf) for name, leaf in model.initial_state(1).items()}

    def step(token_ids, lengths, **state):
        hidden, state = model.hidden_states({"token_ids": token_ids, "lengths": lengths}, state, training=False)
        last = tf.maximum(lengths - 1, 0)
        hidden = hidden if token_ids.shape[1] == 1 else tf.gather(hidden, last[:, None], batch_dims=1)  # (1, 1, hidden)
        # Identities: a leaf that passes through unchanged would lose its output name.
        return {"logits": model.logits_of(hidden)[:, 0], **{name: tf.identity(leaf) for name, leaf in state.items()}}

    signatures = {}
    for length in (*prefills, 1):
        name = "decode" if length == 1 else f"prefill_{length}"
        specs = {
            "token_ids": tf.TensorSpec([1, length], tf.int32, "token_ids"),
            "lengths": tf.TensorSpec([1], tf.int32, "lengths"),
            **{leaf: tf.TensorSpec(value.shape, value.dtype, leaf) for leaf, value in zeros.items()},
        }
        function = tf.function(step, autograph=False)
        setattr(module, name, function)
        signatures[name] = function.get_concrete_function(**specs)
    return module, signatures, list(prefills), zeros
