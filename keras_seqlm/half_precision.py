"""What half precision rounds away."""

from keras_seqlm.nesting import innermost

BELOW_ONE = {"bfloat16": 2.0**-9, "float16": 2.0**-12}  # numbers within so much of 1 are rounded to it
DECAYS = ("beta_1", "beta_2", "adam_beta_1", "adam_beta_2", "rho", "momentum", "ema_momentum")


def refuse_lost_decays(decays, dtype, what):
    """Refuse decay rates of an optimizer, by name, that are 1 in the dtype of the weights and of its slots.

    Adam divides by 1 - beta_2^t: with 0.999, its default in Keras, bfloat16 weights never move.

    Example:

    >>> refuse_lost_decays({"beta_2": 0.99}, "bfloat16", "Adam")
    >>> refuse_lost_decays({"beta_2": 0.999}, "float32", "Adam")
    """
    lost = {name: value for name, value in decays.items() if 1 - BELOW_ONE.get(dtype, 0.0) <= value < 1}
    if lost:
        said = ", ".join(f"{name}={value}" for name, value in lost.items())
        raise ValueError(
            f"{what} has {said}, which {dtype} rounds to 1, so that weights kept in {dtype} would not move, or move wrongly; "
            f"use at most {1 - 2 * BELOW_ONE[dtype]}, as 0.99, or a mixed precision, whose weights are float32"
        )


def decays_of(optimizer):
    """The decay rates of a Keras optimizer, of the one inside where it wraps another."""
    optimizer = innermost(optimizer)
    values = {name: getattr(optimizer, name, None) for name in DECAYS}
    if not getattr(optimizer, "use_ema", False):
        del values["ema_momentum"]
    return {name: value for name, value in values.items() if isinstance(value, int | float)}
