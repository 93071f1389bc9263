"""The best checkpoint by a figure of which the highest, or the lowest, is best; by the loss where a run goes by none."""

import numpy as np
import pytest

from keras_seqlm.checkpoints import CheckpointError, Checkpoints


def save(checkpoints, step, loss, figure=None, name="val_accuracy", mode="max", **meta):
    monitor = {"monitor": {"name": name, "mode": mode}, "figure": figure} if name else {}
    checkpoints.save(step, {"w": np.zeros(1, "float32")}, {"validation_loss": loss, **monitor, **meta})


def test_the_highest_stays_and_is_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step, (loss, figure) in enumerate([(3.0, 0.5), (2.0, 0.9), (1.0, 0.7), (0.5, 0.9), (0.1, None)], 1):
        save(checkpoints, step, loss, figure)
    assert checkpoints.steps() == [2, 5] and checkpoints.best().step == 2  # the first of two that are as good
    assert checkpoints.best_score() == -0.9 and checkpoints.best_loss() == 0.1


def test_the_lowest_where_that_is_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step, figure in enumerate((0.5, 0.2, 0.7), 1):
        save(checkpoints, step, 1.0 / step, figure, "val_mse", "min")
    assert checkpoints.best().step == 2 and checkpoints.best_score() == 0.2


def test_a_run_that_changes_what_it_goes_by_looks_anew(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    save(checkpoints, 1, 0.1, None, name=None)  # by the loss, as a version before wrote it
    save(checkpoints, 2, 0.2, None, "val_loss", "min")
    assert checkpoints.best().step == 1 and checkpoints.best_score() == 0.1
    save(checkpoints, 3, 0.3, 0.4)
    assert checkpoints.best().step == 3 and checkpoints.best_score() == -0.4
    assert checkpoints.best_score(monitor="val_loss") == 0.1
    save(checkpoints, 4, 0.3, float("nan"))
    assert checkpoints.best().step == 3
    save(checkpoints, 5, 0.3, 0.1, comparable_from=4)
    assert checkpoints.best().step == 5


def test_none_was_validated(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1, None)
    with pytest.raises(CheckpointError, match="no checkpoint .* was validated"):
        checkpoints.best()
    assert checkpoints.best_score() == float("inf")
