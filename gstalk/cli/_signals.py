"""What signals mean to a worker where that hangs on more than their number, and how they outlive a new beginning."""

from __future__ import annotations

import os
import signal

__all__ = ["Terminal", "hold_signals", "is_hang_up_heard", "let_signals_through"]

HANDLED = {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1}


class Terminal:
    """The terminal that a process was started from, if there is one; it may go."""

    def __init__(self) -> None:
        self._was_there = _is_there()

    @property
    def is_gone(self) -> bool:
        """Whether it was closed: then SIGHUP means the end, as for other programs."""
        return self._was_there and not _is_there()


def _is_there() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def is_hang_up_heard() -> bool:
    """Whether SIGHUP is to mean anything: `nohup` starts programs with the signal ignored."""
    return signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN


def hold_signals() -> None:
    """Have signals wait until `let_signals_through`, also over an `exec`: until then they would kill."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)


def let_signals_through() -> None:
    """There are handlers; what has waited comes now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
