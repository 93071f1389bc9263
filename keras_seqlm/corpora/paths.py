"""Which files a path, a pattern or a folder names."""

import glob
import os
import warnings
import zipfile
from pathlib import Path

from keras_seqlm.corpora.json_text import shape_of
from keras_seqlm.corpora.opening import KINDS, check_readable, ending_of, head_of, text_members
from keras_seqlm.corpora.unpacking import PACKINGS


def find_files(files):
    """Expand paths, glob patterns and directories to the list of files to read.

    Args:
        files: a path, a glob pattern, a directory, or a list or tuple of these.

    Returns:
        A list of `pathlib.Path`, sorted within each entry, without repetition.

    Raises:
        FileNotFoundError: if a named file is absent.
        ImportError: if the package is absent that reads one of them.
        ValueError: if an entry matches no text file, or a file is empty.
    """
    entries = list(files) if isinstance(files, (list, tuple)) else [files]
    if not entries:
        raise ValueError("`files` is an empty list: name at least one file, pattern or directory.")
    found = {}
    for entry in entries:
        for path in _expand(os.fspath(entry)):
            if path.stat().st_size == 0:
                raise ValueError(f"{path} is empty: take it out of the corpus, or fill it.")
            check_readable(path)
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _expand(entry):
    path = Path(entry).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        candidates = _walk(path)
        kind = "directory"
    elif glob.has_magic(entry):
        candidates = [Path(match) for match in glob.glob(str(path), recursive=True)]
        kind = "pattern"
    else:
        raise FileNotFoundError(
            f"No file or directory {entry!r}: check the path, or give a pattern such as 'books/*.txt'."
        )
    chosen = sorted(one for one in candidates if ending_of(one.name) in (*KINDS, ".zip") and one.is_file())
    if kind == "directory":
        chosen = _without_other_things(path, chosen)
    if not chosen:
        raise ValueError(
            f"The {kind} {entry!r} holds no text file. Read are files that end in {', '.join(KINDS)}, in these and "
            f"{', '.join(PACKINGS)}, or in .zip; a file with another ending is read as text when it is named itself."
        )
    return chosen


def _walk(top):
    """The visible files below a folder, links followed; each folder once, however many links lead to it."""
    seen = set()
    for folder, folders, names in os.walk(top, onerror=_refuse, followlinks=True):
        if "document_starts.npy" in names:
            names.clear()  # A token cache that lies beside the text.
        identity = os.stat(folder)
        if (identity.st_dev, identity.st_ino) in seen:
            folders.clear()
            continue
        seen.add((identity.st_dev, identity.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def _refuse(error):
    raise error  # os.walk would pass over a folder that cannot be read.


def _without_other_things(folder, paths):
    """Leave out what happens to lie beside the text and ends as text may: a JSON of settings, a zip of pictures."""
    others = [path for path in paths if not _may_be_text(path)]
    if others:
        some = ", ".join(str(path) for path in others[:3]) + (" ..." if len(others) > 3 else "")
        warnings.warn(
            f"{folder}: left out {len(others)} files that hold no list of texts, {some}: name the files that you want, "
            f"as '{folder}/**/*.txt'.",
            stacklevel=5,
        )
    return [path for path in paths if path not in set(others)]


def _may_be_text(path):
    if ending_of(path.name) == ".json" and path.stat().st_size:
        return shape_of(head_of(path)) != "object"
    if path.suffix.lower() == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                return bool(text_members(archive))
        except zipfile.BadZipFile:
            return True  # Reading it will tell how it is damaged.
    return True
