"""The gate: what no export of ours holds is refused by name, wherever it hides, before anything is loaded."""

import json
import shutil

import pytest

from seqlm_runtime import op_gate, saved_model
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
    tf.saved_model.save(module, str(path), signatures={"score": score})
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
            main.node.add(name="x", op=op)
        elif where == "nobody":
            main.library.function.add().signature.name = "uncalled"
            main.library.function[-1].node_def.add(name="x", op=op)
        else:
            named(functions, {"while": "while_body", "signature": "signature_wrapper"}[where]).node_def.add(
                name="x", op=op
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


def init_node(main):
    return next(node for node in main.node if node.op == "NoOp")


def run_at_start(meta, main, functions):
    main.node.add(name="x", op="Placeholder")
    init_node(main).input.append("^x")


def save_at_start(meta, main, functions):
    init_node(main).input.append("^" + meta.saver_def.save_tensor_name.split(":")[0])


def save_as_restore(meta, main, functions):
    meta.saver_def.restore_op_name = meta.saver_def.save_tensor_name.split(":")[0]


def restore_that_saves(meta, main, functions):
    node = named(functions, "traced_restore").node_def.add(name="x", op="StatefulPartitionedCall")
    node.attr["f"].func.name = next(name for name in functions if "traced_save" in name)


def save_for_an_answer(meta, main, functions):
    meta.signature_def["score"].outputs["y"].name = meta.saver_def.save_tensor_name


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
    meta.asset_file_def.add(filename="../../etc/passwd").tensor_info.name = init_node(main).name


def on_another_machine(meta, main, functions):
    main.node.add(name="x", op="NoOp", device="/job:worker/task:0")


def unknown_function(meta, main, functions):
    main.node.add(name="x", op="PartitionedCall").attr["f"].func.name = "elsewhere"


def function_in_an_attribute(meta, main, functions):
    value = main.node.add(name="x", op="PartitionedCall").attr["f"].func
    value.name = next(iter(functions))
    value.attr["g"].list.func.add(name="elsewhere")


def long_piece(meta, main, functions):
    model = Model([("<unk>", 0.0, UNKNOWN), ("a" * 500_000, 0.0, NORMAL)])
    main.node.add(name="x", op="SentencepieceOp").attr["model"].s = serialize_model(model)


@pytest.mark.parametrize(
    ("change", "ops"),
    [
        (run_at_start, ["Placeholder"]),
        (save_at_start, ["DisableCopyOnRead", "MergeV2Checkpoints", "SaveV2"]),
        (save_as_restore, ["MergeV2Checkpoints", "RestoreV2", "SaveV2"]),
        (restore_that_saves, ["MergeV2Checkpoints", "SaveV2"]),
        (save_for_an_answer, ["MergeV2Checkpoints", "SaveV2"]),
        (restore_from_elsewhere, ["AssignVariableOp", "RestoreV2"]),
        (restore_with_a_prefix_of_its_own, ["AssignVariableOp", "RestoreV2"]),
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
        function = tf.function(function, input_signature=[tf.TensorSpec([2, 3], tf.float32, "x")])
        return tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], None).convert()

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
