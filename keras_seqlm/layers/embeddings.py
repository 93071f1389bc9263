"""Token embedding with a dense gradient, and the lookup that learned positions share."""

import keras
from keras import ops


@ops.custom_gradient
def _gather_rows(table, ids):
    rows = ops.take(table, ids, axis=0)
    vocabulary, width = table.shape

    def gradient(*args, upstream=None):
        upstream = args[0] if upstream is None else upstream
        flat = ops.reshape(upstream, (-1, width))
        return ops.segment_sum(flat, ops.reshape(ids, (-1,)), num_segments=vocabulary), None

    return rows, gradient


def lookup(table, ids):
    """Rows of `table` (vocabulary, width) at `ids`, with a dense gradient on every backend.

    TensorFlow's own gradient of a lookup is an `IndexedSlices` whose repeated rows Keras's optimizers square before
    they are summed, so Adam and its kin train an id that occurs twice in a batch wrongly. Summing the rows by segment
    first makes the three backends agree, and copies nothing in the forward pass.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return _gather_rows(tf.convert_to_tensor(table), ids)  # the value: a custom gradient takes no variable
    return ops.take(table, ids, axis=0)


@keras.saving.register_keras_serializable("keras_seqlm")
class TokenEmbedding(keras.layers.Layer):
    """A table of token vectors that also serves, transposed, as the output projection (tied weights).

    Unlike `keras.layers.Embedding` it trains the same on every backend when an id occurs twice in a batch.

    Args:
        vocabulary_size: number of token ids.
        hidden_dim: width of a token's vector.
        initializer: of the table; default a normal of standard deviation `hidden_dim ** -0.5`, with which logits of
            normalised states start at unit scale. Reference for tying: Press and Wolf 2017, arXiv:1608.05859.

    Call arguments:
        token_ids: int32 (batch, time).

    Returns:
        (batch, time, hidden_dim) in the compute dtype.

    Example:

    >>> embedding = TokenEmbedding(vocabulary_size=100, hidden_dim=8)
    >>> tuple(embedding(keras.ops.zeros((2, 5), "int32")).shape)
    (2, 5, 8)
    """

    def __init__(self, vocabulary_size, hidden_dim, initializer=None, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.vocabulary_size = vocabulary_size
        self.hidden_dim = hidden_dim
        self.initializer = keras.initializers.get(
            initializer or keras.initializers.RandomNormal(stddev=hidden_dim**-0.5)
        )

    def build(self, input_shape=None):
        self.table = self.add_weight(
            name="table", shape=(self.vocabulary_size, self.hidden_dim), initializer=self.initializer
        )

    def call(self, token_ids):
        return ops.cast(lookup(self.table, ops.cast(token_ids, "int32")), self.compute_dtype)

    def project(self, hidden):
        """Logits (batch, time, vocabulary) of `hidden` (batch, time, hidden_dim) by the table itself."""
        return ops.matmul(hidden, ops.transpose(ops.cast(self.table, hidden.dtype)))

    def compute_output_shape(self, input_shape):
        return (*input_shape, self.hidden_dim)

    def get_config(self):
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "hidden_dim": self.hidden_dim,
            "initializer": keras.initializers.serialize(self.initializer),
        }
