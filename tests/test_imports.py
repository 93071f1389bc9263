"""What an import costs: `import keras_seqlm` that of keras, `seqlm_runtime` that of NumPy, `seqlm --help` neither."""

import functools
import json
import os
import statistics
import subprocess
import sys
import time

import pytest

HEAVY = ("tensorflow", "tensorflow_text", "torch", "jax", "matplotlib", "tokenizers", "sentencepiece", "keras_hub")
MODULES = "import json, sys; print(json.dumps(sorted(sys.modules)))"


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )


@functools.cache
def modules_after(statement, **environment):
    """The modules that are loaded after a statement, in a fresh process."""
    result = python("-c", f"{statement}\n{MODULES}", **environment)
    assert result.returncode == 0, result.stderr[-2000:]
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_import_keras_seqlm_brings_nothing_heavy_that_keras_does_not():
    pytest.importorskip("jax")
    with_keras = modules_after("import keras", KERAS_BACKEND="jax")
    ours = modules_after("import keras_seqlm", KERAS_BACKEND="jax") - with_keras
    assert "jax" in with_keras and "keras_seqlm.models" in ours, "the look itself can see"
    assert not {name.split(".")[0] for name in ours} & set(HEAVY)
    assert not {f"keras_seqlm.{room}" for room in ("data", "export", "tasks", "tokenizers")} & ours


def test_rooms_are_imported_when_they_are_named():
    pytest.importorskip("jax")
    rooms = "keras_seqlm.tasks, keras_seqlm.export, keras_seqlm.load"
    named = modules_after(f"import keras_seqlm; {rooms}", KERAS_BACKEND="jax")  # the lightest backend
    assert {"keras_seqlm.tasks", "keras_seqlm.export", "keras_seqlm.tokenizers"} <= named
    ours = named - modules_after(
        "import keras", KERAS_BACKEND="jax"
    )  # which brings matplotlib itself, where that is installed
    assert not {name.split(".")[0] for name in ours} & set(HEAVY)


def test_the_runtime_needs_numpy_alone():
    statement = "import seqlm_runtime, seqlm_runtime.tokenizers, seqlm_runtime.sampler, seqlm_runtime.replay"
    loaded = modules_after(statement + "\nseqlm_runtime.LiteRTModel, seqlm_runtime.SavedModel")
    roots = {name.split(".")[0] for name in loaded - modules_after("import numpy")}
    assert not roots & {"keras", "keras_seqlm", "ai_edge_litert", *HEAVY}
    assert {name for name in roots if name not in sys.stdlib_module_names} == {"seqlm_runtime"}


def test_help_comes_without_keras():
    loaded = modules_after("import seqlm_cli\ntry:\n    seqlm_cli.main(['--help'])\nexcept SystemExit:\n    pass")
    assert not {name.split(".")[0] for name in loaded} & {"keras", "numpy", "keras_seqlm", *HEAVY}


@pytest.mark.alone
def test_help_takes_less_than_a_third_of_a_second():
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        result = python("-m", "seqlm_cli", "--help")
        seconds.append(time.perf_counter() - start)
        assert result.returncode == 0 and "demo" in result.stdout and "nano" in result.stdout
        if seconds[-1] < 0.3:
            break
    assert min(seconds) < 0.3, seconds


@pytest.mark.alone
@pytest.mark.slow
def test_import_keras_seqlm_costs_little_more_than_keras():
    """Differences of single pairs swing with the load of the machine, so their median counts.

    0.3 s is the promise on a quiet machine; a fifth of the cost of keras itself is allowed on top, which grows with the
    load as our own share does.
    """
    pytest.importorskip("jax")

    def seconds(statement):
        script = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
        result = python("-c", script, KERAS_BACKEND="jax")  # the lightest backend, beside which our share is largest
        assert result.returncode == 0, result.stderr[-2000:]
        return float(result.stdout.splitlines()[-1])

    seconds("import keras_seqlm")  # byte code is written, files are in memory
    pairs = [(seconds("import keras"), seconds("import keras_seqlm")) for _ in range(3)]
    allowed = 0.3 + 0.2 * statistics.median(first for first, _ in pairs)
    assert statistics.median(second - first for first, second in pairs) < allowed, pairs
