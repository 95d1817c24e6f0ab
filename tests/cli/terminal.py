"""A program in a pseudo-terminal, and what a person sees there."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
from collections.abc import Sequence
from typing import Any

from gevent import socket, subprocess

from tests.servers import wait_until

_SEQUENCE = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|\x1b[=>78]|\x1b\][^\x07]*\x07")


class Picture:
    """The characters on a screen: as much of a terminal as rich and click use."""

    def __init__(self, columns: int, lines: int) -> None:
        self._columns, self._lines = columns, lines
        self.modes: set[str] = set()
        self.unknown: set[str] = set()
        self._clear()

    def _clear(self) -> None:
        self._cells = [[" "] * self._columns for _ in range(self._lines)]
        self._row = self._column = 0

    @property
    def text(self) -> str:
        return "\n".join("".join(cells).rstrip() for cells in self._cells).rstrip("\n")

    def feed(self, text: str) -> None:
        at = 0
        while at < len(text):
            if (found := _SEQUENCE.match(text, at)) is not None:
                self._obey(found[1] or "", found[2] or "")
                at = found.end()
                continue
            self._put(text[at])
            at += 1

    def _put(self, character: str) -> None:
        if character == "\r":
            self._column = 0
        elif character == "\n":
            self._row += 1
            if self._row == self._lines:
                self._row -= 1
                self._cells = [*self._cells[1:], [" "] * self._columns]
        elif character == "\b":
            self._column = max(self._column - 1, 0)
        elif character.isprintable():
            if self._column == self._columns:
                self._put("\r")
                self._put("\n")
            self._cells[self._row][self._column] = character
            self._column += 1
        elif character != "\x07":
            self.unknown.add(character)

    def _obey(self, text: str, what: str) -> None:
        if text.startswith("?"):
            (self.modes.add if what == "h" else self.modes.discard)(text)
            if text == "?1049":
                self._clear()
            return
        numbers = [int(number or 0) for number in text.split(";")]
        if what == "H":
            self._row, self._column = (max(number - 1, 0) for number in [*numbers, 0][:2])
        elif what == "A":
            self._row = max(self._row - max(numbers[0], 1), 0)
        elif what == "K":
            blank = [" "] * self._columns
            start = 0 if numbers[0] else self._column
            self._cells[self._row][start:] = blank[start:]
        elif what == "J":
            self._clear()
        elif what not in ("m", ""):
            self.unknown.add(f"{text}{what}")


class Terminal:
    """A process whose standard streams are a pseudo-terminal. Also a context manager, which ends it.

    Args:
        command: What to run.
        columns, lines: The terminal's size.
        options: For Popen; a stream that is named here is not the terminal.
    """

    def __init__(self, command: Sequence[str], columns: int = 80, lines: int = 24, **options: Any) -> None:
        self.picture = Picture(columns, lines)
        self.written = b""
        self._master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.settings = termios.tcgetattr(self.slave)
        environment = {**os.environ, **options.pop("env", {}), "TERM": "xterm-256color"}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            environment.pop(name, None)
        streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), self.slave)
        # In a session of its own, whose terminal this is: Ctrl-C then comes as it does from a keyboard.
        self.process: Any = None
        self.process = subprocess.Popen(
            list(command), env=environment, preexec_fn=self._adopt, **{**streams, **options}
        )

    def _adopt(self) -> None:
        os.setsid()
        fcntl.ioctl(self.slave, termios.TIOCSCTTY, 0)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self.slave)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def read(self, patience: float = 0.001) -> str:
        """Take what has been written; returns what is seen now.

        Args:
            patience: Seconds without anything new after which that is all.
        """
        while True:
            try:
                socket.wait_read(self._master, timeout=patience)
                data = os.read(self._master, 65536)
            except (TimeoutError, OSError):
                return self.picture.text
            self.written += data
            self.picture.feed(data.decode())

    def wait_for(self, *texts: str, seconds: float = 20) -> str:
        """Wait until all this is seen."""
        try:
            wait_until(lambda: all(text in self.read() for text in texts), seconds)
        except AssertionError:
            raise AssertionError(f"not all of {texts} is seen in:\n{self.picture.text}") from None
        return self.picture.text

    def finish(self) -> int:
        """Wait for the end; returns the exit code."""
        wait_until(lambda: self.read() is None or self.process.poll() is not None, 20)
        self.read(patience=0.2)  # what it said last may still be on its way
        return int(self.process.returncode)
