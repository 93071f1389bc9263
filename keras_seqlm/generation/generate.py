"""The one loop that writes, for every model: it needs `model(inputs, state=state)` and `initial_state` alone.

`start` reads the prompts, `advance` writes up to a number of tokens. Both are functions of tensors, so that the same
code is compiled here, traced into a SavedModel by `export`, and run in pieces where stop strings are watched for.
"""

import dataclasses

import numpy as np
from keras import ops

from keras_seqlm.generation.buckets import bucket
from keras_seqlm.generation.compiled import compiled
from keras_seqlm.generation.samplers import options_for, sample

RUNNING, EOS, LENGTH = 0, 1, 2  # why a row stands still, in the carry of the loop
STOP_REASONS = {EOS: "eos", LENGTH: "length"}
LONGEST_CALL = 1024  # tokens of one compiled call; more are written by calling again
WATCHED_CALL = 16  # the same while someone watches for stop strings


@dataclasses.dataclass
class Generated:
    """What one prompt got: the new ids without the end id, why they end, and whether the prompt was cut."""

    token_ids: np.ndarray
    stop_reason: str  # "eos", "stop" or "length"
    truncated: bool


def start(model, cache_length, token_ids, lengths, budget):
    """Read the prompts but for their last token, which the loop feeds first.

    So the logits of the prompt are never needed, and a compiler drops their product with the vocabulary.

    Args:
        model: a language model.
        cache_length: room of the cache; at least time + the tokens to be written.
        token_ids: int32 (batch, time), padded on the right; lengths: int32 (batch,), at least 1.
        budget: int32 (batch,), how many tokens each row may write.

    Returns:
        The carry of `advance`: a flat dict of tensors with the batch on axis 0.
    """
    batch, time = ops.shape(token_ids)[0], ops.shape(token_ids)[1]
    last = lengths - 1
    state = model.initial_state(batch, cache_length)
    _, state = model({"token_ids": token_ids, "lengths": last}, state=state)
    real = ops.arange(time, dtype="int32")[None] < lengths[:, None]
    # Padding is counted as one more sight of the row's first token, which is there anyway.
    seen_ids = ops.where(real, token_ids, token_ids[:, :1])
    return {
        "state": state,
        "token": ops.take_along_axis(token_ids, last[:, None], axis=1)[:, 0],
        "seen": _mark(ops.zeros((batch, model.vocabulary_size), "float32"), seen_ids),
        "budget": budget,
        "stopped": ops.where(budget > 0, RUNNING, LENGTH),
    }


def advance(model, room, suppressed_ids, carry, options, eos_id):
    """Write until every row stands still or `room` tokens are written.

    Args:
        model: a language model.
        room: the number of tokens that the output has place for (an int, or a scalar in a traced graph).
        suppressed_ids: ids never written.
        carry: from `start` or the last `advance`.
        options: dict of (batch,) tensors, see `samplers.options_for`.
        eos_id: int32 scalar, -1 for none.

    Returns:
        token_ids int32 (batch, room), padded with 0; the number of real ones (batch,); the new carry.
    """
    batch = ops.shape(carry["token"])[0]
    rows = ops.arange(batch, dtype="int32")

    def running(step, token_ids, written, carry):
        return ops.logical_and(step < room, ops.any(carry["stopped"] == RUNNING))

    def write_one(step, token_ids, written, carry):
        active = ops.cast(carry["stopped"] == RUNNING, "int32")
        inputs = {"token_ids": carry["token"][:, None], "lengths": active}  # a row that stands still reads nothing
        logits, state = model(inputs, state=carry["state"])
        drawn = sample(logits[:, 0], options, carry["seen"], state["position"], suppressed_ids)
        ended = drawn == eos_id
        writes = ops.logical_and(active == 1, ops.logical_not(ended))
        token = ops.where(writes, drawn, carry["token"])
        index = ops.stack([rows, ops.zeros_like(rows) + step], axis=-1)
        token_ids = ops.scatter_update(token_ids, index, ops.where(writes, drawn, 0))
        budget = carry["budget"] - ops.cast(writes, "int32")
        stopped = ops.where(ops.logical_and(active == 1, budget <= 0), LENGTH, carry["stopped"])
        stopped = ops.where(ops.logical_and(active == 1, ended), EOS, stopped)
        new_carry = {
            "state": state,
            "token": token,
            "seen": _mark(carry["seen"], token[:, None]),
            "budget": budget,
            "stopped": stopped,
        }
        return step + 1, token_ids, written + ops.cast(writes, "int32"), new_carry

    first = (ops.zeros((), "int32"), ops.zeros((batch, room), "int32"), ops.zeros_like(rows), carry)
    _, token_ids, written, carry = ops.while_loop(running, write_one, first)
    return token_ids, written, carry


def _mark(seen, token_ids):
    """`seen` (batch, vocabulary) with a 1 at each of `token_ids` (batch, time)."""
    batch, time = ops.shape(token_ids)[0], ops.shape(token_ids)[1]
    rows = ops.repeat(ops.arange(batch, dtype="int32"), time)
    index = ops.stack([rows, ops.reshape(token_ids, (-1,))], axis=-1)
    return ops.scatter_update(seen, index, ops.ones_like(rows, dtype="float32"))


def generate(
    model,
    prompts,
    max_new_tokens=64,
    *,
    temperature=0.0,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    repetition_penalty=1.0,
    seed=0,
    eos_id=2,
    suppressed_ids=(0, 1, 3),
    stop=None,
    slide=False,
):
    """Write on after each prompt, all in one batch; a row's result is what it would be alone.

    Temperature 0 takes the most probable token. Above it one number is drawn for each row and step by Threefry from the
    row's seed and the token's position, so the same seed writes the same text on every backend and in every export.

    Args:
        model: a language model.
        prompts: sequences of token ids, of any lengths, at least one id each.
        max_new_tokens: int or one for each prompt; 0 writes nothing. A Transformer stops at its context's end.
        temperature, top_k, top_p, min_p, repetition_penalty, seed: see `samplers.options_for`; each a number, or one
            for each prompt.
        eos_id: the id that ends a text, or None. It is not among the new ids.
        suppressed_ids: ids that are never written; default pad, bos and unk of a trained tokenizer.
        stop: a function from the new ids of a row (int32 array) to True where it should stop.
        slide: at the end of the context drop its oldest half, read the rest anew and write on.

    Returns:
        A list of `Generated`, one for each prompt.

    Raises:
        ValueError: an empty prompt, an id outside the vocabulary, a negative or absurd option.
    """
    prompts = checked_ids(prompts, model.vocabulary_size)
    if not prompts:
        return []
    limits = _limits(max_new_tokens, len(prompts))
    options = options_for(
        len(prompts),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    context = getattr(model, "max_length", None)
    end = -1 if eos_id is None else int(eos_id)
    suppressed = tuple(i for i in suppressed_ids if i is not None)
    write = _Writer(model, options, end, suppressed, stop)
    if context is None or not slide:
        kept = (
            prompts
            if context is None
            else [prompt[-max(1, context - limit) :] for prompt, limit in zip(prompts, limits, strict=True)]
        )
        budgets = (
            limits
            if context is None
            else [min(limit, context - len(prompt)) for prompt, limit in zip(kept, limits, strict=True)]
        )
        new, reasons = write(kept, budgets, range(len(prompts)))
        return [
            Generated(ids, reason, len(a) > len(b))
            for ids, reason, a, b in zip(new, reasons, prompts, kept, strict=True)
        ]
    return [
        _slide(write, row, prompt, limit, context)
        for row, (prompt, limit) in enumerate(zip(prompts, limits, strict=True))
    ]


def _slide(write, row, prompt, limit, context):
    """One row without end: whenever the context is full, its newer half is read again and the writing goes on."""
    text, new, reason = prompt, np.zeros(0, "int32"), "length"
    while True:
        kept = text[-max(1, context // 2) :] if len(text) >= context else text
        room = max(1, context - len(kept))  # a context of one token reads it and writes the next
        ids, (reason,) = write([kept], [min(limit - len(new), room)], [row], before=[new])
        new = np.concatenate([new, ids[0]])
        text = np.concatenate([text, ids[0]])
        if reason != "length" or len(new) >= limit:
            return Generated(new, reason, len(prompt) >= context)


class _Writer:
    """The host's side of the loop: pads to buckets, calls in pieces, watches for stops."""

    def __init__(self, model, options, end, suppressed, stop):
        self.model, self.options, self.end, self.suppressed, self.stop = model, options, end, suppressed, stop

    def __call__(self, prompts, budgets, rows, before=None):
        new = [[] for _ in prompts]
        before = before or [np.zeros(0, "int32")] * len(prompts)
        if max(budgets) <= 0:
            return [np.zeros(0, "int32") for _ in prompts], ["length"] * len(prompts)
        lengths = np.array([len(prompt) for prompt in prompts], "int32")
        width = bucket(int(lengths.max()))
        padded = np.zeros((len(prompts), width), "int32")
        for row, prompt in zip(padded, prompts, strict=True):
            row[: len(prompt)] = prompt
        room = WATCHED_CALL if self.stop else min(bucket(max(budgets)), LONGEST_CALL)
        cache_length = None if getattr(self.model, "max_length", None) is None else width + bucket(max(budgets))
        tensors = [
            ops.convert_to_tensor(np.asarray(part, "int32"))
            for part in (padded, lengths, np.minimum(budgets, 2**31 - 1))
        ]
        options = {name: ops.convert_to_tensor(value[list(rows)]) for name, value in self.options.items()}
        end = ops.convert_to_tensor(np.int32(self.end))
        carry = compiled(self.model, start, cache_length)(*tensors)
        run = compiled(self.model, advance, room, self.suppressed)
        stopped_by_text = np.zeros(len(prompts), bool)
        while True:
            token_ids, written, carry = run(carry, options, end)
            token_ids, written = ops.convert_to_numpy(token_ids), ops.convert_to_numpy(written)
            for row, (ids, count) in enumerate(zip(token_ids, written, strict=True)):
                if stopped_by_text[row]:
                    continue
                for i in ids[:count]:
                    new[row].append(int(i))
                    if self.stop and self.stop(np.concatenate([before[row], np.asarray(new[row], "int32")])):
                        stopped_by_text[row] = True
                        break
            reasons = np.array(ops.convert_to_numpy(carry["stopped"]))
            if np.all((reasons != RUNNING) | stopped_by_text):
                break
            if stopped_by_text.any():
                carry["stopped"] = ops.convert_to_tensor(np.where(stopped_by_text, LENGTH, reasons).astype("int32"))
        names = [
            "stop" if by_text else STOP_REASONS[int(r)] for by_text, r in zip(stopped_by_text, reasons, strict=True)
        ]
        return [np.asarray(ids, "int32") for ids in new], names


def _limits(max_new_tokens, rows):
    limits = (
        np.broadcast_to(np.asarray(max_new_tokens), (rows,))
        if np.ndim(max_new_tokens) == 0
        else np.asarray(max_new_tokens)
    )
    if limits.shape != (rows,):
        raise ValueError(
            f"max_new_tokens must be a number or one for each of {rows} prompts, got {len(limits)} of them"
        )
    if not np.issubdtype(limits.dtype, np.integer) or (limits < 0).any():
        raise ValueError(f"max_new_tokens must be whole numbers of 0 or more, got {max_new_tokens!r}")
    return [int(limit) for limit in limits]


def checked_ids(sequences, vocabulary_size):
    """The sequences as int32 arrays, after a look at each id: a backend may take a wrong one without a word.

    Raises:
        ValueError: an empty sequence, ids that are no integers, or an id outside the vocabulary.
    """
    sequences = [np.asarray(sequence).reshape(-1) for sequence in sequences]
    for row, ids in enumerate(sequences):
        if len(ids) == 0:
            raise ValueError(f"sequence {row} is empty; give at least one id, say the bos id")
        if ids.dtype.kind not in "iu":
            raise ValueError(f"token ids must be integers, got {ids.dtype} in sequence {row}; encode a text first")
        if ids.min() < 0 or ids.max() >= vocabulary_size:
            wrong = ids.min() if ids.min() < 0 else ids.max()
            raise ValueError(f"sequence {row} holds id {wrong}, and this model knows 0 to {vocabulary_size - 1}")
    return [ids.astype("int32") for ids in sequences]
