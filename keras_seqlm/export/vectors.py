"""Test vectors in the sidecar of an export: with them a program in another language knows that it reads and writes alike.

None hangs on rounding: steps that a difference of `SURE` in a logit or in a draw could change are left out.
"""

import base64
import json
import pathlib
import tempfile

import numpy as np

from keras_seqlm.generation.samplers import OPTIONS
from seqlm_runtime.litert import LiteRTModel
from seqlm_runtime.prompts import read_ids
from seqlm_runtime.sampler import sample, uniform
from seqlm_runtime.seals import sealed

SURE = 1e-3
NEW_TOKENS = 16
LONGEST = 1024  # ids that are read: where more are, no vector has a prompt that is cut
EACH = 2  # prompts for each way of writing
WAYS = (
    {"temperature": 0.0},
    {
        "temperature": 0.8,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.01,
        "repetition_penalty": 1.1,
        "seed": 7,
    },
)
_PROMPTS = ("The", "", "in the morning", "It is a", "1, 2,", "秦川雄帝宅", "Zoë", "a dog ran over the hill")
_TEXTS = (
    *("", " ", "a", "Hello, world!", "  two  spaces ", "tabs\tand\r\nlines\n\n", "It's 3.14, isn't it? we'll see"),
    *("Zoë paid 12 € for cafés.", "e\u0301 İstanbul ß ﬁ Å", "秦川雄帝宅，函谷壯皇居。", "한국어 שלום مرحبا"),
    *("👩\u200d👩\u200d👧 🇨🇳", "\u2581mark \ufffd \u3000wide \u00a0", "a\x00b", "unbelievably lowest ##s [UNK] <unk> <s>"),
    "the quick brown fox jumps over the lazy dog " * 3 + "x" * 40,
)  # fmt: skip
_BYTES = (b"\xff\xfe", b"caf\xc3", b"a\xed\xa0\x80b", b"\xf0\x9f\x98 \xe2\x82", b"\xc0\x80\xf5\x80")


def of_saved_model(task, signatures, limit, most):
    """The vectors of a SavedModel: its own signatures, as they were traced, write the texts."""
    import tensorflow as tf

    def generate(prompt, max_new_tokens, options):
        given = {name: tf.constant([options.get(name, value)], dtype) for name, (dtype, value) in OPTIONS.items()}
        budget = tf.constant([max_new_tokens], tf.int32)
        answer = signatures["generate"](text=tf.constant([prompt]), max_new_tokens=budget, **given)
        return {
            "text": answer["generated_text"].numpy()[0].decode("utf-8"),
            "token_ids": answer["token_ids"].numpy()[0, : answer["num_tokens"].numpy()[0]].tolist(),
            "truncated": bool(answer["truncated"].numpy()[0]),
        }

    def logits_after(ids, more):
        row = tf.constant([[*ids, *more]], tf.int32)
        return signatures["logits"](token_ids=row, lengths=tf.shape(row)[1:])["logits"].numpy()[0, len(ids) - 1 :]

    written = written_vectors(task.tokenizer, task.model.max_length, most, limit, generate, logits_after)
    return _all(task.tokenizer, written)


def of_litert(task, path, sidecar, allow_ops=()):
    """The vectors of a LiteRT file: the file itself, in `seqlm_runtime`, writes the texts."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "model.tflite").symlink_to(pathlib.Path(path).resolve())
        (folder / "model.json").write_text(json.dumps(sealed(sidecar)))
        task.tokenizer.save(folder / "model.tokenizer")
        model = LiteRTModel(folder / "model.tflite", allow_ops=allow_ops)

        def generate(prompt, max_new_tokens, options):
            answer = model.generate(prompt, max_new_tokens, **options)
            return {**answer, "token_ids": answer["token_ids"].tolist()}

        def logits_after(ids, more):
            logits, state = model.step(ids, model.initial_state())
            rows = [logits]
            for i in more:
                logits, state = model.step([i], state)
                rows.append(logits)
            return np.stack(rows)

        most = model.max_prompt_tokens
        written = written_vectors(task.tokenizer, model.max_length, most, NEW_TOKENS, generate, logits_after)
    return _all(task.tokenizer, written)


def _all(tokenizer, written):
    return {**of_tokenizer(tokenizer), "written": written}


def of_tokenizer(tokenizer):
    """The vectors that hang on no model: dict of `tokenizer`, `random` and `sampler`."""
    return {
        "tokenizer": tokenizer_vectors(tokenizer),
        "random": random_vectors(),
        "sampler": sampler_vectors(),
    }


def tokenizer_vectors(tokenizer):
    """Texts and their ids, and ids and their text.

    Returns:
        dict of `encode`, a list of dicts of `ids` and either `text` or, where it is no UTF-8, `base64`; and `decode`, a
        list of dicts of `ids`, `text` and `base64`, the bytes before those that are no UTF-8 become U+FFFD.
    """
    encode = [{"text": text, "ids": tokenizer.encode(text).tolist()} for text in _TEXTS]
    encode += [{"base64": _base64(data), "ids": tokenizer.encode(data).tolist()} for data in _BYTES]
    rows = [row["ids"] for row in encode]
    rows += [row[:-1] for row in rows if len(row) > 1] + [row[1:] for row in rows if len(row) > 2]  # cut characters
    last = tokenizer.vocabulary_size - 1
    rows += [sorted(tokenizer.special_ids.values()), [last], [last, *tokenizer.special_ids.values(), last, 0]]
    rows += [[int(uniform(3, i) * (last + 1)) for i in range(start, start + 12)] for start in (0, 12, 24)]
    decode = []
    for ids in rows:
        text, data = tokenizer.decode(ids), tokenizer.decode_bytes(ids)
        decode.append({"ids": ids, "text": text, "base64": _base64(data)})
    return {"encode": encode, "decode": decode}


def random_vectors():
    """Draws: a list of dicts of `seed`, `position` and `bits`, the number times 2**24."""
    pairs = [(0, 0), (0, 1), (1, 0), (7, 12), (123456789, 4095), (2**31 - 1, 2**31 - 1)]
    return [{"seed": s, "position": p, "bits": int(float(uniform(s, p)) * 2**24)} for s, p in pairs]


def sampler_vectors():
    """Choices of the sampler.

    Returns:
        dict of `logits`, a list of rows of logits, and `choices`, a list of dicts of `logits` (the number of the row),
        `seen` (ids), `suppressed_ids`, `options` (those that are not named are off), `position` and `token`.
    """
    rows = [_logits(12, 4.0), _logits(300, 6.0), [1e38, -1e38, 0.5, 1e38, 3e38], [0.0, 2.0, 1.0, 2.0, 2.0]]
    choices = []
    for row, logits in enumerate(rows[:3]):
        for options in _option_sets():
            found = 0
            for position in range(40):
                choice = {
                    "logits": row,
                    "seen": [1, 2, len(logits) - 1] if "repetition_penalty" in options else [],
                    "suppressed_ids": [0, 3] if position % 2 else [],
                    "options": options,
                    "position": position * 37,
                }
                token, margin = _choose(logits, choice)
                if margin >= SURE:
                    choices.append({**choice, "token": token})
                    found += 1
                if found == 2:
                    break
    ties = {"logits": 3, "seen": [], "suppressed_ids": [], "position": 0}
    greedy = {**ties, "options": {"temperature": 0.0}}  # the lowest id of equals
    kept = {**ties, "options": {"temperature": 1.0, "top_k": 1, "seed": 5}}  # whatever equals the last of the k is kept
    choices += [{**choice, "token": _choose(rows[3], choice)[0]} for choice in (greedy, kept)]
    return {"logits": rows, "choices": choices}


def written_vectors(tokenizer, max_length, most, limit, generate, logits_after, sure=SURE):
    """Whole prompts, as the artifact itself goes on from them.

    Args:
        tokenizer: the task's.
        max_length: the context, None for a model without one.
        most: how many ids of a prompt are read.
        limit: the most new tokens that may be asked for.
        generate: `generate(prompt, max_new_tokens, options)` gives the artifact's `text`, `token_ids` and `truncated`.
        logits_after: `logits_after(ids, more)` gives its logits (1 + more, vocabulary) after a list of ids, and after each of
            some more.
        sure: what the margin of a step is at least.

    Returns:
        A list of dicts of `prompt`, `max_new_tokens`, `options`, `prompt_ids` (those that are read), `token_ids`, `text`,
        `stop_reason`, `truncated` and `margin`: how far the nearest step is from another choice.
    """
    vectors = []
    for options, group in candidates(tokenizer, max_length, most, limit):
        found = 0
        for prompt, ids, new in group:
            vector = _written(tokenizer, prompt, ids, new, options, generate, logits_after, sure)
            if vector is not None:
                vectors.append(vector)
                found += 1
            if found == EACH:
                break
    return vectors


def candidates(tokenizer, max_length, most, limit):
    """The prompts of which vectors are made, as far as their steps are sure.

    Args:
        tokenizer, max_length, most, limit: as in `written_vectors`.

    Returns:
        A list of pairs of options and the prompts to try with them, of which `EACH` are taken, as a list of triples: the
        prompt, its ids that are read, and how many new ones to ask for. The last group is of a prompt that is cut.
    """
    new = min(NEW_TOKENS, limit, NEW_TOKENS if max_length is None else max(1, max_length // 2))
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    read = [(prompt, bos + tokenizer.encode(prompt).tolist(), new) for prompt in _PROMPTS]
    fitting = [
        (prompt, ids, new)
        for prompt, ids, new in read
        if ids and len(ids) <= most and (max_length is None or len(ids) + new <= max_length)
    ]
    groups = [(options, fitting) for options in WAYS]
    if most <= LONGEST:
        long = " ".join([*_PROMPTS, "and so on"])
        while len(tokenizer.encode(long)) < most + 4 and len(long) < 100 * most:
            long += " " + long
        ids = read_ids(tokenizer, long, most)[0].tolist()
        groups.append((WAYS[0], [(long, ids, 1)] if ids else []))
    return groups


def _written(tokenizer, prompt, ids, new, options, generate, logits_after, sure):
    """One vector of as many steps as are sure, None where the first is not."""
    result = generate(prompt, new, options)
    token_ids = result["token_ids"]
    steps = min(new, len(token_ids) + 1)  # a text that the end-of-text id ended has one step more
    margins = []
    for step, logits in enumerate(logits_after(ids, token_ids[: steps - 1])):
        seen = np.zeros(len(logits), bool)
        seen[[*ids, *token_ids[:step]]] = True
        _, margin = sample(logits, options, seen, len(ids) + step, tokenizer.suppressed_ids, with_margin=True)
        margins.append(float(margin[0]))
    count = next((step for step, margin in enumerate(margins) if not margin >= sure), steps)
    if count == 0:
        return None
    if count < steps:
        new, result = count, generate(prompt, count, options)
    return {
        "prompt": prompt,
        "max_new_tokens": new,
        "options": options,
        "prompt_ids": ids,
        "token_ids": result["token_ids"],
        "text": result["text"],
        "stop_reason": "eos" if len(result["token_ids"]) < new else "length",
        "truncated": result["truncated"],
        "margin": min(min(margins[:count]), 1e6),
    }


def _option_sets():
    """What the sampler's vectors ask for: every option alone, and together."""
    hot = {"temperature": 1.0, "seed": 11}
    return (
        {"temperature": 0.0},
        {"temperature": 0.0, "repetition_penalty": 1.5},
        hot,
        {"temperature": 0.3, "seed": 2**31 - 1},
        {**hot, "top_k": 1},
        {**hot, "top_k": 4},
        {**hot, "top_p": 0.6},
        {**hot, "top_p": 0.01},
        {**hot, "min_p": 0.2},
        {**hot, "repetition_penalty": 1.3},
        {**hot, "repetition_penalty": 0.7},
        {"temperature": 0.7, "top_k": 50, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2, "seed": 3},
    )


def _logits(size, scale):
    """Numbers that look like logits and are short in JSON."""
    return [round((float(uniform(size, i)) - 0.5) * scale, 3) for i in range(size)]


def _choose(logits, choice):
    seen = np.zeros(len(logits), bool)
    seen[choice["seen"]] = True
    token, margin = sample(
        np.array(logits, np.float32),
        choice["options"],
        seen,
        choice["position"],
        tuple(choice["suppressed_ids"]),
        with_margin=True,
    )
    return int(token[0]), float(margin[0])


def _base64(data):
    return base64.b64encode(data).decode("ascii")
