"""A LiteRT file made smaller: against the numbers that it was made of, in NumPy, and against the converter's own file."""

import pathlib

import numpy as np
import pytest

from keras_seqlm.export.litert_file import compact

VOCABULARY, HIDDEN, TIME = 300, 16, 24


@pytest.fixture(scope="module")
def table():
    """Rows of very different sizes, which one scale for all can't hold."""
    numbers = np.random.default_rng(3)
    rows = numbers.normal(size=(VOCABULARY, HIDDEN)) * np.exp(1.5 * numbers.normal(size=(VOCABULARY, 1)))
    return rows.astype("float32")


@pytest.fixture(scope="module")
def converted(table):
    """`converted(quantized)`: a file whose table embeds and projects, with a loop that keeps what it makes."""
    import tensorflow as tf

    module = tf.Module()
    module.table = tf.Variable(table)

    def step(token_ids):
        embedded = tf.gather(module.table, token_ids)  # (1, time, hidden)
        kept = tf.TensorArray(tf.float32, TIME, element_shape=[1, HIDDEN])
        for i in tf.range(TIME):
            kept = kept.write(i, embedded[:, i] * 2.0)
        doubled = tf.transpose(kept.stack(), [1, 0, 2])
        return {"embedded": tf.identity(embedded), "logits": tf.matmul(doubled, module.table, transpose_b=True)}

    def convert(folder, quantized):
        function = tf.function(step).get_concrete_function(tf.TensorSpec([1, TIME], tf.int32, "token_ids"))
        tf.saved_model.save(module, folder, signatures={"prefill": function})
        converter = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=["prefill"])
        converter.optimizations = [tf.lite.Optimize.DEFAULT] if quantized else []
        return converter.convert()

    return convert


def run(content, token_ids):
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(model_content=content).get_signature_runner("prefill")(token_ids=token_ids)


def constants(content):
    """The arrays of bytes in a file that its tensors read, by buffer, with the shape of the first."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors]
    data = {tensor.buffer: (model.buffers[tensor.buffer].data, list(tensor.shape)) for tensor in reversed(tensors)}
    return [(np.asarray(bytes_), shape) for bytes_, shape in data.values() if bytes_ is not None]


def test_one_finer_table_embeds_and_projects(converted, table, tmp_path):
    ids = np.arange(0, VOCABULARY, VOCABULARY // TIME, dtype="int32")[None, :TIME]
    before = converted(tmp_path, quantized=True)
    after = compact(before)
    assert [shape for _, shape in constants(before)].count([VOCABULARY, HIDDEN]) == 2
    assert [shape for _, shape in constants(after)].count([VOCABULARY, HIDDEN]) == 1
    step = np.abs(table[ids[0]]).max(axis=1, keepdims=True) / 127  # of a row, in symmetric integers of 8 bits
    error = np.abs(run(after, ids)["embedded"][0] - table[ids[0]])
    assert np.all(error <= 0.501 * step)
    assert np.any(np.abs(run(before, ids)["embedded"][0] - table[ids[0]]) > 2 * step), "the test sees no difference"
    assert len(after) < len(before) - VOCABULARY * HIDDEN


def test_floats_are_the_same_bit_for_bit_and_zeros_are_made(converted, tmp_path):
    ids = np.random.default_rng(1).integers(0, VOCABULARY, (1, TIME)).astype("int32")
    before = converted(tmp_path, quantized=False)
    after = compact(before)
    wanted, got = run(before, ids), run(after, ids)
    assert wanted.keys() == got.keys()
    for name in wanted:
        np.testing.assert_array_equal(got[name], wanted[name])
    zeros = [shape for data, shape in constants(before) if len(data) >= 256 and not np.any(data)]
    assert zeros == [[TIME, 1, HIDDEN]]
    assert not [shape for data, shape in constants(after) if len(data) >= 256 and not np.any(data)]


def test_data_are_aligned_and_signatures_named(converted, tmp_path):
    from ai_edge_litert import schema_py_generated as schema

    content = compact(converted(tmp_path, quantized=True))
    model = schema.Model.GetRootAs(content, 0)
    for i in range(model.BuffersLength()):
        data = model.Buffers(i).DataAsNumpy()
        if isinstance(data, np.ndarray):
            start = data.__array_interface__["data"][0] - np.frombuffer(content, "uint8").__array_interface__["data"][0]
            assert start % 16 == 0
    assert compact(content) == content, "nothing is left to be taken away"


@pytest.mark.parametrize(("name", "share"), [("lstm", 0.85), ("transformer", 0.9)])
def test_an_exported_file_holds_nothing_twice(litert, name, share):
    """The models of the tests are so small that the graph weighs as much as the weights."""
    exact, int8, half = (litert(name, quantize) for quantize in ("none", "int8", "float16"))
    sizes = {path: pathlib.Path(path).stat().st_size for path in (exact, int8, half)}
    for path in sizes:
        data = [bytes(part) for part, _ in constants(pathlib.Path(path).read_bytes())]
        assert len(data) == len(set(data))
        assert not [part for part in data if len(part) > 1024 and not any(part)], "where a loop begins"
    assert sizes[int8] < sizes[half] < sizes[exact]
    assert sizes[int8] < share * sizes[exact]
