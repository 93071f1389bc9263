"""Heads read what a task needs off the hidden states of an encoder, or of a causal language model."""

import keras
from keras import ops

from keras_seqlm.layers.attention import lowest
from keras_seqlm.layers.dense import Dense
from keras_seqlm.layers.normalization import LayerNormalization
from keras_seqlm.layers.pooling import POOLINGS, pool
from keras_seqlm.losses import CrossEntropy, InBatchNegatives
from keras_seqlm.models.presets import count
from keras_seqlm.models.sequence_model import SequenceModel
from keras_seqlm.models.token_model import TokenModel


class Head(SequenceModel):
    """What all heads share: the model below them, whose inputs are theirs.

    One backbone may stand under several heads, which then train the same weights.

    Args:
        backbone: an encoder, or a causal language model, of which the hidden states are read and no logits are made.
        name, dtype, trainable: as in `keras.Model`; the dtype policy is the backbone's unless another is given.

    Raises:
        ValueError: no such model, or a recurrent one that carries its state from batch to batch.
    """

    def __init__(self, backbone, name=None, dtype=None, trainable=True):
        if not isinstance(backbone, SequenceModel) or isinstance(backbone, Head):
            raise ValueError(
                f"backbone must be an encoder or a language model of keras_seqlm, got {type(backbone).__name__}; of a head give "
                "its own backbone"
            )
        if getattr(backbone, "stateful_batch_size", None) is not None:
            raise ValueError(
                "the backbone carries its state from batch to batch (stateful_batch_size), and rows of examples have nothing "
                "to do with those before; build it without, and give it the weights"
            )
        super().__init__(name=name, dtype=dtype or backbone.dtype_policy, trainable=trainable)
        self.backbone = backbone
        self.reads = backbone.reads
        self.max_length = backbone.max_length
        self.causal = backbone.causal
        self.torch_compiles = backbone.torch_compiles

    @property
    def vocabulary_size(self):
        return self.backbone.vocabulary_size

    @property
    def tokenizer_hash(self):
        return self.backbone.tokenizer_hash

    @tokenizer_hash.setter
    def tokenizer_hash(self, value):
        self.backbone.tokenizer_hash = value

    @property
    def width(self):
        return self.backbone.width

    @property
    def trainable_variables(self):
        idle = {id(variable) for variable in self.backbone.of_logits_alone}
        return [variable for variable in super().trainable_variables if id(variable) not in idle]

    @property
    def trainable_weights(self):
        return self.trainable_variables

    @property
    def non_trainable_variables(self):
        trained = {id(variable) for variable in self.trainable_variables}
        return [variable for variable in self.variables if id(variable) not in trained]

    @property
    def non_trainable_weights(self):
        trained = {id(variable) for variable in self.trainable_variables}
        return [variable for variable in self.weights if id(variable) not in trained]

    def hidden_states(self, inputs, state=None, training=None):
        """See `SequenceModel`: those of the backbone, which is shown what it reads."""
        inputs = {name: leaf for name, leaf in inputs.items() if name in self.backbone.reads}
        return self.backbone.hidden_states(inputs, training=training)

    def build(self, inputs_shape=None):
        if not self.backbone.built:
            self.backbone.build()
        self.build_head()
        self.built = True

    def build_head(self):
        """Build the layers above the backbone."""
        raise TypeError(
            f"{type(self).__name__} must define build_head() and build every layer above the backbone in it"
        )

    def get_config(self):
        return {**super().get_config(), "backbone": keras.saving.serialize_keras_object(self.backbone)}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        if isinstance(config["backbone"], dict):
            config["backbone"] = keras.saving.deserialize_keras_object(config["backbone"])
        return super().from_config(config)


@keras.saving.register_keras_serializable("keras_seqlm")
class MaskedLM(Head, TokenModel):
    """Says which token stood where one is masked: BERT's head, tied to the token embedding.

        logits = Norm(f(h W + b)) E^T + c

    Its targets are the ids at the masked places, and -1 elsewhere (`data.Masked`).

    Reference: Devlin et al. 2018, section 3.1, arXiv:1810.04805.

    Args:
        backbone: see `Head`. A causal model knows nothing of what follows a mask, and learns less.
        activation: f, a name of `keras.activations`; BERT's is the exact "gelu".
        epsilon: of the norm.
        name, dtype, trainable: see `Head`.

    Call arguments:
        inputs: as of the backbone.

    Returns:
        Logits, float32 (batch, time, vocabulary).

    Example:

    >>> from keras_seqlm.models import TransformerEncoder
    >>> model = MaskedLM(TransformerEncoder(vocabulary_size=260, size="nano", max_length=32))
    >>> tuple(model(keras.ops.ones((2, 8), "int32")).shape)
    (2, 8, 260)
    """

    def __init__(self, backbone, activation="gelu", epsilon=1e-5, name=None, dtype=None, trainable=True):
        super().__init__(backbone, name=name, dtype=dtype, trainable=trainable)
        self.activation = activation
        self.epsilon = epsilon
        policy = {"dtype": self.dtype_policy}
        self.transform = Dense(backbone.token_embedding.hidden_dim, activation=activation, name="transform", **policy)
        self.transform_norm = LayerNormalization(epsilon=epsilon, name="transform_norm", **policy)
        self.output_bias = None

    @property
    def width(self):
        return self.backbone.token_embedding.hidden_dim

    def build_head(self):
        self.transform.build((None, None, self.backbone.width))
        self.transform_norm.build((None, None, self.width))
        self.output_bias = self.add_weight(name="output_bias", shape=(self.vocabulary_size,), initializer="zeros")

    def hidden_states(self, inputs, state=None, training=None):
        """See `SequenceModel`: the backbone's, transformed."""
        hidden = super().hidden_states(inputs, training=training)[0]
        return self.transform_norm(self.transform(hidden, training=training), training=training), None

    def projection(self):
        return self.backbone.token_embedding, self.output_bias


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
class Tagger(Head, TokenModel):
    """A class for each token, as the parts of names and slots: targets (batch, time), -1 where a token has none.

    Args:
        backbone: see `Head`. A causal model tags a token by what stands before it.
        num_classes: how many tags.
        dropout: of the hidden states.
        name, dtype, trainable: see `Head`.

    Call arguments:
        inputs: as of the backbone.

    Returns:
        Logits, float32 (batch, time, num_classes).

    Example:

    >>> from keras_seqlm.models import RecurrentEncoder
    >>> model = Tagger(RecurrentEncoder(vocabulary_size=260, size="nano"), num_classes=5)
    >>> tuple(model(keras.ops.ones((2, 8), "int32")).shape)
    (2, 8, 5)
    """

    def __init__(self, backbone, num_classes, dropout=0.0, name=None, dtype=None, trainable=True):
        super().__init__(backbone, name=name, dtype=dtype, trainable=trainable)
        self.num_classes = count("num_classes", num_classes)
        self.dropout = dropout
        policy = {"dtype": self.dtype_policy}
        self.output_dropout = keras.layers.Dropout(dropout, **policy) if dropout else None
        self.classes = Dense(self.num_classes, name="classes", **policy)

    def build_head(self):
        self.classes.build((None, None, self.width))

    def hidden_states(self, inputs, state=None, training=None):
        """See `SequenceModel`: the backbone's, dropped out."""
        hidden = super().hidden_states(inputs, training=training)[0]
        return hidden if self.output_dropout is None else self.output_dropout(hidden, training=training), None

    def projection(self):
        return self.classes, None


@keras.saving.register_keras_serializable("keras_seqlm")
class SpanFinder(Head):
    """Where an answer begins and where it ends, among the tokens of a row: two softmaxes over its places.

        p(begin = i) = softmax_i(h_i w_1 + b_1), p(end = j) = softmax_j(h_j w_2 + b_2)

    Place 0 (the bos) stands for "there is no answer". Trained by `SparseCategoricalCrossentropy(from_logits=True)` on
    targets (batch, 2), the first and the last token of the answer.

    Reference: Devlin et al. 2018, section 4.2 and 4.3, arXiv:1810.04805.

    Args:
        backbone: see `Head`.
        dropout: of the hidden states.
        name, dtype, trainable: see `Head`.

    Call arguments:
        inputs: as of the backbone, and `token_types` (batch, time), which is 1 where an answer may stand: in the context,
            not in the question. The backbone is shown them if it reads them. Without them it may stand anywhere.

    Returns:
        Logits, float32 (batch, 2, time): of beginnings and of ends; where no answer can be they are finite and very low.

    Example:

    >>> from keras_seqlm.models import TransformerEncoder
    >>> model = SpanFinder(TransformerEncoder(vocabulary_size=260, size="nano", max_length=32))
    >>> tuple(model(keras.ops.ones((2, 8), "int32")).shape)
    (2, 2, 8)
    """

    def __init__(self, backbone, dropout=0.0, name=None, dtype=None, trainable=True):
        super().__init__(backbone, name=name, dtype=dtype, trainable=trainable)
        self.dropout = dropout
        self.reads = tuple(dict.fromkeys((*self.reads, "token_types")))
        policy = {"dtype": self.dtype_policy}
        self.output_dropout = keras.layers.Dropout(dropout, **policy) if dropout else None
        self.ends = Dense(2, name="ends", **policy)

    def build_head(self):
        self.ends.build((None, None, self.width))

    def default_loss(self, label_smoothing=0.0, z_loss=0.0):
        """See `SequenceModel`: the cross-entropy of the places, the mean of that of beginnings and that of ends."""
        if label_smoothing or z_loss:
            raise ValueError("label_smoothing and z_loss would count places where no answer can be; leave them at 0")
        return CrossEntropy()

    def call(self, inputs, training=None):
        inputs = self.checked_inputs(inputs)
        hidden = super().call(inputs, training)
        if self.output_dropout is not None:
            hidden = self.output_dropout(hidden, training=training)
        logits = ops.transpose(ops.cast(self.ends(hidden, training=training), "float32"), (0, 2, 1))
        steps = ops.arange(ops.shape(logits)[2], dtype="int32")[None]
        possible = ops.ones_like(inputs["token_ids"], "bool")
        if "token_types" in inputs:
            possible = ops.logical_or(inputs["token_types"] == 1, steps == 0)
        if "lengths" in inputs:
            possible = ops.logical_and(possible, steps < inputs["lengths"][:, None])
        return ops.where(possible[:, None], logits, lowest("float32"))


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


def backbone_of(model):
    """What a head may stand on: the backbone of a head, a language model or encoder itself.

    A recurrent model that carries its state from batch to batch is built anew without, with the same weights.
    """
    backbone = model.backbone if isinstance(model, Head) else model
    if getattr(backbone, "stateful_batch_size", None) is None:
        return backbone
    plain = type(backbone).from_config({**backbone.get_config(), "stateful_batch_size": None})
    plain.build()
    for ours, theirs in zip(plain.trainable_variables, backbone.trainable_variables, strict=True):
        ours.assign(theirs)
    return plain


def _pooling(pooling, backbone):
    if pooling is None:
        pooling = "last" if backbone.causal else "first" if hasattr(backbone, "blocks") else "max"
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {list(POOLINGS)}, or None, got {pooling!r}")
    return pooling
