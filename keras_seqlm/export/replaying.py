"""Artifacts that answer in processes of their own, which import neither TensorFlow's Python nor Keras."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np

_QUICK_XLA = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"  # known to TensorFlow 2.21
_SECONDS = 3600  # for one artifact
_ERROR = re.compile(r"[\w.]*(Error|Exception|RefusedOps): ")


class DoesNotRunError(Exception):
    """The artifact's process ended without an answer; the message says how."""


def replayed(module, asked, folder, xla=False):
    """The answer of a program of `seqlm_runtime`, from a process of its own: a dict of arrays.

    Args:
        module: its name.
        asked: dict of what it is asked.
        folder: for the two files that are passed on.
        xla: whether XLA compiles there.

    Raises:
        DoesNotRunError: it ended without an answer.
    """
    request, answer = (os.path.join(folder, f"{name}.npz") for name in ("request", "answer"))
    pathlib.Path(answer).unlink(missing_ok=True)
    np.savez(request, **asked)
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    if xla:  # what is compiled is verified, and not the compiler's optimisations, which take twice as long
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {_QUICK_XLA}".strip()
    doing = "generate_xla does not run" if xla else "it does not run"
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, request, answer],
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise DoesNotRunError(f"{doing}: after {_SECONDS} seconds it had not ended") from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"its process ended with exit code {done.returncode}"]
        errors = [i for i, line in enumerate(said) if _ERROR.match(line)]  # the last one is what the runner raised
        raise DoesNotRunError(f"{doing}: {' '.join(said[errors[-1] if errors else -1 :])[-1500:]}")
    with np.load(answer) as stored:
        return dict(stored)
