"""The processes of one run, of JAX or of torch: which of them this is, and what all of them must agree on."""

import keras


def index_and_count():
    """(number of this process, how many train together); (0, 1) where none were joined."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        # To ask for the index starts JAX's devices, which a run of several processes has done by then.
        return (jax.process_index(), jax.process_count()) if jax.distributed.is_initialized() else (0, 1)
    if backend == "torch":
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def are_several():
    """Whether this is one of several processes that train together."""
    return index_and_count()[1] > 1


def listens_itself():
    """Whether the backend takes SIGTERM for itself, and tells it to all processes: JAX does, torch does not."""
    return keras.backend.backend() == "jax" and are_several()


def any_is_told(here, step):
    """Whether any process was told to end, asked by all of them after the same step.

    Args:
        here: whether this one was.
        step: the one that was just made; JAX names the step after which all of them stop.
    """
    if keras.backend.backend() == "jax":
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)
    return any_true(here)


def any_true(here):
    """Whether `here` is true in any process of torch; all of them must ask."""
    import torch
    from torch import distributed

    flag = torch.tensor(int(bool(here)), dtype=torch.int32)  # on the host, so that no accelerator is waited for
    distributed.all_reduce(flag, distributed.ReduceOp.MAX)
    return bool(flag)


def wait_for_all(name):
    """Return when every process has come here."""
    if keras.backend.backend() == "jax":
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
    else:
        any_true(False)
