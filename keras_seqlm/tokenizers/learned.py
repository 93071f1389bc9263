"""Whether a tokenizer learned anything: how much of its own training text it does not know."""

import warnings

MOST_UNKNOWN = 0.5
MUCH_UNKNOWN = 0.05


def check_learned(unknown, total, advice):
    """Warns where more than 5% of the training text is unknown, and refuses above 50%.

    Args:
        unknown: characters of the text that become `unk`.
        total: all its characters that count.
        advice: what to do, a sentence.

    Raises:
        ValueError: more than half of the text is unknown.
    """
    if not total or unknown <= MUCH_UNKNOWN * total:
        return
    message = f"{unknown / total:.0%} of the training text are unknown to this tokenizer, so little can be learned of it. {advice}"
    if unknown > MOST_UNKNOWN * total:
        raise ValueError(message)
    warnings.warn(message, stacklevel=3)
