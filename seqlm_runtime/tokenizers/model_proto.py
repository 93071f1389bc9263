"""SentencePiece's model file, read and written without its library.

Reference: `sentencepiece_model.proto` of github.com/google/sentencepiece for the numbers of the fields.
"""

import dataclasses
import math
import struct

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM, BPE = 1, 2
MODEL_TYPES = {UNIGRAM: "unigram", BPE: "bpe"}
# The stock TensorFlow operation crashes on a piece that is long enough or holds NUL; SentencePiece itself refuses both.
MAX_PIECE_BYTES = 512
# Reading a model must cost neither time nor memory that its use is not worth: the largest known have 262,208 pieces of
# seven characters on average. Tables of the beginnings of pieces grow with the squares of their lengths.
MAX_PIECES = 300_000
MAX_MODEL_BYTES = 1 << 25
MAX_CHARACTERS = 2_500_000
MAX_SQUARES = 1 << 26
MAX_SPEC_FIELDS = 100_000


@dataclasses.dataclass
class Model:
    """The parts of a SentencePiece model that decide what it does to a text.

    Args:
        pieces: list of `(text, score, kind)` by id.
        model_type: `UNIGRAM` or `BPE`.
        byte_fallback: characters without a piece become the pieces of their bytes.
        whitespace_suffix: the space mark ends a word in place of starting it.
        charsmap: SentencePiece's compiled normalisation; empty for none.
        add_dummy_prefix: a text starts with a space mark of its own.
        remove_extra_whitespaces: spaces at the ends go and runs become one.
        escape_whitespaces: a space becomes U+2581.
    """

    pieces: list
    model_type: int = UNIGRAM
    byte_fallback: bool = False
    whitespace_suffix: bool = False
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True


def parse_model(data):
    """The `Model` in the bytes of a model file.

    Raises:
        ValueError: the bytes are no model, or one that would be dangerous or ambiguous to use.
    """
    if len(data) > MAX_MODEL_BYTES:
        raise ValueError(f"A SentencePiece model of {len(data)} bytes is over the limit of {MAX_MODEL_BYTES}.")
    model = Model([])
    # All of them first: a count that is too large is found before any piece is looked at.
    for number, value in list(_fields(data, MAX_PIECES + 64)):
        if number == 1:
            model.pieces.append(_parse_piece(_message(value)))
        elif number == 2:
            for inner, setting in _fields(_message(value), MAX_SPEC_FIELDS):
                if inner == 3:
                    model.model_type = setting
                elif inner == 24:
                    model.whitespace_suffix = bool(setting)
                elif inner == 35:
                    model.byte_fallback = bool(setting)
        elif number == 3:
            for inner, setting in _fields(_message(value), MAX_SPEC_FIELDS):
                if inner == 2:
                    model.charsmap = _message(setting)
                elif inner in (3, 4, 5):
                    name = {3: "add_dummy_prefix", 4: "remove_extra_whitespaces", 5: "escape_whitespaces"}[inner]
                    setattr(model, name, bool(setting))
    _check_pieces(model)
    return model


def serialize_model(model):
    """The bytes of a model file for `model`, the same for equal models."""
    trainer = _number(3, model.model_type) + _number(4, len(model.pieces))
    trainer += _number(24, int(model.whitespace_suffix)) + _number(35, int(model.byte_fallback))
    normalizer = _block(1, b"custom") + _block(2, model.charsmap)
    normalizer += _number(3, int(model.add_dummy_prefix)) + _number(4, int(model.remove_extra_whitespaces))
    normalizer += _number(5, int(model.escape_whitespaces))
    pieces = b"".join(
        _block(1, _block(1, text.encode("utf-8")) + b"\x15" + struct.pack("<f", score) + _number(3, kind))
        for text, score, kind in model.pieces
    )
    return pieces + _block(2, trainer) + _block(3, normalizer)


def _check_pieces(model):
    if model.model_type not in MODEL_TYPES:
        raise ValueError(f"Expected a SentencePiece model of type unigram or bpe, got type {model.model_type}.")
    if not model.pieces:
        raise ValueError("The SentencePiece model has no pieces.")
    texts = [text for text, _, _ in model.pieces]
    if len(set(texts)) != len(texts):
        raise ValueError("The SentencePiece model has a piece twice.")
    sizes = [len(text) for text in texts]
    if sum(sizes) > MAX_CHARACTERS or sum(size * size for size in sizes) > MAX_SQUARES:
        raise ValueError(
            f"The SentencePiece model has {len(sizes)} pieces of {sum(sizes)} characters, the longest of {max(sizes)}: more "
            f"than a tokenizer has (at most {MAX_CHARACTERS} characters, and {MAX_SQUARES} in the sum of their squares)."
        )
    kinds = [kind for _, _, kind in model.pieces]
    if kinds.count(UNKNOWN) != 1:
        raise ValueError(f"Expected one piece of the unknown kind, the SentencePiece model has {kinds.count(UNKNOWN)}.")
    byte_names = {f"<0x{byte:02X}>" for byte in range(256)}
    bytes_found = {text for text, _, kind in model.pieces if kind == BYTE}
    if bytes_found and bytes_found != byte_names or model.byte_fallback and not bytes_found:
        raise ValueError(f"Expected pieces for all 256 bytes, the SentencePiece model has {len(bytes_found)} of them.")
    if bytes_found and not model.byte_fallback:
        raise ValueError("The SentencePiece model has pieces for bytes but does not use them (byte_fallback).")
    if USER_DEFINED in kinds:
        raise ValueError("SentencePiece models with user-defined pieces are not supported.")


def _parse_piece(data):
    text, score, kind = _usual_piece(data) or _any_piece(data)
    if not text or len(text) > MAX_PIECE_BYTES or b"\0" in text:
        raise ValueError(f"A SentencePiece piece has 1 to {MAX_PIECE_BYTES} bytes without NUL, got {text[:20]!r}.")
    if kind not in (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE):
        raise ValueError(f"The SentencePiece piece {text[:20]!r} is of kind {kind!r}, which does not exist.")
    if not math.isfinite(score):
        raise ValueError(f"The SentencePiece piece {text[:20]!r} has the score {score}.")
    try:
        return text.decode("utf-8"), score, kind
    except UnicodeDecodeError as error:
        raise ValueError(f"The SentencePiece piece {text[:20]!r} is no UTF-8.") from error


def _usual_piece(data):
    """The text, score and kind of a piece written as SentencePiece writes it, and most quickly read; else None."""
    if len(data) < 7 or data[0] != 0x0A or data[1] > 127:
        return None
    end = data[1] + 2
    if data[end : end + 1] != b"\x15" or len(data) not in (end + 5, end + 7):
        return None
    kind = NORMAL
    if len(data) == end + 7:
        if data[end + 5] != 0x18 or data[end + 6] > 127:
            return None
        kind = data[end + 6]
    return data[2:end], _SCORE.unpack_from(data, end + 1)[0], kind


def _any_piece(data):
    text, score, kind = b"", 0.0, NORMAL
    for number, value in _fields(data, 16):
        if number == 1:
            text = _message(value)
        elif number == 2:
            if not isinstance(value, float):
                raise ValueError("The SentencePiece model is damaged: a score is no number.")
            score = value
        elif number == 3:
            kind = value
    return text, score, kind


_SCORE = struct.Struct("<f")


def _fields(data, most):
    """Yields `(number, value)`: int, float (32 bits) or bytes, in the order of the file, at most `most` of them."""
    position = count = 0
    while position < len(data):
        count += 1
        if count > most:
            raise ValueError(f"The SentencePiece model has more than {most} pieces, or fields in a part.")
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, position = _varint(data, position)
        elif wire in (1, 2, 5):
            size = {1: 8, 5: 4}.get(wire)
            if size is None:
                size, position = _varint(data, position)
            if size > len(data) - position:
                raise ValueError("The SentencePiece model is damaged: it ends too early.")
            value = bytes(data[position : position + size])
            position += size
            if wire == 5:
                value = struct.unpack("<f", value)[0]
        else:
            raise ValueError(f"The SentencePiece model is damaged: there is no wire type {wire}.")
        yield number, value


def _message(value):
    if not isinstance(value, bytes):
        raise ValueError("The SentencePiece model is damaged: a field is of the wrong type.")
    return value


def _varint(data, position):
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError("The SentencePiece model is damaged: it ends too early.")
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("The SentencePiece model is damaged: a number has more than ten bytes.")


def _encoded(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field, value):
    return _encoded(field << 3) + _encoded(value)


def _block(field, data):
    return _encoded(field << 3 | 2) + _encoded(len(data)) + data
