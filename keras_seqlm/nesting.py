"""An optimizer that wraps another, and the one inside that makes the step."""


def nested(optimizer):
    """Yield an optimizer, the one that it wraps (`LossScaleOptimizer`, `SafeOptimizer`), and so on; nothing for None."""
    while optimizer is not None:
        yield optimizer
        optimizer = getattr(optimizer, "inner_optimizer", None)


def innermost(optimizer):
    """The optimizer that makes the step, inside those that wrap it; None for None."""
    return [None, *nested(optimizer)][-1]
