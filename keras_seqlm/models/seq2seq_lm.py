"""An encoder-decoder: a language model that writes after it has read a source."""

import math

import keras
from keras import ops

from keras_seqlm.layers.layouts import LAYOUTS, layout_map
from keras_seqlm.layers.quantization import quantization_config
from keras_seqlm.models.encoders import RecurrentEncoder, TransformerEncoder
from keras_seqlm.models.heads import Head
from keras_seqlm.models.language_model import LanguageModel
from keras_seqlm.models.memory import MEMORY
from keras_seqlm.models.presets import RECURRENT_SIZES, TRANSFORMER_SIZES, count, parts_of
from keras_seqlm.models.recurrent_lm import RecurrentLM
from keras_seqlm.models.sequence_model import SequenceModel
from keras_seqlm.models.transformer_lm import TransformerLM
from keras_seqlm.products import numbers_of

KINDS = ("transformer", "lstm", "gru", "rnn")
OF_SOURCE = {"source_ids": "token_ids", "source_lengths": "lengths", "source_types": "token_types"}


@keras.saving.register_keras_serializable("keras_seqlm")
class Seq2SeqLM(LanguageModel):
    """An encoder reads a source, and a decoder that attends to it writes a target; each may be a Transformer or recurrent.

        logits        = model({"token_ids", "source_ids", "source_lengths"})    # training: the target, one place to the right
        state         = model.encode({"source_ids", "source_lengths"}, max_length)
        logits, state = model({"token_ids"}, state=state)                       # the next tokens of the target

    A Transformer decoder attends to the encoder's hidden states in every block (Vaswani et al. 2017, arXiv:1706.03762); a
    recurrent one as Bahdanau et al. 2014, arXiv:1409.0473 ("additive") or Luong et al. 2015, arXiv:1508.04025 ("general"),
    see `RecurrentLM`. A source ends where `source_lengths` says, and what stands behind it is seen nowhere.

    It is built of words and sizes, or of two parts: `Seq2SeqLM(encoder=encoder, decoder=decoder)`, an encoder (or a causal
    language model, whose hidden states are read) and a `TransformerLM` or `RecurrentLM` with `memory_dim=encoder.width`.
    In a config and in a file it is the two parts.

    Args:
        vocabulary_size: number of token ids of the target.
        encoder: "transformer", "lstm", "gru", "rnn" (recurrent ones read in both directions), or a model.
        decoder: the same; default the kind of the encoder, where that is a word.
        size: sets the parts that are not given, default "tiny": of the encoder, and of the decoder as much again.
        source_vocabulary_size: number of token ids of sources; default `vocabulary_size`.
        share_embedding: whether both read one table of token vectors; default, of words: if both have one vocabulary.
        max_length, max_source_length: the longest target and source that a Transformer reads; the second as the first.
        num_layers, hidden_dim, dropout: of both parts. The two directions of a recurrent encoder are `hidden_dim` together.
        num_heads, intermediate_dim, activation, norm_first, positions: of the Transformers among the parts; the default
            activation is "gelu_tanh".
        attention: of a recurrent decoder, "additive" or "general".
        tie_embedding: whether the decoder's table of token vectors is its projection to the vocabulary, too.
        tokenizer_hash: of the tokenizer whose ids it reads; a task checks it.
        name, dtype, trainable: as in `keras.Model`.

    Call arguments:
        inputs: a dict of int32 tensors: `token_ids` (batch, time), `lengths` (batch,); without a state also `source_ids`
            (batch, source time), `source_lengths` (batch,), and, where the encoder has token types, `source_types`.
        state: from `encode`; see `LanguageModel`. Its leaves are those of the decoder, and `memory_*`, one row a source:
            `memory_k_0`, `memory_v_0` ... or `memory_k`, `memory_v`, and `memory_lengths`. They come back as they are.

    Raises:
        ValueError: an unknown word, options of another kind of part; parts that do not fit; a call without a source, or one
            with a source beside a state.

    Example:

    >>> model = Seq2SeqLM(vocabulary_size=260, size="nano", max_length=32)
    >>> source, target = keras.ops.ones((2, 7), "int32"), keras.ops.ones((2, 5), "int32")
    >>> tuple(model({"token_ids": target, "source_ids": source}).shape)
    (2, 5, 260)
    >>> len(model.generate([1], max_new_tokens=4, source_ids=[72, 101, 9]))
    4
    """

    def __init__(
        self,
        vocabulary_size=None,
        encoder="transformer",
        decoder=None,
        size=None,
        source_vocabulary_size=None,
        share_embedding=None,
        max_length=None,
        max_source_length=None,
        num_layers=None,
        hidden_dim=None,
        num_heads=None,
        intermediate_dim=None,
        activation=None,
        norm_first=None,
        positions=None,
        attention=None,
        tie_embedding=None,
        dropout=None,
        tokenizer_hash=None,
        name=None,
        dtype=None,
        trainable=True,
    ):
        if isinstance(encoder, SequenceModel) and dtype is None:
            dtype = encoder.dtype_policy
        super().__init__(name=name, dtype=dtype, trainable=trainable)
        given = {
            "vocabulary_size": vocabulary_size,
            "size": size,
            "source_vocabulary_size": source_vocabulary_size,
            "max_length": max_length,
            "max_source_length": max_source_length,
            "num_layers": num_layers,
            "hidden_dim": hidden_dim,
            "num_heads": num_heads,
            "intermediate_dim": intermediate_dim,
            "activation": activation,
            "norm_first": norm_first,
            "positions": positions,
            "attention": attention,
            "tie_embedding": tie_embedding,
            "dropout": dropout,
        }
        given = {option: value for option, value in given.items() if value is not None}
        if isinstance(encoder, SequenceModel) or isinstance(decoder, SequenceModel):
            _check_parts(encoder, decoder, given)
        else:
            decoder = encoder if decoder is None else decoder
            encoder, decoder = _built(encoder, decoder, given, self.dtype_policy)
            if share_embedding is None:
                share_embedding = encoder.vocabulary_size == decoder.vocabulary_size
                share_embedding &= _embedding_dim(encoder) == _embedding_dim(decoder)
        self.encoder = encoder
        self.decoder = decoder
        self.share_embedding = bool(share_embedding)
        if self.share_embedding and decoder.token_embedding is not encoder.token_embedding:
            decoder.share_embedding_of(encoder)
        self.tokenizer_hash = tokenizer_hash
        self.vocabulary_size = decoder.vocabulary_size
        self.max_length = decoder.max_length
        self.torch_compiles = encoder.torch_compiles and decoder.torch_compiles
        types = ("source_types",) if "token_types" in encoder.reads else ()
        own = tuple(part for part in decoder.reads if part != "segment_ids")
        self.reads = (*own, "source_ids", "source_lengths", *types)

    def build(self, inputs_shape=None, state_shape=None):
        for part in (self.encoder, self.decoder):
            if not part.built:
                part.build()
        self.built = True

    @property
    def source_vocabulary_size(self):
        """Number of token ids of sources."""
        return self.encoder.vocabulary_size

    @property
    def max_source_length(self):
        """The longest source that is read; None for any."""
        return self.encoder.max_length

    @property
    def width(self):
        return self.decoder.width

    @property
    def idle(self):
        """See `SequenceModel`: those of both parts, what the encoder has for logits alone, and all of a frozen part."""
        parts = (self.encoder, self.decoder)
        below = [part.idle if part.trainable else part.variables for part in parts]
        return [*super().idle, *self.encoder.of_logits_alone, *below[0], *below[1]]

    def floors(self):
        """See `SequenceModel`: those of the encoder below those of the decoder."""
        below = self.encoder.floors()
        read = {id(layer) for layer in below[0]}  # the decoder may read the encoder's table
        above = [[layer for layer in floor if id(layer) not in read] for floor in self.decoder.floors()]
        return [*below, *filter(None, above)]

    @property
    def of_logits_alone(self):
        return self.decoder.of_logits_alone

    def projection(self):
        return self.decoder.projection()

    def layout_map(self, mesh):
        """See `SequenceModel`; a table is cut by tokens where the devices divide those of both."""
        return layout_map(mesh, LAYOUTS, math.gcd(self.vocabulary_size, self.encoder.vocabulary_size))

    def initial_state(self, batch_size, max_length=None):
        raise ValueError(
            "an encoder-decoder has no state before it has read a source: state = model.encode({'source_ids': ..., "
            "'source_lengths': ...}, max_length) gives the first one"
        )

    def encode(self, inputs, max_length=None, targets=1):
        """The state before the first token of the targets of some sources: in it what the decoder sees of them.

        Args:
            inputs: a dict with `source_ids` (sources, source time), and `source_lengths` (sources,) unless all is real; others
                are not looked at.
            max_length: the room of a cache, as in `initial_state` of the decoder.
            targets: how many rows are written for each source, as those of a beam; they stand side by side.

        Returns:
            A dict of tensors: the leaves of the decoder for sources * targets rows, and `memory_*` for the sources alone.
        """
        inputs = self._checked_sources(inputs)
        if not self.built:
            self.build()
        leaves = self._memory(inputs, training=False, lengths=True)
        rows = ops.shape(leaves["memory_lengths"])[0] * targets
        for name, leaf in leaves.items():
            if targets != 1 and not name.startswith(MEMORY):
                leaves[name] = ops.repeat(leaf, targets, axis=0)
        return {**self.decoder.initial_state(rows, max_length), **leaves}

    def read(self, inputs, max_length=None):
        """See `LanguageModel.read`: the state after a source and the beginning of its target."""
        inputs = self.checked_inputs(inputs)
        state = self.encode(inputs, max_length)
        return self.hidden_states(self._own(inputs), state, training=False)[1]

    def hidden_states(self, inputs, state=None, training=None):
        """See `SequenceModel`: those of the decoder."""
        if state is not None:
            return self.decoder.hidden_states(inputs, state, training)
        memory = self._memory(inputs, training)
        return self.decoder.hidden_states(self._own(inputs), training=training, memory=memory)

    def checked_inputs(self, inputs, state=None):
        """See `LanguageModel`."""
        inputs = super().checked_inputs(inputs, state)
        if state is None:
            return self._checked_sources(inputs)
        given = [name for name in inputs if name in OF_SOURCE]
        if given:
            raise ValueError(
                f"the state holds what was read of the source: leave {', '.join(given)} out beside a state, or encode another one"
            )
        return inputs

    def export(self, *args, **kwargs):
        """Not yet.

        Raises:
            ValueError: always.
        """
        raise ValueError("an encoder-decoder is not exported yet: use it in Python, or `seqlm predict`")

    def _checked_sources(self, inputs):
        if not isinstance(inputs, dict) or "source_ids" not in inputs:
            found = sorted(inputs) if isinstance(inputs, dict) else type(inputs).__name__
            raise ValueError(
                f"{type(self).__name__} reads a source: give a dict with 'source_ids' (batch, source time), got {found}"
            )
        inputs = {**inputs, **{name: ops.cast(inputs[name], "int32") for name in OF_SOURCE if name in inputs}}
        time, limit = inputs["source_ids"].shape[1], self.encoder.max_length
        if limit is not None and isinstance(time, int) and time > limit and not self._infers_shapes:
            raise ValueError(
                f"the sources are {time} tokens long, and the encoder reads {limit} at most: cut them, or build the model with a "
                "larger max_source_length"
            )
        lengths = numbers_of(inputs["source_lengths"]) if "source_lengths" in inputs else None
        if lengths is not None and isinstance(time, int) and ((lengths < 0) | (lengths > time)).any():
            raise ValueError(f"source_lengths must be from 0 to {time}, the tokens of a row, got {lengths.tolist()}")
        return inputs

    def _own(self, inputs):
        return {name: leaf for name, leaf in inputs.items() if name not in OF_SOURCE}

    def _memory(self, inputs, training, lengths=False):
        """What the decoder sees of sources; with `lengths` also how long they are where nobody said so."""
        source = {ours: inputs[name] for name, ours in OF_SOURCE.items() if name in inputs}
        hidden, _ = self.encoder.hidden_states(source, training=training)
        real = source.get("lengths")
        if real is None and lengths:
            real = ops.zeros_like(source["token_ids"][:, 0]) + ops.shape(hidden)[1]
        return self.decoder.memory(hidden, real, training)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            **{name: getattr(self, name) for name in ("share_embedding", "tokenizer_hash", "name", "trainable")},
            **{part: _unbuilt(serialize(getattr(self, part))) for part in ("encoder", "decoder")},
            "dtype": serialize(self.dtype_policy),
            **quantization_config(self),
            **self.adapters_config(),
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        for part in ("encoder", "decoder"):
            if isinstance(config[part], dict):
                config[part] = keras.saving.deserialize_keras_object(config[part])
        return super().from_config(config)


def _check_parts(encoder, decoder, given):
    """Refuse two parts that do not fit, and options beside them."""
    if not isinstance(encoder, SequenceModel) or not isinstance(decoder, SequenceModel):
        raise ValueError(
            f"give both parts, or words for both, got encoder={_said(encoder)} and decoder={_said(decoder)}: of one part and its "
            "width the other is built by hand, as TransformerLM(..., memory_dim=encoder.width)"
        )
    if given:
        raise ValueError(f"{', '.join(given)} belong to the parts, which are given; leave them out")
    if isinstance(encoder, Head | Seq2SeqLM) or getattr(encoder, "stateful_batch_size", None) is not None:
        raise ValueError(
            f"encoder must be an encoder, or a causal language model that carries no state, got {type(encoder).__name__}"
        )
    if getattr(decoder, "memory_dim", None) != encoder.width:
        raise ValueError(
            f"decoder must be a TransformerLM or RecurrentLM with memory_dim={encoder.width}, the width of the encoder, got "
            f"{type(decoder).__name__} with memory_dim={getattr(decoder, 'memory_dim', None)}"
        )


def _unbuilt(config):
    """The config of a part that Keras makes and does not build, so that it may be given another's table."""
    return {name: value for name, value in config.items() if name != "build_config"}


def _said(part):
    return type(part).__name__ if isinstance(part, SequenceModel) else repr(part)


_OF_TRANSFORMERS = ("num_heads", "intermediate_dim", "activation", "norm_first", "positions", "max_length")


def _built(encoder, decoder, given, dtype):
    """The two parts that words and options say."""
    for name, word in (("encoder", encoder), ("decoder", decoder)):
        if word not in KINDS:
            raise ValueError(f"{name} must be one of {list(KINDS)}, or a model, got {word!r}")
    if "vocabulary_size" not in given:
        raise ValueError("give vocabulary_size, the number of token ids of the target")
    foreign = [name for name in _OF_TRANSFORMERS if name in given and "transformer" not in (encoder, decoder)]
    foreign += ["max_source_length"] if "max_source_length" in given and encoder != "transformer" else []
    foreign += ["attention"] if "attention" in given and decoder == "transformer" else []
    if foreign:
        raise ValueError(
            f"{', '.join(foreign)} {'is' if len(foreign) == 1 else 'are'} of another kind of part than {encoder!r} to {decoder!r}"
        )
    size, vocabulary = given.get("size", "tiny"), given["vocabulary_size"]
    common = {"size": size, "dtype": dtype}
    common |= {name: given[name] for name in ("num_layers", "dropout") if name in given}
    wide = {"hidden_dim": given["hidden_dim"]} if "hidden_dim" in given else {}
    transformer = {name: given[name] for name in _OF_TRANSFORMERS if name in given}
    transformer = {"activation": "gelu_tanh", **transformer, **wide, **common}
    tied = {"tie_embedding": given["tie_embedding"]} if "tie_embedding" in given else {}
    source = given.get("source_vocabulary_size", vocabulary)
    longest = given.get("max_source_length", given.get("max_length"))
    if encoder == "transformer":
        reader = TransformerEncoder(source, **{**transformer, "max_length": longest}, name="encoder")
    else:
        width = count("hidden_dim", given.get("hidden_dim"), parts_of(size, RECURRENT_SIZES)["hidden_dim"])
        if width % 2:
            raise ValueError(f"hidden_dim must be even, of two directions of a recurrent encoder; got {width}")
        # as wide as what the decoder reads, so that they can share a table
        table = width if decoder != "transformer" or wide else parts_of(size, TRANSFORMER_SIZES)["hidden_dim"]
        parts = {"hidden_dim": width // 2, "embedding_dim": table, **common}
        reader = RecurrentEncoder(source, cell=encoder, **parts, name="encoder")
    if decoder == "transformer":
        return reader, TransformerLM(vocabulary, **transformer, **tied, memory_dim=reader.width, name="decoder")
    of_memory = {"memory_dim": reader.width, "attention": given.get("attention")}
    return reader, RecurrentLM(vocabulary, cell=decoder, **wide, **tied, **common, **of_memory, name="decoder")


def _embedding_dim(part):
    return part.token_embedding.hidden_dim
