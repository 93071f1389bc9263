"""Whether a `fit` runs at this moment, what it holds, and in which order: Keras tells its callbacks nothing of it."""

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


def put_last(callback, model):
    """Let a callback hear of each event as the last one of the `fit` that runs.

    Keras hands an event on by going over its list. The list gets a successor, so that this is not disturbed, and the
    callback stands at the end of both: of the event under way it hears once more, after all others.

    Returns:
        Whether it was the last one already; None where it is not in the list, or there is none to be found.
    """
    given = callback_list(model)
    if given is None or not any(one is callback for one in given.callbacks):
        return None
    if given.callbacks[-1] is callback:
        return True
    under_way = given.callbacks
    given.callbacks = [*_others(callback, under_way), callback]
    under_way.append(callback)
    return False


def put_first(callback, model):
    """Let a callback hear of the events to come before all others, where it is in the list of the `fit` that runs."""
    given = callback_list(model)
    if given is not None and any(one is callback for one in given.callbacks):
        given.callbacks = [callback, *_others(callback, given.callbacks)]


def _others(callback, callbacks):
    return [one for one in callbacks if one is not callback]


def _callbacks(model):
    """What `fit` calls its callbacks: those given, and from the begin of training Keras's list of them."""
    frame = fit_of(model)
    return None if frame is None else frame.f_locals.get("callbacks")
