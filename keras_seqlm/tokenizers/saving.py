"""Tokenizer folders appear whole: written beside, then renamed."""

import pathlib

from keras_seqlm.files import replacing


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


def _is_tokenizer(folder):
    return folder.is_dir() and ((folder / "tokenizer.json").is_file() or not any(folder.iterdir()))
