"""WordPiece in Hugging Face's `tokenizer.json`: BERT and our own."""

from keras_seqlm.tokenizers.huggingface_parts import Parts, Refused, check_fields, kinds, true_or_false
from keras_seqlm.tokenizers.word_piece import WordPieceTokenizer, word_piece_files
from seqlm_runtime.tokenizers.word_piece import CONTINUATION


def takes(parts):
    """Whether this is WordPiece."""
    return parts.model.get("type") == "WordPiece"


def read(parts):
    """The `WordPieceTokenizer` of a file's parts."""
    model, normalizer, decoder = parts.model, parts.normalizer, parts.decoder
    check_fields(
        model,
        "the model",
        type=None,
        unk_token=None,
        continuing_subword_prefix=(CONTINUATION,),
        max_input_chars_per_word=None,
        vocab=None,
    )
    for part, where, name in (
        (normalizer, "normalizer", "BertNormalizer"),
        (parts.pre_tokenizer, "pre_tokenizer", "BertPreTokenizer"),
        (decoder, "decoder", "WordPiece"),
    ):
        if kinds(part) != name or part["type"] != name:
            raise Refused(f"the {where} {kinds(part)} is not supported with WordPiece, only {name}.")
    check_fields(parts.pre_tokenizer, "the pre_tokenizer", type=None)
    check_fields(decoder, "the decoder", type=None, prefix=(CONTINUATION,), cleanup=None)
    check_fields(
        normalizer,
        "the normalizer",
        type=None,
        clean_text=None,
        handle_chinese_chars=None,
        strip_accents=(None, False, True),
        lowercase=None,
    )
    normal = {
        name: true_or_false(normalizer, "the normalizer", name, True)
        for name in ("lowercase", "clean_text", "handle_chinese_chars")
    }
    normal["strip_accents"] = normalizer.get("strip_accents")
    unknown = model.get("unk_token")
    if unknown not in parts.tokens:
        raise Refused(f"the model's unk_token {unknown!r} is not in its vocabulary.")
    special_ids = {**parts.special_ids, "unk": parts.tokens.index(unknown)}
    more = {}
    if true_or_false(decoder, "the decoder", "cleanup", True):
        more["clean_up"] = True
    more["post_processor"] = parts.post_processor
    if parts.added_tokens:
        more["added_tokens"] = parts.added_tokens
    lines = [token if token in model["vocab"] else "" for token in parts.tokens]
    try:
        return WordPieceTokenizer(
            word_piece_files(lines, special_ids, normal, model.get("max_input_chars_per_word", 100), **more)
        )
    except ValueError as error:
        raise Refused(str(error)) from error


def write(tokenizer):
    """The `Parts` of a `WordPieceTokenizer`."""
    contents = {entry["id"]: entry["content"] for entry in tokenizer.added_tokens.entries}
    tokens = [line or contents[i] for i, line in enumerate(tokenizer.lines)]
    last = max(i for i, line in enumerate(tokenizer.lines) if line)
    config = tokenizer.config
    return Parts(
        normalizer={
            "type": "BertNormalizer",
            "clean_text": config.get("clean_text", True),
            "handle_chinese_chars": config.get("handle_chinese_chars", True),
            "strip_accents": config.get("strip_accents"),
            "lowercase": config["lowercase"],
        },
        pre_tokenizer={"type": "BertPreTokenizer"},
        post_processor=None,
        decoder={"type": "WordPiece", "prefix": CONTINUATION, "cleanup": tokenizer.clean_up},
        model={
            "type": "WordPiece",
            "unk_token": tokens[tokenizer.unk_id],
            "continuing_subword_prefix": CONTINUATION,
            "max_input_chars_per_word": tokenizer.max_word_characters,
            "vocab": {token: i for i, token in enumerate(tokens[: last + 1])},
        },
        added_tokens=[],
        tokens=tokens,
    )
