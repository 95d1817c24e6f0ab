"""A parent of several worker processes: it starts them, again when they die, and passes signals on."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Any

import gevent
from gevent import subprocess
from gevent.event import Event

from gstalk.cli._load import WRONG
from gstalk.cli._output import tell
from gstalk.cli._worker import AGAIN
from gstalk.connection.clock import monotonic

__all__ = ["Processes"]

LONG = 10.0  # seconds: a process that lived longer is no part of a series of failures
PAUSES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # seconds before a process is started anew, in such a series
AT_ONCE = 5.0  # seconds that processes told to end at once get for it


class Processes:
    """So many processes, until there is a reason to end.

    Args:
        command: What to start; a descriptor is added that comes to its end with this parent.
        number: How many.
        burst: Whether one that ends well, or fails by itself, has done its part.
        grace: Seconds after a first signal until what still runs is killed.
    """

    def __init__(self, command: Sequence[str], number: int, burst: bool, grace: float) -> None:
        self._command = command
        self._number = number
        self._burst = burst
        self._grace = grace
        self._children: set[Any] = set()
        self._codes: list[int] = [0]
        self._asked = 0
        self._stopping = Event()

    def run(self) -> int:
        """Keep the processes going until they are to stop; returns the exit code."""
        for number, function in {
            signal.SIGTERM: self._ask,
            signal.SIGINT: self._ask,
            signal.SIGQUIT: self._end,
            signal.SIGUSR1: self._pass_on_look,
        }.items():
            gevent.signal_handler(number, function)
        self._life, self._mine = os.pipe()
        gevent.joinall([gevent.spawn(self._keep) for _ in range(self._number)], raise_error=True)
        tell(f"pid {os.getpid()} stopped: all processes have ended")
        return 1 if self._asked > 1 else max(self._codes)

    def _keep(self) -> None:
        """Keep one process going."""
        failures = 0
        while not self._stopping.is_set():
            began = monotonic()
            code, who = self._run_one()
            if self._stopping.is_set():
                self._codes.append(0 if code in (AGAIN, -signal.SIGTERM) else abs(code) and 1)
                return
            if code == AGAIN:
                continue
            if code == WRONG or (self._burst and code >= 0):
                self._codes.append(code)
                if code == WRONG:
                    self._ask()
                return
            failures = 0 if monotonic() - began > LONG else failures + 1
            pause = PAUSES[min(failures, len(PAUSES) - 1)]
            how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
            tell(f"{who} {how}; the next one starts in {pause:g} s")
            self._stopping.wait(pause)

    def _run_one(self) -> tuple[int, str]:
        """Start a process and wait for its end; returns its exit code, and its name."""
        try:
            child = subprocess.Popen([*self._command, "--parent", str(self._life)], pass_fds=(self._life,))
        except OSError as error:
            return 1, f"a process that could not be started ({error.strerror})"
        self._children.add(child)
        tell(f"process {child.pid} started")
        try:
            if self._stopping.is_set():  # since it was asked for
                child.send_signal(signal.SIGTERM)
            return child.wait(), f"process {child.pid}"
        finally:
            self._children.discard(child)

    def _ask(self) -> None:
        self._asked += 1
        if self._asked > 1:
            self._end()
            return
        tell(f"pid {os.getpid()} stops {len(self._children)} processes")
        self._stopping.set()
        self._send(signal.SIGTERM)
        gevent.spawn_later(self._grace, self._send, signal.SIGKILL)

    def _end(self) -> None:
        self._asked = max(self._asked + 1, 2)
        self._stopping.set()
        self._send(signal.SIGQUIT)
        gevent.spawn_later(AT_ONCE, self._send, signal.SIGKILL)

    def _pass_on_look(self) -> None:
        self._send(signal.SIGUSR1)

    def _send(self, number: int) -> None:
        for child in list(self._children):
            child.send_signal(number)
