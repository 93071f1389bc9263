"""Learning rates over the steps of a run: a warm-up, then cosine, linear or constant."""

import math

import keras
from keras import ops

SCHEDULES = ("cosine", "linear", "constant")


@keras.saving.register_keras_serializable("keras_seqlm")
class WarmupSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A linear warm-up to `peak`, then a fall to `final`.

    With s the step, w the warm-up's steps and t = (s - w) / (steps - w), clipped to [0, 1]:

        s < w       peak * (s + 1) / (w + 1)
        cosine      final + (peak - final) * (1 + cos(pi * t)) / 2
        linear      final + (peak - final) * (1 - t)
        constant    peak

    Reference for the cosine: Loshchilov and Hutter 2017, arXiv:1608.03983.

    Args:
        kind: "cosine", "linear" or "constant".
        peak: the highest learning rate.
        steps: the step at which `final` is reached; it stays there.
        warmup_steps: w; 0 starts at `peak`.
        final: the last learning rate.

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

    def __init__(self, kind, peak, steps, warmup_steps=0, final=0.0, name="WarmupSchedule"):
        super().__init__()
        if kind not in SCHEDULES:
            raise ValueError(f"kind must be one of {list(SCHEDULES)}, got {kind!r}")
        if not 0 < peak < math.inf or not 0 <= final <= peak:
            raise ValueError(f"peak must be above 0 and final between 0 and peak, got peak={peak} and final={final}")
        if steps < 1 or warmup_steps < 0:
            raise ValueError(
                f"steps must be at least 1 and warmup_steps at least 0, got steps={steps} and warmup_steps={warmup_steps}"
            )
        self.kind = kind
        self.peak = float(peak)
        self.steps = int(steps)
        self.warmup_steps = int(warmup_steps)
        self.final = float(final)
        self.name = name

    def __call__(self, step):
        step = ops.cast(step, "float32")
        warming = self.peak * (step + 1.0) / (self.warmup_steps + 1.0)
        fall = max(self.steps - self.warmup_steps, 1)
        t = ops.clip((step - self.warmup_steps) / fall, 0.0, 1.0)
        falls = {"cosine": 0.5 * (1.0 + ops.cos(math.pi * t)), "linear": 1.0 - t, "constant": ops.ones_like(t)}
        above = falls[self.kind]
        return ops.where(step < self.warmup_steps, warming, self.final + above * (self.peak - self.final))

    def get_config(self):
        names = ("kind", "peak", "steps", "warmup_steps", "final", "name")
        return {name: getattr(self, name) for name in names}
