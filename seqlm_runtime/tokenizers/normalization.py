"""Normalisation in steps, as Hugging Face's pipelines have it, and where each character of the result comes from.

A step is a list of its name and arguments:

- `["charsmap"]`: the replacements of SentencePiece's compiled character map;
- `["strip", left, right]`: white space goes from the sides that are true;
- `["trim"]`: spaces go from both sides;
- `["collapse", text]`: two spaces or more become `text`;
- `["replace", old, new]`;
- `["prepend", text]`: before a text that is not empty.

Then the words: `["metaspace", scheme, split]` writes spaces as U+2581, puts one before a text that does not begin with it
(`scheme` is `"always"`, `"first"`, at the start of the whole text only, or `"never"`) and, if `split` is true, begins a
word at each; `["white_space"]` before it cuts at white space, which goes.
"""

import re

from seqlm_runtime.tokenizers.added_tokens import WHITE_SPACE

SPACE_MARK = "\u2581"
_ARGUMENTS = {
    "charsmap": (),
    "strip": (bool, bool),
    "trim": (),
    "collapse": (str,),
    "replace": (str, str),
    "prepend": (str,),
    "white_space": (),
    "metaspace": (str, bool),
}
SCHEMES = ("always", "first", "never")
_WHITE = re.compile(f"[{WHITE_SPACE}]+")
_WORD = re.compile(f"{SPACE_MARK}[^{SPACE_MARK}]*|[^{SPACE_MARK}]+")
_SAFE_WORD = re.compile(f"{SPACE_MARK}+[^{SPACE_MARK}]*|[^{SPACE_MARK}]+")


class Normalizer:
    """The steps of a tokenizer.

    Args:
        steps: list of steps.
        charsmap: a `Charsmap`.
        splits_at_marks: whether a text may be cut before a U+2581 that follows another character, because nothing that
            the model knows goes beyond. It changes no id and saves time.

    Raises:
        ValueError: a step does not exist, or has other arguments.
    """

    def __init__(self, steps, charsmap, splits_at_marks=False):
        self.steps = [_checked(step) for step in _list(steps)]
        names = [name for name, *_ in self.steps]
        if "metaspace" in names[:-1] or "white_space" in names and names[-2:] != ["white_space", "metaspace"]:
            raise ValueError("steps: expected white_space right before metaspace, and metaspace at the end.")
        self._charsmap, self._splits = charsmap, splits_at_marks
        self.scheme, self.splits_words = (self.steps[-1][1:]) if names[-1:] == ["metaspace"] else (None, False)
        self.cuts_at_white_space = "white_space" in names

    def words(self, text, first):
        """The words of `text`, as the model reads them.

        Args:
            text: str.
            first: whether it stands at the start of the whole text.
        """
        for step in self._changes():
            text = _change(step, text, self._charsmap)
        parts = [part for part in _WHITE.split(text) if part] if self.cuts_at_white_space else [text]
        return [word for part in parts for word in self._split(self._marked(part, first))]

    def words_with_sources(self, text, first):
        """As `words`, each with the places of its characters: `(word, starts, ends)`, code points of `text`."""
        text, starts, ends = text, list(range(len(text))), list(range(1, len(text) + 1))
        for step in self._changes():
            text, starts, ends = _change_with_sources(step, text, starts, ends, self._charsmap)
        if self.cuts_at_white_space:
            parts = [match.span() for match in re.finditer(f"[^{WHITE_SPACE}]+", text)]
        else:
            parts = [(0, len(text))]
        found = []
        for start, end in parts:
            part = text[start:end]
            word_starts, word_ends = starts[start:end], ends[start:end]
            marked = self._marked(part, first)
            if len(marked) > len(part):
                word_starts, word_ends = word_starts[:1] + word_starts, word_ends[:1] + word_ends
            place = 0
            for word in self._split(marked):
                found.append((word, word_starts[place : place + len(word)], word_ends[place : place + len(word)]))
                place += len(word)
        return found

    def _changes(self):
        return [step for step in self.steps if step[0] not in ("metaspace", "white_space")]

    def _marked(self, text, first):
        if self.scheme is None or not text:
            return text
        text = text.replace(" ", SPACE_MARK)
        bare = not text.startswith(SPACE_MARK)
        return SPACE_MARK + text if bare and (self.scheme == "always" or self.scheme == "first" and first) else text

    def _split(self, text):
        if self.splits_words:
            return _WORD.findall(text)
        if self._splits:
            return _SAFE_WORD.findall(text)
        return [text] if text else []


def _change(step, text, charsmap):
    name, *arguments = step
    if name == "charsmap":
        return charsmap.replace(text)
    if name == "replace":
        return text.replace(*arguments)
    if name == "prepend":
        return arguments[0] + text if text else text
    for pattern, new in _patterns(step):
        text = re.sub(pattern, new.replace("\\", r"\\"), text)
    return text


def _patterns(step):
    """A step as `(pattern, replacement)`, one after the other."""
    name, *arguments = step
    if name == "strip":
        sides = ((rf"\A[{WHITE_SPACE}]+", arguments[0]), (rf"(?<![{WHITE_SPACE}])[{WHITE_SPACE}]+\Z", arguments[1]))
        return [(pattern, "") for pattern, wanted in sides if wanted]
    if name == "trim":
        return [(r"\A +", ""), (r"(?<! ) +\Z", "")]
    return [(" {2,}", arguments[0])] if name == "collapse" else [(re.escape(arguments[0]), arguments[1])]


def _change_with_sources(step, text, starts, ends, charsmap):
    name, *arguments = step
    if name == "prepend":
        more = len(arguments[0]) if text else 0
        return _change(step, text, charsmap), starts[:1] * more + starts, ends[:1] * more + ends
    if name == "charsmap":
        replaced = [
            # A new character stands for the old one of its place, the last one for all that are left.
            (start, end, new, [min(start + number, end - 1) for number in range(len(new))])
            for start, end, new in charsmap.spans(text)
        ]
        return _replaced(text, starts, ends, replaced)
    for pattern, new in _patterns(step):
        replaced = [
            (match.start(), match.end(), new, [match.end() - 1] * len(new)) for match in re.finditer(pattern, text)
        ]
        text, starts, ends = _replaced(text, starts, ends, replaced)
    return text, starts, ends


def _replaced(text, starts, ends, changes):
    """Makes `changes`, a list of `(start, end, new text, source of each new character)` in order."""
    parts, new_starts, new_ends, done = [], [], [], 0
    for start, end, new, sources in changes:
        parts += [text[done:start], new]
        new_starts += starts[done:start] + [starts[source] for source in sources]
        new_ends += ends[done:start] + [ends[source] for source in sources]
        done = end
    return "".join(parts) + text[done:], new_starts + starts[done:], new_ends + ends[done:]


def _list(steps):
    if not isinstance(steps, list) or len(steps) > 16:
        raise ValueError("steps: expected a list of at most 16 steps.")
    return steps


def _checked(step):
    if not isinstance(step, list) or not step or not isinstance(step[0], str) or step[0] not in _ARGUMENTS:
        raise ValueError(f"steps: expected one of {', '.join(_ARGUMENTS)}, got {str(step)[:80]}.")
    name, *arguments = step
    if [type(argument) for argument in arguments] != list(_ARGUMENTS[name]):
        raise ValueError(f"steps: {name} does not take {str(arguments)[:80]}.")
    if name == "metaspace" and arguments[0] not in SCHEMES or name == "replace" and not arguments[0]:
        raise ValueError(f"steps: {name} does not take {arguments!r}.")
    return step
