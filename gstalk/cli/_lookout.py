"""A thread of its own that tells what keeps the event loop from turning, while it does.

In the loop's own thread nothing can be told meanwhile: greenlets don't run, and Python calls no signal handler while a
C function runs. This thread runs as long as that function lets go of Python's lock. It touches nothing of gevent, and
uses the standard library as it was before any monkey-patching.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType
from typing import NamedTuple

from gevent.monkey import get_original

from gstalk.cli._book import Book
from gstalk.cli._output import tell
from gstalk.cli._signals import STOPS, is_at_once
from gstalk.cli._signs import STILL, Pulse, Silence, ToParent
from gstalk.connection import forks
from gstalk.connection.clock import monotonic

__all__ = ["Lookout", "Told", "to_tell"]

LONG = 1.0  # seconds that the event loop may stand still without a word
AT_ONCE = 2.0  # seconds that a process told to end at once gets for it


class Told(NamedTuple):
    """What was said, or need not be said."""

    unpatched: bool = False  # that handlers stop each other
    late: bool = False  # that a stop is late
    still: bool = False  # that the process is to be killed


def to_tell(told: Told, silence: float, since_stop: float, limit: float | None) -> Told:
    """Decide what is to be said now, and wasn't yet.

    Args:
        told: What was said.
        silence: Seconds that the event loop has stood still.
        since_stop: Seconds since a signal to stop; less than none, if none came.
        limit: Seconds after which the process is to be killed.
    """
    is_blocked = silence > LONG
    return Told(
        unpatched=is_blocked and not told.unpatched,
        late=is_blocked and since_stop > LONG and not told.late,
        still=limit is not None and silence >= limit and not told.still,
    )


class Lookout:
    """Looks at the pulse, from a thread.

    Args:
        pulse: What counts the turns of the event loop.
        book: The jobs in hand.
        is_patched: Whether the process is monkey-patched; if not, handlers that block are told of, once.
        limit: Seconds after which an event loop that stands still is told of to the parent, which then kills the
            process; `None`: it may stand for ever.
        parent: The parent, if there is one.
    """

    def __init__(
        self, pulse: Pulse, book: Book, is_patched: bool, limit: float | None, parent: ToParent | None
    ) -> None:
        self._pulse = pulse
        self._book = book
        self._told = Told(unpatched=is_patched)
        self._limit = limit
        self._parent = parent
        self._is_over = False
        self._watched = get_original("_thread", "get_ident")()

    def start(self) -> None:
        """Look on, from now until `stop`; to be called in the thread that is looked at, which is the main one."""
        heard, writer = os.pipe()  # signals are heard of here, also while Python's handlers can't be called
        for end in (heard, writer):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        forks.register("signals", self, Lookout.stop)  # a child has the pipe, too, and signals of its own
        get_original("_thread", "start_new_thread")(self._run, (heard, writer))

    def stop(self) -> None:
        """Look no more."""
        self._is_over = True
        with contextlib.suppress(ValueError):  # a child that another thread than the main one has forked
            signal.set_wakeup_fd(-1)

    def _run(self, heard: int, writer: int) -> None:
        try:
            self._look_on(heard)
        finally:
            os.close(heard)
            os.close(writer)

    def _look_on(self, heard: int) -> None:
        wait = get_original("select", "select")
        silence = Silence(monotonic(), self._pulse.tick)
        turns = -1
        stops: list[int] = []
        stopped_at = at_once_at = looked_for_at = float("inf")
        while not self._is_over or at_once_at < float("inf"):  # what runs at Python's end may be late, too
            signals = os.read(heard, 4096) if wait([heard], [], [], self._pulse.tick)[0] else b""
            now, before, turns = monotonic(), turns, self._pulse.turns
            if new_stops := [number for number in signals if number in STOPS]:
                stops += new_stops
                stopped_at = min(stopped_at, now)
                if is_at_once(stops, self._parent is not None):
                    at_once_at = min(at_once_at, now)
            if now - at_once_at >= AT_ONCE:
                # A handler that doesn't let go of the hub can't be killed in it. Its job goes back with our connection.
                os._exit(1)
            if signal.SIGUSR1 in signals:
                looked_for_at = now
            if now - looked_for_at > LONG:
                if self._book.looked_at < looked_for_at - self._pulse.tick:  # Python's handler has not been called
                    tell(f"pid {os.getpid()}: " + "\n".join(self._book.look(self._frame())))
                looked_for_at = float("inf")
            seconds = silence.look(now, turns != before)
            new = to_tell(self._told, seconds, now - stopped_at, self._limit)
            if any(new) and not self._is_over:
                self._told = Told(*(old or one for old, one in zip(self._told, new, strict=True)))
                self._tell(new, seconds, self._frame())

    def _frame(self) -> FrameType | None:
        """Where the thread of the event loop is."""
        return sys._current_frames().get(self._watched)

    def _tell(self, new: Told, seconds: float, frame: FrameType | None) -> None:
        me, kept = f"pid {os.getpid()}", f"for {seconds:.1f} s: {self._book.whereabouts(frame)}"
        if new.late:
            tell(f"{me} can't stop yet: its event loop is blocked {kept}")
        if new.unpatched:
            tell(
                f"{me} is not monkey-patched (--patch): one handler stops all others; the event loop is blocked {kept}"
            )
        if new.still:
            first, *rest = self._book.look(frame)
            tell("\n".join([f"{me}: its event loop is blocked {kept}; {first}", *rest]))
            if self._parent is None or not self._parent.say(STILL):
                os._exit(1)  # there is nobody who would do it
