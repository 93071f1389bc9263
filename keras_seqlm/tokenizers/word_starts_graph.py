"""Where words start, in a TensorFlow graph: the patterns of the runtime's words.py as rules for each character."""

from seqlm_runtime.tokenizers.words import APOSTROPHE, LINE_END, NUMBER, OTHER, OTHER_SPACE, SPACE

NO_CHARACTER = 0  # the class that stands between two rows
_NONE, _SPACE, _SIGN, _NUMBER, _LETTER = range(5)


def word_starts(classes, split):
    """Which of `classes` (n,) int32 start a word of the pattern that `split` names; rows have `NO_CHARACTER` between."""
    return _gpt2_starts(classes) if split == "gpt2" else _llama3_starts(classes, 3 if split == "llama3" else 1)


def _neighbour(values, distance):
    """The values `distance` further on, or before where it is negative."""
    import tensorflow as tf

    padded = tf.pad(values, [[3, 3]])
    return padded[3 + distance : 3 + distance + tf.size(values)]


def _is_class(classes, *wanted):
    import tensorflow as tf

    return tf.reduce_any([tf.equal(classes, one) for one in wanted], axis=0)


def _kinds(classes):
    import tensorflow as tf

    kinds = tf.where(_is_class(classes, NUMBER), _NUMBER, _LETTER)
    kinds = tf.where(_is_class(classes, OTHER, APOSTROPHE), _SIGN, kinds)
    kinds = tf.where(_is_class(classes, SPACE, OTHER_SPACE, LINE_END), _SPACE, kinds)
    return tf.where(_is_class(classes, NO_CHARACTER), _NONE, kinds)


def _contractions(classes, may_start):
    """Of characters inside a contraction, and right behind one; `may_start` says where an apostrophe begins a word."""
    import tensorflow as tf

    def follows(first, second=None):
        found = tf.equal(_neighbour(classes, 1), ord(first))
        return found if second is None else found & tf.equal(_neighbour(classes, 2), ord(second))

    free = _is_class(classes, APOSTROPHE) & may_start
    short = free & (follows("s") | follows("t") | follows("m") | follows("d"))
    long = free & (follows("r", "e") | follows("v", "e") | follows("l", "l"))
    inside = _neighbour(short | long, -1) | _neighbour(long, -2)
    behind = _neighbour(short, -2) | _neighbour(long, -3)
    return inside, behind


def _gpt2_starts(classes):
    import tensorflow as tf

    kinds = _kinds(classes)
    before, after = _neighbour(kinds, -1), _neighbour(kinds, 1)
    after_plain_space = tf.equal(_neighbour(classes, -1), SPACE)
    # An apostrophe after a plain space or another sign belongs to the word that starts there.
    inside, behind = _contractions(classes, ~after_plain_space & tf.not_equal(before, _SIGN))
    space_starts = tf.not_equal(before, _SPACE) | tf.greater(after, _SPACE)
    after_space = tf.equal(before, _SPACE)
    sign_starts = tf.where(after_space, ~after_plain_space, (tf.not_equal(before, kinds) & ~inside) | behind)
    return tf.where(tf.equal(kinds, _SPACE), space_starts, sign_starts & tf.not_equal(kinds, _NONE))


def _llama3_starts(classes, longest_number):
    """Llama 3's and Qwen's pattern.

    A line end directly behind signs belongs to them. What is left of a run of white space is one word up to its last
    line end; of the rest the last character stands apart, and joins the letters or, a plain space, the signs after it.
    """
    import tensorflow as tf

    size = tf.size(classes)
    kinds = _kinds(classes)
    places = tf.range(size)
    before, after = _neighbour(kinds, -1), _neighbour(kinds, 1)
    space, sign, letter = (tf.equal(kinds, kind) for kind in (_SPACE, _SIGN, _LETTER))
    line_end = _is_class(classes, LINE_END)
    run_starts = tf.not_equal(before, kinds)
    runs = tf.cumsum(tf.cast(run_starts, tf.int32)) - 1  # the number of the run of one kind that each is in
    run_start = tf.gather(tf.boolean_mask(places, run_starts), runs)

    # White space.
    line_starts = line_end & ~_neighbour(line_end, -1)
    lines = tf.maximum(tf.cumsum(tf.cast(line_starts, tf.int32)) - 1, 0)
    behind_sign = tf.boolean_mask(tf.equal(before, _SIGN), line_starts)
    behind_sign = tf.concat([behind_sign, [False]], axis=0)  # one more, for a text without line ends
    swallowed = line_end & tf.gather(behind_sign, lines)
    last_line_end = tf.gather(
        tf.math.unsorted_segment_max(tf.where(line_end & ~swallowed, places, -1), runs, size), runs
    )
    is_last = tf.not_equal(after, _SPACE)
    before_text = is_last & tf.not_equal(after, _NONE)
    space_starts = (
        run_starts
        | _neighbour(swallowed, -1)
        | (tf.equal(_neighbour(places, -1), last_line_end) & (places > 0))
        | (before_text & (places > last_line_end))
    ) & ~swallowed

    # Letters and signs.
    after_plain_space = tf.equal(_neighbour(classes, -1), SPACE)
    inside, behind = _contractions(classes, ~after_plain_space & tf.not_equal(before, _SIGN))
    sign_starts = run_starts & ~after_plain_space
    one_sign_before = tf.equal(before, _SIGN) & tf.not_equal(_neighbour(kinds, -2), _SIGN)
    joins_sign = one_sign_before & tf.not_equal(_neighbour(classes, -2), SPACE)
    joins_space = tf.equal(before, _SPACE) & ~_neighbour(line_end, -1)
    letter_starts = (run_starts & ~joins_sign & ~joins_space & ~inside) | behind
    number_starts = tf.equal((places - run_start) % longest_number, 0)
    starts = tf.where(space, space_starts, tf.where(sign, sign_starts, tf.where(letter, letter_starts, number_starts)))
    return starts & tf.not_equal(kinds, _NONE)
