"""Text after prompts: the host's side of the loop.

It pads rows and prompts to buckets and calls the compiled loop in pieces. Between two of them it makes room in the caches,
so that a token costs what the text behind it is long, looks for stop strings, and lets rows slide.
"""

import dataclasses
import time
from numbers import Integral

import keras
import numpy as np
from keras import ops

from keras_seqlm import products
from keras_seqlm.generation.buckets import SMALLEST, bucket
from keras_seqlm.generation.checked_ids import checked_ids
from keras_seqlm.generation.compiled import compiled
from keras_seqlm.generation.loop import EOS, LENGTH, RUNNING, advance, start
from keras_seqlm.generation.samplers import OPTIONS, options_for, uses_of
from keras_seqlm.generation.sources import checked_sources, padded_sources

STOP_REASONS = {EOS: "eos", LENGTH: "length"}
LONGEST_CALL = 256  # tokens of one compiled call; more are written by calling again
WATCHED_CALL = 16  # the same while someone watches for stop strings
SHORT = 0.05  # seconds: after a call that took less, the next one writes twice as many tokens
SMALLEST_ROOM = 64  # of a cache
XLA_PAYS = 5e9  # tokens times weights from which on XLA's faster steps outweigh its compilation, on TensorFlow


@dataclasses.dataclass
class Generated:
    """What one prompt got: the new ids without the end id, why they end, and whether the prompt was cut."""

    token_ids: np.ndarray
    stop_reason: str  # "eos", "stop" or "length"
    truncated: bool


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
    eos_id=None,
    suppressed_ids=(),
    stop=None,
    slide=False,
    max_prompt_tokens=None,
    source_ids=None,
):
    """Write on after each prompt, all in one batch; a row's result is what it would be alone.

    Temperature 0 takes the most probable token. Above it one number is drawn for each row and step by Threefry from the
    row's seed and the token's position, so the same seed writes the same text on every backend and in every export.

    Args:
        model: a language model.
        prompts: sequences of token ids, of any lengths, at least one id each.
        max_new_tokens: int or one for each prompt; 0 writes nothing. The prompt goes first: a Transformer reads its last
            `max_length - 1` ids and stops at its context's end, with the reason "length".
        temperature, top_k, top_p, min_p, repetition_penalty, seed: see `samplers.options_for`; each a number, or one
            for each prompt.
        eos_id: the id that ends a text, or None. It is not among the new ids.
        suppressed_ids: ids that are never written. (A task gives its tokenizer's end, pad, bos and unk.)
        stop: a function from the new ids of a row (int32 array) to True where it should stop.
        slide: at the end of the context drop its oldest half, read the rest anew and write on.
        max_prompt_tokens: see `prompt_room`.
        source_ids: of an encoder-decoder, the ids of the source of each prompt, which is the beginning of its target.

    Returns:
        A list of `Generated`, one for each prompt.

    Raises:
        ValueError: an empty prompt, an id outside the vocabulary, a negative or absurd option; a source that is too long, is
            missing, or is none of the model's.
    """
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
    options["repetition_penalty"] = repetition_penalty
    rules = (eos_id, suppressed_ids, stop, slide, max_prompt_tokens, source_ids)
    pieces = _in_pieces(model, prompts, max_new_tokens, options, *rules, first_call=LONGEST_CALL)
    while True:
        try:
            next(pieces)
        except StopIteration as ended:
            return ended.value


def stream(
    model,
    prompt,
    max_new_tokens=64,
    *,
    eos_id=None,
    suppressed_ids=(),
    stop=None,
    slide=False,
    max_prompt_tokens=None,
    source_ids=None,
    **options,
):
    """Write on after one prompt, and give what there is as soon as it is written.

    The first piece is one token. As long as a piece takes little time the next one is longer, so that a fast model does
    not wait for the host. The ids are those of `generate`, however they are cut.

    Args:
        model: a language model.
        prompt: a sequence of token ids, at least one.
        max_new_tokens, eos_id, suppressed_ids, stop, slide, max_prompt_tokens, source_ids, **options: see `generate`; each
            is one number, or one source.

    Returns:
        An iterator of all new ids so far, int32 arrays, each longer than the one before or as long. What its end gives
        (the value of `StopIteration`, or of `yield from`) is the `Generated`.

    Raises:
        ValueError: at the first step, as `generate` does.
    """
    rules = (eos_id, suppressed_ids, stop, slide, max_prompt_tokens, source_ids)
    (result,) = yield from _in_pieces(model, [prompt], max_new_tokens, options, *rules, first_call=1)
    return result


def _in_pieces(
    model,
    prompts,
    max_new_tokens,
    options,
    eos_id,
    suppressed_ids,
    stop,
    slide,
    max_prompt_tokens,
    source_ids,
    first_call,
):
    """What `generate` does, as a generator: after each compiled call it gives the new ids of the first row so far.

    Args:
        first_call: tokens of the first call.
    """
    prompts = checked_ids(prompts, model.vocabulary_size)
    if not prompts:
        return []
    sources = checked_sources(model, source_ids, len(prompts))
    limits = _limits(max_new_tokens, len(prompts))
    options = options_for(len(prompts), **options)
    context = getattr(model, "max_length", None)
    suppressed = tuple(i for i in suppressed_ids if i is not None)
    for name, number in [("eos_id", eos_id), *(("suppressed_ids", i) for i in suppressed)]:
        if number is not None and (not isinstance(number, Integral) or not 0 <= number < model.vocabulary_size):
            raise ValueError(f"{name} must be ids from 0 to {model.vocabulary_size - 1}, got {number!r}")
    end = -1 if eos_id is None else int(eos_id)
    write = _Writer(model, options, end, suppressed, stop, first_call, sources)
    most = prompt_room(model, max_prompt_tokens, slide)
    kept = [prompt if most is None else prompt[-most:] for prompt in prompts]
    if context is None:
        results = yield from write(kept, limits)
    elif slide:
        results = yield from _slide(write, kept, limits, context)
    else:  # a context of 1 writes one id, too
        room = [min(limit, max(1, context - len(row))) for row, limit in zip(kept, limits, strict=True)]
        results = yield from write(kept, room)
    for result, prompt, row in zip(results, prompts, kept, strict=True):
        result.truncated |= len(prompt) > len(row)
    return results


def prompt_room(model, max_prompt_tokens=None, slide=False):
    """How many ids of a prompt are read, the last ones: a number, or None for all.

    Args:
        model: a language model.
        max_prompt_tokens: what the caller allows; None for all that the model can read. A Transformer reads `max_length - 1`
            at most, so that it may write one; a recurrent model any number.
        slide: whether the text slides, which lets a Transformer read any number, too.

    Raises:
        ValueError: no whole number, below 1, or more than the model reads.
    """
    context = getattr(model, "max_length", None)
    room = None if context is None or slide else max(1, context - 1)
    if max_prompt_tokens is None:
        return room
    if not isinstance(max_prompt_tokens, Integral) or max_prompt_tokens < 1:
        raise ValueError(f"max_prompt_tokens must be a whole number of at least 1, or None, got {max_prompt_tokens!r}")
    if room is not None and max_prompt_tokens > room:
        raise ValueError(
            f"max_prompt_tokens is {max_prompt_tokens}, and with its context of {context} this model reads {room} at most"
        )
    return int(max_prompt_tokens)


def _slide(write, prompts, limits, context):
    """Rows without end: whenever the context of one is full, its newer half is read again and the writing goes on."""
    texts, results = list(prompts), [Generated(np.zeros(0, "int32"), "length", len(p) >= context) for p in prompts]
    unfinished = [row for row, limit in enumerate(limits) if limit > 0]
    while unfinished:
        kept = [texts[row] if len(texts[row]) < context else texts[row][-max(1, context // 2) :] for row in unfinished]
        budgets = [
            min(
                limits[row] - len(results[row].token_ids), max(1, context - len(text))
            )  # a context of 1 writes one, too
            for row, text in zip(unfinished, kept, strict=True)
        ]
        written = yield from write(kept, budgets, unfinished, [results[row].token_ids for row in unfinished], texts)
        for row, more in zip(unfinished, written, strict=True):
            texts[row] = np.concatenate([texts[row], more.token_ids])
            new = np.concatenate([results[row].token_ids, more.token_ids])
            results[row] = Generated(new, more.stop_reason, results[row].truncated)
        unfinished = [
            row
            for row in unfinished
            if results[row].stop_reason == "length" and len(results[row].token_ids) < limits[row]
        ]
    return results


class _Writer:
    """The host's side of the loop: pads rows and prompts to buckets, makes room, calls in pieces, watches for stops."""

    def __init__(self, model, options, end, suppressed, stop, first_call, sources):
        self.model, self.options, self.end, self.suppressed, self.stop = model, options, end, suppressed, stop
        self.sources = sources  # of all rows, or None
        self.call = first_call  # tokens of the next one
        self.context = getattr(model, "max_length", None)

    def __call__(self, prompts, budgets, rows=None, before=None, texts=None):
        """A `Generated` for each prompt; as a generator, which gives the new ids of the first one after each call.

        Args:
            prompts, budgets: int32 arrays and ints.
            rows: whose options they take, if they are not all rows.
            before: what was written of each earlier, which the stop function sees, too.
            texts: the whole text of every row, of which the prompts are the end.
        """
        rows = range(len(prompts)) if rows is None else rows
        new = [np.zeros(0, "int32")] * len(prompts)
        if max(budgets) <= 0:
            return [Generated(ids, "length", False) for ids in new]
        before = before or list(new)
        dropped = [0 if texts is None else len(texts[row]) - len(p) for row, p in zip(rows, prompts, strict=True)]
        lengths = np.array([len(prompt) for prompt in prompts], "int32")
        budgets = np.minimum(budgets, 2**31 - 1).astype("int32")
        # A target begins with one token as a rule, of which nothing is read before the loop.
        width = 1 if self.sources and lengths.max() == 1 else self._fitting(int(lengths.max()))
        needed = min(int((lengths + budgets.astype("int64")).max()), 2**31)
        uses = uses_of({name: values[list(rows)] for name, values in self.options.items()})
        # Rows that write nothing fill the batch up to the next power of two, so that few sizes are traced.
        # On an accelerator one row is two: XLA makes a product of one row with a kernel without the units for products.
        batch = bucket(len(prompts), 2 if products.on_accelerator() else 1)
        padded = np.zeros((batch, width), "int32")
        for row, prompt in zip(padded, prompts, strict=False):
            row[: len(prompt)] = prompt

        def filled(values, filling):
            values = np.asarray(values)
            return ops.convert_to_tensor(np.concatenate([values, np.full(batch - len(values), filling, values.dtype)]))

        options = {name: filled(values[list(rows)], OPTIONS[name][1]) for name, values in self.options.items()}
        parts = (filled(lengths, 1), filled(budgets, 0), filled(np.asarray(dropped, "int32"), 0))
        end = ops.convert_to_tensor(np.int32(self.end))
        room = None if self.context is None else self._fitting(min(needed, max(width, LONGEST_CALL)), SMALLEST_ROOM)
        arguments = {"xla": _xla_pays(self.model, batch * min(needed, LONGEST_CALL))}
        sees = "repetition_penalty" in uses
        if self.sources:
            parts += padded_sources(self.model, [self.sources[row] for row in rows], batch)
        carry = compiled(self.model, _start, room, sees and texts is None)(ops.convert_to_tensor(padded), *parts)
        if sees and texts is not None:  # a row that slides has seen more than it reads again
            seen = np.zeros((batch, self.model.vocabulary_size), "float32")
            for marked, row in zip(seen, rows, strict=False):
                marked[texts[row]] = 1.0
            carry["seen"] = ops.convert_to_tensor(seen)
        run = compiled(self.model, advance, LONGEST_CALL, self.suppressed, uses, donate=(0,), **arguments)
        stopped_by_text = np.zeros(len(prompts), bool)
        reasons = np.where(budgets > 0, RUNNING, LENGTH)
        while True:
            limit = min(self.call, WATCHED_CALL if self.stop else LONGEST_CALL)
            if room is not None:
                read = max(lengths[row] - 1 + len(new[row]) for row in np.flatnonzero(reasons == RUNNING))
                if read >= room:
                    room = self._fitting(int(read) + 1, 2 * room)
                    carry["state"] = _with_room(carry["state"], room)
                limit = min(limit, room - read)
            began = time.perf_counter()
            token_ids, written, carry = run(carry, options, end, ops.convert_to_tensor(np.int32(limit)))
            token_ids, written = ops.convert_to_numpy(token_ids), ops.convert_to_numpy(written)
            for row in np.flatnonzero(~stopped_by_text):
                more = token_ids[row, : written[row]]
                for count in range(1, len(more) + 1) if self.stop else ():
                    if self.stop(np.concatenate([before[row], new[row], more[:count]])):
                        stopped_by_text[row], more = True, more[:count]
                        break
                new[row] = np.concatenate([new[row], more])
            if time.perf_counter() - began < SHORT:
                self.call = min(2 * self.call, LONGEST_CALL)
            yield np.concatenate([before[0], new[0]])
            reasons = ops.convert_to_numpy(carry["stopped"])[: len(prompts)]
            reasons = np.where(stopped_by_text, LENGTH, reasons)
            if np.all(reasons != RUNNING):
                break
            if stopped_by_text.any():
                carry["stopped"] = filled(reasons.astype("int32"), LENGTH)
        names = [
            "stop" if by_text else STOP_REASONS[int(r)] for by_text, r in zip(stopped_by_text, reasons, strict=True)
        ]
        return [Generated(ids, name, False) for ids, name in zip(new, names, strict=True)]

    def _fitting(self, length, smallest=SMALLEST):
        """The bucket for so many tokens, within the context."""
        size = bucket(length, smallest)
        return size if self.context is None else min(size, self.context)


def _start(model, room, sees, token_ids, lengths, budget, dropped, *source):
    return start(model, room, token_ids, lengths, budget, dropped, sees, source=source)


def _with_room(state, room):
    """A state whose caches hold `room` tokens."""
    return {
        name: ops.pad(leaf, ((0, 0), (0, 0), (0, room - leaf.shape[2]), (0, 0)))
        if name.startswith("kv_cache")
        else leaf
        for name, leaf in state.items()
    }


def _xla_pays(model, tokens):
    if keras.backend.backend() != "tensorflow" or not hasattr(model, "count_params"):
        return False
    if not model.built:
        model.build()
    return tokens * model.count_params() >= XLA_PAYS


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
