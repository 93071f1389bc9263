"""The contract of every language model: one function with its state in the open."""

import contextvars
import functools
import inspect
import warnings

import keras
import numpy as np
from keras import ops

from keras_seqlm.generation.generate import generate
from keras_seqlm.generation.score import score
from keras_seqlm.half_precision import decays_of, refuse_lost_decays
from keras_seqlm.layers.embeddings import TokenEmbedding
from keras_seqlm.layers.quantization import KEY, quantizable_parts, quantization_config, restore_quantization
from keras_seqlm.losses import CrossEntropy, FusedCrossEntropy
from keras_seqlm.losses.accumulation import batch_weighed, weigh_batches
from keras_seqlm.losses.of_keras import targets_and_weights, warn_of_probabilities
from keras_seqlm.losses.targets import as_targets, check_targets, real_tokens, without_padding
from keras_seqlm.products import numbers_of

# The model in whose training or test step we are. A thread's own, because the replicas of a strategy share the model.
_IN_FUSED_STEP = contextvars.ContextVar("in_fused_step", default=None)


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
    there), and writes `hidden_states`, `projection` (or `logits_of`, if it is no linear layer) and `initial_state`.
    Generation, scoring, export and verification need nothing else; `read` may be written where prompts can be read faster.

    Under `compile` with a loss of ours, or a cross-entropy of Keras's, targets of -1 weigh 0 in `fit` and `evaluate`, and
    so do tokens from `lengths` on, in `weighted_metrics`, too; the mean is over the rest. Sample weights take the place of
    `lengths`: given some, they alone say what counts. The mean is over all devices and, where gradients are accumulated,
    over all batches of an update; those of several batches Keras averages by their rows (`tasks.evaluate` by tokens).

    Under `compile(loss=FusedCrossEntropy())` the steps of `fit` and `evaluate` make no logits: there `y_pred` is the
    hidden states. `model(x)`, `predict` and `generate` give what they always do.
    """

    max_length = None  # a recurrent model has no limit
    reads = ("token_ids", "lengths", "segment_ids")  # what `inputs` may hold; a subclass that reads more names it, too
    torch_compiles = True  # whether torch's compiler makes a training pass faster
    _infers_shapes = False

    def __init__(self, name=None, dtype=None, trainable=True):
        # autocast would round float32 state leaves to the compute dtype before `call` sees them
        super().__init__(name=name, dtype=dtype, trainable=trainable, autocast=False)
        self._compiled_pass = None

    def hidden_states(self, inputs, state=None, training=None):
        """From a dict of int32 inputs to what is projected, (batch, time, width), and the new state (or None)."""
        raise TypeError(f"{type(self).__name__} must define hidden_states(inputs, state, training)")

    def projection(self):
        """What makes logits of hidden states: a `TokenEmbedding` (tied weights) or a Dense layer; and a bias, or None."""
        raise TypeError(f"{type(self).__name__} must define projection(), or logits_of(hidden)")

    def logits_of(self, hidden):
        """From hidden states (..., time, width) to float32 logits (..., time, vocabulary)."""
        layer, bias = self.projection()
        logits = ops.cast((layer.project if isinstance(layer, TokenEmbedding) else layer)(hidden), "float32")
        return logits if bias is None else logits + ops.cast(bias, "float32")

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
        inputs = self.checked_inputs(inputs, state)
        if state is not None:
            self._check_room(inputs, state)
        else:
            self._check_length(inputs["token_ids"])
        whole_pass = self.hidden_states if state is not None else self._whole_pass(inputs)
        hidden, state = whole_pass(inputs, state, training)
        if state is None and _IN_FUSED_STEP.get() is self:
            return hidden
        logits = self.logits_of(hidden)
        return logits if state is None else (logits, state)

    def checked_inputs(self, inputs, state=None):
        """A dict of tensors, ids and lengths as int32.

        Raises:
            ValueError: an input that this model does not read, `segment_ids` beside a state, lengths that do not fit.
        """
        inputs = as_inputs(inputs)
        unknown = sorted(set(inputs) - set(self.reads))
        if unknown:
            raise ValueError(
                f"{type(self).__name__} reads {', '.join(self.reads)}, and would not look at {', '.join(unknown)}; leave it "
                "out. Padding is on the right, and `lengths` (batch,) says how many tokens of each row are real"
            )
        if state is not None and "segment_ids" in inputs:
            raise ValueError(
                "segment_ids are for whole sequences, without a state: a state belongs to one document a row. Leave them out, "
                "or begin a document with a new initial_state"
            )
        lengths, time = numbers_of(inputs["lengths"]) if "lengths" in inputs else None, inputs["token_ids"].shape[1]
        if lengths is not None and isinstance(time, int) and ((lengths < 0) | (lengths > time)).any():
            raise ValueError(f"lengths must be from 0 to {time}, the tokens of a row, got {lengths.tolist()}")
        return inputs

    def build(self, inputs_shape=None, state_shape=None):
        raise TypeError(f"{type(self).__name__} must define build() and build every layer in it")

    def compile(
        self, optimizer="rmsprop", loss=None, loss_weights=None, metrics=None, weighted_metrics=None, *args, **options
    ):
        """As in `keras.Model`; with `FusedCrossEntropy` what needs logits is refused.

        Raises:
            ValueError: also for an optimizer whose decay rates are 1 in the half precision of the weights.
        """
        if isinstance(loss, (list, tuple)) and len(loss) == 1:
            [loss] = loss
        warn_of_probabilities(keras.tree.flatten(loss), self)
        if any(isinstance(part, FusedCrossEntropy) for part in keras.tree.flatten(loss)):
            self._check_fused(loss, [*keras.tree.flatten(metrics), *keras.tree.flatten(weighted_metrics)])
        if optimizer is not None:
            optimizer = keras.optimizers.get(optimizer)
            refuse_lost_decays(decays_of(optimizer), self.variable_dtype, optimizer.name)
            weigh_batches(optimizer)
        super().compile(optimizer, loss, loss_weights, metrics, weighted_metrics, *args, **options)

    def compile_from_config(self, config):
        """Compile a model that was read from a file."""
        if type(self).compile is not LanguageModel.compile:
            return super().compile_from_config(config)  # what Keras says of a `compile` of one's own
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)

    @functools.wraps(keras.Model.fit)
    def fit(self, *args, **kwargs):
        _refuse_class_weight(super().fit, args, kwargs)
        return super().fit(*args, **kwargs)

    @functools.wraps(keras.Model.train_on_batch)
    def train_on_batch(self, *args, **kwargs):
        _refuse_class_weight(super().train_on_batch, args, kwargs)
        return super().train_on_batch(*args, **kwargs)

    @functools.wraps(keras.Model.make_train_function)
    def make_train_function(self, *args, **kwargs):
        # A step that makes the optimizer's variables is traced twice by TensorFlow: once to make them, and once without.
        ours = keras.backend.backend() == "tensorflow" and type(self).train_step is LanguageModel.train_step
        if ours and self.built and self.optimizer is not None and not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        return super().make_train_function(*args, **kwargs)

    def train_step(self, *args, **kwargs):
        """Keras's, with hidden states for logits if the loss is fused."""
        with batch_weighed(self, data=args[-1]):
            return self._step(super().train_step, *args, **kwargs)

    def test_step(self, *args, **kwargs):
        """Keras's, with hidden states for logits if the loss is fused."""
        return self._step(super().test_step, *args, **kwargs)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Keras's; a fused loss is computed here, where hidden states, projection and targets are at hand."""
        if not isinstance(self.loss, CrossEntropy):
            y, sample_weight = targets_and_weights(self.loss, y, x, sample_weight)
            if isinstance(self.loss, keras.losses.SparseCategoricalCrossentropy):
                check_targets(as_targets(y, y_pred), y_pred.shape[-1], self.loss.ignore_class)
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        if sample_weight is None:
            y = without_padding(y, x)
        if not isinstance(self.loss, FusedCrossEntropy):
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        if _IN_FUSED_STEP.get() is self:
            loss = self.loss.of_hidden(y_pred, *self._linear_projection(y_pred), y, sample_weight, training)
        else:  # a step of one's own, or Keras builds: these are logits
            loss = self.loss.of_logits(y_pred, y, sample_weight)
        return super().compute_loss(x, y, loss, None, training)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Keras's; `weighted_metrics` leave padding out, too, where there are no weights."""
        if sample_weight is None and y is not None and len(getattr(y, "shape", ())) in (2, 3):
            real = real_tokens(y, x)
            sample_weight = None if real is None else ops.cast(real, "float32")
        return super().compute_metrics(x, y, y_pred, sample_weight)

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

    def _step(self, keras_step, *args, **kwargs):
        if not isinstance(self.loss, FusedCrossEntropy):
            return keras_step(*args, **kwargs)
        token = _IN_FUSED_STEP.set(self)
        try:
            return keras_step(*args, **kwargs)
        finally:
            _IN_FUSED_STEP.reset(token)

    def _check_fused(self, loss, metrics):
        instead = f"compile(loss=CrossEntropy(...)) with {type(self).__name__} instead"
        if not isinstance(loss, FusedCrossEntropy):
            raise ValueError(f"FusedCrossEntropy must be the only loss, got {loss!r}; give it alone, or {instead}")
        metrics = [metric for metric in metrics if metric is not None]
        if metrics:
            names = [getattr(metric, "name", getattr(metric, "__name__", metric)) for metric in metrics]
            raise ValueError(
                f"metrics need logits, which FusedCrossEntropy does not make: {', '.join(map(str, names))}; leave them "
                f"out, or {instead}"
            )
        if type(self).logits_of is not LanguageModel.logits_of:
            raise ValueError(
                f"FusedCrossEntropy reads the weights that projection() names, and {type(self).__name__} defines logits_of; "
                f"define projection() in its place, or {instead}"
            )

    def _linear_projection(self, hidden):
        """The kernel, the bias or None, and whether the vocabulary is the kernel's first axis."""
        layer, bias = self.projection()
        width = layer.table.shape[1] if isinstance(layer, TokenEmbedding) else layer.kernel.shape[0]
        if hidden.shape[-1] != width:
            raise ValueError(
                f"FusedCrossEntropy needs what {layer.name} projects, of width {width}, and a step of {type(self).__name__} "
                f"gave shape {tuple(hidden.shape)}; hand on the result of LanguageModel.call, or use CrossEntropy"
            )
        if isinstance(layer, TokenEmbedding):
            return layer.table, bias, True
        if layer.quantization_mode is not None or layer.activation is not keras.activations.linear:
            raise ValueError(
                f"FusedCrossEntropy needs a linear projection in floating point, and {layer.name} is quantized or has an "
                "activation; use CrossEntropy"
            )
        if layer.bias is not None:
            bias = layer.bias if bias is None else layer.bias + bias
        return layer.kernel, bias, False

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

    def get_config(self):
        names = [name for name in inspect.signature(type(self).__init__).parameters if name not in ("self", "dtype")]
        return {
            **{name: getattr(self, name) for name in names},
            "dtype": keras.saving.serialize_keras_object(self.dtype_policy),
            **quantization_config(self),
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        quantization = config.pop(KEY, None)
        if isinstance(config.get("dtype"), dict):
            config["dtype"] = keras.saving.deserialize_keras_object(config["dtype"])
        return restore_quantization(cls(**config), quantization)

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


def _refuse_class_weight(method, args, kwargs):
    if inspect.signature(method).bind(*args, **kwargs).arguments.get("class_weight") is not None:
        raise ValueError(
            "class_weight is for one class a row; of targets (batch, time) Keras would weigh each row by the place of its "
            "largest id. Give sample_weight of shape (batch, time), as weight_of_id[y]"
        )
