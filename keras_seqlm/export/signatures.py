"""What an exported model answers: the generation loop and the score, traced from text to text.

TensorFlow is imported in the functions: only the clean process of an export runs them.
"""

import functools

from keras import ops

from keras_seqlm.export.reading import InGroups, InParts, read_rows, served_prompt_room
from keras_seqlm.generation.buckets import buckets
from keras_seqlm.generation.loop import advance, start
from keras_seqlm.generation.samplers import OPTIONS, clamp

DEFAULT_NEW_TOKENS = 64
RECURRENT_PREFILLS = (16, 64, 256)


def serving_module(model, tokenizer, max_new_tokens_limit, max_prompt_tokens=None):
    """A `tf.Module` with a `tf.function` for each signature of a SavedModel.

    The module keeps the variables in a list and the model in a closure: a module that holds a Keras model is converted
    without its weights, silently.

    Args:
        model: a language model at float32.
        tokenizer: its tokenizer.
        max_new_tokens_limit: the most tokens that a request can ask for.
        max_prompt_tokens: see `reading.served_prompt_room`.

    Returns:
        The module and a dict signature -> `tf.function` with an input signature.
    """
    import tensorflow as tf

    module = tf.Module()
    module.variables_of_the_model = [variable.value for variable in model.variables]
    module.tokenizer = tokenizer.in_graph()
    answer, text_scores, text_logits = _answers(
        model, tokenizer, module.tokenizer, max_new_tokens_limit, served_prompt_room(model, max_prompt_tokens)
    )
    # Of one row each, which `answer` repeats: so a server that batches can fill them in for a request of one row.
    new_tokens = tf.constant([DEFAULT_NEW_TOKENS], tf.int32)
    off = {name: tf.constant([value], tf.as_dtype(dtype)) for name, (dtype, value) in OPTIONS.items()}

    text = [tf.TensorSpec([None], tf.string, "text")]
    options = [tf.TensorSpec([None], tf.as_dtype(dtype), name) for name, (dtype, _) in OPTIONS.items()]
    wish = [*text, tf.TensorSpec([None], tf.int32, "max_new_tokens"), *options]
    ids = [tf.TensorSpec([None, None], tf.int32, "token_ids"), tf.TensorSpec([None], tf.int32, "lengths")]

    def traced(function, specs):
        """Traced here, once: what saves a signature and what describes it each trace it anew, and find a call of this."""
        return tf.function(function, input_signature=specs, autograph=False).get_concrete_function()

    write_texts = traced(answer, wish)
    write_texts_xla = traced(functools.partial(answer, xla=True), wish)
    score_texts, logits_of_ids = traced(text_scores, text), traced(text_logits, ids)

    def asking(name, write_texts):
        # A signature keeps the defaults that are tensors, and a request may leave such an input out.
        def generate(
            text,
            max_new_tokens=new_tokens,
            temperature=off["temperature"],
            top_k=off["top_k"],
            top_p=off["top_p"],
            min_p=off["min_p"],
            repetition_penalty=off["repetition_penalty"],
            seed=off["seed"],
        ):
            return write_texts(text, max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed)

        generate.__name__ = name  # by which the graph's functions are called, too
        return generate

    def generate_text(text):
        return write_texts(text, new_tokens, *off.values())

    def score(text):
        return score_texts(text)

    def logits(token_ids, lengths):
        return logits_of_ids(token_ids, lengths)

    functions = {
        generate_text: text,
        asking("generate", write_texts): wish,
        asking("generate_xla", write_texts_xla): wish,
        score: text,
        logits: ids,
    }
    signatures = {
        function.__name__: tf.function(function, input_signature=specs, autograph=False)
        for function, specs in functions.items()
    }
    module.signatures_of_the_model = signatures
    return module, {"serving_default": signatures["generate_text"], **signatures}


def _answers(model, tokenizer, graph, max_new_tokens_limit, most):
    """What the signatures compute: functions of texts with options, of texts, and of ids.

    Args:
        model, tokenizer, max_new_tokens_limit: as of `serving_module`.
        graph: the tokenizer's `in_graph()`.
        most: ids that are read of a prompt.
    """
    import tensorflow as tf

    context, suppressed_ids = model.max_length, tokenizer.suppressed_ids
    eos_id = tf.constant(-1 if tokenizer.eos_id is None else tokenizer.eos_id, tf.int32)

    def write(ids, lengths, budget, options, room, compiled=False):
        cache = tf.shape(ids)[1] + room  # of all rows; that of none needs more slots than the context
        cache = cache if context is None else tf.minimum(cache, context)
        if context is None:
            state = InParts(model, ids, lengths - 1, select=not compiled).state()
        else:  # groups are of no fixed shape, which XLA wants
            state = None if compiled else InGroups(model, ids, lengths - 1, context).state(cache)
        carry = start(model, cache, ids, lengths, budget, state=state)
        token_ids, written, _ = advance(model, room, suppressed_ids, None, carry, options, eos_id)
        return token_ids, written

    compiled_write = tf.function(
        lambda ids, lengths, budget, options: write(ids, lengths, budget, options, max_new_tokens_limit, True),
        jit_compile=True,
        autograph=False,
    )

    def answer(text, max_new_tokens, *values, xla=False):
        options = dict(zip(OPTIONS, values, strict=True))
        ids, kept, truncated = read_rows(graph, tokenizer, text, most)
        rows = tf.shape(text)
        options = clamp({name: tf.broadcast_to(value, rows) for name, value in options.items()})
        wanted = tf.clip_by_value(tf.broadcast_to(max_new_tokens, rows), 0, max_new_tokens_limit)
        left = wanted if context is None else tf.maximum(context - kept, 1)
        budget = tf.where(kept > 0, tf.minimum(wanted, left), 0)  # after no id, not even bos, nothing can be written
        # As seqlm_runtime.prompts.has_text says it.
        after_text = truncated | (kept > (0 if tokenizer.bos_id is None else 1))
        kept = tf.maximum(kept, 1)
        if xla:
            parts = pad_to_buckets(ids, kept, budget, options, most)
            token_ids, written = (part[: rows[0]] for part in compiled_write(*parts))
        else:
            room = tf.reduce_max(tf.concat([budget, [0]], axis=0))
            token_ids, written = write(ids, kept, budget, options, room)
        return {
            "generated_text": graph.detokenize_after(token_ids, written, after_text),
            "token_ids": token_ids,
            "num_tokens": written,
            "truncated": truncated,
        }

    def text_scores(text):
        # What a model reads predicts one id more. A score is of a text's beginning, as Python's is of the whole.
        longest = (most if context is None else context) + 1
        ids, lengths, truncated = read_rows(graph, tokenizer, text, longest, end=False)
        lengths = tf.maximum(lengths - 1, 0)
        reader = InParts(model, ids, lengths) if context is None else InGroups(model, ids, lengths, context)
        sums = reader.log_probabilities()
        return {"log_probability": sums, "num_tokens": lengths, "truncated": truncated}

    def text_logits(token_ids, lengths):
        longest = most + max_new_tokens_limit if context is None else context
        token_ids = checked_ids(token_ids, lengths, longest, model.vocabulary_size)
        time = tf.shape(token_ids)[1]
        some = tf.pad(token_ids, [[0, 0], [0, tf.maximum(1 - time, 0)]])  # no recurrent layer reads none
        real = tf.sequence_mask(lengths, time)
        return {"logits": tf.where(real[:, :, None], model({"token_ids": some})[:, :time], 0.0)}

    return answer, text_scores, text_logits


def checked_ids(token_ids, lengths, longest, vocabulary_size):
    """`token_ids` with 0 for padding; in the graph an error (InvalidArgument) that names the limit which they exceed."""
    import tensorflow as tf

    time = tf.shape(token_ids)[1]
    real = tf.sequence_mask(lengths, time)
    outside = tf.boolean_mask(token_ids, real & ((token_ids < 0) | (token_ids >= vocabulary_size)))
    checks = [
        (time <= longest, f"this model reads {longest} tokens at most; the columns of token_ids are", time),
        (tf.reduce_all((lengths >= 0) & (lengths <= time)), "lengths must lie in 0 ... columns of token_ids, which are", time),
        (tf.equal(tf.size(outside), 0), f"token_ids must lie in 0 ... {vocabulary_size - 1}, and hold", outside),
    ]  # fmt: skip
    asserted = [tf.raw_ops.Assert(condition=holds, data=[said, found], summarize=1) for holds, said, found in checks]
    with tf.control_dependencies(asserted):
        return tf.where(real, token_ids, 0)


def pad_to_buckets(ids, lengths, budget, options, most):
    """The parts of a request with rows and columns up to the next bucket, so that a compiler sees few shapes.

    A new shape costs a compilation, seconds at least. Rows that are filled in write nothing.

    Returns:
        ids, lengths, budget and options.
    """
    import tensorflow as tf

    def missing(size, sizes):
        sizes = tf.constant(sizes)
        return tf.reduce_min(tf.boolean_mask(sizes, sizes >= tf.minimum(size, sizes[-1]))) - size

    rows = tf.maximum(missing(tf.shape(ids)[0], [1 << i for i in range(20)]), 0)
    columns = missing(tf.shape(ids)[1], buckets(most))
    options = {name: tf.pad(value, [[0, rows]]) for name, value in options.items()}
    ids = tf.pad(ids, [[0, rows], [0, columns]])
    return ids, tf.pad(lengths, [[0, rows]], constant_values=1), tf.pad(budget, [[0, rows]]), options


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
    prefills = prefill_lengths(model.max_length)
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
    return module, signatures, prefills, zeros


def prefill_lengths(max_length):
    """How many tokens the prefills of a LiteRT file read, by the context of its model; one token is read by `decode`.

    >>> prefill_lengths(20), prefill_lengths(1)
    ([16, 20], [])
    """
    return [length for length in (RECURRENT_PREFILLS if max_length is None else buckets(max_length)) if length > 1]
