"""Hugging Face's `tokenizer.json`, in and out.

A file is taken only if all that it says is done here too, with the same ids; what cannot be taken is named. Each kind of
model has a file of its own beside this one, which reads and writes the parts that belong to it.
"""

import json
import pathlib

import keras_seqlm.tokenizers.huggingface_byte_pair as byte_pair
import keras_seqlm.tokenizers.huggingface_sentence_piece as sentence_piece
import keras_seqlm.tokenizers.huggingface_word_piece as word_piece
from keras_seqlm.files import replacing
from keras_seqlm.tokenizers.huggingface_parts import Parts, Refused, check_fields, kinds, steps

FILE_NAME = "tokenizer.json"
CONFIG_FILE_NAME = "tokenizer_config.json"
MAX_FILE_BYTES = 256 * 1024 * 1024
# Of two roles of one id the first counts: GPT-2's end of a text is its beginning too.
ROLES = ("eos", "bos", "pad", "unk", "mask", "cls", "sep")
_SERVES_AS = {"cls": "bos", "sep": "eos"}  # BERT's first and last token, where no others are named
_PARTS = {
    "version",
    "truncation",
    "padding",
    "added_tokens",
    "normalizer",
    "pre_tokenizer",
    "post_processor",
    "decoder",
    "model",
}
_READERS = (byte_pair, word_piece, sentence_piece)
_WRITERS = {"byte_pair": byte_pair, "word_piece": word_piece, "sentence_piece": sentence_piece}
_NAMES = {
    "bos": ("<bos>", "<s>"),
    "eos": ("<|endoftext|>", "<eos>", "</s>"),
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "mask": ("[MASK]", "<mask>"),
}
_ADDED = {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"}


def from_huggingface(path, special_tokens=None):
    """Reads a tokenizer of Hugging Face's, keeping the ids: the same as those of the `tokenizers` library.

    Taken are byte-level BPE with the splits of GPT-2 (RoBERTa, GPT-NeoX), Llama 3 and Qwen, WordPiece (BERT), Unigram (T5,
    XLM-R) and BPE on characters with byte fallback (Llama 2, Gemma). `encode` adds no token of its own, as everywhere
    here; what the file's post-processor would add is kept for `to_huggingface`. Added tokens that stand in a text become
    their id.

    Ids differ from the library's where a letter has several of twenty rare marks, which BERT brings into order. Texts of
    `decode` differ in what theirs leaves or loses: an added token of byte-level BPE is written as it is ("č" theirs takes
    for a carriage return); bytes in a row that are no text make as few U+FFFD as anywhere here, theirs one each; a text has
    no "##" at its beginning, and no spaces of BERT's around Chinese in an added token.

    Args:
        path: `tokenizer.json`, or a folder that holds it. A `tokenizer_config.json` beside it says which tokens begin and
            end a text, pad it and so on.
        special_tokens: dict of `"bos"`, `"eos"`, `"pad"`, `"unk"`, `"mask"` to the token, in place of what the files say. A
            token has one role: of a token that the files name for two, the first of these counts: eos, bos, pad, unk, mask.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, or says something that cannot be taken, which the message names; or
            `special_tokens` gives one token two roles.

    Example:

    >>> from keras_seqlm.tokenizers import BytePairTokenizer
    >>> BytePairTokenizer.train(texts=["low lower lowest"], vocabulary_size=262).to_huggingface("low")
    >>> from_huggingface("low").encode("low").tolist()
    [261]
    """
    path = pathlib.Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    try:
        parts = _parts(_object(path))
        _number_tokens(parts)
        parts.special_ids = _roles(parts, path.with_name(CONFIG_FILE_NAME), special_tokens)
        return _kind(parts).read(parts)
    except Refused as error:
        raise ValueError(f"{path}: {error}") from error


def write_huggingface(tokenizer, folder):
    """Writes `tokenizer.json` and `tokenizer_config.json` of a tokenizer; see `to_huggingface`."""
    kind = _WRITERS.get(tokenizer.type)
    if kind is None:
        raise ValueError(f"Hugging Face's tokenizer.json has no form for a tokenizer of type {tokenizer.type!r}.")
    parts = kind.write(tokenizer)
    contents = {entry["id"]: entry["content"] for entry in tokenizer.added_tokens.entries}
    names = {role: contents.get(i, parts.tokens[i]) for role, i in tokenizer.special_ids.items()}
    added = {
        i: {"content": names[role], "id": i, "special": True, "lstrip": False, "rstrip": False, "normalized": False}
        for role, i in tokenizer.special_ids.items()
    }
    added.update({entry["id"]: entry for entry in tokenizer.added_tokens.entries})
    _check_names(parts.tokens, added)
    post_processor = tokenizer.config.get("post_processor")
    if "post_processor" not in tokenizer.config and "bos" in names:
        post_processor = _bos_first(names["bos"], tokenizer.bos_id)
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{**added[i], "single_word": False} for i in sorted(added)],
        "normalizer": parts.normalizer,
        "pre_tokenizer": parts.pre_tokenizer,
        "post_processor": post_processor,
        "decoder": parts.decoder,
        "model": parts.model,
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **{f"{role}_token": names[role] for role in ROLES if role in names},
    }
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in ((FILE_NAME, content), (CONFIG_FILE_NAME, config)):
        with replacing(folder / name) as fresh:
            fresh.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _object(path):
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise Refused(f"{path.stat().st_size} bytes are more than a tokenizer has ({MAX_FILE_BYTES}).")
    try:
        value = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Refused(f"this is no JSON: {error}.") from error
    if not isinstance(value, dict):
        raise Refused(f"expected an object, got {type(value).__name__}.")
    return value


def _parts(content):
    unknown = sorted(set(content) - _PARTS)
    if unknown or "model" not in content:
        raise Refused(f"expected the parts {', '.join(sorted(_PARTS))}, got {', '.join(sorted(content)) or 'none'}.")
    for name in ("truncation", "padding"):
        if content.get(name) is not None:
            raise Refused(f"{name} is set, which is not done here: set it to null in a copy of the file.")
    if not isinstance(content["model"], dict):
        raise Refused("expected the model as an object.")
    added = content.get("added_tokens") or []
    if not isinstance(added, list):
        raise Refused("expected added_tokens as a list.")
    for entry in added:
        if not isinstance(entry, dict) or not {"id", "content"} <= set(entry) <= _ADDED:
            raise Refused(f"expected added_tokens with {', '.join(sorted(_ADDED))}, got {str(entry)[:80]}.")
        if entry.get("single_word"):
            raise Refused(f"the added token {entry['content']!r} is single_word, which is not supported.")
    return Parts(
        *(content.get(name) for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder", "model")),
        [{name: value for name, value in entry.items() if name != "single_word"} for entry in added],
    )


def _number_tokens(parts):
    """Fills `parts.tokens` from the model's vocabulary and the added tokens."""
    vocabulary = parts.model.get("vocab")
    if isinstance(vocabulary, list):  # Unigram's: pairs of token and score
        numbered = [(entry[0], i) for i, entry in enumerate(vocabulary) if isinstance(entry, list) and len(entry) == 2]
    elif isinstance(vocabulary, dict):
        numbered = list(vocabulary.items())
    else:
        raise Refused(f"the model {parts.model.get('type')!r} has no vocab.")
    by_id = {i: token for token, i in numbered}
    for entry in parts.added_tokens:
        if by_id.setdefault(entry["id"], entry["content"]) != entry["content"]:
            raise Refused(f"the added token {entry['content']!r} has the id of {by_id[entry['id']]!r}.")
    if any(type(i) is not int or not isinstance(token, str) for i, token in by_id.items()) or set(by_id) != set(
        range(len(by_id))
    ):
        raise Refused("expected tokens with the ids from 0 on, each once.")
    if len(by_id) != len(set(by_id.values())):
        raise Refused("a token stands twice.")
    parts.tokens = [by_id[i] for i in range(len(by_id))]


def _roles(parts, config_path, special_tokens):
    """dict of role to id, of what the caller, the config beside the file or the post-processor says."""
    ids = {token: i for i, token in enumerate(parts.tokens)}
    if special_tokens is None:
        special_tokens = {
            **_named_roles(parts),
            **_template_roles(parts.post_processor, parts.tokens),
            **_configured_roles(config_path),
        }
        unknown = parts.model.get("unk_token")
        if isinstance(unknown, str) and unknown in ids:
            special_tokens.setdefault("unk", unknown)
        special_tokens = {role: token for role, token in special_tokens.items() if token in ids}
    else:
        for role, token in special_tokens.items():
            if role not in ROLES or token not in ids:
                raise Refused(f"special_tokens: {role!r}: {token!r} is no role of a token of this vocabulary.")
        given = {}
        for role, token in special_tokens.items():
            other = given.setdefault(token, role)
            if _SERVES_AS.get(other, other) != _SERVES_AS.get(role, role):
                raise Refused(
                    f"special_tokens: {token!r} is given as {other!r} and as {role!r}. A token has one role here: the eos is "
                    "written and ends a text, the others are never written. Name it for one of them only."
                )
    found = {}
    for role in ROLES:
        name = _SERVES_AS.get(role, role)
        token = special_tokens.get(role)
        if token is not None and name not in found and ids[token] not in found.values():
            found[name] = ids[token]
    return found


def _named_roles(parts):
    """dict of role to token, of special tokens with a name that says it."""
    special = {entry["content"] for entry in parts.added_tokens if entry.get("special")}
    return {role: name for role, names in _NAMES.items() for name in names if name in special}


def _configured_roles(path):
    """dict of role to token of a `tokenizer_config.json`, which need not be there."""
    if not path.is_file():
        return {}
    config = _object(path)
    found = {}
    for role in ROLES:
        token = config.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            found[role] = token
    return found


def _template_roles(processor, tokens):
    """dict of "bos" and "eos" to the token that a post-processor puts before or after a text."""
    found = {}
    for step in steps(processor):
        if step.get("type") == "TemplateProcessing":
            check_fields(step, "post_processor", type=None, single=None, pair=None, special_tokens=None)
            names = [next(iter(part.items())) for part in step["single"]]
            places = [number for number, (kind, _) in enumerate(names) if kind == "Sequence"]
            for number, (kind, value) in enumerate(names):
                if kind == "SpecialToken" and len(places) == 1:
                    found.setdefault("bos" if number < places[0] else "eos", value["id"])
        elif step.get("type") in ("RobertaProcessing", "BertProcessing"):
            more = {"trim_offsets": None, "add_prefix_space": None} if step["type"] == "RobertaProcessing" else {}
            check_fields(step, "post_processor", type=None, sep=None, cls=None, **more)
            found.update(bos=step["cls"][0], eos=step["sep"][0])
        elif step.get("type") == "ByteLevel":
            check_fields(step, "post_processor", type=None, add_prefix_space=None, trim_offsets=None, use_regex=None)
        else:
            raise Refused(f"the post_processor {step.get('type')!r} is not supported.")
    return found


def _kind(parts):
    name = parts.model.get("type")
    for kind in _READERS:
        if kind.takes(parts):
            return kind
    raise Refused(f"a model {name!r} with the pre_tokenizer {kinds(parts.pre_tokenizer)} is not supported.")


def _check_names(tokens, added):
    ids = {token: i for i, token in enumerate(tokens) if token}
    for i, entry in added.items():
        if ids.get(entry["content"], i) != i:
            raise ValueError(
                f"In Hugging Face's file the added token {entry['content']!r} would be the id {ids[entry['content']]}, "
                f"whose token is written so, and not {i}."
            )


def _bos_first(token, i):
    """A post-processor that puts the beginning of a text before it, as generation here does."""
    first = {"SpecialToken": {"id": token, "type_id": 0}}
    text = [{"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB")]
    return {
        "type": "TemplateProcessing",
        "single": [first, text[0]],
        "pair": [first, *text],
        "special_tokens": {token: {"id": token, "ids": [i], "tokens": [token]}},
    }
