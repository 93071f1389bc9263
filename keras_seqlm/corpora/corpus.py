"""Text files as a stream of documents, read piece by piece and never whole."""

import io
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from keras_seqlm.corpora.json_text import beginning_of, elements_of, lines_of, shape_of, text_of
from keras_seqlm.corpora.opening import HEAD_SIZE, TABLES, sources
from keras_seqlm.corpora.paths import find_files
from keras_seqlm.corpora.tables import rows_of
from keras_seqlm.corpora.unpacking import CHUNK_SIZE, damage

TOLERANCE = 0.001
REPLACED = 0.001  # The share of characters that are no UTF-8 from which on it is told; Latin-1 French has 0.03.
_SPACES = b" \n\t\r\f\v"


class Chunk(NamedTuple):
    """A piece of one document: its bytes, and whether it opens or closes the document."""

    text: bytes
    first: bool
    last: bool


class Corpus:
    """Documents of text files, streamed.

    A text file (`.txt`, `.md`, `.text`, or any other that is named outright) is one document. Each line of a `.jsonl` or
    `.ndjson` file is one, each element of a `.json` array, and each row of a `.parquet` or `.arrow` file (read with pyarrow). Each of
    these may be packed by gzip, bzip2, xz or zstandard (read with zstandard), or lie in a `.zip`; packing is known by the
    first bytes of a file, too. What is no text is refused by name.

    Bytes are handed on as they are, CRLF and invalid UTF-8 included; save that the byte order mark at the beginning of a
    file is no text, and that of UTF-16 or UTF-32 says how the file is decoded. Where more than one character in a thousand is no UTF-8, a warning names the
    files. Long documents come in chunks that end before white space, so that a tokenizer sees whole words.

    Args:
        files: a path, a glob pattern, a directory (searched recursively, links followed; hidden files are left out), or a
            list of these. Each entry is expanded in sorted order; a file met twice is read once. A file that is named, or
            that a pattern matches, is read; of a directory and of a `.zip` those are that end as above, and a warning names the
            others.
        text_field: the field of a record that holds the text.
        chunk_size: most bytes of a chunk.
        tolerance: what is broken is skipped, counted and warned of up to this fraction: of the records of a file, and of
            the corpus's bytes on disk for packed files that are cut or damaged, which are read up to the damage.

    Attributes:
        files: the files to be read, in order.
        skipped: broken records skipped so far by `chunks()`.
        damaged_files: cut or damaged files met so far by `chunks()`.
        num_documents: documents of each file that `chunks()` has read so far, a list.

    Raises:
        FileNotFoundError: if a named file is absent.
        ImportError: if the package is absent that reads one of the files.
        ValueError: if a directory or pattern holds no text, a file is empty, or an argument is out of range.

    Example:

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "letters.jsonl")
    >>> _ = path.write_text('{"text": "Dear reader"}')
    >>> list(Corpus(path).chunks())
    [Chunk(text=b'Dear reader', first=True, last=True)]
    """

    def __init__(self, files, text_field="text", chunk_size=CHUNK_SIZE, tolerance=TOLERANCE):
        if chunk_size < 64:
            raise ValueError(f"`chunk_size` must be at least 64 bytes, received {chunk_size}.")
        if not 0 <= tolerance <= 1:
            raise ValueError(f"`tolerance` must be a fraction from 0 to 1, received {tolerance}.")
        self.files = find_files(files)
        self.text_field = text_field
        self.chunk_size = chunk_size
        self.tolerance = tolerance
        self._start()

    def _start(self):
        self.skipped, self.damaged_files, self.num_documents = 0, [], []

    def chunks(self) -> Iterator[Chunk]:
        """Yield the chunks of every document in order.

        Raises:
            ValueError: if a file is no text or turns out to hold nothing but white space, or too much of the text is broken.
        """
        self._start()
        nothing, replaced = True, {}
        for path in self.files:
            self.num_documents.append(0)
            blank, cut, counts = True, None, [0, 0]
            for source in sources(path):
                for document in self._documents(path, source):
                    for chunk in cut_chunks(document, self.chunk_size):
                        blank = blank and chunk.text.isspace()
                        self.num_documents[-1] += chunk.first
                        counts = [sum(pair) for pair in zip(counts, count_characters(chunk.text), strict=True)]
                        yield chunk
                cut = cut or damage(source.handle)
            nothing = nothing and blank
            if counts[0] > REPLACED * counts[1]:
                replaced[path] = counts[0] / counts[1]
            if cut is not None:
                self._tolerate(path, cut)
            elif blank:
                raise ValueError(f"{path} holds no text: take it out of the corpus, or fill it.")
        if nothing:
            raise ValueError(f"All of the corpus is damaged, {self.damaged_files[0]} and what follows: fetch it again.")
        tell_replaced(replaced)

    def check(self):
        """Open every file, so that one that is no text is refused before hours of work and not after.

        Raises:
            ImportError: if the package is absent that reads one of the files.
            ValueError: if one is no text.
        """
        for path in self.files:
            for _ in sources(path):
                break

    def _tolerate(self, path, cut):
        """Count a damaged file; how much it has lost cannot be known, so its whole size counts."""
        self.damaged_files.append(path)
        share = sum(one.stat().st_size for one in self.damaged_files) / sum(one.stat().st_size for one in self.files)
        told = f"{path} is damaged or cut ({cut}), {100 * share:.3g}% of the corpus's bytes are in such files"
        if share > self.tolerance:
            raise ValueError(f"{told}, more than {self.tolerance:.1%}: make or fetch it again, or raise `tolerance`.")
        warnings.warn(f"{told}: read up to the damage.", stacklevel=3)

    def _documents(self, path, source):
        """Yield the documents of one stream as files."""
        name, kind, handle = source
        if kind == "text":
            yield handle
            return
        records = Records(name, self.text_field, self.tolerance)
        try:
            for text in records.texts(_records(path, source, self.text_field)):
                if text:
                    yield io.BytesIO(text)
        finally:
            self.skipped += records.skipped


class Records:
    """The texts of records, of which a few may be broken.

    Args:
        name: of what holds them, for messages.
        text_field: the field that holds the text.
        tolerance: the fraction that may be broken.

    Attributes:
        skipped: broken records met so far.
    """

    def __init__(self, name, text_field, tolerance):
        self.name, self.text_field, self.tolerance = name, text_field, tolerance
        self.skipped = 0

    def texts(self, records):
        """Yield the text of each `(place, record)` as bytes; a `ValueError` for a record is a broken one.

        Raises:
            ValueError: if too many are broken; a thousand are seen before that is said, or all.
        """
        count, example, unit = 0, "", "records"
        for place, record in records:
            count += 1
            try:
                if isinstance(record, ValueError):
                    raise record
                text = text_of(record, self.text_field)
            except ValueError as error:
                self.skipped += 1
                example, unit = example or f"{place}: {error}", f"{place.split(' ')[0]}s"
                if count >= 1000 and self.skipped > self.tolerance * count:
                    break
                continue
            yield text
        if self.skipped > self.tolerance * count:
            broken = f"{self.skipped} of the first {count} {unit} are broken, more than {self.tolerance:.1%}"
            wanted = f'be a JSON object with a string under "{self.text_field}" (another field: `text_field=`)'
            raise ValueError(
                f"{self.name}, {example}. {broken if count > 1 else 'The only record there is broken'}: each must "
                f"{'hold a string in that column' if unit == 'rows' else wanted}."
            )
        if self.skipped:
            warnings.warn(
                f"{self.name}: skipped {self.skipped} broken of {count} {unit}, the first: {example}", stacklevel=2
            )


def _records(path, source, text_field):
    if source.kind in TABLES:
        return rows_of(path, source.kind, text_field, source.handle)
    if source.kind == "json":
        handle = io.BufferedReader(_Ahead(source.handle), CHUNK_SIZE)
        return lines_of(handle) if shape_of(handle.raw.head) == "lines" else elements_of(source.name, handle)
    return lines_of(source.handle)


class _Ahead(io.RawIOBase):
    """A stream whose first bytes, `head`, are looked at before it is read."""

    def __init__(self, handle):
        self._handle = handle
        self.head = self._rest = beginning_of(handle, HEAD_SIZE)

    @property
    def damage(self):
        return damage(self._handle)

    def readable(self):
        return True

    def readinto(self, buffer):
        content = self._rest or self._handle.read(len(buffer))
        content, self._rest = content[: len(buffer)], content[len(buffer) :]
        buffer[: len(content)] = content
        return len(content)


def count_characters(content):
    """How many bytes or runs of bytes of some text are no UTF-8, and become U+FFFD, and its characters, these included.

    >>> count_characters(b"gr\\xfcn")
    (1, 4)
    """
    if content.isascii():
        return 0, len(content)
    try:
        return 0, len(content.decode())
    except UnicodeDecodeError:
        text = content.decode("utf-8", "replace")
        return text.count("\ufffd") - content.count(b"\xef\xbf\xbd"), len(text)


def tell_replaced(shares):
    """Warn of what has many characters that are no UTF-8: a dict of what it is to the share."""
    if shares:
        worst = sorted(shares, key=shares.get, reverse=True)
        shown = ", ".join(f"{path} ({shares[path]:.1%})" for path in worst[:5]) + (" ..." if len(worst) > 5 else "")
        warnings.warn(
            f"Of {len(shares)} {'file' if len(shares) == 1 else 'files'} more than {REPLACED:.1%} of the characters are no "
            f"UTF-8 and become U+FFFD or odd bytes: {shown}. Convert what is Latin-1: iconv -f latin1 -t utf-8.",
            stacklevel=3,
        )


def texts(files, text_field="text", tolerance=TOLERANCE):
    """Yield the text of files as bytes, in chunks of at most about a megabyte that end before white space.

    Args:
        files: a path, a glob pattern, a directory, or a list of these, as `Corpus` takes them.
        text_field: the field of a record that holds the text.
        tolerance: the fraction that may be broken (see `Corpus`).

    Returns:
        An iterator of bytes. Borders of documents do not show; `Corpus.chunks()` tells them.

    Raises:
        FileNotFoundError: if a named file is absent.
        ValueError: if there is no text, a file is empty, or too much of the text is broken.

    Example:

    >>> import pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "a.txt").write_text("It was a dark night.")
    >>> list(texts(folder))
    [b'It was a dark night.']
    """
    return (chunk.text for chunk in Corpus(files, text_field, tolerance=tolerance).chunks())


def cut_chunks(handle, size):
    """Cut one document into chunks of at most `size` bytes."""
    first = True
    block = handle.read(size + 1)  # One byte more than a chunk tells whether this is the document's last.
    while len(block) > size:
        cut = _cut(block[:size], size // 16)
        yield Chunk(block[:cut], first, False)
        first = False
        block = block[cut:] + handle.read(size + 1 - (len(block) - cut))
    if block:
        yield Chunk(block, first, True)


def _cut(block, window):
    """Find a place near the end of `block` where no word and no character is torn.

    White space goes with the word after it, as byte-pair and SentencePiece tokenizers have it.
    """
    floor = len(block) - window
    place = block.rfind(b"\n", floor)
    if place < 0:
        place = max(block.rfind(bytes((space,)), floor) for space in _SPACES)
    if place >= 0:
        while place > floor and block[place - 1] in _SPACES:
            place -= 1
        return place
    for back in range(1, 5):
        byte = block[-back]
        if byte < 0x80:
            break
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(block) - back if back < length else len(block)
    return len(block)
