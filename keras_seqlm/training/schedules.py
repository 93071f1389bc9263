"""Learning rates over the steps of a run: a warm-up, then one of five ways down."""

import math

import keras
from keras import ops

SCHEDULES = ("cosine", "linear", "constant", "inverse_sqrt", "wsd")


@keras.saving.register_keras_serializable("keras_seqlm")
class WarmupSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A linear warm-up to `peak`, then the way down that `kind` names.

    With s the step, w the warm-up's steps and t = (s - w) / (steps - w), clipped to [0, 1]:

        s < w           peak * (s + 1) / (w + 1)
        cosine          final + (peak - final) * (1 + cos(pi * t)) / 2
        linear          final + (peak - final) * (1 - t)
        constant        peak
        inverse_sqrt    peak * sqrt((w + 1) / (s + 1))
        wsd             peak, and over the last n steps final + (peak - final) * (1 - sqrt(u)), u from 0 to 1

    "wsd" (warm-up, stable, decay) keeps its rate until the end is in sight, so that a run can be made longer from any
    checkpoint before the decay.

    References: cosine: Loshchilov and Hutter 2017, arXiv:1608.03983; inverse_sqrt: Vaswani et al. 2017,
    arXiv:1706.03762, section 5.3; wsd: Hu et al. 2024, arXiv:2404.06395, with the 1 - sqrt of Hägele et al. 2024,
    arXiv:2405.18392.

    Args:
        kind: "cosine", "linear", "constant", "inverse_sqrt" or "wsd".
        peak: the highest learning rate.
        steps: the step at which `final` is reached; it stays there.
        warmup_steps: w; 0 starts at `peak`.
        final: the last learning rate; "constant" and "inverse_sqrt" take no notice of it.
        decay_fraction: of "wsd": n = decay_fraction * steps.

    Call arguments:
        step: the number of updates made so far.

    Returns:
        float32 scalar.

    Raises:
        ValueError: an unknown kind, or steps and rates out of range.

    Example:

    >>> schedule = WarmupSchedule("cosine", peak=1e-3, steps=1000, warmup_steps=99, final=1e-4)
    >>> [round(float(schedule(step)), 6) for step in (0, 99, 1000)]
    [1e-05, 0.001, 0.0001]
    """

    def __init__(self, kind, peak, steps, warmup_steps=0, final=0.0, decay_fraction=0.2, name="WarmupSchedule"):
        super().__init__()
        if kind not in SCHEDULES:
            raise ValueError(f"kind must be one of {list(SCHEDULES)}, got {kind!r}")
        if not 0 < peak < math.inf or not 0 <= final <= peak:
            raise ValueError(f"peak must be above 0 and final between 0 and peak, got peak={peak} and final={final}")
        if steps < 1 or warmup_steps < 0:
            raise ValueError(
                f"steps must be at least 1 and warmup_steps at least 0, got steps={steps} and warmup_steps={warmup_steps}"
            )
        if not 0 < decay_fraction <= 1:
            raise ValueError(f"decay_fraction must be above 0 and at most 1, got {decay_fraction}")
        self.kind = kind
        self.peak = float(peak)
        self.steps = int(steps)
        self.warmup_steps = int(warmup_steps)
        self.final = float(final)
        self.decay_fraction = float(decay_fraction)
        self.name = name

    def __call__(self, step):
        step = ops.cast(step, "float32")
        warming = self.peak * (step + 1.0) / (self.warmup_steps + 1.0)
        return ops.where(step < self.warmup_steps, warming, self._warm(step))

    def _warm(self, step):
        if self.kind == "constant":
            return self.peak * ops.ones_like(step)
        if self.kind == "inverse_sqrt":
            return self.peak * ops.sqrt((self.warmup_steps + 1.0) / (step + 1.0))
        first = self.warmup_steps
        if self.kind == "wsd":
            first = max(first, self.steps - round(self.decay_fraction * self.steps))
        t = ops.clip((step - first) / max(self.steps - first, 1), 0.0, 1.0)
        left = {"cosine": 0.5 * (1.0 + ops.cos(math.pi * t)), "linear": 1.0 - t, "wsd": 1.0 - ops.sqrt(t)}[self.kind]
        return self.final + left * (self.peak - self.final)

    def get_config(self):
        names = ("kind", "peak", "steps", "warmup_steps", "final", "decay_fraction", "name")
        return {name: getattr(self, name) for name in names}
