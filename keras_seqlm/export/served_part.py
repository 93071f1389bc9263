"""What a server needs of a SavedModel: the rest of what TensorFlow writes is taken out, so that nothing can call it."""

import pathlib

from seqlm_runtime.graph_file import NO_SAVING

_START = "__saved_model_init_op"
# How the process that exported ran a node, and how it is trained: neither changes what a server answers.
_NOT_SERVED = ("config_proto", "_gradient_op_type")


def save_served_part(module, path, signatures):
    """`tf.saved_model.save`, of which only that stays which answers requests and reads the variables.

    Gone are the function that writes the variables' files, and its node; the gradients of functions that have their own; and
    the node that runs after loading, which does nothing. A loader of TensorFlow's needs none of them, and
    `seqlm_runtime.op_gate` refuses them.

    Args:
        module: as of `tf.saved_model.save`, as are `path` and `signatures`.

    Raises:
        ValueError: something of the model has to run after loading, or reads a file then, as a lookup table does.
    """
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2
    from tensorflow.python.saved_model.fingerprinting_utils import write_fingerprint

    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, path, signatures=signatures, options=options)
    file = pathlib.Path(path) / "saved_model.pb"
    message = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    (meta,) = message.meta_graphs
    nodes = {node.name: node for node in meta.graph_def.node}
    save = nodes[meta.saver_def.save_tensor_name.split(":")[0]]
    start = nodes[meta.signature_def[_START].outputs[_START].name.split(":")[0]]
    if start.op != "NoOp" or start.input or meta.asset_file_def:
        raise ValueError(
            f"{path}: the model has to run something after it is loaded ({start.op} of {list(start.input)}), or reads a "
            "file then, as a lookup table does. Keep what a layer looks up in a variable or a constant."
        )
    _take_out(meta.graph_def.node, lambda node: node.name in (save.name, start.name))
    functions = meta.graph_def.library.function
    _take_out(functions, lambda function: function.signature.name == save.attr["f"].func.name)
    meta.saver_def.save_tensor_name = NO_SAVING
    del meta.signature_def[_START]
    meta.collection_def.clear()
    for part in (meta.graph_def.node, *(function.node_def for function in functions)):
        for node in part:
            for name in _NOT_SERVED:
                node.attr.pop(name, None)
    file.write_bytes(message.SerializeToString(deterministic=True))
    write_fingerprint(str(path))  # of the file as it is now


def _take_out(entries, unwanted):
    """Out of a repeated field."""
    left = [entry for entry in entries if not unwanted(entry)]
    del entries[:]
    entries.extend(left)
