"""The runner of SavedModels: requests, refusals, freed memory, and XLA switched off as on the stock server.

Switching XLA off is for the whole process, so tests of it run in one of their own; the others leave XLA on.
"""

import subprocess
import sys
import textwrap

import numpy as np
import pytest

from seqlm_runtime.graph_file import read_graph
from seqlm_runtime.saved_model import SavedModel

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="TensorFlow's C library is used on Linux only")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A SavedModel with strings, numbers, a loop in a branch, a tensorflow-text op and an XLA function."""
    import tensorflow as tf
    import tensorflow_text as tf_text

    class Module(tf.Module):
        def __init__(self):
            super().__init__()
            words = tf.lookup.KeyValueTensorInitializer(["a", "b"], tf.constant([1, 2], tf.int64))
            self.table = tf.lookup.StaticHashTable(words, -1)
            self.factor = tf.Variable(2.0)

        @tf.function(
            input_signature=[tf.TensorSpec([None], tf.string, "text"), tf.TensorSpec([None], tf.int32, "count")]
        )
        def text(self, text, count):
            joined = tf.strings.join([text, tf.strings.as_string(count)], "-")
            return {"joined": joined, "token": self.table.lookup(text), "same": text}

        @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, "x")])
        def numbers(self, x):
            def double_thrice():
                return tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y * self.factor), (0, x))[1]

            y = tf.cond(tf.reduce_any(x > 0), double_thrice, lambda: x)
            return {"y": y, "positive": y > 0, "rows": tf.shape(y, out_type=tf.int64)[0]}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
        def split(self, text):
            return {"letters": tf_text.ByteSplitter().split(text).to_tensor()}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
        def compiled(self, x):
            return {"y": tf.function(lambda x: x * self.factor, jit_compile=True)(x)}

        @tf.function(
            input_signature=[tf.TensorSpec([None], tf.float32, "x"), tf.TensorSpec([None], tf.float32, "factor")]
        )
        def scaled(self, x, factor=tf.constant([3.0])):  # noqa: B008
            return {"y": x * factor}

    module = Module()
    path = tmp_path_factory.mktemp("saved_model") / "1"
    names = ("text", "numbers", "split", "compiled", "scaled")
    tf.saved_model.save(module, str(path), signatures={name: getattr(module, name) for name in names})
    return str(path)


@pytest.fixture(scope="module")
def model(folder):
    with SavedModel(folder, xla=True, trusted=True) as model:
        yield model


def in_own_process(script, *arguments):
    """The last line that a script prints, in a process that has imported nothing yet."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.strip().splitlines()[-1]


@linux_only
def test_signatures_tell_names_types_and_shapes(model):
    assert sorted(model.signatures) == ["compiled", "numbers", "scaled", "split", "text"]
    inputs, outputs = model.signatures["numbers"]
    assert (inputs["x"].dtype, inputs["x"].shape) == (np.float32, (None, 3))
    assert {name: (info.dtype, info.shape) for name, info in outputs.items()} == {
        "y": (np.float32, (None, 3)),
        "positive": (np.bool_, (None, 3)),
        "rows": (np.int64, ()),
    }
    assert model.signatures["text"].inputs["text"].dtype is object


@linux_only
def test_strings_in_and_out(model):
    long = "snow " * 100
    result = model.run("text", text=["a", b"\xff\0x", "\u00fc", long], count=[1, 2, 3, 4])
    assert result["joined"].tolist() == [b"a-1", b"\xff\0x-2", "\u00fc-3".encode(), long.encode() + b"-4"]
    assert result["same"].tolist() == [b"a", b"\xff\0x", "\u00fc".encode(), long.encode()]
    assert result["token"].tolist() == [1, -1, -1, -1]
    assert result["joined"].dtype == object and result["token"].dtype == np.int64
    empty = model.run("text", text=[], count=np.zeros(0, np.int32))
    assert empty["joined"].shape == (0,)


@linux_only
def test_input_array_of_strings_is_left_as_it_was(model):
    text = np.array(["a", "b"], dtype=object)
    model.run("text", text=text, count=[1, 2])
    assert text.tolist() == ["a", "b"]


@linux_only
def test_numbers_in_and_out(model):
    strided = np.arange(12, dtype=np.float32).reshape(2, 6)[:, ::2]
    result = model.run("numbers", x=strided)
    np.testing.assert_array_equal(result["y"], strided * 8)
    assert result["positive"].tolist() == [[False, True, True], [True, True, True]]
    assert result["rows"] == 2 and result["rows"].shape == ()
    np.testing.assert_array_equal(model.run("numbers", x=-strided)["y"], -strided)
    result["y"][0, 0] = 5  # an array of its own


@linux_only
@pytest.mark.parametrize("x", [[[1, 2, 3]], np.array([[1, 2, 3]], np.int64), np.array([[1.0, 2.0, 3.0]])])
def test_numbers_are_converted_where_that_is_safe(model, x):
    assert model.run("numbers", x=x)["y"].tolist() == [[8, 16, 24]]


@linux_only
@pytest.mark.parametrize("count", [2, np.int64(2), np.array(2)])
def test_one_number_stands_for_an_input_of_one_axis(model, count):
    assert (
        model.run("text", text=["ab"], count=count)["token"].tolist()
        == model.run("text", text=["ab"], count=[2])["token"].tolist()
    )


@linux_only
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"text": ["a"]}, r"takes the inputs \['count', 'text'\]; got \['text'\]"),
        ({"text": ["a"], "count": [1], "more": [1]}, "got .*'more'"),
        ({"text": ["a"], "count": [1.5]}, "takes int32; got float64"),
        ({"text": ["a"], "count": 1.5}, "takes int32; got float64"),
        ({"text": ["a"], "count": [2**31]}, "numbers that it cannot hold"),
        ({"text": ["a"], "count": ["1"]}, "takes int32; got"),
        ({"text": [1], "count": [1]}, "takes strings"),
        ({"text": [["a"], ["b", "c"]], "count": [1, 2]}, "takes strings|inhomogeneous"),
        ({"text": "a", "count": [1]}, r"must have the shape \(None,\).*got \(\)"),
        ({"text": [["a"]], "count": [1]}, r"must have the shape .*got \(1, 1\)"),
    ],
)
def test_wrong_inputs_are_refused(model, inputs, message):
    with pytest.raises(ValueError, match=message):
        model.run("text", **inputs)
    assert model.run("text", text=["b"], count=[1])["token"].tolist() == [2]


@linux_only
def test_unknown_signature_is_refused(model):
    with pytest.raises(
        ValueError, match=r"no signature 'txt'; it has \['compiled', 'numbers', 'scaled', 'split', 'text'\]"
    ):
        model.run("txt", text=["a"])


@linux_only
def test_errors_of_the_library_come_with_its_message(model):
    with pytest.raises(RuntimeError, match="(?s)running signature 'text'.*shape"):
        model.run("text", text=["a", "b", "c"], count=[1, 2])


@linux_only
def test_closed_model_says_so(folder):
    model = SavedModel(folder, xla=True, trusted=True)
    model.close()
    model.close()
    with pytest.raises(ValueError, match="was closed"):
        model.run("text", text=["a"], count=[1])


def test_missing_or_damaged_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected .*saved_model.pb"):
        read_graph(tmp_path)
    with pytest.raises(FileNotFoundError, match="expected .*saved_model.pb"):
        SavedModel(tmp_path)
    for content in (b"", b"\xff" * 50, b"\x12\x05ab"):
        (tmp_path / "saved_model.pb").write_bytes(content)
        with pytest.raises(ValueError, match="cut or is no SavedModel"):
            read_graph(tmp_path)


@linux_only
def test_file_cut_short_is_an_error_of_the_library(folder, tmp_path):
    whole = open(f"{folder}/saved_model.pb", "rb").read()
    (tmp_path / "saved_model.pb").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RuntimeError, match="loading"):
        SavedModel(tmp_path, xla=True, trusted=True)


def test_operations_of_each_signature(folder):
    found = read_graph(folder)
    assert sorted(found.signatures) == ["compiled", "numbers", "scaled", "split", "text"]
    assert {"While", "Less", "Mul"} <= found.ops("numbers")
    assert "LookupTableFindV2" in found.ops("text")
    assert "LookupTableFindV2" not in found.ops("numbers")
    main = {node.op for node in found.nodes.values()}
    assert "Less" not in main and "Placeholder" in main
    assert {name: found.xla(name) for name in found.signatures} == {
        "compiled": ["_XlaMustCompile"],
        "numbers": [],
        "scaled": [],
        "split": [],
        "text": [],
    }


def test_operations_agree_with_tensorflows_own_reader(folder):
    from tensorflow.core.protobuf import saved_model_pb2

    message = saved_model_pb2.SavedModel.FromString(open(f"{folder}/saved_model.pb", "rb").read())
    graph = message.meta_graphs[0].graph_def
    expected = {function.signature.name: {node.op for node in function.node_def} for function in graph.library.function}
    read = read_graph(folder)
    assert {name: {node.op for node in function.nodes} for name, function in read.functions.items()} == expected
    wanted = {node.name: (node.op, list(node.input), node.device) for node in graph.node}
    assert {name: (node.op, node.inputs, node.device) for name, node in read.nodes.items()} == wanted
    meta = message.meta_graphs[0]
    assert read.assets == [asset.filename for asset in meta.asset_file_def]
    saver = meta.saver_def
    assert read.saver == (saver.filename_tensor_name, saver.save_tensor_name, saver.restore_op_name)


def test_an_xla_op_in_a_graph_is_found(tmp_path):
    import tensorflow as tf
    from tensorflow.compiler.tf2xla.ops.gen_xla_ops import xla_dynamic_update_slice as update

    module = tf.Module()
    module.f = tf.function(
        lambda x: {"y": update(input=x, update=[9.0], indices=tf.constant([1]))},
        input_signature=[tf.TensorSpec([4], tf.float32, "x")],
    )
    tf.saved_model.save(module, str(tmp_path / "1"), signatures={"f": module.f})
    assert read_graph(tmp_path / "1").xla("f") == ["XlaDynamicUpdateSlice"]


@linux_only
def test_xla_is_off_and_tensorflow_is_not_imported(folder):
    script = """
        import sys
        from seqlm_runtime import SavedModel

        model = SavedModel(sys.argv[1], trusted=True)
        assert model.run("numbers", x=[[1, 2, 3]])["y"].tolist() == [[8, 16, 24]]
        assert model.run("split", text=["ab"])["letters"].tolist() == [[97, 98]]
        messages = []
        for attempt in (lambda: model.run("compiled", x=[1.0]), lambda: SavedModel(sys.argv[1], xla=True, trusted=True)):
            try:
                attempt()
            except RuntimeError as error:
                messages.append(str(error))
        assert "XLA compilation disabled" in messages[0], messages
        assert "switched XLA off for good" in messages[1], messages
        print([name for name in ("tensorflow", "tensorflow_text", "keras", "keras_seqlm") if name in sys.modules])
    """
    assert in_own_process(script, folder) == "[]"


@linux_only
def test_with_xla_on_a_compiled_signature_runs(model):
    assert model.run("compiled", x=[1.5])["y"].tolist() == [3.0]


@linux_only
def test_without_text_ops_their_model_does_not_load(folder):
    script = """
        import sys
        from seqlm_runtime import SavedModel

        try:
            SavedModel(sys.argv[1], text_ops=False, trusted=True)
        except RuntimeError as error:
            print("not registered" in str(error))
        assert SavedModel(sys.argv[1], trusted=True).run("text", text=["a"], count=[1])["token"].tolist() == [1]
    """
    assert in_own_process(script, folder) == "True"


@linux_only
def test_a_thousand_requests_leave_nothing_behind(folder):
    script = """
        import sys
        from seqlm_runtime import SavedModel

        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

        model = SavedModel(sys.argv[1], trusted=True)
        long = ["x" * 200_000]
        for _ in range(50):
            model.run("text", text=long, count=[1])
        before = resident()
        for _ in range(1000):
            model.run("text", text=long, count=[1])
            try:
                model.run("text", text=long * 3, count=[1, 2])
            except RuntimeError:
                pass
        print(resident() - before)
    """
    # One string of each request left behind would be 190 MiB, those of the refused ones 570.
    assert float(in_own_process(script, folder)) < 30


@linux_only
def test_requests_from_several_threads(model):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda n: model.run("text", text=["a", str(n)], count=[n, n])["joined"].tolist(), range(200))
    assert list(results) == [[f"a-{n}".encode(), f"{n}-{n}".encode()] for n in range(200)]


@linux_only
@pytest.mark.parametrize("way", ["close", "end"])
def test_closing_waits_for_the_requests_of_other_threads(folder, way):
    """The library ended the process, when a session was freed while it ran."""
    script = """
        import sys, threading, time
        import numpy as np
        from seqlm_runtime import SavedModel

        model, answers, refusals = SavedModel(sys.argv[1], trusted=True), [], []
        x = np.ones((200_000, 3), "float32")

        def ask():
            while True:
                try:
                    answers.append(model.run("numbers", x=x)["y"].shape)
                except ValueError as error:
                    refusals.append(str(error))
                    return

        threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        while len(answers) < 8:
            time.sleep(0.01)
        if sys.argv[2] == "close":
            closers = [threading.Thread(target=model.close) for _ in range(2)]
            for closer in closers:
                closer.start()
            for thread in closers + threads:
                thread.join(60)
            assert not any(thread.is_alive() for thread in closers + threads)
            assert len(refusals) == 4 and all("was closed" in refusal for refusal in refusals), refusals
        print("well", flush=True)
    """
    assert in_own_process(script, folder, way) == "well"


@linux_only
def test_models_are_loaded_by_several_threads_at_once(folder):
    script = """
        import sys
        from concurrent.futures import ThreadPoolExecutor
        from seqlm_runtime import SavedModel

        def load_and_ask(n):
            with SavedModel(sys.argv[1], trusted=True) as model:
                return model.run("split", text=["ab"])["letters"].tolist()

        with ThreadPoolExecutor(4) as pool:
            print(list(pool.map(load_and_ask, range(8))) == [[[97, 98]]] * 8)
    """
    assert in_own_process(script, folder) == "True"


@linux_only
def test_inputs_with_a_default_may_be_left_out(model):
    assert model.optional_inputs("scaled") == {"factor"} and model.optional_inputs("text") == set()
    assert model.run("scaled", x=[1.0, 2.0])["y"].tolist() == [3.0, 6.0]
    assert model.run("scaled", x=[1.0, 2.0], factor=[2.0])["y"].tolist() == [2.0, 4.0]
    with pytest.raises(ValueError, match=r"takes the inputs \['factor', 'x'\]; got \['factor'\]"):
        model.run("scaled", factor=[2.0])


def test_other_systems_are_told_what_to_do(folder, monkeypatch):
    from seqlm_runtime import tensorflow_c

    monkeypatch.setattr(tensorflow_c.sys, "platform", "darwin")
    tensorflow_c._load_library.cache_clear()
    try:
        with pytest.raises(RuntimeError, match="fresh process.*WSL2"):
            SavedModel(folder, trusted=True)
    finally:
        tensorflow_c._load_library.cache_clear()
