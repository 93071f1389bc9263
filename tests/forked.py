"""Exports in a process of their own, without the four seconds that importing TensorFlow takes each time.

This file is also the program that imports what exports need and forks once for each request: each has a process that
has traced nothing before it. What goes in and what comes back is all `clean_process`'s own. Its own tests, those of the
command line and that of a model trained under JAX start a fresh Python instead.
"""

import importlib
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading


class Forks:
    """Stands in for the module `subprocess` in `clean_process`; the program starts with the first request."""

    def __init__(self):
        self._program = None
        self._one_at_a_time = threading.Lock()

    def run(self, command, input, env, text, capture_output):
        assert command == [sys.executable, "-m", "keras_seqlm.export.clean_process"] and text and capture_output
        with self._one_at_a_time:
            return self._run(command, input, env)

    def _run(self, command, input, env):
        if self._program is None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self._program = subprocess.Popen([sys.executable, __file__], env=env, **pipes)
        with tempfile.TemporaryDirectory() as folder:
            request = {"input": input, "environment": env, "folder": folder, "working_directory": os.getcwd()}
            self._program.stdin.write(json.dumps(request) + "\n")
            self._program.stdin.flush()
            code = self._program.stdout.readline()
            assert code, "the program that forks has ended"
            said = pathlib.Path(folder, "said").read_text(errors="replace")
        return subprocess.CompletedProcess(command, int(code), "", said)

    def close(self):
        if self._program is not None:
            self._program.stdin.close()
            self._program.wait()


def serve():
    for name in ("litert", "saved_model", "reference"):
        importlib.import_module(f"keras_seqlm.export.{name}")
    from tensorflow.python.eager import context

    assert not context.context()._initialized, "a fork would lack the threads that TensorFlow has started"
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            answer(**json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def answer(input, environment, folder, working_directory):
    """Be the program `clean_process`, and end as it does."""
    from keras_seqlm.export import clean_process

    os.chdir(working_directory)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = environment["PYTHONPATH"].split(os.pathsep)
    said = os.open(os.path.join(folder, "said"), os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.stdin = io.StringIO(input)
    code = 1
    try:
        clean_process._main()
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
