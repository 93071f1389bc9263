"""Byte-level BPE in Hugging Face's `tokenizer.json`: GPT-2, RoBERTa, Llama 3, Qwen and our own."""

import re

from keras_seqlm.tokenizers.byte_pair import BytePairTokenizer, byte_pair_files
from keras_seqlm.tokenizers.huggingface_parts import Parts, Refused, check_fields, kinds, pairs_of, steps, true_or_false
from keras_seqlm.tokenizers.unicode_tables import nfc_apart
from seqlm_runtime.tokenizers.byte_pair import BYTE_CHARACTERS

_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PATTERNS = {
    split: rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{number}|{_TAIL}"
    for split, number in (("llama3", r"\p{N}{1,3}"), ("qwen2", r"\p{N}"))
}
_CUT = re.compile(r"\.\{1,([1-9]\d{0,8})\}")


def takes(parts):
    """Whether this is byte-level BPE."""
    return parts.model.get("type") == "BPE" and any(s["type"] == "ByteLevel" for s in steps(parts.pre_tokenizer))


def read(parts):
    """The `BytePairTokenizer` of a file's parts."""
    model = parts.model
    check_fields(
        model,
        "the model",
        type=None,
        dropout=(None, 0.0),
        unk_token=None,  # every byte has a token, so nothing is unknown
        continuing_subword_prefix=(None, ""),
        end_of_word_suffix=(None, ""),
        fuse_unk=None,
        byte_fallback=(False,),
        ignore_merges=(False, True),
        vocab=None,
        merges=None,
    )
    if kinds(parts.normalizer) not in ("none", "NFC"):
        raise Refused(f"the normalizer {kinds(parts.normalizer)} is not supported with byte-level BPE, only NFC.")
    if kinds(parts.decoder) != "ByteLevel":
        raise Refused(f"the decoder {kinds(parts.decoder)} is not supported with byte-level BPE, only ByteLevel.")
    more = _read_words(parts.pre_tokenizer)
    more["max_word_bytes"] = more.get("max_word_bytes")
    if kinds(parts.normalizer) == "NFC":
        more["nfc_apart"] = nfc_apart()
    if model.get("ignore_merges"):
        more["ignore_merges"] = True
    if _trims(parts.post_processor, more.get("add_prefix_space", False)):
        more["trim_offsets"] = True
    more["post_processor"] = parts.post_processor
    if parts.added_tokens:
        more["added_tokens"] = parts.added_tokens
    known = set(BYTE_CHARACTERS)
    added = {entry["id"] for entry in parts.added_tokens}
    vocabulary = model["vocab"]
    # What only added_tokens name, or what no bytes are written as, is none of the model's tokens.
    lines = [
        "" if i in added and (token not in vocabulary or not known.issuperset(token)) else token
        for i, token in enumerate(parts.tokens)
    ]
    try:
        return BytePairTokenizer(byte_pair_files(lines, pairs_of(model.get("merges")), parts.special_ids, **more))
    except Refused:
        raise
    except ValueError as error:
        raise Refused(str(error)) from error


def write(tokenizer):
    """The `Parts` of a `BytePairTokenizer`."""
    lines = tokenizer.files["vocabulary.txt"].decode("utf-8").removesuffix("\n").split("\n")
    contents = {entry["id"]: entry["content"] for entry in tokenizer.added_tokens.entries}
    tokens = [line or contents.get(i, "") for i, line in enumerate(lines)]
    merges = tokenizer.files["merges.txt"].decode("utf-8").removesuffix("\n").split("\n")
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": tokenizer.add_prefix_space,
        "trim_offsets": True,
        "use_regex": tokenizer.split == "gpt2",
    }
    words = [byte_level] if tokenizer.split == "gpt2" else [_split(_PATTERNS[tokenizer.split]), byte_level]
    if tokenizer.max_word_bytes is not None:
        words.append(_split(f".{{1,{tokenizer.max_word_bytes}}}"))
    return Parts(
        normalizer={"type": "NFC"} if tokenizer.nfc is not None else None,
        pre_tokenizer=words[0] if len(words) == 1 else {"type": "Sequence", "pretokenizers": words},
        post_processor=None,
        decoder={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        model={
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": tokenizer.ignore_merges,
            # What only added_tokens name has no place here, as long as the ids that are left have no gap.
            "vocab": {token: i for i, token in enumerate(tokens[: _last(lines) + 1])},
            "merges": [line.split(" ") for line in merges if line],
        },
        added_tokens=[],
        tokens=tokens,
    )


def _last(lines):
    return max(i for i, line in enumerate(lines) if line)


def _read_words(pre_tokenizer):
    """What the config says of how words are split."""
    more, words = {}, steps(pre_tokenizer)
    names = [step["type"] for step in words]
    cut = None
    if names[-2:] == ["ByteLevel", "Split"]:
        cut = _CUT.fullmatch(_pattern(words[-1]))
        if cut is None:
            raise Refused(f"the pre_tokenizer Split by {_pattern(words[-1])!r} behind ByteLevel is not supported.")
        more["max_word_bytes"] = int(cut[1])
        words, names = words[:-1], names[:-1]
    if names not in (["ByteLevel"], ["Split", "ByteLevel"]):
        raise Refused(f"the pre_tokenizer {' + '.join(names)} is not supported.")
    check_fields(words[-1], "the pre_tokenizer", type=None, add_prefix_space=None, trim_offsets=None, use_regex=None)
    if true_or_false(words[-1], "the pre_tokenizer", "add_prefix_space", True):
        more["add_prefix_space"] = True
    use_regex = true_or_false(words[-1], "the pre_tokenizer", "use_regex", True)
    if len(words) == 1 and not use_regex:
        raise Refused("the pre_tokenizer 'ByteLevel' without use_regex splits nothing, which is not supported.")
    if len(words) == 2:
        found = [split for split, pattern in _PATTERNS.items() if pattern == _pattern(words[0])]
        if not found or use_regex or more.get("add_prefix_space"):
            raise Refused(
                f"the pre_tokenizer Split by {_pattern(words[0])!r} with ByteLevel, use_regex = {use_regex}, "
                f"add_prefix_space = {more.get('add_prefix_space', False)} is not supported; the patterns of GPT-2, "
                "Llama 3 and Qwen2 are."
            )
        more["split"] = found[0]
    return more


def _pattern(step):
    check_fields(step, "the pre_tokenizer", type=None, pattern=None, behavior=("Isolated",), invert=(False,))
    pattern = step.get("pattern")
    if not isinstance(pattern, dict) or list(pattern) != ["Regex"]:
        raise Refused(f"the pre_tokenizer Split by {pattern!r} is not supported.")
    return pattern["Regex"]


def _split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _trims(post_processor, add_prefix_space):
    """Whether the offsets of a token leave out its spaces."""
    for step in steps(post_processor):
        if step["type"] in ("ByteLevel", "RobertaProcessing") and true_or_false(
            step, "the post_processor", "trim_offsets", True
        ):
            if true_or_false(step, "the post_processor", "add_prefix_space", True) != add_prefix_space:
                raise Refused("the post_processor trims offsets with another add_prefix_space than the pre_tokenizer.")
            return True
    return False
