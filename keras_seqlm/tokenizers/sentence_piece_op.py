"""The SentencePiece operation of tensorflow-text, as the byte-pair and the sentence-piece tokenizers use it."""

from seqlm_runtime.tokenizers.model_proto import serialize_model


def operation(model):
    """The operation for a `Model`, vetted first: on some damaged models tensorflow-text ends the process."""
    import sentencepiece
    import tensorflow_text

    data = serialize_model(model)
    try:
        sentencepiece.SentencePieceProcessor(model_proto=data)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"SentencePiece refuses the model of this tokenizer: {error}.") from error
    import tensorflow as tf

    return tensorflow_text.SentencepieceTokenizer(model=data, out_type=tf.int32)
