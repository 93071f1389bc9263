"""What every model of sequences shares: its inputs, its hidden states, its config and its layout over devices."""

import inspect
import warnings

import keras
from keras import ops

from keras_seqlm.layers.layouts import LAYOUTS, layout_map
from keras_seqlm.layers.lora import LowRank
from keras_seqlm.layers.quantization import KEY, quantizable_parts, quantization_config, restore_quantization
from keras_seqlm.products import numbers_of

ADAPTERS = "lora"  # in the config of a model: rank, alpha, and what is adapted


class SequenceModel(keras.Model):
    """A model that makes a hidden state of every token: encoders, language models, and the heads on them.

    `inputs` is int32 token ids (batch, time) or a dict of int32 tensors, of which a class names in `reads` those that it
    looks at: `token_ids`; `lengths` (batch,), the real tokens of each row, padding being on the right; `segment_ids`
    (batch, time), the number of the packed document; `token_types` (batch, time), the part of a pair.

    A subclass builds its layers in `__init__`, keeps every argument under its own name (its config is read back from
    there), and writes `build`, `hidden_states` and `width`.

    Attributes:
        max_length: how many tokens it reads at most; None for no limit.
        reads: what `inputs` may hold.
        causal: whether the hidden state of a token knows nothing of those behind it.
        width: of a hidden state.
        lora: a dict of `rank`, `alpha` and `on`, where it has adapters (`add_lora`), else None.
    """

    max_length = None  # a recurrent model has no limit
    reads = ("token_ids", "lengths", "segment_ids")  # a subclass that reads more names it, too
    causal = False
    torch_compiles = True  # whether torch's compiler makes a training pass faster
    lora = None
    _infers_shapes = False

    def __init__(self, name=None, dtype=None, trainable=True):
        # autocast would round float32 state leaves to the compute dtype before `call` sees them
        super().__init__(name=name, dtype=dtype, trainable=trainable, autocast=False)
        self._compiled_pass = None

    @property
    def width(self):
        raise TypeError(f"{type(self).__name__} must define width, of its hidden states")

    @property
    def idle(self):
        """The variables that training leaves as they are, whatever their layers say of themselves: those below adapters."""
        if self.lora is None:
            return []
        adapters = [layer for layer in self._flatten_layers() if isinstance(layer, LowRank)]
        learned = {id(weight) for adapter in adapters for weight in adapter.weights}
        return [variable for variable in self.variables if id(variable) not in learned]

    @property
    def trainable_variables(self):
        # Of a model in a file Keras keeps that it is frozen, and not that its layers are.
        idle = {id(variable) for variable in self.idle}
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

    @property
    def of_logits_alone(self):
        """The variables that no hidden state depends on: those that a head on this model leaves idle."""
        return []

    def floors(self):
        """Its layers from the bottom up, a list of lists; what stands on the last one, as a head does, is in none of them."""
        raise TypeError(f"{type(self).__name__} must define floors(), by which learning rates fall from the top down")

    def hidden_states(self, inputs, state=None, training=None):
        """From a dict of int32 inputs to hidden states (batch, time, width), and the new state (or None)."""
        raise TypeError(f"{type(self).__name__} must define hidden_states(inputs, state, training)")

    def call(self, inputs, training=None):
        """The hidden states (batch, time, width)."""
        inputs = self.checked_inputs(inputs)
        self._check_length(inputs["token_ids"])
        return self._whole_pass(inputs)(inputs, None, training)[0]

    def checked_inputs(self, inputs):
        """A dict of tensors, ids and lengths as int32.

        Raises:
            ValueError: an input that this model does not read, lengths that do not fit.
        """
        inputs = as_inputs(inputs)
        unknown = sorted(set(inputs) - set(self.reads))
        if unknown:
            raise ValueError(
                f"{type(self).__name__} reads {', '.join(self.reads)}, and would not look at {', '.join(unknown)}; leave it "
                "out. Padding is on the right, and `lengths` (batch,) says how many tokens of each row are real"
            )
        lengths, time = numbers_of(inputs["lengths"]) if "lengths" in inputs else None, inputs["token_ids"].shape[1]
        if lengths is not None and isinstance(time, int) and ((lengths < 0) | (lengths > time)).any():
            raise ValueError(f"lengths must be from 0 to {time}, the tokens of a row, got {lengths.tolist()}")
        return inputs

    def build(self, inputs_shape=None):
        raise TypeError(f"{type(self).__name__} must define build() and build every layer in it")

    def default_loss(self, label_smoothing=0.0, z_loss=0.0):
        """The loss that a `Recipe` compiles the model with."""
        raise TypeError(f"{type(self).__name__} has no loss of its own: put a head on it, or compile it with a loss")

    def share_embedding_of(self, other):
        """Read token ids by the table of another model, in place of one of its own; before either is built.

        Raises:
            ValueError: it is built already, or the two tables are of different shapes.
        """
        ours, theirs = (
            (model.token_embedding.vocabulary_size, model.token_embedding.hidden_dim) for model in (self, other)
        )
        if self.built or ours != theirs:
            raise ValueError(
                f"a table of token vectors is shared before it is made, and by models that read the same ids into the same width; "
                f"here they are {ours} and {theirs}" + (", and the model is built" if self.built else "")
            )
        self._tracker.untrack(self.token_embedding)
        self.token_embedding = other.token_embedding

    def layout_map(self, mesh):
        """How the weights are cut over a mesh with an axis "model", for `keras.distribution.ModelParallel` (JAX).

        `Recipe(distribution="model-parallel")` does all of this. By hand, before the weights are made:

            distribution = keras.distribution.ModelParallel(layout_map=model.layout_map(mesh), batch_dim_name="batch")
            with distribution.scope():
                model.build()
        """
        return layout_map(mesh, LAYOUTS, self.vocabulary_size)

    def _should_torch_compile(self):
        """Keras would have torch compile a whole step, which it traces in pieces, and anew at every step."""
        return False

    def _whole_pass(self, inputs):
        """`hidden_states`, under `compile(jit_compile=True)` on torch compiled: once for each shape, backward pass and all."""
        if (
            keras.backend.backend() != "torch"
            or not self.torch_compiles
            or getattr(self, "jit_compile", None) is not True
        ):
            return self.hidden_states
        import torch

        if torch.compiler.is_compiling() or inputs["token_ids"].is_meta:
            return self.hidden_states
        if self._compiled_pass is None:
            self._compiled_pass = torch.compile(self.hidden_states)
        return self._compiled_pass

    def compute_output_spec(self, *args, **kwargs):
        """Keras's: the shapes of the outputs. A length that is not known is not held to `max_length`."""
        self._infers_shapes = True  # on torch Keras puts a number in place of an unknown length
        try:
            return super().compute_output_spec(*args, **kwargs)
        finally:
            self._infers_shapes = False

    def _check_length(self, token_ids):
        time = token_ids.shape[1]
        if self.max_length is None or self._infers_shapes or not isinstance(time, int):
            return  # no int, too, while JAX exports
        if time > self.max_length:
            raise ValueError(
                f"the sequences are {time} tokens long, and this model reads {self.max_length} at most: cut them (the "
                "sequence_length of data.causal_blocks), or build the model with a larger max_length"
            )

    def quantize(self, mode=None, config=None, filters=None, **kwargs):
        """Keras's: weights become integers with scales, in place. They are fixed then; biases and norms still train.

        `int8` quantises the token embedding and every Dense layer, whose inputs Keras rounds to 8 bits, too (not with
        `Int8QuantizationConfig(activation_quantizer=None)`); `int4` the Dense layers alone; `float8` trains them in
        8-bit floats. Recurrent layers, norms and positions stay as they are. Files keep all of it; exports take the
        float32 weights that the integers give. `enable_lora` of a Dense layer goes on from there; in a file Keras keeps
        what it has learned as part of the integers, rounded with them.

        Raises:
            ValueError: a mode that needs a calibration, which Keras makes for other models; nothing to quantise; a
                model in float16, which Keras does not quantise.
        """
        if any(isinstance(layer, LowRank) for layer in self._flatten_layers()):
            raise ValueError(
                "the model has adapters, which a quantised kernel would hide: quantise what merge_lora(model) gives"
            )
        if mode in ("gptq", "awq"):  # Keras has made it of `config`, where it was not given
            raise ValueError(
                f"mode must be 'int8', 'int4' or 'float8', got {mode!r}, which Keras calibrates on a chain of layers that "
                f"{type(self).__name__} is not"
            )
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Layer .* does not have a `quantize` method|a TokenEmbedding is quantised"
            )
            super().quantize(mode, config=config, filters=filters, **kwargs)
        if all(part.quantization_mode is None for part in quantizable_parts(self)):
            raise ValueError(
                f"mode {mode!r} found nothing to quantise in {self.name}: 'int8' takes the token embedding and "
                "Dense layers, the others Dense layers alone, each as far as filters let them through"
            )

    def get_config(self):
        names = [name for name in inspect.signature(type(self).__init__).parameters if name not in ("self", "dtype")]
        return {
            **{name: getattr(self, name) for name in names},
            "dtype": keras.saving.serialize_keras_object(self.dtype_policy),
            **quantization_config(self),
            **self.adapters_config(),
        }

    def adapters_config(self):
        """What a config says of adapters: a dict of one, or of none."""
        return {} if self.lora is None else {ADAPTERS: {**self.lora, "on": list(self.lora["on"])}}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        quantization, lora = config.pop(KEY, None), config.pop(ADAPTERS, None)
        if isinstance(config.get("dtype"), dict):
            config["dtype"] = keras.saving.deserialize_keras_object(config["dtype"])
        model = restore_quantization(cls(**config), quantization)
        if lora is not None:
            model.adapt(**lora)
        return model

    def adapt(self, rank, alpha, on):
        """Give the layers of a model that is not built yet their adapters; see `add_lora`, which does this for one that is."""
        for layer in list(self._flatten_layers()):
            names = [name for name in adaptable(layer) if name in on]
            if names:
                layer.adapt(rank, alpha, names)
        self.lora = {"rank": rank, "alpha": alpha, "on": list(on)}


def adaptable(layer):
    """Names of what in a layer itself can be adapted; not the few rows of a table of token types."""
    names = getattr(layer, "adapts", ())
    return names if "embedding" not in names or layer.name == "token_embedding" else ()


def as_inputs(inputs):
    """A dict of tensors from ids or a dict; ids, lengths and the like as int32, all others (audio, say) as they are.

    Keras's symbolic build under a distribution strategy feeds float64, and `keras.Input` is float by default; a float id
    beyond 256 would be rounded in half precision.
    """
    if not isinstance(inputs, dict):
        inputs = {"token_ids": inputs}
    if "token_ids" not in inputs:
        raise ValueError(f"inputs needs 'token_ids', got a dict with {sorted(inputs)}")
    return {name: ops.cast(leaf, "int32") if counts(name) else leaf for name, leaf in inputs.items()}


def counts(name):
    """Whether an input holds whole numbers: `token_ids`, `segment_ids`, `lengths`, `source_lengths`, `token_types` ..."""
    return name.endswith(("ids", "lengths", "types"))
