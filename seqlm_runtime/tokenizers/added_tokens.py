"""Tokens that a text may name: special ones and a user's own, found before anything else and kept whole."""

import re

FIELDS = {"content": str, "id": int, "special": bool, "lstrip": bool, "rstrip": bool, "normalized": bool}
MAX_ADDED_TOKENS = 65_536
MAX_CONTENT_BYTES = 512
# White space as Unicode's property has it. Python's own `strip` takes U+001C to U+001F too.
WHITE_SPACE = (
    "\t\n\x0b\x0c\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
)


class AddedTokens:
    """The added tokens of a tokenizer.

    Where several begin at one place the longest counts, and what comes first in the text is taken first. Tokens that
    are `normalized` are looked for in what the others leave.

    Args:
        entries: list of dicts of `content`, `id`, and `special` (never shown, never sampled), `lstrip` and `rstrip` (take
            the white space beside them along) and `normalized`, false where they are missing.
        vocabulary_size: ids go up to it.

    Raises:
        ValueError: an entry is not of this form, or two have one content or one id.
    """

    def __init__(self, entries, vocabulary_size):
        self.entries = [_checked(entry, vocabulary_size) for entry in _list(entries)]
        for field in ("content", "id"):
            values = [entry[field] for entry in self.entries]
            if len(set(values)) != len(values):
                raise ValueError(f"added_tokens: two tokens have the same {field}.")
        self.special_ids = {entry["id"] for entry in self.entries if entry["special"]}
        self.shown = {  # id -> bytes that it is decoded to
            entry["id"]: b"" if entry["special"] else entry["content"].encode("utf-8") for entry in self.entries
        }
        self.longest = max((len(entry["content"].encode("utf-8")) for entry in self.entries), default=0)  # in bytes
        # The first phase, then the second.
        self.phases = [[e for e in self.entries if e["normalized"] == late] for late in (False, True)]
        self.phases = [phase for phase in self.phases if phase]
        for entry in self.entries:
            if entry["rstrip"] and any(other["content"][0] in WHITE_SPACE for other in self.entries):
                raise ValueError(
                    f"added_tokens: {entry['content']!r} takes the white space behind it along (rstrip), which another "
                    "added token begins with."
                )
        self._searches = [_Search(phase) for phase in self.phases]

    def __bool__(self):
        return bool(self.entries)

    def split(self, data):
        """`data` (bytes) as a list of `(bytes, id)`, the id of an added token or None for text between them."""
        pieces = [(data, None)] if data else []
        for search in self._searches:
            pieces = [found for piece, i in pieces for found in (search.split(piece) if i is None else ((piece, i),))]
        return pieces


class _Search:
    def __init__(self, entries):
        self._entries = {entry["content"].encode("utf-8"): entry for entry in entries}
        longest_first = sorted(self._entries, key=lambda content: (-len(content), content))
        self._pattern = re.compile(b"|".join(map(re.escape, longest_first)))

    def split(self, data):
        done = 0
        for match in self._pattern.finditer(data):
            start, end = match.span()
            entry = self._entries[match[0]]
            if entry["lstrip"]:
                start = done + len(_stripped(data[done:start], str.rstrip))
            if start > done:
                yield data[done:start], None
            if entry["rstrip"]:
                end = len(data) - len(_stripped(data[end:], str.lstrip))
            yield data[start:end], entry["id"]
            done = end
        if done < len(data):
            yield data[done:], None


def _stripped(data, strip):
    return strip(data.decode("utf-8", "surrogateescape"), WHITE_SPACE).encode("utf-8", "surrogateescape")


def _list(entries):
    if not isinstance(entries, list) or len(entries) > MAX_ADDED_TOKENS:
        raise ValueError(f"added_tokens: expected a list of at most {MAX_ADDED_TOKENS} objects.")
    return entries


def _checked(entry, vocabulary_size):
    if not isinstance(entry, dict) or not {"content", "id"} <= set(entry) <= set(FIELDS):
        raise ValueError(f"added_tokens: expected objects of {', '.join(FIELDS)}, got {str(entry)[:80]}.")
    entry = {name: entry.get(name, False) for name in FIELDS}
    for name, kind in FIELDS.items():
        if type(entry[name]) is not kind:
            raise ValueError(f"added_tokens: expected {name} as {kind.__name__}, got {entry[name]!r}.")
    try:
        size = len(entry["content"].encode("utf-8"))
    except UnicodeEncodeError as error:
        raise ValueError(f"added_tokens: {entry['content'][:20]!r} has no UTF-8 form.") from error
    if not 1 <= size <= MAX_CONTENT_BYTES or not 0 <= entry["id"] < vocabulary_size:
        raise ValueError(
            f"added_tokens: expected 1 to {MAX_CONTENT_BYTES} bytes and an id below {vocabulary_size}, got "
            f"{entry['content'][:20]!r} and {entry['id']}."
        )
    return entry
