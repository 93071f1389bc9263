"""The processes of one run, of JAX or of torch: which of them this is, and what all of them agree on: the first decides, an error of one is all's."""

import builtins
import json

import keras
import numpy as np

ROOM = 1 << 16  # bytes of what one process of JAX tells the others


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


def is_chief():
    """Whether this process is the one that writes and prints: the first of several, or the only one."""
    return index_and_count()[0] == 0


def chief_decides(decide):
    """What `decide()` gives in the first process, known to all; the others do not call it.

    Args:
        decide: gives what JSON takes.

    Raises:
        Exception: in all of them, where `decide` raised.
    """
    if not are_several():
        return decide()
    return _share(decide if is_chief() else None)[0]


def all_do(function):
    """What `function()` gives in each process, a list in their order; it raises in all where it raised in one.

    Args:
        function: gives what JSON takes.
    """
    return _share(function) if are_several() else [function()]


def _share(function):
    error, said = None, {"answer": None}
    try:
        if function is not None:
            said = {"answer": function()}
    except Exception as raised:
        error = raised
        said = {"error": str(raised), "kind": _kind(raised), "errno": getattr(raised, "errno", None)}
    told = _exchange(said)
    if error is not None:
        raise error
    for index, one in enumerate(told):
        if "error" in one:
            raise _raised_elsewhere(one, index)
    return [one["answer"] for one in told]


def _kind(error):
    """The name of the built-in class that an error of any class is one of."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins")


def _raised_elsewhere(said, index):
    kind = getattr(builtins, said["kind"])
    message = f"process {index} of this run: {said['error']}"
    if issubclass(kind, OSError) and said["errno"]:
        return kind(said["errno"], message)
    try:
        return kind(message)
    except TypeError:  # a class that is made of more than a text
        nearest = ValueError if issubclass(kind, ValueError) else RuntimeError  # ValueError: a wrong use, as there
        return nearest(f"process {index} of this run: {said['kind']}: {said['error']}")


def _exchange(content):
    """What each process says, in their order."""
    if keras.backend.backend() == "torch":
        from torch import distributed

        told = [None] * index_and_count()[1]
        distributed.all_gather_object(told, content)
        return told
    from jax.experimental import multihost_utils

    text = json.dumps(content).encode()
    if len(text) > ROOM:
        raise ValueError(f"a process tells the others at most {ROOM} bytes, got {len(text)}")
    padded = np.frombuffer(text.ljust(ROOM), "uint8")
    return [json.loads(bytes(np.asarray(one, "uint8"))) for one in multihost_utils.process_allgather(padded)]
