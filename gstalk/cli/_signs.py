"""Signs of life: what a process tells of itself while its event loop turns, and how long it has told nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import gevent

from gstalk.cli._output import tell
from gstalk.connection.clock import monotonic

__all__ = [
    "OVER",
    "PATCHED",
    "READY",
    "STILL",
    "TURNED",
    "UNPATCHED",
    "Heartbeat",
    "Pulse",
    "Silence",
    "ToParent",
    "UntouchableError",
    "period",
]

# What a worker process says to its parent, a byte each.
PATCHED, UNPATCHED = b"P", b"U"  # its handler is loaded; is the process monkey-patched?
READY = b"R"  # it is connected, or has tried for a while
TURNED = b"."  # its event loop has turned
OVER = b"O"  # it works no more, and ends; its event loop has no reason to turn
STILL = b"S"  # its event loop has not turned for so long that it is to be killed; it has told where it stands

TICK = 0.25  # seconds between two turns that are counted
PERIOD = 1.0  # seconds between two signs, at most


def period(*limits: float | None) -> float:
    """Seconds between two signs of life, for somebody who misses them after one of these times."""
    return min([PERIOD, *(limit / 4 for limit in limits if limit)])


class Silence:
    """How long nothing was heard, measured by somebody who looks again and again.

    While the looker itself stood still (a laptop that sleeps, a process that is stopped, a machine without a free
    processor), it could not have heard anything: of such a time no more than two of its periods count.

    Args:
        now: The time.
        period: Seconds between two looks.

    Attributes:
        seconds: The silence, as of the last look.
    """

    def __init__(self, now: float, period: float) -> None:
        self.seconds = 0.0
        self._looked = now
        self._longest = 2 * period

    def look(self, now: float, is_heard: bool) -> float:
        """Look, and return the seconds of silence; `is_heard`: since the last look there was something."""
        passed, self._looked = now - self._looked, now
        self.seconds = 0.0 if is_heard else self.seconds + min(passed, self._longest)
        return self.seconds


class Pulse:
    """Counts the turns of the event loop, and gives signs while it turns.

    Args:
        period: Seconds between two signs.
        signs: What is called each time.

    Attributes:
        turns: So many turns were counted.
    """

    def __init__(self, period: float, signs: Sequence[Callable[[], object]]) -> None:
        self.tick = min(TICK, period)
        self.turns = 0
        self._period = period
        self._signs = signs

    def run(self) -> None:
        """Beat for ever: to be run in a greenlet. The copy that a forked child has of it ends, and says nothing."""
        due = float("-inf")
        process = os.getpid()
        while os.getpid() == process:
            self.turns += 1
            now = monotonic()
            if now >= due:
                due = now + self._period - self.tick / 2  # the turn that is nearest
                for sign in self._signs:
                    sign()
            gevent.sleep(self.tick)


class UntouchableError(Exception):
    """The heartbeat's file can't be touched; the message says why."""


class Heartbeat:
    """A file whose age tells whether the event loop turns. It is made when that turns for the first time.

    Raises:
        UntouchableError: It can't be made or touched: that is better known before.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._is_told = False
        place = path if os.path.exists(path) else os.path.dirname(path) or "."
        if not os.access(place, os.W_OK):
            why = "permission denied" if os.path.exists(place) else f"there is no directory {place}"
            raise UntouchableError(f"heartbeat {path} can't be touched: {why}")

    def __call__(self) -> None:
        """Touch it. What fails later is told once: whoever looks at the file will notice."""
        try:
            self._touch()
        except OSError as error:
            if not self._is_told:
                self._is_told = True
                tell(f"heartbeat {self._path} can't be touched: {error.strerror}")

    def _touch(self) -> None:
        try:
            os.utime(self._path)
        except FileNotFoundError:
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o666))


class ToParent:
    """The way from a worker process to its parent, which may be gone, or not listen. What it forks has no say.

    Args:
        fd: The descriptor that the parent has handed on: a socket that comes to its end with the parent.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._process = os.getpid()
        os.set_inheritable(fd, False)
        os.set_blocking(fd, False)

    def say(self, word: bytes) -> bool:
        """Say a word, from any thread; nothing waits for a parent that stands still. Returns whether it is there."""
        if os.getpid() != self._process:
            return True
        try:
            os.write(self._fd, word)
        except BlockingIOError:
            pass  # it has enough to read
        except OSError:
            return False
        return True
