"""How much of a request a served graph reads, and how it reads it: no request costs more than its bounds.

`seqlm_runtime.prompts` has the rule and is its other half; tests hold the two together. TensorFlow is imported in the
functions: only the clean process of an export runs them.
"""

from keras_seqlm.generation.buckets import buckets
from keras_seqlm.generation.generate import prompt_room
from keras_seqlm.generation.score import log_probabilities, of_targets
from keras_seqlm.layers.recurrent_loops import steps_written_out
from seqlm_runtime.prompts import MAX_PROMPT_TOKENS, SPARE_BYTES, SPARE_IDS, byte_limits

PART = 16  # tokens of one turn of a loop that reads a long text


def served_prompt_room(model, max_prompt_tokens=None):
    """How many ids of a prompt an export reads: what `prompt_room` says, and 4096 where that is any number."""
    return prompt_room(model, max_prompt_tokens) or MAX_PROMPT_TOKENS


def read_rows(graph, tokenizer, text, most, end=True):
    """The ids that a model reads of each text: `seqlm_runtime.prompts.read_ids` for a batch, in a graph.

    Args:
        graph: the tokenizer's `in_graph()`.
        tokenizer: itself.
        text: (batch,) string.
        most, end: see `read_ids`.

    Returns:
        ids int32 (batch, time), padded with 0, time being that of the longest row and 1 at least; lengths int32 (batch,);
        and bool (batch,), whether anything was cut off.
    """
    import tensorflow as tf

    few, longest = byte_limits(tokenizer, most)
    sizes = tf.strings.length(text)
    cut = sizes > longest
    part = tf.where(cut, part_of(text, sizes, few, end), text)
    flat, counts = graph.tokenize_flat(part)
    short = cut & (counts < most + SPARE_IDS)  # too few ids in the bytes that were tried first
    if few < longest:
        flat, counts = tf.cond(
            tf.reduce_any(short),
            lambda: graph.tokenize_flat(tf.where(short, part_of(text, sizes, longest, end), part)),
            lambda: (flat, counts),
        )
    first = 0 if tokenizer.bos_id is None else 1
    wanted = counts + first
    kept = tf.minimum(wanted, most)
    width = tf.reduce_max(tf.concat([kept, [1]], axis=0))
    columns = tf.range(width)[None]
    places = columns + (wanted - kept)[:, None] * int(end) - first  # in the row's own ids; -1 is bos
    starts = tf.cumsum(counts, exclusive=True)
    real = columns < kept[:, None]
    index = tf.where(real & (places >= 0), starts[:, None] + places, tf.size(flat))
    ids = tf.gather(tf.concat([flat, [0]], axis=0), index)
    if first:
        ids = tf.where(real & (places < 0), tokenizer.bos_id, ids)
    return ids, kept, cut | (kept < wanted)


def part_of(text, sizes, most, end):
    """`seqlm_runtime.prompts.part_of` for each text (batch,) that is longer than `most`; of the others nothing of use.

    Args:
        sizes: int32 (batch,), the bytes of each.
    """
    import tensorflow as tf

    border = tf.where(sizes > most, sizes - most if end else tf.fill(tf.shape(sizes), most), 0)
    # The bytes that might go on with a character, from the border on: rightwards for an end, leftwards for a beginning.
    first = border if end else tf.maximum(border - (SPARE_BYTES - 1), 0)
    around = tf.io.decode_raw(
        tf.strings.substr(text, first, tf.fill(tf.shape(sizes), SPARE_BYTES)), tf.uint8, fixed_length=SPARE_BYTES
    )
    goes_on = tf.cast((around >= 0x80) & (around < 0xC0), tf.int32)
    if not end:
        goes_on = goes_on[:, ::-1]
    skipped = goes_on[:, 0] * (1 + goes_on[:, 1] * (1 + goes_on[:, 2]))
    if end:
        return tf.strings.substr(text, border + skipped, sizes)
    return tf.strings.substr(text, tf.zeros_like(border), tf.maximum(border - skipped, 0))


def in_turns(turns, first, work):
    """`first` with what `work` gives for the rows of each turn, one turn after another, and none that has no rows.

    Args:
        turns: int32 (rows,), the turn of each row.
        first: dict of tensors (rows, ...).
        work: function of the turn and of the places of its rows, int64 (some, 1), to a dict of tensors (some, ...).
    """
    import tensorflow as tf

    names, none = sorted(first), tf.int32.max

    def smallest(turns):
        return tf.reduce_min(tf.concat([turns, [none]], axis=0))

    def turn(now, *leaves):
        rows = tf.where(tf.equal(turns, now))
        found = work(now, rows)
        leaves = [
            tf.tensor_scatter_nd_update(leaf, rows, found[name]) for name, leaf in zip(names, leaves, strict=True)
        ]
        return smallest(tf.where(turns > now, turns, none)), *leaves

    start = (smallest(turns), *(first[name] for name in names))
    _, *leaves = tf.while_loop(lambda now, *_: now < none, turn, start, parallel_iterations=1)
    return dict(zip(names, leaves, strict=True))


class InGroups:
    """Reads texts of a Transformer, those of one bucket of lengths at a time, so that a long one makes no short one wide.

    Args:
        model: a language model with a context.
        token_ids: int32 (batch, time); lengths: int32 (batch,), how many of them are real.
        longest: that any text may be.
    """

    def __init__(self, model, token_ids, lengths, longest):
        self.model, self.token_ids, self.lengths, self.widths = model, token_ids, lengths, buckets(longest)

    def state(self, room):
        """The state after all tokens, its caches with `room` slots."""
        import tensorflow as tf

        def read(ids, lengths):
            return self.model.read({"token_ids": ids, "lengths": lengths}, room)

        return self._run(read, self.model.initial_state(tf.shape(self.lengths)[0], room))

    def log_probabilities(self):
        """See `InParts.log_probabilities`."""
        import tensorflow as tf

        def sums(ids, lengths):
            found = log_probabilities(self.model, ids)
            return {"sum": tf.reduce_sum(tf.where(tf.sequence_mask(lengths, tf.shape(found)[1]), found, 0.0), axis=1)}

        return self._run(sums, {"sum": tf.zeros(tf.shape(self.lengths), tf.float32)}, more=1)["sum"]

    def _run(self, work, first, more=0):
        """`first` with what `work(ids, lengths)` gives for the rows of each group, `more` columns beyond their bucket."""
        import tensorflow as tf

        widths = tf.constant(self.widths)
        token_ids = tf.pad(self.token_ids, [[0, 0], [0, more]])

        def turn(now, rows):
            ids = tf.gather_nd(token_ids, rows)[:, : widths[now] + more]
            return work(ids, tf.gather_nd(self.lengths, rows))

        return in_turns(tf.searchsorted(widths, self.lengths), first, turn)


class InParts:
    """Reads texts of any length `PART` tokens at a time, in each turn the rows alone that have so many.

    A long text beside many short ones costs what it costs alone, and no tensor holds all tokens of a batch. It is for
    models without a context.

    Args:
        model: a language model.
        token_ids: int32 (batch, time); lengths: int32 (batch,), how many of them are real.
        select: whether rows are left out that have been read; False where XLA compiles, which knows fixed shapes alone.
    """

    def __init__(self, model, token_ids, lengths, select=True):
        import tensorflow as tf

        self.model, self.lengths, self.select = model, lengths, select
        self.token_ids = tf.pad(token_ids, [[0, 0], [0, PART + 1]])

    def state(self):
        """The state after all tokens."""
        return self._run(lambda hidden, ids, left: None)[0]

    def log_probabilities(self):
        """The sum of ln p(id | ids before it) of `lengths` ids after the first of each row, float32 (batch,).

        The rows have one id more than `lengths` says.
        """
        import tensorflow as tf

        def sums(hidden, ids, left):
            found = of_targets(self.model, hidden, ids[:, 1:])
            return tf.reduce_sum(found if left is None else tf.where(tf.sequence_mask(left, PART), found, 0.0), axis=1)

        return self._run(sums)[1]

    def _run(self, sums):
        import tensorflow as tf

        batch = tf.shape(self.lengths)[0]
        first = self.model.initial_state(batch)
        names = sorted(first)
        whole = self.lengths // PART  # parts of a row that are full, where no step has to ask whether its token is real
        turns = whole if self.select else (self.lengths + PART - 1) // PART

        def read(ids, left, before):
            ids = tf.ensure_shape(ids, [None, PART + 1])
            inputs = {"token_ids": ids[:, :PART], **({} if left is None else {"lengths": left})}
            with steps_written_out(PART):
                hidden, after = self.model.hidden_states(inputs, before, training=False)
            return after, sums(hidden, ids, left)

        def turn(i, total, *leaves):
            before = dict(zip(names, leaves, strict=True))
            ids = tf.slice(self.token_ids, [0, i * PART], [batch, PART + 1])
            if not self.select:
                after, more = read(ids, tf.clip_by_value(self.lengths - i * PART, 0, PART), before)
                return i + 1, total if more is None else total + more, *(after[name] for name in names)
            rows = tf.where(whole > i)
            after, more = read(
                tf.gather_nd(ids, rows), None, {name: tf.gather_nd(leaf, rows) for name, leaf in before.items()}
            )
            total = total if more is None else tf.tensor_scatter_nd_add(total, rows, more)
            return i + 1, total, *(tf.tensor_scatter_nd_update(before[name], rows, after[name]) for name in names)

        start = (tf.constant(0), tf.zeros(tf.shape(self.lengths), tf.float32), *(first[name] for name in names))
        last = tf.reduce_max(tf.concat([turns, [0]], axis=0))
        _, total, *leaves = tf.while_loop(lambda i, *_: i < last, turn, start, parallel_iterations=1)
        state = dict(zip(names, leaves, strict=True))
        if self.select:  # what is left of each row
            ids = tf.gather(self.token_ids, whole[:, None] * PART + tf.range(PART + 1), batch_dims=1)
            state, more = read(ids, self.lengths - whole * PART, state)
            total = total if more is None else total + more
        return state, total
