"""What every tokenizer shares: it is its files, checks its ids, and loads from a folder."""

import hashlib
import json
import pathlib

import numpy as np

from seqlm_runtime.tokenizers.added_tokens import AddedTokens

CONFIG_NAME = "seqlm_tokenizer.json"
# Hugging Face's file has this name, and so had ours once: folders of then are read as they are.
OLD_CONFIG_NAME = "tokenizer.json"
FORMAT = 1
MAX_VOCABULARY_SIZE = 2_000_000
MAX_FILE_BYTES = 256 * 1024 * 1024
STANDARD_SPECIAL_IDS = {"pad": 0, "bos": 1, "eos": 2, "unk": 3}


class Tokenizer:
    """Text to ids and back, made from the bytes of its files and from nothing else.

    Subclasses give `type`, `file_names`, `max_token_bytes`, `decode_bytes`, and for a text without added tokens
    `encode_plain` and `spans_plain`. Two tokenizers with the same files have the same `hash`, which is what a model keeps
    of its tokenizer.

    Args:
        files: dict of file name to bytes; `seqlm_tokenizer.json` and each of `file_names`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file does not hold what it should.
    """

    type = ""
    file_names = ()
    max_file_bytes = MAX_FILE_BYTES
    keeps_bytes = False  # True where decode_bytes(encode(data)) == data for any bytes
    # The most bytes of a text that one id stands for. Where text is left out or one id stands for any unknown word there is
    # no such number: there it is what the known pieces are made of, and at least 32.
    max_token_bytes = 32

    def __init__(self, files):
        if CONFIG_NAME not in files and OLD_CONFIG_NAME in files:
            files = {**files, CONFIG_NAME: files[OLD_CONFIG_NAME]}
        missing = [name for name in (CONFIG_NAME, *self.file_names) if name not in files]
        if missing:
            raise FileNotFoundError(f"A {self.type} tokenizer needs {', '.join(missing)}, found {sorted(files)}.")
        self.files = {name: bytes(files[name]) for name in (CONFIG_NAME, *self.file_names)}
        self.config = parse_config(self.files[CONFIG_NAME])
        if self.config["type"] != self.type:
            raise ValueError(f"Expected a tokenizer of type {self.type!r}, {CONFIG_NAME} says {self.config['type']!r}.")
        self.vocabulary_size = self.config["vocabulary_size"]
        self.special_ids = dict(self.config["special_ids"])
        self.pad_id = self.special_ids.get("pad")
        self.bos_id = self.special_ids.get("bos")
        self.eos_id = self.special_ids.get("eos")
        self.unk_id = self.special_ids.get("unk")
        self.mask_id = self.special_ids.get("mask")
        self.added_tokens = AddedTokens(self.config.get("added_tokens", []), self.vocabulary_size)

    @classmethod
    def load(cls, folder):
        """Reads a tokenizer of this class from its folder."""
        return load_as(folder, {cls.type: cls})

    def encode(self, text, added_tokens=True):
        """The ids of `text` as a (time,) int32 array.

        Args:
            text: str or bytes.
            added_tokens: whether an added token that stands in the text is read as its id. False for text of
                strangers, which must not be able to write one.
        """
        if not (added_tokens and self.added_tokens):
            return np.asarray(self.encode_plain(text), np.int32)
        return self.encode_parts([(text, True)])

    def encode_parts(self, parts):
        """The ids of a text in parts, of which strangers wrote some, as a (time,) int32 array.

        They are those of the whole text, save that an added token is found only where it lies within trusted parts.

        Args:
            parts: list of `(text, trusted)`, str or bytes and bool.
        """
        pieces = self.added_tokens.split_parts([(self._data(text), trusted) for text, trusted in parts])
        ids = [
            self._part(self.encode_plain, piece, number == 0) if i is None else [i]
            for number, (piece, i) in enumerate(pieces)
        ]
        return np.concatenate([np.zeros(0, np.int32), *(np.asarray(part, np.int32) for part in ids)])

    def encode_batch(self, texts, added_tokens=True):
        """The ids of each of `texts`, an iterable of str or bytes, as a list of (time,) int32 arrays."""
        if isinstance(texts, (str, bytes)):
            raise ValueError("Expected several texts, got one. Write encode_batch([...]), or encode.")
        return [self.encode(text, added_tokens) for text in texts]

    def encode_with_offsets(self, text, added_tokens=True):
        """The ids of `text`, and where in it each stands.

        Args:
            text: str, or bytes, of which the offsets count the code points of `text.decode("utf-8", "replace")`.
            added_tokens: see `encode`.

        Returns:
            ids: (time,) int32.
            offsets: (time, 2) int32, the first code point and the one after the last. Ids of one character (its
                bytes) have the same offsets.
        """
        if added_tokens and self.added_tokens:
            pieces = self.added_tokens.split_with_sources(self._data(text))
        else:
            pieces = [(text, None, np.arange(len(as_text(text))))]
        all_ids, all_offsets = [np.zeros(0, np.int32)], [np.zeros((0, 2), np.int32)]
        for number, (piece, i, sources) in enumerate(pieces):
            whole = ([i], [(0, len(sources))])
            ids, offsets = self._part(self.spans_plain, piece, number == 0) if i is None else whole
            offsets = np.asarray(offsets, np.int64).reshape(-1, 2)
            all_ids.append(np.asarray(ids, np.int32))
            all_offsets.append(np.stack([sources[offsets[:, 0]], sources[offsets[:, 1] - 1] + 1], axis=1))
        return np.concatenate(all_ids), np.concatenate(all_offsets).astype(np.int32)

    def _more_ids(self, count):
        """The files that change where there are `count` more ids, which only `added_tokens` name."""
        return {}

    def _part(self, encode, piece, first):
        """`encode` of a piece between added tokens; `first` says whether the text begins with it."""
        return encode(piece)

    def _data(self, text):
        return as_bytes(text) if self.keeps_bytes else as_text(text).encode("utf-8")

    @property
    def suppressed_ids(self):
        """Ids that are never sampled: every special id but the end of the text."""
        special = {*self.special_ids.values(), *self.added_tokens.special_ids}
        return tuple(sorted(special - {self.special_ids.get("eos")}))

    @property
    def hash(self):
        """Sixteen hexadecimal digits of SHA-256 over the bytes of the files, in the order of their names."""
        digest = hashlib.sha256()
        for name in sorted(self.files):
            digest.update(self.files[name])
        return digest.hexdigest()[:16]

    def decode(self, ids, after_text=False):
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD.

        Args:
            ids: (time,) integers from 0 to `vocabulary_size` - 1; special ids produce nothing.
            after_text: whether they go on with a text. Then the space before their first word stays, which some
                tokenizers leave out at the beginning of a text.

        Raises:
            ValueError: an id is out of range.
        """
        return self.decode_bytes(ids, after_text).decode("utf-8", "replace")

    def checked_ids(self, ids):
        """`ids` as a (time,) int64 array, or ValueError."""
        array = np.asarray(ids)
        if array.size == 0 and array.ndim == 1:
            return np.zeros(0, np.int64)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise ValueError(f"Expected a list of whole numbers as ids, got shape {array.shape}, dtype {array.dtype}.")
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= self.vocabulary_size:
            raise ValueError(
                f"Expected ids from 0 to {self.vocabulary_size - 1}, got {low if low < 0 else high}. "
                "Were the ids made by another tokenizer?"
            )
        return array.astype(np.int64)

    def __repr__(self):
        return f"{type(self).__name__}(vocabulary_size={self.vocabulary_size}, hash={self.hash!r})"


def as_bytes(text):
    """The UTF-8 bytes of `text`; bytes pass unchanged and a lone surrogate becomes U+FFFD."""
    if isinstance(text, str):
        try:
            return text.encode("utf-8")
        except UnicodeEncodeError:
            # Only a str can hold lone surrogates (JSON allows them); no UTF-8 can.
            return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode("utf-8")
    if isinstance(text, (bytes, bytearray, memoryview)):
        return bytes(text)
    raise ValueError(f"Expected text as str or bytes, got {type(text).__name__}.")


def as_text(text):
    """`text` as str that has a UTF-8 form; what is no UTF-8 becomes U+FFFD."""
    if isinstance(text, str):
        return text if text.isascii() else as_bytes(text).decode("utf-8")
    return as_bytes(text).decode("utf-8", "replace")


def config_bytes(type_name, vocabulary_size, special_ids=None, **more):
    """The bytes of a `seqlm_tokenizer.json`, equal for equal arguments."""
    config = {
        "format": FORMAT,
        "type": type_name,
        "vocabulary_size": int(vocabulary_size),
        "special_ids": dict(STANDARD_SPECIAL_IDS if special_ids is None else special_ids),
        **more,
    }
    return bytes_of(config)


def bytes_of(config):
    """The bytes of a config, equal for equal dicts."""
    return (json.dumps(config, indent=1, sort_keys=True, ensure_ascii=True) + "\n").encode()


def parse_config(data):
    """The checked dict of a `seqlm_tokenizer.json`."""
    try:
        config = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{CONFIG_NAME} is no JSON: {error}.") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise ValueError(f"{CONFIG_NAME}: expected an object with format {FORMAT}, got {found!r}.")
    size = whole_number(config, "vocabulary_size", 1, MAX_VOCABULARY_SIZE)
    special_ids = config.get("special_ids")
    if not isinstance(special_ids, dict):
        raise ValueError(f"{CONFIG_NAME}: expected special_ids as an object of names and ids, got {special_ids!r}.")
    for name in special_ids:
        whole_number(special_ids, name, 0, size - 1)
    if len(set(special_ids.values())) != len(special_ids):
        raise ValueError(f"{CONFIG_NAME}: two of the special ids are equal: {special_ids}.")
    if not isinstance(config.get("type"), str):
        raise ValueError(f"{CONFIG_NAME}: expected type as a string, got {config.get('type')!r}.")
    return config


def text_lines(data, name):
    """The lines in the UTF-8 bytes `data` of the file `name`; only a line feed ends a line."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is no UTF-8: {error}.") from error
    return text.removesuffix("\n").split("\n") if text else []


def whole_number(config, name, low, high):
    """`config[name]` if it is a whole number from `low` to `high`, else ValueError."""
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{CONFIG_NAME}: expected {name} as a whole number from {low} to {high}, got {value!r}.")
    return value


def flag(config, name):
    """`config[name]`, true or false and false where it is missing, else ValueError."""
    value = config.get(name, False)
    if not isinstance(value, bool):
        raise ValueError(f"{CONFIG_NAME}: expected {name} as true or false, got {value!r}.")
    return value


def load_as(folder, classes):
    """Reads the tokenizer in `folder` as one of `classes`, a dict of type name to class."""
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no tokenizer folder {str(folder)!r}.")
    config_path = config_path_of(folder)
    files = {CONFIG_NAME: _read(config_path)}
    name = parse_config(files[CONFIG_NAME])["type"]
    if name not in classes:
        raise ValueError(f"{config_path}: expected a type of {', '.join(sorted(classes))}, got {name!r}.")
    cls = classes[name]
    files.update({file_name: _read(folder / file_name, cls.max_file_bytes) for file_name in cls.file_names})
    try:
        return cls(files)
    except ValueError as error:
        raise ValueError(f"The tokenizer in {str(folder)!r} is damaged. {error}") from error


def config_path_of(folder):
    """The path of the config in a tokenizer folder: where it should be, or where it was before it got its name.

    Raises:
        ValueError: the folder holds a `tokenizer.json` of Hugging Face's.
    """
    path = folder / CONFIG_NAME
    old = folder / OLD_CONFIG_NAME
    if path.is_file() or not old.is_file():
        return path
    if b'"added_tokens"' in _read(old) and b'"pre_tokenizer"' in _read(old):
        raise ValueError(f"{old} is a file of Hugging Face's: read it with keras_seqlm.tokenizers.from_huggingface.")
    return old


def _read(path, most=MAX_FILE_BYTES):
    if not path.is_file():
        raise FileNotFoundError(f"The tokenizer folder {str(path.parent)!r} has no file {path.name!r}.")
    if path.stat().st_size > most:
        raise ValueError(f"{path}: {path.stat().st_size} bytes are more than a tokenizer file has ({most}).")
    return path.read_bytes()
