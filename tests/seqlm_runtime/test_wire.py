"""The one reader of protocol buffers: what protobuf itself writes, and what another reader would see otherwise."""

import random

import pytest

from seqlm_runtime.graph_file import parse_graph
from seqlm_runtime.wire import BLOCK, VARINT, Message, fields


def test_it_reads_what_protobuf_writes():
    from tensorflow.core.framework import attr_value_pb2, node_def_pb2

    node = node_def_pb2.NodeDef(name="ü", op="AddV2", input=["a", "b:1"], device="/device:CPU:0")
    node.attr["T"].CopyFrom(attr_value_pb2.AttrValue(type=1))
    node.attr["f"].func.name = "body"
    message = Message(node.SerializeToString())
    assert (message.text(1), message.text(2), message.texts(3)) == ("ü", "AddV2", ["a", "b:1"])
    attributes = message.map(5)
    assert sorted(attributes) == ["T", "f"] and Message(attributes["T"]).whole(6) == 1
    assert Message(Message(attributes["f"]).block(10)).text(1) == "body"
    assert message.text(9) == "" and message.whole(9) == 0 and message.blocks(9) == []


@pytest.mark.parametrize("number", [0, 1, 127, 128, 2**31, 2**63, 2**64 - 1])
def test_whole_numbers(number):
    encoded, left = bytearray(), number
    while left > 127:
        encoded.append(left & 127 | 128)
        left >>= 7
    assert Message(b"\x08" + bytes(encoded) + bytes([left])).whole(1) == number


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"\x08", "within a number"),
        (b"\x08\x80", "within a number"),
        (b"\x08" + b"\x80" * 10 + b"\x01", "more than ten bytes"),
        (b"\x0a\x05ab", "beyond its message"),
        (b"\x09abc", "beyond its message"),
        (b"\x0b", "no wire type 3"),
        (b"\x00\x01", "the number 0"),
        # Readers that keep 32 bits of a key would take this for field 1.
        (b"\x8a\x80\x80\x80\x80\x01\x01x", "has the number"),
    ],
)
def test_what_is_no_message(content, complaint):
    with pytest.raises(ValueError, match=complaint):
        list(fields(content))


def test_what_another_reader_would_see_otherwise():
    twice = Message(b"\x0a\x01a\x0a\x01b\x10\x01\x10\x02\x1a\x03\x0a\x01k\x1a\x03\x0a\x01k")
    for read in (twice.text, twice.block):
        with pytest.raises(ValueError, match="stands there 2 times"):
            read(1)
    with pytest.raises(ValueError, match="stands there 2 times"):
        twice.whole(2)
    with pytest.raises(ValueError, match="the key 'k' stands there twice"):
        twice.map(3)
    with pytest.raises(ValueError, match="no whole number"):
        twice.whole(1)
    with pytest.raises(ValueError, match="no block"):
        twice.texts(2)
    with pytest.raises(ValueError, match="no UTF-8"):
        Message(b"\x0a\x01\xff").text(1)
    assert [kind for _, kind, _ in fields(b"\x0a\x00\x10\x01")] == [BLOCK, VARINT]


def test_ten_thousand_mutations_of_a_graph_end_in_an_answer_or_a_value_error(tmp_path):
    """No other exception, no endless loop: the bytes may come from anyone."""
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel(saved_model_schema_version=1)
    graph = model.meta_graphs.add().graph_def
    for number in range(6):
        node = graph.node.add(name=f"n{number}", op="AddV2", input=["n0"] * number)
        node.attr["f"].func.name = "body"
        node.attr["f"].func.attr["g"].list.func.add(name="other")
        node.attr["_XlaMustCompile"].b = True
    graph.library.function.add().signature.name = "body"
    signature = model.meta_graphs[0].signature_def["score"]
    signature.outputs["y"].name = "n5:0"
    signature.outputs["y"].tensor_shape.dim.add(size=-1)
    content = model.SerializeToString()
    assert parse_graph(content).signatures["score"].outputs["y"].shape == (None,)
    chance, refused = random.Random(0), 0
    for _ in range(10_000):
        changed = bytearray(content)
        for _ in range(chance.randrange(1, 4)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        try:
            parse_graph(bytes(changed[: chance.choice((len(changed), chance.randrange(len(changed))))]))
        except ValueError:
            refused += 1
    assert 5_000 < refused < 10_000


def test_attributes_within_attributes_do_not_exhaust_the_stack():
    def block(number, content):
        return bytes([number << 3 | 2]) + varint(len(content)) + content

    def varint(number):
        return bytes([number & 127 | 128, number >> 7 & 127 | 128, number >> 14])

    value = b""
    for _ in range(3000):
        value = block(10, block(1, b"f") + block(2, block(1, b"k") + block(2, value)))
    node = block(1, b"n") + block(2, b"NoOp") + block(5, block(1, b"k") + block(2, value))
    with pytest.raises(ValueError, match="more than 8 deep"):
        parse_graph(block(2, block(2, block(1, node))))
