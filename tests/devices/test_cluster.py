"""What started several processes is found in the environment, and refused where `fit` would train wrong numbers."""

import json

import keras
import pytest

from keras_seqlm.devices import processes
from keras_seqlm.devices.cluster import launcher
from keras_seqlm.training import Recipe

TWO_WORKERS = json.dumps({"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}})


@pytest.mark.backends
@pytest.mark.parametrize(
    "backends, variables, names, said",
    [
        ("torch", {"WORLD_SIZE": "2"}, ("single",), "exchange no gradients.*distribution='auto' or 'data-parallel'"),
        ("torch", {"WORLD_SIZE": "2"}, ("auto",), "MASTER_ADDR.*is not set.*torchrun"),
        (
            "tensorflow",
            {"TF_CONFIG": TWO_WORKERS},
            ("auto", "single", "mirrored"),
            "20585.*KERAS_BACKEND=jax.*torchrun",
        ),
        ("torch tensorflow", {"KERAS_DISTRIBUTION_NUM_PROCESSES": "2"}, ("auto", "single"), "would all train the same"),
        ("torch tensorflow", {"OMPI_COMM_WORLD_SIZE": "4"}, ("auto",), "OMPI_COMM_WORLD_SIZE=4.*distribution='single'"),
    ],
)
def test_an_environment_that_would_train_wrong_numbers_is_refused(monkeypatch, backends, variables, names, said):
    if keras.backend.backend() not in backends:
        pytest.skip("it is harmless on this backend")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for name in names:
        with pytest.raises(ValueError, match=said), Recipe(distribution=name).scope():
            pass


@pytest.mark.backends
def test_keras_distribution_is_refused_where_it_does_nothing():
    if keras.backend.backend() == "jax":
        pytest.skip("there it works")
    keras.distribution.set_distribution("anything")
    try:
        with pytest.raises(ValueError, match="it does nothing.*set_distribution"), Recipe().scope():
            pass
    finally:
        keras.distribution.set_distribution(None)


@pytest.mark.parametrize(
    "variables, found",
    [
        ({}, None),
        ({"TF_CONFIG": TWO_WORKERS, "WORLD_SIZE": "2"}, None),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}, None),  # a shell of the allocation, and no task of it
        ({"KERAS_DISTRIBUTION_NUM_PROCESSES": "1"}, None),
        ({"KERAS_DISTRIBUTION_JOB_ADDRESSES": "10.0.0.1:1234,10.0.0.2:1234"}, "KERAS_DISTRIBUTION_JOB_ADDRESSES"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE"),
        ({"JAX_COORDINATOR_ADDRESS": "job-0:1234"}, "JAX_COORDINATOR_ADDRESS"),
        ({"TPU_WORKER_HOSTNAMES": "host-0"}, None),
        ({"TPU_WORKER_HOSTNAMES": "host-0,host-1"}, "TPU_WORKER_HOSTNAMES"),
    ],
)
def test_what_started_several_processes_is_found(monkeypatch, variables, found):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launcher() == found


@pytest.mark.parametrize(
    ("raises", "kind"),
    [
        (lambda: b"\xff".decode(), ValueError),
        (lambda: "\ud800".encode(), ValueError),
        (lambda: (_ for _ in ()).throw(ExceptionGroup("several", [OSError("a")])), RuntimeError),
        (lambda: {}["a"], KeyError),
    ],
)
def test_an_error_of_another_process_that_is_made_of_more_than_a_text_is_told(raises, kind):
    with pytest.raises(Exception) as raised:
        raises()
    error = raised.value
    told = processes._raised_elsewhere({"error": str(error), "kind": processes._kind(error), "errno": None}, 2)
    assert type(told) is kind and str(error) in str(told) and "process 2 of this run" in str(told)
    assert isinstance(error, kind) or kind is RuntimeError
    if type(error) is not kind:
        assert type(error).__name__ in str(told)


def test_an_error_of_another_process_keeps_its_number():
    error = processes._raised_elsewhere({"error": "full", "kind": "OSError", "errno": 28}, 1)
    assert (type(error), error.errno) == (OSError, 28) and "process 1 of this run: full" in str(error)
