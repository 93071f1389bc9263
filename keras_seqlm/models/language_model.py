"""The contract of every language model: one function with its state in the open."""

import keras
import numpy as np
from keras import ops

from keras_seqlm.generation.generate import generate
from keras_seqlm.generation.score import score
from keras_seqlm.layers.quantization import quantizable_parts
from keras_seqlm.models.token_model import TokenModel
from keras_seqlm.products import numbers_of


class LanguageModel(TokenModel):
    """What `RecurrentLM`, `TransformerLM` and the models after them share.

        logits        = model(inputs)                 # training: whole sequences, no state
        logits, state = model(inputs, state=state)    # decoding: a prompt, or the next tokens
        state         = model.initial_state(batch_size, max_length)

    `inputs` is as in `SequenceModel`; `segment_ids` without `state` only. `logits` is float32 (batch, time, vocabulary).
    `state` is a flat dict of tensors with the batch on axis 0, among them `position` (batch,): how many tokens of each
    row have been read. How it learns under `compile` and `fit` stands in `TokenModel`.

    A subclass builds its layers in `__init__`, keeps every argument under its own name (its config is read back from
    there), and writes `hidden_states`, `projection` (or `logits_of`, if it is no linear layer) and `initial_state`.
    Generation, scoring, export and verification need nothing else; `read` may be written where prompts can be read faster.
    """

    causal = True

    def initial_state(self, batch_size, max_length=None):
        """The state before the first token; `max_length` is the room of a cache, where there is one."""
        raise TypeError(f"{type(self).__name__} must define initial_state(batch_size, max_length)")

    def read(self, inputs, max_length=None):
        """The state after prompts that are read from their beginning; nothing is predicted.

        Args:
            inputs: as in a call; `lengths` says how much of each row is real.
            max_length: the room of a cache, as in `initial_state`.
        """
        inputs = self.checked_inputs(inputs)
        state = self.initial_state(ops.shape(inputs["token_ids"])[0], max_length)
        return self.hidden_states(inputs, state, training=False)[1]

    def call(self, inputs, state=None, training=None):
        if state is None:
            return super().call(inputs, training)
        inputs = self.checked_inputs(inputs, state)
        self._check_room(inputs, state)
        hidden, state = self.hidden_states(inputs, state, training)
        return self.logits_of(hidden), state

    def build(self, inputs_shape=None, state_shape=None):
        raise TypeError(f"{type(self).__name__} must define build() and build every layer in it")

    def checked_inputs(self, inputs, state=None):
        """A dict of tensors, ids and lengths as int32.

        Raises:
            ValueError: an input that this model does not read, `segment_ids` beside a state, lengths that do not fit.
        """
        inputs = super().checked_inputs(inputs)
        if state is not None and "segment_ids" in inputs:
            raise ValueError(
                "segment_ids are for whole sequences, without a state: a state belongs to one document a row. Leave them out, "
                "or begin a document with a new initial_state"
            )
        return inputs

    def generate(self, ids, max_new_tokens=64, **options):
        """Write on after each prompt of token ids; see `keras_seqlm.generation.generate` for all options.

        Args:
            ids: one sequence of ids, or a list of them of any lengths. They are taken as they are: a task puts the
                `bos` id before a text.
            max_new_tokens: int, or one for each prompt.
            **options: `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`, `seed`, `eos_id`, ...; of an
                encoder-decoder `source_ids`, one sequence for each prompt.

        Returns:
            The new ids only, without the end id: one int32 array, or a list of them.
        """
        single = len(ids) > 0 and np.ndim(ids[0]) == 0
        results = generate(self, [ids] if single else ids, max_new_tokens, **options)
        new = [result.token_ids for result in results]
        return new[0] if single else new

    def score(self, ids, source_ids=None):
        """Log-probability, in nats, of each sequence after its first id: sum of ln p(id_t | ids before it).

        Args:
            ids: one sequence of at least two ids, or a list of them of any lengths.
            source_ids: of an encoder-decoder, the source of each sequence.

        Returns:
            float, or float64 array with one number a sequence.
        """
        single = len(ids) > 0 and np.ndim(ids[0]) == 0
        sums = np.array([row.sum() for row in score(self, [ids] if single else ids, source_ids)], "float64")
        return float(sums[0]) if single else sums

    def export(self, filepath, format="tf_saved_model", verbose=None, input_signature=None, **kwargs):
        """Keras's: `call` without a state, from token ids to logits, as an artifact. `keras_seqlm.export` has text in it.

        The model need not be called before. Ids are int32 (batch, time), of any size where `input_signature` says no
        other; it must be given where Keras or the format takes fixed shapes alone: a SavedModel on torch (where Keras
        needs torch_xla), LiteRT on torch, and what is recurrent in the formats "litert" and "torch".

        Raises:
            ValueError: no `input_signature` where it is needed; LiteRT, and products of 8-bit integers in the model.
        """
        backend = keras.backend.backend()
        if format == "litert" and any(getattr(part, "inputs_quantizer", None) for part in quantizable_parts(self)):
            raise ValueError(
                "LiteRT's converter knows no products of integers as Keras makes them; export with keras_seqlm.export.litert("
                "task, path, quantize='int8'), or quantise with config=Int8QuantizationConfig(activation_quantizer=None)"
            )
        if input_signature is None:
            recurrent = self.max_length is None
            if (backend == "torch" and format in ("tf_saved_model", "litert")) or (
                recurrent and format in ("litert", "torch")
            ):
                raise ValueError(
                    f"{format} on {backend} holds {type(self).__name__} for a fixed number of tokens: give input_signature="
                    "[keras.InputSpec(shape=(1, 64), dtype='int32')], say; or use keras_seqlm.export, which needs none"
                )
            input_signature = [keras.InputSpec(shape=(None, None), dtype="int32")]
            if format == "torch":
                from torch.export import Dim

                kwargs.setdefault("dynamic_shapes", {0: Dim.AUTO, 1: Dim.AUTO})
        super().export(filepath, format, verbose, input_signature, **kwargs)

    def _check_room(self, inputs, state):
        if self.max_length is None:
            return
        position, lengths = numbers_of(state["position"]), inputs.get("lengths")
        lengths = inputs["token_ids"].shape[1] if lengths is None else numbers_of(lengths)
        if position is None or lengths is None:
            return  # traced: `generate` and the exports check on the host before they call
        end = int(np.max(np.asarray(position) + np.asarray(lengths), initial=0))
        room = min([self.max_length, *(leaf.shape[2] for name, leaf in state.items() if name.startswith("kv_cache"))])
        if end > room:
            raise ValueError(
                f"the sequence would be {end} tokens long; this model reads {self.max_length} at most, and its state "
                f"has room for {room}: give a shorter prompt or fewer new tokens, or a larger max_length"
            )
