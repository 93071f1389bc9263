"""Several devices, and several processes, train as one device does; what would not is refused.

Each setting of devices runs in processes of its own, `training_toy.py`, with logical devices of the CPU.
"""

import functools
import json
import os
import pathlib
import socket
import sys
import types

import keras
import numpy as np
import pytest
from training_toy import Batches, new_model

from keras_seqlm.devices import Single, strategies, strategy
from keras_seqlm.losses import CrossEntropy
from keras_seqlm.nesting import innermost
from keras_seqlm.training import Recipe, clip_after_all_reduce

TESTS = pathlib.Path(__file__).parents[1]


def start(forks, folder, *arguments, program=(str(TESTS / "training_toy.py"),), **environment):
    """A process of a run; it writes to files, since a pipe that nobody reads would stop it."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "TMPDIR": str(folder), **environment}
    with open(folder / "out", "wb") as out, open(folder / "errors", "wb") as errors:
        return forks.Popen([sys.executable, *program, *arguments], env=environment, stdout=out, stderr=errors)


def finish(processes):
    """What each of them printed last. One that is left alone would wait for the others, so all end together."""
    try:
        for folder, process in processes.items():
            assert process.wait(timeout=560) == 0, (folder / "errors").read_text()[-3000:]
    finally:
        for process in processes.values():
            process.kill()
    return [json.loads((folder / "out").read_text().splitlines()[-1]) for folder in processes]


# A tied table and an untied one (on tf.data), an encoder under a mask's head, encoder-decoders with attention and with a
# recurrence. Two processes train the LSTM, too, on `causal_blocks`, which the guide reads by each distribution.
IN_ONE_PROCESS = {
    "mirrored": ("tied", "untied", "masked", "attentive"),
    "data-parallel": ("tied", "sources"),
    "model-parallel:2": ("untied", "masked", "attentive"),
}


@pytest.fixture(scope="module")
def results(forks, tmp_path_factory):
    """What the settings within one process print: backend -> result. Both run at once, as each keeps one core busy."""
    folders = {backend: tmp_path_factory.mktemp(backend) for backend in ("tensorflow", "jax")}
    mirrored = start(forks("tensorflow"), folders["tensorflow"], "mirrored", CASES=" ".join(IN_ONE_PROCESS["mirrored"]))
    words = [f"{name}={','.join(cases)}" for name, cases in IN_ONE_PROCESS.items() if name != "mirrored"]
    cases = {case for name, cases in IN_ONE_PROCESS.items() if name != "mirrored" for case in cases}
    spread = start(forks("jax"), folders["jax"], *words, DEVICES="4", CASES=" ".join(sorted(cases)))
    found = finish({folders["tensorflow"]: mirrored, folders["jax"]: spread})
    return dict(zip(folders, found, strict=True))


def run_two(forks, tmp_path, *arguments, named, **options):
    """The same program in two processes that find each other by the environment, `named(index)`."""
    folders = [tmp_path / str(index) for index in range(2)]
    for folder in folders:
        folder.mkdir()
    jax = forks("jax")
    return finish({folder: start(jax, folder, *arguments, **named(i), **options) for i, folder in enumerate(folders)})


def free_port(first=0):
    with socket.socket() as one:
        one.bind(("127.0.0.1", first))
        return one.getsockname()[1]


def check(result, replicas, cases=None):
    assert result["replicas"] == replicas
    cases = cases or IN_ONE_PROCESS
    assert set(result["losses"]) == {
        f"{distribution} {case}" for distribution in replicas for case in cases[distribution]
    }
    for case, (one, all_) in result["losses"].items():
        assert len(one) in (4, 8) and len(all_) == len(one)  # pieces of five steps
        assert one[3] < one[0] - 0.2, f"{case} learned nothing, so that equal losses would say little"
        np.testing.assert_allclose(all_, one, rtol=0, atol=1e-5, err_msg=case)
        for path, difference in result["weights"][case].items():
            # The bias of the keys moves no probability: Adam makes steps of what is rounding in its gradient.
            assert difference < 1e-5 or path.endswith("kv/bias"), f"{case}: {path} differs by {difference}"


@pytest.mark.slow
def test_mirrored_trains_as_one_device_does(results):
    result = results["tensorflow"]
    check(result, {"mirrored": 2})
    refused = result["refused"]["mirrored"]
    assert "with recipe.scope():\n        model = " in refused["outside"]
    assert "stateful_batch_size=None" in refused["carried"]
    for case in ("odd", "odd scope", "odd validation"):
        assert "multiple of 2" in refused[case]
    assert refused["bool"].startswith("x['padding_mask'] is of bool") and "int32" in refused["bool"]


@pytest.mark.slow
def test_data_parallel_and_model_parallel_train_as_one_device_does(results):
    result = results["jax"]
    check(result, {"data-parallel": 4, "model-parallel:2": 2})
    # On JAX carried state and half precision are right, because the program sees the whole batch.
    refused = result["refused"]
    assert set(refused["data-parallel"]) == {"outside", "odd", "odd scope", "odd validation", "bool"}
    assert "would not look at padding_mask" in refused["data-parallel"]["bool"]
    assert set(refused["model-parallel:2"]) == {*refused["data-parallel"], "odd width"}
    said = refused["model-parallel:2"]["odd width"]
    assert "token_embedding/table of shape (23, 9)" in said and "model-parallel:N" in said
    for ours, by_hand in result["shards"]:
        assert ours == by_hand  # `model.layout_map` says the same
        cut = [shape for shape, shard in ours if np.prod(shard) == np.prod(shape) / 2]
        whole = [shape for shape, shard in ours if np.prod(shard) == np.prod(shape)]
        assert len(cut) + len(whole) == len(ours)
        # All that is large is cut, slots included; the table of 8 positions is not.
        assert min(np.prod(shape) for shape in cut if len(shape) == 2) > max(np.prod(shape) for shape in whole)


@pytest.mark.slow
def test_two_processes_train_as_one_device_does(forks, tmp_path):
    address = f"127.0.0.1:{free_port()}"

    def named(index):
        names = {"JOB_ADDRESSES": address, "NUM_PROCESSES": "2", "PROCESS_ID": str(index)}
        return {f"KERAS_DISTRIBUTION_{name}": value for name, value in names.items()}

    # tf.data and `causal_blocks`; each process reads its own part of them. By 4, so that no process has the whole of a
    # weight.
    cases = {"data-parallel": ("untied", "text"), "model-parallel:4": ("tied",)}
    words = ("data-parallel=untied,text", "model-parallel:4=tied")
    first, second = run_two(forks, tmp_path, *words, named=named, CASES="tied untied text")
    check(first, {"data-parallel": 4, "model-parallel:4": 1}, cases)
    assert first["sums"] == second["sums"] and len(first["sums"]) == 3
    assert {case: all_ for case, (_, all_) in first["losses"].items()} == {
        case: all_ for case, (_, all_) in second["losses"].items()
    }


JOIN = """
import json, jax
from keras_seqlm.training import Recipe
with Recipe(distribution="auto", batch_size=4).scope():
    pass
print(json.dumps([jax.process_count(), jax.process_index()]))
"""


@pytest.mark.slow
def test_auto_joins_what_slurm_started(forks, tmp_path):
    job = free_port() % 2**12  # JAX makes the port of the job's number
    common = {"SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}

    def named(index):
        return {**common, "SLURM_PROCID": str(index), "SLURM_LOCALID": "0"}

    assert run_two(forks, tmp_path, named=named, program=("-c", JOIN)) == [[2, 0], [2, 1]]


@pytest.mark.backends
@pytest.mark.parametrize(
    "name, needed", [("mirrored", "tensorflow"), ("data-parallel", "jax"), ("model-parallel", "jax")]
)
def test_a_strategy_of_another_backend_is_refused_with_the_way_out(name, needed):
    if keras.backend.backend() == needed or (name, keras.backend.backend()) == ("data-parallel", "torch"):
        pytest.skip("it is this backend's")
    with pytest.raises(ValueError, match=f"KERAS_BACKEND={needed}"), Recipe(distribution=name).scope():
        pass


@pytest.mark.parametrize("name", ["horovod", "model-parallel:0", "model-parallel:two", "data-parallel:2", None])
def test_an_unknown_strategy_is_refused(name):
    with pytest.raises(ValueError, match="distribution must be one of .*'model-parallel:N'"):
        Recipe(distribution=name)


@pytest.mark.backends
def test_auto_is_one_device_where_there_is_one():
    assert type(strategy("auto")) is Single


def test_auto_mirrors_over_several_gpus(monkeypatch):
    import tensorflow as tf

    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind=None: [kind] * 3)
    monkeypatch.setattr(strategies, "Mirrored", lambda: "mirrored")
    assert strategy("auto") == "mirrored"


def test_arrays_are_refused_by_several_processes():
    """They would be read whole by each of them, and every row counted twice."""
    devices = object.__new__(strategies.DataParallel)
    devices.num_replicas = devices._parts = 2
    devices._distribution = types.SimpleNamespace(data_shard_id=1)
    x, y = Batches(4).batch(0)
    for refused in (lambda: devices.feed_validation((x, y)), lambda: devices.feed(iter([(x, y)]), 0)):
        with pytest.raises(ValueError, match="read their own rows.*keras.utils.PyDataset or a tf.data.Dataset"):
            refused()
    np.testing.assert_array_equal(devices.feed(Batches(4), 0)[0][0], x[1::2])


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.distribute")
def test_mirrored_settings_that_fail_in_keras_are_named():
    class Own(type(new_model("tied"))):
        def train_step(self, data):
            return super().train_step(data)

    from keras_seqlm.devices.strategies import _refuse_in_mirrored

    model = Own(23, "nano", max_length=8)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")
    optimizer = keras.optimizers.Adam(use_ema=True, gradient_accumulation_steps=2)
    model.compile(keras.optimizers.LossScaleOptimizer(optimizer), loss, steps_per_execution=2, jit_compile=True)
    with pytest.raises(ValueError) as caught:
        _refuse_in_mirrored(model)
    for word in (
        "scaled loss",
        "gradient_accumulation",
        "use_ema",
        "steps_per_execution",
        "jit_compile",
        "mean_with_sample_weight",
        "train_step",
    ):
        assert word in str(caught.value)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.distribute")
def test_a_mean_over_each_replicas_own_tokens_is_refused():
    """Of a model that is no `LanguageModel`, which would put it right."""
    from keras_seqlm.devices.strategies import _refuse_in_mirrored

    model, loss = new_model("bigram"), functools.partial(keras.losses.SparseCategoricalCrossentropy, from_logits=True)
    model.compile("sgd", loss(ignore_class=3))
    with pytest.raises(ValueError, match="ignore_class of a loss of Keras's.*use losses.CrossEntropy"):
        _refuse_in_mirrored(model)
    for right in (loss(), CrossEntropy(ignore_class=3)):
        model.compile("sgd", right)
        _refuse_in_mirrored(model)


def test_a_model_of_another_strategy_is_refused():
    model = new_model("tied")
    model._distribute_strategy = type("ParameterServerStrategyV2", (), {"num_replicas_in_sync": 4})()
    with pytest.raises(ValueError, match="inside a ParameterServerStrategyV2 of 4 replicas"):
        Recipe(batch_size=4).compile(model)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.distribute")
def test_a_mirrored_models_optimizer_saves_as_what_it_was(tmp_path):
    recipe = Recipe(steps=2, batch_size=4, distribution="mirrored", clip_norm=0.3)
    with recipe.scope():
        model = new_model("tied")
    recipe.fit(model, Batches(), progress=False)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert type(innermost(again.optimizer)) is keras.optimizers.AdamW
    assert innermost(again.optimizer).global_clipnorm == pytest.approx(0.3)
    for ours, theirs in zip(model.optimizer.variables, again.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_the_innermost_optimizer_is_found_and_clips_for_the_others():
    sgd = keras.optimizers.SGD(clipnorm=1.0)
    twice = keras.optimizers.LossScaleOptimizer(keras.optimizers.LossScaleOptimizer(sgd))
    assert innermost(twice) is sgd and innermost(sgd) is sgd
    clip_after_all_reduce(twice)
    assert sgd.clips_after_all_reduce
