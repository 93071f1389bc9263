"""What tasks of rows answer, traced from text to answers: the texts of a batch as ids, and the model over all of them.

`seqlm_runtime.row_tasks` has the rules and is its other half. TensorFlow is imported in the functions: only the clean
process of an export runs them.
"""

from keras_seqlm.export.reading import in_turns, read_rows
from keras_seqlm.generation.buckets import buckets
from keras_seqlm.tokenizers.graph import valid_utf8
from seqlm_runtime.prompts import byte_limits
from seqlm_runtime.row_tasks.fill_mask import CANDIDATES, MASK

AT_ONCE = 16  # rows of one run of the model: what it holds in memory does not grow with a request
_SHRINKS = 8  # at most, a text whose masks are written otherwise


def joined(parts):
    """Rows put together of parts.

    Args:
        parts: a list of (ids, start, counts, type): int32 (batch, time), the ids of all rows one after another (all,), or one
            id; the place that is taken first, of all rows or of each; how many, int32 (batch,); and the token type.

    Returns:
        ids and types int32 (batch, time), padded with 0, time being that of the longest row and 1 at least; lengths (batch,).
    """
    import tensorflow as tf

    lengths = sum(counts for _, _, counts, _ in parts)
    columns = tf.range(tf.reduce_max(tf.concat([lengths, [1]], axis=0)))[None]
    made = types = tf.zeros_like(columns + lengths[:, None])
    at = tf.zeros_like(lengths)
    for ids, start, counts, kind in parts:
        places = columns - at[:, None]
        real = (places >= 0) & (places < counts[:, None])
        if not isinstance(ids, int) and ids.shape.rank == 1:
            ids = tf.gather(tf.pad(ids, [[0, 1]]), tf.where(real, places + start[:, None], tf.size(ids)))
        elif not isinstance(ids, int):
            ids = tf.gather(ids, tf.clip_by_value(places + start, 0, tf.shape(ids)[1] - 1), batch_dims=1)
        made, types = tf.where(real, ids, made), tf.where(real, kind, types)
        at += counts
    return made, types, lengths


def end_of(tokenizer, rows):
    """The part of `joined` that ends a text; a list, empty where there is no eos."""
    import tensorflow as tf

    return [] if tokenizer.eos_id is None else [(int(tokenizer.eos_id), 0, tf.ones_like(rows), 0)]


def read_pairs(graph, tokenizer, text, pair, room):
    """`row_tasks.reading.pair_ids` for a batch: ids, types, lengths, and what was cut.

    Args:
        graph: the tokenizer's `in_graph()`.
        text, pair: (batch,) string; an empty pair is none, and so is None.
        room: ids of a row.
    """
    import tensorflow as tf

    ends, bos = int(tokenizer.eos_id is not None), int(tokenizer.bos_id is not None)
    first, kept, cut = read_rows(graph, tokenizer, text, room - ends, end=False)
    if pair is None:
        return *joined([(first, 0, kept, 0), *end_of(tokenizer, kept)]), cut
    second, others, also = read_rows(graph, tokenizer, pair, room - ends, end=False)
    given = tf.strings.length(pair) > 0
    a, b = kept + ends, tf.where(given, others - bos + ends, 0)
    over = a + b > room
    most = tf.minimum(a, tf.maximum(room - b, room // 2))
    a, b = tf.where(over, most, a), tf.where(over, tf.minimum(b, room - most), b)
    parts = [(first, 0, a - ends, 0), (second, bos, tf.maximum(b - ends, 0), 1)]
    if ends:
        eos = int(tokenizer.eos_id)
        parts = [parts[0], (eos, 0, tf.ones_like(a), 0), parts[1], (eos, 0, tf.cast(given, tf.int32), 1)]
    return *joined(parts), cut | (also & given) | over


def read_masked(graph, tokenizer, text, task):
    """`row_tasks.fill_mask.masked_ids` for a batch: ids, types, lengths, and what was cut."""
    import tensorflow as tf

    most = task.room - int(tokenizer.eos_id is not None)
    longest = _SHRINKS * (byte_limits(tokenizer, most)[1] + len(MASK))
    text = tf.strings.substr(text, tf.zeros_like(tf.strings.length(text)), tf.fill(tf.shape(text), longest))
    text = valid_utf8(text)  # whatever the tokenizer, since masks are looked for in characters
    if task.takes_space:
        text = tf.strings.regex_replace(text, r" \[MASK\]", MASK)
    if task.mask_text != MASK:
        text = tf.strings.regex_replace(text, r"\[MASK\]", task.mask_text.replace("\\", "\\\\"))
    ids, kept, cut = read_rows(graph, tokenizer, text, most, end=False)
    return *joined([(ids, 0, kept, 0), *end_of(tokenizer, kept)]), cut


class Rows:
    """Rows of a model's inputs, run a few of about the same length at a time: a long one makes no short one wide.

    Args:
        ids, types: int32 (rows, time); lengths: int32 (rows,).
        room: that a row may have.
        reads: names of the model's inputs.

    Attributes:
        width: of all rows, a bucket; `ids` are padded to it.
    """

    def __init__(self, ids, types, lengths, room, reads):
        import tensorflow as tf

        self.lengths, self._reads = tf.maximum(lengths, 1), reads  # no model reads none
        self._widths = tf.constant(buckets(room))
        time = tf.shape(ids)[1]
        self.width = tf.gather(self._widths, tf.minimum(self._group(time), tf.size(self._widths) - 1))
        missing = [[0, 0], [0, tf.maximum(self.width - time, 0)]]
        self.ids, self._types = tf.pad(ids, missing), tf.pad(types, missing)

    def _group(self, lengths):
        import tensorflow as tf

        return tf.searchsorted(self._widths, tf.reshape(lengths, [-1]))[0 if lengths.shape.rank == 0 else slice(None)]

    def run(self, work, first):
        """What `work(inputs, rows)` gives for all rows.

        Args:
            work: function of the model's inputs and the numbers of their rows, int32 (some,), to a dict of tensors (some, ...).
            first: a dict of what is filled in, (rows, ...).
        """
        import tensorflow as tf

        group, count = self._group(self.lengths), tf.size(self.lengths)
        same = tf.cast(tf.equal(group[:, None], tf.range(tf.size(self._widths))[None]), tf.int32)
        place = tf.reduce_sum(tf.cumsum(same, axis=0, exclusive=True) * same, axis=1)  # of a row in its group
        turns = group * (count + 1) + place // AT_ONCE

        def turn(now, rows):
            width = tf.gather(self._widths, now // (count + 1))
            inputs = {"token_ids": tf.gather_nd(self.ids, rows)[:, :width], "lengths": tf.gather_nd(self.lengths, rows)}
            if "token_types" in self._reads:
                inputs["token_types"] = tf.gather_nd(self._types, rows)[:, :width]
            return work(inputs, tf.cast(rows[:, 0], tf.int32))

        return in_turns(turns, first, turn)


def classify(task, model, graph):
    """The function of text and pair that answers as `row_tasks.Classify`."""
    import tensorflow as tf

    names = tf.constant(task.labels or [""])

    def answer(text, pair):
        ids, types, lengths, cut = read_pairs(graph, task.tokenizer, text, pair, task.room)
        rows, batch = Rows(ids, types, lengths, task.room, task.reads), tf.size(text)
        first = {"logits": tf.zeros([batch, model.num_classes])}
        logits = rows.run(lambda inputs, _: {"logits": model(inputs, training=False)}, first)["logits"]
        if task.kind == "number":
            return {"value": logits[:, 0], "truncated": cut}
        best = tf.math.top_k(logits, 1).indices[:, 0]
        label = tf.gather(names, best)
        if task.kind == "labels":
            shares = tf.sigmoid(logits)
            label = tf.where(tf.reduce_max(shares, axis=1) > 0.5, label, "")
        else:
            shares = tf.nn.softmax(logits)
        labels = tf.tile(names[None], [batch, 1])
        return {"label": label, "labels": labels, "probabilities": shares, "truncated": cut}

    return answer


def embed(task, model, graph):
    """The function of text that answers as `row_tasks.Embed`."""
    import tensorflow as tf

    def answer(text):
        ids, types, lengths, cut = read_pairs(graph, task.tokenizer, text, None, task.room)
        rows = Rows(ids, types, lengths, task.room, task.reads)
        first = {"embedding": tf.zeros([tf.size(text), model.output_width])}
        found = rows.run(lambda inputs, _: {"embedding": model(inputs, training=False)}, first)
        return {**found, "truncated": cut}

    return answer


def fill_mask(task, model, graph):
    """The function of text that answers as `row_tasks.FillMask`."""
    import tensorflow as tf

    if task.mask_text is None:
        raise ValueError(
            "no text stands for the tokenizer's mask, so that none can be found in a served graph: export to LiteRT, or train "
            "with a tokenizer of data.prepared(tokenizer, 'masked')"
        )
    special = tf.constant([i in set(task.special) for i in range(model.vocabulary_size)])

    def answer(text):
        ids, types, lengths, cut = read_masked(graph, task.tokenizer, text, task)
        rows = Rows(ids, types, lengths, task.room, task.reads)
        masked = tf.equal(rows.ids, task.mask_id) & tf.sequence_mask(lengths, rows.width)
        counts = tf.reduce_sum(tf.cast(masked, tf.int32), axis=1)
        order = tf.cumsum(tf.cast(masked, tf.int32), axis=1, exclusive=True)
        most = tf.reduce_max(tf.concat([counts, [1]], axis=0))
        shape = [tf.size(text), most, CANDIDATES]

        def work(inputs, numbers):
            hidden, _ = model.hidden_states(inputs, training=False)
            here = tf.gather(masked, numbers)[:, : tf.shape(hidden)[1]]
            places = tf.where(here)
            logits = model.logits_of(tf.gather_nd(hidden, places)[:, None])[:, 0]  # (masks, vocabulary)
            found = tf.math.top_k(tf.where(special, -1.0, tf.nn.softmax(logits)), CANDIDATES)
            number = tf.gather_nd(tf.gather(order, numbers), places)
            index = tf.stack([tf.cast(places[:, 0], tf.int32), number], axis=1)
            shape = [tf.size(numbers), most, CANDIDATES]
            return {
                "ids": tf.scatter_nd(index, found.indices, shape),
                "probabilities": tf.scatter_nd(index, found.values, shape),
            }

        found = rows.run(work, {"ids": tf.zeros(shape, tf.int32), "probabilities": tf.zeros(shape)})
        best = tf.gather(found["ids"][:, :, 0], tf.minimum(order, most - 1), batch_dims=1)
        filled = graph.detokenize(tf.where(masked, best, rows.ids), lengths)
        one_by_one = tf.reshape(found["ids"], [-1, 1])
        texts = graph.detokenize_after(one_by_one, tf.ones_like(one_by_one[:, 0]), tf.fill([tf.size(one_by_one)], True))
        real = tf.sequence_mask(counts, most)[:, :, None]
        return {
            "filled": filled,
            "candidates": tf.where(real, tf.reshape(texts, shape), ""),
            "candidate_ids": found["ids"],
            "probabilities": found["probabilities"],
            "num_masks": counts,
            "truncated": cut,
        }

    return answer
