"""Tokenizer folders appear whole: written beside, then renamed."""

import pathlib

from keras_seqlm.files import replacing
from seqlm_runtime.tokenizers.tokenizer import CONFIG_NAME, bytes_of, config_path_of


class SavedTokenizer:
    """Adds `save` to a tokenizer of the runtime."""

    def save(self, folder):
        """Writes the files of this tokenizer to `folder`, which appears whole or not at all.

        Args:
            folder: path to make; a tokenizer that lies there already is replaced.

        Raises:
            FileExistsError: something that is no tokenizer lies there.
        """
        folder = pathlib.Path(folder)
        if folder.exists() and not _is_tokenizer(folder):
            raise FileExistsError(f"{str(folder)!r} exists and is no tokenizer folder. Name another one.")
        with replacing(folder) as fresh:
            fresh.mkdir()
            for name, data in self.files.items():
                (fresh / name).write_bytes(data)

    def to_huggingface(self, folder):
        """Writes this tokenizer as Hugging Face's `tokenizer.json`, and `tokenizer_config.json` beside it.

        The `tokenizers` library then gives the same ids, added and special tokens aside: it takes the name of any of
        these in a text as the token.

        Args:
            folder: path to make; files of these names are replaced.

        Raises:
            ValueError: a tokenizer that their file has no form for.
        """
        from keras_seqlm.tokenizers.huggingface import write_huggingface

        write_huggingface(self, folder)

    def with_added_tokens(self, tokens, special=False):
        """A tokenizer with more tokens, each kept whole wherever it stands in a text; the ids of before stay.

        Args:
            tokens: list of str; those that are added tokens already stay as they are.
            special: whether they are markers, which are never sampled and never shown. A user's own words are not.

        Raises:
            ValueError: an empty token, or the same one twice.

        Example:

        >>> from keras_seqlm.tokenizers import ByteTokenizer
        >>> tokenizer = ByteTokenizer().with_added_tokens(["<user>"], special=True)
        >>> tokenizer.encode("<user>Hi").tolist()
        [260, 76, 109]
        """
        if isinstance(tokens, str):
            raise ValueError("Expected a list of tokens, got one str. Write [...].")
        known = {entry["content"] for entry in self.added_tokens.entries}
        new = [token for token in tokens if token not in known]
        entries = self.added_tokens.entries + [
            {"content": token, "id": self.vocabulary_size + number, "special": bool(special)}
            for number, token in enumerate(new)
        ]
        config = {**self.config, "added_tokens": entries, "vocabulary_size": self.vocabulary_size + len(new)}
        return type(self)({**self.files, **self._more_ids(len(new)), CONFIG_NAME: bytes_of(config)})


def _is_tokenizer(folder):
    return folder.is_dir() and (config_path_of(folder).is_file() or not any(folder.iterdir()))
