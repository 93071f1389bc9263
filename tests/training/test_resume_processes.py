"""Two JAX processes that are killed, or told to end, go on together as if nothing had happened."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import keras
import pytest

HERE = pathlib.Path(__file__).parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.backends,
    pytest.mark.skipif(keras.backend.backend() != "jax", reason="only JAX trains in several processes"),
]


def run_two(folder, distribution, kill_at=-1, number=signal.SIGKILL):
    """What both processes print, and how they end; a survivor of a killed one is ended, as a supervisor would."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    processes = []
    for index in range(2):
        environment = {
            **os.environ,
            "KERAS_BACKEND": "jax",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"127.0.0.1:{port}",
            "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
            "KERAS_DISTRIBUTION_PROCESS_ID": str(index),
        }
        words = [sys.executable, str(HERE / "resume_toy.py"), str(folder), distribution, str(kill_at), str(int(number))]
        out, errors = open(folder.parent / f"out{index}", "w+"), open(folder.parent / f"errors{index}", "w+")
        processes.append((subprocess.Popen(words, env=environment, stdout=out, stderr=errors), out, errors))
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


@pytest.mark.parametrize("distribution", ["data-parallel", "model-parallel:4"])
def test_two_processes_go_on_with_the_losses_they_would_have_had(tmp_path, distribution):
    def losses(folder, **kill):
        codes, said = run_two(tmp_path / folder, distribution, **kill)
        assert codes == [0, 0], said
        first, second = (json.loads(out.splitlines()[-1]) for out, _ in said)
        assert first == second
        return first

    before, whole = losses("alone")
    assert before == 0 and len(whole) == 12
    codes, _ = run_two(tmp_path / "killed", distribution, kill_at=5)
    assert codes[1] == -signal.SIGKILL
    before, rest = losses("killed")
    assert before == 3 and rest == whole[3:]


def test_sigterm_to_one_process_ends_both_after_the_same_step(tmp_path):
    codes, said = run_two(tmp_path / "told", "data-parallel", kill_at=5, number=signal.SIGTERM)
    assert codes == [143, 143], said
    codes, said = run_two(tmp_path / "told", "data-parallel")
    assert codes == [0, 0], said
    before, losses = json.loads(said[0][0].splitlines()[-1])
    assert before >= 5 and len(losses) == 13 - before  # the last step before is read out again, its epoch was not done
