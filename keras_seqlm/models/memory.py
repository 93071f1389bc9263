"""What a decoder keeps of a source: the leaves of its state that begin with `memory_`."""

from keras import ops

from keras_seqlm.layers.attention import as_bias, bias_dtype

MEMORY = "memory_"


def memory_of(decoder, leaves):
    """The leaves of a memory among those of a state; {} for a decoder without any.

    Raises:
        ValueError: a decoder that attends to a memory is given none.
    """
    found = {name: leaf for name, leaf in (leaves or {}).items() if name.startswith(MEMORY)}
    if decoder.memory_dim is not None and not found:
        raise ValueError(
            f"this {type(decoder).__name__} is the decoder of a source (memory_dim={decoder.memory_dim}) and was given none: make "
            "models.Seq2SeqLM(encoder=encoder, decoder=decoder) of it, and call that"
        )
    return found if decoder.memory_dim is not None else {}


def hidden_padding(memory, dtype):
    """What hides the padding of sources from attention: float (sources, 1, 1, source time), or None where there is none.

    Args:
        memory: the leaves of a memory.
        dtype: of queries and keys.
    """
    if "memory_lengths" not in memory:
        return None
    keys = next(leaf for name, leaf in memory.items() if name != "memory_lengths")
    real = ops.arange(ops.shape(keys)[-2], dtype="int32")[None] < memory["memory_lengths"][:, None]
    return as_bias(real[:, None, None], bias_dtype(None, dtype))
