"""WordPiece in a TensorFlow graph: normal forms and words by core operations, pieces by FastWordpieceTokenizer."""

from keras_seqlm.tokenizers.graph import encode_words, graph_module, joined_tokens, look_up, valid_utf8
from seqlm_runtime.tokenizers.word_piece import CONTINUATION

SAME_POINT = -1  # stands for the code point itself among those that it becomes
SPACE_POINT = ord(" ")


def word_piece_graph(tokenizer):
    """A word-piece tokenizer as a `tf.Module` with `tokenize` and `detokenize`."""
    import tensorflow as tf
    import tensorflow_text

    specials = set(tokenizer.special_ids.values())
    # No word holds a space, so no text becomes a special id, save a word that is too long and is replaced.
    vocabulary = [f"special {i}" if i in specials or not line else line for i, line in enumerate(tokenizer.lines)]
    too_long_word = vocabulary[tokenizer.unk_id]
    matcher = tensorflow_text.FastWordpieceTokenizer(
        vocab=vocabulary,
        unknown_token=vocabulary[tokenizer.unk_id],
        token_out_type=tf.int32,
        max_bytes_per_word=1 << 20,
        no_pretokenization=True,
    )
    piece_sizes = tf.constant([len(line.removeprefix(CONTINUATION)) for line in tokenizer.lines], tf.int32)
    same, space, apart, nothing = [SAME_POINT], [SPACE_POINT], [SPACE_POINT, SAME_POINT, SPACE_POINT], []
    more = [[ord(character) for character in form] for form in tokenizer.forms]
    sought = [[ord(character) for character in form.strip(" ")] for form in tokenizer.forms]

    def normal_form(text):
        points, rows, _ = _normal_points(text, tokenizer.form_table, [same, space, same, nothing, *sought])
        size = tf.size(text, tf.int64)
        by_row = tf.RaggedTensor.from_value_rowids(points, tf.cast(rows, tf.int64), size, validate=False)
        return tf.strings.unicode_encode(by_row, "UTF-8")

    def words_of(text):
        points, rows, sources = _normal_points(text, tokenizer.form_table, [same, space, apart, nothing, *more])
        is_word = tf.not_equal(points, SPACE_POINT)
        before_is_word = tf.concat([[False], is_word[:-1] & tf.equal(rows[1:], rows[:-1])], axis=0)[: tf.size(points)]
        starts = is_word & ~before_is_word
        places = tf.cumsum(tf.cast(is_word, tf.int32), exclusive=True)
        words = tf.RaggedTensor.from_row_starts(
            tf.boolean_mask(points, is_word), tf.boolean_mask(places, starts), validate=False
        )
        sizes = tf.cast(words.row_lengths(), tf.int32)
        words = tf.where(
            sizes > tokenizer.max_word_characters, too_long_word, tf.strings.unicode_encode(words, "UTF-8")
        )
        return words, tf.boolean_mask(rows, starts), sizes, tf.boolean_mask(sources, is_word)

    def encode(text, _):
        words, rows, _, _ = words_of(text)
        return encode_words(matcher.tokenize, words, rows, tf.size(text))

    def tokenize_spans(text):
        """See `spans_graph`: of each piece its size, of an unknown word the word's."""
        words, rows, sizes, sources = words_of(valid_utf8(text))
        ids = matcher.tokenize(words)
        counts = tf.cast(ids.row_lengths(), tf.int32)
        flat = tf.cast(ids.flat_values, tf.int32)
        size = tf.where(tf.equal(flat, tokenizer.unk_id), tf.repeat(sizes, counts), tf.gather(piece_sizes, flat))
        ends = tf.cumsum(size)  # the pieces of a word are all of it, and the words all of what is no space
        lengths = tf.math.unsorted_segment_sum(counts, rows, tf.size(text))
        return flat, lengths, tf.gather(sources, ends - size), tf.gather(sources, ends - 1) + 1

    def detokenize(ids, lengths, after_text):
        text = joined_tokens(ids, lengths, tokenizer.shown)
        return tf.where(after_text, text, tf.strings.regex_replace(text, "^ ", ""))

    module = graph_module(tokenizer, encode, detokenize, normal_form)
    module.tokenize_spans = None if tokenizer.added_tokens else tokenize_spans
    return module


def _normal_points(text, table, forms):
    """The code points of all rows of `text` (batch,) after normalisation, the row of each, and what it was made of: the place
    of a code point in its text."""
    import tensorflow as tf

    points = tf.strings.unicode_decode(text, "UTF-8", errors="replace")
    rows = tf.repeat(tf.range(tf.size(text)), tf.cast(points.row_lengths(), tf.int32))
    values = tf.cast(look_up(table, points.flat_values), tf.int32)
    flat = tf.constant([point for form in forms for point in form], tf.int32)
    sizes = tf.constant([len(form) for form in forms], tf.int32)
    form_rows = tf.RaggedTensor.from_row_lengths(flat, sizes, validate=False)
    became = tf.gather(form_rows, values)  # (characters, 0 to several)
    lengths = tf.cast(became.row_lengths(), tf.int32)
    own = tf.repeat(points.flat_values, lengths)
    first = tf.cumsum(tf.cast(points.row_lengths(), tf.int32), exclusive=True)
    sources = tf.repeat(tf.range(tf.size(rows)) - tf.gather(first, rows), lengths)
    return (
        tf.where(tf.equal(became.flat_values, SAME_POINT), own, became.flat_values),
        tf.repeat(rows, lengths),
        sources,
    )
