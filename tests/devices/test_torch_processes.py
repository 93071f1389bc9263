"""Two processes of torch train as one does, and go on after a kill as if nothing had happened.

`torch_toy.py` runs in both of them, with gloo on CPUs.
"""

import json
import os
import pathlib
import subprocess
import sys
import threading
import types

import keras
import numpy as np
import pytest
from training_toy import new_model

from keras_seqlm.checkpoints import Checkpoints
from keras_seqlm.devices import Single, strategy
from keras_seqlm.losses import CrossEntropy
from keras_seqlm.training import Recipe

TESTS = pathlib.Path(__file__).parents[1]
pytestmark = [
    pytest.mark.backends,
    pytest.mark.skipif(keras.backend.backend() != "torch", reason="torch.distributed"),
]


def start(folder, kind):
    """`torchrun` with two processes."""
    folders = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    environment = {**os.environ, "PYTHONPATH": folders, "OMP_NUM_THREADS": "1"}
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(TESTS / "torch_toy.py")]
    with open(folder / f"{kind} said", "wb") as said:
        return subprocess.Popen(
            [sys.executable, *words, str(folder), kind], env=environment, stdout=said, stderr=subprocess.STDOUT
        )


def finish(process):
    """The exit code of `torchrun`, which ends both processes when one has ended."""
    try:
        return process.wait(timeout=280)
    finally:
        process.kill()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two processes train and are killed; two others go on, and train what one process trains here meanwhile."""
    import torch
    import torch_toy

    folder, threads = tmp_path_factory.mktemp("torch"), torch.get_num_threads()
    killed = start(folder, "die")
    torch.set_num_threads(1)
    try:
        one = {case.__name__: case("single") for case in torch_toy.CASES}
    finally:
        torch.set_num_threads(threads)
    assert finish(killed) != 0
    steps = {name: Checkpoints(folder / name).newest().step for name in ("ended", "killed")}
    assert finish(start(folder, "train")) == 0, (folder / "train said").read_text()[-3000:]
    two = [json.loads((folder / f"train {rank}.json").read_text()) for rank in range(2)]
    return types.SimpleNamespace(folder=folder, one=one, two=two, steps=steps)


@pytest.mark.slow
def test_two_processes_train_as_one_does(results):
    first, second = (found["cases"] for found in results.two)
    assert first == second and set(first) == set(results.one)
    for case, (numbers, weights) in results.one.items():
        numbers_of_two, weights_of_two = first[case]
        assert numbers[-1][-1] < numbers[-1][0] - 0.05, f"{case} learned nothing, so that equal losses would say little"
        np.testing.assert_allclose(numbers_of_two, numbers, rtol=0, atol=1e-5, err_msg=case)
        for path, weight in weights.items():
            # The bias of the keys moves no probability: Adam makes steps of what is rounding in its gradient.
            if not path.endswith("qkv/bias"):
                np.testing.assert_allclose(weights_of_two[path], weight, rtol=0, atol=1e-5, err_msg=f"{case}: {path}")


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_it_had_been_left_alone(results):
    """One of the two is told to end and both end after the same step; or both are killed."""
    resumed, same = (found["resumed"] for found in results.two)
    assert resumed == same
    before, alone = resumed.pop("alone")
    assert before == 0 and len(alone["loss"]) == 3
    assert results.steps["ended"] == 5
    assert results.steps["killed"] in (3, 4, 6)  # the one of step 6 is written in the background
    for name, (step_before, rest) in resumed.items():
        assert step_before == results.steps[name]
        done = step_before // 4  # pieces of four steps that are not gone through again
        assert rest == {key: numbers[done:] for key, numbers in alone.items()}
        ours, theirs = (Checkpoints(results.folder / folder).newest() for folder in (name, "alone"))
        assert ours.step == theirs.step == 12 and set(ours.arrays()) == set(theirs.arrays())
        for key, array in theirs.arrays().items():
            np.testing.assert_array_equal(array, ours.arrays()[key], err_msg=f"{name}: {key}")


@pytest.mark.slow
def test_what_one_process_does_alone_stops_both_or_is_refused(results):
    said, same = (found["stopped"] for found in results.two)
    assert said == same and said["steps"] == 3  # where a callback of the second one stopped
    assert "no longer have the same weights" in said["drift"] and "token_embedding" in said["drift"]
    assert "cannot be divided by row" in said["arrays"]
    assert "stateful_batch_size=None" in said["carried"]
    assert "multiple of 2" in said["odd"]
    assert "exchange no gradients" in said["single"] and "'data-parallel'" in said["single"]


def test_auto_names_the_gpus_that_it_leaves_alone(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.warns(UserWarning, match="4 GPUs, and .* takes one.*torchrun --nproc-per-node=4 train.py.*'single'"):
        assert type(strategy("auto")) is Single
    monkeypatch.setenv("KERAS_TORCH_DEVICE", "cpu")  # a warning would be an error
    assert type(strategy("auto")) is Single


def test_data_parallel_without_torchrun_is_refused_with_the_command():
    with pytest.raises(
        ValueError, match="MASTER_ADDR.*is not set; start it with `torchrun --nproc-per-node=2 train.py`"
    ):
        Recipe(distribution="data-parallel").scope().__enter__()


def test_more_processes_than_gpus_are_refused(monkeypatch):
    import torch

    from keras_seqlm.devices.torch_processes import NAMES

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in NAMES:
        monkeypatch.setenv(name, "2")
    with pytest.raises(ValueError, match="LOCAL_RANK=2.*has 2 GPUs.*--nproc-per-node=2"):
        strategy("auto")


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (2.0, 2.0, None),
        (NAN, NAN, None),
        (INF, INF, None),
        (2.0, 2.2, "b differs by 9.1e-02"),
        (2.0, INF, "b differs by 1.0e"),
        (2.0, NAN, "b is NaN in some"),
        (NAN, 2.0, "b is NaN in some"),
        (0.0, NAN, "b is NaN in some"),
    ],
)
def test_weights_that_drift_apart_are_seen_in_both_processes(monkeypatch, first, second, said):
    """Two threads stand for the processes; `all_reduce` is of the numbers of both."""
    import torch
    from torch import distributed

    from keras_seqlm.devices.torch_processes import StopTogether

    given, together, heard = {}, threading.Barrier(2, timeout=60), {}

    def all_reduce(numbers, operation):
        given[threading.current_thread().name] = numbers.clone()
        together.wait()
        reduce = {distributed.ReduceOp.MIN: torch.minimum, distributed.ReduceOp.MAX: torch.maximum}[operation]
        numbers.copy_(reduce(given["0"], given["1"]))
        together.wait()

    def look(value):
        weights = [
            types.SimpleNamespace(path=path, value=torch.tensor([one])) for path, one in (("a", 1.0), ("b", value))
        ]
        stop = StopTogether()
        stop._model = types.SimpleNamespace(trainable_variables=weights)
        name = threading.current_thread().name
        try:
            heard[name] = stop._look_for_drift()
        except RuntimeError as error:
            heard[name] = str(error)

    monkeypatch.setattr(distributed, "all_reduce", all_reduce)
    threads = [threading.Thread(target=look, args=(one,), name=str(i)) for i, one in enumerate((first, second))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(heard) == {"0", "1"}
    for told in heard.values():
        assert told is None if said is None else f"no longer have the same weights: {said}" in told


@pytest.mark.parametrize("seed", [None, 5])
def test_dropout_differs_by_process_and_goes_on_alike(seed):
    from keras_seqlm.devices.torch_processes import _own_random_numbers

    def draw(index):
        keras.utils.set_random_seed(3)
        model = keras.Sequential([keras.Input((200,)), keras.layers.Dropout(0.5, seed=seed)])
        with _own_random_numbers(model, index):
            zeros = keras.ops.convert_to_numpy(model(np.ones((1, 200), "float32"), training=True)) == 0
        after = model(np.ones((1, 200), "float32"), training=True)
        return zeros, keras.ops.convert_to_numpy(after) == 0

    (first, after), (again, _), (other, after_other) = draw(0), draw(0), draw(1)
    np.testing.assert_array_equal(first, again)
    assert 60 < (first != other).sum() < 140
    np.testing.assert_array_equal(after, after_other)
    assert (first != after).sum() > 60


def test_a_fit_that_would_exchange_nothing_is_refused():
    from keras_seqlm.devices.torch_processes import TorchDataParallel

    devices = object.__new__(TorchDataParallel)
    devices.num_replicas, devices._index, devices._training = 2, 0, False
    for feed in (lambda: devices.feed(None, 0), lambda: devices.feed_validation([])):
        with pytest.raises(ValueError, match="training\\(model\\) alone.*Recipe.fit"):
            feed()


def test_settings_that_would_train_otherwise_are_named():
    from keras_seqlm.devices.torch_processes import _refuse

    class Own(type(new_model("tied"))):
        def train_step(self, data):
            return super().train_step(data)

    def loss(**options):
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **options)

    layers = [keras.layers.Embedding(9, 4, mask_zero=True), keras.layers.BatchNormalization(), keras.layers.Dense(9)]
    model = keras.Sequential([keras.Input((8,), dtype="int32"), *layers])
    model.compile("sgd", loss(ignore_class=3, reduction="sum"), jit_compile=True, steps_per_execution=2)
    with pytest.raises(ValueError) as caught:
        _refuse(model)
    for word in ("BatchNorm", "steps_per_execution", "jit_compile", "reduction='sum'", "ignore_class", "mask_zero"):
        assert word in str(caught.value)
    own = Own(23, "nano", max_length=8)
    own.compile("sgd", loss(reduction="mean_with_sample_weight"))
    with pytest.raises(ValueError, match="mean_with_sample_weight.*train_step of its own"):
        _refuse(own)
    for right in (loss(ignore_class=3), CrossEntropy(ignore_class=3)):
        model = new_model("tied")
        model.compile("sgd", right, jit_compile=True)
        _refuse(model)
