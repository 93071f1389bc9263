"""Records of JSON: lines and arrays read as streams, and the text of a record."""

import codecs
import json
from collections.abc import Mapping

from keras_seqlm.corpora.unpacking import CHUNK_SIZE, damage

MAX_LINE = 1 << 25  # A record is parsed whole, in up to eleven times its size; a longer line counts as broken.


def text_of(record, text_field):
    """The text of a record as UTF-8: a string, bytes, or a mapping with a string under `text_field`.

    Raises:
        ValueError: if it is something else; it names the fields that hold strings.

    Example:

    >>> text_of({"text": "Dear reader"}, "text")
    b'Dear reader'
    """
    text = record.get(text_field) if isinstance(record, Mapping) else record
    if isinstance(text, bytes) and not isinstance(record, Mapping):
        return text
    if not isinstance(text, str):
        advice = "" if isinstance(record, Mapping) else f", but {type(record).__name__}"
        if isinstance(record, Mapping) and text_field not in record:
            strings = [str(name) for name, value in record.items() if isinstance(value, str)]
            if strings:
                best = max(strings, key=lambda name: len(record[name]))
                shown = ", ".join(f'"{name}"' for name in strings[:8])
                advice = (
                    f'; its fields of text are {shown}: give text_field="{best}" (command line: --text-field {best})'
                )
        raise ValueError(f'no JSON object with a string under "{text_field}"{advice}')
    # JSON can spell half a surrogate pair, which UTF-8 cannot: it becomes U+FFFD.
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


def lines_of(handle):
    """Yield `(place, record)` of each line that is not blank; a line that is no JSON has a `ValueError` for a record."""
    number = 0
    while line := handle.readline(MAX_LINE + 1):
        number += 1
        if damage(handle) is not None and not line.endswith(b"\n"):
            break  # The line that the damage has torn counts with its file.
        if line.isspace():
            continue
        place = f"line {number}"
        if len(line) > MAX_LINE:
            while line and not line.endswith(b"\n"):
                line = handle.readline(CHUNK_SIZE)
            yield place, ValueError(f"longer than {MAX_LINE} bytes")
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            record = ValueError(str(error))
        yield place, record


def beginning_of(handle, size):
    """The first bytes of a stream of JSON: `size`, and of lines as many as `shape_of` needs, for the first may be long."""
    head = handle.read(size)
    while len(head) <= MAX_LINE and _is_one_line(head) and (more := handle.read(len(head))):
        head += more
    return head


def _is_one_line(head):
    head = head.removeprefix(codecs.BOM_UTF8).lstrip()
    return head.startswith(b"{") and not head.partition(b"\n")[2].strip()


def shape_of(head):
    """What a `.json` file holds by its first bytes: an `"array"`, `"lines"` of objects, or one `"object"`.

    >>> shape_of(b'[{"text": "a"}]'), shape_of(b'{"text": "a"}' + bytes([10]) + b'{"text": "b"}'), shape_of(b'{"a": 1}')
    ('array', 'lines', 'object')
    """
    head = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if head.startswith(b"["):
        return "array"
    first, _, rest = head.partition(b"\n")
    return "lines" if first.rstrip().endswith(b"}") and rest.lstrip().startswith(b"{") else "object"


def elements_of(name, handle):
    """Yield `(place, record)` of a JSON array, parsed element by element, so that its size does not matter.

    A file of one object is one record. (Files of lines that are called `.json` are `lines_of`'s.)

    Raises:
        ValueError: if it is no array, breaks off or has an element longer than is parsed.
    """
    cursor = _Cursor(name, handle)
    if cursor.mark() != "[":
        yield "the object", _no_table(name, cursor.value("the object"))
        _refuse_more(name, cursor, "its object")
        return
    cursor.place += 1
    number = 0
    while cursor.mark() not in ("]", ""):
        number += 1
        place = f"element {number}"
        record = cursor.value(place)
        if record is _TORN:
            return  # The element that the damage has torn counts with its file.
        yield place, record
        if cursor.mark() == ",":
            cursor.place += 1
        elif cursor.mark() not in ("]", ""):
            raise ValueError(f"{name} is no JSON: after {place} a comma was expected, and there is {cursor.mark()!r}.")
    if cursor.mark() == "" and damage(handle) is None:
        raise ValueError(f"{name} is no JSON: it ends before its array does. Make or fetch it again.")
    if cursor.mark() == "]":
        cursor.place += 1
        _refuse_more(name, cursor, "its array")


def _refuse_more(name, cursor, what):
    """Two files of JSON, one after the other, are no JSON, and the second one must not be lost without a word."""
    if cursor.mark() != "":
        raise ValueError(
            f"{name} is no JSON: after {what} there is more, {cursor.mark()!r} and so on. Files that were joined are taken one "
            "by one; records of one line each are a .jsonl file."
        )


_TORN = object()


class _Cursor:
    """A place in a stream of JSON, of which no more is kept than the value there needs."""

    def __init__(self, name, handle):
        self.name, self.handle, self.place = name, handle, 0
        # What is no UTF-8 stays apart from every character, so that the element it is in can be told.
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._text, self._ended = "", False

    def mark(self):
        """The next character that is no white space; nothing at the end."""
        while True:
            while self.place < len(self._text) and self._text[self.place] in " \t\r\n":
                self.place += 1
            if self.place < len(self._text):
                return self._text[self.place]
            if self._ended:
                return ""
            self._fill()

    def value(self, what):
        """The value that starts here, a `ValueError` if it is no UTF-8, as of a line; `_TORN` where damage cuts it."""
        while True:
            try:
                record, end = json.JSONDecoder().raw_decode(self._text, self.place)
                if end < len(self._text) or self._ended:  # else a number might go on
                    start, self.place = self.place, end
                    return _if_utf_8(self._text[start:end], record)
            except (ValueError, RecursionError) as error:
                if self._ended and damage(self.handle) is not None:
                    return _TORN
                if self._ended or isinstance(error, RecursionError):
                    raise ValueError(f"{self.name} is no JSON: {what}: {error}.") from error
            if len(self._text) - self.place > MAX_LINE:
                raise ValueError(
                    f"{self.name}: {what} is no JSON, or longer than {MAX_LINE} bytes. Write the file as .jsonl, a record "
                    "a line."
                )
            self._fill()

    def _fill(self):
        text = self._text[self.place :]
        block = self.handle.read(max(CHUNK_SIZE, len(text)))  # Doubled, so that a long value is tried few times.
        self._ended = not block
        self._text, self.place = text + self._decoder.decode(block, final=self._ended), 0


def _if_utf_8(text, record):
    """A record, or a `ValueError` if a byte of its text was no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) & 0xFF
        return ValueError(f"byte 0x{byte:02x} is no UTF-8; convert what is Latin-1: iconv -f latin1 -t utf-8")
    return record


def _no_table(name, record):
    """One object is a record if it is flat; where a field holds a list, that is what was meant to be read."""
    lists = [field for field, value in record.items() if isinstance(value, list)] if isinstance(record, dict) else []
    if lists:
        raise ValueError(
            f'{name} is one JSON object, and a list of records is read: if "{lists[0]}" is that list, write it out, '
            f"as with jq -c '.{lists[0]}[]' {name} > texts.jsonl"
        )
    return record
