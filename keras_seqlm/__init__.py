"""Sequence language models in Keras 3: RNN, LSTM, GRU and Transformer on one contract, from text to phone.

`import keras_seqlm` registers the package's layers, models and schedules, so that `keras.saving.load_model` finds them; the other
rooms are imported when they are first named.
"""

import importlib

from keras_seqlm import layers, losses, models, training

__version__ = "0.1.0"
__all__ = ["data", "export", "generation", "layers", "load", "losses", "models", "tasks", "tokenizers", "training"]

_ROOMS = {"data", "export", "generation", "tasks", "tokenizers"}


def __getattr__(name):
    if name in _ROOMS:
        return importlib.import_module(f"keras_seqlm.{name}")
    if name == "load":
        return importlib.import_module("keras_seqlm.tasks").load
    raise AttributeError(f"module 'keras_seqlm' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__():
    return [*__all__, "__version__"]
