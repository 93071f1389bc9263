"""SentencePiece's compiled normalisation (NFKC and the like): which characters become which."""

import re

import numpy as np

# Branches are shared in the data, so that a damaged file could describe endlessly many keys, or write one long replacement
# for many; NFKC has 225,000 keys of at most 10 bytes, and replacements of at most 33.
MAX_STEPS = 1 << 19
MAX_KEY_BYTES = 32
MAX_REPLACEMENT_BYTES = 256
MAX_CHARSMAP_BYTES = 1 << 21
_LABEL = 0x800000FF


class Charsmap:
    """The replacements in a `precompiled_charsmap`, applied from left to right, the longest first.

    The data are a double-array trie of UTF-8 keys, and the replacements with NUL between them. All keys are read out
    once: those of one code point go into `str.translate`, the few longer ones are searched for.

    Args:
        data: bytes of the field in the model file; empty for no replacements.

    Raises:
        ValueError: the data are damaged.
    """

    def __init__(self, data):
        self.single, self.longer = {}, {}
        for key, replacement in _entries(data):
            if len(key) == 1:
                self.single[ord(key)] = replacement
            else:
                self.longer[key] = replacement
        self._longest = max(map(len, self.longer), default=0)
        first = "".join(re.escape(character) for character in sorted({key[0] for key in self.longer}))
        second = "".join(re.escape(character) for character in sorted({key[1] for key in self.longer}))
        self._start = re.compile(f"[{first}](?=[{second}])") if self.longer else None

    def replace(self, text):
        """`text` with every replacement made."""
        done, parts = 0, []
        for start, end, replacement in self._longer_spans(text):
            parts += [text[done:start].translate(self.single), replacement]
            done = end
        return "".join(parts) + text[done:].translate(self.single)

    def spans(self, text):
        """The replacements in `text` as a list of `(start, end, replacement)`, in order."""
        found, done = [], 0
        for start, end, replacement in [*self._longer_spans(text), (len(text), len(text), None)]:
            found += [
                (place, place + 1, self.single[ord(text[place])])
                for place in range(done, start)
                if ord(text[place]) in self.single
            ]
            if replacement is not None:
                found.append((start, end, replacement))
            done = end
        return found

    def _longer_spans(self, text):
        done = 0
        for match in self._start.finditer(text) if self._start else ():
            start = match.start()
            if start < done:
                continue
            for size in range(self._longest, 1, -1):
                replacement = self.longer.get(text[start : start + size])
                if replacement is not None:
                    done = start + len(text[start : start + size])
                    yield start, done, replacement
                    break


def _entries(data):
    """Yields `(key, replacement)` of the compiled data."""
    if not data:
        return
    if len(data) > MAX_CHARSMAP_BYTES:
        raise ValueError(f"The SentencePiece model's character map has {len(data)} bytes, over {MAX_CHARSMAP_BYTES}.")
    size = int.from_bytes(data[:4], "little")
    # In whole blocks of 256 units, a branch that starts inside the data stays inside.
    if len(data) < 8 or size % 1024 or not 4 <= size < len(data) - 4 or data[-1]:
        raise ValueError("The SentencePiece model's character map is damaged: its sizes do not fit.")
    strings = data[4 + size :]
    if b"  " in strings:
        raise ValueError("The SentencePiece model's character map writes two spaces in a row, which is not supported.")
    for key, place in _keys(np.frombuffer(data[4 : 4 + size], "<u4").tolist()):
        if place >= len(strings):
            raise ValueError("The SentencePiece model's character map is damaged: a replacement is not there.")
        end = strings.find(b"\0", place, place + MAX_REPLACEMENT_BYTES + 1)
        if end < 0:
            raise ValueError(
                f"The SentencePiece model's character map has a replacement of over {MAX_REPLACEMENT_BYTES} bytes."
            )
        replacement = strings[place:end]
        try:
            yield key.decode("utf-8"), replacement.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"The SentencePiece model's character map has {key + replacement!r}, no UTF-8.") from error


def _keys(units):
    """Yields `(bytes, value)` of a darts-clone double array."""
    children = {}  # a node's offset, with a byte added by exclusive or, is the place of the child for that byte
    for place, unit in enumerate(units):
        if unit & _LABEL < 256 and place:
            children.setdefault(place ^ (unit & 255), []).append(place)
    waiting, seen = [(b"", units[0], 0)], 0
    while waiting:
        key, unit, place = waiting.pop()
        seen += 1
        if seen > MAX_STEPS or len(key) > MAX_KEY_BYTES:
            raise ValueError("The SentencePiece model's character map is damaged: its tree runs in circles.")
        base = place ^ ((unit >> 10) << ((unit & 0x200) >> 6))
        if base >= len(units):
            # The operation in the graph would read beyond its memory here.
            raise ValueError("The SentencePiece model's character map is damaged: a branch leads out of it.")
        if unit >> 8 & 1:
            yield key, units[base] & 0x7FFFFFFF
        for child in children.get(base, ()):
            waiting.append((key + bytes([units[child] & 255]), units[child], child))
