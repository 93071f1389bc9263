"""Several processes in one run: what started them, how JAX joins them (torch: torch_processes.py), and what is refused."""

import json
import os

import keras

PAST_ONE_PROCESS = (
    "past one process use KERAS_BACKEND=jax with distribution='auto', 'data-parallel' or 'model-parallel', or "
    "KERAS_BACKEND=torch under torchrun with 'auto' or 'data-parallel'; with one process, unset it"
)


def launcher():
    """The environment variable that says this is one of several processes, or None.

    Slurm (`srun`), Open MPI (`mpirun`) and Cloud TPU on Kubernetes set theirs by themselves; elsewhere, as in a
    Kubernetes job, one gives `JAX_COORDINATOR_ADDRESS` or Keras's own `KERAS_DISTRIBUTION_JOB_ADDRESSES`,
    `KERAS_DISTRIBUTION_NUM_PROCESSES` and `KERAS_DISTRIBUTION_PROCESS_ID`.
    """
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    signs = {
        "KERAS_DISTRIBUTION_NUM_PROCESSES": _number("KERAS_DISTRIBUTION_NUM_PROCESSES") > 1,
        "KERAS_DISTRIBUTION_JOB_ADDRESSES": "," in os.environ.get("KERAS_DISTRIBUTION_JOB_ADDRESSES", ""),
        # Only a step of `srun` has all of these: a shell in an allocation of many tasks is still one process.
        "SLURM_NTASKS": _number("SLURM_NTASKS") > 1 and all(name in os.environ for name in slurm),
        "OMPI_COMM_WORLD_SIZE": _number("OMPI_COMM_WORLD_SIZE") > 1,
        "JAX_COORDINATOR_ADDRESS": bool(os.environ.get("JAX_COORDINATOR_ADDRESS")),
        "TPU_PROCESS_ADDRESSES": "," in os.environ.get("TPU_PROCESS_ADDRESSES", ""),
        "TPU_WORKER_HOSTNAMES": "," in os.environ.get("TPU_WORKER_HOSTNAMES", ""),
    }
    return next((name for name, found in signs.items() if found), None)


def started_as_several():
    """Whether the environment says that this is one of several processes, joined or not."""
    return launcher() is not None or _number("WORLD_SIZE") > 1


def join():
    """Join the processes of the run, where the environment names some. JAX must not have computed anything before.

    Who has joined already (Ray Train does it for its workers, `keras.distribution.initialize` for a script) is left as is.

    Raises:
        RuntimeError: JAX could not join them; the message says which variable asked for it and what JAX lacked.
    """
    import jax

    sign = launcher()
    if sign is None or jax.distributed.is_initialized():
        return
    try:
        keras.distribution.initialize(**_named_otherwise(sign))
    except (RuntimeError, ValueError) as error:
        raise RuntimeError(
            f"{sign}={os.environ[sign]} says that this is one of several processes, and JAX could not join them: {error} "
            "Enter recipe.scope() (or call keras.distribution.initialize()) before anything is computed with JAX; give "
            "what is missing as KERAS_DISTRIBUTION_JOB_ADDRESSES (host:port of process 0), "
            "KERAS_DISTRIBUTION_NUM_PROCESSES and KERAS_DISTRIBUTION_PROCESS_ID; or use distribution='single'"
        ) from error


def refuse_environment(name):
    """Refuse several processes, and `keras.distribution`, on the backends where `fit` would train wrong numbers.

    Args:
        name: the distribution that was asked for.

    Raises:
        ValueError: with the reason and the way out.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        return
    if keras.distribution.distribution() is not None:
        raise ValueError(
            f"keras.distribution is set, and on the {backend} backend it does nothing: every step would run on one "
            "device; call keras.distribution.set_distribution(None), or set KERAS_BACKEND=jax before keras is imported"
        )
    under_torchrun = backend == "torch" and _number("WORLD_SIZE") > 1
    if under_torchrun and name == "single":
        raise ValueError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} says that torchrun started several processes, and with "
            "distribution='single' they exchange no gradients: each would train by itself and they would drift apart; use "
            "distribution='auto' or 'data-parallel', or start one process"
        )
    if backend == "tensorflow" and _workers_of_tf_config() > 1:
        raise ValueError(
            "TF_CONFIG names several workers, and Keras's fit does not work under MultiWorkerMirroredStrategy or "
            f"ParameterServerStrategy (keras issue 20585); {PAST_ONE_PROCESS}"
        )
    sign = launcher()
    # Several tasks of Slurm may well be several runs, each by itself: only "auto" leaves open what was meant.
    leaves_open = name == "auto" and not under_torchrun  # which Slurm may well have started, once on each machine
    if sign is not None and (leaves_open or sign.startswith("KERAS_DISTRIBUTION")):
        raise ValueError(
            f"{sign}={os.environ[sign]} says that this is one of several processes, which on the {backend} backend would "
            f"all train the same; {PAST_ONE_PROCESS}, or say distribution='single' for runs that have nothing to do with "
            "each other"
        )


def _named_otherwise(sign):
    """What JAX needs and does not read by itself: the names that job templates use beside JAX_COORDINATOR_ADDRESS, and
    Open MPI's where its launcher leaves no address (version 5)."""
    names = {
        "JAX_COORDINATOR_ADDRESS": ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"),
        "OMPI_COMM_WORLD_SIZE": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    }.get(sign)
    if names is None or any(name not in os.environ for name in names) or "OMPI_MCA_orte_hnp_uri" in os.environ:
        return {}
    return {"num_processes": int(os.environ[names[0]]), "process_id": int(os.environ[names[1]])}


def _number(name):
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() else 1


def _workers_of_tf_config():
    try:
        cluster = json.loads(os.environ.get("TF_CONFIG") or "{}").get("cluster", {})
        return sum(len(addresses) for addresses in cluster.values())
    except (ValueError, AttributeError, TypeError):
        return 1  # TensorFlow itself says what is wrong with it
