"""Learning rates against their formulas in NumPy."""

import keras
import numpy as np
import pytest

from keras_seqlm.training import WarmupSchedule


def formula(kind, step, peak, steps, warmup_steps, final):
    """The cosine is the training script's that this package is measured against, written out in float64."""
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    t = min((step - warmup_steps) / (steps - warmup_steps), 1.0)
    if kind == "cosine":
        return final + 0.5 * (1 + np.cos(np.pi * t)) * (peak - final)
    return peak if kind == "constant" else peak + t * (final - peak)


@pytest.mark.backends
@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup_steps", [0, 7])
def test_it_equals_its_formula(kind, warmup_steps):
    schedule = WarmupSchedule(kind, 2e-3, 50, warmup_steps, 3e-4)
    rates = [float(keras.ops.convert_to_numpy(schedule(step))) for step in range(60)]
    expected = [formula(kind, step, 2e-3, 50, warmup_steps, 3e-4) for step in range(60)]
    np.testing.assert_allclose(rates, expected, rtol=2e-6)


def test_the_warm_up_meets_the_peak_and_the_end_is_kept():
    schedule = WarmupSchedule("linear", 1.0, 10, 3, 0.25)
    rates = [float(schedule(step)) for step in (0, 1, 2, 3, 10, 1000)]
    np.testing.assert_allclose(rates, [0.25, 0.5, 0.75, 1.0, 0.25, 0.25])


def test_more_warm_up_than_steps_is_still_a_warm_up():
    assert float(WarmupSchedule("cosine", 1.0, 5, 9)(4)) == pytest.approx(0.5)


def test_config_round_trip():
    schedule = WarmupSchedule("cosine", 1e-3, 100, 10, 1e-5)
    config = keras.optimizers.schedules.serialize(schedule)
    again = keras.optimizers.schedules.deserialize(config)
    assert isinstance(again, WarmupSchedule)
    assert again.get_config() == schedule.get_config()


@pytest.mark.parametrize(
    "arguments",
    [("step", 1e-3, 10), ("cosine", 0.0, 10), ("cosine", 1e-3, 0), ("cosine", 1e-3, 10, -1), ("cosine", 1, 9, 0, 2)],
)
def test_what_cannot_be_is_refused(arguments):
    with pytest.raises(ValueError, match=r"must be"):
        WarmupSchedule(*arguments)
