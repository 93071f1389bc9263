"""Where in a text each id stands, in a TensorFlow graph: `encode_with_offsets` for a batch, in core operations."""

import numpy as np

from seqlm_runtime.tokenizers.model_proto import BYTE

_INSIDE = range(0x80, 0xC0)  # bytes that go on with a character of UTF-8


def spans_in_graph(tokenizer, graph):
    """A function of texts to ids and their places.

    Args:
        tokenizer: the tokenizer.
        graph: its `in_graph()`.

    Returns:
        A function of (batch,) string to ids (all,), lengths (batch,), starts and ends (all,), int32, in code points of each
        text with U+FFFD for what is no UTF-8.

    Raises:
        ValueError: a tokenizer that changes texts so that places are not those of what its ids stand for.
    """
    import tensorflow as tf

    if getattr(graph, "tokenize_spans", None) is not None:
        return graph.tokenize_spans
    of_bytes, sizes, continues = _sizes(tokenizer)
    sizes, continues = tf.constant(sizes, tf.int32), tf.constant(continues, tf.int32)

    def tokenize(text):
        ids, lengths = graph.tokenize_flat(text)
        rows = tf.repeat(tf.range(tf.size(text)), lengths)
        count = tf.gather(sizes, ids)
        ends = tf.cumsum(count)  # from the beginning of all rows
        starts = ends - count - tf.gather(continues, ids)
        if of_bytes:
            points, offsets = tf.strings.unicode_decode_with_offsets(text, "UTF-8", errors="replace")
            before = tf.cumsum(tf.strings.length(text), exclusive=True)
            characters = tf.cast(points.row_lengths(), tf.int32)
            places = tf.cast(offsets.flat_values, tf.int32) + tf.repeat(before, characters)
            first = tf.gather(tf.cumsum(characters, exclusive=True), rows)
            starts = tf.searchsorted(places, starts, side="right") - 1 - first
            ends = tf.searchsorted(places, ends - 1, side="right") - first
        else:
            first = tf.gather(tf.cumsum(tf.math.unsorted_segment_sum(count, rows, tf.size(text)), exclusive=True), rows)
            starts, ends = starts - first, ends - first
        return ids, lengths, starts, ends

    return tokenize


def _sizes(tokenizer):
    """Whether places are counted in bytes; of each id how many bytes or characters it stands for; and where it stands for
    none of its own, as the second byte of a character does, by how many it goes back."""
    if any(entry["lstrip"] or entry["rstrip"] for entry in tokenizer.added_tokens.entries):
        _refuse(tokenizer, "its added tokens take the space beside them along")
    if tokenizer.added_tokens.normal is not None:
        _refuse(tokenizer, "its added tokens are looked for in another form of the text")
    added = {entry["id"]: entry["content"] for entry in tokenizer.added_tokens.entries}
    size = tokenizer.vocabulary_size
    sizes, continues = np.ones(size, "int32"), np.zeros(size, "int32")
    if tokenizer.type in ("byte", "byte_pair"):
        if tokenizer.type == "byte_pair":
            if tokenizer.nfc is not None or tokenizer.trim_offsets or tokenizer.add_prefix_space:
                _refuse(tokenizer, "it changes the text, or the places that it gives")
            sizes[:] = [len(token) for token in tokenizer.tokens]
        for i, content in added.items():
            sizes[i] = len(content.encode())
        return True, sizes, continues
    if tokenizer.type == "sentence_piece":
        if not getattr(tokenizer, "chunks", False):
            _refuse(tokenizer, "it changes the text; one that keras_seqlm has trained does not")
        for i, (text, _, kind) in enumerate(tokenizer.model.pieces):
            sizes[i] = len(text)
            if kind == BYTE:
                inside = int(text[3:5], 16) in _INSIDE
                sizes[i], continues[i] = (0, 1) if inside else (1, 0)
    elif tokenizer.type != "character":
        _refuse(tokenizer, "it has added tokens")
    for i, content in added.items():
        sizes[i], continues[i] = len(content), 0
    return False, sizes, continues


def _refuse(tokenizer, why):
    raise ValueError(
        f"a {tokenizer.type} tokenizer cannot say in a served graph where its ids stand: {why}. Export to LiteRT, where Python "
        "says it, or train with another tokenizer, as byte pairs"
    )
