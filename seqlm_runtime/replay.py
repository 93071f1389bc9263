"""Run an exported artifact on given prompts and texts, in a process that never imports TensorFlow's Python or Keras.

`python -m seqlm_runtime.replay REQUEST.npz ANSWER.npz` is the artifact's half of `seqlm verify`. The answer holds what
the artifact writes by itself, in every way that it can be asked, and its logits along the reference's own texts.
"""

import json
import sys

import numpy as np

from seqlm_runtime.litert import LiteRTModel
from seqlm_runtime.options import DEFAULTS, OPTIONS
from seqlm_runtime.saved_model import SavedModel

NEW_TOKENS = 32
MOST_TOKENS = 1024  # of the longest text that is looked at
DEFAULT_NEW_TOKENS = 64  # of a request that names no options
# Of a mode, an option has one value for all prompts, or a list whose values they take in turn.
MODES = {
    "greedy": {"max_new_tokens": NEW_TOKENS},
    "sampled": {"max_new_tokens": NEW_TOKENS, "temperature": 0.8, "top_k": 40, "top_p": 0.95, "seed": 7},
    "mixed": {
        "max_new_tokens": [12, 32, 0, 20, 7, 28, 1, 32],
        "temperature": [0.0, 0.8, 0.8, 1.5, 0.0, 0.3, 1.0, 0.7],
        "top_k": [0, 40, 0, 5, 3, 0, 1, 0],
        "top_p": [1.0, 0.95, 0.5, 1.0, 1.0, 0.7, 1.0, 0.9],
        "min_p": [0.0, 0.0, 0.0, 0.1, 0.0, 0.0, 0.0, 0.02],
        "repetition_penalty": [1.0, 1.0, 1.0, 1.2, 1.5, 1.0, 1.0, 1.1],
        "seed": [0, 7, 1, 2, 3, 2**31 - 1, 5, 6],
    },
    "default": {"max_new_tokens": DEFAULT_NEW_TOKENS},
}
# Each way to ask an artifact: the mode whose texts it has to write, and the signature of a SavedModel that is asked.
WAYS = {
    "greedy": ("greedy", "generate"),
    "sampled": ("sampled", "generate"),
    "mixed": ("mixed", "generate"),
    "serving_default": ("default", "serving_default"),
    "generate_text": ("default", "generate_text"),
    "generate_xla": ("mixed", "generate_xla"),
}
SAVED_WAYS = tuple(way for way in WAYS if way != "generate_xla")
LITE_WAYS = ("greedy", "sampled", "mixed")


def options_of(mode, row):
    """The options of a mode's prompt: dict of every option, `max_new_tokens` among them."""
    given = {**DEFAULTS, **MODES[mode]}
    return {name: value[row % len(value)] if isinstance(value, list) else value for name, value in given.items()}


def columns_of(mode, rows):
    """The options of a mode as a SavedModel takes them: dict of one array (rows,) for each."""
    options = [options_of(mode, row) for row in range(rows)]
    types = {"max_new_tokens": "int32", **{name: dtype for name, (dtype, _) in OPTIONS.items()}}
    return {name: np.array([row[name] for row in options], types[name]) for name in options[0]}


def columns_of_longest(max_new_tokens):
    """The options of a request for as many tokens as there are to be had, of texts that hardly end by themselves.

    At such a temperature every id is as probable as any other, so that rounding decides nothing.
    """
    seeds = np.arange(4, dtype="int32")
    columns = {**columns_of("greedy", len(seeds)), "seed": seeds}
    return columns | {
        "max_new_tokens": np.full(len(seeds), max_new_tokens, "int32"),
        "temperature": np.full(len(seeds), 1e6, "float32"),
    }


def replay_saved_model(request):
    """What a SavedModel answers to every signature but the compiled one; with XLA on to that one alone."""
    xla = bool(request["xla"])
    model = SavedModel(str(request["artifact"]), xla=xla, allow_ops=json.loads(str(request["allow_ops"])))
    prompts, answer = json.loads(str(request["prompts"])), {}
    for way, (mode, signature) in WAYS.items():
        if xla == (signature == "generate_xla"):
            options = columns_of(mode, len(prompts)) if mode != "default" else {}
            result = _answer(model, signature, text=prompts, **options)
            for row, count in enumerate(result["num_tokens"]):
                answer[f"{way}_new_{row}"] = result["token_ids"][row, :count]
                answer[f"{way}_text_{row}"] = np.frombuffer(result["generated_text"][row], "uint8")
                answer[f"{way}_truncated_{row}"] = result["truncated"][row]
    if xla:
        return answer
    difference = 0.0
    for mode in MODES:
        for row in range(len(prompts)):
            ids, first = request[f"{mode}_ids_{row}"], int(request[f"{mode}_first_{row}"])
            answer[f"{mode}_logits_{row}"], apart = _saved_logits(model, ids.astype("int32"), first)
            difference = np.maximum(difference, apart)  # NaN stays
    texts = json.loads(str(request["score_texts"]))
    scores = _answer(model, "score", text=texts)
    most = columns_of_longest(2**31 - 1)
    longest = _answer(model, "generate", text=prompts[:1] * len(most["seed"]), **most)["num_tokens"]
    more = {"padding_difference": difference, "longest": longest}
    return answer | more | {f"score_{name}": value for name, value in scores.items()}


def _answer(model, signature, text, **options):
    """One answer, of which every part has a row for each text."""
    result = model.run(signature, text=text, **options)
    rows = {name: value.shape[:1] for name, value in result.items()}
    if set(rows.values()) != {(len(text),)}:
        raise ValueError(f"The signature {signature!r} answers {len(text)} texts with rows of the shapes {rows}.")
    return result


def _saved_logits(model, ids, first):
    """Logits from the last id of the prompt on, and how far they are from those beside another row, padded."""
    half = max(1, len(ids) // 2)
    batch = np.zeros((2, len(ids)), "int32")
    batch[0], batch[1, :half] = ids, ids[:half]
    logits = model.run("logits", token_ids=batch, lengths=np.array([len(ids), half], "int32"))["logits"]
    apart = np.max(np.abs(logits[0, :half] - logits[1, :half]))
    return logits[0, first - 1 :], np.maximum(apart, np.max(np.abs(logits[1, half:]), initial=0.0))


def replay_litert(request):
    """What a LiteRT file writes, its logits along the reference a step at a time, and after every signature."""
    model = LiteRTModel(str(request["artifact"]), allow_ops=json.loads(str(request["allow_ops"])))
    prompts, answer = json.loads(str(request["prompts"])), {}
    for way in LITE_WAYS:
        for row, prompt in enumerate(prompts):
            result = model.generate(prompt, **options_of(way, row))
            answer[f"{way}_new_{row}"] = result["token_ids"]
            answer[f"{way}_text_{row}"] = np.frombuffer(result["text"].encode(), "uint8")
            answer[f"{way}_truncated_{row}"] = result["truncated"]
            ids, first = request[f"{way}_ids_{row}"].astype("int32"), int(request[f"{way}_first_{row}"])
            logits, state = model.step(ids[:first], model.initial_state())
            rows = [logits]
            for i in ids[first:]:
                logits, state = model.step([i], state)
                rows.append(logits)
            answer[f"{way}_logits_{row}"] = np.stack(rows)
    for row, prompt in enumerate(prompts):
        answer[f"prompt_ids_{row}"] = model.tokenizer.encode(prompt)
    long_ids = request["long_ids"].astype("int32")
    for place in request["long_places"]:
        signature, count = (int(number) for number in place)
        logits, state = model.run(f"prefill_{signature}", long_ids[:count], model.initial_state())
        rows = [logits]
        for i in long_ids[count : count + 2]:
            logits, state = model.run("decode", [i], state)
            rows.append(logits)
        answer[f"long_logits_{signature}_{count}"] = np.stack(rows)
        answer[f"long_position_{signature}_{count}"] = state["position"]
    return answer


def replay(request):
    """The answer to a request, both dicts of arrays.

    Args:
        request: `artifact`, `allow_ops` and `prompts` (JSON), `xla`, and of the reference for each mode and prompt
            `MODE_ids_I` (the prompt's ids and the new ones) and `MODE_first_I` (how many are the prompt's);
            `score_texts` (JSON); `long_ids` with `long_places`, rows of a prefill length and the ids that it reads.

    Returns:
        For each way and prompt `WAY_new_I` (ids that it wrote), `WAY_text_I` (the UTF-8 bytes of its text),
        `WAY_truncated_I`, and for each mode `MODE_logits_I` (steps + 1, vocabulary): its logits after the prompt and
        after each id of the reference. What else there is, the two functions say.
    """
    return (replay_litert if str(request["artifact"]).endswith(".tflite") else replay_saved_model)(request)


if __name__ == "__main__":
    with np.load(sys.argv[1]) as stored:
        np.savez(sys.argv[2], **replay(stored))
