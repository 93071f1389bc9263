"""A vector for a text, near those of texts that mean the same."""

import numpy as np

from keras_seqlm.data import PairedExamples
from keras_seqlm.metrics.intervals import with_interval
from keras_seqlm.metrics.retrieval import recall_at_1, spearman
from keras_seqlm.models import Embedder
from keras_seqlm.tasks.row_task import RowTask, rows_given
from seqlm_runtime.row_tasks import Embed


class TextEmbedding(RowTask):
    """Makes vectors of texts. Rows have `text`, and `pair`, a text that means the same, or `label`, which texts that mean
    the same share. For a figure rows may have `pair` and `value`, how much the two mean the same.

    Batches hold texts in twos that mean the same (`data.PairedExamples`), and all others of a batch stand for what means
    something else (`losses.InBatchNegatives`).

    Args:
        model: an `Embedder`.
        tokenizer: of its backbone.

    Example:

    >>> from keras_seqlm.models import RecurrentEncoder
    >>> from keras_seqlm.tokenizers import ByteTokenizer
    >>> rows = [{"text": "Where is my card?", "pair": "My card is lost"}, {"text": "Bye", "pair": "See you"}]
    >>> task = TextEmbedding.begin_with(rows, RecurrentEncoder(260, cell="gru", size="nano"), ByteTokenizer(), embedding_dim=8)
    >>> task.predict(["Hello", "Bye"]).shape
    (2, 8)
    """

    model_class = Embedder
    fields = ("text",)
    batches = PairedExamples
    served = Embed

    @classmethod
    def figures_of(cls, settings, rows=()):
        """See `RowTask`."""
        first = next((row for _, row in rows if row.get("label") is not None or row.get("pair") is not None), {})
        return ("spearman",) if _kind(first) == "value" else ("recall_at_1",)

    @classmethod
    def head(cls, backbone, settings, **options):
        return Embedder(backbone, **options)

    def examples_of(self, row):
        """An example for each text of a row; its target is what it shares with others, of which `examples` makes ids."""
        if row.get("value") is not None:
            raise ValueError("its value says how much two texts mean the same, which is for figures alone")
        text = self.pair_inputs(row["text"])
        if row.get("label") is not None:
            return [(text, ("label", str(row["label"])))]
        if row.get("pair") is None:
            raise ValueError(f"it has neither pair nor label; its fields are {', '.join(map(str, row))}")
        shared = ("pair", row["text"], row["pair"])  # a pair that stands twice means the same
        return [(text, shared), (self.pair_inputs(row["pair"]), shared)]

    def made(self, inputs, targets):
        """See `RowTask`: ids, as their texts and labels are met first."""
        numbers = {}
        return inputs, [numbers.setdefault(shared, len(numbers)) for shared in targets]

    def predict(self, texts, batch_size=32):
        """The vectors of texts.

        Args:
            texts: a list of texts, or of rows with `text`.
            batch_size: rows of a call.

        Returns:
            float32 (texts, width), each of Euclidean length 1.
        """
        texts = [one["text"] if isinstance(one, dict) else one for one in rows_given(texts)]
        found = self.outputs([self.pair_inputs(text) for text in texts], batch_size)
        return np.stack(found) if found else np.zeros((0, self.model.output_width), "float32")

    def evaluate(self, rows, batch_size=32):
        """How well vectors find their like: `recall_at_1`, how often the nearest of all other texts has the label, or of
        all second texts of pairs is the own one; `spearman` of cosine and `value`, where rows have that.

        Returns:
            dict of `count`, each figure and its 95% interval, as `recall_at_1`, `recall_at_1_low`, `recall_at_1_high`.
        """
        kept = self.read(rows, _checked)
        if not kept or len({_kind(row) for row in kept}) > 1:
            raise ValueError(
                "rows must all have a label, all a pair, or all a pair and a value: evaluate each kind alone"
            )
        kind = _kind(kept[0])
        vectors = self.predict([row["text"] for row in kept], batch_size)
        figures = {"count": len(kept)}
        if kind == "label":
            labels = [str(row["label"]) for row in kept]
            return figures | with_interval("recall_at_1", np.mean, recall_at_1(vectors, vectors, labels, labels, True))
        pairs = self.predict([row["pair"] for row in kept], batch_size)
        if kind == "pair":
            texts = [row["pair"] for row in kept]  # one text may be the second of several
            return figures | with_interval("recall_at_1", np.mean, recall_at_1(vectors, pairs, texts, texts))
        values = np.array([float(row["value"]) for row in kept])
        return figures | with_interval("spearman", spearman, (vectors * pairs).sum(axis=1), values)


def _kind(row):
    if row.get("value") is not None and row.get("pair") is not None:
        return "value"
    return "label" if row.get("label") is not None else "pair"


def _checked(row):
    if row.get("label") is None and row.get("pair") is None:
        raise ValueError(f"it has neither pair nor label; its fields are {', '.join(map(str, row))}")
    if _kind(row) == "value":
        float(row["value"])
    return row
