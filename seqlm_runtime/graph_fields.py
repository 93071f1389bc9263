"""The fields that the files of a SavedModel may have: what exports of ours write, of all that TensorFlow's loaders know.

What a field that stands in no table here could do, be it a file to read, an object of Python's to make or a function to
put in the place of another, need not be known: it is refused.
"""

from seqlm_runtime.wire import BLOCK, fields

# Message -> number of a field -> its name, and behind a colon the message that it holds, where that is looked at, too.
# The names are those of TensorFlow's `.proto` files.
SAVED_MODEL = {
    "SavedModel": {1: "saved_model_schema_version", 2: "meta_graphs:MetaGraphDef"},
    "MetaGraphDef": {
        1: "meta_info_def:MetaInfoDef",
        2: "graph_def:GraphDef",
        3: "saver_def:SaverDef",
        5: "signature_def:SignatureDefEntry",
        7: "object_graph_def:SavedObjectGraph",
    },
    "MetaInfoDef": {
        2: "stripped_op_list",
        4: "tags",
        5: "tensorflow_version",
        6: "tensorflow_git_version",
        7: "stripped_default_attrs",
    },
    "SaverDef": {1: "filename_tensor_name", 2: "save_tensor_name", 3: "restore_op_name", 7: "version"},
    "GraphDef": {1: "node:NodeDef", 2: "library:FunctionDefLibrary", 4: "versions"},
    "NodeDef": {1: "name", 2: "op", 3: "input", 4: "device", 5: "attr:AttrEntry", 7: "experimental_type"},
    "AttrEntry": {1: "key", 2: "value:AttrValue"},
    "AttrValue": {
        1: "list:ListValue",
        2: "s",
        3: "i",
        4: "f",
        5: "b",
        6: "type",
        7: "shape",
        8: "tensor:TensorProto",
        10: "func:NameAttrList",
    },
    "ListValue": {2: "s", 3: "i", 4: "f", 5: "b", 6: "type", 7: "shape"},
    "NameAttrList": {1: "name"},
    "TensorProto": {
        1: "dtype",
        2: "tensor_shape",
        4: "tensor_content",
        5: "float_val",
        6: "double_val",
        7: "int_val",
        8: "string_val",
        10: "int64_val",
        11: "bool_val",
    },
    "FunctionDefLibrary": {1: "function:FunctionDef"},
    "FunctionDef": {
        1: "signature:OpDef",
        3: "node_def:NodeDef",
        4: "ret",
        5: "attr:AttrEntry",
        6: "control_ret",
        7: "arg_attr:ArgAttrEntry",
    },
    "OpDef": {1: "name", 2: "input_arg:ArgDef", 3: "output_arg:ArgDef", 17: "is_stateful", 20: "control_output"},
    "ArgDef": {1: "name", 3: "type", 7: "handle_data", 17: "experimental_full_type"},
    "ArgAttrEntry": {1: "key", 2: "value:ArgAttrs"},
    "ArgAttrs": {1: "attr:AttrEntry"},
    "SignatureDefEntry": {1: "key", 2: "value:SignatureDef"},
    "SignatureDef": {
        1: "inputs:TensorInfoEntry",
        2: "outputs:TensorInfoEntry",
        3: "method_name",
        4: "defaults:DefaultEntry",
    },
    "TensorInfoEntry": {1: "key", 2: "value:TensorInfo"},
    "TensorInfo": {1: "name", 2: "dtype", 3: "tensor_shape"},
    "DefaultEntry": {1: "key", 2: "value:TensorProto"},
    # What Python's loader makes objects of.
    "SavedObjectGraph": {1: "nodes:SavedObject", 2: "concrete_functions"},
    "SavedObject": {
        1: "children",
        4: "user_object:SavedUserObject",
        6: "function",
        7: "variable:SavedVariable",
        8: "bare_concrete_function",
        9: "constant",
        13: "registered_name",
        15: "dependencies",
    },
    "SavedUserObject": {1: "identifier", 2: "version"},
    "SavedVariable": {1: "dtype", 2: "shape", 3: "trainable", 6: "name"},
}
# Where a text names a class of Python's: those that hold what we export, and nothing else.
TEXTS = {
    "SavedUserObject.identifier": {
        "_generic_user_object",
        "signature_map",
        "trackable_dict_wrapper",
        "trackable_list_wrapper",
        "trackable_tuple_wrapper",
    },
    "SavedObject.registered_name": {"tf.TrackableConstant"},
}
# A record of the requests by which a server warms up.
WARM_UP = {
    "PredictionLog": {6: "predict_log:PredictLog"},
    "PredictLog": {1: "request:PredictRequest"},
    "PredictRequest": {1: "model_spec:ModelSpec", 2: "inputs:InputsEntry"},
    "ModelSpec": {1: "name", 3: "signature_name"},
    "InputsEntry": {1: "key", 2: "value:TensorProto"},
    "TensorProto": SAVED_MODEL["TensorProto"],
}


def strange_fields(content, tables, message):
    """What stands in a message that its table does not name: a set of sentences' parts, as "the field 6 of MetaGraphDef".

    Args:
        content: the message's bytes.
        tables: `SAVED_MODEL` or `WARM_UP`.
        message: its name there.

    Raises:
        ValueError: it is cut, or is no message.
    """
    found = set()
    tables = {
        name: {number: field.partition(":")[::2] for number, field in table.items()} for name, table in tables.items()
    }
    _search(content, tables, message, found, set())
    return found


def _search(content, tables, message, found, done):
    place = (message, bytes(content))  # thousands of nodes have the same attributes
    if place in done:
        return
    done.add(place)
    for number, kind, value in fields(content):
        if number not in tables[message]:
            found.add(f"the field {number} of {message}")
            continue
        name, inner = tables[message][number]
        texts = TEXTS.get(f"{message}.{name}")
        if kind == BLOCK and inner:
            _search(value, tables, inner, found, done)
        elif kind == BLOCK and texts and bytes(value).decode("utf-8", "replace") not in texts:
            found.add(f"the {name} {bytes(value).decode('utf-8', 'replace')!r} of {message}")
