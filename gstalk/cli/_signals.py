"""What signals mean to a worker where that hangs on more than their number, and how they outlive a new beginning."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection

from gstalk.connection.clock import monotonic

__all__ = ["STOPS", "Terminal", "hold_signals", "is_at_once", "is_hang_up_heard", "let_signals_through"]

STOPS = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}
RECENT = 5.0  # seconds within which SIGHUP follows on a terminal's end
HANDLED = STOPS | {signal.SIGHUP, signal.SIGUSR1}


def is_at_once(stops: Collection[int], has_parent: bool) -> bool:
    """Whether a process that got these signals is to end at once.

    A second SIGTERM or SIGINT means that, and SIGQUIT does. Under a parent both are polite however often they come: a
    terminal or a service manager may send one to all processes, and the parent passes its own on. It sends SIGQUIT when
    it is asked a second time.
    """
    return signal.SIGQUIT in stops or (len(stops) > 1 and not has_parent)


class Terminal:
    """The terminal that a process was started from, if there is one; it may go."""

    def __init__(self) -> None:
        self._seen_at = float("-inf")
        self.look()

    def look(self) -> None:
        """Look whether it is there, now and then."""
        if _is_there():
            self._seen_at = monotonic()

    @property
    def is_closing(self) -> bool:
        """Whether it was there a moment ago: then SIGHUP comes of that, and means the end, as for other programs.

        One that went long ago, and took nothing along, has nothing to do with it.
        """
        return monotonic() - self._seen_at < RECENT and not _is_there()


def _is_there() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def is_hang_up_heard() -> bool:
    """Whether SIGHUP is to mean anything: `nohup` starts programs with the signal ignored."""
    return signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN


def hold_signals(numbers: Collection[int] = HANDLED) -> None:
    """Have signals wait until `let_signals_through`, also over an `exec`: until then they would kill."""
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)


def let_signals_through() -> None:
    """There are handlers; what has waited comes now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
