"""What every tokenizer shares: it is its files, checks its ids, and loads from a folder."""

import hashlib
import json
import pathlib

import numpy as np

CONFIG_NAME = "tokenizer.json"
FORMAT = 1
MAX_VOCABULARY_SIZE = 2_000_000
MAX_FILE_BYTES = 256 * 1024 * 1024
STANDARD_SPECIAL_IDS = {"pad": 0, "bos": 1, "eos": 2, "unk": 3}


class Tokenizer:
    """Text to ids and back, made from the bytes of its files and from nothing else.

    Subclasses give `type`, `file_names`, `max_token_bytes` and the methods `encode` and `decode_bytes`. Two tokenizers with the same
    files have the same `hash`, which is what a model keeps of its tokenizer.

    Args:
        files: dict of file name to bytes; `tokenizer.json` and each of `file_names`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file does not hold what it should.
    """

    type = ""
    file_names = ()
    keeps_bytes = False  # True where decode_bytes(encode(data)) == data for any bytes
    # The most bytes of a text that one id stands for. Where text is left out or one id stands for any unknown word there is
    # no such number: there it is what the known pieces are made of, and at least 32.
    max_token_bytes = 32

    def __init__(self, files):
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

    @classmethod
    def load(cls, folder):
        """Reads a tokenizer of this class from its folder."""
        return load_as(folder, {cls.type: cls})

    @property
    def suppressed_ids(self):
        """Ids that are never sampled: every special id but the end of the text."""
        return tuple(sorted(i for name, i in self.special_ids.items() if name != "eos"))

    @property
    def hash(self):
        """Sixteen hexadecimal digits of SHA-256 over the bytes of the files, in the order of their names."""
        digest = hashlib.sha256()
        for name in sorted(self.files):
            digest.update(self.files[name])
        return digest.hexdigest()[:16]

    def decode(self, ids):
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD.

        Args:
            ids: (time,) integers from 0 to `vocabulary_size` - 1; special ids produce nothing.

        Raises:
            ValueError: an id is out of range.
        """
        return self.decode_bytes(ids).decode("utf-8", "replace")

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
    """The bytes of a `tokenizer.json`, equal for equal arguments."""
    config = {
        "format": FORMAT,
        "type": type_name,
        "vocabulary_size": int(vocabulary_size),
        "special_ids": dict(STANDARD_SPECIAL_IDS if special_ids is None else special_ids),
        **more,
    }
    return (json.dumps(config, indent=1, sort_keys=True, ensure_ascii=True) + "\n").encode()


def parse_config(data):
    """The checked dict of a `tokenizer.json`."""
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


def load_as(folder, classes):
    """Reads the tokenizer in `folder` as one of `classes`, a dict of type name to class."""
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no tokenizer folder {str(folder)!r}.")
    files = {CONFIG_NAME: _read(folder / CONFIG_NAME)}
    name = parse_config(files[CONFIG_NAME])["type"]
    if name not in classes:
        raise ValueError(f"{folder / CONFIG_NAME}: expected a type of {', '.join(sorted(classes))}, got {name!r}.")
    files.update({file_name: _read(folder / file_name) for file_name in classes[name].file_names})
    try:
        return classes[name](files)
    except ValueError as error:
        raise ValueError(f"The tokenizer in {str(folder)!r} is damaged. {error}") from error


def _read(path):
    if not path.is_file():
        raise FileNotFoundError(f"The tokenizer folder {str(path.parent)!r} has no file {path.name!r}.")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes are more than a tokenizer file has ({MAX_FILE_BYTES}).")
    return path.read_bytes()
