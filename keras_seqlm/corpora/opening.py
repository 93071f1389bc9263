"""Files opened as streams of UTF-8: unpacked where they are packed, decoded by their marks, refused where they are no text."""

import codecs
import io
import os
import zipfile
from pathlib import Path
from typing import NamedTuple

from keras_seqlm.corpora.json_text import beginning_of
from keras_seqlm.corpora.unpacking import CHUNK_SIZE, PACKINGS, Recoded, Unpacked, need, open_zstandard, unpack

KINDS = {".txt": "text", ".md": "text", ".text": "text", ".jsonl": "lines", ".ndjson": "lines"}
KINDS |= {".json": "json", ".parquet": "parquet", ".arrow": "arrow"}
_A = {"parquet": "a Parquet", "arrow": "an Arrow"}
TABLES = ("parquet", "arrow")  # Read at many places and by another library, pyarrow.
HEAD_SIZE = 1 << 16  # Bytes of a file that tell what it is.
MOST_PACKINGS = 3  # Files exist that unpack to themselves for ever.
MOST_NULS = 0.1  # UTF-16 without a mark has 0.5 in English, programs and tables of numbers 0.2 to 0.4, text none.
FEWEST_NULS = 64  # Of a few bytes it cannot be told.

_ARROW = {b"ARROW1\0\0": "file", b"\xff\xff\xff\xff": "stream"}  # Before the length of a message, in a stream.
_PACKED = {b"\x1f\x8b\x08": "gzip", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}
_PACKED |= {b"BZh%d1AY&SY" % level: "bzip2" for level in range(1, 10)}
_PACKED |= {
    b"%c*M\x18" % mark: "zstandard" for mark in range(0x50, 0x60)
}  # a frame to be skipped, which may come first
_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}  # before UTF-16, whose mark begins one of them
_MARKS |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_WEIGHTS = "it holds numbers"
_PICTURE = "name the text files alone"
_UNPACK = "unpack it first"
_NO_TEXT = {
    b"%PDF-": ("a PDF", "turn it into text first, as with pdftotext"),
    b"\x89PNG\r\n": ("a PNG picture", _PICTURE),
    b"\xff\xd8\xff": ("a JPEG picture", _PICTURE),
    b"GIF8": ("a GIF picture", _PICTURE),
    b"ID3\x03": ("MP3 sound", _PICTURE),
    b"ID3\x04": ("MP3 sound", _PICTURE),
    b"OggS\0": ("Ogg sound", _PICTURE),
    b"fLaC\0": ("FLAC sound", _PICTURE),
    b"SQLite format 3\0": ("an SQLite database", "write its text out as .jsonl"),
    b"\xd0\xcf\x11\xe0\xa1\xb1": ("a Word or Office document", "save it as plain text"),
    b"\x80\x02": ("a pickle", _WEIGHTS + " or objects: write its text out as .jsonl"),
    b"\x80\x03": ("a pickle", _WEIGHTS + " or objects: write its text out as .jsonl"),
    b"\x80\x04": ("a pickle", _WEIGHTS + " or objects: write its text out as .jsonl"),
    b"\x80\x05": ("a pickle", _WEIGHTS + " or objects: write its text out as .jsonl"),
    b"\x89HDF\r\n": ("an HDF5 file", _WEIGHTS),
    b"\x93NUMPY": ("a NumPy array", _WEIGHTS),
    b"GGUF": ("a GGUF file", _WEIGHTS),
    b"\x7fELF": ("a program", _PICTURE),
    b"Obj\x01": ("an Avro file", "write its text out as .jsonl"),
    b"ORC": ("an ORC file", "write it as .parquet or .jsonl"),
    b"FEA1": ("a Feather file of the first version", "write it as .parquet or .jsonl"),
    b"version https://git-lfs": ("a pointer of Git LFS, and not the file", "fetch the file: git lfs pull"),
    b"/annex/objects/": ("a pointer of git-annex, and not the file", "fetch the file: git annex get"),
    b"MZ\x90\0": ("a program", _PICTURE),
    b"\xcf\xfa\xed\xfe": ("a program", _PICTURE),
    b"\xca\xfe\xba\xbe": ("a program", _PICTURE),
    b"\0asm": ("a program", _PICTURE),
    b"!<arch>\n": ("a library of programs", _PICTURE),
    b"II*\0": ("a TIFF picture", _PICTURE),
    b"MM\0*": ("a TIFF picture", _PICTURE),
    b"\x1aE\xdf\xa3": ("a film", _PICTURE),
    b"7z\xbc\xaf'\x1c": ("a 7z archive", _UNPACK),
    b"Rar!\x1a\x07": ("a RAR archive", _UNPACK),
    b"\x04\x22\x4d\x18": ("LZ4", _UNPACK),
}


class Source(NamedTuple):
    """One stream of a file: `name` for messages, `kind` (text, lines, json, parquet, arrow), `handle`, a buffered reader.

    A table, of Parquet or Arrow, is read at many places and by another library: its handle is empty, and is told of damage.
    """

    name: str
    kind: str
    handle: io.BufferedReader


def sources(path):
    """Open what a file holds, one stream after the other; each is closed when the next one is asked for.

    A `.zip` holds those of its members that end as text files do, in the order of their names; any other file is one
    stream. Packing (gzip, bzip2, xz, zstandard, zip) is known by a file's first bytes as well as by its ending.

    Args:
        path: a `pathlib.Path`.

    Returns:
        An iterator of `Source`.

    Raises:
        ImportError: if the package is absent that reads such a file.
        ValueError: if it is no text, or locked by a password.
    """
    if is_zip(path):
        yield from _members(path)
        return
    source = _unwrap(path, str(path), path.name, lambda: open(path, "rb"))
    with source.handle:
        yield source


def kind_at(path):
    """How a file is read, as `sources` has it: by its first bytes, and by its name where these leave it open.

    Returns:
        `"zip"`, or the kind of its one `Source`.

    Raises:
        ImportError: if the package is absent that reads such a file.
        ValueError: if it is no text.
    """
    if is_zip(path):
        return "zip"
    (kind,) = [source.kind for source in sources(path)]
    return kind


def kind_of(name):
    """How a file is read by its name, less what says that it is packed: text, lines, json, parquet or arrow.

    >>> kind_of("books.jsonl.gz"), kind_of("LICENSE")
    ('lines', 'text')
    """
    return KINDS.get(ending_of(name), "text")


def ending_of(name):
    """The last ending of a name in small letters, less what says that it is packed."""
    stem, ending = os.path.splitext(str(name).lower())
    return os.path.splitext(stem)[1] if ending in PACKINGS else ending


def is_packed(name):
    """Whether a name says that the file is packed."""
    return os.path.splitext(str(name).lower())[1] in (*PACKINGS, ".zip")


def is_zip(path):
    """Whether a file is a zip archive, by its ending or its first bytes."""
    with open(path, "rb") as handle:
        return path.name.lower().endswith(".zip") or handle.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def head_of(path):
    """The first bytes of a JSON file's content, unpacked and decoded; those of its first member if it is a zip."""
    for source in sources(path):
        return beginning_of(source.handle, HEAD_SIZE)
    return b""


def check_readable(path):
    """Refuse at once, by its name, a file that a package is missing for."""
    endings = [ending.lower() for ending in path.suffixes[-2:]]
    if ".zst" in endings[-1:]:
        open_zstandard(path)
    for kind in TABLES:
        if f".{kind}" in endings:
            reader_of_tables(path, kind)


def reader_of_tables(path, kind):
    """The module that reads Parquet files, or those of Arrow."""
    module = {"parquet": "pyarrow.parquet", "arrow": "pyarrow.ipc"}[kind]
    return need(module, path, "write it as .jsonl, as with pandas' `to_json(orient='records', lines=True)`")


def arrow_form(head):
    """Whether the first bytes of a file are those of an Arrow `"file"`, or of a `"stream"` as `datasets` writes; or None."""
    form = next((form for mark, form in _ARROW.items() if head.startswith(mark)), None)
    # Four of these bytes are Latin-1, too: the length of the schema follows, and is small.
    return None if form == "stream" and not 0 < int.from_bytes(head[4:8], "little", signed=True) < 1 << 28 else form


def _unwrap(path, name, file_name, start, depth=0):
    """Open a stream as text: `start` opens its bytes anew each time, for a look at the first of them."""
    with start() as handle:
        head = handle.read(HEAD_SIZE)
    stem, ending = os.path.splitext(file_name)
    packing = next(
        (packing for mark, packing in _PACKED.items() if head.startswith(mark)), PACKINGS.get(ending.lower())
    )
    kind = "parquet" if head.startswith(b"PAR1") else "arrow" if arrow_form(head) else kind_of(file_name)
    if kind in TABLES and (packing is None or head.startswith(b"PAR1") or arrow_form(head)):
        if depth or str(path) != name:
            raise ValueError(f"{name} is {_A[kind]} file that is packed once more: unpack it first.")
        reader_of_tables(path, kind)
        return Source(name, kind, Unpacked.lost())
    if packing is not None:
        if depth == MOST_PACKINGS:
            raise ValueError(f"{name} is packed more than {MOST_PACKINGS} times: unpack it first.")
        inner = stem if ending.lower() in PACKINGS else file_name
        return _unwrap(path, name, inner, lambda: unpack(name, start(), packing), depth + 1)
    _refuse_what_is_no_text(name, head)
    encoding = next((encoding for mark, encoding in _MARKS.items() if head.startswith(mark)), None)
    handle = start()
    if encoding is not None:
        handle = io.BufferedReader(Recoded(handle, encoding), CHUNK_SIZE)
    elif head.startswith(codecs.BOM_UTF8):
        handle.read(len(codecs.BOM_UTF8))  # a mark of what the file is, and no character of the text
    return Source(name, kind_of(file_name), handle)


def _members(path):
    """The text files of a zip archive; of one that is cut, whose table of contents is lost, an empty stream."""
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        yield Source(str(path), "text", Unpacked.lost(error))
        return
    with archive:
        chosen = text_members(archive)
        if not chosen:
            some = ", ".join(archive.namelist()[:3]) or "nothing"
            raise ValueError(f"{path} is a zip archive without text files; it holds {some}: take it out of the corpus.")
        for info in chosen:
            name = f"{path}/{info.filename}"
            if info.flag_bits & 1:
                raise ValueError(f"{name} is locked by a password: unpack the archive first.")
            source = _unwrap(path, name, Path(info.filename).name, lambda info=info: _member(path, archive, info))
            with source.handle:
                yield source


def text_members(archive):
    """The members of an open `zipfile.ZipFile` that are read, by their names and in their order."""
    chosen = (info for info in visible_members(archive) if ending_of(info.filename) in KINDS)
    return sorted(chosen, key=lambda info: info.filename)


def visible_members(archive):
    """The members of an open `zipfile.ZipFile` that are files, less those that are hidden."""
    return [
        info
        for info in archive.infolist()
        if not info.is_dir() and not any(part.startswith((".", "__MACOSX")) for part in info.filename.split("/"))
    ]


def _member(path, archive, info):
    try:
        content = archive.open(info)
    except NotImplementedError as error:
        raise ValueError(f"{path}/{info.filename}: {error}. Unpack the archive first.") from error
    except zipfile.BadZipFile as error:
        return Unpacked.lost(error)
    return io.BufferedReader(Unpacked(io.BytesIO(), content), CHUNK_SIZE)


def _refuse_what_is_no_text(name, head):
    what = next((told for mark, told in _NO_TEXT.items() if head.startswith(mark)), None)
    if head[257:262] == b"ustar":
        what = "a tar archive", "unpack it first: tar -xf"
    elif head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < 1 << 30:
        what = "a safetensors file", _WEIGHTS
    elif head[4:8] == b"ftyp":
        what = "a film or a picture", _PICTURE
    elif head[:4] == b"RIFF" and head[8:12] in (b"WAVE", b"WEBP", b"AVI "):
        what = "sound or a picture", _PICTURE
    elif what is None and not any(head.startswith(mark) for mark in _MARKS):
        nuls = head.count(0)
        if nuls >= FEWEST_NULS and nuls > MOST_NULS * len(head):
            what = (
                f"no text ({nuls / len(head):.0%} of its first bytes are 0)",
                "if it is UTF-16, convert it with iconv",
            )
    if what is not None:
        raise ValueError(f"{name} is {what[0]}, and only text is trained on: {what[1]}.")
