"""Byte-pair encoding in a TensorFlow graph: words by core operations, merges by the stock SentencePiece operation."""

from keras_seqlm.tokenizers.graph import (
    cut_texts,
    cut_words,
    encode_words,
    graph_module,
    joined_tokens,
    look_up,
    valid_utf8,
)
from keras_seqlm.tokenizers.sentence_piece_op import operation
from keras_seqlm.tokenizers.string_table import StringTable
from keras_seqlm.tokenizers.word_starts_graph import word_starts
from seqlm_runtime.tokenizers.byte_pair import BYTE_CHARACTERS, token_characters
from seqlm_runtime.tokenizers.model_proto import BPE, CONTROL, NORMAL, UNKNOWN, Model


def byte_pair_graph(tokenizer):
    """A byte-pair tokenizer as a `tf.Module` with `tokenize` and `detokenize`."""
    import tensorflow as tf

    made = {i for i in _merged(tokenizer) if tokenizer.encode_symbols(tokenizer.tokens[i]) == [i]}
    merge = operation(_merging_model(tokenizer, made))
    characters = [ord(character) for character in BYTE_CHARACTERS]
    whole = _whole_words(tokenizer, made) if tokenizer.ignore_merges else {}
    table = StringTable([_shown(token) for token in whole]) if whole else None

    def normal_form(text):
        return text if tokenizer.nfc is None else _normal_form(text, tokenizer.nfc.table)

    def encode(text, _):
        text = normal_form(text)
        if tokenizer.add_prefix_space:
            bare = (tf.strings.length(text) > 0) & tf.not_equal(tf.strings.substr(text, 0, 1), " ")
            text = tf.where(bare, " " + text, text)
        starts, rows = _word_starts(text, tokenizer.classes, tokenizer.split)
        codes = tf.io.decode_raw(tf.strings.reduce_join(text), tf.uint8)  # (bytes of all rows,)
        if tokenizer.max_word_bytes is not None:
            starts, rows = cut_words(starts, rows, tf.size(codes), tokenizer.max_word_bytes)
        shown = tf.gather(characters, tf.cast(codes, tf.int32))
        words = tf.strings.unicode_encode(tf.RaggedTensor.from_row_starts(shown, starts, validate=False), "UTF-8")
        return encode_words(encode_known if table else merge, words, rows, tf.size(text))

    def encode_known(words):
        """The ids of words, those that are a token whatever the merges say as that token."""
        numbers = table.find(words)
        known = numbers >= 0
        tokens = tf.RaggedTensor.from_row_lengths(
            tf.gather(list(whole.values()), tf.boolean_mask(numbers, known)), tf.cast(known, tf.int32), validate=False
        )
        merged = merge(tf.where(known, "", words)).with_row_splits_dtype(tf.int32)
        return tf.concat([merged, tokens], axis=1)

    def detokenize(ids, lengths, _):
        return valid_utf8(joined_tokens(ids, lengths, tokenizer.tokens))

    return graph_module(tokenizer, encode, detokenize, normal_form)


def _normal_form(text, table):
    """Texts (n,) in normal form C between the characters that `table` sets apart."""
    import tensorflow as tf
    import tensorflow_text

    def starts_of(points, begins):
        apart = look_up(table, points) > 0
        return apart | begins | tf.concat([[False], apart[:-1]], axis=0)[: tf.size(points)]

    parts, rows = cut_texts(text, tf.range(tf.size(text)), starts_of)
    first = tf.strings.unicode_decode(tf.strings.substr(parts, 0, 1, unit="UTF8_CHAR"), "UTF-8").flat_values
    apart = look_up(table, first) > 0
    parts = tf.where(apart, parts, tensorflow_text.normalize_utf8(parts, "NFC"))
    joined = tf.RaggedTensor.from_value_rowids(parts, tf.cast(rows, tf.int64), tf.size(text, tf.int64), validate=False)
    return tf.strings.reduce_join(joined, axis=1)


def _shown(token):
    return token_characters(token).encode("utf-8")


def _merged(tokenizer):
    """The ids that some merge makes."""
    return {merged for _, merged in tokenizer.pairs.values()}


def _whole_words(tokenizer, made):
    """dict of the bytes of a token to its id, for all that merging does not make of their bytes."""
    known = {*made, *tokenizer.byte_ids}
    tokens = ((i, token) for i, token in enumerate(tokenizer.tokens) if i not in known and token)
    return {token: i for i, token in tokens if tokenizer.token_id(token) == i}


def _merging_model(tokenizer, made):
    """A SentencePiece model that merges as the tokenizer does and gives its ids.

    SentencePiece merges the two neighbours whose joined text has the highest score. The tokenizer merges pairs by rank,
    and of the bytes of a token always the same two become it, if any: those that become it where it stands alone,
    since what is around it decided nothing so far. So a token's score is minus the rank of that pair. A token that does
    not come of its own bytes never comes at all; it must not here, nor must what no merge makes: as a control piece
    it cannot, and under a name with a space it equals no joined text.

    Args:
        tokenizer: the tokenizer.
        made: set of the ids that come of their own bytes.
    """
    ranks = {i: tokenizer.last_rank(tokenizer.tokens[i]) for i in made}
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


def _word_starts(text, class_table, split):
    """Where words start.

    Args:
        text: (batch,) string.
        class_table: two-level table of classes.
        split: the name of the pattern.

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
    starts = tf.gather(word_starts(classes, split), places)
    return tf.boolean_mask(positions, starts), tf.boolean_mask(rows, starts)
