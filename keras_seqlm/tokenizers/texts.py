"""Training text in blocks, so that a corpus never has to fit in memory."""

import glob
import os
import pathlib

BLOCK_BYTES = 1 << 20


def text_blocks(files=None, texts=None):
    """Yields the training text as bytes, in blocks of about a megabyte that end at a line where there is one.

    Args:
        files: a path, a glob pattern or a list of them.
        texts: instead of files, an iterable of str or bytes; each one is a block.

    Raises:
        ValueError: neither or both are given, or there is no text in them.
        FileNotFoundError: a path does not exist or a pattern matches nothing.
    """
    if (files is None) == (texts is None):
        raise ValueError("Expected either files (a path, a pattern or a list of them) or texts (an iterable of str).")
    if isinstance(texts, (str, bytes)):
        raise ValueError("Expected texts as an iterable of str, got one str. Write texts=[...].")
    some = False
    for block in _file_blocks(files) if texts is None else (_utf8(text) for text in texts):
        some = some or bool(block)
        yield block
    if not some:
        raise ValueError(f"There is no text to train on in {files if texts is None else 'texts'!r}.")


def training_paths(files):
    """The sorted paths of `files`, a path, a glob pattern or a list of them."""
    paths = set()
    for item in [files] if isinstance(files, (str, os.PathLike)) else files:
        path = pathlib.Path(item)
        if path.is_file():
            paths.add(path)
        else:
            found = [pathlib.Path(name) for name in glob.glob(str(item), recursive=True) if os.path.isfile(name)]
            if not found:
                raise FileNotFoundError(f"There is no file {str(item)!r} and nothing matches it as a pattern.")
            paths.update(found)
    return sorted(paths)


def _file_blocks(files):
    for path in training_paths(files):
        with open(path, "rb") as file:
            rest = b""
            while data := file.read(BLOCK_BYTES):
                data = rest + data
                end = _last_border(data)
                yield data[:end]
                rest = data[end:]
            if rest:
                yield rest


def _last_border(data):
    """Where `data` can end without cutting a line, else a word, else a character."""
    for mark in (b"\n", b" "):
        end = data.rfind(mark) + (mark == b"\n")  # a space belongs to the word after it
        if end > 0:
            return end
    end = len(data)
    while end > len(data) - 4 and data[end - 1] & 0xC0 == 0x80:
        end -= 1
    return end - 1 if data[end - 1] >= 0xC0 and end > 1 else len(data)


def _utf8(text):
    if isinstance(text, str):
        return text.encode("utf-8", "replace")
    if isinstance(text, bytes):
        return text
    raise ValueError(f"Expected texts of str, got {type(text).__name__}.")
