"""Unicode's normal form C, the same whatever version of Unicode a library has.

Versions differ in the characters that they know. What a tokenizer's own library does not know it leaves as it is; those
characters, and all that any version may come to know, stand in the tokenizer's config, and nothing is composed or put in
order across them.
"""

import re
import unicodedata

import numpy as np

from seqlm_runtime.tokenizers.code_points import NUM_CODE_POINTS, two_level


class NormalFormC:
    """Normal form C between the characters that stand apart.

    Args:
        ranges: str of those, in hexadecimal: `"7fd 899-89b ..."`.

    Raises:
        ValueError: the string is not of this form.
    """

    def __init__(self, ranges):
        pairs = []
        for part in ranges.split(" ") if isinstance(ranges, str) else [None]:
            found = re.fullmatch("([0-9a-f]{1,6})(?:-([0-9a-f]{1,6}))?", part) if part else None
            first, last = (int(found[1], 16), int(found[2] or found[1], 16)) if found else (1, 0)
            if not first <= last < NUM_CODE_POINTS:
                raise ValueError(
                    f"nfc_apart: expected ranges of code points as 7fd or 899-89b, got {str(part)[:20]!r}."
                )
            pairs.append((first, last))
        self._apart = re.compile("([" + "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in pairs) + "])")
        values = np.zeros(NUM_CODE_POINTS, np.uint8)
        for first, last in pairs:
            values[first : last + 1] = 1
        self.table = two_level(values)  # 1 for those that stand apart

    def normalize(self, text):
        """`text` in normal form C."""
        if text.isascii():
            return text
        parts = self._apart.split(text)
        parts[::2] = [unicodedata.normalize("NFC", part) for part in parts[::2]]
        return "".join(parts)

    def with_sources(self, text):
        """`text` in normal form C, and for each of its characters the place of the one in `text` that it comes of."""
        made, sources, place = [], [], 0
        for number, part in enumerate(self._apart.split(text)):
            for cluster in [part] if number % 2 else _clusters(part):
                new = cluster if number % 2 else unicodedata.normalize("NFC", cluster)
                made.append(new)
                # What is composed stands where its first character does; marks that are left keep their places.
                gone = max(len(cluster) - len(new), 0)
                sources += [place + (min(order + gone, len(cluster) - 1) if order else 0) for order in range(len(new))]
                place += len(cluster)
        return "".join(made), sources


def _clusters(text):
    """Cuts `text` where nothing can compose: before starters that no composition has at its end."""
    start = 0
    for place in range(1, len(text)):
        character = text[place]
        joins = unicodedata.combining(character) or unicodedata.normalize("NFC", text[place - 1 : place + 1]) != (
            unicodedata.normalize("NFC", text[place - 1]) + unicodedata.normalize("NFC", character)
        )
        if not joins:
            yield text[start:place]
            start = place
    if start < len(text):
        yield text[start:]
