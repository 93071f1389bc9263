"""Tokens that a text may name: special ones and a user's own, found before anything else and kept whole."""

import bisect
import itertools
import re

import numpy as np

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
    are `normalized` are looked for in what the others leave, in a tokenizer's normal form if it has one.

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
        self.normal = None
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

    def seek_in_normal_form(self, normal):
        """Looks for the tokens that are `normalized` in normal form, their own and the text's, and shows them so.

        Args:
            normal: has `normalize(str)`, a str, and `with_sources(str)`, that str and for each of its characters the place
                of the one that it comes of. The normal form of a part of a normal form is that part.

        Raises:
            ValueError: nothing is left of a token, or two of them are the same then.
        """
        if not any(entry["normalized"] for entry in self.entries):
            return
        self.normal = normal
        late = [{**entry, "content": normal.normalize(entry["content"])} for entry in self.phases[-1]]
        for entry, given in zip(late, self.phases[-1], strict=True):
            if not entry["content"] or sum(other["content"] == entry["content"] for other in late) > 1:
                raise ValueError(
                    f"added_tokens: {given['content']!r} is normalized, and its normal form {entry['content']!r} is "
                    f"{'that of another one' if entry['content'] else 'empty'}, which is not supported."
                )
            if not entry["special"]:
                self.shown[entry["id"]] = entry["content"].encode("utf-8")
        self.phases[-1], self._searches[-1] = late, _Search(late)
        self.longest = max(self.longest, *(len(entry["content"].encode("utf-8")) for entry in late))

    def split(self, data):
        """`data` (bytes) as a list of `(bytes, id)`, the id of an added token or None for text between them."""
        return self.split_parts([(data, True)])

    def split_parts(self, parts):
        """As `split` of all that `parts`, a list of `(bytes, open)`, hold: tokens are found only within open ones."""
        pieces = [(parts, None)] if any(data for data, _ in parts) else []
        for number, search in enumerate(self._searches, 1):
            if self.normal is not None and number == len(self._searches):
                pieces = [
                    ([(self._normal_form(data), is_open) for data, is_open in some] if i is None else some, i)
                    for some, i in pieces
                ]
            pieces = [
                found for some, i in pieces for found in (search.split_parts(some) if i is None else ((some, i),))
            ]
        return [(b"".join(data for data, _ in some), i) for some, i in pieces]

    def split_with_sources(self, data):
        """As `split`, with the places of the characters of each piece: `(bytes, id, sources)`, code points of `data`."""
        if self.normal is None:
            return _placed(self.split(data), np.arange(len(data)))
        first = self._searches[0].split(data) if len(self._searches) == 2 else [(data, None)]
        found = []
        for piece, i, sources in _placed(first, np.arange(len(data))):
            if i is not None:
                found.append((piece, i, sources))
                continue
            text, places = self.normal.with_sources(piece.decode("utf-8"))
            pieces = self._searches[-1].split(text.encode("utf-8"))
            found += _placed(pieces, sources[np.asarray(places, np.int64)])
        return found

    def _normal_form(self, data):
        return self.normal.normalize(data.decode("utf-8")).encode("utf-8")


class _Search:
    def __init__(self, entries):
        self._entries = {entry["content"].encode("utf-8"): entry for entry in entries}
        longest_first = sorted(self._entries, key=lambda content: (-len(content), content))
        self._pattern = re.compile(b"|".join(map(re.escape, longest_first)))

    def split(self, data):
        return ((data[start:end], i) for start, end, i in self._spans(data, self._pattern.finditer(data)))

    def split_parts(self, parts):
        data, place, runs = b"".join(some for some, _ in parts), 0, []
        for some, is_open in parts:
            if is_open and runs and runs[-1][1] == place:  # a token may lie across open parts in a row
                runs[-1][1] = place + len(some)
            elif is_open:
                runs.append([place, place + len(some)])
            place += len(some)
        matches = (match for start, end in runs for match in self._pattern.finditer(data, start, end))
        starts = [0, *itertools.accumulate(len(some) for some, _ in parts)]
        return [(_cut(parts, starts, start, end), i) for start, end, i in self._spans(data, matches)]

    def _spans(self, data, matches):
        """Yields `(start, end, id)` of all of `data`, the id None between the tokens that `matches` found."""
        done = 0
        for match in matches:
            start, end = match.span()
            entry = self._entries[match[0]]
            if entry["lstrip"]:
                start = done + len(_stripped(data[done:start], str.rstrip))
            if start > done:
                yield done, start, None
            if entry["rstrip"]:
                end = len(data) - len(_stripped(data[end:], str.lstrip))
            yield start, end, entry["id"]
            done = end
        if done < len(data):
            yield done, len(data), None


def _cut(parts, starts, start, end):
    """What lies from byte `start` to `end` of `parts`, `(bytes, open)` that begin at `starts`, as such a list."""
    number, found = bisect.bisect_right(starts, start) - 1, []
    while starts[number] < end:
        data, is_open = parts[number]
        found.append((data[max(0, start - starts[number]) : end - starts[number]], is_open))
        number += 1
    return found


def _placed(pieces, sources):
    """`pieces`, `(bytes, id)`, one after the other, each with the part of `sources` that belongs to its characters."""
    placed, place = [], 0
    for piece, i in pieces:
        end = place + len(piece.decode("utf-8", "replace"))
        placed.append((piece, i, sources[place:end]))
        place = end
    return placed


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
