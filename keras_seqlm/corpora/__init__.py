"""Text wherever it lies: files found, unpacked, decoded and read as a stream of documents; tokenizers and data read through it."""

from keras_seqlm.corpora.corpus import Corpus, texts
from keras_seqlm.corpora.rows import Rows

__all__ = ["Corpus", "Rows", "texts"]
