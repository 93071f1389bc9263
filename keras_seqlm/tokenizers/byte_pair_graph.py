"""Byte-pair encoding in a TensorFlow graph: words by core operations, merges by the stock SentencePiece operation."""

from keras_seqlm.tokenizers.graph import (
    cut_words,
    encode_words,
    graph_module,
    joined_tokens,
    look_up,
    valid_utf8,
)
from keras_seqlm.tokenizers.sentence_piece_op import operation
from seqlm_runtime.tokenizers.byte_pair import BYTE_CHARACTERS, token_characters
from seqlm_runtime.tokenizers.model_proto import BPE, CONTROL, NORMAL, UNKNOWN, Model
from seqlm_runtime.tokenizers.words import APOSTROPHE, NUMBER, OTHER, OTHER_SPACE, SPACE

NO_CHARACTER = 0  # the class that stands between two rows


def byte_pair_graph(tokenizer):
    """A byte-pair tokenizer as a `tf.Module` with `tokenize` and `detokenize`."""
    import tensorflow as tf

    merge = operation(_merging_model(tokenizer))
    characters = [ord(character) for character in BYTE_CHARACTERS]

    def tokenize(text):
        starts, rows = _word_starts(text, tokenizer.classes)
        codes = tf.io.decode_raw(tf.strings.reduce_join(text), tf.uint8)  # (bytes of all rows,)
        if tokenizer.max_word_bytes is not None:
            starts, rows = cut_words(starts, rows, tf.size(codes), tokenizer.max_word_bytes)
        shown = tf.gather(characters, tf.cast(codes, tf.int32))
        words = tf.strings.unicode_encode(tf.RaggedTensor.from_row_starts(shown, starts, validate=False), "UTF-8")
        return encode_words(merge, words, rows, tf.size(text))

    def detokenize(ids, lengths):
        return valid_utf8(joined_tokens(ids, lengths, tokenizer.tokens))

    return graph_module(tokenize, detokenize, tokenizer.pad_id)


def _merging_model(tokenizer):
    """A SentencePiece model that merges as the tokenizer does and gives its ids.

    SentencePiece merges the two neighbours whose joined text has the highest score, so a token's score is minus the
    rank of its merge. What is no byte and made by no merge must never come out: as a control piece it cannot, and
    under a name with a space it equals no joined text.
    """
    ranks = {merged: rank for rank, merged in tokenizer.pairs.values()}
    single = set(tokenizer.byte_ids)
    pieces = [
        (token_characters(token), -float(ranks.get(i, 0)), NORMAL)
        if i in ranks or i in single
        else (f"control {i}", 0.0, CONTROL)
        for i, token in enumerate(tokenizer.tokens)
    ]
    pieces.append(("unknown ", 0.0, UNKNOWN))
    return Model(
        pieces, model_type=BPE, add_dummy_prefix=False, remove_extra_whitespaces=False, escape_whitespaces=False
    )


def _word_starts(text, class_table):
    """Where words start.

    Args:
        text: (batch,) string.
        class_table: two-level table of classes.

    Returns:
        starts: (words,) int32, in bytes from the start of all rows joined.
        rows: (words,) int32, the row of each word.
    """
    import tensorflow as tf

    points, offsets = tf.strings.unicode_decode_with_offsets(text, "UTF-8", errors="replace")
    lengths = tf.cast(points.row_lengths(), tf.int32)
    rows = tf.repeat(tf.range(tf.size(text)), lengths)  # (characters,)
    bytes_before = tf.cumsum(tf.strings.length(text), exclusive=True)
    positions = tf.cast(offsets.flat_values, tf.int32) + tf.gather(bytes_before, rows)
    # With a class of its own between rows, no rule below has to ask where a row ends.
    places = tf.range(tf.size(rows)) + rows
    classes = tf.scatter_nd(
        places[:, tf.newaxis],
        tf.cast(look_up(class_table, points.flat_values), tf.int32),
        [tf.size(rows) + tf.size(text)],
    )
    starts = tf.gather(_starts(classes), places)
    return tf.boolean_mask(positions, starts), tf.boolean_mask(rows, starts)


def _starts(classes):
    """Which of `classes` (n,) start a word of GPT-2's pattern; words.py of the runtime has the pattern itself."""
    import tensorflow as tf

    def neighbour(values, distance):
        """The values `distance` further on, or before where it is negative."""
        padded_values = tf.pad(values, [[3, 3]])
        return padded_values[3 + distance : 3 + distance + tf.size(values)]

    def is_class(*wanted):
        return tf.reduce_any([tf.equal(classes, one) for one in wanted], axis=0)

    def follows(first, second=None):
        """Whether these letters come next."""
        found = tf.equal(neighbour(classes, 1), ord(first))
        return found if second is None else found & tf.equal(neighbour(classes, 2), ord(second))

    none = is_class(NO_CHARACTER)
    space = is_class(SPACE, OTHER_SPACE)
    other = is_class(OTHER, APOSTROPHE)
    number = is_class(NUMBER)
    kinds = tf.where(none, 0, tf.where(space, 1, tf.where(other, 2, tf.where(number, 3, 4))))
    before, after = neighbour(kinds, -1), neighbour(kinds, 1)
    after_plain_space = tf.equal(neighbour(classes, -1), SPACE)
    # An apostrophe after a plain space or another sign belongs to the word that starts there.
    free = is_class(APOSTROPHE) & ~after_plain_space & tf.not_equal(before, 2)
    short = free & (follows("s") | follows("t") | follows("m") | follows("d"))
    long = free & (follows("r", "e") | follows("v", "e") | follows("l", "l"))
    inside = neighbour(short | long, -1) | neighbour(long, -2)
    behind = neighbour(short, -2) | neighbour(long, -3)
    space_starts = tf.not_equal(before, 1) | tf.greater(after, 1)
    after_space = tf.equal(before, 1)
    sign_starts = tf.where(after_space, ~after_plain_space, (tf.not_equal(before, kinds) & ~inside) | behind)
    return tf.where(space, space_starts, sign_starts & ~none)
