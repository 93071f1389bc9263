"""Which files a path, a pattern or a folder names."""

import contextlib
import glob
import os
import warnings
import zipfile
from pathlib import Path

from keras_seqlm.corpora.json_text import shape_of
from keras_seqlm.corpora.opening import (
    KINDS,
    check_readable,
    ending_of,
    head_of,
    is_packed,
    is_zip,
    text_members,
    visible_members,
)
from keras_seqlm.corpora.unpacking import PACKINGS

ENDINGS = (
    f"Read are files that end in {', '.join(KINDS)}, in these and {', '.join(PACKINGS)}, or in .zip; a file with another "
    "ending is read as text when it is named itself"
)
LONGEST_NAME = 255  # bytes, of a file on every system


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
    found, left_out = {}, {}
    for entry in entries:
        for path in _expand(os.fspath(entry), left_out):
            check_name(path)
            if path.stat().st_size == 0:
                raise ValueError(f"{path} is empty: take it out of the corpus, or fill it.")
            check_readable(path)
            found.setdefault(path.resolve(), path)
    for path in found.values():
        if is_zip(path):
            _look_into(path, left_out)
    for place, others in left_out.items():
        warnings.warn(
            f"{place}: left out {_told(others)}. Read there are files that end in {', '.join(KINDS)}, packed or not; name "
            "others that you want, or a pattern of them.",
            stacklevel=3,
        )
    return list(found.values())


def check_name(path):
    """Refuse a name that is no UTF-8, which no file of ours could hold (ValueError)."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"the name {os.fsencode(path)!r} is no UTF-8, and a run writes down the names of its files: rename it (convmv "
            "does many), or give a link to it with another name"
        ) from None


def _expand(entry, left_out):
    """The files of an entry. What a pattern matches is taken as if it were named, so that it does not matter whether the
    shell expands it; of a folder those are taken that end as text does, and the rest goes to `left_out`.
    """
    path = Path(entry).expanduser()
    if "\n" in entry or len(os.fsencode(path.name)) > LONGEST_NAME:
        raise ValueError(
            f"{entry[:40]!r}... is text and no path: a list is a list of paths. Give texts themselves as an iterable that is no "
            "list, as iter(texts), or write them to a file."
        )
    if path.exists() or not glob.has_magic(entry):
        return _named(path, entry, left_out)
    matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
    chosen = [one for match in matches for one in _named(match, str(match), left_out, of_pattern=True)]
    if not chosen:
        raise ValueError(f"The pattern {entry!r} holds no text file: {ENDINGS if matches else 'nothing matches it'}.")
    return chosen


def _named(path, entry, left_out, of_pattern=False):
    if path.is_file():
        return [path]
    if path.is_dir():
        others = {}
        chosen = [one for one in _walk(path) if _is_chosen(one, others)]
        if others:
            left_out[path] = others
        if not chosen and not of_pattern:
            told = f" It holds {_told(left_out.pop(path))}." if others else ""
            raise ValueError(f"The directory {entry!r} holds no text file.{told} {ENDINGS}.")
        return sorted(chosen)
    if path.is_symlink():
        raise FileNotFoundError(
            f"{entry!r} is a link to {os.readlink(path)}, which is not there: mend or remove the link."
        )
    raise FileNotFoundError(f"No file or directory {entry!r}: check the path, or give a pattern such as 'books/*.txt'.")


def _is_chosen(path, others):
    """Whether a file of a folder is read; if not, it is put under the reason in `others`."""
    reason = _reason(path)
    if reason is not None:
        others.setdefault(reason, []).append(path.name)
    return reason is None


def _reason(path):
    if not path.is_file():
        return "a link to what is not there" if path.is_symlink() else "no file"
    reason = _reason_by_name(path.name, zips=True)
    if (
        reason is None
        and ending_of(path.name) == ".json"
        and path.stat().st_size
        and shape_of(head_of(path)) == "object"
    ):
        return "a JSON that holds no list of texts"
    if reason is None and path.suffix.lower() == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                return None if text_members(archive) else "a zip without text files"
        except zipfile.BadZipFile:
            return None  # Reading it will tell how it is damaged.
    return reason


def _reason_by_name(name, zips):
    """Why a folder or an archive does not give a file of this name; None where it does."""
    ending = ending_of(name)
    if ending in KINDS or zips and ending == ".zip":
        return None
    if ending == ".zip":
        return "a zip within it"
    if is_packed(name) and not ending:
        return f"{os.path.splitext(name.lower())[1]} after no ending that says of what"
    return ending or "without an ending"


def _look_into(path, left_out):
    """What a zip archive does not give."""
    others = {}
    with contextlib.suppress(zipfile.BadZipFile):  # Reading it will tell how it is damaged.
        with zipfile.ZipFile(path) as archive:
            for info in visible_members(archive):
                reason = _reason_by_name(info.filename.rpartition("/")[2], zips=False)
                if reason is not None:
                    others.setdefault(reason, []).append(info.filename)
            if others and text_members(archive):  # else reading it will tell
                left_out[path] = others


def _told(others):
    """`3 files: 2 .csv (a.csv, b.csv), 1 without an ending (README)`."""
    count = sum(map(len, others.values()))
    kinds = [
        f"{len(names)} {reason} ({', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''})"
        for reason, names in sorted(others.items())
    ]
    return f"{count} file{'s' * (count > 1)}: {', '.join(kinds)}"


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
