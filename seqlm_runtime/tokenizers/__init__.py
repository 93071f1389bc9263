"""Encode and decode of every tokenizer, from the files of its folder, with numpy and the standard library."""

from seqlm_runtime.tokenizers.byte import ByteTokenizer
from seqlm_runtime.tokenizers.byte_pair import BytePairTokenizer
from seqlm_runtime.tokenizers.character import CharacterTokenizer
from seqlm_runtime.tokenizers.chat import CHAT_TEMPLATES, ChatTemplate
from seqlm_runtime.tokenizers.sentence_piece import SentencePieceTokenizer
from seqlm_runtime.tokenizers.tokenizer import Tokenizer, load_as
from seqlm_runtime.tokenizers.word_piece import WordPieceTokenizer

__all__ = [
    "BytePairTokenizer",
    "ByteTokenizer",
    "CHAT_TEMPLATES",
    "CharacterTokenizer",
    "ChatTemplate",
    "Tokenizer",
    "SentencePieceTokenizer",
    "WordPieceTokenizer",
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
    """
    return load_as(folder, _CLASSES)
