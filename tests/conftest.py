"""Fixtures of the rooms that need trained models and their artifacts: each is made once, when a test first asks for it."""

import contextlib
import fcntl
import functools
import gc
import json
import os
import pathlib
import re
import select
import subprocess
import sys
import tempfile
import textwrap

import pytest
from forked import Forks, quick_xla_flags
from sentences import PROMPTS, READ, SENTENCES, train_on_sentences

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if os.environ["KERAS_BACKEND"] == "jax":
    os.environ["XLA_FLAGS"] = quick_xla_flags(os.environ)


TESTS = pathlib.Path(__file__).parent
gc.set_threshold(
    100_000, 50, 100
)  # graphs are made of many objects: a sixteenth of the time went into looking for waste
# Whoever asks for one of these trains, exports or starts another process.
SLOW_FIXTURES = {"trained", "run_folder", "saved_model", "litert", "serve", "in_python", "in_fork", "forks", "java"}
SLOW_FIXTURES |= {"row_run", "row_saved_model", "row_litert"}


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="leave out what is slow, exports or starts other processes")


def pytest_ignore_collect(collection_path, config):
    """A run of some marks does not import the files in which no test has one of them."""
    expression = config.option.markexpr
    wanted = set(re.findall(r"(?<!not )\b(alone|backends|neutral|soak)\b", expression))
    if wanted and not expression.startswith(("not", "(not")) and collection_path.suffix == ".py":
        text = collection_path.read_text(encoding="utf-8")
        marks = {"soak": ("mark.soak", "some_of"), "backends": ("mark.backends", "on_all")}
        return not any(word in text for name in wanted for word in marks.get(name, (f"mark.{name}",))) or None


def pytest_collection_modifyitems(config, items):
    """Files with slow tests first, or one worker would be left with them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    if config.getoption("quick"):
        named = set((TESTS / "not_quick.txt").read_text().splitlines())
        left_out = {item for item in items if _is_slow(item) or _place(item) in named}
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


def _is_slow(item):
    marked = any(item.get_closest_marker(name) for name in ("slow", "soak", "alone", "shared_data"))
    return marked or bool(SLOW_FIXTURES & set(item.fixturenames))


def _place(item):
    """As not_quick.txt names a test."""
    return f"{item.path.relative_to(TESTS).as_posix()}::{item.originalname}"


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Every test starts from one seed, so that none depends on those before it; keras is seeded where it is loaded.

    TensorFlow would also forget every operation and graph that it has made ready for running, and make them ready again in
    each test: a tenth of the time. It does so after each module, and where a test seeds by itself.
    """
    if "keras" in sys.modules:
        with pytest.MonkeyPatch.context() as patch:
            if context := sys.modules.get("tensorflow.python.eager.context"):
                patch.setattr(context.pywrap_tfe, "TFE_ContextClearCaches", lambda handle: None)
            sys.modules["keras"].utils.set_random_seed(20)


@pytest.fixture(autouse=True, scope="module")
def small_heap():
    """What a module leaves behind is let go of, or the collector walks over it in every module that follows."""
    if "tensorflow" in sys.modules:
        _let_go_of_iterators_at_once(sys.modules["tensorflow"])
    yield
    if "keras" in sys.modules:
        sys.modules["keras"].utils.clear_session()
        sys.modules["keras"].utils.set_random_seed(20)
    gc.collect()
    gc.freeze()


@functools.cache
def _let_go_of_iterators_at_once(tf):
    """Whoever lets go of an iterator of tf.data waits until its tuner has slept enough, up to a minute: none has one here."""
    plain = tf.data.Dataset.__iter__

    def iterate(dataset):
        options = tf.data.Options()
        options.autotune.enabled = False
        return plain(dataset.with_options(options) if tf.executing_eagerly() else dataset)

    tf.data.Dataset.__iter__ = iterate


@pytest.fixture(autouse=True, scope="session")
def token_cache(tmp_path_factory):
    """The cache of tokenized corpora lies in a folder of the test run, also for the processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_SEQLM_CACHE", str(tmp_path_factory.mktemp("token_cache")))
        yield


@pytest.fixture(scope="module")
def eager_steps():
    """On TensorFlow, models of the module are trained op by op: a graph takes longer to trace than it has steps to take.

    For tests of what is written, kept and said while a model trains. Where the step itself is tested, it is a graph.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.Model, "run_eagerly", property(lambda model: True, lambda model, value: None))
        yield


@pytest.fixture(scope="session")
def in_python():
    """Runs a script in a fresh process, in any backend; returns the JSON of the last line that it prints."""

    def run(script, *arguments, timeout=300, **environment):
        result = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **environment},
        )
        assert result.returncode == 0, result.stderr[-3000:]
        return json.loads(result.stdout.strip().splitlines()[-1])

    return run


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A text file of a few sentences, each a document of its own, said again and again."""
    path = tmp_path_factory.mktemp("corpus") / "sentences.jsonl"
    lines = [json.dumps({"text": SENTENCES[i * 7 % 5]}, ensure_ascii=False) for i in range(400)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """`once(name, make)` is a path that `make(path)` fills: made by the worker that asks first, the others wait for it."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # that of the whole run
    (root / "once").mkdir(exist_ok=True)

    def get(name, make, lock=None):
        path, marks = root / "once" / name, root / "once" / (lock or name).replace("/", "-")
        path.parent.mkdir(parents=True, exist_ok=True)
        made = marks.with_name(f"{name.replace('/', '-')}.made")
        with open(f"{marks}.lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not made.exists():
                make(path)
                made.touch()
        return path

    return get


@pytest.fixture(scope="session")
def run_folder(once, corpus):
    """`run_folder(name)` is the run folder of a model of that architecture, with its prompts."""

    def make(folder, name, dtype):
        train_on_sentences(corpus, name, dtype).save(folder)
        (folder / "prompts.json").write_text(json.dumps({"prompts": PROMPTS}), encoding="utf-8")

    return lambda name, dtype="float32": once(f"runs/{name}-{dtype}", lambda folder: make(folder, name, dtype))


@pytest.fixture(scope="session")
def trained(run_folder):
    """`trained(name)` is the `TextGeneration` of that run folder, which has learned the sentences a little."""
    from keras_seqlm import tasks

    return functools.cache(lambda name, dtype="float32": tasks.load(run_folder(name, dtype)))


@pytest.fixture(scope="session")
def forks():
    """`forks(backend)` stands in for `subprocess`, on TensorFlow or JAX, and saves the time of imports."""
    programs = {}
    yield lambda backend: programs.setdefault(backend, Forks(backend))
    for program in programs.values():
        program.close()


@pytest.fixture(scope="session")
def in_fork(forks):
    """As `in_python`, in a process that has Keras and the backend in memory."""

    def run(script, *arguments, backend, timeout=300, **environment):
        command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
        result = forks(backend).run(command, env={**os.environ, **environment}, timeout=timeout)
        assert result.returncode == 0, result.stderr[-3000:]
        return json.loads(result.stdout.strip().splitlines()[-1])

    return run


@pytest.fixture(scope="session")
def fast_exports(forks):
    """`with fast_exports():` exports and verifications fork a process that has TensorFlow in memory."""
    from keras_seqlm.export import clean_process

    @contextlib.contextmanager
    def patched():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(clean_process, "subprocess", forks("tensorflow"))
            yield

    return patched


@pytest.fixture(scope="session")
def saved_model(once, run_folder, fast_exports):
    """`saved_model(name)` is the path of the exported SavedModel."""
    from keras_seqlm import export

    def make(path, name):
        with fast_exports():
            export.saved_model(run_folder(name), path, max_new_tokens_limit=80, max_prompt_tokens=_READ.get(name))

    return lambda name: str(once(f"saved_models/{name}/1", lambda path: make(path, name)))


@pytest.fixture(scope="session")
def litert(once, run_folder, fast_exports):
    """`litert(name, quantize)` is the path of the exported LiteRT file; those of a name share its tokenizer."""
    from keras_seqlm import export

    def make(path, name, quantize):
        with fast_exports():
            options = {"quantize": quantize, "max_prompt_tokens": _READ.get(name)}
            assert export.litert(run_folder(name), path.with_name(f"{name}.tflite"), **options) == path

    def get(name, quantize="none"):
        file = f"litert/{name}.tflite" if quantize == "none" else f"litert/{name}-{quantize}.tflite"
        return str(once(file, lambda path: make(path, name, quantize), lock=f"litert/{name}"))

    return get


_READ = dict.fromkeys(("gru", "lstm"), READ)


@pytest.fixture(scope="session")
def row_run(once):
    """`row_run(name)` is the run folder of a task of `row_toys`."""
    from row_toys import save_toy

    return lambda name: once(f"row_runs/{name}", lambda folder: save_toy(folder, name))


@pytest.fixture(scope="session")
def row_saved_model(once, row_run, fast_exports):
    """`row_saved_model(name)` is the path of its SavedModel."""
    from row_toys import MOST_IDS

    from keras_seqlm import export

    def make(path, name):
        with fast_exports():
            export.saved_model(row_run(name), path, max_prompt_tokens=MOST_IDS.get(name))

    return lambda name: str(once(f"row_saved_models/{name}/1", lambda path: make(path, name)))


@pytest.fixture(scope="session")
def row_litert(once, row_run, fast_exports):
    """`row_litert(name, quantize)` is the path of its LiteRT file, which the command line has exported."""
    from row_toys import MOST_IDS

    import seqlm_cli

    def make(path, name, quantize):
        words = ["export", str(row_run(name)), "--to", "litert", "--quantize", quantize, "--name", name, "--no-verify"]
        words += ["--max-prompt-tokens", str(MOST_IDS[name])] if name in MOST_IDS else []
        with fast_exports():
            assert seqlm_cli.main([*words, "--saved-models", str(path.parent)]) == 0

    def get(name, quantize="none"):
        file = f"row_litert/{name}.tflite" if quantize == "none" else f"row_litert/{name}-{quantize}.tflite"
        return str(once(file, lambda path: make(path, name, quantize), lock=f"row_litert/{name}"))

    return get


class Served:
    """A process without XLA, or with it, that holds a SavedModel and answers requests until it is closed."""

    def __init__(self, path, xla):
        self._said = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, path, str(int(xla))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )

    def answers(self, requests, seconds=300):
        with contextlib.suppress(BrokenPipeError):  # of one that has ended there is no answer either
            self._process.stdin.write(json.dumps(requests) + "\n")
            self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            self.close()
            self._said.seek(0)
            pytest.fail(f"no answer, and the process said {self._said.read()[-3000:]}")
        return json.loads(line)

    def close(self):
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def serve():
    """`serve(path, requests)`: what a SavedModel answers in a process without XLA, one dict for each (signature, inputs).

    The process answers what else the module's tests ask. With `refused=True` an answer may be an error's text.
    """
    started = {}

    def run(path, requests, xla=False, refused=False):
        served = started.pop((path, xla), None) or Served(path, xla)
        answers = served.answers(requests)  # where it fails, it is closed
        started[path, xla] = served
        if len(started) > _SERVED_AT_ONCE:
            started.pop(next(iter(started))).close()
        errors = [answer for answer in answers if isinstance(answer, str)]
        assert refused or not errors, errors
        return answers

    yield run
    for served in started.values():
        served.close()


_SERVED_AT_ONCE = 3  # each takes most of a gigabyte

# Strings travel as Latin-1, so that any bytes do; numbers that JSON lacks, such as NaN, are written by Python's json.
_SERVE = """if True:
    import json, sys
    import numpy as np
    from seqlm_runtime import SavedModel
    model = SavedModel(sys.argv[1], xla=bool(int(sys.argv[2])))

    def answer(signature, inputs):
        wanted = model.signatures[signature].inputs
        values = {}
        for name, value in inputs.items():
            texts = wanted[name].dtype is object
            values[name] = [v.encode("latin-1") for v in value] if texts else np.asarray(value, wanted[name].dtype)
        try:
            found = model.run(signature, **values)
        except RuntimeError as error:
            return str(error)
        return {
            name: [v.decode("latin-1") for v in value] if value.dtype == object else value.tolist()
            for name, value in found.items()
        }

    for line in sys.stdin:
        answers = [answer(*request) for request in json.loads(line)]
        loaded = [name for name in ("tensorflow", "keras", "keras_seqlm") if name in sys.modules]
        assert not loaded, loaded
        print(json.dumps(answers), flush=True)
"""
