"""Tokenizer folders appear whole: written beside, then renamed."""

import os
import pathlib
import shutil
import tempfile


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
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            # mkdtemp makes folders that only their owner can read; a server is often somebody else.
            fresh.chmod(0o777 & ~_umask())
            for name, data in self.files.items():
                with open(fresh / name, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            if folder.exists():
                old = fresh.with_name(fresh.name + ".old")
                folder.rename(old)
                fresh.rename(folder)
                shutil.rmtree(old)
            else:
                fresh.rename(folder)
        finally:
            if fresh.exists():
                shutil.rmtree(fresh)


def _is_tokenizer(folder):
    return folder.is_dir() and ((folder / "tokenizer.json").is_file() or not any(folder.iterdir()))


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
