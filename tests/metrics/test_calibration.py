"""Calibration: bins and error counted by hand, and of a model that is as right as it is sure."""

import numpy as np
import pytest

from keras_seqlm.metrics import calibration_error, reliability


def test_bins_are_counted_one_by_one():
    random = np.random.default_rng(0)
    confidence, right = random.random(200), random.random(200) < 0.4
    points, error = reliability(confidence, right, 7), 0.0
    for place in range(7):
        chosen = [i for i in range(200) if place / 7 <= confidence[i] < (place + 1) / 7]
        said, came = np.mean(confidence[chosen]), np.mean(right[chosen])
        np.testing.assert_allclose(points[place], [said, came, len(chosen)])
        error += abs(said - came) * len(chosen) / 200
    assert calibration_error(confidence, right, 7) == pytest.approx(error)


def test_one_is_in_the_last_bin_and_empty_bins_count_nothing():
    points = reliability([1.0, 1.0], [True, False])
    assert points[-1].tolist() == [1.0, 0.5, 2.0] and np.isnan(points[:-1, :2]).all()
    assert calibration_error([1.0, 1.0], [True, False]) == 0.5


def test_as_right_as_sure():
    random = np.random.default_rng(1)
    confidence = random.random(20_000)
    assert calibration_error(confidence, random.random(20_000) < confidence) < 0.02
