"""Text files as a stream of documents, read piece by piece and never whole."""

import glob
import gzip
import io
import json
import os
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ENDINGS = (".txt", ".md", ".text", ".jsonl")
CHUNK_SIZE = 1 << 20
MAX_LINE = 1 << 25  # A line of JSON is parsed whole, in up to eleven times its size; a longer one counts as broken.
TOLERANCE = 0.001
_SPACES = b" \n\t\r\f\v"


class Chunk(NamedTuple):
    """A piece of one document: its bytes, and whether it opens or closes the document."""

    text: bytes
    first: bool
    last: bool


class Corpus:
    """Documents of text files, streamed.

    A text file (`.txt`, `.md`, `.text`, or any other that is named outright) is one document; each line of a `.jsonl` file
    is one. Each of these may be gzipped (`.txt.gz`). Bytes are handed on as they are: byte order mark, CRLF and invalid
    UTF-8 included. Long documents come in chunks that end before white space, so that a tokenizer sees whole words.

    Args:
        files: a path, a glob pattern, a directory (searched recursively; hidden files are left out), or a list of these.
            Each entry is expanded in sorted order; a file met twice is read once.
        text_field: the field of a JSON line that holds the text.
        chunk_size: most bytes of a chunk.
        tolerance: what is broken is skipped, counted and warned of up to this fraction: of the lines of a `.jsonl` file,
            and of the corpus's bytes on disk for gzip that is cut or damaged, which is read up to the damage.

    Attributes:
        files: the files to be read, in order.
        skipped: broken JSON lines skipped so far by `chunks()`.
        damaged_files: cut or damaged gzip files met so far by `chunks()`.

    Raises:
        FileNotFoundError: if a named file is absent.
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
        self.skipped, self.damaged_files = 0, []

    def chunks(self) -> Iterator[Chunk]:
        """Yield the chunks of every document in order.

        Raises:
            ValueError: if a file turns out to hold nothing but white space, or too much of the text is broken.
        """
        self.skipped, self.damaged_files = 0, []
        nothing = True
        for path in self.files:
            with _open(path) as handle:
                documents = self._lines(path, handle) if _ending(path) == ".jsonl" else (handle,)
                blank = True
                for document in documents:
                    for chunk in _chunks(document, self.chunk_size):
                        blank = blank and chunk.text.isspace()
                        yield chunk
                nothing = nothing and blank
                if _damage(handle) is not None:
                    self._tolerate(path, _damage(handle))
                elif blank:
                    raise ValueError(f"{path} holds no text: take it out of the corpus, or fill it.")
        if nothing:
            raise ValueError(f"All of the corpus is damaged, {self.damaged_files[0]} and what follows: fetch it again.")

    def _tolerate(self, path, damage):
        """Count a damaged file; how much it has lost cannot be known, so its whole size counts."""
        self.damaged_files.append(path)
        share = sum(one.stat().st_size for one in self.damaged_files) / sum(one.stat().st_size for one in self.files)
        told = f"{path} is damaged or cut gzip ({damage}), {100 * share:.2g}% of the corpus's bytes are in such files"
        if share > self.tolerance:
            raise ValueError(f"{told}, more than {self.tolerance:.1%}: make or fetch it again, or raise `tolerance`.")
        warnings.warn(f"{told}: read up to the damage.", stacklevel=3)

    def _lines(self, path, handle):
        """Yield the text of each JSON line as a file in memory; skip broken lines while they are few."""
        number = lines = broken = 0
        example = ""
        while line := handle.readline(MAX_LINE + 1):
            number += 1
            if _damage(handle) is not None and not line.endswith(b"\n"):
                break  # The line that the damage has torn counts with its file.
            if line.isspace():
                continue
            lines += 1
            try:
                text = self._parse(line, handle)
            except (ValueError, RecursionError) as error:
                broken += 1
                self.skipped += 1
                example = example or f"line {number}: {error}"
                if lines >= 1000 and broken > self.tolerance * lines:
                    break
                continue
            if text:
                yield io.BytesIO(text)
        if broken > self.tolerance * lines:
            raise ValueError(
                f"{path}, {example}. {broken} of the first {lines} lines are broken, more than {self.tolerance:.1%}: each "
                f'line must be a JSON object with a string under "{self.text_field}" (another field: `text_field=`).'
            )
        if broken:
            warnings.warn(f"{path}: skipped {broken} broken of {lines} lines, the first: {example}", stacklevel=2)

    def _parse(self, line, handle):
        if len(line) > MAX_LINE:
            while line and not line.endswith(b"\n"):
                line = handle.readline(CHUNK_SIZE)
            raise ValueError(f"longer than {MAX_LINE} bytes")
        record = json.loads(line)
        if not isinstance(record, dict) or not isinstance(record.get(self.text_field), str):
            raise ValueError(f'no JSON object with a string under "{self.text_field}"')
        # JSON can spell half a surrogate pair, which UTF-8 cannot: it becomes U+FFFD.
        return record[self.text_field].encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


def texts(files, text_field="text", tolerance=TOLERANCE):
    """Yield the text of files as bytes, in chunks of at most about a megabyte that end before white space.

    Args:
        files: a path, a glob pattern, a directory, or a list of these, as `Corpus` takes them.
        text_field: the field of a `.jsonl` line that holds the text.
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


def find_files(files):
    """Expand paths, glob patterns and directories to the list of files to read.

    Args:
        files: a path, a glob pattern, a directory, or a list or tuple of these.

    Returns:
        A list of `pathlib.Path`, sorted within each entry, without repetition.

    Raises:
        FileNotFoundError: if a named file is absent.
        ValueError: if an entry matches no text file, or a file is empty.
    """
    entries = list(files) if isinstance(files, (list, tuple)) else [files]
    if not entries:
        raise ValueError("`files` is an empty list: name at least one file, pattern or directory.")
    found = {}
    for entry in entries:
        for path in _expand(os.fspath(entry)):
            if path.stat().st_size == 0:
                raise ValueError(f"{path} is empty: take it out of the corpus, or fill it.")
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _expand(entry):
    path = Path(entry).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        candidates = (Path(folder, name) for folder, _, names in os.walk(path, onerror=_refuse) for name in names)
        candidates = [
            one for one in candidates if not any(part.startswith(".") for part in one.relative_to(path).parts)
        ]
        kind = "directory"
    elif glob.has_magic(entry):
        candidates = [Path(match) for match in glob.glob(str(path), recursive=True)]
        kind = "pattern"
    else:
        raise FileNotFoundError(
            f"No file or directory {entry!r}: check the path, or give a pattern such as 'books/*.txt'."
        )
    chosen = sorted(one for one in candidates if _ending(one) in ENDINGS and one.is_file())
    if not chosen:
        endings = ", ".join(ENDINGS)
        raise ValueError(
            f"The {kind} {entry!r} holds no text file. Read are files that end in {endings}, or in these and .gz; "
            f"a file with another ending is read as text when it is named itself."
        )
    return chosen


def _refuse(error):
    raise error  # os.walk would pass over a folder that cannot be read.


def _ending(path):
    name = path.name.lower().removesuffix(".gz")
    return os.path.splitext(name)[1]


class _Gzip(io.RawIOBase):
    """The content of a gzip file up to its end or to where it is damaged; `damage` is then the error."""

    def __init__(self, path):
        self._handle = gzip.open(path, "rb")
        self.damage = None

    def readable(self):
        return True

    def readinto(self, buffer):
        if self.damage is not None:
            return 0
        try:
            content = self._handle.read1(len(buffer))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            self.damage = error
            return 0
        buffer[: len(content)] = content
        return len(content)

    def close(self):
        self._handle.close()
        super().close()


def _open(path):
    return io.BufferedReader(_Gzip(path), CHUNK_SIZE) if path.name.lower().endswith(".gz") else open(path, "rb")


def _damage(handle):
    return getattr(handle.raw, "damage", None)


def _chunks(handle, size):
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
