"""SentencePiece in a TensorFlow graph: the stock operation, word by word for models that were trained here."""

from keras_seqlm.tokenizers.graph import cut_words, encode_words, graph_module, joined_tokens, valid_utf8
from keras_seqlm.tokenizers.sentence_piece_op import operation
from seqlm_runtime.tokenizers.sentence_piece import MAX_CHUNK_CHARACTERS


def sentence_piece_graph(tokenizer):
    """A sentence-piece tokenizer as a `tf.Module` with `tokenize` and `detokenize`."""
    import tensorflow as tf

    encode = operation(tokenizer.model)

    def tokenize(text):
        if tokenizer.chunks:
            words, rows = _chunks(text)
        else:
            words, rows = valid_utf8(text), tf.range(tf.size(text))
        return encode_words(encode, words, rows, tf.size(text))

    def detokenize(ids, lengths):
        text = joined_tokens(ids, lengths, tokenizer.shown)
        if tokenizer.model.add_dummy_prefix:
            text = tf.strings.regex_replace(text, "^ ", "")
        return valid_utf8(text)

    return graph_module(tokenize, detokenize, tokenizer.pad_id)


def _chunks(text):
    """The words of all rows of `text` (batch,), each with the space before it, line feeds alone; and their rows."""
    import tensorflow as tf

    points = tf.strings.unicode_decode(text, "UTF-8", errors="replace")
    flat = points.flat_values
    rows = tf.repeat(tf.range(tf.size(text)), tf.cast(points.row_lengths(), tf.int32))
    line_feed = tf.equal(flat, ord("\n"))
    begins = tf.concat([[True], line_feed[:-1] | tf.not_equal(rows[1:], rows[:-1])], axis=0)[: tf.size(flat)]
    starts = tf.equal(flat, ord(" ")) | line_feed | begins
    places = tf.range(tf.size(flat))
    places, rows = cut_words(
        tf.boolean_mask(places, starts), tf.boolean_mask(rows, starts), tf.size(flat), MAX_CHUNK_CHARACTERS
    )
    return tf.strings.unicode_encode(tf.RaggedTensor.from_row_starts(flat, places, validate=False), "UTF-8"), rows
