"""A command that the system kills while it saves a checkpoint."""

import os
import signal
import subprocess
import sys

_PROGRAM = """
import sys, os, signal, seqlm_cli
from keras_seqlm.training import Checkpoints
save = Checkpoints.save
def killed(self, step, *arguments, **options):
    if step == int(sys.argv[1]): os.kill(os.getpid(), signal.SIGKILL)
    return save(self, step, *arguments, **options)
Checkpoints.save = killed
seqlm_cli.main(sys.argv[2:])
"""


def run_until_killed(words, step):
    """Run a `seqlm` command until it would write the checkpoint of a step."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _PROGRAM, str(step), *words]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr[-500:]
