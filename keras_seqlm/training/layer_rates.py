"""Learning rates that differ by layer: small at the bottom, which is most general, and whole at the top."""

import itertools

from keras_seqlm.nesting import innermost

_DECAYS = ("weight_decay", "adam_weight_decay")


def layer_factors(model, decay):
    """By what the learning rate of each trained variable is multiplied: decay ** (how far below the head its layer stands).

    Of a head it is 1, of the topmost layer below it `decay`, and of the embeddings the smallest.

    References: Howard and Ruder 2018 (ULMFiT), arXiv:1801.06146, section 3.2; Sun et al. 2019, arXiv:1905.05583.

    Args:
        model: one of ours, built.
        decay: above 0, 1 at most.

    Returns:
        A list of (variable, factor).

    Raises:
        ValueError: a model that does not tell the order of its layers.
    """
    try:
        floors = model.floors()
    except (AttributeError, TypeError) as error:
        raise ValueError(
            f"layer_decay goes by the order of layers, and {type(model).__name__} does not tell it: leave it at 1, or define floors()"
        ) from error
    depths = {
        id(variable): len(floors) - place
        for place, layers in enumerate(floors)
        for layer in layers
        for variable in layer.variables
    }
    return [(variable, decay ** depths.get(id(variable), 0)) for variable in model.trainable_variables]


def scale_rates(optimizer, factors):
    """Make an optimizer step each variable by its own share of the learning rate, weight decay included.

    A share of the gradient would not do: Adam and its kin divide by its size. The optimizer is changed in place and saves as
    what it was, so that a model file needs nothing from here.

    Args:
        optimizer: any Keras optimizer; one that wraps another is changed inside. Calling again sets other shares.
        factors: (variable, factor) pairs; variables that are not named have 1.

    Raises:
        ValueError: Nadam on torch, whose step cannot be taken in parts.
    """
    optimizer = innermost(optimizer)
    shares = {optimizer._var_key(variable): factor for variable, factor in factors}
    if hasattr(optimizer, "share_rates"):
        optimizer.share_rates(shares)
        return
    if hasattr(optimizer, "_u_product") and hasattr(optimizer, "_parallel_update_step"):
        raise ValueError("layer_decay does not go with Nadam on torch, which steps all variables at once; use adamw")

    def replace(others):
        shares.clear()
        shares.update(others)

    optimizer.share_rates = replace
    update, decay = optimizer.update_step, optimizer._apply_weight_decay

    def share(variable):
        return shares.get(optimizer._var_key(variable), 1.0)

    def groups(variables):
        numbers = sorted(range(len(variables)), key=lambda number: share(variables[number]))
        return itertools.groupby(numbers, key=lambda number: share(variables[number]))

    def scaled_update(gradient, variable, learning_rate):
        return update(gradient, variable, learning_rate * share(variable))

    def scaled_decay(variables):
        if optimizer.weight_decay is None:
            return
        variables = [variable for variable in variables if optimizer._use_weight_decay(variable)]
        before = {name: getattr(optimizer, name) for name in _DECAYS if getattr(optimizer, name, None) is not None}
        try:
            for factor, numbers in groups(variables):
                for name, value in before.items():
                    setattr(optimizer, name, value * factor)
                decay([variables[number] for number in numbers])
        finally:
            for name, value in before.items():
                setattr(optimizer, name, value)

    optimizer.update_step, optimizer._apply_weight_decay = scaled_update, scaled_decay
    if hasattr(optimizer, "_parallel_update_step"):  # on torch many variables are stepped in one call
        step = optimizer._parallel_update_step

        def scaled_step(gradients, variables, learning_rate):
            for factor, numbers in groups(variables):
                numbers = list(numbers)
                step([gradients[n] for n in numbers], [variables[n] for n in numbers], learning_rate * factor)

        optimizer._parallel_update_step = scaled_step
