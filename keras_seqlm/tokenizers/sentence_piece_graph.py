"""SentencePiece in a TensorFlow graph: the stock operation, word by word where the text is cut into words first."""

import dataclasses

from keras_seqlm.tokenizers.graph import cut_texts, cut_words, encode_words, graph_module, joined_tokens, valid_utf8
from keras_seqlm.tokenizers.sentence_piece_op import operation
from seqlm_runtime.tokenizers.added_tokens import WHITE_SPACE
from seqlm_runtime.tokenizers.model_proto import BPE, CONTROL, NORMAL, UNKNOWN, UNUSED, Model
from seqlm_runtime.tokenizers.sentence_piece import MAX_CHUNK_CHARACTERS, SPACE_MARK


def sentence_piece_graph(tokenizer):
    """A sentence-piece tokenizer as a `tf.Module` with `tokenize` and `detokenize`."""
    import tensorflow as tf

    encode = operation(_model_of_operation(tokenizer))
    words_of = _words_of_steps(tokenizer) if tokenizer.steps else None

    def encode_texts(text, first):
        if words_of is not None:
            words, rows = words_of(text, first)
        else:
            words, rows = _chunks(text) if tokenizer.chunks else (text, tf.range(tf.size(text)))
        return encode_words(encode, words, rows, tf.size(text))

    def detokenize(ids, lengths, after_text):
        text = joined_tokens(ids, lengths, tokenizer.shown)
        if tokenizer.chunks:  # a mark that was written in bytes, for want of a piece
            text = tf.strings.regex_replace(text, SPACE_MARK, " ")
        if tokenizer.drops_first_space:
            text = tf.where(after_text, text, tf.strings.regex_replace(text, "^ ", ""))
        return valid_utf8(text)

    return graph_module(tokenizer, encode_texts, detokenize)


def _model_of_operation(tokenizer):
    """The model as the operation gets it: with the scores that count, and nothing of what never comes."""
    model = tokenizer.model
    if tokenizer.steps is None:
        return model
    steps = tokenizer.score_steps
    pieces = [(text, round(score * steps) / steps if steps else score, kind) for text, score, kind in model.pieces]
    if model.model_type == BPE:
        # A piece that its own characters do not merge to never comes; under this name it equals no joined text.
        pieces = [
            (f"control {i}", 0.0, CONTROL) if kind == UNUSED else (text, score, kind)
            for i, (text, score, kind) in enumerate(pieces)
        ]
    return dataclasses.replace(model, pieces=pieces, charsmap=b"")


def _words_of_steps(tokenizer):
    """A function of texts and whether each begins a row to `(words, rows)`; see the runtime's normalization.py."""
    import tensorflow as tf

    steps = tokenizer.steps
    replaced_by_map = _charsmap(tokenizer.model.charsmap) if ["charsmap"] in steps.steps else None

    def change(step, text):
        name, *arguments = step
        if name == "charsmap":
            return replaced_by_map(text)
        if name == "prepend":
            return tf.where(tf.strings.length(text) > 0, arguments[0] + text, text)
        if name == "strip":
            left, right = (f"[{WHITE_SPACE}]+" if side else "" for side in arguments)
        elif name == "trim":
            left = right = " +"
        else:
            old = " {2,}" if name == "collapse" else _quoted(arguments[0])
            return tf.strings.regex_replace(text, old, arguments[-1].replace("\\", "\\\\"))
        text = tf.strings.regex_replace(text, rf"\A{left}", "") if left else text
        return tf.strings.regex_replace(text, rf"{right}\z", "") if right else text

    def words_of(text, first):
        rows = tf.range(tf.size(text))
        for step in steps.steps:
            if step[0] not in ("white_space", "metaspace"):
                text = change(step, text)
        if steps.cuts_at_white_space:
            text, rows = cut_texts(text, rows, _white_space_starts)
            text = tf.strings.regex_replace(text, f"[{WHITE_SPACE}]+", "")
        if steps.scheme is not None:
            text = tf.strings.regex_replace(text, " ", SPACE_MARK)
            mark = SPACE_MARK.encode("utf-8")
            bare = (tf.strings.length(text) > 0) & tf.not_equal(tf.strings.substr(text, 0, len(mark)), mark)
            wanted = {"always": bare, "first": bare & tf.gather(first, rows), "never": tf.zeros_like(bare)}
            text = tf.where(wanted[steps.scheme], SPACE_MARK + text, text)
        return cut_texts(text, rows, _mark_starts) if steps.splits_words else (text, rows)

    return words_of


def _charsmap(charsmap):
    """A function of texts to texts with the replacements of a character map made, by the stock operation.

    A model that knows no piece gives back what it normalised.
    """
    import tensorflow as tf

    pieces = [("<unk>", 0.0, UNKNOWN), ("no text \x01", 0.0, NORMAL)]
    normalize = operation(
        Model(
            pieces,
            charsmap=charsmap,
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            escape_whitespaces=False,
        ),
        tf.string,
    )
    return lambda text: tf.strings.reduce_join(normalize(text), axis=1)


def _quoted(text):
    return "".join(character if character.isalnum() else rf"\x{{{ord(character):x}}}" for character in text)


def _mark_starts(points, begins):
    return (points == ord(SPACE_MARK)) | begins


def _white_space_starts(points, begins):
    """Where words begin, the white space before each one included."""
    import tensorflow as tf

    white = tf.reduce_any(tf.equal(points[:, tf.newaxis], list(map(ord, WHITE_SPACE))), axis=1)
    return (white & ~tf.concat([[False], white[:-1]], axis=0)[: tf.size(white)]) | begins


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
