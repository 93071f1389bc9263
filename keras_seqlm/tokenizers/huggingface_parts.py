"""Reading the parts of Hugging Face's `tokenizer.json`: each field is looked at, none is passed over."""

import dataclasses


class Refused(ValueError):
    """Something in the file that cannot be taken."""


@dataclasses.dataclass
class Parts:
    """What a `tokenizer.json` says, read as far as it is the same for every model.

    Args:
        normalizer, pre_tokenizer, post_processor, decoder, model: the JSON of each.
        added_tokens: list of entries as `AddedTokens` takes them.
        tokens: list of the tokens by id, added ones included.
        special_ids: dict of role to id.
    """

    normalizer: object
    pre_tokenizer: object
    post_processor: object
    decoder: object
    model: dict
    added_tokens: list
    tokens: list = dataclasses.field(default_factory=list)
    special_ids: dict = dataclasses.field(default_factory=dict)


def steps(part):
    """The steps of a normalizer, pre-tokenizer, post-processor or decoder: a list of dicts, sequences laid open."""
    if part is None:
        return []
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise Refused(f"expected an object with a type, got {str(part)[:80]}.")
    if part["type"] != "Sequence":
        return [part]
    inner = [part[name] for name in ("normalizers", "pretokenizers", "processors", "decoders") if name in part]
    if len(inner) != 1 or len(part) != 2 or not isinstance(inner[0], list):
        raise Refused(f"expected a Sequence with its steps, got {str(part)[:80]}.")
    return [step for one in inner[0] for step in steps(one)]


def kinds(part):
    """The names of the steps, for messages."""
    return " + ".join(step["type"] for step in steps(part)) or "none"


def check_fields(step, where, **allowed):
    """Raises Refused unless each field of `step` is one of `allowed`, with a value among those given.

    Args:
        step: dict.
        where: what it is a part of, for the message.
        **allowed: name of a field to a tuple of the values that can be taken, or None for any.
    """
    for name, value in step.items():
        if name not in allowed:
            raise Refused(f"{where} {step.get('type')!r}: {name} is not known here.")
        values = allowed[name]
        if values is not None and not any(type(value) is type(one) and value == one for one in values):
            expected = " or ".join(map(repr, values))
            raise Refused(f"{where} {step.get('type')!r}: {name} = {value!r} is not supported, only {expected}.")


def true_or_false(step, where, name, default=False):
    """A field that is true or false."""
    value = step.get(name, default)
    if not isinstance(value, bool):
        raise Refused(f"{where} {step.get('type')!r}: expected {name} as true or false, got {value!r}.")
    return value


def pairs_of(merges):
    """The merges as a list of `(left, right)`: pairs, or lines with a space between."""
    if not isinstance(merges, list):
        raise Refused("the model has no list of merges.")
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else merge for merge in merges]
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(one, str) for one in pair):
            raise Refused(f"expected two tokens a merge, got {str(pair)[:80]}.")
    return [tuple(pair) for pair in pairs]
