"""The fields that a .tflite file may have, and a reader of its tables that follows no offset out of the file.

LiteRT follows them without looking. What a field that stands in no table here could do (other files, data behind the
tables, options of operations that are none of LiteRT's own) need not be known: it is refused.
"""

import struct

import numpy as np

# Table -> number of a field -> what it holds: a number (a letter of `struct`), "text", a table by its name, or a list of
# numbers or tables, "*" before it. The numbers are those of LiteRT's `schema.fbs`.
TABLES = {
    "Model": {0: "I", 1: "*OperatorCode", 2: "*SubGraph", 3: "text", 4: "*Buffer", 6: "*Metadata", 7: "*SignatureDef"},
    "OperatorCode": {0: "b", 1: "text", 2: "i", 3: "i"},
    "SubGraph": {0: "*Tensor", 1: "*i", 2: "*i", 3: "*Operator", 4: "text", 5: "i"},
    "Tensor": {0: "*i", 1: "b", 2: "I", 3: "text", 4: "QuantizationParameters", 7: "*i", 8: "?"},
    "QuantizationParameters": {0: "*f", 1: "*f", 2: "*f", 3: "*q", 6: "i"},
    "Operator": {0: "I", 1: "*i", 2: "*i", 3: "B", 4: "options", 5: "*B", 6: "b", 13: "i"},
    "Buffer": {0: "*B"},
    "Metadata": {0: "text", 1: "I"},
    "SignatureDef": {0: "*TensorMap", 1: "*TensorMap", 2: "text", 4: "I"},
    "TensorMap": {0: "text", 1: "I"},
}
# Operation of our exports -> the number that its options have in the schema, and their fields.
OPTIONS = {
    "ADD": (11, {0: "b", 1: "?"}),
    "BATCH_MATMUL": (101, {0: "?", 1: "?", 2: "?"}),
    "BROADCAST_TO": (104, {}),
    "CAST": (37, {0: "b", 1: "b"}),
    "CONCATENATION": (10, {0: "i", 1: "b"}),
    "COS": (84, {}),
    "DEQUANTIZE": (38, {}),
    "DIV": (29, {0: "b"}),
    "DYNAMIC_UPDATE_SLICE": (117, {}),
    "EMBEDDING_LOOKUP": (0, {}),
    "EQUAL": (53, {}),
    "FILL": (68, {}),
    "FULLY_CONNECTED": (8, {0: "b", 1: "b", 2: "?", 3: "?", 4: "b"}),
    "GATHER": (23, {0: "i", 1: "i"}),
    "GELU": (116, {0: "?"}),
    "GREATER": (44, {}),
    "GREATER_EQUAL": (45, {}),
    "L2_NORMALIZATION": (12, {0: "b"}),
    "LESS": (41, {}),
    "LOGICAL_AND": (62, {}),
    "LOGICAL_NOT": (63, {}),
    "LOGICAL_OR": (60, {}),
    "LOGISTIC": (0, {}),
    "MAXIMUM": (39, {}),
    "MEAN": (27, {0: "?"}),
    "MINIMUM": (39, {}),
    "MUL": (21, {0: "b"}),
    "NEG": (42, {}),
    "ONE_HOT": (61, {0: "i"}),
    "PACK": (59, {0: "i", 1: "i"}),
    "REDUCE_MAX": (27, {0: "?"}),
    "RESHAPE": (17, {0: "*i"}),
    "RSQRT": (0, {}),
    "SELECT": (47, {}),
    "SELECT_V2": (98, {}),
    "SIN": (0, {}),
    "SLICE": (48, {}),
    "SOFTMAX": (9, {0: "f"}),
    "SPLIT": (35, {0: "i"}),
    "SPLIT_V": (79, {0: "i"}),
    "SQUARE": (66, {}),
    "SQUARED_DIFFERENCE": (76, {}),
    "STRIDED_SLICE": (32, {0: "i", 1: "i", 2: "i", 3: "i", 4: "i", 5: "?"}),
    "SUB": (28, {0: "b", 1: "?"}),
    "SUM": (27, {0: "?"}),
    "TANH": (0, {}),
    "TRANSPOSE": (26, {}),
    "WHILE": (93, {0: "i", 1: "i"}),
}
_MOST_TABLES = 1_000_000


class Tables:
    """Reads the tables of a FlatBuffer, each once. `strange` is a set of fields that stand there and in no table above.

    Args:
        content: the file's bytes.

    Raises:
        ValueError: by all methods: an offset leads out of the file, or a text is none.
    """

    def __init__(self, content):
        self._content, self.strange, self._read = memoryview(content), set(), {}

    def number(self, at, letter):
        """The number at a place of the file, by its letter of `struct`."""
        if at < 0 or at + struct.calcsize(f"<{letter}") > len(self._content):
            raise ValueError("an offset leads out of the file")
        return struct.unpack_from(f"<{letter}", self._content, at)[0]

    def root(self):
        """The first table, which is a `Model`."""
        return self.table(self.number(0, "I"), "Model", TABLES["Model"])

    def table(self, at, name, kinds):
        """The table at a place: dict of the number of a field to its value.

        Args:
            at: where it begins.
            name: what `strange` calls it.
            kinds: what its fields hold, as in `TABLES`. Options come as their place in the file.
        """
        if (at, name) in self._read:
            return self._read[at, name]
        if len(self._read) >= _MOST_TABLES:
            raise ValueError(f"it has more than {_MOST_TABLES} tables")
        values = self._read[at, name] = {}
        fields = at - self.number(at, "i")
        size, length = self.number(fields, "H"), self.number(fields + 2, "H")
        if size < 4 or fields + size > len(self._content) or at + length > len(self._content):
            raise ValueError(f"a table {name} leads out of the file")
        for number in range((size - 4) // 2):
            distance = self.number(fields + 4 + 2 * number, "H")
            if distance and number not in kinds:
                self.strange.add(f"the field {number} of {name}")
            elif distance:
                values[number] = self._value(at + distance, kinds[number])
        return values

    def _value(self, at, kind):
        if len(kind) == 1:
            return self.number(at, kind)
        start = at + self.number(at, "I")
        if kind == "options":
            return start
        if kind == "text":
            text = self._list(start, "B")
            if self.number(start + 4 + len(text), "B"):
                raise ValueError("a text has no end")
            return bytes(text).decode()
        if not kind.startswith("*"):
            return self.table(start, kind, TABLES[kind])
        if len(kind) == 2:
            return self._list(start, kind[1])
        places = range(start + 4, start + 4 + 4 * len(self._list(start, "I")), 4)
        return [self.table(place + self.number(place, "I"), kind[1:], TABLES[kind[1:]]) for place in places]

    def _list(self, start, letter):
        """Numbers one after another: a memoryview of bytes, or an array."""
        count, size = self.number(start, "I"), struct.calcsize(f"<{letter}")
        start += 4
        if start + count * size > len(self._content):
            raise ValueError("a list leads out of the file")
        if letter == "B":
            return self._content[start : start + count]
        return np.frombuffer(self._content, f"<{letter}", count, start)
