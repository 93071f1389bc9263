"""What lies in the token cache, and how it is pruned."""

import contextlib
import json
import os
import shutil
import time

from keras_seqlm.data.packing import cache_root

UNFINISHED = (".partial", ".spool")


def list_cache(cache_dir=None):
    """Tell what the cache holds.

    Args:
        cache_dir: folder of the cache; None takes the one that `pack` takes.

    Returns:
        A list of dicts, that used last first: `name`, `num_bytes` on disk, `last_used` (seconds since 1970), `in_use` (a
        process reads or makes it; None where the file system knows no locks), `finished`, and of a corpus that is
        finished `num_tokens`, `num_documents`, `tokenizer_hash` and `content_hash`, else None.

    Example:

    >>> import pathlib, tempfile
    >>> from keras_seqlm.data import pack
    >>> from keras_seqlm.tokenizers import ByteTokenizer
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "night.txt").write_text("It was a dark night.")
    >>> store = pack(folder, ByteTokenizer(), cache_dir=folder / "cache")
    >>> [(entry["num_tokens"], entry["in_use"]) for entry in list_cache(folder / "cache")]
    [(22, True)]
    """
    root = cache_root(cache_dir)
    paths = [path for path in root.iterdir() if _is_ours(path)] if root.is_dir() else []
    entries = []
    for path in paths:
        # What another process deletes or renames meanwhile is no longer there.
        with contextlib.suppress(FileNotFoundError):
            entries.append(_entry(path))
    return sorted(entries, key=lambda entry: -entry["last_used"])


def prune_cache(cache_dir=None, older_than_days=None, most_bytes=None, now=None):
    """Delete what was not used for long, and then what was not used for longest until the rest is small enough.

    What a process reads or makes stays, and so does all on a file system that cannot tell; what is deleted is made anew
    from its text when it is asked for. Work that was killed (`finished` is False) goes on where it ended if it is not deleted.

    Args:
        cache_dir: folder of the cache; None takes the one that `pack` takes.
        older_than_days: delete what was last used so many days ago, or longer.
        most_bytes: delete until no more bytes than these are left.
        now: seconds since 1970 from which days are counted back; None takes the clock.

    Returns:
        `(deleted, kept)`, two lists of entries as `list_cache` gives them; `kept` names with `in_use` what had to stay.

    Raises:
        ValueError: if neither limit is given, or one is negative.
    """
    if older_than_days is None and most_bytes is None:
        raise ValueError("Pruning takes `older_than_days`, `most_bytes` or both.")
    if min(older_than_days or 0, most_bytes or 0) < 0:
        raise ValueError(f"Limits are at least 0, received {older_than_days} days and {most_bytes} bytes.")
    root = cache_root(cache_dir)
    entries = list_cache(cache_dir)
    limit = (time.time() if now is None else now) - 86400 * (older_than_days or 0)
    total = sum(entry["num_bytes"] for entry in entries)
    deleted, kept = [], []
    for entry in reversed(entries):
        old = older_than_days is not None and entry["last_used"] <= limit
        too_much = most_bytes is not None and total > most_bytes
        if (old or too_much) and _delete(root / entry["name"]):
            deleted.append(entry)
            total -= entry["num_bytes"]
        else:
            kept.append(entry)
    return deleted, kept[::-1]


def _is_ours(path):
    """Whether a name in the cache is a corpus, finished or not; whatever else lies there is let alone."""
    name = path.name.split(".")[0]
    hexadecimal = len(name) == 32 and not name.strip("0123456789abcdef")
    return hexadecimal and (path.suffix in UNFINISHED or path.name == name and path.is_dir())


def _entry(path):
    files = [path] if path.is_file() else list(path.iterdir())
    finished = path.suffix not in UNFINISHED
    meta = {}
    if finished:
        try:
            meta = json.loads((path / "meta.json").read_text())
        except (FileNotFoundError, ValueError):
            finished = False  # Damaged: `pack` makes it anew.
    return {
        "name": path.name,
        "num_bytes": sum(file.stat().st_size for file in files),
        "last_used": (path / "meta.json" if finished else path).stat().st_mtime,
        "in_use": _in_use(path),
        "finished": finished,
        "num_tokens": meta.get("statistics", {}).get("num_tokens"),
        "num_documents": meta.get("statistics", {}).get("num_documents"),
        "tokenizer_hash": meta.get("tokenizer_hash"),
        "content_hash": meta.get("content_hash"),
    }


def _in_use(path):
    with _alone(path) as alone:
        return None if alone is None else not alone


@contextlib.contextmanager
def _alone(path):
    """Whether no other process (or store) holds an entry of the cache, which is kept so inside of the `with`; None where
    the file system cannot tell.
    """
    try:
        import fcntl
    except ImportError:
        yield None
        return
    with contextlib.ExitStack() as stack:
        try:
            for lock in _locks(path):
                handle = stack.enter_context(open(lock, "rb"))
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except FileNotFoundError:
            alone = True
        except BlockingIOError:
            alone = False
        except OSError:
            alone = None
        yield alone


def _locks(path):
    """The files that whoever works on an entry holds a lock of."""
    if path.suffix == ".spool":
        return [path]
    lock = path.with_name(f"{path.name.split('.')[0]}.lock")
    return [one for one in (lock, path / "meta.json") if one.exists()]


def _delete(path):
    with _alone(path) as alone:
        if not alone:
            return False
        if path.is_file():
            path.unlink()
            return True
        # Renamed first, so that whoever comes now finds nothing rather than half of it.
        gone = path.with_name(f"{path.name.split('.')[0]}.{os.getpid()}.partial")
        os.rename(path, gone)
        shutil.rmtree(gone)
    return True
