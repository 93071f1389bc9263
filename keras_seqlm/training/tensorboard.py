"""The numbers of a run as TensorBoard draws them."""

import pathlib
import threading
import time
import warnings

from keras_seqlm.training.callbacks import RunCallback


class TensorBoardScalars(RunCallback):
    """Write loss, learning rate, speed and gradient norm to a folder that `tensorboard --logdir` draws, on every backend.

    Names are those of `HistoryCSV`'s columns: `loss`, the mean over the steps since the point before, `learning_rate`,
    `tokens_per_second`, `gradient_norm`, `skipped_steps`, and at each validation `validation_loss`. A run that goes on
    from step n keeps the points up to n and takes back those after it. (`keras.callbacks.TensorBoard` counts steps from
    0 in each `fit`, knows neither speed nor gradient, and makes JAX wait for each step.)

    Args:
        folder: of the event files; each start writes one more.
        every: steps between two points.

    Raises:
        ValueError: `every` is below 1.
    """

    async_safe = True

    def __init__(self, folder, every=20):
        super().__init__()
        if every < 1:
            raise ValueError(f"every counts steps and must be at least 1, got {every}")
        self.folder = pathlib.Path(folder)
        self.every = every

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._lock = threading.RLock()  # JAX ends its batches in threads
        self._drawn = self._asked = self.run.step_before
        if not self.chief:
            return
        import tensorflow as tf

        # Its file format alone: nothing runs on a device, so that no GPU is taken away from another backend.
        self._v1, self._disk_errors, self._warned = tf.compat.v1, tf.errors.OpError, False
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = tf.io.TFRecordWriter(str(self.folder / f"events.out.tfevents.{time.time_ns()}"))
        self._append(file_version="brain.Event:2")
        # Of what other files hold, TensorBoard drops all from this step on.
        self._append(step=self.run.step_before + 1, session_log=self._v1.SessionLog(status=self._v1.SessionLog.START))

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        self._mean = (0, 0.0)  # of the losses of this piece: of how many steps, and the mean

    def on_train_batch_begin(self, batch, logs=None):
        step = self._piece_start + batch
        if self.chief and batch and step // self.every > self._asked // self.every:
            self._draw_optimizer(step)

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        step = self._piece_start + batch + 1
        if step <= self.run.step_before:
            self._mean = (self.steps_in_mean(), logs["loss"])
        elif self.chief:
            with self._lock:
                if step // self.every > self._drawn // self.every:
                    self._draw_step(step, self.steps_in_mean(), logs["loss"])

    def on_epoch_end(self, epoch, logs=None):
        count = self.steps_in_mean()
        super().on_epoch_end(epoch, logs)
        if not self.chief:
            return
        if self.step > self._drawn:
            self._draw_step(self.step, count, logs["loss"])
        if self.step > self._asked:
            self._draw_optimizer(self.step)
        self._draw(self.step, validation_loss=logs.get("val_loss"))

    def on_train_end(self, logs=None):
        if self.chief:
            self._file.close()

    def _draw_step(self, step, count, mean):
        # Keras gives the mean over the piece: what the steps since the last point have added to it is wanted.
        before, mean_before = self._mean
        loss = (mean * count - mean_before * before) / (count - before)
        self._drawn, self._mean = step, (count, mean)
        rate = None if self._schedule is None else self.learning_rate()
        self._draw(step, loss=loss, learning_rate=rate, tokens_per_second=self.tokens_per_second())

    def _draw_optimizer(self, step):
        self._asked = step
        norm, skipped = map(self.of_optimizer, ("gradient_norm", "skipped"))
        self._draw(step, gradient_norm=norm, skipped_steps=skipped)

    def _draw(self, step, **numbers):
        values = [
            self._v1.Summary.Value(tag=name, simple_value=number)
            for name, number in numbers.items()
            if number is not None
        ]
        if values:
            self._append(step=step, summary=self._v1.Summary(value=values))

    def _append(self, **event):
        with self._lock:
            try:
                self._file.write(self._v1.Event(wall_time=time.time(), **event).SerializeToString())
                self._file.flush()
            except (OSError, self._disk_errors) as error:
                if not self._warned:
                    self._warned = True
                    warnings.warn(
                        f"{self.folder} could not be written ({error}); training goes on, and points are missing there",
                        stacklevel=2,
                    )
