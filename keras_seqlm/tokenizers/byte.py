"""The byte tokenizer with its graph."""

import seqlm_runtime.tokenizers
from keras_seqlm.tokenizers.graph import graph_module, joined_tokens, valid_utf8
from keras_seqlm.tokenizers.saving import SavedTokenizer
from seqlm_runtime.tokenizers.byte import FIRST_BYTE_ID


class ByteTokenizer(SavedTokenizer, seqlm_runtime.tokenizers.ByteTokenizer):
    """Every byte of the text is the id byte + 4; any bytes come back as they were.

    260 ids, no training, and texts four to five times longer in tokens than with byte pairs.

    Example:

    >>> ByteTokenizer().encode("Hi").tolist()
    [76, 109]
    """

    @classmethod
    def train(cls, files=None, vocabulary_size=None, *, texts=None, text_field="text"):
        """The byte tokenizer; there is nothing to learn, so the arguments are not read."""
        return cls()

    def in_graph(self):
        """This tokenizer as a `tf.Module` with `tokenize` and `detokenize`."""
        return graph_module(self, _encode, lambda ids, lengths, _: valid_utf8(joined_tokens(ids, lengths, self.tokens)))


def _encode(text, _):
    import tensorflow as tf

    codes = tf.io.decode_raw(tf.strings.reduce_join(text), tf.uint8)  # (bytes of all texts,)
    return tf.cast(codes, tf.int32) + FIRST_BYTE_ID, tf.strings.length(text)
