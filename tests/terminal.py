"""A terminal for tests: a pseudo terminal that a command or a stream writes to, and the screen that one would see."""

import fcntl
import os
import struct
import subprocess
import termios
import threading

import pyte

ROWS, WIDE = 1000, 300  # nothing scrolls away, and nothing is broken


class Terminal:
    """A terminal so many columns wide.

    `stream` is what a program writes to. `lines()` closes it and gives what stands on the screen; `width` is how many
    columns the widest line would take, had the terminal room for it.
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
        """The lines on the screen at the end, without the blanks at their ends and the empty ones below all."""
        if not self.stream.closed:
            self.stream.close()
            self._reader.join()
            os.close(self._master)
        return ["".join(cells) for cells in _screen(self.written, self.columns)]

    def wide_lines(self):
        """What would stand on a screen wide enough for all."""
        self.lines()
        return ["".join(cells) for cells in _screen(self.written, WIDE)]

    @property
    def width(self):
        """Of the widest line there, in columns; a line that was drawn over counts as it is at the end."""
        self.lines()
        return max(map(len, _screen(self.written, WIDE)), default=0)


def _screen(written, columns):
    """The cells of each line; a wide character has two, of which the second is empty."""
    screen = pyte.Screen(columns, ROWS)
    pyte.ByteStream(screen).feed(written)
    lines = []
    for place in range(max(screen.buffer, default=-1) + 1):
        row = screen.buffer[place]
        cells = [row[column].data for column in range(max(row, default=-1) + 1)]
        while cells and cells[-1] == " ":
            cells.pop()
        lines.append(cells)
    while lines and not lines[-1]:
        lines.pop()
    return lines
