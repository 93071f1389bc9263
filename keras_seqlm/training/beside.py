"""Callbacks of Keras's own that `Resume` cannot stand beside as they are."""

import pathlib
import warnings

import keras


def refuse_others(callbacks):
    """See that no callback holds other weights than the model's own when a checkpoint is saved, or restores by itself.

    Args:
        callbacks: of the `fit` that begins.

    Raises:
        ValueError: one does; what to use in its place is named.
    """
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.SwapEMAWeights) and callback.swap_on_epoch:
            raise ValueError(
                "keras.callbacks.SwapEMAWeights(swap_on_epoch=True) leaves averaged weights in the model when an epoch "
                "ends, and a run that goes on would take them for its own; use keras_seqlm.training.ValidateAverage(), "
                "which validates with averaged weights, too, and gives the model its own back"
            )
        if isinstance(callback, keras.callbacks.BackupAndRestore):
            raise ValueError(
                "keras.callbacks.BackupAndRestore goes on from a backup of its own, and would overwrite what Resume has "
                "restored; leave it out, Resume does what it does"
            )


def keep_rows(callbacks):
    """Let a `CSVLogger` that would begin its file anew append to it, since the run goes on; a warning says so.

    Args:
        callbacks: of the `fit` that begins; none of them has begun.
    """
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.CSVLogger) and not callback.append:
            path = pathlib.Path(callback.filename)
            if path.is_file() and path.stat().st_size:
                callback.append = True
                warnings.warn(
                    f"CSVLogger(append=False) would wipe the rows of {path} that were written before, so this one appends "
                    "to them; say CSVLogger(filename, append=True). An epoch that is made again has two rows there; in "
                    "training.HistoryCSV it has one",
                    stacklevel=2,
                )
