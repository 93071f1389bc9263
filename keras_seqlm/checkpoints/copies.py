"""Copies of the state on the accelerator that it lies on: made in a moment, brought to the host while training goes on."""

import contextlib

import keras
import numpy as np


def beside(arrays):
    """Copies of arrays (a dict) on their accelerator, or None where they lie on none, or where it has no room for them.

    There is room where the most that was ever in use, and the copies, fit. TensorFlow's do not say how much they have.
    """
    kind = {"jax": _beside_jax, "torch": _beside_torch}.get(keras.backend.backend())
    return kind(arrays) if kind is not None and arrays else None


def to_host(arrays):
    """The same, as NumPy arrays; a thread may do it while the next steps run."""
    if all(isinstance(array, np.ndarray) for array in arrays.values()):
        return arrays
    on_gpu = any(getattr(array, "is_cuda", False) for array in arrays.values())
    with _side_stream() if on_gpu else contextlib.nullcontext():
        return {
            name: array if isinstance(array, np.ndarray) else np.asarray(keras.ops.convert_to_numpy(array))
            for name, array in arrays.items()
        }


def _beside_jax(arrays):
    import jax

    needed = {}
    for array in arrays.values():
        for shard in array.addressable_shards:
            needed[shard.device] = needed.get(shard.device, 0) + shard.data.nbytes
    for device, size in needed.items():
        stats = (device.memory_stats() or {}) if device.platform != "cpu" else {}
        if stats.get("bytes_limit", 0) - stats.get("peak_bytes_in_use", 0) < size:
            return None
    return {name: jax.numpy.copy(array) for name, array in arrays.items()}


def _beside_torch(arrays):
    import torch

    if not all(array.is_cuda for array in arrays.values()):
        return None
    unused = torch.cuda.memory_reserved() - torch.cuda.max_memory_allocated()
    if torch.cuda.mem_get_info()[0] + unused < sum(array.nbytes for array in arrays.values()):
        return None
    return {name: array.detach().clone() for name, array in arrays.items()}


def _side_stream():
    """Where torch reads the copies, so that the steps that are made meanwhile do not wait behind them."""
    import torch

    torch.cuda.default_stream().synchronize()  # the copies are made
    return torch.cuda.stream(torch.cuda.Stream())
