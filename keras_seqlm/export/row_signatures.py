"""The signatures of exports of tasks that answer rows: text in, answers out for a server; ids in, numbers out for a phone."""

import numpy as np

from keras_seqlm.export.place_graph import answer, tag
from keras_seqlm.export.row_graph import classify, embed, fill_mask
from keras_seqlm.export.signatures import RECURRENT_PREFILLS, checked_ids
from keras_seqlm.generation.buckets import buckets
from seqlm_runtime.row_tasks.reading import MOST_IDS

ANSWERS = {"classify": classify, "embed": embed, "fill-mask": fill_mask, "tag": tag, "answer": answer}
FORWARD = "forward"
LEAST = 8  # ids of a text
IN_WINDOWS = ("tag", "answer")  # tasks that read long texts in windows


def served(task, max_prompt_tokens=None, lite=False):
    """What an export of a task is made of.

    Args:
        task: of `keras_seqlm.tasks`, one that answers rows.
        max_prompt_tokens: most ids that are read of a text; None for all that the model reads, 4096 of a recurrent one, and of
            texts that are read in windows 4096.
        lite: whether it is for a LiteRT file, whose rows have to fit its longest signature.

    Returns:
        The `seqlm_runtime.row_tasks.RowTask`, whose `room` and `most` are what is read. `task` reads as much from now on.

    Raises:
        ValueError: a number that the model cannot read.
    """
    windows = task_verb(task) in IN_WINDOWS
    if max_prompt_tokens is not None and max_prompt_tokens < LEAST:
        raise ValueError(
            f"max_prompt_tokens must be at least {LEAST}, for bos, a text and eos; got {max_prompt_tokens}"
        )
    room = task.room
    if lite and task.model.max_length is None:
        longest = RECURRENT_PREFILLS[-1]
        room = min(room, longest if windows or max_prompt_tokens is None else max_prompt_tokens)
    if windows:
        most = max_prompt_tokens or MOST_IDS
        if task.model.max_length is None:
            room = min(room, 2 * most + LEAST)  # so many, of a text and what is read before it, and no more can come
    else:
        if max_prompt_tokens is not None and max_prompt_tokens > room:
            raise ValueError(
                f"the export reads {room} tokens of a row at most, and max_prompt_tokens is {max_prompt_tokens}"
            )
        room = most = min(room, max_prompt_tokens or room)
    task.most_ids = room
    return task.as_served(most)


def task_verb(task):
    """The verb of a task of `keras_seqlm.tasks`, as "classify"."""
    return task.as_served().verb


def number_name(task):
    """What the model's numbers are called in signatures."""
    return "embedding" if task.verb == "embed" else "logits"


# What the signature `serving_default` gives, beside `truncated`.
_TEXT, _NUMBER, _WHOLE = object, np.float32, np.int32
_GIVES = {
    "classify": {"label": _TEXT, "labels": _TEXT, "probabilities": _NUMBER},
    "embed": {"embedding": _NUMBER},
    "fill-mask": {
        **{"filled": _TEXT, "candidates": _TEXT, "candidate_ids": _WHOLE, "probabilities": _NUMBER, "num_masks": _WHOLE}
    },
    "tag": {"num_tokens": _WHOLE, "tokens": _TEXT, "tags": _TEXT},
    "answer": {"answer": _TEXT, "start": _WHOLE, "end": _WHOLE, "score": _NUMBER},
}
_SPANS = {"num_spans": _WHOLE, "span_labels": _TEXT, "span_starts": _WHOLE, "span_ends": _WHOLE}
_SPANS |= {"span_texts": _TEXT, "span_scores": _NUMBER}


def row_signatures(task):
    """What each signature of a SavedModel takes and gives: name -> a pair of dicts of name to NumPy type."""
    gives = {"value": _NUMBER} if task.verb == "classify" and task.kind == "number" else _GIVES[task.verb]
    gives = {**gives, **(_SPANS if task.verb == "tag" and task.kind == "spans" else {}), "truncated": np.bool_}
    takes = {"token_ids": _WHOLE, "lengths": _WHOLE, **({"token_types": _WHOLE} if "token_types" in task.reads else {})}
    texts = dict.fromkeys((*task.fields, *optional_inputs(task)), _TEXT)
    return {"serving_default": (texts, gives), FORWARD: (takes, {number_name(task): _NUMBER})}


def optional_inputs(task):
    """The names of inputs of `serving_default` that may be left out."""
    return ("before",) if task.verb == "tag" and task.before else task.optional()


def row_module(task, model):
    """A `tf.Module` with a `tf.function` for each signature of a SavedModel.

    Args:
        task: a `seqlm_runtime.row_tasks.RowTask`.
        model: its model, at float32.

    Returns:
        The module and a dict signature -> `tf.function` with an input signature.
    """
    import tensorflow as tf

    module = tf.Module()
    module.variables_of_the_model = [variable.value for variable in model.variables]
    module.tokenizer = task.tokenizer.in_graph()
    answer, optional = ANSWERS[task.verb](task, model, module.tokenizer), optional_inputs(task)
    text = [tf.TensorSpec([None], tf.string, name) for name in (*task.fields, *optional)]

    def traced(function, specs):
        return tf.function(function, input_signature=specs, autograph=False).get_concrete_function()

    answered = traced(answer, text)
    if optional:
        first, second, none = *(*task.fields, *optional), tf.constant([""])
        wrapper = _with_default(first, second, none, lambda a, b: answered(a, tf.broadcast_to(b, tf.shape(a))))
    else:
        wrapper = _plain([spec.name for spec in text], answered)

    types = "token_types" in task.reads
    ids = [tf.TensorSpec([None, None], tf.int32, "token_ids"), tf.TensorSpec([None], tf.int32, "lengths")]
    ids += [tf.TensorSpec([None, None], tf.int32, "token_types")] if types else []
    name = number_name(task)

    def numbers(token_ids, lengths, *types):
        token_ids = checked_ids(token_ids, lengths, task.room, model.vocabulary_size)
        more = {"token_types": tf.clip_by_value(types[0], 0, 1)} if types else {}
        return {name: model({"token_ids": token_ids, "lengths": lengths, **more}, training=False)}

    traced_numbers = traced(numbers, ids)
    if types:

        def forward(token_ids, lengths, token_types):
            return traced_numbers(token_ids, lengths, token_types)
    else:

        def forward(token_ids, lengths):
            return traced_numbers(token_ids, lengths)

    signatures = {
        "serving_default": tf.function(wrapper, input_signature=text, autograph=False),
        FORWARD: tf.function(forward, input_signature=ids, autograph=False),
    }
    module.signatures_of_the_model = signatures
    return module, signatures


def _plain(names, answered):
    if names == ["text"]:

        def answer(text):
            return answered(text)
    else:

        def answer(question, context):
            return answered(question, context)

    return answer


def _with_default(first, second, none, answered):
    """A function of two texts, of which a request may leave out the second."""
    if (first, second) == ("text", "pair"):

        def answer(text, pair=none):
            return answered(text, pair)
    else:

        def answer(text, before=none):
            return answered(text, before)

    return answer


def lite_lengths(room):
    """The rows that the signatures of a LiteRT file read, each four times as long as the one before, up to `room`.

    >>> lite_lengths(100), lite_lengths(256)
    ([16, 64, 100], [16, 64, 256])
    """
    return [*buckets(room)[:-1:2], room]


def lite_name(verb, length):
    """The name of a signature of a LiteRT file, as "fill_mask_64"."""
    return f"{verb.replace('-', '_')}_{length}"


def row_litert_module(task, model):
    """A `tf.Module` with the signatures of a LiteRT file, one for each bucket: `classify_16`, `classify_64` ...

    Inputs are `token_ids` (1, N), `lengths` (1,) and, where the model reads them, `token_types` (1, N).

    Returns:
        The module and a dict signature -> concrete function.
    """
    import tensorflow as tf

    module, signatures = tf.Module(), {}
    module.variables_of_the_model = [variable.value for variable in model.variables]
    name = number_name(task)

    def run(**inputs):
        return {name: tf.identity(model(inputs, training=False))}

    for length in lite_lengths(task.room):
        specs = {
            "token_ids": tf.TensorSpec([1, length], tf.int32, "token_ids"),
            "lengths": tf.TensorSpec([1], tf.int32, "lengths"),
        }
        if "token_types" in task.reads:
            specs["token_types"] = tf.TensorSpec([1, length], tf.int32, "token_types")
        function = tf.function(run, autograph=False)
        signature = lite_name(task.verb, length)
        setattr(module, signature, function)
        signatures[signature] = function.get_concrete_function(**specs)
    return module, signatures
