"""Documents that are no files, as those of a generator or of a Hugging Face data set: written through once, for their hash."""

import hashlib
import io
import os
import pathlib
import struct
import uuid
from collections.abc import Iterable, Mapping, Set

from keras_seqlm.corpora.corpus import REPLACED, TOLERANCE, Records, count_characters, cut_chunks, tell_replaced
from keras_seqlm.corpora.unpacking import CHUNK_SIZE
from keras_seqlm.data.cache_lock import InUse

_LENGTH = struct.Struct("<Q")


def are_documents(source):
    """Whether `source` is an iterable of documents, and not a path or a list of paths.

    A list or a tuple is one of paths; `iter(texts)` makes documents of a list of texts.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(source, (str, os.PathLike, list, tuple)):
        return False
    if isinstance(source, (Set, Mapping, bytes)) or not isinstance(source, Iterable):
        raise TypeError(
            f"Expected a path, a list of paths, or an iterable of documents in a fixed order; got {type(source).__name__}."
        )
    return True


class Spool:
    """The documents of an iterable in one file of the cache, which `close()` deletes.

    The iterable is read once, document by document; no more of it than a document is in memory. The hash of its documents
    is known when it ends, and with it whether they are tokenized already. So each call reads the whole iterable, but
    the same documents in the same order are tokenized once. The file takes as much of the disk as the text has bytes.

    Args:
        documents: an iterable of str, bytes, or mappings with the text under `text_field`.
        root: folder of the cache.
        text_field: the field of a mapping that holds the text.
        tolerance: the fraction of documents that may have no text there; they are skipped and counted.

    Attributes:
        content: `content_hash` and `files`, as `open_or_build` takes it.

    Raises:
        ValueError: if there is no text, or too many documents have none.
    """

    def __init__(self, documents, root, text_field="text", tolerance=TOLERANCE):
        self.files, self.damaged_files = [], []
        self.tolerance, self.chunk_size = tolerance, CHUNK_SIZE
        self.name = f"the {type(documents).__name__}"
        root.mkdir(parents=True, exist_ok=True)
        self.path = root / f"{uuid.uuid4().hex}.spool"
        try:
            self._write(documents, text_field)
        except BaseException:
            self.close()
            raise

    def _write(self, documents, text_field):
        records, digest, blank = Records(self.name, text_field, self.tolerance), hashlib.sha256(), True
        with open(self.path, "wb") as handle:
            self._use = InUse(self.path)
            for text in records.texts(_numbered(documents)):
                if text:
                    blank = blank and text.isspace()
                    for part in (_LENGTH.pack(len(text)), text):
                        handle.write(part)
                        digest.update(part)
        if blank:
            raise ValueError(f"{self.name} holds no text.")
        self.skipped, self.num_documents = records.skipped, [0]
        file = {"kind": "documents", "sha256": digest.hexdigest()}
        content_hash = hashlib.sha256(f"documents {digest.hexdigest()}".encode()).hexdigest()
        self.content = {"content_hash": content_hash, "files": [file]}

    def check(self):
        """All of the text was checked when it was written."""

    def chunks(self):
        """Yield the chunks of every document in order."""
        self.num_documents, replaced, characters = [0], 0, 0
        with open(self.path, "rb") as handle:
            while length := handle.read(_LENGTH.size):
                self.num_documents[0] += 1
                document = io.BytesIO(handle.read(*_LENGTH.unpack(length)))
                for chunk in cut_chunks(document, self.chunk_size):
                    counts = count_characters(chunk.text)
                    replaced, characters = replaced + counts[0], characters + counts[1]
                    yield chunk
        if replaced > REPLACED * characters:
            tell_replaced({self.name: replaced / characters})

    def close(self):
        """Delete the file."""
        self.path.unlink(missing_ok=True)


def _numbered(documents):
    for number, document in enumerate(documents, 1):
        if number == 1 and isinstance(document, str) and _names_a_file(document):
            raise TypeError(
                f"Document 1 is the name of a file, {document!r}, and would be trained on as a text: give a list of paths, as "
                "`list(paths)`, or the pattern itself."
            )
        if isinstance(document, pathlib.PurePath):
            raise TypeError(f"Document {number} is a path, {str(document)!r}: give a list of paths, as `list(paths)`.")
        yield f"document {number}", document


def _names_a_file(text):
    """Whether a text is the path of a file, as `glob.iglob` gives them."""
    try:
        return os.path.isfile(text)
    except (OSError, ValueError):  # too long for a name, or with a NUL in it
        return False
