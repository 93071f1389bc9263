"""Whether a `fit` runs at this moment, and what it holds: Keras tells its callbacks neither."""

import sys
import threading

import keras


def fit_of(model, frame=None):
    """The frame of the `fit` that trains `model` in a stack of frames, or None.

    Args:
        model: a Keras model.
        frame: the innermost frame of the stack; default the caller's own.
    """
    frame = frame or sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "fit" and frame.f_locals.get("self") is model:
            return frame
        frame = frame.f_back
    return None


def is_fitting(model):
    """Whether any thread of this process is in the `fit` of `model`."""
    frames = sys._current_frames()
    return any(fit_of(model, frames[thread.ident]) for thread in threading.enumerate() if thread.ident in frames)


def callbacks_of(model):
    """All callbacks of the `fit` that runs, Keras's own among them once training has begun."""
    given = _callbacks(model)
    return list(getattr(given, "callbacks", None) or keras.tree.flatten(given) if given is not None else [])


def callback_list(model):
    """Keras's `CallbackList` of the `fit` that runs, or None where it cannot be found."""
    given = _callbacks(model)
    return given if hasattr(given, "callbacks") else None


def _callbacks(model):
    """What `fit` calls its callbacks: those given, and from the begin of training Keras's list of them."""
    frame = fit_of(model)
    return None if frame is None else frame.f_locals.get("callbacks")
