"""The standard streams of a command: a reader that has gone is no error, and nothing is written into a status line."""

import codecs
import contextlib
import io
import os
import stat
import sys
import threading
import warnings

CLEAR = "\r\x1b[K"


@contextlib.contextmanager
def prepared():
    """Standard output and error as a command writes to them, and warnings as a line; all is as before at the end."""
    before = sys.stdout, sys.stderr, warnings.formatwarning
    errors = [_never_refusing(stream) for stream in before[:2]]
    screen = _Screen()
    sys.stdout, sys.stderr = (_prepared(stream, screen) for stream in before[:2])
    warnings.formatwarning = lambda message, *_: (
        f"{paint('seqlm: warning:', 'yellow')} {' '.join(str(message).split())}\n"
    )
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr, warnings.formatwarning = before
        for stream, kept in zip(before, errors, strict=False):
            if kept is not None:
                stream.reconfigure(errors=kept)


def _never_refusing(stream):
    """Have a stream write `\\xe9` for a character that its encoding lacks; returns what it did before, None for the same."""
    errors = getattr(stream, "errors", None)
    narrow = errors == "surrogateescape" and codecs.lookup(stream.encoding).name != "utf-8"
    if not (errors == "strict" or narrow) or not hasattr(stream, "reconfigure"):
        return None
    stream.reconfigure(errors="backslashreplace")
    return errors


def _prepared(stream, screen):
    try:
        number = stream.fileno()
        kind = os.fstat(number).st_mode
    except (AttributeError, OSError, ValueError):  # closed, or no file: a notebook's, a test's
        return stream
    if stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind):
        stream.flush()
        pipe = io.BufferedWriter(_Pipe(number, "w", closefd=False))
        return io.TextIOWrapper(
            pipe,
            stream.encoding,
            stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
    return _Over(stream, screen) if stream.isatty() else stream


class _Pipe(io.FileIO):
    """A pipe whose reader may go, as `head -1` does: what follows is written to nowhere, and the command ends as it would."""

    def write(self, content):
        try:
            return super().write(content)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(content)


class _Screen:
    """What the streams that are one terminal share: whether a status line stands where the next text would go."""

    def __init__(self):
        self.lock = threading.RLock()
        self.holds_line = False


class _Over:
    """A terminal on which a text takes the place of an unfinished status line, which begins with a carriage return."""

    def __init__(self, stream, screen):
        self._stream, self._screen = stream, screen

    def write(self, text):
        if not text:
            return 0
        with self._screen.lock:
            if self._screen.holds_line and not text.startswith("\r"):
                self._stream.write(CLEAR)
            last = text.rpartition("\n")[2]
            if last.startswith("\r") or "\n" in text or self._screen.holds_line:
                self._screen.holds_line = last.startswith("\r") and last != CLEAR
            self._stream.write(text)
            return len(text)

    def writelines(self, lines):
        for line in lines:
            self.write(line)

    def __getattr__(self, name):
        return getattr(self._stream, name)


def colours(stream):
    """Whether a text for a stream is coloured: NO_COLOR forbids it, FORCE_COLOR asks for it, else a terminal has it."""
    if os.environ.get("NO_COLOR"):
        return False
    if (forced := os.environ.get("FORCE_COLOR")) is not None:
        return forced not in ("", "0")
    return stream is not None and stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


_CODES = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "dim": "2"}


def paint(text, style, stream=None):
    """A text in a style, where the stream (default standard error) takes colours."""
    return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if colours(sys.stderr if stream is None else stream) else text


def say(text):
    """Write a line to standard error."""
    print(text, file=sys.stderr, flush=True)


def say_error(message):
    """Write the line that a command ends with where something is wrong."""
    say(f"{paint('seqlm: error:', 'red')} {message}")
