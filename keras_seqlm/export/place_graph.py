"""Tasks that say where in a text something stands, traced from text to places: `seqlm_runtime.row_tasks.places` for a batch.

TensorFlow is imported in the functions: only the clean process of an export runs them.
"""

import sys
from typing import NamedTuple

from keras_seqlm.export.reading import part_of, read_rows
from keras_seqlm.export.row_graph import Rows, end_of, joined
from keras_seqlm.tokenizers.graph import valid_utf8
from keras_seqlm.tokenizers.spans_graph import spans_in_graph
from seqlm_runtime.prompts import SPARE_IDS, byte_limits
from seqlm_runtime.row_tasks.places import QUESTION_SHARE

_LOWEST = -1e30  # of a sum of log-probabilities that cannot be
_WHITE = [point for point in range(sys.maxunicode + 1) if chr(point).isspace()]


class Placed(NamedTuple):
    """The tokens of a batch of texts: ids, the row of each, and its starts and ends in characters (all,); how many each row
    has, and how many stand before it (batch,)."""

    ids: object
    rows: object
    starts: object
    ends: object
    counts: object
    before: object


class Characters:
    """The code points of a batch of texts."""

    def __init__(self, text):
        import tensorflow as tf

        points = tf.strings.unicode_decode(text, "UTF-8", errors="replace")
        self._points = points.flat_values
        self._first = tf.cumsum(tf.cast(points.row_lengths(), tf.int32), exclusive=True)
        solid = ~tf.reduce_any(tf.equal(self._points[:, None], _WHITE), axis=1)
        self._solid_before = tf.concat([[0], tf.cumsum(tf.cast(solid, tf.int32))], axis=0)
        self._solid = tf.concat([tf.cast(tf.where(solid)[:, 0], tf.int32), [0]], axis=0)

    def trimmed(self, rows, starts, ends):
        """`windows.trimmed` of each span: without white space at either end, as it is if it has nothing else."""
        import tensorflow as tf

        first = tf.gather(self._first, rows)
        before, after = tf.gather(self._solid_before, first + starts), tf.gather(self._solid_before, first + ends)
        some = after > before
        last = tf.gather(self._solid, tf.maximum(after - 1, 0)) + 1
        return tf.where(some, tf.gather(self._solid, before) - first, starts), tf.where(some, last - first, ends)

    def texts(self, rows, starts, ends):
        """The text of each span."""
        import tensorflow as tf

        first = tf.gather(self._first, rows)
        places = tf.ragged.range(first + starts, first + ends)
        return tf.strings.unicode_encode(places.with_values(tf.gather(self._points, places.flat_values)), "UTF-8")


def read_placed(spans, tokenizer, text, most):
    """`row_tasks.reading.placed_part` for a batch: the `Placed` tokens, the `Characters`, and what was cut (batch,)."""
    import tensorflow as tf

    few, longest = byte_limits(tokenizer, most)
    sizes = tf.strings.length(text)
    cut = sizes > longest
    part = tf.where(cut, part_of(text, sizes, few, False), text)
    found = (part, *spans(part))
    if few < longest:
        short = cut & (found[2] < most + SPARE_IDS)  # too few ids in the bytes that were tried first

        def longer():
            whole = tf.where(short, part_of(text, sizes, longest, False), part)
            return (whole, *spans(whole))

        found = tf.cond(tf.reduce_any(short), longer, lambda: found)
    part, ids, counts, starts, ends = found
    kept = tf.minimum(counts, most)
    rows = tf.repeat(tf.range(tf.size(text)), counts)
    place = tf.range(tf.size(ids)) - tf.gather(tf.cumsum(counts, exclusive=True), rows)
    real = place < tf.gather(kept, rows)
    ids, rows, starts, ends = (tf.boolean_mask(values, real) for values in (ids, rows, starts, ends))
    placed = Placed(ids, rows, starts, ends, kept, tf.cumsum(kept, exclusive=True))
    return placed, Characters(valid_utf8(part)), cut | (kept < counts)


class Windows:
    """`windows.windows_of` for a batch: the rows in which a model reads texts that are longer than it has room for.

    Args:
        task: a `seqlm_runtime.row_tasks.RowTask`.
        before, sizes: what stands before each text, int32 (batch, time), and how many of them are real (batch,).
        tokens: its `Placed` tokens.
        types: whether the tokens have another type than what stands before them.

    Attributes:
        model_rows: the `Rows`. rows, starts, stops, places (windows,): the text of each; the first of its tokens and the one
            after the last; and where in the row the first one stands. own_starts, own_stops: those that it decides about.
            numbers (batch,): how many each text has.
    """

    def __init__(self, task, before, sizes, tokens, types):
        import tensorflow as tf

        end = end_of(task.tokenizer, sizes)
        size = task.room - sizes - len(end)
        step, beyond = tf.maximum(size // 2, 1), tokens.counts - size
        self.numbers = tf.where(beyond > 0, (beyond + step - 1) // step + 1, 1)
        self.rows = tf.repeat(tf.range(tf.size(sizes)), self.numbers)
        size, step, beyond, counts, numbers, self.places = (
            tf.gather(values, self.rows) for values in (size, step, beyond, tokens.counts, self.numbers, sizes)
        )
        number = tf.range(tf.size(self.rows)) - tf.gather(tf.cumsum(self.numbers, exclusive=True), self.rows)

        def start(number):
            return tf.minimum(number * step, tf.maximum(beyond, 0))

        def stop(number):
            return tf.minimum(start(number) + size, counts)

        self.starts, self.stops = start(number), stop(number)
        self.own_starts = tf.where(number > 0, (stop(number - 1) + self.starts) // 2, 0)
        self.own_stops = tf.where(number < numbers - 1, (self.stops + start(number + 1)) // 2, counts)
        kind = int(types)
        parts = [
            (tf.gather(before, self.rows), 0, self.places, 0),
            (tokens.ids, tf.gather(tokens.before, self.rows) + self.starts, self.stops - self.starts, kind),
            *((ids, first, tf.ones_like(self.rows), kind) for ids, first, _, _ in end),
        ]
        ids, kinds, lengths = joined(parts)
        self.model_rows = Rows(ids, kinds, lengths, task.room, task.reads)


def tag(task, model, graph):
    """The function of text (and of what stands before it) that answers as `row_tasks.Tag`."""
    import tensorflow as tf

    spans, names, tags = spans_in_graph(task.tokenizer, graph), tf.constant(list(task.labels)), tf.constant(task.tags)
    has_bos = int(task.tokenizer.bos_id is not None)

    def answer(text, before=None):
        batch = tf.size(text)
        tokens, characters, cut = read_placed(spans, task.tokenizer, text, task.most)
        asked = tf.fill([batch], "") if before is None else before
        ids, kept, also = read_rows(graph, task.tokenizer, asked, task.room // 2 + has_bos, end=False)
        parts = [(ids, 0, kept, 0)]
        if before is not None:
            parts += end_of(task.tokenizer, kept)
        ids, _, sizes = joined(parts)
        windows = Windows(task, ids, sizes, tokens, types=bool(task.before))
        width = windows.model_rows.width
        shape = [tf.size(windows.rows), width]

        def work(inputs, _):
            best = tf.math.top_k(tf.nn.log_softmax(model(inputs, training=False)), 1)
            missing = [[0, 0], [0, width - tf.shape(best.values)[1]]]
            return {"number": tf.pad(best.indices[..., 0], missing), "sure": tf.pad(best.values[..., 0], missing)}

        first = {"number": tf.zeros(shape, tf.int32), "sure": tf.zeros(shape)}
        found = windows.model_rows.run(work, first)
        place = windows.places + windows.own_starts - windows.starts
        places = tf.ragged.range(place, place + windows.own_stops - windows.own_starts)
        index = tf.stack([tf.cast(places.value_rowids(), tf.int32), places.flat_values], axis=1)
        numbers, sure = tf.gather_nd(found["number"], index), tf.gather_nd(found["sure"], index)  # of all tokens
        units = _units(tokens, characters)
        numbers, sure = tf.gather(numbers, units.tokens), tf.gather(sure, units.tokens)
        counts = tf.math.unsorted_segment_sum(tf.ones_like(units.rows), units.rows, batch)
        outputs = {
            "num_tokens": counts,
            "tokens": _dense(characters.texts(units.rows, units.starts, units.ends), counts),
            "tags": _dense(tf.gather(tags, numbers), counts),
            "truncated": cut | also,
        }
        return outputs if task.kind == "tags" else {**outputs, **_spans(units, numbers, sure, characters, names, batch)}

    return answer


class Units(NamedTuple):
    """What has a tag: the token that speaks for it, its row and its characters (units,)."""

    tokens: object
    rows: object
    starts: object
    ends: object


def _units(tokens, characters):
    """Tokens that share a character are one, and the first of them speaks."""
    import tensorflow as tf

    before = tf.concat([[0], tokens.ends[:-1]], axis=0)[: tf.size(tokens.ids)]
    apart = tf.concat([[True], tf.not_equal(tokens.rows[1:], tokens.rows[:-1])], axis=0)[: tf.size(tokens.ids)]
    first = tf.cast(tf.where(apart | (tokens.starts >= before))[:, 0], tf.int32)
    last = tf.concat([first[1:], [tf.size(tokens.ids)]], axis=0)[: tf.size(first)] - 1
    rows = tf.gather(tokens.rows, first)
    return Units(first, rows, *characters.trimmed(rows, tf.gather(tokens.starts, first), tf.gather(tokens.ends, last)))


def _spans(units, numbers, sure, characters, names, batch):
    """The spans that the tags of units name: B-label is 2 n + 1 and I-label 2 n + 2 of the label n, and 0 is O."""
    import tensorflow as tf

    def before(values, filling):
        return tf.concat([[filling], values[:-1]], axis=0)[: tf.size(values)]

    inside, labels = numbers > 0, (numbers - 1) // 2
    goes_on = tf.equal(numbers % 2, 0) & before(inside, False) & tf.equal(before(labels, -1), labels)
    begins = inside & ~(goes_on & tf.equal(before(units.rows, -1), units.rows))
    first = tf.cast(tf.where(begins)[:, 0], tf.int32)
    members = tf.cast(tf.where(inside)[:, 0], tf.int32)
    span = tf.gather(tf.cumsum(tf.cast(begins, tf.int32)), members) - 1
    last = tf.math.unsorted_segment_max(members, span, tf.size(first))
    sums, sizes = (
        tf.math.unsorted_segment_sum(values, span, tf.size(first))
        for values in (tf.gather(sure, members), tf.ones_like(members, tf.float32))
    )
    rows = tf.gather(units.rows, first)
    starts, ends = characters.trimmed(rows, tf.gather(units.starts, first), tf.gather(units.ends, last))
    counts = tf.math.unsorted_segment_sum(tf.ones_like(rows), rows, batch)
    return {
        "num_spans": counts,
        "span_labels": _dense(tf.gather(names, tf.gather(labels, first)), counts),
        "span_starts": _dense(starts, counts),
        "span_ends": _dense(ends, counts),
        "span_texts": _dense(characters.texts(rows, starts, ends), counts),
        "span_scores": _dense(tf.exp(sums / sizes), counts),
    }


def _dense(values, counts):
    import tensorflow as tf

    return tf.RaggedTensor.from_row_lengths(values, counts, validate=False).to_tensor()


def answer(task, model, graph):
    """The function of question and context that answers as `row_tasks.Answer`."""
    import tensorflow as tf

    spans, has_bos = spans_in_graph(task.tokenizer, graph), int(task.tokenizer.bos_id is not None)

    def best_in(inputs, windows, tokens):
        """In each of some windows the best sum, the tokens where it begins and ends, and the sum of "no answer"."""
        starts, places = windows["start"][:, None], windows["place"][:, None]
        log_p = tf.nn.log_softmax(model(inputs, training=False))  # (windows, 2, time)
        time = tf.shape(log_p)[2]
        columns = tf.range(time)[None]
        within = (columns >= places) & (columns < places + windows["count"][:, None])
        possible = within[:, :, None] & within[:, None] & (columns[0][:, None] <= columns)[None]
        if task.longest is not None:
            index = tf.where(within, windows["before"][:, None] + starts + columns - places, 0)
            begin, end = (tf.gather(tf.pad(values, [[0, 1]]), index) for values in (tokens.starts, tokens.ends))
            one = tf.equal(columns[0][:, None], columns)[None]
            possible &= (end[:, None] - begin[:, :, None] <= task.longest + 1) | one
        sums = tf.where(possible, log_p[:, 0, :, None] + log_p[:, 1, None], _LOWEST)
        best = tf.math.top_k(tf.reshape(sums, [-1, time * time]), 1)
        place = best.indices[:, 0]
        offset = windows["start"] - windows["place"]
        return {
            "score": best.values[:, 0],
            "first": place // time + offset,
            "last": place % time + offset,
            "nothing": log_p[:, 0, 0] + log_p[:, 1, 0],
        }

    def find(question, context):
        tokens, characters, cut = read_placed(spans, task.tokenizer, context, task.most)
        most = max(1, task.room // QUESTION_SHARE) + has_bos
        ids, kept, also = read_rows(graph, task.tokenizer, question, most, end=False)
        ids, _, sizes = joined([(ids, 0, kept, 0), *end_of(task.tokenizer, kept)])
        windows = Windows(task, ids, sizes, tokens, types=True)
        known = {"start": windows.starts, "place": windows.places, "count": windows.stops - windows.starts}
        known["before"] = tf.gather(tokens.before, windows.rows)

        def work(inputs, numbers):
            return best_in(inputs, {name: tf.gather(values, numbers) for name, values in known.items()}, tokens)

        none = tf.zeros_like(windows.rows)
        first = {"score": tf.cast(none, tf.float32), "nothing": tf.cast(none, tf.float32), "first": none, "last": none}
        found = windows.model_rows.run(work, first)
        scores = tf.RaggedTensor.from_row_lengths(found["score"], windows.numbers, validate=False)
        best = tf.math.top_k(scores.to_tensor(2 * _LOWEST), 1)
        window = tf.cumsum(windows.numbers, exclusive=True) + best.indices[:, 0]
        score = best.values[:, 0]
        nothing = -tf.math.unsorted_segment_max(-found["nothing"], windows.rows, tf.size(question))
        without = score <= _LOWEST / 2
        if task.unanswerable:
            without |= nothing >= score
        begin, end = (tf.gather(found[name], window) + tokens.before for name in ("first", "last"))
        begin, end = (
            tf.gather(tf.pad(values, [[0, 1]]), tf.where(without, 0, place))
            for values, place in ((tokens.starts, begin), (tokens.ends, end))
        )
        rows = tf.range(tf.size(question))
        begin, end = characters.trimmed(rows, tf.where(without, 0, begin), tf.where(without, 0, end))
        return {
            "answer": characters.texts(rows, begin, end),
            "start": begin,
            "end": end,
            "score": tf.exp(tf.where(without, nothing, score)),
            "truncated": cut | also,
        }

    return find
