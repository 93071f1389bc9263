"""What the processes of one run agree on: the first one decides, and an error of one is the error of all."""

import builtins
import json

import keras
import numpy as np

ROOM = 1 << 16  # bytes of what one process tells the others


def several():
    """Whether this is one of several processes that JAX has joined."""
    if keras.backend.backend() != "jax":
        return False
    import jax

    # To ask for the count starts JAX's devices, which a run of several processes has done by then.
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_chief():
    """Whether this process is the one that writes and prints: the first of a JAX run of several, or the only one."""
    if keras.backend.backend() != "jax":
        return True
    import jax

    return not jax.distributed.is_initialized() or jax.process_index() == 0


def chief_decides(decide):
    """What `decide()` gives in the first process, known to all; the others do not call it.

    Args:
        decide: gives what JSON takes.

    Raises:
        Exception: in all of them, where `decide` raised.
    """
    if not several():
        return decide()
    return _share(decide if is_chief() else None)[0]


def all_do(function):
    """What `function()` gives in each process, a list in their order; it raises in all where it raised in one.

    Args:
        function: gives what JSON takes.
    """
    return _share(function) if several() else [function()]


def wait_for_all(name):
    """Until every process has come here."""
    if several():
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def _share(function):
    own, error = None, None
    try:
        own = None if function is None else function()
        said = {"answer": own}
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
    return kind(said["errno"], message) if issubclass(kind, OSError) and said["errno"] else kind(message)


def _exchange(content):
    from jax.experimental import multihost_utils

    text = json.dumps(content).encode()
    if len(text) > ROOM:
        raise ValueError(f"a process tells the others at most {ROOM} bytes, got {len(text)}")
    padded = np.frombuffer(text.ljust(ROOM), "uint8")
    return [json.loads(bytes(np.asarray(one, "uint8"))) for one in multihost_utils.process_allgather(padded)]
