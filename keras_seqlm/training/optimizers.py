"""The optimizer of a recipe: its class by name, its numbers, and which weights it treats how."""

import inspect
import re
import warnings

import keras
from keras import ops

from keras_seqlm.half_precision import decays_of, refuse_lost_decays
from keras_seqlm.nesting import innermost
from keras_seqlm.training.layer_rates import layer_factors, scale_rates
from keras_seqlm.training.safe_optimizer import SafeOptimizer


@keras.saving.register_keras_serializable("keras_seqlm")
class Muon(keras.optimizers.Muon):
    """Keras's Muon, also for weights in half precision on TensorFlow, which multiplies tensors of one dtype alone."""

    def update_step(self, gradient, variable, learning_rate):
        gradient, learning_rate = (ops.cast(tensor, variable.dtype) for tensor in (gradient, learning_rate))
        super().update_step(gradient, variable, learning_rate)

    def lr_adjust(self, x):
        """The update's scale, a number and not a float32 tensor."""
        return x if self.rms_rate is None else x * (max(x.shape) ** 0.5 * self.rms_rate)


def new_optimizer(recipe, model):
    """The optimizer that a `Recipe` says, for a model that is built.

    Muon updates the hidden matrices alone; embeddings, positions, the projection to the vocabulary and whatever is no
    matrix get AdamW's updates. Its orthogonal updates are scaled to the size that AdamW's have, so that both go by the
    same learning rate and weight decay. References: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon;
    the scale: Liu et al. 2025, arXiv:2502.16982.

    Args:
        recipe: a `Recipe`.
        model: its `trainable_variables` are what will be trained.

    Raises:
        ValueError: decay rates that are 1 in the half precision of the model's weights.
    """
    kind = optimizer_class(recipe.optimizer)
    kind = Muon if kind is keras.optimizers.Muon else kind
    takes = inspect.signature(kind.__init__).parameters
    options = {
        "beta_1": recipe.beta_1,
        "beta_2": recipe.beta_2,
        "adam_beta_1": recipe.beta_1,
        "adam_beta_2": recipe.beta_2,
        "adam_weight_decay": recipe.weight_decay,
    }
    options = {name: value for name, value in options.items() if name in takes}
    if kind is Muon:
        matrices = [variable for variable in model.trainable_variables if len(variable.shape) == 2]
        options["exclude_layers"] = [_pattern(matrix) for matrix in matrices if not is_hidden_matrix(matrix, model)]
    if recipe.ema is not None:
        # Keras averages at each batch; the weights change at each `accumulate`-th alone.
        options |= {"use_ema": True, "ema_momentum": recipe.ema ** (1 / recipe.accumulate)}
    optimizer = kind(
        learning_rate=recipe.learning_rate_schedule(),
        weight_decay=recipe.weight_decay,
        global_clipnorm=recipe.clip_norm,
        gradient_accumulation_steps=recipe.accumulate if recipe.accumulate > 1 else None,
        **options,
    )
    for dtype in {keras.backend.standardize_dtype(variable.dtype) for variable in model.trainable_variables}:
        refuse_lost_decays(decays_of(optimizer), dtype, recipe.optimizer)
    exclude_from_decay(optimizer, model.trainable_variables)
    optimizer.layer_decay = recipe.layer_decay  # as a run that goes on is held to it
    if recipe.layer_decay != 1:
        scale_rates(optimizer, layer_factors(model, recipe.layer_decay))
    if recipe.stop_after_skipped:
        optimizer = SafeOptimizer(optimizer, 2.0**15 if recipe.precision == "mixed_float16" else 1.0)
    return optimizer


def optimizer_class(name):
    """The Keras optimizer of that name, in any case of letters.

    Raises:
        ValueError: there is none; the message names them all.
    """
    # By name alone: to make one would start the backend, whose devices could not be set up afterwards.
    kinds = {
        kind.__name__.lower(): kind
        for kind in vars(keras.optimizers).values()
        if isinstance(kind, type) and issubclass(kind, keras.optimizers.Optimizer)
    }
    kinds = {
        key: kind for key, kind in kinds.items() if key not in ("optimizer", "lossscaleoptimizer", "safeoptimizer")
    }
    if not isinstance(name, str) or name.lower() not in kinds:
        raise ValueError(f"optimizer must be one of {sorted(kinds)}, got {name!r}")
    return kinds[name.lower()]


def exclude_from_decay(optimizer, variables):
    """Tell an optimizer where its weight decay does not pull; a model's file does not hold it."""
    optimizer.exclude_from_weight_decay(var_list=[variable for variable in variables if not decays(variable)])


def decays(variable):
    """Whether weight decay pulls at a variable: at matrices and tables of tokens, not at biases, scales and positions."""
    *parts, name = variable.path.split("/")
    return len(variable.shape) >= 2 and "bias" not in name and "positions" not in parts


def is_hidden_matrix(variable, model):
    """Whether Muon may update a variable: a matrix, neither at the model's beginning nor at its end.

    The end is the layer called `output_projection`, and of a Sequential or functional model the last one.
    """
    if len(variable.shape) != 2 or not decays(variable) or "embedding" in variable.path.lower():
        return False
    last = model.layers[-1].variables if getattr(model, "outputs", None) else ()
    return "output_projection" not in variable.path.split("/") and not any(variable is other for other in last)


def clip_after_all_reduce(optimizer):
    """Make an optimizer of the TensorFlow backend clip the summed gradient, and not each replica's own part.

    Keras clips before the replicas' gradients are summed, which silently trains on other numbers than one device
    does. The optimizer is changed in place and saves as what it was, so that a model file needs nothing from here.

    Args:
        optimizer: any Keras optimizer; one that wraps another is changed inside. Calling twice does no harm.
    """
    optimizer = innermost(optimizer)
    clips = optimizer.clipnorm or optimizer.global_clipnorm or optimizer.clipvalue
    if not clips or getattr(optimizer, "clips_after_all_reduce", False):
        return
    if not hasattr(optimizer, "_all_reduce_sum_gradients") or not hasattr(optimizer, "_clip_gradients"):
        optimizer.clipnorm = optimizer.global_clipnorm = optimizer.clipvalue = None
        warnings.warn(
            f"Keras {keras.__version__} sums the replicas' gradients in a way that is unknown here: training goes on "
            "without clipping, because clipping each replica's part would change the numbers.",
            stacklevel=2,
        )
        return
    all_reduce, clip = optimizer._all_reduce_sum_gradients, optimizer._clip_gradients

    def all_reduce_and_clip(gradients_and_variables):
        gradients, variables = zip(*all_reduce(gradients_and_variables), strict=True)
        return list(zip(clip(gradients), variables, strict=True))

    optimizer._all_reduce_sum_gradients = all_reduce_and_clip
    optimizer._clip_gradients = lambda gradients: gradients
    optimizer.clips_after_all_reduce = True


def _pattern(variable):
    # Without the model's own name, which changes when a second one is made in the same process.
    return "(^|/)" + re.escape("/".join(variable.path.split("/")[-2:])) + "$"
