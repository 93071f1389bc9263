"""Programs in processes of their own, without the seconds that importing Keras and its backend takes each time.

This file is also the program that imports what they need and forks once for each of them: each has a process that has
traced nothing and started no device before it. What is tested of a fresh Python (what an import brings, what a file
needs to be read) starts one instead, and so do the tests of `clean_process`, those of memory and those of torch.
"""

import atexit
import collections
import importlib
import importlib.metadata
import json
import os
import pathlib
import random
import runpy
import select
import subprocess
import sys
import tempfile
import threading
import time
import types
import warnings

import numpy as np

_IMPORTS = {
    "tensorflow": [f"keras_seqlm.export.{name}" for name in ("litert", "saved_model", "reference")]
    + ["seqlm_cli.train"],
    "jax": ["keras_seqlm.data", "keras_seqlm.models", "keras_seqlm.tokenizers", "keras_seqlm.training"],
}


_QUICK = ("--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1")


def quick_xla_flags(environment):
    """XLA's flags there, and those by which it compiles on a CPU in half the time; flags it does not know end it."""
    flags = environment.get("XLA_FLAGS", "")
    known = importlib.metadata.version("jaxlib").startswith("0.10.")
    return " ".join([flags, *(flag for flag in _QUICK if flag not in flags)]) if known else flags


class Forks:
    """Stands in for the module `subprocess`; the program that forks starts with the first request.

    Args:
        backend: "tensorflow" or "jax"; what runs on JAX runs as where TensorFlow is not installed, without optimisations,
            which take longer to compile than these tests to run.
    """

    PIPE, DEVNULL, TimeoutExpired = subprocess.PIPE, subprocess.DEVNULL, subprocess.TimeoutExpired

    def __init__(self, backend="tensorflow"):
        self.backend = backend
        self._program, self._rest, self._ended = None, b"", {}
        self._one_at_a_time = threading.Lock()
        self._own = {"KERAS_BACKEND": backend}
        if backend == "jax":
            self._own["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

    def run(self, command, input="", env=None, cwd=None, timeout=300, text=True, capture_output=True):
        """As `subprocess.run`, both streams captured as text."""
        assert text and capture_output
        with tempfile.TemporaryDirectory() as name:
            files = [pathlib.Path(name, stream) for stream in ("in", "out", "errors")]
            files[0].write_text(input)
            with open(files[1], "w") as out, open(files[2], "w") as errors:
                code = self.Popen(command, out, errors, env, cwd, files[0]).wait(timeout)
            said = [file.read_text(errors="replace") for file in files[1:]]
        return subprocess.CompletedProcess(command, code, *said)

    def Popen(self, command, stdout=None, stderr=None, env=None, cwd=None, stdin=os.devnull, text=True):
        """As `subprocess.Popen`; files are appended to."""
        assert command[0] == sys.executable
        with tempfile.TemporaryDirectory() as folder:
            streams = [_place(file, folder, name) for file, name in ((stdout, "out"), (stderr, "errors"))]
            pid = self._begin(command, [str(stdin), *streams], env, cwd)
            pipes = [
                open(path) if file == subprocess.PIPE else None
                for file, path in zip((stdout, stderr), streams, strict=True)
            ]
        return Forked(self, pid, command, *pipes)

    def _begin(self, command, streams, env, cwd):
        environment = {**(os.environ if env is None else env), **self._own}
        if self.backend == "jax":
            environment["XLA_FLAGS"] = quick_xla_flags(environment)
        request = {
            "command": [str(word) for word in command[1:]],
            "environment": environment,
            "folder": str(cwd or os.getcwd()),
            "streams": streams,
        }
        with self._one_at_a_time:
            self._start(environment)
            self._program.stdin.write(json.dumps(request).encode() + b"\n")
            self._program.stdin.flush()
            pid, _ = self._read()
            self._ended.pop(pid, None)  # of another process that had the number
        return pid

    def _start(self, environment):
        """The program, with what JAX reads as it is imported: the same for all that is forked from it."""
        jax = {name: value for name, value in environment.items() if name.startswith("JAX_")}
        if self._program is None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self._jax = jax
            self._program = subprocess.Popen([sys.executable, __file__, self.backend], env=environment, **pipes)
        assert jax == self._jax, f"JAX has read its environment: {jax} is not {self._jax}"

    def _read(self, timeout=120):
        """A line of the program, two numbers: a process and the word that it has begun, or its exit code; or None."""
        while b"\n" not in self._rest:
            if not select.select([self._program.stdout], [], [], timeout)[0]:
                return None
            read = os.read(self._program.stdout.fileno(), 4096)
            assert read, "the program that forks has ended"
            self._rest += read
        line, _, self._rest = self._rest.partition(b"\n")
        pid, what = line.split()
        if what != b"begun":
            self._ended[int(pid)] = int(what)
            return self._read(timeout)
        return int(pid), what

    def code_of(self, pid):
        """The exit code of a process, or None while it runs."""
        with self._one_at_a_time:
            if pid not in self._ended:
                self._read(timeout=0)
            return self._ended.get(pid)

    def close(self):
        if self._program is not None:
            self._program.stdin.close()
            self._program.wait()


class Forked:
    """As what `subprocess.Popen` gives."""

    def __init__(self, forks, pid, command, stdout, stderr):
        self._forks, self.pid, self.args, self.stdout, self.stderr = forks, pid, command, stdout, stderr
        self.returncode = None

    def poll(self):
        if self.returncode is None:
            self.returncode = self._forks.code_of(self.pid)
        return self.returncode

    def wait(self, timeout=300):
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill()
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.02)
        return self.poll()

    def communicate(self, timeout=300):
        said = [pipe and pipe.read() for pipe in (self.stdout, self.stderr)]
        self.wait(timeout)
        return said

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(9)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pipe in (self.stdout, self.stderr):
            if pipe is not None:
                pipe.close()
        self.wait()


def _place(file, folder, name):
    """The path by which a stream is opened in the other process; None stands for the stream of the tests."""
    if file == subprocess.PIPE:
        os.mkfifo(os.path.join(folder, name))
        return os.path.join(folder, name)
    return os.devnull if file == subprocess.DEVNULL else file and file.name


def serve(backend):
    if backend == "jax":
        sys.modules["tensorflow"] = None  # as where JAX trains alone: Keras would take four seconds to import it
    for name in _IMPORTS[backend]:
        importlib.import_module(name)
    if backend == "jax":
        from jax._src import xla_bridge

        assert not xla_bridge.backends_are_initialized(), "a fork would lack the threads that JAX has started"
        warnings.filterwarnings("ignore", message="os.fork")
    else:
        from tensorflow.python.eager import context

        assert not context.context()._initialized, "a fork would lack the threads that TensorFlow has started"
    rest, running, requests = b"", set(), collections.deque()
    while True:
        if select.select([0], [], [], 0.02 if running else None)[0]:
            read = os.read(0, 1 << 16)
            if not read:
                break
            *lines, rest = (rest + read).split(b"\n")
            requests.extend(lines)
        while requests:
            child = os.fork()
            if child == 0:
                become(**json.loads(requests[0]))
            requests.popleft()
            running.add(child)
            os.write(1, b"%d begun\n" % child)
        while running and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            running.discard(ended[0])
            os.write(1, b"%d %d\n" % (ended[0], os.waitstatus_to_exitcode(ended[1])))


def become(command, environment, folder, streams):
    """Be the program that the command names, and end as it does."""
    os.chdir(folder)
    for number, path in enumerate(streams):
        if path is None:
            os.dup2(2, number)
            continue
        file = os.open(path, os.O_WRONLY | os.O_APPEND if number else os.O_RDONLY)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # TMPDIR may be another one now
    random.seed()
    np.random.seed()
    named = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = dict.fromkeys([*named, *sys.path])
    code = 1
    try:
        code = _run(*command)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
        if code and not isinstance(ended.code, int):
            print(ended.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _run(first, *words):
    if first == "-c":
        script, *words = words
        sys.argv, sys.path[:0] = ["-c", *words], [os.getcwd()]
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        exec(compile(script, "<string>", "exec"), main.__dict__)
    elif first == "-m":
        sys.argv, sys.path[:0] = list(words), [os.getcwd()]
        warnings.filterwarnings("ignore", "'.*' found in sys.modules", RuntimeWarning)  # all is imported already, here
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[:0] = [first, *words], [str(pathlib.Path(first).parent)]
        runpy.run_path(first, run_name="__main__")
    return 0


if __name__ == "__main__":
    del sys.path[0]  # this folder, whose own `seqlm_cli` would be taken for the package
    serve(sys.argv[1])
