"""A head on a model: what is shared by all that read an encoder's hidden states, or a causal language model's."""

import keras

from keras_seqlm.models.sequence_model import SequenceModel


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
        if "source_ids" in backbone.reads:
            raise ValueError(
                f"a head reads one text, and {type(backbone).__name__} reads a source beside it; give its encoder: "
                "Classifier(model.encoder, ...)"
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
    def idle(self):
        """See `SequenceModel`: those of the backbone, and what no hidden state depends on; all of a frozen backbone."""
        return (
            [*self.backbone.of_logits_alone, *self.backbone.idle]
            if self.backbone.trainable
            else self.backbone.variables
        )

    def floors(self):
        return self.backbone.floors()

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
