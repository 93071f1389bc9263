"""A SavedModel that TensorFlow Serving runs: text in, text out."""

import pathlib

from keras_seqlm.export import vectors
from keras_seqlm.export.clean_process import run_clean
from keras_seqlm.export.loading import answers_rows, load_at_float32
from keras_seqlm.export.reading import served_prompt_room
from keras_seqlm.export.row_export import write_row_saved_model
from keras_seqlm.export.run_folder import as_run_folder, verb_in
from keras_seqlm.export.served_part import save_served_part
from keras_seqlm.export.sidecar import as_json, description, save_tokenizer
from keras_seqlm.export.signatures import serving_module
from keras_seqlm.export.stages import tell
from keras_seqlm.export.warm_up import WARM_UP, warm_up_requests, write_server_files, write_warm_up
from keras_seqlm.files import replacing
from seqlm_runtime.op_gate import SIDECAR, check_saved_model
from seqlm_runtime.seals import folder_hashes, sealed

NEW_TOKENS_LIMIT = 256


def saved_model(
    task, path, max_new_tokens_limit=NEW_TOKENS_LIMIT, overwrite=False, imports=(), max_prompt_tokens=None, allow_ops=()
):
    """Export a task as a SavedModel for TensorFlow Serving.

    A task that answers rows has the signatures `serving_default`, texts in and answers out, and `forward`, ids in and the
    model's numbers out. The signatures of a `TextGeneration`: `serving_default` = `generate_text` (text), `generate` and `generate_xla` (text and an option of
    every kind, which may be left out), `score` (text), `logits` (token ids). No signature but `generate_xla` holds an XLA op,
    which a stock TF Serving binary refuses to run. The work is done in a clean TensorFlow process on the CPU, from the
    saved model at float32, whatever backend and precision trained it; of a quantised one, from the float32 weights that
    its integers stand for. With it come requests by which a server warms up, and beside the versions `models.config` and
    `batching.txt`, as far as they are not there. `assets.extra/seqlm.json` names the checksum of every file.

    Args:
        task: a `TextGeneration`, a task that answers rows, or the path of a run folder.
        path: the version folder to write, `saved_models/NAME/VERSION`, VERSION a whole number as TF Serving reads it.
            It appears whole, by a rename, or not at all.
        max_new_tokens_limit: what a request's `max_new_tokens` is clamped to.
        overwrite: whether a folder that exists is replaced.
        imports: modules to import first, for your own registered classes.
        max_prompt_tokens: ids of a prompt that are read, its last ones, `bos` among them; None for 4096 of a recurrent model,
            `max_length - 1` of a Transformer. However long a text is, it costs no more; see `seqlm_runtime.prompts`. Of the
            rows of a task the first ids are read, and None is for all that its model reads.
        allow_ops: names of operations that layers of your own need beside those of our models; whoever loads it names
            them, too.

    Returns:
        The path as `pathlib.Path`.

    Raises:
        FileExistsError: the path exists and `overwrite` is false.
        ValueError: the path's last part is no version number, the limit is below 1 or given with a task that answers rows, `max_prompt_tokens` is none that the
            model can read, or the graph holds other operations.

    Example:

        seqlm.export.saved_model(writer, "saved_models/books/1")
    """
    path = pathlib.Path(path)
    if not path.name.isdigit():
        raise ValueError(f"a SavedModel lies in a folder named by its version, as in saved_models/NAME/1; got {path}")
    if max_new_tokens_limit < 1:
        raise ValueError(f"max_new_tokens_limit must be at least 1, got {max_new_tokens_limit}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; name another version, or overwrite it")
    # TF Serving looks at whole numbers only.
    with replacing(path) as beside, as_run_folder(task) as run_folder:
        if verb_in(run_folder) is not None and max_new_tokens_limit != NEW_TOKENS_LIMIT:
            raise ValueError(
                "max_new_tokens_limit is of tasks that write text, and this one answers rows: leave it out"
            )
        run_clean(
            "keras_seqlm.export.saved_model:write_saved_model",
            imports=imports,
            run_folder=str(run_folder),
            path=str(beside),
            max_new_tokens_limit=max_new_tokens_limit,
            max_prompt_tokens=max_prompt_tokens,
            allow_ops=list(allow_ops),
        )
    write_server_files(path.parent, path.parent.name)
    return path


def next_version(folder):
    """The version after the highest in a model's folder; 1 where there is none."""
    folder = pathlib.Path(folder)
    versions = [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    return max(versions, default=0) + 1


def write_saved_model(run_folder, path, max_new_tokens_limit, max_prompt_tokens=None, allow_ops=()):
    """Trace and save, in the clean process."""
    tell("reading the model")
    task = load_at_float32(run_folder)
    if answers_rows(task):
        write_row_saved_model(task, path, max_prompt_tokens, allow_ops)
        return
    tell("tracing what it answers")
    module, signatures = serving_module(task.model, task.tokenizer, max_new_tokens_limit, max_prompt_tokens)
    tell("writing it")
    save_served_part(module, path, signatures)
    sidecar = pathlib.Path(path) / SIDECAR
    sidecar.parent.mkdir(parents=True, exist_ok=True)
    most = served_prompt_room(task.model, max_prompt_tokens)
    content = {
        "format": 1,
        "model": type(task.model).__name__,
        "max_length": task.model.max_length,
        "vocabulary_size": task.model.vocabulary_size,
        "tokenizer_hash": task.tokenizer.hash,
        "max_new_tokens_limit": max_new_tokens_limit,
        "max_prompt_tokens": most,
        **description(task.model, task.tokenizer, signatures, save_tokenizer(task.tokenizer, sidecar), most),
        "test_vectors": vectors.of_saved_model(task, signatures, max_new_tokens_limit, most),
    }
    context = task.model.max_length
    write_warm_up(pathlib.Path(path) / WARM_UP, warm_up_requests(task.tokenizer, most, context or most))
    content["files"] = folder_hashes(path)  # last, so that it names all that was written
    sidecar.write_text(as_json(sealed(content)) + "\n", encoding="utf-8")
    check_saved_model(path, allow_ops)
