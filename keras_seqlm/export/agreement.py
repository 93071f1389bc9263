"""How artifacts stand to their models: what `verify` reports."""

import dataclasses

import numpy as np

from keras_seqlm.export.comparison import TIE

MAX_LOSS_INCREASE = 0.05  # nats a token
EXACT = ("saved-model", "litert")  # kinds whose weights are the model's own
# How far the logits of other weights may be from the model's, as a part of the spread of these: three times what the worst
# of our models has, rounded up.
MOST_APART = {"litert-float16": 0.02, "litert-int8": 0.3}
MAX_METRIC_LOSS = 0.05  # of the figure of a task, as accuracy


@dataclasses.dataclass
class Agreement:
    """How one artifact stands to its model; of one that was refused and not run the figures are None."""

    artifact: str
    kind: str  # "saved-model", "litert", "litert-int8" or "litert-float16"
    prompts: int
    agree: int
    exempt_steps: int
    same_choices: float | None  # share of the steps along the model's own texts where both choose the same token
    max_logit_difference: float | None
    forbidden_ops: list
    first_disagreement: str = ""
    loss_increase: float | None = 0.0  # nats a token, along the model's own texts
    relative_difference: float | None = 0.0  # of the logits, as a part of their spread
    max_loss_increase: float = MAX_LOSS_INCREASE
    reasons: list = dataclasses.field(default_factory=list)  # why it may not be shipped, in sentences

    @property
    def exact(self):
        """Whether its every choice has to be the model's; quantised weights are other weights, held to loss and logits."""
        return self.kind in EXACT

    @property
    def ok(self):
        """Whether the artifact may be shipped."""
        if self.forbidden_ops or self.reasons:
            return False
        if self.exact:
            return self.agree == self.prompts and self.max_logit_difference <= TIE
        most = MOST_APART[self.kind]
        return abs(self.loss_increase) <= self.max_loss_increase and self.relative_difference <= most

    @property
    def figure(self):
        """What it was held to, in a few letters: "20/20" texts, "loss +0.0003" or "not run"."""
        if self.same_choices is None:
            return "not run"
        return f"{self.agree}/{self.prompts}" if self.exact else f"loss {self.loss_increase:+.4f}"


class Report(list):
    """A list of `Agreement`, one an artifact, that prints as a table."""

    @property
    def ok(self):
        """Whether every artifact is."""
        return all(agreement.ok for agreement in self)

    def to_dict(self):
        """What `seqlm verify --json` writes: the artifact -> its figures."""
        return {a.artifact: {**_for_json(dataclasses.asdict(a)), "ok": a.ok, "exact": a.exact} for a in self}

    def table(self):
        """The titles and the rows of the table, as str."""
        titles = ("artifact", "kind", "agreement", "same choices", "exempt steps", "max |logit difference|", "")
        rows = []
        for a in self:
            figures = [a.figure, "-", "-", "-"]
            if a.same_choices is not None:
                figures[1:] = f"{a.same_choices:.1%}", str(a.exempt_steps), f"{a.max_logit_difference:.1e}"
            rows.append((a.artifact, a.kind, *figures, "ok" if a.ok else "FAILED"))
        return titles, rows

    def notes(self):
        """What stands below the table: each artifact's reasons."""
        return [f"{a.artifact}: {reason}" for a in self for reason in a.reasons or [a.first_disagreement] if reason]

    def __str__(self):
        titles, rows = self.table()
        widths = [max(len(row[i]) for row in [titles, *rows]) for i in range(len(titles))]
        lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in [titles, *rows])
        return "\n".join([*lines, *self.notes()])


def _for_json(figures):
    """JSON has no numbers that are not finite."""
    return {
        key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in figures.items()
    }


@dataclasses.dataclass
class RowAgreement(Agreement):
    """How one artifact of a task that answers rows stands to its model: `prompts` are rows, and logits its numbers."""

    loss_increase: float | None = None
    metric: str | None = (
        None  # what a quantised one is held to: "accuracy", say; "agreement" where nobody says what is right
    )
    metric_loss: float | None = None  # how much worse it is than the model's
    max_metric_loss: float = MAX_METRIC_LOSS

    @property
    def most_apart(self):
        """How far its numbers may be from the model's, as a part of their spread."""
        return MOST_APART.get(self.kind, 1.0)

    @property
    def ok(self):
        """Whether the artifact may be shipped."""
        if self.forbidden_ops or self.reasons or self.same_choices is None:
            return False
        if self.exact:
            return self.agree == self.prompts and self.max_logit_difference <= TIE
        return self.metric_loss <= self.max_metric_loss and self.relative_difference <= self.most_apart

    @property
    def figure(self):
        """What it was held to, in a few letters: "50/50" rows, "accuracy -0.0100" or "not run"."""
        if self.same_choices is None or (not self.exact and self.metric is None):
            return "not run" if self.same_choices is None else f"{self.agree}/{self.prompts}"
        return f"{self.agree}/{self.prompts}" if self.exact else f"{self.metric} {0.0 - self.metric_loss:+.4f}"
