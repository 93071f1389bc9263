"""Training text in blocks, so that a corpus never has to fit in memory; files are read as training data are."""

from keras_seqlm.corpora import texts as texts_of_files
from keras_seqlm.corpora.json_text import text_of


def text_blocks(files=None, texts=None, text_field="text"):
    """Yields the training text as bytes, in blocks of at most about a megabyte of a file, or a text each.

    Args:
        files: a path, a glob pattern, a directory or a list of these, as `corpora.Corpus` takes them: packed files,
            records of JSON and UTF-16 are read as text.
        texts: instead of files, an iterable of str or bytes, or of mappings with such a field; each one is a block.
        text_field: the field of a record that holds the text.

    Raises:
        ValueError: neither or both are given, or there is no text in them.
        FileNotFoundError: a path does not exist.
    """
    if (files is None) == (texts is None):
        raise ValueError("Expected either files (a path, a pattern or a list of them) or texts (an iterable of str).")
    if isinstance(texts, (str, bytes)):
        raise ValueError("Expected texts as an iterable of str, got one str. Write texts=[...].")
    some = False
    blocks = texts_of_files(files, text_field) if texts is None else (_utf8(text, text_field) for text in texts)
    for block in blocks:
        some = some or bool(block)
        yield block
    if not some:
        raise ValueError(f"There is no text to train on in {files if texts is None else 'texts'!r}.")


def _utf8(text, text_field):
    try:
        return text_of(text, text_field)
    except ValueError as error:
        raise ValueError(f"Expected texts of str, got {type(text).__name__}: {error}.") from error
