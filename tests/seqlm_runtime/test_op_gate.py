"""The gate: what no export of ours holds is refused by name, wherever it hides, before anything is loaded."""

import json
import shutil

import pytest

from keras_seqlm.export.served_part import save_served_part
from seqlm_runtime import op_gate, saved_model
from seqlm_runtime.graph_fields import SAVED_MODEL
from seqlm_runtime.op_gate import LITE_OPS, OPS, RefusedOps, check_graph, check_lite_content, check_saved_model
from seqlm_runtime.seals import folder_hashes, sealed
from seqlm_runtime.tokenizers.model_proto import NORMAL, UNKNOWN, Model, serialize_model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A SavedModel of allowed operations, with a variable, a loop and a function, and its sidecar."""
    import tensorflow as tf

    module = tf.Module()
    module.weight = tf.Variable([1.0, 2.0])

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def score(x):
        return {"y": tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y * module.weight[0]), (0, x))[1]}

    module.score = score
    path = tmp_path_factory.mktemp("gate") / "1"
    save_served_part(module, str(path), {"score": score})
    seal(path)
    return path


def seal(path):
    """As the export does it; an attacker can as well."""
    (path / "assets.extra").mkdir(exist_ok=True)
    content = {"files": folder_hashes(path, leave_out=(op_gate.SIDECAR,))}
    (path / op_gate.SIDECAR).write_text(json.dumps(sealed(content)))


@pytest.fixture
def changed(exported):
    """`changed(change)`: the bytes of the graph after `change(meta, main, functions)`; `functions` is name -> function."""
    from tensorflow.core.protobuf import saved_model_pb2

    def make(change):
        message = saved_model_pb2.SavedModel.FromString((exported / "saved_model.pb").read_bytes())
        meta = message.meta_graphs[0]
        functions = {function.signature.name: function for function in meta.graph_def.library.function}
        change(meta, meta.graph_def, functions)
        return message.SerializeToString()

    return make


def named(functions, part):
    return next(function for name, function in functions.items() if part in name)


def refusal(content, allow_ops=()):
    with pytest.raises(RefusedOps) as error:
        check_graph("here", content, allow_ops)
    return error.value


def test_what_an_export_holds_passes(exported):
    sidecar, graph = check_saved_model(exported)
    assert "saved_model.pb" in sidecar["files"] and list(graph.signatures) == ["score"]


@pytest.mark.parametrize("op", ["PrintV2", "SaveV2", "TextLineDataset", "WriteFile", "ReadFile", "PyFunc", "RestoreV2"])
@pytest.mark.parametrize("where", ["main", "while", "signature", "nobody"])
def test_an_operation_is_refused_wherever_it_stands(changed, op, where):
    def change(meta, main, functions):
        if where == "main":
            main.node.add(name="evil", op=op)
        elif where == "nobody":
            main.library.function.add().signature.name = "uncalled"
            main.library.function[-1].node_def.add(name="evil", op=op)
        else:
            named(functions, {"while": "while_body", "signature": "signature_wrapper"}[where]).node_def.add(
                name="evil", op=op
            )

    found = refusal(changed(change))
    assert found.ops == [op] and f"{op} in the " in str(found) and "was not loaded" in str(found)
    assert "allow_ops" in str(found) and "--allow-op" in str(found)
    if where == "nobody":
        assert f"{op} in the function 'uncalled'" in str(found)


def test_what_is_allowed_by_name_passes(changed):
    content = changed(lambda meta, main, functions: main.node.add(name="x", op="Conv2D"))
    assert check_graph("here", content, ["Conv2D"])
    assert refusal(content, ["Conv3D"]).ops == ["Conv2D"]


def run_at_start(meta, main, functions):
    main.node.add(name="x", op="NoOp")
    meta.signature_def["__saved_model_init_op"].outputs["x"].name = "x"


def add_save(functions, main):
    function = main.library.function.add()
    function.signature.name = "saving"
    function.signature.input_arg.add(name="prefix", type=7)
    function.node_def.add(name="x", op="SaveV2", input=["prefix"])
    node = main.node.add(name="save", op="StatefulPartitionedCall", input=["saver_filename"])
    node.attr["f"].func.name = "saving"


def save_beside(meta, main, functions):
    add_save(functions, main)


def save_as_tensorflow_does(meta, main, functions):
    add_save(functions, main)
    meta.saver_def.save_tensor_name = "save:0"


def save_as_restore(meta, main, functions):
    add_save(functions, main)
    meta.saver_def.restore_op_name = "save"


def restore_that_saves(meta, main, functions):
    add_save(functions, main)
    node = named(functions, "traced_restore").node_def.add(name="x", op="StatefulPartitionedCall")
    node.attr["f"].func.name = "saving"


def restore(meta, main):
    return next(node for node in main.node if node.name == meta.saver_def.restore_op_name)


def restore_for_an_answer(meta, main, functions):
    meta.signature_def["score"].outputs["y"].name = f"{restore(meta, main).name}:0"


def restore_before_another_node(meta, main, functions):
    main.node.add(name="x", op="NoOp", input=["^" + restore(meta, main).name])


def restore_by_another_node(meta, main, functions):
    main.node.add(name="x", op="StatefulPartitionedCall").attr["f"].CopyFrom(restore(meta, main).attr["f"])


def restore_by_an_object(meta, main, functions):
    meta.object_graph_def.concrete_functions[named(functions, "traced_restore").signature.name].SetInParent()


def restore_by_an_alias(meta, main, functions):
    """Of the node that calls it, too."""
    restore(meta, main).attr["g"].list.s.append(named(functions, "traced_restore").signature.name.encode())


def restore_with_a_second_path(meta, main, functions):
    function = named(functions, "traced_restore")
    function.signature.input_arg.insert(1, type(function.signature.input_arg[0])(name="elsewhere", type=7))
    next(node for node in function.node_def if node.op == "RestoreV2").input[0] = "elsewhere"


def restore_from_a_constant_placeholder(meta, main, functions):
    node = next(node for node in main.node if node.name == "saver_filename")
    node.op = "Const"


def restore_from_a_requests_path(meta, main, functions):
    meta.signature_def["score"].inputs["x"].name = "saver_filename:0"


def restore_by_a_branch(meta, main, functions):
    restore(meta, main).op = "If"


def restore_by_two_functions(meta, main, functions):
    main.library.function.add().signature.name = "other"
    restore(meta, main).attr["g"].func.name = "other"


def restore_from_elsewhere(meta, main, functions):
    function = named(functions, "traced_restore")
    constant = function.node_def.add(name="elsewhere", op="Const")
    constant.attr["value"].tensor.string_val.append(b"/etc/model")
    next(node for node in function.node_def if node.op == "RestoreV2").input[0] = "elsewhere:output:0"


def restore_with_a_prefix_of_its_own(meta, main, functions):
    main.node.add(name="prefix", op="Const").attr["value"].tensor.string_val.append(b"/etc/model")
    name = meta.saver_def.restore_op_name
    next(node for node in main.node if node.name == name).input[0] = "prefix"


def asset_outside(meta, main, functions):
    meta.asset_file_def.add(filename="../../etc/passwd").tensor_info.name = main.node[0].name


def on_another_machine(meta, main, functions):
    main.node.add(name="x", op="NoOp", device="/job:worker/task:0")


def unknown_function(meta, main, functions):
    main.node.add(name="x", op="PartitionedCall").attr["f"].func.name = "elsewhere"


def function_in_an_attribute(meta, main, functions):
    value = main.node.add(name="x", op="PartitionedCall").attr["f"].func
    value.name = next(iter(functions))
    value.attr["g"].list.func.add(name="elsewhere")


def a_function_that_is_an_operation(meta, main, functions):
    main.library.function.add().signature.name = "Tanh"


def called_by_its_own_name(meta, main, functions):
    main.library.function.add().signature.name = "WriteFile"
    main.node.add(name="x", op="WriteFile")


def an_encoding(meta, main, functions):
    main.node.add(name="x", op="UnicodeTranscode").attr["input_encoding"].s = b"../../evil"


def long_piece(meta, main, functions):
    model = Model([("<unk>", 0.0, UNKNOWN), ("a" * 500_000, 0.0, NORMAL)])
    main.node.add(name="x", op="SentencepieceOp").attr["model"].s = serialize_model(model)


READING = ["AssignVariableOp", "RestoreV2"]


@pytest.mark.parametrize(
    ("change", "ops"),
    [
        (run_at_start, ["x"]),
        (save_beside, ["SaveV2"]),
        (save_as_tensorflow_does, ["SaveV2"]),
        (save_as_restore, ["RestoreV2", "SaveV2"]),
        (restore_that_saves, ["SaveV2"]),
        (restore_for_an_answer, READING),
        (restore_before_another_node, READING),
        (restore_by_another_node, READING),
        (restore_by_an_object, READING),
        (restore_by_an_alias, READING),
        (restore_with_a_second_path, READING),
        (restore_from_a_constant_placeholder, READING),
        (restore_from_a_requests_path, READING),
        (restore_by_a_branch, READING),
        (restore_by_two_functions, READING),
        (restore_from_elsewhere, READING),
        (restore_with_a_prefix_of_its_own, READING),
        (a_function_that_is_an_operation, ["a function called as the operation Tanh"]),
        (called_by_its_own_name, ["WriteFile"]),
        (an_encoding, ["the input_encoding b'../../evil'"]),
        (asset_outside, ["the asset '../../etc/passwd'"]),
        (on_another_machine, ["the device '/job:worker/task:0'"]),
        (unknown_function, ["the unknown function 'elsewhere'"]),
        (function_in_an_attribute, ["the unknown function 'elsewhere'"]),
        (long_piece, ["a hostile SentencePiece model"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_operations_of_the_list_could_do(changed, change, ops):
    assert set(ops) <= set(refusal(changed(change)).ops)


@pytest.mark.parametrize("name", ["api_implements", "config_proto", "_class", "_kernel", "anything"])
@pytest.mark.parametrize("where", ["node", "function", "argument"])
def test_an_attribute_that_no_export_has_is_refused(changed, name, where):
    def change(meta, main, functions):
        function = named(functions, "while_body")
        node = next(node for node in main.node if node.op == "Placeholder")
        {"node": node, "function": function, "argument": function.arg_attr[0]}[where].attr[name].s = b"evil"

    assert refusal(changed(change)).ops == [f"the attribute {name!r}"]


def test_what_an_operation_of_yours_has_beside_it_is_its_own(changed):
    def change(meta, main, functions):
        node = main.node.add(name="x", op="Conv2D")
        node.attr["strides"].list.i.append(1)
        node.attr["_evil"].s = b"evil"

    assert refusal(changed(change), ["Conv2D"]).ops == ["the attribute '_evil'"]


def test_the_fields_are_those_of_tensorflow():
    """Number by number and name by name."""
    from tensorflow.core.protobuf import saved_model_pb2

    seen, pending = set(), [("SavedModel", saved_model_pb2.SavedModel.DESCRIPTOR)]
    while pending:
        message, descriptor = pending.pop()
        seen.add(message)
        for number, field in SAVED_MODEL[message].items():
            name, _, inner = field.partition(":")
            found = descriptor.fields_by_number[number]
            assert found.name == name
            if inner and inner not in seen:
                pending.append((inner, found.message_type))
    assert seen == set(SAVED_MODEL)


@pytest.mark.parametrize("part", ["graph", "meta", "node", "library"])
def test_a_graph_that_could_be_read_in_two_ways_is_refused(exported, part):
    from tensorflow.core.framework import graph_pb2
    from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

    message = saved_model_pb2.SavedModel.FromString((exported / "saved_model.pb").read_bytes())
    hidden = graph_pb2.GraphDef()
    hidden.node.add(name="x", op="PrintV2")
    content = message.SerializeToString()
    if part == "meta":
        content += saved_model_pb2.SavedModel(
            meta_graphs=[meta_graph_pb2.MetaGraphDef(graph_def=hidden)]
        ).SerializeToString()
    else:
        more = {
            "graph": hidden,
            "library": graph_pb2.GraphDef(library=graph_pb2.GraphDef().library),
            "node": graph_pb2.GraphDef(node=[message.meta_graphs[0].graph_def.node[0]]),
        }[part]
        meta = message.meta_graphs[0]
        graph = meta.graph_def.SerializeToString()
        if part == "library":
            more.library.function.add().signature.name = "f"
        if part == "graph":
            whole = meta.SerializeToString() + meta_graph_pb2.MetaGraphDef(graph_def=hidden).SerializeToString()
        else:
            meta.graph_def.Clear()
            graph += more.SerializeToString()
            whole = meta.SerializeToString() + b"\x12" + varint(len(graph)) + graph
            whole = whole.replace(b"\x12\x00", b"", 1)
        content = b"\x08\x01\x12" + varint(len(whole)) + whole
    with pytest.raises(ValueError, match="stands there 2 times|two nodes are called"):
        check_graph("here", content)


def varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def test_nothing_is_loaded_of_what_is_refused(exported, changed, monkeypatch, tmp_path):
    def load():
        raise AssertionError("it would be loaded")

    monkeypatch.setattr(saved_model, "load_library", load)
    path = tmp_path / "1"
    shutil.copytree(exported, path)
    (path / "saved_model.pb").write_bytes(changed(lambda meta, main, functions: main.node.add(name="x", op="PrintV2")))
    with pytest.raises(ValueError, match="saved_model.pb was changed"):
        saved_model.SavedModel(path)
    seal(path)
    with pytest.raises(RefusedOps, match="PrintV2"):
        saved_model.SavedModel(path)
    (path / "saved_model.cpb").write_bytes(b"TensorFlow would prefer this one")
    shutil.copy(exported / "saved_model.pb", path)
    seal(path)
    with pytest.raises(ValueError, match=r"no SavedModel of ours has the files \['saved_model.cpb'\]"):
        saved_model.SavedModel(path)
    (path / "saved_model.cpb").unlink()
    (path / op_gate.SIDECAR).unlink()
    with pytest.raises(FileNotFoundError, match=r"seqlm\.json"):
        saved_model.SavedModel(path)
    with pytest.raises(AssertionError, match="it would be loaded"):
        saved_model.SavedModel(exported)


def test_the_lists_hold_what_they_should_not_least():
    """Nothing on them writes, reads, sends, prints, calls Python or keeps what a request brings."""
    words = "File Print Py Write Read Dataset Send Recv Save Restore Assign Mutable Lookup Queue Summary Socket Rpc"
    found = {op for op in OPS for word in words.split() if word in op}
    assert found == {"ReadVariableOp"}
    assert not {op for op in LITE_OPS for word in ("VARIABLE", "VAR_", "CALL", "CUSTOM", "HASH") if word in op}


def test_a_lite_file_of_other_operations(tmp_path):
    import tensorflow as tf

    def convert(function):
        module = tf.Module()
        module.f = tf.function(lambda x: {"y": function(x)}, input_signature=[tf.TensorSpec([2, 3], tf.float32, "x")])
        tf.saved_model.save(module, str(tmp_path / "1"), signatures={"f": module.f})
        return tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "1")).convert()

    content = convert(lambda x: tf.tanh(x) + 1.0)
    file = check_lite_content("here", content)
    assert {tensor.shape for tensor in file.graphs[0]} >= {(2, 3)}
    other = convert(lambda x: tf.cumsum(x))
    with pytest.raises(RefusedOps, match="CUMSUM in its list of operations") as error:
        check_lite_content("here", other)
    assert error.value.ops == ["CUMSUM"] and check_lite_content("here", other, ["CUMSUM"])
    for damaged in (b"", content[:4], content[: len(content) // 2], b"\0" * 100, content[:8] + b"\xff" * 100):
        with pytest.raises(ValueError, match=r"here: it is .*\.tflite file|leads out"):
            check_lite_content("here", damaged)
