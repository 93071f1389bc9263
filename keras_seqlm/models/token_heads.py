"""Heads that say something of each token: which one is masked, what it is a part of, whether an answer begins or ends there."""

import keras
from keras import ops

from keras_seqlm.layers.attention import lowest
from keras_seqlm.layers.dense import Dense
from keras_seqlm.layers.normalization import LayerNormalization
from keras_seqlm.losses import CrossEntropy
from keras_seqlm.models.heads import Head
from keras_seqlm.models.presets import count
from keras_seqlm.models.token_model import TokenModel


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

    References: Devlin et al. 2018, section 4.2 and 4.3, arXiv:1810.04805; Chen et al. 2017, section 3.2,
    arXiv:1704.00051 (the exact match).

    Args:
        backbone: see `Head`.
        dropout: of the hidden states.
        matches: whether the backbone is shown which tokens of the context stand in the question, too (`token_types` of 2),
            and which of them beside the same neighbour (3); a small model hardly learns by itself to compare them. It needs
            `num_token_types=4`.
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

    def __init__(self, backbone, dropout=0.0, matches=False, name=None, dtype=None, trainable=True):
        super().__init__(backbone, name=name, dtype=dtype, trainable=trainable)
        types = getattr(backbone, "num_token_types", 0)
        if matches and types < 4:
            raise ValueError(
                f"matches are shown as token_types of 2 and 3, and the backbone knows {types} of them; build it with "
                "num_token_types=4"
            )
        self.dropout = dropout
        self.matches = matches
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

    def hidden_states(self, inputs, state=None, training=None):
        """See `SequenceModel`."""
        if self.matches and "token_types" in inputs:
            inputs = {
                **inputs,
                "token_types": matched(inputs["token_ids"], inputs["token_types"], inputs.get("lengths")),
            }
        return super().hidden_states(inputs, state, training)

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


def matched(token_ids, token_types, lengths=None):
    """`token_types` (batch, time), in which tokens of the context (1) that stand in the question (0), too, are 2, and 3
    where one of their neighbours stands beside them there, too. The token at place 0, the bos, is of no question.

    Example:

    >>> ids, types = keras.ops.array([[1, 7, 8, 2, 5, 7, 8, 5, 7, 2]]), keras.ops.array([[0] * 4 + [1] * 6])
    >>> keras.ops.convert_to_numpy(matched(ids, types)).tolist()
    [[0, 0, 0, 0, 1, 3, 3, 1, 2, 2]]
    """
    steps = ops.arange(ops.shape(token_ids)[1], dtype="int32")[None]
    asked, context = ops.logical_and(token_types == 0, steps > 0), token_types == 1
    if lengths is not None:
        asked = ops.logical_and(asked, steps < lengths[:, None])
    same = ops.logical_and(ops.expand_dims(token_ids, 2) == ops.expand_dims(token_ids, 1), ops.expand_dims(asked, 1))
    same = ops.cast(ops.logical_and(same, ops.expand_dims(context, 2)), "int32")  # (batch, place, place asked)
    # Round the ends of a row nothing meets: place 0 is neither asked nor of the context.
    after = ops.concatenate([same[:, 1:], same[:, :1]], axis=1)
    after = ops.concatenate([after[:, :, 1:], after[:, :, :1]], axis=2)
    begins = ops.max(same * after, axis=2)  # where the next token is the next one there, too
    ends = ops.concatenate([begins[:, -1:], begins[:, :-1]], axis=1)
    return token_types + ops.max(same, axis=2) + ops.maximum(begins, ends)
