"""The contract of every language model: one function with its state in the open."""

import inspect

import keras
import numpy as np
from keras import ops

from keras_seqlm.generation.generate import generate
from keras_seqlm.generation.score import score


class LanguageModel(keras.Model):
    """What `RecurrentLM`, `TransformerLM` and the models after them share.

        logits        = model(inputs)                 # training: whole sequences, no state
        logits, state = model(inputs, state=state)    # decoding: a prompt, or the next tokens
        state         = model.initial_state(batch_size, max_length)

    `inputs` is int32 token ids (batch, time) or a dict of int32 tensors: `token_ids`; `lengths` (batch,), the real
    tokens of each row, padding being on the right; `segment_ids` (batch, time), the number of the packed document
    (without `state` only). `logits` is float32 (batch, time, vocabulary). `state` is a flat dict of tensors with the
    batch on axis 0, among them `position` (batch,): how many tokens of each row have been read.

    A subclass builds its layers in `__init__`, keeps every argument under its own name (its config is read back from
    there), and writes `hidden_states`, `logits_of` and `initial_state`. Generation, scoring, export and verification
    need nothing else.
    """

    max_length = None  # a recurrent model has no limit

    def __init__(self, name=None, dtype=None, trainable=True):
        # autocast would round float32 state leaves to the compute dtype before `call` sees them
        super().__init__(name=name, dtype=dtype, trainable=trainable, autocast=False)

    def hidden_states(self, inputs, state=None, training=None):
        """From a dict of int32 inputs to the last hidden states (batch, time, hidden_dim) and the new state (or None)."""
        raise TypeError(f"{type(self).__name__} must define hidden_states(inputs, state, training)")

    def logits_of(self, hidden):
        """From hidden states (..., time, hidden_dim) to float32 logits (..., time, vocabulary)."""
        raise TypeError(f"{type(self).__name__} must define logits_of(hidden)")

    def initial_state(self, batch_size, max_length=None):
        """The state before the first token; `max_length` is the room of a cache, where there is one."""
        raise TypeError(f"{type(self).__name__} must define initial_state(batch_size, max_length)")

    def call(self, inputs, state=None, training=None):
        inputs = as_inputs(inputs)
        if state is not None:
            self._check_room(inputs, state)
        hidden, state = self.hidden_states(inputs, state, training)
        logits = self.logits_of(hidden)
        return logits if state is None else (logits, state)

    def build(self, inputs_shape=None, state_shape=None):
        raise TypeError(f"{type(self).__name__} must define build() and build every layer in it")

    def generate(self, ids, max_new_tokens=64, **options):
        """Write on after each prompt of token ids; see `keras_seqlm.generation.generate` for all options.

        Args:
            ids: one sequence of ids, or a list of them of any lengths. They are taken as they are: a task puts the
                `bos` id before a text.
            max_new_tokens: int, or one for each prompt.
            **options: `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`, `seed`, `eos_id`, ...

        Returns:
            The new ids only, without the end id: one int32 array, or a list of them.
        """
        single = len(ids) > 0 and np.ndim(ids[0]) == 0
        results = generate(self, [ids] if single else ids, max_new_tokens, **options)
        new = [result.token_ids for result in results]
        return new[0] if single else new

    def score(self, ids):
        """Log-probability, in nats, of each sequence after its first id: sum of ln p(id_t | ids before it).

        Args:
            ids: one sequence of at least two ids, or a list of them of any lengths.

        Returns:
            float, or float64 array with one number a sequence.
        """
        single = len(ids) > 0 and np.ndim(ids[0]) == 0
        sums = np.array([row.sum() for row in score(self, [ids] if single else ids)], "float64")
        return float(sums[0]) if single else sums

    def get_config(self):
        names = [name for name in inspect.signature(type(self).__init__).parameters if name not in ("self", "dtype")]
        return {
            **{name: getattr(self, name) for name in names},
            "dtype": keras.saving.serialize_keras_object(self.dtype_policy),
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        if isinstance(config.get("dtype"), dict):
            config["dtype"] = keras.saving.deserialize_keras_object(config["dtype"])
        return cls(**config)

    def _check_room(self, inputs, state):
        if self.max_length is None:
            return
        position, lengths = concrete(state["position"]), inputs.get("lengths")
        lengths = inputs["token_ids"].shape[1] if lengths is None else concrete(lengths)
        if position is None or lengths is None:
            return  # traced: `generate` and the exports check on the host before they call
        end = int(np.max(np.asarray(position) + np.asarray(lengths), initial=0))
        room = min([self.max_length, *(leaf.shape[2] for name, leaf in state.items() if name.startswith("kv_cache"))])
        if end > room:
            raise ValueError(
                f"the sequence would be {end} tokens long; this model reads {self.max_length} at most, and its state "
                f"has room for {room}: give a shorter prompt or fewer new tokens, or a larger max_length"
            )


def as_inputs(inputs):
    """A dict of int32 tensors from ids or a dict. Keras's symbolic build under a distribution strategy feeds float64,
    and `keras.Input` is float by default; a float id beyond 256 would be rounded in half precision."""
    if not isinstance(inputs, dict):
        inputs = {"token_ids": inputs}
    if "token_ids" not in inputs:
        raise ValueError(f"inputs needs 'token_ids', got a dict with {sorted(inputs)}")
    return {name: ops.cast(leaf, "int32") for name, leaf in inputs.items()}


def concrete(tensor):
    """The numbers of `tensor` as NumPy, or None while it is only being traced."""
    backend = keras.backend.backend()
    if backend == "tensorflow" and not isinstance(tensor, np.ndarray) and not hasattr(tensor, "numpy"):
        return None
    if backend == "jax":
        import jax

        if isinstance(tensor, jax.core.Tracer):
            return None
    if backend == "torch" and getattr(tensor, "is_meta", False):
        return None
    return ops.convert_to_numpy(tensor)
