"""The one loop that writes, for every model: it needs `model(inputs, state=state)` and `initial_state` alone.

`start` reads the prompts, `advance` writes up to a number of tokens. Both are functions of tensors, so that the same
code is compiled by `generate` and traced into a SavedModel by `export`, and can be run in pieces.
"""

import keras
from keras import ops

from keras_seqlm import products
from keras_seqlm.cache import single_tokens_written
from keras_seqlm.generation.random import uniform
from keras_seqlm.generation.samplers import sample

RUNNING, EOS, LENGTH = 0, 1, 2  # why a row stands still, in the carry of the loop
LOOKS = 8  # tokens between two looks at whether any row goes on, on an accelerator: the host waits for it to look


def start(model, room, token_ids, lengths, budget, dropped=None, sees=True, state=None, source=()):
    """Read the prompts but for their last token, which the loop feeds first.

    So the logits of the prompt are never needed, and a compiler drops their product with the vocabulary.

    Args:
        model: a language model.
        room: of the cache, at least time.
        token_ids: int32 (batch, time), padded on the right; lengths: int32 (batch,), at least 1.
        budget: int32 (batch,), how many tokens each row may write.
        dropped: int32 (batch,), tokens of the row that stood before these; None for none. So a row that slides never
            draws with one random number twice.
        sees: whether a repetition penalty will ask for the ids of prompt and text.
        state: of the model after the prompts but for their last token, where the caller has read them by itself.
        source: of an encoder-decoder, `source_ids` and `source_lengths` of the rows.

    Returns:
        The carry of `advance`: a flat dict of tensors with the batch on axis 0.
    """
    time = ops.shape(token_ids)[1]
    last = lengths - 1
    if state is None:
        inputs = {"token_ids": token_ids, "lengths": last}
        inputs |= dict(zip(("source_ids", "source_lengths"), source, strict=False))
        if hasattr(model, "read"):
            state = model.read(inputs, room)
        else:
            _, state = model(inputs, state=model.initial_state(ops.shape(token_ids)[0], room))
    carry = {
        "state": state,
        "token": ops.take_along_axis(token_ids, last[:, None], axis=1)[:, 0],
        "dropped": ops.zeros_like(lengths) if dropped is None else dropped,
        "budget": budget,
        "stopped": ops.where(budget > 0, RUNNING, LENGTH),
    }
    if sees:
        real = ops.arange(time, dtype="int32")[None] < lengths[:, None]
        # Padding is counted as one more sight of the row's first token, which is there anyway.
        seen_ids = ops.where(real, token_ids, token_ids[:, :1])
        nothing = ops.zeros((ops.shape(token_ids)[0], model.vocabulary_size), "float32")
        carry["seen"] = _mark(nothing, seen_ids)
    return carry


def advance(model, most, suppressed_ids, uses, carry, options, eos_id, limit=None):
    """Write until every row stands still or a number of tokens is written.

    Args:
        model: a language model.
        most: the number of tokens that the output has place for (an int, or a scalar in a traced graph).
        suppressed_ids: ids never written.
        uses: which options any row uses, as `samplers.uses_of` gives it, or None where that is known at run time alone.
        carry: from `start` or the last `advance`. It is used up: its state is written over where the backend can.
        options: dict of (batch,) tensors, see `samplers.options_for`.
        eos_id: int32 scalar, -1 for none.
        limit: int32 scalar, tokens that are written at most; default `most`. A cache needs room for so many.

    Returns:
        token_ids int32 (batch, most), padded with 0; the number of real ones (batch,); the new carry.
    """
    batch = ops.shape(carry["token"])[0]
    rows = ops.arange(batch, dtype="int32")
    numbers = None
    if keras.backend.backend() == "torch" and "temperature" in (uses or ()):
        # Of all steps at once: each of them would take more kernels than all the rest of the step.
        counters = (carry["dropped"] + carry["state"]["position"])[:, None] + 1 + ops.arange(most, dtype="int32")
        numbers = uniform(ops.broadcast_to(options["seed"][:, None], counters.shape), counters)

    def write_one(step, token_ids, written, carry):
        active = ops.cast(ops.logical_and(carry["stopped"] == RUNNING, step < limit), "int32")
        inputs = {"token_ids": carry["token"][:, None], "lengths": active}  # a row that stands still reads nothing
        logits, state = model(inputs, state=carry["state"])
        counter = carry["dropped"] + state["position"]
        number = None if numbers is None else numbers[:, step]
        drawn = sample(logits[:, 0], options, carry.get("seen"), counter, suppressed_ids, uses, number)
        ended = drawn == eos_id
        writes = ops.logical_and(active == 1, ops.logical_not(ended))
        token = ops.where(writes, drawn, carry["token"])
        token_ids = _put(token_ids, rows, step, ops.where(writes, drawn, 0))
        budget = carry["budget"] - ops.cast(writes, "int32")
        stopped = ops.where(ops.logical_and(active == 1, budget <= 0), LENGTH, carry["stopped"])
        stopped = ops.where(ops.logical_and(active == 1, ended), EOS, stopped)
        new_carry = {**carry, "state": state, "token": token, "budget": budget, "stopped": stopped}
        if "seen" in carry:
            new_carry["seen"] = _mark(carry["seen"], token[:, None])
        return step + 1, token_ids, written + ops.cast(writes, "int32"), new_carry

    limit = most if limit is None else limit
    first = (ops.zeros((batch, most), "int32"), ops.zeros_like(rows), carry)
    _, token_ids, written, carry = _while_any_runs(write_one, first, limit)
    return token_ids, written, carry


def _while_any_runs(write_one, first, limit):
    """`write_one(step, token_ids, written, carry)` from step 0 on, up to `limit` times while any row runs.

    On an accelerator a few times more, which write nothing: there a look at the rows costs more than a step.
    """
    if keras.backend.backend() == "torch":
        values, step, limit = first, 0, int(limit)
        looks = LOOKS if first[0].is_cuda else 1
        with single_tokens_written("in place"):
            while step < limit and (step % looks or bool((values[-1]["stopped"] == RUNNING).any())):
                step, *values = write_one(step, *values)
        return step, *values

    def running(step, token_ids, written, carry):
        return ops.logical_and(step < limit, ops.any(carry["stopped"] == RUNNING))

    def write_some(step, *values):
        values = ops.fori_loop(0, LOOKS, lambda i, values: write_one(step + i, *values)[1:], values)
        return step + LOOKS, *values

    write = write_some if products.on_accelerator() else write_one
    return ops.while_loop(running, write, (ops.zeros((), "int32"), *first))


def _put(token_ids, rows, step, ids):
    """`token_ids` (batch, most) with `ids` (batch,) in column `step`; in place on torch."""
    if keras.backend.backend() == "torch":
        token_ids[:, step] = ids
        return token_ids
    return ops.scatter_update(token_ids, ops.stack([rows, ops.zeros_like(rows) + step], axis=-1), ids)


def _mark(seen, token_ids):
    """`seen` (batch, vocabulary) with a 1 at each of `token_ids` (batch, time)."""
    batch, time = ops.shape(token_ids)[0], ops.shape(token_ids)[1]
    rows = ops.repeat(ops.arange(batch, dtype="int32"), time)
    index = ops.stack([rows, ops.reshape(token_ids, (-1,))], axis=-1)
    return ops.scatter_update(seen, index, ops.ones_like(rows, dtype="float32"))
