"""What runs a recurrent cell over time: the fastest way that is right for the cell, the backend, the device and the dtype."""

import keras

HALF = ("float16", "bfloat16")
IN_CUDNN = {("tensorflow", "lstm"), ("tensorflow", "gru"), ("jax", "lstm")}


def choose(cell, backend, device, dtype, use_cudnn="auto", training=False, whole=True, plain=False):
    """Choose how a recurrent cell runs over time.

    Whole sequences, neither padded nor packed:

        backend     device   cell        float32   float16, bfloat16
        tensorflow  gpu      lstm, gru   cudnn     a scan
        jax         gpu      lstm        cudnn     a scan
        torch       gpu      every       torch     torch
        torch       cpu      every       torch     a scan
        all else                         a scan    a scan

    A scan is "scan_by_hand" in training, else "scan". Only a scan knows padding and borders between documents.

    Why not cuDNN in half precision: JAX binds it in float32 alone. TensorFlow's takes the halves, too, but keeps the state
    in them and cannot be compiled by XLA; the scan compiled by XLA is faster (measured on JAX, one H100, LSTM 2 x 1024:
    1.19x of PyTorch's cuDNN in float16). torch launches each operation by itself, so there a scan is slowest.

    Args:
        cell: "rnn", "gru" or "lstm".
        backend: "tensorflow", "jax" or "torch".
        device: "gpu" or "cpu".
        dtype: of the products.
        use_cudnn: False keeps a GPU from kernels that are no plain operations, as an export must.
        training: whether a gradient follows, which is differentiated but once.
        whole: whether every row is one document, without padding.
        plain: whether only plain operations serve, which a backend differentiates: one step, or a graph to be exported.

    Returns:
        "cudnn" (the Keras layer), "torch" (its own kernels), "scan_by_hand" or "scan".
    """
    if plain:
        return "scan"
    kernels = whole and (use_cudnn is not False or device != "gpu")
    if kernels and backend == "torch" and (dtype == "float32" or (device == "gpu" and dtype in HALF)):
        return "torch"
    if kernels and device == "gpu" and dtype == "float32" and (backend, cell) in IN_CUDNN:
        return "cudnn"
    return "scan_by_hand" if training else "scan"


def device():
    """Where the backend computes: "gpu" or "cpu" (JAX knows others, too)."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return "gpu" if tf.config.get_visible_devices("GPU") else "cpu"
    if backend == "jax":
        import jax

        return jax.default_backend()
    import torch

    return "gpu" if torch.cuda.is_available() else "cpu"
