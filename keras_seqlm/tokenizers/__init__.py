"""Tokenizers: training and the graph, on top of the encoders of `seqlm_runtime`."""

from keras_seqlm.tokenizers.byte import ByteTokenizer
from keras_seqlm.tokenizers.byte_pair import BytePairTokenizer
from keras_seqlm.tokenizers.character import CharacterTokenizer
from keras_seqlm.tokenizers.huggingface import from_huggingface
from keras_seqlm.tokenizers.sentence_piece import SentencePieceTokenizer
from keras_seqlm.tokenizers.word_piece import WordPieceTokenizer
from seqlm_runtime.tokenizers.chat import CHAT_TEMPLATES, ChatTemplate
from seqlm_runtime.tokenizers.tokenizer import load_as

__all__ = [
    "BytePairTokenizer",
    "ByteTokenizer",
    "CHAT_TEMPLATES",
    "CharacterTokenizer",
    "ChatTemplate",
    "SentencePieceTokenizer",
    "WordPieceTokenizer",
    "from_huggingface",
    "load",
]

_CLASSES = {
    cls.type: cls
    for cls in (ByteTokenizer, CharacterTokenizer, BytePairTokenizer, WordPieceTokenizer, SentencePieceTokenizer)
}


def load(folder):
    """Reads the tokenizer in `folder`, of whichever type its `seqlm_tokenizer.json` says.

    Raises:
        FileNotFoundError: the folder, or a file in it, is missing.
        ValueError: a file does not hold what it should.

    Example:

    >>> tokenizer = ByteTokenizer.train()
    >>> tokenizer.save("runs/example/tokenizer")  # doctest: +SKIP
    >>> load("runs/example/tokenizer").hash == tokenizer.hash  # doctest: +SKIP
    True
    """
    return load_as(folder, _CLASSES)
