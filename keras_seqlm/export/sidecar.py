"""What a stranger needs to program against an export: the fields of `assets.extra/seqlm.json` and of `NAME.json`.

`guides/sidecar.md` says each field in words. What comes with every kind of export is written here, from the signatures
as they were traced and from the files of the tokenizer, so that it cannot say another thing than the artifact.
"""

import inspect
import json
import pathlib

from keras_seqlm.export.signatures import DEFAULT_NEW_TOKENS
from seqlm_runtime.options import MEANINGS, OPTIONS, RANGES
from seqlm_runtime.prompts import byte_limits

WIDTH = 160  # of a line of the file
SAMPLER = "seqlm-sampler-1"  # another number where one of its numbers or its order changes: it is one seed, one text
# What each tensor of a signature means.
_INPUTS = {
    "text": "a text a row, UTF-8; bytes that are none are read as U+FFFD, but kept by byte and byte_pair tokenizers",
    "max_new_tokens": "most tokens to write; the export's limit and the end of the context come first",
    "token_ids": "ids of the tokenizer, padding on the right",
    "lengths": "how many ids of the row are real, at least 1",
}
_OUTPUTS = {
    "generated_text": "the new text alone, valid UTF-8, with the space before its first word where it goes on with a text",
    "token_ids": "the new ids, without the end-of-text id; beyond num_tokens they are 0",
    "num_tokens": "how many tokens were written, or scored; bos does not count",
    "truncated": "whether text was cut off to fit the context",
    "log_probability": "sum of ln p(token | tokens before it) of the whole text, in nats",
    "logits": "of the token that follows each id; of the last real one where there is no axis of time",
}
_SIGNATURES = {
    "serving_default": "text in, text out: generate with the default of every option",
    "generate_text": "the same as serving_default",
    "generate": "text and an option of every kind for each row",
    "generate_xla": "the same as generate, compiled; only for a server that was started with XLA on",
    "score": "how probable a text is after the beginning of a text",
    "logits": "one pass over ids that are given, from the beginning of a text: nothing is put before them",
    "decode": "reads one token",
}


def description(model, tokenizer, signatures, folder, most):
    """The fields that every sidecar has beside those of its own kind.

    Args:
        model: the language model.
        tokenizer: the task's tokenizer.
        signatures: dict name -> function, as they are saved.
        folder: name of the folder beside the sidecar that holds the tokenizer's files.
        most: how many ids of a prompt are read; see `seqlm_runtime.prompts`.

    Returns:
        dict of what JSON can hold: `signatures`, `tokenizer`, `context`, `stop` and `sampler`.

    Raises:
        ValueError: a signature or a tensor that this file has no words for.
    """
    return {
        "signatures": {name: traced_signature(name, function) for name, function in signatures.items()},
        "tokenizer": tokenizer_entry(tokenizer, folder),
        "context": {
            "max_length": model.max_length,
            "max_prompt_tokens": most,
            "prompt_bytes": list(byte_limits(tokenizer, most)),
            "default_new_tokens": DEFAULT_NEW_TOKENS,
        },
        "stop": {"eos_id": tokenizer.eos_id, "rule": "eos ends the text and is no part of it, else the count does"},
        "sampler": {
            "name": SAMPLER,
            "order": ["repetition_penalty", "suppressed_ids", "temperature", "top_k", "top_p", "min_p", "draw"],
            "suppressed_ids": list(tokenizer.suppressed_ids),
            "random": "Threefry-2x32-20, key (seed, 0), counter (tokens read so far, 0), the first word's upper 24 bits",
            "options": {
                name: {"dtype": dtype, "default": value, **RANGES[name], "meaning": MEANINGS[name]}
                for name, (dtype, value) in OPTIONS.items()
            },
        },
    }


def tokenizer_entry(tokenizer, folder):
    """What a sidecar says of the tokenizer, whose files are in `folder`."""
    return {
        "type": tokenizer.type,
        "folder": folder,
        "files": sorted(tokenizer.files),
        "config": next(iter(tokenizer.files)),  # the one that names the type comes first
        "hash": tokenizer.hash,
        "vocabulary_size": tokenizer.vocabulary_size,
        "special_ids": tokenizer.special_ids,
        "before_prompt": [] if tokenizer.bos_id is None else [tokenizer.bos_id],
    }


def as_json(content, depth=0):
    """The sidecar's text: what fits a line is written in one, and so is every list of numbers."""
    line = json.dumps(content, ensure_ascii=False)
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    numbers = isinstance(content, list) and not any(isinstance(item, dict | list | str) for item in content)
    if not items or numbers or depth + len(line) < WIDTH:
        return line
    names = isinstance(content, dict)
    parts = [(f"{json.dumps(key)}: " if names else "") + as_json(item, depth + 1) for key, item in items]
    inside, end = "\n" + " " * (depth + 1), "\n" + " " * depth
    return ("{" if names else "[") + inside + f",{inside}".join(parts) + end + ("}" if names else "]")


def save_tokenizer(tokenizer, sidecar):
    """The tokenizer's files in a folder beside a SavedModel's sidecar; returns the folder's name."""
    folder = pathlib.Path(sidecar).with_name("tokenizer")
    tokenizer.save(folder)
    return folder.name


def signature_entry(name, inputs, outputs, optional=()):
    """What a sidecar says of one signature.

    Args:
        name: of the signature.
        inputs, outputs: dicts of name -> (dtype, shape), as JSON has them.
        optional: names of the inputs that may be left out.

    Returns:
        dict of `meaning`, `inputs`, `outputs` and, of a LiteRT file, `state`: the leaves, which go in and come out, by name
        alone.

    Raises:
        ValueError: a signature or a tensor that this file has no words for.
    """
    read = name.removeprefix("prefill_")
    meaning = f"reads up to {read} tokens of a prompt" if read != name else _SIGNATURES.get(name)
    if meaning is None:
        raise ValueError(f"the signature {name!r} has no words in {__name__}: say there what it does.")
    state = [key for key in outputs if key in inputs] if name == "decode" or read != name else []
    return {
        "meaning": meaning,
        "inputs": {
            key: {**tensor_entry(key, *spec, _INPUTS), **({"optional": True} if key in optional else {})}
            for key, spec in inputs.items()
            if key not in state
        },
        "outputs": {key: tensor_entry(key, *spec, _OUTPUTS) for key, spec in outputs.items() if key not in state},
        **({"state": state} if state else {}),
    }


def traced_signature(name, function, entry=signature_entry):
    """The entry of a signature as it was traced; `entry` has the words for it."""
    defaults = {}
    if not hasattr(function, "structured_outputs"):  # not traced for one list of inputs alone
        parameters = inspect.signature(function.python_function).parameters
        defaults = {key: part.default for key, part in parameters.items() if part.default is not part.empty}
        function = function.get_concrete_function()
    positional, named = function.structured_input_signature
    inputs = {spec.name: _as_json(spec) for spec in (*positional, *named.values())}
    outputs = {key: _as_json(spec) for key, spec in function.structured_outputs.items()}
    return entry(name, inputs, outputs, defaults)


def _as_json(spec):
    return spec.dtype.name, spec.shape.as_list()


def tensor_entry(name, dtype, shape, meanings):
    """What a sidecar says of a tensor; ValueError where there are no words for it."""
    meaning = meanings.get(name) or MEANINGS.get(name)
    if meaning is None:
        raise ValueError(f"the tensor {name!r} has no words in {__name__}: say there what it means.")
    return {"dtype": dtype, "shape": shape, "meaning": meaning}
