"""Steps run in name only: those of an epoch that were made before the process that goes on was started."""

from keras_seqlm.training.callbacks import RunCallback
from keras_seqlm.training.running import callback_list


class InNameOnly:
    """Lets Keras count through steps that were made before: nothing is computed, and no callback of the user's hears of them.

    Args:
        model: in whose `fit` this happens.
    """

    def __init__(self, model):
        self.model = model
        self._function, self._list, self._callbacks = None, None, None

    def begin(self):
        """From here on a step reads its batch, hands out the numbers that the metrics hold, and changes nothing."""
        logs = {name: float(value) for name, value in self.model.get_metrics_result().items()}
        self._function = self.model.train_function

        def in_name_only(*arguments):
            if not isinstance(arguments[-1], list):  # torch gets a list of batches, the others an iterator
                for _ in range(self.model.steps_per_execution):
                    next(arguments[-1])
            return logs if len(arguments) == 1 else (logs, arguments[0])  # JAX hands its state in and out

        self.model.train_function = in_name_only
        self._list = callback_list(self.model)
        if self._list is not None:
            self._callbacks = self._list.callbacks
            self._list.callbacks = [callback for callback in self._callbacks if knows_of_them(callback)]

    def end(self):
        """The next step is a real one."""
        self.model.train_function = self._function
        if self._list is not None:
            self._list.callbacks = self._callbacks


def knows_of_them(callback):
    """Whether a callback is one of ours that looks after itself where a run goes on."""
    return isinstance(callback, RunCallback) and type(callback).__module__.startswith("keras_seqlm.")
