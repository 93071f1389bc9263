"""What a corpus is, by its content: the hash of every file, remembered so that an unchanged file is read for it once."""

import contextlib
import hashlib
import json
import time
import warnings

from keras_seqlm.data.cache_lock import CacheLock
from keras_seqlm.files import write_json
from keras_seqlm.status_line import StatusLine

INDEX = "files.index"
BLOCK_SIZE = 1 << 20
MOST_ENTRIES = 100_000  # of the index; those not used for longest go first.
USED_GRAIN = 60  # Seconds after which it is noted anew that an entry was used.
GRAIN = 2_000_000_000  # Nanoseconds within which a file system may give two writes the same time.


def content_hash(kinds, hashes, text_field):
    """The hash of a text and of how it is read: of each file's kind and content, in order; not of names and times.

    The content is all bytes of a file as it lies there, packed or not, with the mark of UTF-8 or UTF-16 at its beginning.

    Args:
        kinds: how each file is read, as `corpora.opening.kind_at` says.
        hashes: the SHA-256 of each file.
        text_field: counts where records are read.

    Returns:
        64 hexadecimal digits.
    """
    reading = {"files": [[kind, one] for kind, one in zip(kinds, hashes, strict=True)]}
    if set(kinds) - {"text"}:
        reading["text_field"] = text_field
    return hashlib.sha256(json.dumps(reading, sort_keys=True).encode()).hexdigest()


def hash_files(paths, root):
    """The SHA-256 of each file's content, in order.

    What was computed is kept in `files.index` of the cache, a JSON file, by device, inode, size and the times of the last change of
    content and of the inode. The second of these no program can set, so that a change is seen that keeps the size and
    puts the time back. A file that was changed less than two seconds before it was read is read again the next time: the
    clock of its file system may be too coarse to show a second change. Moving a file changes the inode's time, and it is read
    again for the same hash. (Measured: 1.5 GB in a second of one core's time.)

    Args:
        paths: the files, `pathlib.Path`s.
        root: folder of the cache, which the index lies in.

    Returns:
        A list of hexadecimal strings.
    """
    root.mkdir(parents=True, exist_ok=True)
    known, new, used, found = _read(root / INDEX), {}, {}, []
    line = _Progress(paths)
    for path in paths:
        before = path.stat()
        key = f"{before.st_dev}:{before.st_ino}"
        stamp = [before.st_size, before.st_mtime_ns, before.st_ctime_ns]
        entry = known.get(key)
        now = time.time_ns()
        if entry is None or entry["stamp"] != stamp:
            entry = {"stamp": stamp, "sha256": _hash(path, line), "used": now // 10**9}
            if max(stamp[1:]) + GRAIN < now:
                new[key] = entry
        elif now // 10**9 - entry["used"] >= USED_GRAIN:
            used[key] = {**entry, "used": now // 10**9}
        found.append(entry["sha256"])
    line.finish()
    if new:
        _add(root, {**used, **new})
    elif used:
        with contextlib.suppress(PermissionError):  # A cache may be shared, and not ours to write in.
            _add(root, used)
    return found


def _hash(path, line):
    digest, buffer = hashlib.sha256(), bytearray(BLOCK_SIZE)
    with open(path, "rb", buffering=0) as handle:
        while count := handle.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
            line.add(count)
    return digest.hexdigest()


def _read(index):
    try:
        entries = json.loads(index.read_text())
        if all(
            len(entry["stamp"]) == 3 and len(entry["sha256"]) == 64 and entry["used"] >= 0 for entry in entries.values()
        ):
            return entries
        error = "an entry is not whole"
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, TypeError, KeyError) as wrong:
        error = wrong
    warnings.warn(f"{index} is damaged ({error}): the files are hashed again.", stacklevel=4)
    return {}


def _add(root, new):
    """Put entries in the index: one process at a time, and none loses what another has put there."""
    with CacheLock(root / f"{INDEX}.lock", "writes the index of hashes"):
        entries = {**_read(root / INDEX), **new}
        if len(entries) > MOST_ENTRIES:
            kept = sorted(entries, key=lambda key: entries[key]["used"])[-MOST_ENTRIES:]
            entries = {key: entries[key] for key in kept}
        write_json(root / INDEX, entries)


class _Progress:
    """Says on stderr how far hashing is, where it takes longer than two seconds."""

    def __init__(self, paths):
        self._total = sum(path.stat().st_size for path in paths)
        self._done, self._line = 0, StatusLine()
        self._start = time.monotonic()
        self._next = self._start + 2

    def add(self, count):
        self._done += count
        now = time.monotonic()
        if now < self._next:
            return
        told = f"reading the files for their hash: {self._done / 1e6:.0f} of {self._total / 1e6:.0f} MB"
        if self._line.redraws:
            self._next = now + 1
            self._line.draw([told])
        else:
            self._next = now + 60
            self._line.keep([told])

    def finish(self):
        self._line.clear()
