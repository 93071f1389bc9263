"""A class for a text, or for a pair of texts: an intent, a topic, several labels, a number."""

import dataclasses

import numpy as np

from keras_seqlm.metrics.classification import accuracy, macro_f1
from keras_seqlm.metrics.intervals import with_interval
from keras_seqlm.models import Classifier
from keras_seqlm.tasks.row_task import RowTask, rows_given
from seqlm_runtime.row_tasks.whole_texts import Classify, classification

FIELD_OF = {"class": "label", "labels": "labels", "number": "value"}


@dataclasses.dataclass
class Classification:
    """What `TextClassification.predict` says of one text."""

    label: str | None  # the most probable; None of a number, or where no label is more probable than not
    labels: list  # those that are more probable than not, where a text may have several; else the one
    probabilities: dict  # label -> probability
    value: float | None = None  # of a number


class TextClassification(RowTask):
    """Sorts texts. Rows have `text` (and `pair`, a second text), and one of `label`, `labels` (a list, or text with commas
    between) and `value` (a number).

    Args:
        model: a `Classifier`.
        tokenizer: of its backbone.
        labels: names of the classes, in the order of the model's; none for a number.
        kind: "class" (one of them), "labels" (any of them) or "number".

    Example:

    >>> from keras_seqlm.models import RecurrentEncoder
    >>> from keras_seqlm.tokenizers import ByteTokenizer
    >>> rows = [{"text": "Where is my card?", "label": "card"}, {"text": "Bye", "label": "end"}]
    >>> task = TextClassification.begin_with(rows, RecurrentEncoder(260, cell="gru", size="nano"), ByteTokenizer())
    >>> task.labels, sorted(task.predict(["My card is lost"])[0].probabilities)
    (['card', 'end'], ['card', 'end'])
    """

    model_class = Classifier
    fields = ("text",)
    served = Classify

    def __init__(self, model, tokenizer, labels=(), kind="class"):
        super().__init__(model, tokenizer)
        if kind not in FIELD_OF:
            raise ValueError(f"kind must be one of {list(FIELD_OF)}, got {kind!r}")
        self.labels, self.kind = list(labels), kind
        if model.num_classes != max(1, len(self.labels)):
            raise ValueError(f"the model has {model.num_classes} classes, and there are {len(self.labels)} labels")
        self._numbers = {label: number for number, label in enumerate(self.labels)}

    def settings(self):
        return {"labels": self.labels, "kind": self.kind}

    @classmethod
    def settings_from(cls, rows):
        """The kind of answer by the fields of the rows, and all labels, sorted."""
        kind, labels = None, set()
        for _, row in rows:
            kind = kind or next((kind for kind, field in FIELD_OF.items() if row.get(field) is not None), None)
            if kind in ("class", "labels"):
                labels.update(_labels_of(row, kind))
        if kind is None:
            raise ValueError(
                "no row has a label, labels or a value; name the column that holds it: columns={'label': 'category'} "
                "(--columns label=category)"
            )
        return {"labels": sorted(labels), "kind": kind}

    @classmethod
    def figures_of(cls, settings, rows=()):
        """See `RowTask`."""
        kinds = {"class": ("accuracy", "macro_f1"), "labels": ("micro_f1", "accuracy"), "number": ("pearson", "mse")}
        return kinds[settings["kind"]]

    def class_names(self):
        """See `RowTask`: the labels, where a text has one."""
        return (self.labels, {}) if self.kind == "class" else None

    @classmethod
    def head(cls, backbone, settings, **options):
        return Classifier(backbone, max(1, len(settings["labels"])), answers=settings["kind"], **options)

    def inputs(self, row):
        """What the model reads of a row."""
        return self.pair_inputs(row["text"], row.get("pair"))

    def example(self, row):
        field = FIELD_OF[self.kind]
        if row.get(field) is None:
            raise ValueError(f"it has no {field}; its fields are {', '.join(map(str, row))}")
        if self.kind == "number":
            return self.inputs(row), [float(row["value"])]
        names = _labels_of(row, self.kind)
        if self.kind == "class" and not names:
            raise ValueError("its label is empty")
        unknown = [name for name in names if name not in self._numbers]
        if unknown:
            raise ValueError(f"the label {unknown[0]!r} is not among the {len(self.labels)} that the model has")
        if self.kind == "class":
            return self.inputs(row), self._numbers[names[0]]
        several = np.zeros(len(self.labels), "float32")
        several[[self._numbers[name] for name in names]] = 1.0
        return self.inputs(row), several

    def predict(self, texts, batch_size=32):
        """Sort texts.

        Args:
            texts: a list of texts, of pairs of texts, or of rows with `text` and `pair`.
            batch_size: rows of a call.

        Returns:
            A list of `Classification`.

        Raises:
            ValueError: no list of texts, or what is no text.
        """
        rows = [_as_row(one) for one in rows_given(texts)]
        logits = self.outputs([self.inputs(row) for row in rows], batch_size)
        return [self.answer(row) for row in logits]

    def answer(self, logits):
        """The `Classification` that the logits (classes,) of a row are."""
        return Classification(**classification(logits, self.labels, self.kind))

    def evaluate(self, rows, batch_size=32):
        """The figures of labelled rows: accuracy and macro F1, of several labels micro F1, of numbers mse and pearson.

        Returns:
            dict of `count`, each figure and its 95% interval, as `accuracy`, `accuracy_low`, `accuracy_high`.
        """
        examples = self.read(rows, self.example)
        truth = np.array([target for _, target in examples])
        logits = np.array(self.outputs([inputs for inputs, _ in examples], batch_size))
        figures = {"count": len(examples)}
        if self.kind == "class":
            found = logits.argmax(axis=1)
            for name, metric in (("accuracy", accuracy), ("macro_f1", macro_f1)):
                figures |= with_interval(name, metric, truth, found)
        elif self.kind == "labels":
            found = logits > 0
            figures |= with_interval("accuracy", lambda a, b: np.mean((a == b).all(axis=1)), truth > 0.5, found)
            figures |= with_interval("micro_f1", _micro_f1, truth > 0.5, found)
        else:
            figures |= with_interval("mse", lambda a, b: np.mean((a - b) ** 2), truth, logits)
            figures |= with_interval("pearson", _pearson, truth[:, 0], logits[:, 0])
        return figures

    def judged(self, rows, batch_size=32):
        """See `RowTask`: of one class a row both, else nothing."""
        if self.kind != "class":
            return {}
        examples = self.read(rows, self.example)
        truth = np.array([target for _, target in examples])
        logits = np.array(self.outputs([inputs for inputs, _ in examples], batch_size), "float64")
        found = logits.argmax(axis=1)
        shares = np.exp(logits.max(axis=1) - np.logaddexp.reduce(logits, axis=1))
        known = {"names": self.labels, "truth": truth, "predicted": found}
        return {**known, "confidence": shares, "right": truth == found}


def _as_row(one):
    if isinstance(one, str | bytes):
        return {"text": one}
    if isinstance(one, tuple | list) and len(one) == 2:
        return {"text": one[0], "pair": one[1]}
    if isinstance(one, dict) and "text" in one:
        return one
    raise ValueError(f"expected a text, a pair of texts, or a row with a text, got {one!r:.60}")


def _labels_of(row, kind):
    found = row.get(FIELD_OF[kind])
    if found is None:
        return []
    if kind == "class":
        return [str(found)] if str(found).strip() else []
    return [str(name).strip() for name in (found.split(",") if isinstance(found, str) else found) if str(name).strip()]


def _micro_f1(truth, found):
    both = truth.sum() + found.sum()
    return 2 * (truth & found).sum() / both if both else 1.0


def _pearson(a, b):
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / size) if size else 0.0
