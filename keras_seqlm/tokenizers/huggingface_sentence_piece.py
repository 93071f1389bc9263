"""Unigram and BPE on characters in Hugging Face's `tokenizer.json`: T5, XLM-R, Llama 2, Gemma and our own."""

import base64
import binascii

from keras_seqlm.tokenizers.huggingface_parts import (
    Parts,
    Refused,
    check_fields,
    kinds,
    pairs_of,
    steps,
    true_or_false,
)
from keras_seqlm.tokenizers.sentence_piece import SentencePieceTokenizer, sentence_piece_files
from seqlm_runtime.tokenizers.charsmap import Charsmap
from seqlm_runtime.tokenizers.merges import merge
from seqlm_runtime.tokenizers.model_proto import BPE, BYTE, CONTROL, NORMAL, UNIGRAM, UNKNOWN, UNUSED, Model
from seqlm_runtime.tokenizers.normalization import SPACE_MARK, Normalizer
from seqlm_runtime.tokenizers.sentence_piece import MAX_CHUNK_CHARACTERS

# Scores as multiples of 1 / this add up exactly in single precision up to words of a sum of 2048, so that a tie between the
# same pieces in another order is broken alike everywhere. Measured on T5's model: with finer steps 2% to 16% of long words
# of few letters differ from the library, with these none, nor any of 5 MB of books.
SCORE_STEPS = 1 << 13
NEVER_CHOSEN = -1e6  # the score of a piece that Hugging Face's library would find in a text, and SentencePiece does not
_TRIM = r"\A +| +\z"
_COLLAPSE = " {2,}"
_CHUNK = rf" [^ \n]{{0,{MAX_CHUNK_CHARACTERS - 1}}}|\n|[^ \n]{{1,{MAX_CHUNK_CHARACTERS}}}"


def takes(parts):
    """Whether this is Unigram, or BPE that is not byte-level."""
    return parts.model.get("type") in ("Unigram", "BPE")


def read(parts):
    """The `SentencePieceTokenizer` of a file's parts."""
    model = parts.model
    changes, charsmap = _read_normalizer(parts.normalizer)
    words, chunks = _read_words(parts.pre_tokenizer, changes)
    pieces, byte_fallback = _unigram_pieces(parts) if model["type"] == "Unigram" else _merged_pieces(parts)
    more = {"drops_first_space": _read_decoder(parts.decoder, byte_fallback)}
    if chunks:
        more = {}
    else:
        more["steps"] = changes + words
        if model["type"] == "Unigram":
            more["score_steps"] = SCORE_STEPS
    for entry in parts.added_tokens:
        if entry.get("normalized") and changes:
            raise Refused(
                f"the added token {entry['content']!r} is normalized, which is not supported with the normalizer "
                f"{kinds(parts.normalizer)}."
            )
    more["post_processor"] = parts.post_processor
    own = {*parts.special_ids.values()} if chunks else set()
    added = [entry for entry in parts.added_tokens if entry["id"] not in own]
    if added:
        more["added_tokens"] = added
    unknown = [i for i, (_, _, kind) in enumerate(pieces) if kind == UNKNOWN][0]
    special_ids = {role: i for role, i in parts.special_ids.items() if i != unknown or role == "unk"}
    if unknown not in special_ids.values():
        special_ids["unk"] = unknown
    proto = Model(
        pieces,
        UNIGRAM if model["type"] == "Unigram" else BPE,
        byte_fallback=byte_fallback,
        charsmap=charsmap,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        escape_whitespaces=chunks,
    )
    try:
        Normalizer(more.get("steps", []), Charsmap(charsmap))
        return SentencePieceTokenizer(sentence_piece_files(proto, special_ids, chunks, **more))
    except ValueError as error:
        raise Refused(str(error)) from error


def write(tokenizer):
    """The `Parts` of a `SentencePieceTokenizer`."""
    model = tokenizer.model
    if model.whitespace_suffix or not (model.escape_whitespaces or tokenizer.steps):
        raise ValueError("Hugging Face's file has no form for a SentencePiece model with spaces at the end of words.")
    contents = {entry["id"]: entry["content"] for entry in tokenizer.added_tokens.entries}
    tokens = [contents.get(i, text) if kind == CONTROL else text for i, (text, _, kind) in enumerate(model.pieces)]
    kept = max(i for i, (_, _, kind) in enumerate(model.pieces) if kind != CONTROL or i not in contents) + 1
    if tokenizer.steps is None and not tokenizer.chunks:
        changes = [["charsmap"]] if model.charsmap else []
        changes += [["trim"], ["collapse", " "]] if model.remove_extra_whitespaces else []
        words = [["metaspace", "always" if model.add_dummy_prefix else "never", False]]
    elif tokenizer.steps is None:
        changes, words = [], None
    else:
        changes = [step for step in tokenizer.steps.steps if step[0] not in ("white_space", "metaspace")]
        words = [step for step in tokenizer.steps.steps if step[0] in ("white_space", "metaspace")]
    replace = {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "}
    decoder = [replace, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if tokenizer.drops_first_space:
        decoder.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return Parts(
        normalizer=_sequence("normalizers", [_written(step, model.charsmap) for step in changes]),
        pre_tokenizer=_sequence("pretokenizers", _written_words(words)),
        post_processor=None,
        decoder=_sequence("decoders", decoder),
        model=_written_merges(tokenizer, tokens[:kept])
        if model.model_type == BPE
        else _written_scores(tokenizer, tokens[:kept]),
        added_tokens=[],
        tokens=tokens,
    )


def _unigram_pieces(parts):
    """The pieces of a Unigram model, and whether it falls back to bytes."""
    model = parts.model
    check_fields(model, "the model", type=None, unk_id=None, vocab=None, byte_fallback=(False, True))
    unknown = model.get("unk_id")
    if type(unknown) is not int or not 0 <= unknown < len(model["vocab"]):
        raise Refused(f"the model's unk_id is {unknown!r}, expected the id of a piece.")
    byte_fallback = model.get("byte_fallback", False)
    scores = [score for _, score in model["vocab"]]
    if not all(isinstance(score, (int, float)) and not isinstance(score, bool) for score in scores):
        raise Refused("expected the vocab as pairs of a token and a score.")
    kinds_by_id = _kinds_of(parts, unknown, byte_fallback)
    pieces = [
        (text, float(scores[i]) if i < len(scores) else 0.0, kind)
        for i, (text, kind) in enumerate(zip(parts.tokens, kinds_by_id, strict=True))
    ]
    normal = {text: score for text, score, kind in pieces if kind == NORMAL}
    lowest = min(normal.values(), default=0.0)
    if min(scores) < lowest and not all(character in normal for text in normal for character in text):
        raise Refused(f"a special piece has the score {min(scores)}, below all others, which is not supported.")
    return pieces, byte_fallback


def _merged_pieces(parts):
    """The pieces of a BPE model, each with minus the rank of the merge that makes it, and whether it knows bytes.

    Which of several merges to one token that is, and whether any of them ever comes about, the token's own characters
    say: whatever stands around them, they merge as they do alone.
    """
    model = parts.model
    check_fields(
        model,
        "the model",
        type=None,
        dropout=(None, 0.0),
        unk_token=None,
        continuing_subword_prefix=(None, ""),
        end_of_word_suffix=(None, ""),
        fuse_unk=(False, True),
        byte_fallback=(False, True),
        ignore_merges=(False,),
        vocab=None,
        merges=None,
    )
    byte_fallback = model.get("byte_fallback", False)
    if model.get("unk_token") not in parts.tokens:
        raise Refused(f"the model's unk_token {model.get('unk_token')!r} is not in its vocabulary.")
    if not byte_fallback and not model.get("fuse_unk"):
        raise Refused("the model has neither byte_fallback nor fuse_unk, which is not supported.")
    unknown = parts.tokens.index(model["unk_token"])
    kinds_by_id = _kinds_of(parts, unknown, byte_fallback)
    ids = {text: i for i, text in enumerate(parts.tokens) if kinds_by_id[i] == NORMAL}
    pairs = {}
    for rank, (left, right) in enumerate(pairs_of(model.get("merges"))):
        pair, merged = (ids.get(left), ids.get(right)), ids.get(left + right)
        if None in pair or merged is None or pair in pairs:
            raise Refused(
                f"the merge {left!r} {right!r} must join two tokens of the vocabulary to a third, none of them special "
                "or a byte, and only once."
            )
        pairs[pair] = (rank, merged)
    ranks = {}
    for text, i in ids.items():
        symbols, made = [ids.get(character) for character in text], []
        if len(text) > 1 and None not in symbols and merge(symbols, pairs, made) == [i]:
            ranks[i] = pairs[made[-1]][0]
    scores = {i: -float(order) for order, i in enumerate(sorted(ranks, key=ranks.get))}
    return [
        (text, scores.get(i, 0.0), UNUSED if kind == NORMAL and len(text) > 1 and i not in scores else kind)
        for i, (text, kind) in enumerate(zip(parts.tokens, kinds_by_id, strict=True))
    ], byte_fallback


def _kinds_of(parts, unknown, byte_fallback):
    """The kind of each piece."""
    special = {entry["id"] for entry in parts.added_tokens if entry.get("special")}
    special |= {entry["id"] for entry in parts.added_tokens if entry["id"] >= len(parts.model["vocab"])}
    special |= set(parts.special_ids.values())
    names = {f"<0x{byte:02X}>" for byte in range(256)} if byte_fallback else set()
    found = []
    for i, text in enumerate(parts.tokens):
        kind = BYTE if text in names else CONTROL if i in special else NORMAL
        found.append(UNKNOWN if i == unknown else kind)
    return found


def _read_normalizer(normalizer):
    """`(steps, charsmap)` of a normalizer."""
    found, charsmap, where = [], b"", "the normalizer"
    for step in steps(normalizer):
        name = step["type"]
        if name == "Precompiled" and not charsmap:
            check_fields(step, where, type=None, precompiled_charsmap=None)
            try:
                charsmap = base64.b64decode(step.get("precompiled_charsmap") or "", validate=True)
            except (binascii.Error, TypeError, ValueError) as error:
                raise Refused(f"the precompiled_charsmap is no base64: {error}.") from error
            if charsmap:
                found.append(["charsmap"])
        elif name == "Strip":
            check_fields(step, where, type=None, strip_left=None, strip_right=None)
            found.append(["strip", *(true_or_false(step, where, f"strip_{side}", True) for side in ("left", "right"))])
        elif name == "Prepend":
            check_fields(step, where, type=None, prepend=None)
            found.append(["prepend", step.get("prepend")])
        elif name == "Replace":
            check_fields(step, where, type=None, pattern=None, content=None)
            pattern, content = step.get("pattern"), step.get("content")
            known = {
                ("Regex", _COLLAPSE): ["collapse", content],
                ("Regex", _TRIM): ["trim"] if content == "" else None,
            }
            (kind, value), *rest = list(pattern.items()) if isinstance(pattern, dict) and pattern else [(None, None)]
            change = ["replace", value, content] if kind == "String" else known.get((kind, value))
            if change is None or rest:
                raise Refused(f"the normalizer Replace of {pattern!r} by {content!r} is not supported.")
            found.append(change)
        else:
            raise Refused(f"the normalizer {name!r} is not supported with Unigram or BPE on characters.")
    return found, charsmap


def _read_words(pre_tokenizer, changes):
    """`(steps, chunks)` of a pre-tokenizer: chunks is true for that of our own models."""
    found = steps(pre_tokenizer)
    names = [step["type"] for step in found]
    where = "the pre_tokenizer"
    if names == ["Split"]:
        fields = {"pattern": None, "behavior": None, "invert": (False,)}
        check_fields(found[0], where, type=None, **fields)
        no_spaces = any(step[:2] == ["replace", " "] and " " not in step[2] for step in changes[-1:])
        if found[0].get("pattern") == {"String": " "} and no_spaces:
            return [], False  # there are no spaces left
    elif names == ["Split", "Metaspace"]:
        check_fields(found[0], where, type=None, pattern=None, behavior=("Isolated",), invert=(False,))
        _check_metaspace(found[1], where)
        if found[0].get("pattern") == {"Regex": _CHUNK} and not changes:
            if (found[1].get("prepend_scheme"), found[1].get("split")) == ("never", False):
                return [], True
    elif names in ([], ["Metaspace"], ["WhitespaceSplit", "Metaspace"]):
        if not names:
            return [], False
        for step in found[:-1]:
            check_fields(step, where, type=None)
        _check_metaspace(found[-1], where)
        metaspace = found[-1]
        scheme = metaspace.get("prepend_scheme")
        if scheme is None:  # files of before there were schemes
            scheme = "always" if true_or_false(metaspace, where, "add_prefix_space", True) else "never"
        if len(found) == 2 and scheme == "first":
            raise Refused("the pre_tokenizer WhitespaceSplit + Metaspace with prepend_scheme 'first' is not supported.")
        split = true_or_false(metaspace, where, "split", True)
        return [*([["white_space"]] if len(found) == 2 else []), ["metaspace", scheme, split]], False
    raise Refused(f"the pre_tokenizer {kinds(pre_tokenizer)} as it stands is not supported with this model.")


def _check_metaspace(step, where):
    check_fields(
        step,
        where,
        type=None,
        replacement=(SPACE_MARK,),
        prepend_scheme=("always", "first", "never"),
        split=(False, True),
        add_prefix_space=(False, True),
        str_rep=(SPACE_MARK,),
    )


def _read_decoder(decoder, byte_fallback):
    """Whether the first space of what is decoded goes."""
    found = steps(decoder)
    names = [step["type"] for step in found]
    where = "the decoder"
    if names == ["Metaspace"] and not byte_fallback:
        _check_metaspace(found[0], where)
        scheme = found[0].get("prepend_scheme")
        return true_or_false(found[0], where, "add_prefix_space", True) if scheme is None else scheme != "never"
    if names in (["Replace", "ByteFallback", "Fuse"], ["Replace", "ByteFallback", "Fuse", "Strip"]):
        check_fields(found[0], where, type=None, pattern=None, content=(" ",))
        for step in found[1:3]:
            check_fields(step, where, type=None)
        if found[0].get("pattern") == {"String": SPACE_MARK}:
            if names[-1] == "Strip":
                check_fields(found[3], where, type=None, content=(" ",), start=(0, 1), stop=(0,))
            return names[-1] == "Strip" and found[3].get("start") == 1
    raise Refused(f"the decoder {kinds(decoder)} as it stands is not supported with this model.")


def _written(step, charsmap):
    """A step as Hugging Face's normalizer."""
    name, *arguments = step
    if name == "charsmap":
        return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}
    if name == "strip":
        return {"type": "Strip", "strip_left": arguments[0], "strip_right": arguments[1]}
    if name == "prepend":
        return {"type": "Prepend", "prepend": arguments[0]}
    patterns = {"trim": ({"Regex": _TRIM}, ""), "collapse": ({"Regex": _COLLAPSE}, arguments[-1:])}
    pattern, content = patterns.get(name, ({"String": arguments[:1] and arguments[0]}, arguments[-1:]))
    return {"type": "Replace", "pattern": pattern, "content": content[0] if content else ""}


def _written_words(words):
    if words is None:  # our own models
        split = {"type": "Split", "pattern": {"Regex": _CHUNK}, "behavior": "Isolated", "invert": False}
        return [split, _metaspace("never", False)]
    return [{"type": "WhitespaceSplit"} if step[0] == "white_space" else _metaspace(*step[1:]) for step in words]


def _metaspace(scheme, split):
    return {"type": "Metaspace", "replacement": SPACE_MARK, "prepend_scheme": scheme, "split": split}


def _sequence(name, parts):
    if len(parts) < 2:
        return parts[0] if parts else None
    return {"type": "Sequence", name: parts}


def _written_scores(tokenizer, tokens):
    model = tokenizer.model
    scores = [score for _, score, _ in model.pieces]
    normal = {text for text, _, kind in model.pieces if kind == NORMAL}
    if any(kind == UNUSED for _, _, kind in model.pieces):
        raise ValueError("Hugging Face's file has no form for unused pieces of a unigram model.")
    if tokenizer.steps is None and all(character in normal for text in normal for character in text):
        scores = [score if kind == NORMAL else NEVER_CHOSEN for _, score, kind in model.pieces]
    return {
        "type": "Unigram",
        "unk_id": tokenizer.unk_id,
        "vocab": [[token, score] for token, score in zip(tokens, scores, strict=False)],
        "byte_fallback": model.byte_fallback,
    }


def _written_merges(tokenizer, tokens):
    model = tokenizer.model
    made = [(score, text) for text, score, kind in model.pieces if kind == NORMAL and len(text) > 1]
    if len({score for score, _ in made}) != len(made):
        raise ValueError("Hugging Face's file has no form for a BPE model in which two pieces have the same score.")
    texts = [text for text, _, _ in model.pieces]
    merges = []
    for _, text in sorted(made, reverse=True):
        pair = tokenizer.last_pair(text)
        if pair is None or max(pair) >= len(texts):
            raise ValueError(
                f"Hugging Face's file has no form for the piece {text!r}, which its parts do not merge to."
            )
        merges.append([texts[left] for left in pair])
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": tokens[tokenizer.unk_id],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": model.byte_fallback,
        "ignore_merges": False,
        "vocab": {token: i for i, token in enumerate(tokens)},
        "merges": merges,
    }
