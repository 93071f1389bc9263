"""The figures of a task at each validation, among the logs, where other callbacks go by them."""

import keras

from keras_seqlm.nesting import innermost
from keras_seqlm.training.callbacks import RunCallback, ValidateAverage


class Figures(RunCallback):
    """Puts figures of the model into the logs of each epoch that was validated, as `val_NAME`.

    It must stand before those that read them in the list of callbacks: `HistoryCSV`, `EarlyStopping(monitor="val_NAME")`. Where
    the optimizer averages weights they are of the averaged ones, as the validation is.

    Args:
        function: `function() -> dict`, name -> number.

    Example:

    >>> import numpy as np
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
    >>> model.compile("sgd", "mse")
    >>> x, y = np.zeros((4, 2)), np.zeros((4, 1))
    >>> figures = Figures(lambda: {"sum": float(model.predict(np.ones((1, 2)), verbose=0)[0, 0])})
    >>> history = model.fit(x, y, validation_data=(x, y), callbacks=[figures], verbose=0)
    >>> round(history.history["val_sum"][0], 3)
    2.0
    """

    async_safe = True

    def __init__(self, function):
        super().__init__()
        self.function = function

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        if logs is None or "val_loss" not in logs:
            return
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()
        average = None
        if getattr(innermost(self.model.optimizer), "use_ema", False):
            average = ValidateAverage()
            average.set_model(self.model)
            average.on_test_begin()
        try:
            found = self.function()
        finally:
            if average is not None:
                average.on_test_end()
        logs.update({f"val_{name}": float(value) for name, value in found.items()})
