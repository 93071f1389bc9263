"""Learning rates against their formulas in NumPy."""

import keras
import numpy as np
import pytest

from keras_seqlm.training import WarmupSchedule
from keras_seqlm.training.schedules import SCHEDULES

pytestmark = pytest.mark.neutral


def formula(kind, step, peak, steps, warmup_steps, final, decay_fraction=0.2):
    """The cosine is the training script's that this package is measured against, written out in float64."""
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    if (
        kind == "inverse_sqrt"
    ):  # Vaswani et al. 2017 count from step 1: d^-0.5 min(s^-0.5, s w^-1.5), here scaled to `peak`
        s, w = step + 1, warmup_steps + 1
        return peak * w**0.5 * min(s**-0.5, s * w**-1.5)
    if kind == "wsd":  # Hägele et al. 2024, with N steps and a cooldown of N_d: 1 - sqrt((n - (N - N_d)) / N_d)
        decay = round(decay_fraction * steps)
        done = min(max(step - (steps - decay), 0) / decay, 1.0)
        return final + (1 - np.sqrt(done)) * (peak - final)
    t = min((step - warmup_steps) / (steps - warmup_steps), 1.0)
    if kind == "cosine":
        return final + 0.5 * (1 + np.cos(np.pi * t)) * (peak - final)
    return peak if kind == "constant" else peak + t * (final - peak)


@pytest.mark.backends
@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("warmup_steps", [0, 7])
def test_it_equals_its_formula(kind, warmup_steps):
    schedule = WarmupSchedule(kind, 2e-3, 50, warmup_steps, 3e-4)
    rates = keras.ops.convert_to_numpy(schedule(np.arange(60)))
    expected = [formula(kind, step, 2e-3, 50, warmup_steps, 3e-4) for step in range(60)]
    np.testing.assert_allclose(rates, expected, rtol=2e-6)
    assert float(keras.ops.convert_to_numpy(schedule(41))) == pytest.approx(expected[41], rel=2e-6)


def test_the_inverse_square_root_is_that_of_the_paper():
    width, warmup_steps = 512, 4000
    peak = (width * warmup_steps) ** -0.5
    schedule = WarmupSchedule("inverse_sqrt", peak, 100_000, warmup_steps - 1, peak)
    for step in (1, 17, 3999, 4000, 4001, 100_000, 300_000):
        paper = width**-0.5 * min(step**-0.5, step * warmup_steps**-1.5)
        assert float(schedule(step - 1)) == pytest.approx(paper, rel=1e-6)


def test_wsd_decays_over_its_fraction_and_never_during_the_warm_up():
    rates = [float(WarmupSchedule("wsd", 1.0, 10, 2, 0.5, decay_fraction=0.4)(step)) for step in range(12)]
    np.testing.assert_allclose(rates[:7], [1 / 3, 2 / 3, 1, 1, 1, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(rates[7:], [0.75, 1 - 0.5 * 0.5**0.5, 1 - 0.5 * 0.75**0.5, 0.5, 0.5], rtol=1e-6)
    whole = [float(WarmupSchedule("wsd", 1.0, 10, 6, 0.0, decay_fraction=1.0)(step)) for step in (5, 6, 8, 10)]
    np.testing.assert_allclose(whole, [6 / 7, 1, 1 - 0.5**0.5, 0], rtol=1e-6, atol=1e-7)


def test_the_warm_up_meets_the_peak_and_the_end_is_kept():
    schedule = WarmupSchedule("linear", 1.0, 10, 3, 0.25)
    rates = [float(schedule(step)) for step in (0, 1, 2, 3, 10, 1000)]
    np.testing.assert_allclose(rates, [0.25, 0.5, 0.75, 1.0, 0.25, 0.25])


def test_more_warm_up_than_steps_is_still_a_warm_up():
    assert float(WarmupSchedule("cosine", 1.0, 5, 9)(4)) == pytest.approx(0.5)


def test_config_round_trip():
    schedule = WarmupSchedule("wsd", 1e-3, 100, 10, 1e-5, decay_fraction=0.3)
    config = keras.optimizers.schedules.serialize(schedule)
    again = keras.optimizers.schedules.deserialize(config)
    assert isinstance(again, WarmupSchedule)
    assert again.get_config() == schedule.get_config()


def test_a_config_from_before_a_schedule_could_decay_late_is_still_read():
    config = {"kind": "cosine", "peak": 1e-3, "steps": 100, "warmup_steps": 10, "final": 1e-5, "name": "WarmupSchedule"}
    assert WarmupSchedule.from_config(config).get_config() == {**config, "decay_fraction": 0.2}


@pytest.mark.parametrize(
    "arguments",
    [
        ("step", 1e-3, 10),
        ("cosine", 0.0, 10),
        ("cosine", 1e-3, 0),
        ("cosine", 1e-3, 10, -1),
        ("cosine", 1, 9, 0, 2),
        ("wsd", 1e-3, 10, 0, 0.0, 0.0),
        ("wsd", 1e-3, 10, 0, 0.0, 1.5),
    ],
)
def test_what_cannot_be_is_refused(arguments):
    with pytest.raises(ValueError, match=r"must be"):
        WarmupSchedule(*arguments)
