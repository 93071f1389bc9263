"""From a traced module to the bytes of a LiteRT file and the tokenizer beside it."""

import hashlib
import pathlib
import tempfile

from keras_seqlm.export.litert_file import compact
from keras_seqlm.export.stages import tell
from seqlm_runtime.op_gate import check_lite_content
from seqlm_runtime.seals import folder_hashes


def write_lite_file(module, signatures, path, tokenizer, tokenizer_path, quantize, allow_ops=()):
    """Convert, check and write; what of it a sidecar says: `sha256`, `quantize`, `tokenizer_files`.

    Args:
        module, signatures: as `tf.saved_model.save` takes them.
        path: of the .tflite file.
        tokenizer, tokenizer_path: what is saved beside it, and where.
        quantize: "none", "float16" or "int8".
        allow_ops: names of operations that are allowed beside ours.

    Raises:
        RefusedOps: the file would hold other operations; nothing is written.
    """
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=signatures)
        tell("converting")
        content = compact(_converted(folder, list(signatures), quantize))
    check_lite_content(path, content, allow_ops)
    tokenizer.save(tokenizer_path)
    pathlib.Path(path).write_bytes(content)
    return {
        "sha256": hashlib.sha256(content).hexdigest(),
        "quantize": quantize,
        "tokenizer_files": folder_hashes(tokenizer_path),
    }


def _converted(folder, signatures, quantize):
    """The bytes of a LiteRT file of a SavedModel, of builtin operations alone."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=signatures)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if quantize != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    return converter.convert()
