"""Added tokens in a TensorFlow graph: found in the bytes of the text by core operations, before anything else."""

from keras_seqlm.tokenizers.string_table import StringTable
from seqlm_runtime.tokenizers.added_tokens import WHITE_SPACE

NO_TOKEN = -1
MAX_ROUNDS = 32  # of doubling: more matches than a tensor has places


def with_added_tokens(tokenizer, encode, normal_form=None):
    """`encode` that gives each added token of `tokenizer` as its id and encodes what stands between them.

    Args:
        tokenizer: a tokenizer of the runtime.
        encode: function of (texts,) string, and (texts,) bool that says which of them a row begins with, to
            `(flat ids, lengths)`: (all,) and (texts,) int32.
        normal_form: function of (texts,) string to the form in which `normalized` tokens are looked for, where there is one.

    Returns:
        A function of the same form; `encode` itself where there are no added tokens.
    """
    import tensorflow as tf

    phases = tokenizer.added_tokens.phases
    if not phases:
        return encode

    def encode_all(text, _):
        rows = tf.range(tf.size(text))
        pieces, ids = text, tf.fill([tf.size(text)], NO_TOKEN)
        for number, phase in enumerate(phases, 1):
            if tokenizer.added_tokens.normal is not None and number == len(phases):
                pieces = tf.where(tf.equal(ids, NO_TOKEN), normal_form(pieces), pieces)
                is_left = tf.strings.length(pieces) > 0
                pieces, ids, rows = (tf.boolean_mask(values, is_left) for values in (pieces, ids, rows))
            pieces, ids, places = _split(pieces, ids, phase)
            rows = tf.gather(rows, places)
        is_token = tf.not_equal(ids, NO_TOKEN)
        first = tf.not_equal(tf.concat([[-1], rows[:-1]], axis=0)[: tf.size(rows)], rows)
        flat_ids, lengths = encode(tf.where(is_token, "", pieces), first)
        encoded = tf.RaggedTensor.from_row_lengths(tf.cast(flat_ids, tf.int32), lengths, validate=False)
        # Each piece has ids of its text or is one token, never both.
        tokens = tf.RaggedTensor.from_row_lengths(
            tf.boolean_mask(ids, is_token), tf.cast(is_token, tf.int32), validate=False
        )
        both = tf.concat([encoded, tokens], axis=1)
        return both.flat_values, tf.math.unsorted_segment_sum(
            tf.cast(both.row_lengths(), tf.int32), rows, tf.size(text)
        )

    return encode_all


def _split(pieces, ids, entries):
    """Splits at the tokens of `entries`.

    Returns:
        pieces: (more,) string, none of them empty.
        ids: (more,) int32, the id of the token or `NO_TOKEN`.
        places: (more,) int32, the piece that each is a part of.
    """
    import tensorflow as tf

    codes = tf.cast(tf.io.decode_raw(tf.strings.reduce_join(pieces), tf.uint8), tf.int32)  # (bytes of all pieces,)
    sizes = tf.strings.length(pieces)
    ends = tf.cumsum(sizes)
    # What is a token already is not looked into: a match that starts there does not count.
    starts, lengths, found = _matches(codes, tf.repeat(ends, sizes), entries)
    piece_of = tf.searchsorted(ends, starts, side="right")
    open_to_search = tf.equal(tf.gather(ids, piece_of), NO_TOKEN)
    starts, lengths, found = (tf.boolean_mask(values, open_to_search) for values in (starts, lengths, found))
    taken = _taken(starts, starts + lengths)
    starts, lengths, found = (tf.boolean_mask(values, taken) for values in (starts, lengths, found))
    # Borders: where pieces start, where tokens start and where they end.
    borders = tf.unique(tf.sort(tf.concat([ends - sizes, starts, starts + lengths, tf.zeros([1], tf.int32)], axis=0)))[
        0
    ]
    borders = tf.boolean_mask(borders, borders < tf.size(codes))
    places = tf.searchsorted(ends, borders, side="right")
    texts = tf.strings.reduce_join(
        tf.gather(_byte_strings(), tf.RaggedTensor.from_row_starts(codes, borders, validate=False)), axis=1
    )
    marks = tf.tensor_scatter_nd_update(
        tf.fill([tf.size(codes) + 1], NO_TOKEN), starts[:, tf.newaxis], tf.gather([e["id"] for e in entries], found)
    )
    new_ids = tf.gather(marks, borders)
    new_ids = tf.where(tf.equal(new_ids, NO_TOKEN), tf.gather(ids, places), new_ids)
    if any(entry["lstrip"] or entry["rstrip"] for entry in entries):
        texts = _without_space(texts, new_ids, places, entries)
        keep = tf.strings.length(texts) > 0
        texts, new_ids, places = (tf.boolean_mask(values, keep) for values in (texts, new_ids, places))
    return texts, new_ids, places


def _byte_strings():
    import tensorflow as tf

    return tf.constant([bytes([byte]) for byte in range(256)])


def _matches(codes, ends, entries):
    """Every place where a token stands, the longest one at each.

    Args:
        codes: (bytes,) int32.
        ends: (bytes,) int32, where the piece of each byte ends.
        entries: the tokens.

    Returns:
        starts, lengths, found: (matches,) int32, ascending; `found` counts in `entries`.
    """
    import tensorflow as tf

    contents = [entry["content"].encode("utf-8") for entry in entries]
    firsts = sorted({content[0] for content in contents})
    is_first = tf.constant([byte in firsts for byte in range(256)])
    candidates = tf.cast(tf.where(tf.gather(is_first, codes))[:, 0], tf.int32)
    longest = max(map(len, contents))
    # Windows of bytes, each from a candidate on; 256 stands for what is beyond the end.
    padded = tf.concat([codes, tf.fill([longest], 256)], axis=0)
    found = tf.fill([tf.size(candidates)], NO_TOKEN)
    lengths = tf.zeros([tf.size(candidates)], tf.int32)
    room = tf.gather(ends, candidates) - candidates
    for length in sorted(set(map(len, contents))):
        windows = tf.gather(padded, candidates[:, tf.newaxis] + tf.range(length))  # (candidates, length)
        shown = tf.strings.unicode_encode(windows, "UTF-8")
        these = [number for number, content in enumerate(contents) if len(content) == length]
        number = StringTable([_as_characters(contents[number]) for number in these]).find(shown)
        equal = (number >= 0) & (room >= length)
        found = tf.where(equal, tf.gather(tf.constant(these), tf.maximum(number, 0)), found)
        lengths = tf.where(equal, length, lengths)
    is_match = tf.not_equal(found, NO_TOKEN)
    return tuple(tf.boolean_mask(values, is_match) for values in (candidates, lengths, found))


def _as_characters(content):
    return content.decode("latin-1").encode("utf-8")  # a byte as the character of its number, as the windows have it


def _taken(starts, ends):
    """Which of the matches, ascending by start, count where each one excludes what begins inside it."""
    import tensorflow as tf

    count = tf.size(starts)
    jumps = tf.concat([tf.searchsorted(starts, ends), [count]], axis=0)  # the next match that can follow each
    reached = tf.concat([tf.fill([tf.minimum(count, 1)], True), tf.fill([tf.maximum(count, 1)], False)], axis=0)

    def body(number, jumps, reached):
        targets = tf.where(reached, jumps, count)
        reached = reached | (tf.math.unsorted_segment_sum(tf.cast(reached, tf.int32), targets, count + 1) > 0)
        return number + 1, tf.gather(jumps, jumps), reached

    _, _, reached = tf.while_loop(
        # After n rounds all that lie within 2 ** n jumps are reached.
        lambda number, jumps, reached: (number < MAX_ROUNDS) & tf.reduce_any(jumps[:1] < count),
        body,
        (tf.constant(0), jumps, reached),
        shape_invariants=(tf.TensorShape([]), tf.TensorShape([None]), tf.TensorShape([None])),
    )
    return reached[:count]


def _without_space(texts, ids, places, entries):
    """`texts` less the white space that the tokens beside them take along."""
    import tensorflow as tf

    def beside(values, filling, shift):
        return (
            tf.concat([values[1:], [filling]], axis=0)[: tf.size(values)]
            if shift > 0
            else tf.concat([[filling], values[:-1]], axis=0)[: tf.size(values)]
        )

    white = f"[{WHITE_SPACE}]+"
    is_text = tf.equal(ids, NO_TOKEN)
    for name, shift, pattern in (("lstrip", 1, white + r"\z"), ("rstrip", -1, r"\A" + white)):
        some = [entry["id"] for entry in entries if entry[name]]
        if some:
            neighbour, place = beside(ids, NO_TOKEN, shift), beside(places, -1, shift)
            strips = tf.reduce_any(tf.equal(neighbour[:, tf.newaxis], some), axis=1) & tf.equal(place, places) & is_text
            texts = tf.where(strips, tf.strings.regex_replace(texts, pattern, ""), texts)
    return texts
