"""Exports of tasks that answer rows, in the clean process: `saved_model` and `litert` come here with them."""

import pathlib

import numpy as np

from keras_seqlm.export.conversion import write_lite_file
from keras_seqlm.export.row_sidecar import row_entry, row_facts
from keras_seqlm.export.row_signatures import FORWARD, row_litert_module, row_module, served
from keras_seqlm.export.served_part import save_served_part
from keras_seqlm.export.sidecar import as_json, save_tokenizer, traced_signature
from keras_seqlm.export.stages import tell
from keras_seqlm.export.warm_up import WARM_UP, text_of_tokens, write_warm_up
from keras_seqlm.generation.buckets import buckets
from seqlm_runtime.op_gate import SIDECAR, check_saved_model
from seqlm_runtime.row_tasks.fill_mask import MASK
from seqlm_runtime.seals import folder_hashes, sealed


def write_row_saved_model(keras_task, path, max_prompt_tokens=None, allow_ops=()):
    """Trace and save."""
    tell("tracing what it answers")
    model, task = keras_task.model, served(keras_task, max_prompt_tokens)
    module, signatures = row_module(task, model)
    tell("writing it")
    save_served_part(module, path, signatures)
    path = pathlib.Path(path)
    sidecar = path / SIDECAR
    sidecar.parent.mkdir(parents=True, exist_ok=True)
    entry = row_entry(task.verb)
    content = row_facts(task, model, save_tokenizer(task.tokenizer, sidecar))
    content["signatures"] = {name: traced_signature(name, function, entry) for name, function in signatures.items()}
    write_warm_up(path / WARM_UP, row_warm_up(task))
    content["files"] = folder_hashes(path)  # last, so that it names all that was written
    sidecar.write_text(as_json(sealed(content)) + "\n", encoding="utf-8")
    check_saved_model(path, allow_ops)


def row_warm_up(task):
    """The requests of a warm-up: for each bucket a text of about as many ids, and as many ids."""
    requests, masks = [], MASK if task.verb == "fill-mask" else ""
    for length in buckets(task.room):
        text = np.array([masks.encode() + text_of_tokens(task.tokenizer, max(1, length - 2 - len(masks)))], object)
        short = np.array([masks.encode() + b"a"], object)
        texts = {name: text if name == task.fields[-1] else short for name in task.fields}
        requests.append(("serving_default", texts))
        ids = {"token_ids": np.zeros((1, length), "int32"), "lengths": np.array([length], "int32")}
        more = {"token_types": np.zeros((1, length), "int32")} if "token_types" in task.reads else {}
        requests.append((FORWARD, {**ids, **more}))
    return requests


def write_row_litert(keras_task, path, tokenizer_path, quantize, max_prompt_tokens=None, allow_ops=()):
    """Trace and convert; returns the sidecar."""
    model, task = keras_task.model, served(keras_task, max_prompt_tokens, lite=True)
    tell(f"tracing {task.verb}")
    module, signatures = row_litert_module(task, model)
    written = write_lite_file(module, signatures, path, task.tokenizer, tokenizer_path, quantize, allow_ops)
    entry = row_entry(task.verb)
    return sealed(
        {
            **row_facts(task, model, pathlib.Path(tokenizer_path).name),
            "signatures": {name: traced_signature(name, function, entry) for name, function in signatures.items()},
            **written,
        }
    )
