"""Models that predict tokens: their projection to the vocabulary, and the steps of `fit` with our losses."""

import contextvars
import functools
import inspect

import keras
from keras import ops

from keras_seqlm.half_precision import decays_of, refuse_lost_decays
from keras_seqlm.layers.embeddings import TokenEmbedding
from keras_seqlm.losses import CrossEntropy, FusedCrossEntropy
from keras_seqlm.losses.accumulation import batch_weighed, weigh_batches
from keras_seqlm.losses.of_keras import targets_and_weights, warn_of_probabilities
from keras_seqlm.losses.targets import as_targets, check_targets, real_tokens, without_padding
from keras_seqlm.models.sequence_model import SequenceModel

# The model in whose training or test step we are. A thread's own, because the replicas of a strategy share the model.
_IN_FUSED_STEP = contextvars.ContextVar("in_fused_step", default=None)


class TokenModel(SequenceModel):
    """A model that gives logits for each token of its inputs: float32 (batch, time, vocabulary).

    A subclass writes what `SequenceModel` asks for and `projection` (or `logits_of`, if it is no linear layer).

    Under `compile` with a loss of ours, or a cross-entropy of Keras's, targets of -1 weigh 0 in `fit` and `evaluate`, and
    so do tokens from `lengths` on, in `weighted_metrics`, too; the mean is over the rest. Sample weights take the place of
    `lengths`: given some, they alone say what counts. The mean is over all devices and, where gradients are accumulated,
    over all batches of an update; those of several batches Keras averages by their rows (`tasks.evaluate` by tokens).

    Under `compile(loss=FusedCrossEntropy())` the steps of `fit` and `evaluate` make no logits: there `y_pred` is the
    hidden states. `model(x)`, `predict` and `generate` give what they always do.
    """

    def projection(self):
        """What makes logits of hidden states: a `TokenEmbedding` (tied weights) or a Dense layer; and a bias, or None."""
        raise TypeError(f"{type(self).__name__} must define projection(), or logits_of(hidden)")

    def logits_of(self, hidden):
        """From hidden states (..., time, width) to float32 logits (..., time, vocabulary)."""
        layer, bias = self.projection()
        logits = ops.cast((layer.project if isinstance(layer, TokenEmbedding) else layer)(hidden), "float32")
        return logits if bias is None else logits + ops.cast(bias, "float32")

    def call(self, inputs, training=None):
        """The logits (batch, time, vocabulary); in a step with a fused loss the hidden states."""
        hidden = super().call(inputs, training)
        return hidden if _IN_FUSED_STEP.get() is self else self.logits_of(hidden)

    def default_loss(self, label_smoothing=0.0, z_loss=0.0):
        """See `SequenceModel`: the cross-entropy of tokens; fused, where the logits are of a `projection()`."""
        owners = [name for owner in type(self).__mro__ for name in ("projection", "logits_of") if name in vars(owner)]
        fused = owners.index("projection") < owners.index("logits_of")
        return (FusedCrossEntropy if fused else CrossEntropy)(label_smoothing, z_loss)

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
        if type(self).compile is not TokenModel.compile:
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
        ours = keras.backend.backend() == "tensorflow" and type(self).train_step is TokenModel.train_step
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
        if type(self).logits_of is not TokenModel.logits_of:
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
                f"gave shape {tuple(hidden.shape)}; hand on the result of TokenModel.call, or use CrossEntropy"
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


def _refuse_class_weight(method, args, kwargs):
    if inspect.signature(method).bind(*args, **kwargs).arguments.get("class_weight") is not None:
        raise ValueError(
            "class_weight is for one class a row; of targets (batch, time) Keras would weigh each row by the place of its "
            "largest id. Give sample_weight of shape (batch, time), as weight_of_id[y]"
        )
