"""The checksums by which an exported artifact is known to be what was exported.

A sidecar names the SHA-256 of every file that belongs to it, and its own content has one, the seal. They find damage
and files that do not belong together; who changes an artifact on purpose can make them anew, and is held by `op_gate`
and by `seqlm verify`.
"""

import hashlib
import json
import os
import pathlib

SEAL = "seal"
_NO_FILE = "no file"
AGAIN = "export it again"
_MOST_BYTES = 2**24  # of a sidecar


def file_hash(path):
    """SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_hashes(folder, leave_out=()):
    """The hash of every file in a folder and the folders in it: dict of path within it, with `/`, to hash.

    Args:
        folder: the folder.
        leave_out: paths within it that are not read.
    """
    folder, found = pathlib.Path(folder), {}
    for place, folders, files in os.walk(folder):
        place = pathlib.Path(place)
        # A link, whose end is no part of the folder, or a socket: what is no file stands there by its name and equals no hash.
        names = files + [name for name in folders if (place / name).is_symlink()]
        for path in (place / name for name in names):
            within = path.relative_to(folder).as_posix()
            if within not in leave_out:
                found[within] = file_hash(path) if path.is_file() and not path.is_symlink() else _NO_FILE
    return dict(sorted(found.items()))


def check_files(folder, hashes, leave_out=()):
    """Refuse a folder whose files are not those of a sidecar.

    Args:
        folder: the folder.
        hashes: what `folder_hashes` gave when it was written.
        leave_out: as there.

    Raises:
        ValueError: a file is missing, is too many or was changed; they are named.
    """
    found = folder_hashes(folder, leave_out)
    wrong = [f"{name} is missing" for name in hashes if name not in found]
    wrong += [f"{name} does not belong there" for name in found if name not in hashes]
    wrong += [f"{name} is a link or no file" for name in found if found[name] == _NO_FILE]
    wrong += [f"{name} was changed" for name in found if name in hashes and found[name] not in (hashes[name], _NO_FILE)]
    if wrong:
        raise ValueError(f"{folder} is damaged or was replaced: {', '.join(wrong)}. Copy it, or {AGAIN}.")


def sealed(content):
    """`content`, a dict that JSON can hold, with its seal."""
    content = {key: value for key, value in content.items() if key != SEAL}
    return {**content, SEAL: _seal(content)}


def read_sealed(path):
    """The dict in a sidecar whose seal is right.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, has no seal, or was changed after it was sealed.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing, which the export writes: without it nobody can tell what the files are."
        )
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path} is damaged: {path.stat().st_size} bytes are more than a sidecar has.")
    try:
        content = json.loads(path.read_bytes().decode("utf-8"), object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: expected an object, got {type(content).__name__}.")
    if SEAL not in content:
        raise ValueError(f"{path} has no checksums, as an older version wrote it: {AGAIN}.")
    if sealed(content) != content:
        raise ValueError(f"{path} was changed after the export: {AGAIN}.")
    return content


def _seal(content):
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _without_doubles(pairs):
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key stands there twice")
    return content
