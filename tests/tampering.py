"""Artifacts with something wrong: what an accident or an attacker does to what was exported."""

import hashlib
import inspect
import json
import os
import pathlib
import re
import shutil

import numpy as np
from sentences import READ

from seqlm_runtime.lite_file import BUILTINS, parse_lite_file
from seqlm_runtime.op_gate import SIDECAR
from seqlm_runtime.seals import folder_hashes, sealed
from seqlm_runtime.warm_up import WARM_UP

FLOAT, INT, STRING = 1, 3, 7  # numbers of types
SAVED_MODEL, LITE, SMALL = "saved-model", "litert", "litert-int8"
ROWS = 4  # of the prompts that are asked in one request
TAMPERINGS = {}  # name -> (what is tampered with, the function that does it, what the refusal says)


def tampering(kind, said, name=None, **options):
    """Registers `function(artifact, marker, **options)`; what it executes, were it loaded, writes the file `marker`."""

    def register(function):
        TAMPERINGS[name or function.__name__] = (kind, lambda *given: function(*given, **options), said)
        return function

    return register


def tampered(name, sources, folder, marker):
    """The path of a copy, in `folder`, of the artifact that `sources` has of its kind, tampered with as `name` says."""
    kind, change, _ = TAMPERINGS[name]
    source, folder = pathlib.Path(sources[kind]), pathlib.Path(folder) / name
    if kind == SAVED_MODEL:
        artifact = folder / "1"
        shutil.copytree(source, artifact)
    else:
        artifact = copied_lite(source, folder)
    change(artifact, marker)
    return str(artifact)


def copied_lite(source, folder):
    """A .tflite file with its sidecar and its tokenizer, in a folder of its own."""
    folder.mkdir()
    for path in (source, source.with_suffix(".json")):
        shutil.copy(path, folder)
    tokenizer = source.with_name(source.stem.removesuffix("-int8") + ".tokenizer")
    shutil.copytree(tokenizer, folder / tokenizer.name)
    return folder / source.name


# --- damage: nobody makes the checksums anew


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 1
    path.write_bytes(content)


for _file in (
    "assets.extra/tf_serving_warmup_requests",
    "saved_model.pb",
    "fingerprint.pb",
    "variables/variables.index",
    "variables/variables.data-00000-of-00001",
):

    @tampering(SAVED_MODEL, f"{_file} was changed", f"a bit of {_file.split('/')[-1]}", file=_file)
    def flipped(artifact, marker, file):
        flip(artifact / file, 0.4)


@tampering(SAVED_MODEL, "variables/variables.index is missing")
def no_index(artifact, marker):
    (artifact / "variables" / "variables.index").unlink()


@tampering(SAVED_MODEL, "No SavedModel in")
def no_graph(artifact, marker):
    (artifact / "saved_model.pb").unlink()


@tampering(SAVED_MODEL, "variables.data-00000-of-00001 was changed")
def cut_weights(artifact, marker):
    path = artifact / "variables" / "variables.data-00000-of-00001"
    path.write_bytes(path.read_bytes()[:-100])


@tampering(SAVED_MODEL, "assets/more does not belong there")
def a_file_more(artifact, marker):
    (artifact / "assets").mkdir(exist_ok=True)
    (artifact / "assets" / "more").write_text("more")


@tampering(SAVED_MODEL, "seqlm.json is missing")
def no_sidecar(artifact, marker):
    (artifact / SIDECAR).unlink()


@tampering(SAVED_MODEL, "has no checksums, as an older version wrote it: export it again")
def older_sidecar(artifact, marker):
    content = json.loads((artifact / SIDECAR).read_text())
    (artifact / SIDECAR).write_text(json.dumps({key: content[key] for key in content if key not in ("files", "seal")}))


@tampering(SAVED_MODEL, "was changed after the export")
def edited_sidecar(artifact, marker):
    text = (artifact / SIDECAR).read_text()
    assert '"vocabulary_size": 260' in text
    (artifact / SIDECAR).write_text(text.replace('"vocabulary_size": 260', '"vocabulary_size": 261'))


# --- malice: whoever changes it makes the checksums anew


def seal(artifact, **changes):
    content = json.loads((artifact / SIDECAR).read_text()) | changes
    content["files"] = folder_hashes(artifact, leave_out=(SIDECAR,))
    (artifact / SIDECAR).write_text(json.dumps(sealed(content)))


def graph_tampering(said, name=None):
    """For `function(meta, graph, functions, marker)`, which changes the protocol buffers of a SavedModel."""

    def register(function):
        from tensorflow.core.protobuf import saved_model_pb2

        def change(artifact, marker):
            message = saved_model_pb2.SavedModel.FromString((artifact / "saved_model.pb").read_bytes())
            meta = message.meta_graphs[0]
            functions = {part.signature.name: part for part in meta.graph_def.library.function}
            function(meta, meta.graph_def, functions, marker)
            (artifact / "saved_model.pb").write_bytes(message.SerializeToString())
            seal(artifact)

        tampering(SAVED_MODEL, said, name or function.__name__)(change)
        return function

    return register


def constant(nodes, name, value):
    import tensorflow as tf

    node = nodes.add(name=name, op="Const")
    tensor = tf.make_tensor_proto(value)
    node.attr["value"].tensor.CopyFrom(tensor)
    node.attr["dtype"].type = tensor.dtype


def run_at_start(meta):
    """The node "evil", by the signature that TensorFlow runs after loading."""
    meta.graph_def.node.add(name="evil_start", op="NoOp", input=["^evil"])
    start = "__saved_model_init_op"
    meta.signature_def[start].outputs[start].name = "evil_start"


def of(functions, part):
    return next(function for name, function in functions.items() if part in name)


def add_print(nodes, marker, in_function=False):
    """`tf.print` to a file: nothing but the file's name tells it from a harmless one."""
    constant(nodes, "evil_text", "written")
    node = nodes.add(name="evil", op="PrintV2", input=["evil_text:output:0" if in_function else "evil_text"])
    node.attr["output_stream"].s = f"file://{marker}".encode()
    node.attr["end"].s = b"\n"


def add_write(nodes, marker, in_function=False):
    ending = ":output:0" if in_function else ""
    constant(nodes, "evil_name", marker)
    constant(nodes, "evil_text", "written")
    nodes.add(name="evil", op="WriteFile", input=[f"evil_name{ending}", f"evil_text{ending}"])


def put_into(function, add, marker):
    """Have whoever calls a function run what `add` adds to it."""
    add(function.node_def, marker, in_function=True)
    function.signature.control_output.append("evil")
    function.control_ret["evil"] = "evil"


@graph_tampering("PrintV2 in the graph itself")
def print_at_start(meta, graph, functions, marker):
    add_print(graph.node, marker)
    run_at_start(meta)


@graph_tampering("WriteFile in the graph itself")
def write_at_start(meta, graph, functions, marker):
    add_write(graph.node, marker)
    run_at_start(meta)


@graph_tampering("WriteFile in the function 'initialise'")
def write_in_an_initialiser(meta, graph, functions, marker):
    function = graph.library.function.add()
    function.signature.name = "initialise"
    function.signature.is_stateful = True
    put_into(function, add_write, marker)
    node = graph.node.add(name="evil", op="StatefulPartitionedCall")
    node.attr["f"].func.name = "initialise"
    for name in ("Tin", "Tout"):
        node.attr[name].list.SetInParent()
    run_at_start(meta)


@graph_tampering("PrintV2 in the function '__inference_score")
def print_in_score(meta, graph, functions, marker):
    put_into(of(functions, "__inference_score"), add_print, marker)


@graph_tampering("WriteFile in the function '__inference_tokenize_flat")
def write_in_the_tokenizer(meta, graph, functions, marker):
    put_into(of(functions, "__inference_tokenize_flat"), add_write, marker)


@graph_tampering("PyFunc in the function")
def python_in_a_loop(meta, graph, functions, marker):
    of(functions, "while").node_def.add(name="evil", op="PyFunc").attr["token"].s = b"pyfunc_0"


@graph_tampering("TextLineDataset in the graph itself")
def data_that_nobody_reads(meta, graph, functions, marker):
    graph.node.add(name="evil", op="TextLineDataset")


def text_function(name):
    """A function that gives the text that it takes."""
    from tensorflow.core.framework.function_pb2 import FunctionDef

    function = FunctionDef()
    function.signature.name = name
    function.signature.is_stateful = True
    function.signature.input_arg.add(name="text", type=7)
    function.signature.output_arg.add(name="y", type=7)
    function.node_def.add(name="given", op="Identity", input=["text"]).attr["T"].type = 7
    function.ret["y"] = "given:output:0"
    return function


def saving_function(marker):
    """One that also writes a file, in TensorFlow's own format for variables."""
    function = text_function("saving")
    constants = {"path": marker, "names": ["text"], "slices": [""], "payload": "written"}
    for name, value in constants.items():
        constant(function.node_def, name, value)
    inputs = [f"{name}:output:0" for name in constants]
    function.node_def.add(name="save", op="SaveV2", input=inputs).attr["dtypes"].list.type.append(7)
    function.node_def[0].input.append("^save")
    function.signature.control_output.append("save")
    function.control_ret["save"] = "save"
    return function


def add_call(nodes, name, function, inputs):
    """A node that calls a function from texts to a text."""
    node = nodes.add(name=name, op="StatefulPartitionedCall", input=inputs)
    node.attr["f"].func.name = function
    node.attr["Tin"].list.type.extend([7] * len(inputs))
    node.attr["Tout"].list.type.append(7)
    return node


def answer_after(meta, graph, name):
    """`score` waits for a node before it answers."""
    info = meta.signature_def["score"].outputs["num_tokens"]
    graph.node.add(name="after", op="Identity", input=[info.name, f"^{name}"]).attr["T"].type = 3
    info.name = "after:0"


def restore_node(meta, graph):
    return next(node for node in graph.node if node.name == meta.saver_def.restore_op_name)


@graph_tampering("SaveV2 in the function 'saving'")
def save_when_loaded(meta, graph, functions, marker):
    graph.library.function.append(saving_function(marker))
    meta.saver_def.restore_op_name = add_call(graph.node, "evil", "saving", ["saver_filename"]).name


@graph_tampering("SaveV2 in the function 'saving'")
def save_by_tensorflows_own_node(meta, graph, functions, marker):
    """As it writes the variables, were the model saved anew."""
    graph.library.function.append(saving_function(marker))
    meta.saver_def.save_tensor_name = f"{add_call(graph.node, 'evil', 'saving', ['saver_filename']).name}:0"


@graph_tampering("SaveV2 in the graph itself")
def save_beside(meta, graph, functions, marker):
    constant(graph.node, "evil_name", marker)
    graph.node.add(name="evil", op="SaveV2", input=["evil_name"])
    run_at_start(meta)


@graph_tampering("the attribute 'api_implements' in the function 'saving', the function 'decoy'")
def save_in_the_place_of_another_function(meta, graph, functions, marker):
    """TensorFlow puts one function in the place of another that says that it implements the same."""
    for function, device in ((saving_function(marker), b"CPU"), (text_function("decoy"), b"GPU")):
        function.attr["api_implements"].s, function.attr["api_preferred_device"].s = b"evil", device
        graph.library.function.append(function)
    constant(graph.node, "decoy_text", "x")
    add_call(graph.node, "decoy_call", "decoy", ["decoy_text"]).device = "/device:CPU:0"
    add_call(graph.node, "saving_call", "saving", ["decoy_text"]).device = "/device:CPU:0"  # which nobody asks for
    answer_after(meta, graph, "decoy_call")


@graph_tampering("the field 10 of SavedObject")
def save_when_python_loads(meta, graph, functions, marker):
    """As a lookup table is made, whose object names a function."""
    import tensorflow as tf
    from tensorflow.python.saved_model.nested_structure_coder import encode_structure

    function, objects = saving_function(marker), meta.object_graph_def
    constant(function.node_def, "text", "x")
    del function.signature.input_arg[:]
    function.node_def[0].input[0] = "text:output:0"
    graph.library.function.append(function)
    called = objects.concrete_functions["saving"]
    called.canonicalized_input_signature.CopyFrom(encode_structure(((), {})))
    called.output_signature.CopyFrom(encode_structure(tf.TensorSpec([], tf.string)))
    made, table = objects.nodes.add(), objects.nodes.add()
    made.function.concrete_functions.append("saving")
    specification, nothing = made.function.function_spec, inspect.FullArgSpec([], None, None, (), [], None, {})
    specification.fullargspec.CopyFrom(encode_structure(nothing))
    specification.input_signature.CopyFrom(encode_structure(()))
    table.resource.device = ""
    place = len(objects.nodes) - 2
    for name in ("_create_resource", "_initialize", "_destroy_resource"):
        table.children.add(node_id=place, local_name=name)
    objects.nodes[0].children.add(node_id=place + 1, local_name="evil")


@graph_tampering("RestoreV2 in the function")
def weights_from_elsewhere(meta, graph, functions, marker):
    function = of(functions, "traced_restore")
    constant(function.node_def, "evil", f"{marker}-weights")
    next(node for node in function.node_def if node.op == "RestoreV2").input[0] = "evil:output:0"


@graph_tampering("RestoreV2 in the function")
def weights_by_a_second_argument(meta, graph, functions, marker):
    function, node = of(functions, "traced_restore"), restore_node(meta, graph)
    constant(graph.node, "evil_path", f"{marker}-weights")
    function.signature.input_arg.insert(1, type(function.signature.input_arg[0])(name="evil_path", type=7))
    types = list(node.attr["Tin"].list.type)
    node.attr["Tin"].list.type[:] = [types[0], 7, *types[1:]]
    node.input.insert(1, "evil_path")
    for name in ("_read_only_resource_inputs", "_input_shapes"):
        node.attr.pop(name, None)
    function.arg_attr.clear()
    function.attr.pop("_input_shapes", None)
    next(node for node in function.node_def if node.op == "RestoreV2").input[0] = "evil_path"


@graph_tampering("RestoreV2 in the function")
def another_node_that_reads_weights(meta, graph, functions, marker):
    constant(graph.node, "evil_path", f"{marker}-weights")
    node = graph.node.add()
    node.CopyFrom(restore_node(meta, graph))
    node.name, node.input[0] = "evil", "evil_path"
    answer_after(meta, graph, "evil")


@graph_tampering("RestoreV2 in the function")
def another_function_that_reads_weights(meta, graph, functions, marker):
    node = of(functions, "__inference_score").node_def.add(name="evil", op="StatefulPartitionedCall")
    node.attr["f"].func.name = of(functions, "traced_restore").signature.name


@graph_tampering("RestoreV2 in the function")
def weights_for_an_answer(meta, graph, functions, marker):
    answer_after(meta, graph, restore_node(meta, graph).name)


@graph_tampering("RestoreV2 in the function")
def weights_from_where_a_request_says(meta, graph, functions, marker):
    meta.signature_def["score"].inputs["text"].name = meta.saver_def.filename_tensor_name


@graph_tampering("RestoreV2 in the function")
def weights_by_python(meta, graph, functions, marker):
    name, objects = of(functions, "traced_restore").signature.name, meta.object_graph_def
    next(node for node in objects.nodes if node.WhichOneof("kind") == "function").function.concrete_functions.append(
        name
    )
    objects.concrete_functions[name].SetInParent()


@graph_tampering("RestoreV2 in the function")
def weights_by_a_loop(meta, graph, functions, marker):
    """Whose first input is no argument of the function."""
    node = restore_node(meta, graph)
    node.op = "If"
    node.attr["then_branch"].CopyFrom(node.attr["f"])
    del node.attr["f"]


@graph_tampering("stand there twice")
def weights_by_a_namesake(meta, graph, functions, marker):
    function = of(functions, "traced_restore")
    constant(function.node_def, function.signature.input_arg[0].name, f"{marker}-weights")


@graph_tampering("the asset '../../../etc/passwd'")
def an_asset_elsewhere(meta, graph, functions, marker):
    meta.asset_file_def.add(filename="../../../etc/passwd").tensor_info.name = f"{graph.node[0].name}:0"


@graph_tampering("evil_start in what runs when it is loaded")
def a_start_that_does_nothing(meta, graph, functions, marker):
    graph.node.add(name="evil", op="NoOp")
    run_at_start(meta)


@graph_tampering("WriteFile in the function '__inference_score")
def an_operation_with_the_name_of_a_function(meta, graph, functions, marker):
    function = graph.library.function.add()
    function.signature.name = "WriteFile"
    for name in ("filename", "contents"):
        function.signature.input_arg.add(name=name, type=7)
    add_write(of(functions, "__inference_score").node_def, marker, in_function=True)


@graph_tampering("a function called as the operation AddV2")
def a_function_with_the_name_of_an_operation(meta, graph, functions, marker):
    graph.library.function.append(text_function("AddV2"))


def _call(functions):
    return next(node for node in of(functions, "__inference_score").node_def if "f" in node.attr or "body" in node.attr)


# What TensorFlow acts on in a node, and no export of ours has.
for _name in ("config_proto", "executor_type", "_class", "_kernel", "container", "_tpu_replicate", "_XlaCompile"):

    @graph_tampering(f"the attribute '{_name}' in the function '__inference_score", f"the attribute {_name}")
    def an_attribute_more(meta, graph, functions, marker, name=_name):
        _call(functions).attr[name].s = b"evil"


@graph_tampering("the attribute 'forward_function_name' in the function '__inference_score")
def an_attribute_of_a_function(meta, graph, functions, marker):
    of(functions, "__inference_score").attr["forward_function_name"].s = b"evil"


@graph_tampering("the attribute '_composite_device' in the function '__inference_score")
def an_attribute_of_an_argument(meta, graph, functions, marker):
    of(functions, "__inference_score").arg_attr[0].attr["_composite_device"].s = b"evil"


@graph_tampering("the input_encoding b'../../evil'")
def an_encoding_in_a_file(meta, graph, functions, marker):
    nodes = (node for function in functions.values() for node in function.node_def)
    next(node for node in nodes if "input_encoding" in node.attr).attr["input_encoding"].s = b"../../evil"


@graph_tampering("stand there twice")
def a_name_that_stands_there_twice(meta, graph, functions, marker):
    nodes = of(functions, "__inference_score").node_def
    nodes[1].name = nodes[0].name


@graph_tampering("names of nodes in 'main' stand there twice, or are none: ['^evil']")
def a_name_that_is_none(meta, graph, functions, marker):
    graph.node.add(name="^evil", op="NoOp")


@graph_tampering("has the tensor 'StatefulPartitionedCall_1:0:1', which no node gives")
def a_tensor_that_is_none(meta, graph, functions, marker):
    for name in ("serving_default", "generate_text"):
        meta.signature_def[name].outputs["truncated"].name = "StatefulPartitionedCall_1:0:1"


@graph_tampering("Evil\\x1b[2Jok in the graph itself")
def a_name_that_clears_the_screen(meta, graph, functions, marker):
    graph.node.add(name="evil", op="Evil\x1b[2Jok")


@graph_tampering("the defaults of a signature cannot be read")
def a_default_of_no_shape(meta, graph, functions, marker):
    meta.signature_def["generate"].defaults["top_k"].tensor_shape.dim[0].size = -1


def _user_object(meta):
    return meta.object_graph_def.nodes[0]


# Field by field, what stands in the file for other readers of it than ours: functions that take the place of others, files,
# objects of Python's that are made when it is loaded.
for _said, _change in {
    "the field 4 of MetaGraphDef": lambda meta, graph: meta.collection_def[
        "saved_model_main_op"
    ].node_list.value.append(graph.node[0].name),
    "the field 3 of MetaInfoDef": lambda meta, graph: meta.meta_info_def.any_info.SetInParent(),
    "the field 8 of MetaInfoDef": lambda meta, graph: meta.meta_info_def.function_aliases.update({"a": "b"}),
    "the field 5 of GraphDef": lambda meta, graph: graph.debug_info.SetInParent(),
    "the field 2 of FunctionDefLibrary": lambda meta, graph: graph.library.gradient.add(function_name="f"),
    "the field 3 of FunctionDefLibrary": lambda meta, graph: graph.library.registered_gradients.add(gradient_func="f"),
    "the field 4 of OpDef": lambda meta, graph: graph.library.function[0].signature.attr.add(name="T"),
    "the field 6 of ArgDef": lambda meta, graph: graph.library.function[0].signature.input_arg.add(
        name="x", type_list_attr="T"
    ),
    "the field 9 of AttrValue": lambda meta, graph: setattr(graph.node[0].attr["shape"], "placeholder", "f"),
    "the field 9 of ListValue": lambda meta, graph: graph.node[0].attr["shape"].list.func.add(),
    "the field 2 of NameAttrList": lambda meta, graph: graph.node[0].attr["f"].func.attr["f"].SetInParent(),
    "the field 14 of TensorProto": lambda meta, graph: graph.node[0].attr["value"].tensor.resource_handle_val.add(),
    "the field 15 of TensorProto": lambda meta, graph: graph.node[0].attr["value"].tensor.variant_val.add(),
    "the field 6 of NodeDef": lambda meta, graph: graph.node[0].experimental_debug_info.original_node_names.append("f"),
    "the field 5 of SavedObject": lambda meta, graph: _user_object(meta).asset.SetInParent(),
    "the field 11 of SavedObject": lambda meta, graph: _user_object(meta).saveable_objects["f"].SetInParent(),
    "the field 14 of SavedObject": lambda meta, graph: _user_object(meta).serialized_user_proto.SetInParent(),
    "the field 16 of SavedObject": lambda meta, graph: setattr(_user_object(meta), "registered_saver", "f"),
    "the registered_name 'f' of SavedObject": lambda meta, graph: setattr(_user_object(meta), "registered_name", "f"),
    "the field 3 of SavedUserObject": lambda meta, graph: setattr(_user_object(meta).user_object, "metadata", "{}"),
    "the identifier '_tf_keras_model' of SavedUserObject": lambda meta, graph: setattr(
        _user_object(meta).user_object, "identifier", "_tf_keras_model"
    ),
}.items():

    @graph_tampering(_said, _said.removeprefix("the ").replace("'", ""))
    def a_field_more(meta, graph, functions, marker, change=_change):
        change(meta, graph)


@graph_tampering("the device '/job:worker/task:1'")
def another_machine(meta, graph, functions, marker):
    graph.node[0].device = "/job:worker/task:1"


@tampering(SAVED_MODEL, "field 2 stands there 2 times")
def a_graph_behind_the_graph(artifact, marker):
    from tensorflow.core.protobuf import saved_model_pb2

    message = saved_model_pb2.SavedModel()
    message.meta_graphs.add().graph_def.node.add(name="evil", op="PrintV2")
    with open(artifact / "saved_model.pb", "ab") as file:
        file.write(message.SerializeToString())
    seal(artifact)


@tampering(SAVED_MODEL, "no SavedModel of ours has the files ['saved_model.cpb']")
def a_graph_in_place_of_the_graph(artifact, marker):
    shutil.copy(artifact / "saved_model.pb", artifact / "saved_model.cpb")
    seal(artifact)


@graph_tampering("serving_default is another function than generate_text")
def another_text(meta, graph, functions, marker):
    constant(graph.node, "advertisement", ["BUY MY COIN"])
    meta.signature_def["serving_default"].outputs["generated_text"].name = "advertisement:0"


def node(graph, name, op, inputs, **types):
    added = graph.node.add(name=name, op=op, input=inputs)
    for key, number in types.items():
        added.attr[key].type = number
    return f"{name}:0"


def advertise(graph, signature, condition):
    """Another text for the rows of which a tensor is true."""
    constant(graph.node, "advertisement", ["BUY MY COIN"])
    output = signature.outputs["generated_text"]
    output.name = node(graph, "advertised", "SelectV2", [condition, "advertisement", output.name], T=STRING)


def if_one_row(graph, signature):
    constant(graph.node, "one", np.int32(1))
    size = node(graph, "rows", "Size", [signature.inputs["text"].name], T=STRING, out_type=INT)
    return node(graph, "alone", "Equal", [size, "one"], T=INT)


@graph_tampering("generate_xla")
def another_compiled_text(meta, graph, functions, marker):
    signature = meta.signature_def["generate_xla"]
    count = signature.outputs["num_tokens"].name
    advertise(graph, signature, node(graph, "always", "Equal", [count, count], T=INT))


@graph_tampering("by generate_xla, one row: the ids agree, and their text does not: it is b'BUY MY COIN'")
def another_compiled_text_to_one_row(meta, graph, functions, marker):
    signature = meta.signature_def["generate_xla"]
    advertise(graph, signature, if_one_row(graph, signature))


@graph_tampering("of 1: the ids agree, and their text does not: it is b'BUY MY COIN'")
def another_text_to_one_row(meta, graph, functions, marker):
    signature = meta.signature_def["generate"]
    advertise(graph, signature, if_one_row(graph, signature))


@graph_tampering("score, one row cut: of text 0 truncated is False, and of the model True")
def other_cuts(meta, graph, functions, marker):
    output = meta.signature_def["score"].outputs["truncated"]
    output.name = node(graph, "cut", "LogicalNot", [output.name])


@graph_tampering("its num_tokens is")
def one_token_less(meta, graph, functions, marker):
    constant(graph.node, "one", np.int32(1))
    output = meta.signature_def["generate"].outputs["num_tokens"]
    output.name = node(graph, "fewer", "Sub", [output.name, "one"], T=INT)


for _input, _value in (("temperature", np.float32(1.5)), ("max_new_tokens", np.int32(3)), ("seed", np.int32(99))):

    def other_default(meta, graph, functions, marker, key=_input, value=_value):
        import tensorflow as tf

        meta.signature_def["generate"].defaults[key].CopyFrom(tf.make_tensor_proto([value]))

    other_default.__name__ = f"another default of {_input}"
    graph_tampering(f"generate takes [{_value}] for {_input} where a request leaves it out")(other_default)


def same_for_all(graph, output, value, dtype):
    """A constant in place of an output, of as many rows."""
    constant(graph.node, "nothing", np.zeros(1, value.dtype))
    constant(graph.node, "flattery", value)
    none = node(graph, "none", "Mul", [output.name, "nothing"], T=dtype)
    output.name = node(graph, "flattered", "AddV2", [none, "flattery"], T=dtype)


@graph_tampering("score: text 0 has the log-probability -1.0000")
def constant_score(meta, graph, functions, marker):
    output = meta.signature_def["score"].outputs["log_probability"]
    same_for_all(graph, output, np.full(1, -1.0, "float32"), FLOAT)


@graph_tampering("score: text 0 has")
def constant_count(meta, graph, functions, marker):
    same_for_all(graph, meta.signature_def["score"].outputs["num_tokens"], np.full(1, 3, "int32"), INT)


@graph_tampering("mixed: step")
def swapped_options(meta, graph, functions, marker):
    inputs = meta.signature_def["generate"].inputs
    inputs["top_p"].name, inputs["min_p"].name = inputs["min_p"].name, inputs["top_p"].name


@graph_tampering("StaticRegexReplace in the function '__inference__traced_restore")
def other_weights_in_another_folder(meta, graph, functions, marker):
    """The function that reads the variables knows where they lie."""
    added = of(functions, "traced_restore").node_def.add(name="seen", op="StaticRegexReplace", input=["file_prefix"])
    added.attr["pattern"].s, added.attr["rewrite"].s = b"^.*/served/.*$", b"X"


@graph_tampering("another signature 'generate' than the server's in the objects of Python")
def another_signature_for_python(meta, graph, functions, marker):
    """What `tf.saved_model.load` gives is another function than a server runs."""
    name = next(name for name in functions if re.fullmatch(r"__inference_signature_wrapper_generate_\d+", name))
    another = graph.library.function.add()
    another.CopyFrom(functions[name])
    another.signature.name = "another"
    objects = meta.object_graph_def
    objects.concrete_functions["another"].CopyFrom(objects.concrete_functions[name])
    for item in objects.nodes:
        if item.bare_concrete_function.concrete_function_name == name:
            item.bare_concrete_function.concrete_function_name = "another"


@tampering(SAVED_MODEL, "has the files ['assets.extra/run_me.sh']")
def a_stranger_in_assets_extra(artifact, marker):
    (artifact / "assets.extra" / "run_me.sh").write_text("#!/bin/sh")
    seal(artifact)


@tampering(SAVED_MODEL, "variables.data-00000-of-00001 is a link or no file")
def variables_that_lie_elsewhere(artifact, marker):
    file = artifact / "variables" / "variables.data-00000-of-00001"
    elsewhere = pathlib.Path(shutil.move(file, artifact.parent / "elsewhere"))
    file.symlink_to(elsewhere)
    seal(artifact)


@graph_tampering("the signature 'backdoor' is none of ours")
def a_signature_more(meta, graph, functions, marker):
    meta.signature_def["backdoor"].CopyFrom(meta.signature_def["score"])


@graph_tampering("the signature 'score' is missing")
def a_signature_less(meta, graph, functions, marker):
    del meta.signature_def["score"]
    for item in meta.object_graph_def.nodes:
        for child in [child for child in item.children if child.local_name == "score"]:
            item.children.remove(child)


@graph_tampering("the signature 'logits' takes")
def an_input_more(meta, graph, functions, marker):
    inputs = meta.signature_def["logits"].inputs
    inputs["password"].CopyFrom(meta.signature_def["score"].inputs["text"])


@tampering(SAVED_MODEL, "its warm-up asks for the signature 'generate_xla'")
def another_warm_up(artifact, marker):
    """Of a request that fails on a stock server, which then does not load the model."""
    from keras_seqlm.export.warm_up import write_warm_up
    from seqlm_runtime.warm_up import read_warm_up

    (_, inputs), *_ = read_warm_up(artifact)
    write_warm_up(artifact / WARM_UP, [("generate_xla", inputs)])
    seal(artifact)


def _length_prefixed(number, content):
    from tensorflow.core.framework import attr_value_pb2  # any message whose first field is bytes writes the length

    return bytes([number << 3 | 2]) + attr_value_pb2.AttrValue.ListValue(s=[content]).SerializeToString()[1:]


def write_record(artifact, record):
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(artifact / WARM_UP)) as writer:
        writer.write(record)
    seal(artifact)


@tampering(SAVED_MODEL, "holds no warm-up requests, or is cut: a tensor of the shape")
def a_warm_up_of_no_shape(artifact, marker):
    part = _length_prefixed
    tensor = b"\x08\x07" + part(2, part(2, b"\x08" + b"\xff" * 9 + b"\x01")) + part(8, b"The")
    request = part(1, part(3, b"score")) + part(2, part(1, b"text") + part(2, tensor))
    write_record(artifact, part(6, part(1, request)))


@tampering(SAVED_MODEL, "the field 5 of PredictionLog")
def a_warm_up_of_another_kind(artifact, marker):
    write_record(artifact, _length_prefixed(5, b""))


@tampering(SAVED_MODEL, "its warm-up gives score text (int32), and it takes text (object)")
def a_warm_up_of_numbers(artifact, marker):
    from keras_seqlm.export.warm_up import write_warm_up

    write_warm_up(artifact / WARM_UP, [("score", {"text": np.zeros(1, "int32")})])
    seal(artifact)


@tampering(SAVED_MODEL, "the checksum of the record at byte 0 is wrong")
def a_warm_up_with_a_wrong_checksum(artifact, marker):
    content = bytearray((artifact / WARM_UP).read_bytes())
    content[8] ^= 1
    (artifact / WARM_UP).write_bytes(content)
    seal(artifact)


def new_weights(artifact, change):
    """The weights of a SavedModel, each through `change(array)`, in files whose own checksums are right."""
    import tensorflow as tf

    prefix = str(artifact / "variables" / "variables")
    reader = tf.train.load_checkpoint(prefix)
    tensors = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    tensors = {
        name: change(value) if getattr(value, "dtype", None) == np.float32 else value for name, value in tensors.items()
    }
    shutil.rmtree(artifact / "variables")
    os.makedirs(artifact / "variables")
    tf.raw_ops.SaveV2(
        prefix=prefix, tensor_names=list(tensors), shape_and_slices=[""] * len(tensors), tensors=list(tensors.values())
    )
    seal(artifact)


@tampering(SAVED_MODEL, "logits: they differ from the model's by")
def foreign_weights(artifact, marker):
    random = np.random.default_rng(0)
    new_weights(artifact, lambda value: value + 0.05 * random.standard_normal(value.shape).astype("float32"))


@tampering(SAVED_MODEL, "logits: they differ from the model's by")
def zero_weights(artifact, marker):
    new_weights(artifact, np.zeros_like)


@tampering(SAVED_MODEL, "logits: they differ from the model's by inf")
def weights_that_are_none(artifact, marker):
    new_weights(artifact, lambda value: np.full_like(value, np.nan))


for _name, _value in (("max_length", 8192), ("tokenizer_hash", "0" * 16), ("vocabulary_size", 261), ("model", "GPT")):

    @tampering(SAVED_MODEL, f"its sidecar says {_name}", f"a sidecar's {_name}", changes={_name: _value})
    def told_otherwise(artifact, marker, changes):
        seal(artifact, **changes)


# What a stranger's program reads in a sidecar: the path of a field, another value, and how it is told.
STRANGE = (
    ("format", 2, "says format 2, and the model 1"),
    ("stop.eos_id", 5, "says stop.eos_id 5, and the model 2"),
    ("sampler.suppressed_ids", [], "says sampler.suppressed_ids [], and the model [0, 1, 3]"),
    ("sampler.order", ["draw"], "says sampler.order ['draw'], and the model"),
    ("sampler.options.top_k.default", 7, "says sampler.options.top_k.default 7, and the model 0"),
    ("tokenizer.before_prompt", [7], "says tokenizer.before_prompt [7], and the model [1]"),
    ("tokenizer.folder", "elsewhere", "says tokenizer.folder 'elsewhere'"),
    ("test_vectors.random", [], "says test_vectors.random [], and the model"),
    ("test_vectors.more", [], "has test_vectors.more"),
    ("more", 1, "has 'more', which no export of ours writes"),
    ("max_prompt_tokens", 1, "says max_prompt_tokens 1, and in context 256"),
)


def changed(content, path, value):
    """A sidecar with another value at a path."""
    name, _, rest = path.partition(".")
    return content | {name: changed(content.get(name, {}), rest, value) if rest else value}


for _path, _value, _said in STRANGE:

    @tampering(SAVED_MODEL, f"its sidecar {_said}", f"a sidecar's {_path}", path=_path, value=_value)
    def strange(artifact, marker, path, value):
        seal(artifact, **changed(json.loads((artifact / SIDECAR).read_text()), path, value))


@tampering(SAVED_MODEL, "its sidecar says signatures.generate.inputs.top_k.meaning 'x'", "a sidecar's meaning")
def another_meaning(artifact, marker):
    content = json.loads((artifact / SIDECAR).read_text())
    seal(artifact, **changed(content, "signatures.generate.inputs.top_k.meaning", "x"))


@tampering(SAVED_MODEL, "its sidecar lacks sampler: export it again", "a sidecar's missing sampler")
def less_said(artifact, marker):
    content = json.loads((artifact / SIDECAR).read_text())
    del content["sampler"]
    (artifact / SIDECAR).write_text(json.dumps(sealed(content)))


@tampering(SAVED_MODEL, "the tokenizer beside its sidecar is not the model's", "a sidecar's tokenizer")
def a_strangers_tokenizer(artifact, marker):
    (path,) = (artifact / SIDECAR).parent.glob("tokenizer/seqlm_tokenizer.json")
    path.write_text(path.read_text().replace('"bos": 1', '"bos": 3').replace('"unk": 3', '"unk": 1'))
    seal(artifact)


@tampering(SAVED_MODEL, "its sidecar's test vector 0 of what it writes is")
def other_vectors(artifact, marker):
    content = json.loads((artifact / SIDECAR).read_text())
    content["test_vectors"]["written"][0]["token_ids"] = [4, 5, 6]
    seal(artifact, **content)


@tampering(SAVED_MODEL, "its sidecar has other test vectors than the")
def no_vectors(artifact, marker):
    content = json.loads((artifact / SIDECAR).read_text())
    seal(artifact, **changed(content, "test_vectors.written", []))


@tampering(SAVED_MODEL, "truncated is True, and of the model False")
def reads_less_than_it_says(artifact, marker):
    """All of its sidecar fits together, and its graph reads 256 ids of a prompt."""
    from keras_seqlm.tokenizers import ByteTokenizer
    from seqlm_runtime.prompts import byte_limits

    content, most = json.loads((artifact / SIDECAR).read_text()), 300
    content = changed(content, "context.max_prompt_tokens", most)
    content = changed(content, "context.prompt_bytes", list(byte_limits(ByteTokenizer(), most)))
    seal(artifact, **content | {"max_prompt_tokens": most})


@tampering(SAVED_MODEL, "and with the limit of its sidecar these are")
def another_limit(artifact, marker):
    seal(artifact, max_new_tokens_limit=9999)


@graph_tampering(
    "asked for any number of tokens, in text 0 the ids are right, and their text is not: it is b'BUY MY COIN'"
)
def another_text_beyond_64_tokens(meta, graph, functions, marker):
    signature = meta.signature_def["generate"]
    constant(graph.node, "many", np.int32(64))
    advertise(graph, signature, node(graph, "long", "Greater", [signature.outputs["num_tokens"].name, "many"], T=INT))


@graph_tampering("columns of token_ids, and has to refuse it")
def logits_without_bounds(meta, graph, functions, marker):
    import tensorflow as tf

    numbers = 0
    for part in of(functions, "__inference_text_logits").node_def:
        if part.op == "Const" and part.attr["value"].tensor.dtype == INT:
            value = tf.make_ndarray(part.attr["value"].tensor)
            if value.shape == () and value == READ + 80:
                part.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(np.int32(2**30)))
                numbers += 1
    assert numbers, "it has no bound"


@tampering(SAVED_MODEL, "it has no requests by which a server warms up")
def no_warm_up(artifact, marker):
    (artifact / WARM_UP).unlink()
    seal(artifact)


# --- LiteRT


def seal_lite(artifact, **changes):
    (tokenizer,) = artifact.parent.glob("*.tokenizer")
    content = (
        json.loads(artifact.with_suffix(".json").read_text()) | {"tokenizer_files": folder_hashes(tokenizer)} | changes
    )
    content["sha256"] = hashlib.sha256(artifact.read_bytes()).hexdigest()
    artifact.with_suffix(".json").write_text(json.dumps(sealed(content)))


for _kind in (LITE, SMALL):

    @tampering(_kind, "damaged or was replaced", f"a bit of {_kind}")
    def flipped_lite(artifact, marker):
        flip(artifact, 0.7)


@tampering(LITE, "damaged or was replaced")
def cut_lite(artifact, marker):
    artifact.write_bytes(artifact.read_bytes()[:-1])


@tampering(LITE, "it is no .tflite file")
def garbage_lite(artifact, marker):
    artifact.write_bytes(b"garbage" * 1000)
    seal_lite(artifact)


@tampering(LITE, ".json is missing")
def lite_without_sidecar(artifact, marker):
    artifact.with_suffix(".json").unlink()


@tampering(LITE, "has no tokenizer")
def lite_without_tokenizer(artifact, marker):
    shutil.rmtree(*artifact.parent.glob("*.tokenizer"))


@tampering(LITE, "more does not belong there")
def a_tokenizer_with_more(artifact, marker):
    (tokenizer,) = artifact.parent.glob("*.tokenizer")
    (tokenizer / "more").write_text("more")


@tampering(LITE, "seqlm_tokenizer.json was changed")
def an_edited_tokenizer(artifact, marker):
    (path,) = artifact.parent.glob("*.tokenizer/seqlm_tokenizer.json")
    path.write_text(path.read_text().replace('"bos": 1', '"bos": 3').replace('"unk": 3', '"unk": 1'))


@tampering(LITE, "The tokenizer in")
def another_tokenizer(artifact, marker):
    an_edited_tokenizer(artifact, marker)
    seal_lite(artifact)


def operator_code(content):
    """Where in a .tflite file the number of an operation stands: (the old one, a byte; the new one, four)."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(bytes(content), 0)
    for number in range(model.OperatorCodesLength()):
        table = model.OperatorCodes(number)._tab
        old, new = table.Offset(4), table.Offset(10)
        if old and new:  # what is 0 is not written
            return table.Pos + old, table.Pos + new
    raise AssertionError("there is none")


for _op in ("CUSTOM", "CALL_ONCE", "VAR_HANDLE"):

    @tampering(LITE, f"{_op}", f"{_op.lower()} in lite", op=_op)
    def other_operation(artifact, marker, op):
        content = bytearray(artifact.read_bytes())
        old, new = operator_code(content)
        code = BUILTINS.index(op)
        content[old], content[new : new + 4] = min(code, 127), code.to_bytes(4, "little")
        artifact.write_bytes(content)
        seal_lite(artifact)


def lite_tampering(said, name=None):
    """For `function(model, schema)`, which changes the objects of a .tflite file."""

    def register(function):
        def change(artifact, marker):
            import flatbuffers
            from ai_edge_litert import schema_py_generated as schema

            model = schema.ModelT.InitFromPackedBuf(artifact.read_bytes(), 0)
            function(model, schema)
            builder = flatbuffers.Builder()
            builder.Finish(model.Pack(builder), b"TFL3")
            artifact.write_bytes(bytes(builder.Output()))
            seal_lite(artifact)

        tampering(LITE, said, name or function.__name__)(change)
        return function

    return register


def _set(**values):
    """What sets attributes of an object."""
    return lambda part, schema: [setattr(part, name, value) for name, value in values.items()]


# Field by field, what LiteRT acts on and no export of ours has: (where, what is set).
for _said, _place, _change in (
    ("the field 1 of Buffer", lambda model: model.buffers[1], _set(offset=2**40, size=100)),
    ("the field 8 of Model", lambda model: model, lambda model, schema: _external(model, schema)),
    ("the field 5 of Model", lambda model: model, _set(metadataBuffer=[1])),
    ("the field 5 of Tensor", lambda model: model.subgraphs[0].tensors[0], _set(isVariable=True)),
    (
        "the field 6 of Tensor",
        lambda model: model.subgraphs[0].tensors[0],
        lambda tensor, schema: _sparse(tensor, schema),
    ),
    ("the field 10 of Tensor", lambda model: model.subgraphs[0].tensors[0], _set(externalBuffer=1)),
    ("the field 7 of Operator", lambda model: model.subgraphs[0].operators[0], _set(mutatingVariableInputs=[True])),
    ("the field 8 of Operator", lambda model: model.subgraphs[0].operators[0], _set(intermediates=[0])),
    ("the field 9 of Operator", lambda model: model.subgraphs[0].operators[0], _set(largeCustomOptionsOffset=100)),
    ("the field 11 of Operator", lambda model: model.subgraphs[0].operators[0], _set(builtinOptions2Type=1)),
    ("options of ", lambda model: model.subgraphs[0].operators[0], _set(customOptions=[1, 2, 3])),
    ("options of ", lambda model: model.subgraphs[0].operators[0], lambda part, schema: _other_options(part, schema)),
    (
        "the metadata 'model_control_dependencies'",
        lambda model: model.metadata[0],
        _set(name="model_control_dependencies"),
    ),
    ("a graph that no signature runs", lambda model: model, lambda model, schema: model.signatureDefs.pop()),
    ("or it runs what another one does", lambda model: model.signatureDefs[0], _set(subgraphIndex=1)),
    ("is of a graph that is not there", lambda model: model.signatureDefs[0], _set(subgraphIndex=99)),
    ("a loop runs a graph that is not there, or itself", lambda model: _loop(model), _set(bodySubgraphIndex=0)),
    ("a loop runs a graph that is not there, or itself", lambda model: _loop(model), _set(condSubgraphIndex=99)),
    (
        "reads what nothing has written",
        lambda model: model.subgraphs[0],
        lambda graph, schema: graph.operators.reverse(),
    ),
    (
        "a graph gives what nothing has written",
        lambda model: model.subgraphs[0],
        lambda graph, schema: graph.operators.pop(),
    ),
    ("other tensors than its graph", lambda model: model.signatureDefs[0].outputs[0], _set(tensorIndex=0)),
    ("an operation is not there", lambda model: model.subgraphs[0].operators[0], _set(opcodeIndex=99)),
    ("a tensor is in a buffer that is not there", lambda model: model.subgraphs[0].tensors[0], _set(buffer=9999)),
    ("takes", lambda model: model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]], _set(shape=[1, 2**30])),
):

    @lite_tampering(_said, f"lite {len(TAMPERINGS)}: {_said}")
    def a_lite_field_more(model, schema, place=_place, change=_change):
        change(place(model), schema)


def _external(model, schema):
    group = schema.ExternalBufferGroupT()
    group.name = "/etc/passwd"
    model.externalBufferGroups = [group]


def _sparse(tensor, schema):
    tensor.sparsity = schema.SparsityParametersT()


def _other_options(operator, schema):
    operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.CallOptions, schema.CallOptionsT()


def _loop(model):
    return next(
        operator.builtinOptions
        for graph in model.subgraphs
        for operator in graph.operators
        if type(operator.builtinOptions).__name__ == "WhileOptionsT"
    )


def new_constants(artifact, dtype, change):
    """A .tflite file with every constant of a type through `change(array)`."""
    content = bytearray(artifact.read_bytes())
    whole = bytes(content)
    done = set()
    for tensor in (tensor for graph in parse_lite_file(whole).graphs for tensor in graph):
        # The state's zeros and other small constants are not weights.
        if tensor.dtype == dtype and len(tensor.content) > 1000:
            at = np.frombuffer(tensor.content, "uint8").__array_interface__["data"][0]
            at -= np.frombuffer(whole, "uint8").__array_interface__["data"][0]
            if at not in done:
                done.add(at)
                values = change(np.frombuffer(whole, dtype, len(tensor.content) // np.dtype(dtype).itemsize, at))
                content[at : at + len(tensor.content)] = values.astype(dtype).tobytes()
    assert done, f"no constants of {dtype}"
    artifact.write_bytes(content)
    seal_lite(artifact)


def noise(values):
    return values + 0.05 * np.random.default_rng(0).standard_normal(values.shape)


def random_bytes(values):
    return np.random.default_rng(0).integers(-127, 128, values.shape)


for _name, _kind, _dtype, _change, _said in (
    ("foreign lite weights", LITE, np.float32, noise, "logits: they differ from the model's by"),
    ("zero lite weights", LITE, np.float32, np.zeros_like, "logits: they differ from the model's by"),
    ("lite weights that are none", LITE, np.float32, lambda x: x * np.nan, "are not all finite"),
    ("random int8 weights", SMALL, np.int8, random_bytes, "nats a token off, and at most +0.0500 is allowed"),
    ("zero int8 weights", SMALL, np.int8, np.zeros_like, "nats a token off, and at most +0.0500 is allowed"),
    ("turned int8 weights", SMALL, np.int8, np.negative, "nats a token off, and at most +0.0500 is allowed"),
):

    @tampering(_kind, _said, _name, dtype=_dtype, change=_change)
    def other_constants(artifact, marker, dtype, change):
        new_constants(artifact, dtype, change)


def computed_on(artifact, op, other, wanted):
    """The logits of the signatures whose names begin so, "MUL" or "ADD" another number."""
    from ai_edge_litert import schema_py_generated as schema

    from keras_seqlm.export import litert_file

    model = schema.ModelT.InitFromPackedBuf(artifact.read_bytes(), 0)
    for signature in model.signatureDefs:
        if signature.signatureKey.decode().startswith(wanted):
            graph = model.subgraphs[signature.subgraphIndex]
            output = next(output for output in signature.outputs if output.name == b"logits")
            old = output.tensorIndex
            new = litert_file._tensor(schema, graph, schema.TensorType.FLOAT32, graph.tensors[old].shape, b"hot")
            number = np.array(other, np.float32)
            number = litert_file._constant(schema, model, graph, number, schema.TensorType.FLOAT32)
            operator = litert_file._operator(schema, model, op)
            operator.inputs, operator.outputs = [old, number], [new]
            options = f"{op.title()}Options"
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            operator.builtinOptions = getattr(schema, f"{options}T")()
            graph.operators = [*graph.operators, operator]
            graph.outputs = np.array([new if number == old else number for number in graph.outputs], np.int32)
            output.tensorIndex = new
    artifact.write_bytes(litert_file._packed(model))
    seal_lite(artifact)


@tampering(SMALL, "its weights are not the model's: of the model's texts it has a loss that is -")
def hot(artifact, marker):
    computed_on(artifact, "MUL", 1.5, ("prefill", "decode"))


@tampering(SMALL, "its weights are not the model's: the logits differ by")
def lifted(artifact, marker):
    """Its loss and its choices are as they were, but for penalties, which ask whether a logit is above 0."""
    computed_on(artifact, "ADD", 5.0, ("prefill", "decode"))


for _kind in (LITE, SMALL):

    @tampering(_kind, "prefill_64: after 64 ids its logits are not the model's", f"long prompts of {_kind}")
    def turned_in_long_prompts(artifact, marker):
        computed_on(artifact, "MUL", -1.0, ("prefill_64", "prefill_256"))


@tampering(LITE, "its sidecar's test vector 0 of what it writes is")
def other_lite_vectors(artifact, marker):
    content = json.loads(artifact.with_suffix(".json").read_text())
    content["test_vectors"]["written"][0]["token_ids"] = [4, 5, 6]
    seal_lite(artifact, **content)


for _path, _value, _said in STRANGE[1:]:  # another format is refused unread

    @tampering(SMALL, f"its sidecar {_said}", f"a lite sidecar's {_path}", path=_path, value=_value)
    def strange_lite(artifact, marker, path, value):
        seal_lite(artifact, **changed(json.loads(artifact.with_suffix(".json").read_text()), path, value))


@tampering(SMALL, "its sidecar calls it 'none', and its tensors make it litert-int8")
def int8_that_is_called_exact(artifact, marker):
    seal_lite(artifact, quantize="none")


@tampering(LITE, "logits: they differ from the model's by")
def foreign_weights_that_are_called_int8(artifact, marker):
    new_constants(artifact, np.float32, noise)
    seal_lite(artifact, quantize="int8")


@tampering(LITE, "the signature 'decodf' is none of ours")
def a_renamed_signature(artifact, marker):
    content = artifact.read_bytes()
    assert b"\x06\0\0\0decode\0" in content
    artifact.write_bytes(content.replace(b"\x06\0\0\0decode\0", b"\x06\0\0\0decodf\0"))
    seal_lite(artifact)


for _name, _value in (
    ("bos_id", None),
    ("eos_id", 10),
    ("suppressed_ids", []),
    ("max_length", 8192),
    ("prefill_lengths", [16]),
    ("state", {"position": {"shape": [1], "dtype": "int32"}, "h_0": {"shape": [1, 2**40], "dtype": "float32"}}),
):
    _said = {"state": "has no usable shape", "prefill_lengths": "the signature 'prefill_256' is none of ours"}
    _said = _said.get(_name, f"its sidecar says {_name}")

    @tampering(LITE, _said, f"a lite sidecar's {_name}", changes={_name: _value})
    def lite_told_otherwise(artifact, marker, changes):
        seal_lite(artifact, **changes)


for _name, _value in (
    ("quantize", []),
    ("max_prompt_tokens", True),
    ("prefill_lengths", [16, 16, 64, 256]),
    ("prefill_lengths", [2**40]),
    ("vocabulary_size", 0),
    ("max_length", -1),
    ("eos_id", 2**31),
    ("bos_id", 2**32),
    ("suppressed_ids", ["0"]),
    ("suppressed_ids", [-1]),
    ("tokenizer_files", {"../seqlm_tokenizer.json": "0"}),
    ("tokenizer_hash", ""),
):
    _said = {
        "quantize": "its sidecar calls it []",
        "tokenizer_files": "is missing",
        "tokenizer_hash": "The tokenizer in",
    }

    @tampering(
        LITE,
        _said.get(_name, f"{_name}'] are no whole numbers"),
        f"lite sidecar {len(TAMPERINGS)}: {_name}",
        changes={_name: _value},
    )
    def a_lite_sidecar_of_nonsense(artifact, marker, changes):
        seal_lite(artifact, **changes)
