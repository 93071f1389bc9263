"""Tasks that say one thing of a whole text: its class, or a vector."""

import numpy as np

from seqlm_runtime.row_tasks.reading import Read, RowTask, as_str, log_shares, pair_ids


class Classify(RowTask):
    """A class of a text, or of a pair of texts; settings: `labels`, and `kind` "class", "labels" or "number".

    Example:

    >>> from seqlm_runtime.tokenizers import ByteTokenizer
    >>> task = Classify(ByteTokenizer(), 8, ("token_ids",), labels=["a", "b"], kind="class")
    >>> task.answer(task.read({"text": "x"}), [np.array([0.0, 3.0])])["label"]
    'b'
    """

    verb, labels, kind = "classify", (), "class"

    def optional(self):
        return ("pair",)

    def read(self, row):
        ids, types, cut = pair_ids(self.tokenizer, row["text"], row.get("pair"), self.room)
        return Read([self.inputs(ids, types)], cut)

    def answer(self, read, numbers):
        return classification(numbers[0], self.labels, self.kind)

    def from_outputs(self, outputs, number, row):
        if self.kind == "number":
            return classification(outputs["value"][number : number + 1], [], self.kind)
        labels, shares = [as_str(label) for label in outputs["labels"][number]], outputs["probabilities"][number]
        label = as_str(outputs["label"][number]) or None
        return by_probability(
            label, likely_labels(labels, shares) if self.kind == "labels" else [label], labels, shares
        )


def classification(logits, labels, kind):
    """What logits (classes,) say: dict of `label`, `labels`, `probabilities` (label -> probability) and `value`."""
    if kind == "number":
        return {"label": None, "labels": [], "probabilities": {}, "value": float(logits[0])}
    if kind == "class":
        shares = np.exp(log_shares(logits))
        best = labels[int(np.argmax(logits))]
        return by_probability(best, [best], labels, shares)
    shares = 1 / (1 + np.exp(-np.asarray(logits, "float64")))
    likely = likely_labels(labels, shares)
    return by_probability(likely[0] if likely else None, likely, labels, shares)


def likely_labels(labels, shares):
    """The labels that are more probable than not, the most probable first."""
    return [labels[i] for i in np.argsort(-shares, kind="stable") if shares[i] > 0.5]


def by_probability(label, likely, labels, shares):
    """A classification, of which the labels are known."""
    shares = dict(zip(labels, np.asarray(shares).tolist(), strict=True))
    return {"label": label, "labels": likely, "probabilities": shares, "value": None}


class Embed(RowTask):
    """A vector of a text."""

    verb = "embed"

    def read(self, row):
        ids, types, cut = pair_ids(self.tokenizer, row["text"], None, self.room)
        return Read([self.inputs(ids, types)], cut)

    def answer(self, read, numbers):
        return {"embedding": np.asarray(numbers[0]).tolist()}

    def from_outputs(self, outputs, number, row):
        return {"embedding": outputs["embedding"][number].tolist()}
