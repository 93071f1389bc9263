"""The parts that all tokenizers in the graph share, in operations of the stock TF Serving binary.

TensorFlow is imported inside the functions: most programs that import a tokenizer never make a graph of it.
"""

from keras_seqlm.tokenizers.added_tokens_graph import with_added_tokens
from seqlm_runtime.tokenizers.code_points import BLOCK, NUM_BLOCKS


def graph_module(tokenizer, encode, detokenize, normal_form=None):
    """Joins two functions to the `tf.Module` that `in_graph()` returns.

    Args:
        tokenizer: the tokenizer, for its added tokens and its pad id.
        encode: function of (texts,) string and (texts,) bool to `(flat ids, lengths)`: (all,) and (texts,) int32. It
            sees what stands between added tokens, and whether a row begins with it.
        detokenize: function of `ids` (batch, time) int32, `lengths` (batch,) int32 and `after_text` (batch,) bool, whether
            they go on with a text (see `decode`), to a (batch,) string tensor.
        normal_form: see `with_added_tokens`.

    Returns:
        `tf.Module` with `tokenize_flat`, of a (batch,) string tensor to `(ids, lengths)`: the ids of all rows, (all,)
        int32, and how many are whose, (batch,) int32; `tokenize`, whose ids are (batch, time), padded on the right;
        `detokenize`, of `ids` and `lengths`, and `detokenize_after`, of `after_text` too, each a `tf.function`.
    """
    import tensorflow as tf

    encode = with_added_tokens(tokenizer, encode, normal_form)

    def tokenize_flat(text):
        text = text if tokenizer.keeps_bytes else valid_utf8(text)
        ids, lengths = encode(text, tf.fill([tf.size(text)], True))
        return tf.cast(ids, tf.int32), tf.cast(lengths, tf.int32)

    module = tf.Module()
    text = [tf.TensorSpec([None], tf.string, name="text")]
    module.tokenize_flat = tf.function(tokenize_flat, input_signature=text, autograph=False)
    module.tokenize = tf.function(
        lambda text: padded(*module.tokenize_flat(text), tokenizer.pad_id), input_signature=text, autograph=False
    )
    ids = [tf.TensorSpec([None, None], tf.int32, name="ids"), tf.TensorSpec([None], tf.int32, name="lengths")]
    after_text = tf.TensorSpec([None], tf.bool, name="after_text")
    module.detokenize_after = tf.function(detokenize, input_signature=[*ids, after_text], autograph=False)
    module.detokenize = tf.function(
        lambda ids, lengths: module.detokenize_after(ids, lengths, tf.fill(tf.shape(lengths), False)),
        input_signature=ids,
        autograph=False,
    )
    return module


def valid_utf8(text):
    """`text` (batch,) with U+FFFD for what is no UTF-8, exactly as `bytes.decode("utf-8", "replace")` does it."""
    import tensorflow as tf

    return tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors="replace")


def padded(flat_ids, lengths, pad_id):
    """Rows of `flat_ids` (all,) by their `lengths` (batch,), as `(ids, lengths)` of `tokenize`."""
    import tensorflow as tf

    rows = tf.RaggedTensor.from_row_lengths(flat_ids, lengths, validate=False)
    # A tokenizer without a pad id pads with 0; only `lengths` says what is text.
    return rows.to_tensor(0 if pad_id is None else pad_id), lengths


def joined_tokens(ids, lengths, tokens):
    """Joins the byte strings of each row's first `lengths` ids, without making them valid UTF-8.

    Args:
        ids: (batch, time) int32; an id out of range produces nothing, as nothing can be raised in a served graph.
        lengths: (batch,) int32.
        tokens: list of bytes by id; empty for the special ones.

    Returns:
        (batch,) string.
    """
    import tensorflow as tf

    table = tf.constant([*tokens, b""])  # the last one is for ids that do not count
    counts = tf.sequence_mask(lengths, tf.shape(ids)[1]) & (ids >= 0) & (ids < len(tokens))
    pieces = tf.gather(table, tf.where(counts, ids, len(tokens)))  # (batch, time)
    return tf.strings.reduce_join(pieces, axis=1)


def look_up(table, points):
    """The values (n,) in a two-level table of code points, as `seqlm_runtime` packs it, for `points` (n,) int32."""
    import tensorflow as tf

    blocks = tf.cast(tf.gather(table[:NUM_BLOCKS], points // BLOCK), tf.int32)
    return tf.gather(table[NUM_BLOCKS:], blocks * BLOCK + points % BLOCK)


def encode_words(tokenize, words, rows, batch):
    """The ids of all words, and how many each row of the batch has.

    Args:
        tokenize: function of (words,) string to ragged ids.
        words: (words,) string.
        rows: (words,) int32, the row of each word, ascending.
        batch: number of rows.

    Returns:
        ids: (all,) int32.
        lengths: (batch,) int32.
    """
    import tensorflow as tf

    ids = tokenize(words)  # (words, pieces), ragged
    counts = tf.cast(ids.row_lengths(), tf.int32)
    return ids.flat_values, tf.math.unsorted_segment_sum(counts, rows, batch)


def cut_words(starts, rows, end, longest):
    """Starts of words and their rows, with longer words cut into pieces of `longest`."""
    import tensorflow as tf

    ends = tf.concat([starts[1:], [end]], axis=0)[: tf.size(starts)]
    parts = tf.ragged.range(starts, ends, longest)  # (words, parts)
    return parts.flat_values, tf.repeat(rows, tf.cast(parts.row_lengths(), tf.int32))


def cut_texts(text, rows, starts_of):
    """Cuts texts before the characters that `starts_of` says.

    Args:
        text: (texts,) string.
        rows: (texts,) int32.
        starts_of: function of (characters,) code points, and whether each is the first of its text, to bool.

    Returns:
        `(words, rows)`: (words,) string and int32.
    """
    import tensorflow as tf

    points = tf.strings.unicode_decode(text, "UTF-8", errors="replace")
    flat = points.flat_values
    texts = tf.repeat(tf.range(tf.size(text)), tf.cast(points.row_lengths(), tf.int32))
    begins = tf.concat([[True], tf.not_equal(texts[1:], texts[:-1])], axis=0)[: tf.size(flat)]
    starts = starts_of(flat, begins)
    places = tf.boolean_mask(tf.range(tf.size(flat)), starts)
    words = tf.strings.unicode_encode(tf.RaggedTensor.from_row_starts(flat, places, validate=False), "UTF-8")
    return words, tf.gather(rows, tf.boolean_mask(texts, starts))
