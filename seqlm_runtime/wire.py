"""Protocol buffers as they lie in a file: one reader for every format of ours that uses them.

It is stricter than protobuf's own, which takes the last of several values, merges messages and skips what it does not
know: a reader that must not be deceived refuses what another one could read otherwise.
"""

_MOST_BYTES_OF_A_NUMBER = 10
VARINT, EIGHT_BYTES, BLOCK, FOUR_BYTES = 0, 1, 2, 5
_SIZES = {EIGHT_BYTES: 8, FOUR_BYTES: 4}


def fields(message):
    """The fields of a message in the order of the file.

    Args:
        message: bytes or memoryview.

    Yields:
        `(number, kind, value)`: kind `VARINT` with an int, `BLOCK` (a string, a message, packed numbers), `FOUR_BYTES` or
        `EIGHT_BYTES` with a memoryview.

    Raises:
        ValueError: the message is cut, or is none.

    Example:

    >>> [(number, bytes(value)) for number, kind, value in fields(b"\\x0a\\x02hi")]
    [(1, b'hi')]
    """
    message, at = memoryview(message), 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if not 0 < number < 2**29:  # beyond, some readers cut the number off and see another field
            raise ValueError(f"a field has the number {number}")
        if kind == VARINT:
            value, at = _varint(message, at)
        else:
            if kind == BLOCK:
                size, at = _varint(message, at)
            elif kind in _SIZES:
                size = _SIZES[kind]
            else:
                raise ValueError(f"there is no wire type {kind}")
            if size > len(message) - at:
                raise ValueError("a field reaches beyond its message")
            value = message[at : at + size]
            at += size
        yield number, kind, value


def _varint(message, at):
    if at < len(message) and message[at] < 128:  # as most are
        return message[at], at + 1
    value = 0
    for i in range(_MOST_BYTES_OF_A_NUMBER):
        if at + i >= len(message):
            raise ValueError("it ends within a number")
        byte = message[at + i]
        value |= (byte & 127) << (7 * i)
        if byte < 128:
            return value & (2**64 - 1), at + i + 1  # as protobuf cuts it
    raise ValueError("a number has more than ten bytes")


def packed(block):
    """The whole numbers of a packed field.

    >>> list(packed(b"\\x05\\x81\\x01"))
    [5, 129]
    """
    at = 0
    while at < len(block):
        value, at = _varint(block, at)
        yield value


class Message:
    """The fields of a message by their numbers, each read as what it should be.

    Args:
        data: bytes or memoryview.

    Raises:
        ValueError: by this, as by all methods: it is cut, is no message, or a field is of another kind, or stands there
            more often than it may. Another reader would take the last one of several, or all.

    Example:

    >>> Message(b"\\x0a\\x02hi\\x10\\x05").text(1)
    'hi'
    """

    def __init__(self, data):
        self._values = {}
        for number, kind, value in fields(data):
            self._values.setdefault(number, []).append((kind, value))

    def blocks(self, number):
        """The values of a repeated field of strings or messages: a list of memoryviews."""
        values = self._values.get(number, ())
        for kind, _ in values:
            if kind != BLOCK:
                raise ValueError(f"field {number} is no block of bytes")
        return [value for _, value in values]

    def block(self, number):
        """The value of a string or message field that may stand there once; empty where it does not."""
        return _only(number, self.blocks(number), memoryview(b""))

    def texts(self, number):
        """The values of a repeated field of strings."""
        return [_text(value) for value in self.blocks(number)]

    def text(self, number):
        """The value of a string field; "" where it does not stand there."""
        return _text(self.block(number))

    def whole(self, number):
        """The value of a number field; 0 where it does not stand there. A negative one comes as its 64 bits, unsigned."""
        values = self._values.get(number, ())
        if any(kind != VARINT for kind, _ in values):
            raise ValueError(f"field {number} is no whole number")
        return _only(number, [value for _, value in values], 0)

    def map(self, number):
        """The entries of a map field: dict of str -> memoryview."""
        found = {}
        for block in self.blocks(number):
            entry = Message(block)
            key = entry.text(1)
            if key in found:
                raise ValueError(f"the key {key!r} stands there twice")
            found[key] = entry.block(2)
        return found


def _only(number, values, default):
    if len(values) > 1:
        raise ValueError(f"field {number} stands there {len(values)} times, and may once")
    return values[0] if values else default


def _text(value):
    try:
        return bytes(value).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{bytes(value[:20])!r} is no UTF-8") from error
