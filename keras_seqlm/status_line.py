"""One line that tells how far long work is: drawn anew in its place in a terminal, plain lines where there is none."""

import os
import sys
import unicodedata

GAP = "  "  # between two parts
CLEAR = "\r\x1b[K"


class StatusLine:
    """The line at the bottom of a terminal.

    It never grows wider than the terminal is at that moment: what is left out first is what matters least.

    Args:
        stream: where it is drawn; default `sys.stderr`, whatever that is when the first line comes.

    Example:

    >>> line = StatusLine(sys.stdout)
    >>> line.keep(["step 3/9", "loss 2.5"])
    step 3/9  loss 2.5
    """

    def __init__(self, stream=None):
        self._given = stream
        self._open = False

    @property
    def stream(self):
        """Where it is drawn."""
        return sys.stderr if self._given is None else self._given

    @property
    def redraws(self):
        """Whether it can be drawn anew in its place."""
        return is_screen(self.stream)

    def draw(self, parts, importance=None):
        """Draw it in its place; only for a stream that `redraws`.

        Args:
            parts: texts, in the order in which they stand.
            importance: for each part a number, higher for what stays longer; default: the first ones stay.
        """
        self._open = True
        self._write(self._fitted(parts, importance))

    def keep(self, parts, importance=None):
        """Write a line that stays: within the width of a terminal, whole elsewhere."""
        self._open = False
        self._write(f"{self._fitted(parts, importance)}\n" if self.redraws else f"{GAP.join(parts)}\n")

    def _fitted(self, parts, importance):
        # The last column stays free: a terminal whose cursor waits behind it would clear what stands there.
        return f"\r{fitted(parts, columns_of(self.stream) - 1, importance)}\x1b[K"

    def _write(self, text):  # in one piece, so that nothing comes between
        self.stream.write(text)
        self.stream.flush()

    def clear(self):
        """Take it away."""
        if self._open:
            self.stream.write(CLEAR)
            self.stream.flush()
            self._open = False


def is_screen(stream):
    """Whether a stream is a terminal that can go back in a line."""
    return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def columns_of(stream):
    """How wide the terminal of a stream is: what it says itself, else COLUMNS, else 80."""
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):  # no terminal, or no file at all
        columns = 0
    told = os.environ.get("COLUMNS", "")
    return columns or (int(told) if told.isdigit() and int(told) else 80)


def fitted(parts, width, importance=None):
    """The parts of a line that fit into a width; the first of them is cut where not even that does.

    >>> fitted(["step 3/9", "loss 2.5", "0:01:00 left"], 22, importance=[3, 1, 2])
    'step 3/9  0:01:00 left'
    """
    importance = importance or range(len(parts), 0, -1)
    kept = list(range(len(parts)))
    while len(kept) > 1 and width_of(GAP.join(parts[i] for i in kept)) > width:
        kept.remove(min(kept, key=lambda i: importance[i]))
    line = GAP.join(parts[i] for i in kept).replace("\n", " ")
    while width_of(line) > width:
        line = line[:-1]
    return line


def width_of(text):
    """How many columns a text takes: two for wide characters, none for those that join the one before.

    >>> width_of("abc"), width_of("日本"), width_of("e\u0301")
    (3, 4, 1)
    """
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )
