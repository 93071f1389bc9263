"""The SentencePiece operation of tensorflow-text, as the byte-pair and the sentence-piece tokenizers use it."""

from seqlm_runtime.tokenizers.model_proto import serialize_model


def operation(model, out_type=None):
    """A function of a (words,) string tensor to ragged ids for a `Model`, or to pieces where `out_type` is `tf.string`.

    The model is vetted first: on some damaged ones tensorflow-text ends the process.

    Raises:
        ValueError: SentencePiece refuses the model.
    """
    import sentencepiece
    import tensorflow as tf
    import tensorflow_text

    data = serialize_model(model)
    try:
        sentencepiece.SentencePieceProcessor(model_proto=data)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"SentencePiece refuses the model of this tokenizer: {error}.") from error

    def tokenize(words):
        # Made in the graph that uses it, the operation belongs to that graph. Made outside, it would be gone after any
        # `keras.utils.set_random_seed`, which clears TensorFlow's caches and with them what an eager operation owns.
        return tensorflow_text.SentencepieceTokenizer(model=data, out_type=out_type or tf.int32).tokenize(words)

    return tokenize
