"""A LiteRT (TFLite) file for the phone, with its state in the open and its tokenizer beside it."""

import os
import pathlib

from keras_seqlm import tokenizers
from keras_seqlm.cache import single_tokens_written
from keras_seqlm.export import vectors
from keras_seqlm.export.clean_process import run_clean
from keras_seqlm.export.conversion import write_lite_file
from keras_seqlm.export.loading import answers_rows, load_at_float32
from keras_seqlm.export.reading import served_prompt_room
from keras_seqlm.export.row_export import write_row_litert
from keras_seqlm.export.run_folder import as_run_folder
from keras_seqlm.export.sidecar import as_json, description
from keras_seqlm.export.signatures import litert_module
from keras_seqlm.export.stages import tell
from keras_seqlm.files import replacing, write_text
from seqlm_runtime.seals import sealed

QUANTIZATIONS = ("none", "float16", "int8")


def litert(task, path, quantize="none", overwrite=False, imports=(), max_prompt_tokens=None, allow_ops=()):
    """Export a task as a LiteRT file of builtin operations only.

    A task that answers rows has a signature for each of some lengths, as `classify_64`: ids in, the model's numbers out;
    `seqlm_runtime.LiteRTTask` runs them, texts in and answers out. Of a `TextGeneration` the signatures `prefill_N` and `decode` take `token_ids` (1, N), `lengths` (1,) and the leaves of the state, and give
    `logits` (1, vocabulary) of the last real token and the new leaves. Beside `NAME.tflite` lie `NAME.json`, which says
    what the file takes, and the folder `NAME.tokenizer`. `seqlm_runtime.LiteRTModel` runs them with NumPy. A model that
    `model.quantize` made integers is read as the float32 weights that these stand for; `quantize` here is the file's own.

    Args:
        task: a `TextGeneration`, a task that answers rows, or the path of a run folder.
        path: `saved_models/NAME.tflite`. A quantised file is written to `NAME-int8.tflite` or `NAME-float16.tflite`,
            so that it may lie beside the exact one, whose tokenizer folder it shares.
        quantize: "none", "float16" (weights), or "int8" (weights; products in the dynamic range of their inputs).
        overwrite: whether a file that exists is replaced.
        imports: modules to import first, for your own registered classes.
        max_prompt_tokens: ids of a prompt that `seqlm_runtime.LiteRTModel` reads, its last ones; None for 4096 of a
            recurrent model, `max_length - 1` of a Transformer.
        allow_ops: names of operations that layers of your own need beside those of our models; whoever loads it names
            them, too.

    Returns:
        The path of the .tflite as `pathlib.Path`.

    Raises:
        FileExistsError: the file, or beside it the tokenizer of another model, exists and `overwrite` is false.
        ValueError: another ending than .tflite, an unknown `quantize`, a `max_prompt_tokens` that the model cannot read, or
            a model that becomes other operations.

    Example:

        seqlm.export.litert(writer, "saved_models/books.tflite", quantize="int8")
    """
    path = pathlib.Path(path)
    if path.suffix != ".tflite":
        raise ValueError(f"a LiteRT file is named NAME.tflite, got {path}")
    if quantize not in QUANTIZATIONS:
        raise ValueError(f"quantize must be one of {list(QUANTIZATIONS)}, got {quantize!r}")
    name = path.stem
    suffix = "" if quantize == "none" or name.endswith(f"-{quantize}") else f"-{quantize}"
    target = path.with_name(f"{name}{suffix}.tflite")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists; name another, or overwrite it (--name, --overwrite)")
    tokenizer = path.with_name(f"{name.removesuffix(f'-{quantize}')}.tokenizer")
    with replacing(target) as beside, as_run_folder(task) as run_folder:
        sidecar = run_clean(
            "keras_seqlm.export.litert:write_litert",
            imports=imports,
            run_folder=str(run_folder),
            path=str(beside),
            tokenizer_path=str(tokenizer),
            quantize=quantize,
            overwrite=overwrite,
            max_prompt_tokens=max_prompt_tokens,
            allow_ops=list(allow_ops),
        )
        write_text(target.with_suffix(".json"), as_json(sidecar) + "\n")
    return target


def write_litert(run_folder, path, tokenizer_path, quantize, overwrite, max_prompt_tokens=None, allow_ops=()):
    """Trace and convert, in the clean process; returns the sidecar."""
    tell("reading the model")
    task = load_at_float32(run_folder)
    if not overwrite and os.path.exists(tokenizer_path) and tokenizers.load(tokenizer_path).hash != task.tokenizer.hash:
        raise FileExistsError(
            f"{tokenizer_path} exists and is the tokenizer of another model, whose files need it; name another, or "
            "overwrite it (--name, --overwrite)"
        )
    if answers_rows(task):
        return write_row_litert(task, path, tokenizer_path, quantize, max_prompt_tokens, allow_ops)
    most = served_prompt_room(task.model, max_prompt_tokens)
    tell("tracing prefill and decode")
    with single_tokens_written("slice"):  # a builtin of LiteRT
        module, signatures, prefills, zeros = litert_module(task.model)
    written = write_lite_file(module, signatures, path, task.tokenizer, tokenizer_path, quantize, allow_ops)
    tokenizer = task.tokenizer
    sidecar = {
        "format": 1,
        **written,
        "model": type(task.model).__name__,
        "state": {name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)} for name, leaf in zeros.items()},
        "prefill_lengths": prefills,
        "max_length": task.model.max_length,
        "max_prompt_tokens": most,
        "vocabulary_size": task.model.vocabulary_size,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "suppressed_ids": list(tokenizer.suppressed_ids),
        "tokenizer_hash": tokenizer.hash,
        **description(task.model, tokenizer, signatures, pathlib.Path(tokenizer_path).name, most),
    }
    return sealed({**sidecar, "test_vectors": vectors.of_litert(task, path, sidecar, allow_ops)})
