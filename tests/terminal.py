"""A terminal for tests: a pseudo terminal that a command or a stream writes to, and the screen that one would see."""

import fcntl
import os
import struct
import subprocess
import termios
import threading

import pyte

ROWS = 1000  # nothing scrolls away


class Terminal:
    """A terminal so many columns wide.

    `stream` is what a program writes to. `lines()` closes it and gives what stands on the screen; `width` is how many
    columns the widest line would have taken, had the terminal had room for it.
    """

    def __init__(self, columns):
        self.columns = columns
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
        self.stream = open(slave, "w", encoding="utf-8")
        self.written = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        while True:
            try:
                piece = os.read(self._master, 65536)
            except OSError:  # EIO: nobody has the other end any more
                return
            if not piece:
                return
            self.written += piece

    def run(self, command, **environment):
        """Run a command in it, and wait for it; returns its exit code."""
        environment = {**os.environ, "TERM": "xterm-256color", **environment}
        environment.pop("COLUMNS", None)
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), self.stream)
        return subprocess.run(command, env=environment, timeout=120, **streams).returncode

    def lines(self):
        """The lines on the screen at the end, without the blanks at their ends; the empty ones below all are left out."""
        if not self.stream.closed:
            self.stream.close()
            self._reader.join()
            os.close(self._master)
        return _screen(self.written, self.columns)

    @property
    def width(self):
        """Of the widest line, if lines were never broken."""
        return max((len(line) for line in self.wide_lines()), default=0)

    def wide_lines(self):
        """What would stand on a screen wide enough for all."""
        self.lines()
        return _screen(self.written, 1000)


def _screen(written, columns):
    screen = pyte.Screen(columns, ROWS)
    pyte.ByteStream(screen).feed(written)
    lines = [line.rstrip() for line in screen.display]
    while lines and not lines[-1]:
        lines.pop()
    return lines
