"""The SentencePiece operation of tensorflow-text, as the byte-pair and the sentence-piece tokenizers use it."""

import dataclasses
import struct

from seqlm_runtime.tokenizers.model_proto import serialize_model

# A charsmap that maps nothing, for without one SentencePiece writes a line to the log of a server for every model that it
# loads. It is a double-array trie (Yata's darts-clone): the root's child for a byte is the unit at 96 exclusive or the
# byte, if that unit has the byte as its label, and here none has. No replacements follow, but the end of one.
_ROOT, _PLACE = 96 << 10, 96
_NOTHING_MAPPED = struct.pack("<257I", 4 * 256, _ROOT, *(int(i ^ _PLACE != 1) for i in range(1, 256))) + b"\0"


def operation(model, out_type=None):
    """A function of a (words,) string tensor to ragged ids for a `Model`, or to pieces where `out_type` is `tf.string`.

    The model is vetted first: on some damaged ones tensorflow-text ends the process.

    Raises:
        ValueError: SentencePiece refuses the model.
    """
    import sentencepiece
    import tensorflow as tf
    import tensorflow_text

    data = serialize_model(model if model.charsmap else dataclasses.replace(model, charsmap=_NOTHING_MAPPED))
    try:
        sentencepiece.SentencePieceProcessor(model_proto=data)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"SentencePiece refuses the model of this tokenizer: {error}.") from error

    def tokenize(words):
        # Made in the graph that uses it, the operation belongs to that graph. Made outside, it would be gone after any
        # `keras.utils.set_random_seed`, which clears TensorFlow's caches and with them what an eager operation owns.
        return tensorflow_text.SentencepieceTokenizer(model=data, out_type=out_type or tf.int32).tokenize(words)

    return tokenize
