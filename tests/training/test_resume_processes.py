"""Two JAX processes that are killed, or told to end, go on together as if nothing had happened."""

import functools
import json
import os
import pathlib
import signal
import socket
import sys

import keras
import numpy as np
import pytest
from cases import some_of

import seqlm_cli
from keras_seqlm.training import Checkpoints, RunFolder

TESTS = pathlib.Path(__file__).parents[1]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.backends,
    pytest.mark.skipif(keras.backend.backend() != "jax", reason="only JAX trains in several processes"),
]


def run_two(forks, folder, distribution, kill_at=-1, number=signal.SIGKILL, words=None, second=None):
    """What both processes print, and how they end; a survivor of a killed one is ended, as a supervisor would.

    `words` is another program than the toy; `second` is the folder that the second process sees in place of `folder`.
    """
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    processes = []
    for index in range(2):
        environment = {
            **os.environ,
            "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"127.0.0.1:{port}",
            "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
            "KERAS_DISTRIBUTION_PROCESS_ID": str(index),
        }
        place = second if second is not None and index else folder
        toy = [str(TESTS / "resume_toy.py"), str(place), distribution, str(kill_at), str(int(number))]
        out, errors = open(folder.parent / f"out{index}", "w+"), open(folder.parent / f"errors{index}", "w+")
        program = [sys.executable, *(words or toy)]
        processes.append((forks("jax").Popen(program, env=environment, stdout=out, stderr=errors), out, errors))
    codes = [processes[1][0].wait(timeout=280)]
    if kill_at > 0 and number == signal.SIGKILL:
        processes[0][0].kill()
    codes.insert(0, processes[0][0].wait(timeout=280))
    said = []
    for _, out, errors in processes:
        out.seek(0), errors.seek(0)
        said.append((out.read(), errors.read()[-2000:]))
        out.close(), errors.close()
    return codes, said


def losses(forks, folder, distribution):
    """The step that both processes went on from, and the losses of the epochs that they ran."""
    codes, said = run_two(forks, folder, distribution)
    assert codes == [0, 0], said
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in said)
    assert first == second
    return first


@pytest.fixture(scope="module")
def left_alone(forks, tmp_path_factory):
    """The checkpoints and the losses of a run of that distribution that nobody stops."""

    @functools.cache
    def run(distribution):
        folder = tmp_path_factory.mktemp("left_alone") / "run"
        return folder, *losses(forks, folder, distribution)

    return run


@pytest.mark.parametrize(
    "distribution, number", some_of([("data-parallel", signal.SIGTERM), ("model-parallel:4", signal.SIGKILL)], 1)
)
def test_two_processes_go_on_with_the_losses_they_would_have_had(forks, tmp_path, left_alone, distribution, number):
    """One of the two is told to end, and both end after the same step; or one is killed, and a supervisor the other."""
    folder, before, whole = left_alone(distribution)
    assert before == 0 and len(whole) == 12
    codes, said = run_two(forks, tmp_path / "ended", distribution, kill_at=5, number=number)
    assert codes == [143, 143] if number == signal.SIGTERM else codes[1] == -signal.SIGKILL, said
    in_parts = [path.parent.name for path in (tmp_path / "ended").glob("step-*/shards")]
    assert bool(in_parts) == distribution.startswith("model-parallel")  # data-parallel: both hold all of it
    before, rest = losses(forks, tmp_path / "ended", distribution)
    if number == signal.SIGTERM:
        assert before >= 5
        assert rest == whole[before - 1 :]  # the step is read out again, as its epoch, with a validation, was not done
    else:
        assert before in (1, 3)  # the one of step 3 is written in the background
        assert rest == whole[before:]
    alone, ended = (Checkpoints(place).newest() for place in (folder, tmp_path / "ended"))  # one process reads it all
    assert alone.step == ended.step == 12 and set(alone.arrays()) == set(alone.shapes)
    for name, array in alone.arrays().items():
        np.testing.assert_array_equal(array, ended.arrays()[name], err_msg=name)


def test_a_process_that_sees_other_checkpoints_ends_both(forks, tmp_path, left_alone):
    """Today's storage shows a folder late, or not at all: one went on from 0 beside one at 12, and then both hung."""
    folder, *_ = left_alone("data-parallel")
    (tmp_path / "late").mkdir()
    codes, said = run_two(forks, folder, "data-parallel", second=tmp_path / "late")
    assert codes == [1, 1], said
    for _, errors in said:
        assert "late/step-00000012 is incomplete: it has no manifest.json" in errors
    assert Checkpoints(folder).newest().step == 12 and not list((tmp_path / "late").iterdir())


def test_two_processes_replace_a_run_and_a_third_is_refused(forks, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("It was a dark night, and the wind was loud. " * 60)
    run = tmp_path / "runs" / "two"
    words = ["-m", "seqlm_cli", "train", "--text", str(text), "--out", str(run), "--model", "gru", "--size", "nano"]
    words += ["--context", "16", "--batch", "4", "--steps", "4"]
    assert seqlm_cli.main([*words[2:], "--distribution", "single", "--seed", "9"]) == 0  # what they replace
    together = [*words, "--distribution", "data-parallel"]
    for more, wanted in ((["--overwrite"], 0), (["--dropout", "0.5"], 2)):
        codes, said = run_two(forks, tmp_path / "out", "", words=[*together, *more])
        assert codes == [wanted, wanted], said
    assert all("--dropout was 0.0 and is 0.5" in errors for _, errors in said)
    assert Checkpoints(run / "checkpoints").newest().step == 4
    with RunFolder(run):  # as another run would hold it
        codes, said = run_two(forks, tmp_path / "out", "", words=[*together, "--overwrite"])
    assert codes == [2, 2] and all("trains there; stop it" in errors for _, errors in said), said
    assert Checkpoints(run / "checkpoints").newest().step == 4
