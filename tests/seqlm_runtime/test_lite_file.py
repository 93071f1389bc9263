"""What stands in a .tflite file, beside what LiteRT's own reader says, and of bytes that anyone may have made."""

import pathlib
import random

import numpy as np
import pytest

from keras_seqlm.export.inspection import kind_of
from seqlm_runtime.lite_file import BUILTINS, parse_lite_file


@pytest.fixture
def content(litert):
    return lambda name, quantize="none": pathlib.Path(litert(name, quantize)).read_bytes()


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_it_reads_what_litert_reads(content, litert, quantize):
    from ai_edge_litert.interpreter import Interpreter

    file, interpreter = parse_lite_file(content("lstm", quantize)), Interpreter(model_path=litert("lstm", quantize))
    assert file.unknown == [] and sorted(file.signatures) == sorted(interpreter.get_signature_list())
    for name, signature in file.signatures.items():
        runner = interpreter.get_signature_runner(name)
        for found, details in (
            (signature.inputs, runner.get_input_details()),
            (signature.outputs, runner.get_output_details()),
        ):
            wanted = {key: (tuple(info["shape"]), info["dtype"]) for key, info in details.items()}
            assert {key: (tensor.shape, tensor.dtype) for key, tensor in found.items()} == wanted
    details = interpreter.get_tensor_details()
    tensors = dict(enumerate(file.graphs[0]))  # names may be said twice
    compared = 0
    for info in details:
        tensor = tensors.get(info["index"])
        assert tensor is None or not info["name"] or tensor.name == info["name"]
        if tensor is not None and len(tensor.content) and info["shape"].size and tensor.dtype is info["dtype"]:
            np.testing.assert_array_equal(tensor.values().reshape(tensor.shape), interpreter.get_tensor(info["index"]))
            np.testing.assert_array_equal(tensor.scales, info["quantization_parameters"]["scales"])
            compared += 1
    assert compared > 5


def test_operations_by_name(content):
    from ai_edge_litert import schema_py_generated as schema

    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    assert [names[code] for code in range(len(names))] == list(BUILTINS)
    read = schema.Model.GetRootAs(content("lstm"), 0)
    codes = [read.OperatorCodes(i) for i in range(read.OperatorCodesLength())]
    wanted = [(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), "") for code in codes]
    assert parse_lite_file(content("lstm")).operations == wanted


@pytest.mark.parametrize(
    ("quantize", "kind"), [("none", "litert"), ("float16", "litert-float16"), ("int8", "litert-int8")]
)
def test_the_kind_is_that_of_the_tensors(content, quantize, kind):
    assert kind_of(parse_lite_file(content("lstm", quantize))) == kind


def test_a_thousand_mutations_end_in_an_answer_or_a_value_error(content):
    """No other exception, and no list that is longer than the file."""
    whole, chance, refused = content("lstm"), random.Random(1), 0
    for _ in range(1000):
        changed = bytearray(whole)
        for _ in range(chance.randrange(1, 30)):  # most of the file is weights
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        if chance.randrange(2):
            place = (
                chance.randrange(0, 2000)
                if chance.randrange(2)
                else chance.randrange(len(changed) - 2000, len(changed))
            )
            changed[place % len(changed)] ^= 255
        try:
            file = parse_lite_file(bytes(changed[: chance.choice((len(changed), chance.randrange(len(changed))))]))
            kind_of(file)
        except ValueError:
            refused += 1
    assert 100 < refused < 1000
