"""What the flags of `seqlm train` come to: a default that is written out is no other setting."""

import math


def in_effect(settings):
    """Settings, name -> value, with the values that those not given stand for.

    Args:
        settings: of `seqlm train`, `model` and `size` among them.

    >>> words = {"model": "gru", "size": "nano", "tokenizer": "byte", "steps": 60, "learning_rate": None, "warmup": None}
    >>> found = in_effect(words)
    >>> found["learning_rate"], found["warmup"], found["hidden_dim"]
    (0.004, 6, 160)
    """
    recurrent, steps = settings["model"] != "transformer", settings["steps"]
    trained = settings.get("tokenizer") in ("bpe", "wordpiece", "sentencepiece")
    defaults = {
        "learning_rate": 4e-3 if recurrent else 1e-3,
        "warmup": min(100, steps // 10),
        "validate_every": math.ceil(steps / 10),
        "vocabulary_size": 8192 if trained else None,
        **_of_the_size(settings, recurrent),
    }
    return {**settings, **{name: value for name, value in defaults.items() if settings.get(name) is None}}


def _of_the_size(settings, recurrent):
    if settings.get("start") is not None:
        return {}  # the other run says them
    from keras_seqlm.models import RECURRENT_SIZES, TRANSFORMER_SIZES

    parts = (RECURRENT_SIZES if recurrent else TRANSFORMER_SIZES).get(settings.get("size"), {})
    named = {"layers": "num_layers", "hidden_dim": "hidden_dim", "heads": "num_heads", "context": "max_length"}
    found = {flag: parts[name] for flag, name in named.items() if name in parts}
    return (
        {"context": 128, **found} if recurrent else {**found, "kv_heads": settings.get("heads") or found.get("heads")}
    )
