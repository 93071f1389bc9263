"""Fixtures of the rooms that need trained models and their artifacts: each is made once, when a test first asks for it."""

import functools
import gc
import json
import os
import subprocess
import sys
import textwrap

import pytest
from sentences import PROMPTS, SENTENCES, train_on_sentences

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Every test starts from one seed, so that none depends on those before it; keras is seeded where it is loaded."""
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(20)


@pytest.fixture(autouse=True, scope="module")
def small_heap():
    """What a module leaves behind is let go of, or the collector walks over it in every module that follows."""
    yield
    if "keras" in sys.modules:
        sys.modules["keras"].utils.clear_session()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def token_cache(tmp_path_factory):
    """The cache of tokenized corpora lies in a folder of the test run, also for the processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_SEQLM_CACHE", str(tmp_path_factory.mktemp("token_cache")))
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
def trained(corpus):
    """`trained(name)` is a `TextGeneration` of that architecture which has learned the sentences a little."""
    made = {}

    def get(name, dtype="float32"):
        if (name, dtype) not in made:
            made[name, dtype] = train_on_sentences(corpus, name, dtype)
        return made[name, dtype]

    return get


@pytest.fixture(scope="session")
def run_folder(trained, tmp_path_factory):
    """`run_folder(name)` is the run folder of `trained(name)`, with its prompts."""
    root = tmp_path_factory.mktemp("trained") / "runs"

    made = {}

    def get(name, dtype="float32"):
        if (name, dtype) not in made:
            made[name, dtype] = folder = root / f"{name}-{dtype}"
            trained(name, dtype).save(folder)
            (folder / "prompts.json").write_text(json.dumps({"prompts": PROMPTS}), encoding="utf-8")
        return made[name, dtype]

    return get


@pytest.fixture(scope="session")
def saved_model(run_folder, tmp_path_factory):
    """`saved_model(name)` is the path of the exported SavedModel."""
    from keras_seqlm import export

    root = tmp_path_factory.mktemp("saved_models")
    return functools.cache(
        lambda name: str(export.saved_model(run_folder(name), root / name / "1", max_new_tokens_limit=80))
    )


@pytest.fixture(scope="session")
def litert(run_folder, tmp_path_factory):
    """`litert(name, quantize)` is the path of the exported LiteRT file; all lie in one folder."""
    from keras_seqlm import export

    root = tmp_path_factory.mktemp("litert")
    made = {}

    def get(name, quantize="none"):
        if (name, quantize) not in made:
            made[name, quantize] = str(export.litert(run_folder(name), root / f"{name}.tflite", quantize))
        return made[name, quantize]

    return get


@pytest.fixture(scope="session")
def serve(in_python):
    """`serve(path, requests)`: what a SavedModel answers in a process without XLA, one dict for each (signature, inputs)."""

    def run(path, requests, xla=False):
        return in_python(_SERVE, path, json.dumps(requests), int(xla))

    return run


# Strings travel as Latin-1, so that any bytes do; numbers that JSON lacks, such as NaN, are written by Python's json.
_SERVE = """
    import json, sys
    import numpy as np
    from seqlm_runtime import SavedModel
    model = SavedModel(sys.argv[1], xla=bool(int(sys.argv[3])))
    answers = []
    for signature, inputs in json.loads(sys.argv[2]):
        wanted = model.signatures[signature].inputs
        values = {}
        for name, value in inputs.items():
            texts = wanted[name].dtype is object
            values[name] = [v.encode("latin-1") for v in value] if texts else np.asarray(value, wanted[name].dtype)
        answers.append({
            name: [v.decode("latin-1") for v in value] if value.dtype == object else value.tolist()
            for name, value in model.run(signature, **values).items()
        })
    loaded = [name for name in ("tensorflow", "keras", "keras_seqlm") if name in sys.modules]
    assert not loaded, loaded
    print(json.dumps(answers))
"""
