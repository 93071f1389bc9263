"""Objectives by name, and tokenizers with the special tokens that they need."""

from keras_seqlm.data.continuing import FillInTheMiddle, PrefixLM
from keras_seqlm.data.denoising import Denoising
from keras_seqlm.data.masked import Masked
from keras_seqlm.data.objectives import Objective
from keras_seqlm.data.spans import SpanCorruption
from keras_seqlm.data.vocabulary import token_id

OBJECTIVES = {kind.name: kind for kind in (Masked, SpanCorruption, Denoising, PrefixLM, FillInTheMiddle)}


def objective_of(objective):
    """An objective by its name, or the one that was given.

    Raises:
        ValueError: there is none of that name.
    """
    if isinstance(objective, Objective):
        return objective
    if objective not in OBJECTIVES:
        raise ValueError(
            f"`objective` must be one of {['causal', *OBJECTIVES]}, or an objective as `Masked(share=0.3)`; got {objective!r}."
        )
    return OBJECTIVES[objective]()


def prepared(tokenizer, objective):
    """The tokenizer with the special tokens that an objective needs; the one that was given where it has them all.

    A model must be built for the tokenizer that comes out, which may have more ids, and so another hash.

    Args:
        tokenizer: any tokenizer of `keras_seqlm.tokenizers`.
        objective: see `objective_blocks`.

    Raises:
        ValueError: no such objective, or a token that it needs is in the tokenizer and is no special one there.

    Example:

    >>> from keras_seqlm.tokenizers import ByteTokenizer
    >>> prepared(ByteTokenizer(), "masked").encode("a [MASK]").tolist()
    [101, 36, 260]
    """
    if objective == "causal":
        return tokenizer
    objective = objective_of(objective)
    missing = [token for token in objective.tokens if token_id(tokenizer, token) is None]
    known = {entry["content"] for entry in tokenizer.added_tokens.entries}
    if taken := sorted(known.intersection(missing)):
        raise ValueError(
            f"The tokenizer has {taken[0]!r} as an added token that is not special, and {objective.name!r} needs it as one that is: "
            "give that token of yours another name."
        )
    return tokenizer.with_added_tokens(missing, special=True) if missing else tokenizer
