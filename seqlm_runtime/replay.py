"""Run an exported artifact on given prompts and texts, in a process that never imports TensorFlow's Python or Keras.

`python -m seqlm_runtime.replay REQUEST.npz ANSWER.npz` is the artifact's half of `seqlm verify`. The request holds
`artifact`, `max_new_tokens`, the texts `prompts`, and for each mode ("greedy", "sampled") the reference's ids as one
array a prompt (`greedy_ids_0` ...) with the number of ids that stand before the new ones (`greedy_first_0` ...). The
answer holds what the artifact writes by itself and its logits along the reference's own text.
"""

import json
import sys

import numpy as np

from seqlm_runtime.litert import LiteRTModel
from seqlm_runtime.saved_model import SavedModel

MODES = {
    "greedy": {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0},
    "sampled": {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "seed": 7},
}
_OFF = {"min_p": 0.0, "repetition_penalty": 1.0}


def replay_saved_model(path, prompts, max_new_tokens, references):
    """What a SavedModel writes after each prompt, and its logits along each reference; see `replay`."""
    model, rows = SavedModel(path), len(prompts)
    answer = {}
    for mode, options in MODES.items():
        values = {name: np.full(rows, value, "float32") for name, value in {**_OFF, **options}.items()}
        for name in ("top_k", "seed"):
            values[name] = values[name].astype("int32")
        limit = np.full(rows, max_new_tokens, "int32")
        result = model.run("generate", text=list(prompts), max_new_tokens=limit, **values)
        for row in range(rows):
            answer[f"{mode}_new_{row}"] = result["token_ids"][row, : result["num_tokens"][row]]
            answer[f"{mode}_text_{row}"] = np.frombuffer(result["generated_text"][row], "uint8")
            ids, first = references[mode][row]
            logits = model.run("logits", token_ids=ids[None], lengths=np.array([len(ids)], "int32"))["logits"]
            answer[f"{mode}_logits_{row}"] = logits[0, first - 1 :]
    return answer


def replay_litert(path, prompts, max_new_tokens, references):
    """The same for a LiteRT file, which reads the reference a step at a time."""
    model = LiteRTModel(path)
    answer = {}
    for mode, options in MODES.items():
        for row, prompt in enumerate(prompts):
            result = model.generate(prompt, max_new_tokens=max_new_tokens, **options, **_OFF)
            answer[f"{mode}_new_{row}"] = result["token_ids"]
            answer[f"{mode}_text_{row}"] = np.frombuffer(result["text"].encode(), "uint8")
            ids, first = references[mode][row]
            logits, state = model.step(ids[:first], model.initial_state())
            rows = [logits]
            for i in ids[first:]:
                logits, state = model.step([i], state)
                rows.append(logits)
            answer[f"{mode}_logits_{row}"] = np.stack(rows)
    return answer


def replay(request):
    """The answer to a request, both dicts of arrays.

    Returns:
        For each mode and prompt `MODE_new_I` (ids that it wrote), `MODE_text_I` (the UTF-8 bytes of its text) and
        `MODE_logits_I` (steps + 1, vocabulary): its logits after the prompt and after each id of the reference.
    """
    artifact, prompts = str(request["artifact"]), json.loads(str(request["prompts"]))
    references = {
        mode: [
            (request[f"{mode}_ids_{row}"].astype("int32"), int(request[f"{mode}_first_{row}"]))
            for row in range(len(prompts))
        ]
        for mode in MODES
    }
    run = replay_litert if artifact.endswith(".tflite") else replay_saved_model
    return run(artifact, prompts, int(request["max_new_tokens"]), references)


if __name__ == "__main__":
    with np.load(sys.argv[1]) as stored:
        np.savez(sys.argv[2], **replay(stored))
