"""So many worker processes that run the same code: started together, kept going, and stopped together."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from typing import NamedTuple

import gevent
from gevent.event import Event

from gstalk.cli._child import Child
from gstalk.cli._load import WRONG
from gstalk.cli._output import tell
from gstalk.cli._worker import AGAIN
from gstalk.connection.clock import monotonic

__all__ = ["Generation", "Plan"]

LONG = 10.0  # seconds: a process that lived longer is no part of a series of failures
PAUSES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # seconds before a process is started anew, in such a series
AT_ONCE = 5.0  # seconds that processes told to end at once get for it


class Plan(NamedTuple):
    """What processes there are to be.

    Attributes:
        command: What to start.
        number: How many.
        burst: Whether one that ends well, or fails by itself, has done its part.
        grace: Seconds after they were told to stop until what still runs is killed.
    """

    command: Sequence[str]
    number: int
    burst: bool
    grace: float


class Generation:
    """Processes that are started anew when they die.

    Args:
        plan: Which processes.
        period: Seconds between two looks at each.
        say: Tells what goes as it should.
        on_loaded: Called when a process has its handler, with whether it is monkey-patched.
        is_trial: Whether it is an attempt, which has failed as soon as a process fails.

    Attributes:
        codes: Exit codes of those whose place stays empty.
        children: The processes.
        is_trial: As above; whoever is content with the attempt sets it to `False`.
        is_stopping: Whether it was told to end.
    """

    def __init__(
        self,
        plan: Plan,
        period: float,
        say: Callable[[str], object],
        on_loaded: Callable[[bool], object],
        is_trial: bool,
    ) -> None:
        self._plan = plan
        self._period = period
        self._say = say
        self._on_loaded = on_loaded
        self.is_trial = is_trial
        self.codes: list[int] = []
        self.children: set[Child] = set()
        self._ready: set[int] = set()  # the places whose process was ready once
        self._has_failed = False
        self._changed = Event()  # whoever waits until all are ready is to look
        self._stopping = Event()

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    def run(self) -> None:
        """Keep the processes going, until all have ended for good."""
        gevent.joinall([gevent.spawn(self._keep, place) for place in range(self._plan.number)], raise_error=True)

    def until_ready(self) -> bool:
        """Wait until each process works; returns `False` if that is in vain."""
        while len(self._ready) < self._plan.number and not self._is_in_vain:
            self._changed.wait()
            self._changed.clear()
        return not self._is_in_vain

    @property
    def _is_in_vain(self) -> bool:
        """Whether not all will work: it was told to end; or it is an attempt, and a process has failed."""
        return self.is_stopping or (self.is_trial and self._has_failed)

    def stop(self) -> None:
        """Have them finish what they have in hand, and end."""
        self._end(signal.SIGTERM, self._plan.grace)

    def end(self) -> None:
        """Have them end at once."""
        self._end(signal.SIGQUIT, AT_ONCE)

    def send(self, number: int) -> None:
        """Send a signal to all."""
        for child in list(self.children):
            child.send_signal(number)

    def _end(self, number: int, grace: float) -> None:
        self._stopping.set()
        self._changed.set()
        self.send(number)
        gevent.spawn_later(grace, self.send, signal.SIGKILL)

    def _keep(self, place: int) -> None:
        """Keep one process going."""
        failures = 0
        while not self.is_stopping:
            began = monotonic()
            code, who = self._run_one(place)
            if self.is_stopping:
                self.codes.append(0 if code in (AGAIN, -signal.SIGTERM) else abs(code) and 1)
                return
            if code == AGAIN:
                self._note_ready(place)
                continue
            how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
            if self.is_trial and code != 0:
                tell(f"{who} {how}")
                self._has_failed = True
                self._changed.set()
                return
            if code == WRONG or (self._plan.burst and code >= 0):
                self.codes.append(code)
                self._note_ready(place)
                if code == WRONG:  # so would the others
                    self.stop()
                return
            failures = 0 if monotonic() - began > LONG else failures + 1
            pause = PAUSES[min(failures, len(PAUSES) - 1)]
            tell(f"{who} {how}; the next one starts in {pause:g} s")
            self._stopping.wait(pause)

    def _run_one(self, place: int) -> tuple[int, str]:
        """Start a process and wait for its end; returns its exit code, and its name."""
        try:
            child = Child(self._plan.command, self._period, self._on_loaded, lambda: self._note_ready(place))
        except OSError as error:
            return 1, f"a process that could not be started ({error.strerror})"
        self.children.add(child)
        self._say(f"process {child.pid} started")
        try:
            if self.is_stopping:  # since it was asked for
                child.send_signal(signal.SIGTERM)
            code = child.wait()
            if code == 1 and self.is_stopping and not child.is_loaded:
                code = 0  # it was told to end before it had begun: no handler was cut off
            return code, f"process {child.pid}"
        finally:
            self.children.discard(child)

    def _note_ready(self, place: int) -> None:
        self._ready.add(place)
        self._changed.set()
