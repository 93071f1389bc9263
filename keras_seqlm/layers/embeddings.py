"""Token embedding with a dense gradient, and the lookup that learned positions share."""

import keras
from keras import ops

from keras_seqlm.layers.lora import LowRank, effective


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

    `quantize("int8")` keeps each row as integers and one scale; products are made with the rows that these give, in the
    compute dtype. The table is then fixed. Of Keras's other modes it takes none.

    Args:
        vocabulary_size: number of token ids.
        hidden_dim: width of a token's vector.
        initializer: of the table; default a normal of standard deviation `hidden_dim ** -0.5`, with which logits of
            normalised states start at unit scale. Reference for tying: Press and Wolf 2017, arXiv:1608.05859.

    Call arguments:
        token_ids: int32 (batch, time).

    Returns:
        (batch, time, hidden_dim) in the compute dtype.

    Attributes:
        table: the rows (vocabulary_size, hidden_dim): a variable, or, quantised, the tensor that its integers give; with an
            adapter (`adapt`) that with its update.

    Example:

    >>> embedding = TokenEmbedding(vocabulary_size=100, hidden_dim=8)
    >>> tuple(embedding(keras.ops.zeros((2, 5), "int32")).shape)
    (2, 5, 8)
    """

    adapts = ("embedding",)

    def __init__(self, vocabulary_size, hidden_dim, initializer=None, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.lora = None
        self.vocabulary_size = vocabulary_size
        self.hidden_dim = hidden_dim
        self.initializer = keras.initializers.get(
            initializer or keras.initializers.RandomNormal(stddev=hidden_dim**-0.5)
        )

    def adapt(self, rank, alpha, names):
        """Learn a low-rank update of the table in place of it, from the build on; see `LowRank`."""
        self.lora = LowRank(rank, alpha, [("", self.hidden_dim)], begins="a", dtype=self.dtype_policy)

    def adapted(self):
        """(table, its adapter), where there is one."""
        return [] if self.lora is None else [(self._table, self.lora)]

    def build(self, input_shape=None):
        shape = (self.vocabulary_size, self.hidden_dim)
        if self.quantization_mode is not None:
            self.quantized_build(shape, self.quantization_mode)
        else:
            # Keras casts weights on their way into a layer that stands alone, whatever the layer says of it: the gradient
            # of a lookup would be summed in half precision.
            self._table = self.add_weight(name="table", shape=shape, initializer=self.initializer, autocast=False)
        if self.lora is not None:
            self.lora.build(shape[:1])
            self._table.trainable = False

    @property
    def table(self):
        if self.quantization_mode is None:
            return effective(self._table, self.lora)
        return ops.cast(self._table, "float32") / ops.cast(self.table_scale, "float32")[:, None]

    def call(self, token_ids):
        token_ids = ops.cast(token_ids, "int32")
        if self.quantization_mode is None:
            found = ops.cast(lookup(self._table, token_ids), self.compute_dtype)
            if self.lora is None:
                return found
            a, b = self.lora.factors()
            return found + ops.cast(ops.matmul(lookup(a, token_ids) * self.lora.scale, b), self.compute_dtype)
        rows, scales = (ops.take(part, token_ids, axis=0) for part in (self._table, self.table_scale))
        return ops.cast(ops.cast(rows, "float32") / ops.cast(scales, "float32")[..., None], self.compute_dtype)

    def project(self, hidden):
        """Logits (batch, time, vocabulary) of `hidden` (batch, time, hidden_dim) by the table itself."""
        logits = ops.matmul(hidden, ops.transpose(ops.cast(self._table, hidden.dtype)))
        if self.lora is not None:
            a, b = (ops.transpose(ops.cast(factor, hidden.dtype)) for factor in self.lora.factors())
            logits = logits + ops.matmul(ops.matmul(hidden, b) * self.lora.scale, a)
        return logits if self.quantization_mode is None else logits / ops.cast(self.table_scale, logits.dtype)

    def compute_output_shape(self, input_shape):
        return (*input_shape, self.hidden_dim)

    def quantize(self, mode=None, type_check=True, config=None):
        if mode != "int8":
            raise self._quantization_mode_error(mode)
        quantizer = (config and config.weight_quantizer) or keras.quantizers.AbsMaxQuantizer()
        # In float32 also where the table is held in half precision: a scale rounded afterwards would fit no integer.
        table, scale = quantizer(ops.cast(self._table, "float32"), axis=-1, to_numpy=True)
        del self._table
        self.quantized_build(table.shape, mode)
        self._table.assign(table)
        self.table_scale.assign(ops.squeeze(scale, axis=-1))
        if self.dtype_policy.quantization_mode is None:
            self.dtype_policy = f"{mode}_from_{self.dtype_policy.name}"

    def quantized_build(self, input_shape, mode):
        if mode != "int8":
            raise self._quantization_mode_error(mode)
        self._table = self.add_weight(
            name="table", shape=input_shape, initializer="zeros", dtype="int8", trainable=False
        )
        self.table_scale = self.add_weight(
            name="table_scale", shape=input_shape[:1], initializer="ones", dtype="float32", trainable=False
        )
        self._is_quantized = True

    def quantized_call(self, token_ids):
        return self.call(token_ids)

    def _quantization_mode_error(self, mode):
        return NotImplementedError(f"a TokenEmbedding is quantised as 'int8', got {mode!r}; it stays as it is")

    def get_config(self):
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "hidden_dim": self.hidden_dim,
            "initializer": keras.initializers.serialize(self.initializer),
        }
