"""Heads that say something of a whole text, from one vector of its hidden states: its class, or where it lies among others."""

import keras
from keras import ops

from keras_seqlm.layers.dense import Dense
from keras_seqlm.layers.pooling import POOLINGS, pool
from keras_seqlm.losses import CrossEntropy, InBatchNegatives
from keras_seqlm.models.heads import Head
from keras_seqlm.models.presets import count


@keras.saving.register_keras_serializable("keras_seqlm")
class Classifier(Head):
    """One answer for a whole text, or for a pair of texts: a class, several labels, or a number.

    Args:
        backbone: see `Head`.
        num_classes: how many logits; 1 for a number.
        pooling: which hidden states are read: the "first" (a Transformer encoder's usual), the "last" real one (of a causal
            model the only one that has seen all), their "mean", or their "max"imum in each place. Default: "last" of a
            causal model, "first" of a Transformer encoder, "max" of a recurrent one.
        hidden_dim: width of a layer between, as BERT's pooler has it; None for none.
        activation: of that layer.
        dropout: of what the last layer reads.
        answers: what the logits are of, which decides the default loss: one "class" of several, any of the "labels", or a
            "number".
        name, dtype, trainable: see `Head`.

    Call arguments:
        inputs: as of the backbone.

    Returns:
        Logits, float32 (batch, num_classes).

    Example:

    >>> from keras_seqlm.models import RecurrentLM
    >>> model = Classifier(RecurrentLM(vocabulary_size=260, size="nano"), num_classes=3)
    >>> tuple(model({"token_ids": keras.ops.ones((2, 8), "int32"), "lengths": keras.ops.array([8, 5])}).shape)
    (2, 3)
    """

    def __init__(
        self,
        backbone,
        num_classes,
        pooling=None,
        hidden_dim=None,
        activation="tanh",
        dropout=0.0,
        answers="class",
        name=None,
        dtype=None,
        trainable=True,
    ):
        super().__init__(backbone, name=name, dtype=dtype, trainable=trainable)
        if answers not in ("class", "labels", "number"):
            raise ValueError(f"answers must be 'class', 'labels' or 'number', got {answers!r}")
        self.answers = answers
        self.num_classes = count("num_classes", num_classes)
        self.pooling = _pooling(pooling, backbone)
        self.hidden_dim = count("hidden_dim", hidden_dim)
        self.activation = activation
        self.dropout = dropout
        policy = {"dtype": self.dtype_policy}
        self.pooler = None if hidden_dim is None else Dense(hidden_dim, activation=activation, name="pooler", **policy)
        self.output_dropout = keras.layers.Dropout(dropout, **policy) if dropout else None
        self.classes = Dense(self.num_classes, name="classes", **policy)

    def build_head(self):
        if self.pooler is not None:
            self.pooler.build((None, self.width))
        self.classes.build((None, self.width if self.pooler is None else self.hidden_dim))

    def default_loss(self, label_smoothing=0.0, z_loss=0.0):
        """See `SequenceModel`: the cross-entropy of classes or of labels, the squared error of a number."""
        if self.answers == "class":
            return CrossEntropy(label_smoothing, z_loss)
        if z_loss or (label_smoothing and self.answers == "number"):
            raise ValueError(f"z_loss and label_smoothing are of classes, and this model gives {self.answers}")
        if self.answers == "labels":
            return keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=label_smoothing)
        return keras.losses.MeanSquaredError()

    def call(self, inputs, training=None):
        inputs = self.checked_inputs(inputs)
        x = pool(super().call(inputs, training), inputs.get("lengths"), self.pooling)
        if self.pooler is not None:
            x = self.pooler(x, training=training)
        if self.output_dropout is not None:
            x = self.output_dropout(x, training=training)
        return ops.cast(self.classes(x, training=training), "float32")


@keras.saving.register_keras_serializable("keras_seqlm")
class Embedder(Head):
    """A vector of length 1 for a text, near those of texts that mean the same.

    Trained on rows of pairs by `losses.InBatchNegatives`.

    Reference: Reimers and Gurevych 2019 (Sentence-BERT), arXiv:1908.10084.

    Args:
        backbone: see `Head`.
        embedding_dim: width of the vector, by a linear layer; None for the backbone's own.
        pooling: as in `Classifier`; default "mean", of a causal model "last".
        name, dtype, trainable: see `Head`.

    Call arguments:
        inputs: as of the backbone.

    Returns:
        float32 (batch, embedding_dim), each of Euclidean length 1.

    Example:

    >>> from keras_seqlm.models import TransformerEncoder
    >>> model = Embedder(TransformerEncoder(vocabulary_size=260, size="nano", max_length=32), embedding_dim=16)
    >>> tuple(model(keras.ops.ones((2, 8), "int32")).shape)
    (2, 16)
    """

    def __init__(self, backbone, embedding_dim=None, pooling=None, name=None, dtype=None, trainable=True):
        super().__init__(backbone, name=name, dtype=dtype, trainable=trainable)
        self.embedding_dim = count("embedding_dim", embedding_dim)
        self.pooling = _pooling(pooling or ("last" if backbone.causal else "mean"), backbone)
        self.output_projection = None
        if embedding_dim is not None:
            self.output_projection = Dense(
                self.embedding_dim, use_bias=False, name="output_projection", dtype=self.dtype_policy
            )

    @property
    def output_width(self):
        """Of a vector."""
        return self.embedding_dim or self.width

    def build_head(self):
        if self.output_projection is not None:
            self.output_projection.build((None, self.width))

    def default_loss(self, label_smoothing=0.0, z_loss=0.0):
        """See `SequenceModel`: `InBatchNegatives`, of batches in which two rows or more have each id."""
        if label_smoothing or z_loss:
            raise ValueError("label_smoothing and z_loss are of classes, and this model gives vectors; leave them at 0")
        return InBatchNegatives()

    def call(self, inputs, training=None):
        inputs = self.checked_inputs(inputs)
        x = pool(super().call(inputs, training), inputs.get("lengths"), self.pooling)
        if self.output_projection is not None:
            x = self.output_projection(x, training=training)
        x = ops.cast(x, "float32")
        return x * ops.rsqrt(ops.sum(ops.square(x), axis=-1, keepdims=True) + 1e-12)


def _pooling(pooling, backbone):
    if pooling is None:
        pooling = "last" if backbone.causal else "first" if hasattr(backbone, "blocks") else "max"
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {list(POOLINGS)}, or None, got {pooling!r}")
    return pooling
