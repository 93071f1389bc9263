"""The same batches as a `tf.data.Dataset`, for input pipelines and distribution strategies of TensorFlow."""

import contextlib
import itertools

import keras


def tf_dataset(blocks, first_step=0, num_steps=None):
    """Wrap the batches of a data set that computes them by step.

    Args:
        blocks: has `batch(step)`, `len()` and `complete`, as `CausalBlocks`; and, where batches are of several widths,
            `open_shapes(batch)`, as `Examples`.
        first_step: step of the first batch, counted over all epochs.
        num_steps: number of batches; None is without end, or up to the end of the pass if `blocks.complete`.

    Returns:
        A `tf.data.Dataset` whose `element_spec` has static shapes, but for axes that differ between batches.

    Raises:
        ValueError: if a count is negative.

    Example:

    ```python
    dataset = tf_dataset(train, first_step=1200)
    model.fit(dataset, steps_per_epoch=len(train), epochs=3)
    ```
    """
    if first_step < 0 or (num_steps is not None and num_steps < 0):
        raise ValueError(f"`first_step` and `num_steps` are counts, received {first_step} and {num_steps}.")
    tf = _tensorflow()
    if num_steps is None and blocks.complete:
        num_steps = len(blocks) - first_step % len(blocks)

    def batches():
        steps = itertools.count(first_step) if num_steps is None else range(first_step, first_step + num_steps)
        return map(blocks.batch, steps)

    first = blocks.batch(first_step)
    shapes_of = getattr(blocks, "open_shapes", lambda batch: keras.tree.map_structure(lambda array: array.shape, batch))
    signature = keras.tree.map_structure_up_to(
        first, lambda array, shape: tf.TensorSpec(shape, array.dtype), first, shapes_of(first)
    )
    dataset = tf.data.Dataset.from_generator(batches, output_signature=signature)
    size = tf.data.INFINITE_CARDINALITY if num_steps is None else num_steps
    return dataset.apply(tf.data.experimental.assert_cardinality(size)).prefetch(tf.data.AUTOTUNE)


def _tensorflow():
    import tensorflow as tf

    if keras.backend.backend() != "tensorflow":
        # TensorFlow only feeds here, and would otherwise take the memory of every GPU away from the backend. Where it
        # runs already, whoever started it has decided about its devices.
        with contextlib.suppress(RuntimeError):
            tf.config.set_visible_devices([], "GPU")
    return tf
