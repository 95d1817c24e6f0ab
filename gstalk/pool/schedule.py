"""What pools decide, without a clock, a socket or chance of their own: `now` and random numbers are arguments.

- `Backoff`: when a connection is dialed again.
- `Health`: whether puts may go to a server.
- `judge`: whether a put that failed may be tried again, and what its failure says of the server.
- `WatchList`: which tubes a Consumer watches.

Which of a Consumer's connections ask, and for how many jobs, is decided in `permits`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from gstalk.errors import (
    BadFormatError,
    BuriedError,
    DisconnectedError,
    ExpectedCrlfError,
    GstalkError,
    JobTooBigError,
    NotIgnoredError,
    ProtocolError,
    PutTimeoutError,
    TakesNoJobs,
    UnknownCommandError,
)
from gstalk.records import record

__all__ = [
    "ALONE",
    "Backoff",
    "Health",
    "Judgement",
    "WatchList",
    "judge",
]

FIRST_RETRY = 0.5  # seconds: the first pauses after a loss are random parts of this, the next ones of more and more
SHORTEST = 0.1  # of a pause's longest: all but the first take at least so much
ALONE = 5.0  # seconds that a server which took no job is left alone
MOST_MAYBES = 3  # tries of one put that may have stored its job


class Backoff:
    """The pauses between attempts to connect: random, growing, bounded."""

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._tries = 0

    def pause(self, chance: float) -> float:
        """Seconds before the next attempt; `chance` is random, from 0 to below 1."""
        ceiling = min(FIRST_RETRY * 2.0 ** min(max(self._tries - 1, 0), 30), self._longest)
        self._tries += 1
        # All of a server's clients lose it at once. Pauses from almost nothing to all of the ceiling keep them apart:
        # with half of it for certain they came back in waves, four times as many in some tenths of a second as in
        # others. The second pause is no longer than the first may be, for the sake of a server that is only restarted.
        return ceiling * chance if self._tries == 1 else ceiling * (SHORTEST + (1 - SHORTEST) * chance)

    def reset(self) -> None:
        self._tries = 0


class Health:
    """Whether puts may go to a server.

    Attributes:
        is_stalled: One of its connections made no progress: none is used until it answers again.
        refusal: Its DRAINING or OUT_OF_MEMORY, while it is left alone for that.
        is_usable: Neither of these.
    """

    __slots__ = ("is_stalled", "is_usable", "refusal")

    def __init__(self) -> None:
        self.is_stalled = False
        self.refusal: TakesNoJobs | None = None
        self.is_usable = True

    def stall(self) -> None:
        self.is_stalled = True
        self.is_usable = False

    def answer(self) -> None:
        """It has answered on a new connection."""
        self.is_stalled = False
        self.is_usable = self.refusal is None

    def refuse(self, error: TakesNoJobs) -> None:
        self.refusal = error
        self.is_usable = False

    def rest(self) -> None:
        """It was left alone for long enough."""
        self.refusal = None
        self.is_usable = not self.is_stalled


@record(frozen=True)
class Judgement:
    """What follows from a try to put that failed.

    Attributes:
        again: Another try may follow.
        maybe: This one may have stored the job.
        server: "refuses": it takes no jobs now; "broken": it has broken the protocol, and this put does not ask it
            again; "": nothing.
    """

    again: bool
    maybe: bool
    server: Literal["", "refuses", "broken"] = ""


_FINAL = (BadFormatError, UnknownCommandError, ExpectedCrlfError, JobTooBigError, BuriedError)


def judge(error: GstalkError, maybes: int, others: int, *, once: bool, retry_ambiguous: bool) -> Judgement:
    """Judge a try to put that failed.

    Args:
        error: Why.
        maybes: How many earlier tries of this put may have stored the job.
        others: How many other servers there are that have not broken the protocol for it.
        once: No second try is wanted, or none is possible any more.
        retry_ambiguous: As in `Config`.
    """
    if isinstance(error, PutTimeoutError):  # also where the kernel has not taken it yet: what is in line goes out
        return Judgement(False, True)
    if isinstance(error, _FINAL):
        return Judgement(False, False)
    if isinstance(error, TakesNoJobs):
        return Judgement(not once, False, "refuses")
    if isinstance(error, DisconnectedError) and error.sent == "no":
        return Judgement(not once, False)
    again = not once and retry_ambiguous and maybes + 1 < MOST_MAYBES
    if isinstance(error, ProtocolError):
        return Judgement(again and others > 0, True, "broken")
    return Judgement(again, True)


class WatchList:
    """The tubes that a Consumer watches.

    Attributes:
        tubes: All of them. A change makes another tuple: whether a connection has been told is seen by identity.
    """

    __slots__ = ("tubes",)

    def __init__(self, tubes: Iterable[str]) -> None:
        self.tubes = tuple(tubes)

    def watch(self, tube: str) -> None:
        if tube not in self.tubes:
            self.tubes = (*self.tubes, tube)

    def ignore(self, tube: str) -> None:
        if self.tubes == (tube,):
            raise NotIgnoredError(f"ignore {tube!r}: the last tube watched can't be ignored")
        if tube in self.tubes:
            self.tubes = tuple(each for each in self.tubes if each != tube)

    def since(self, tubes: tuple[str, ...]) -> tuple[list[str], list[str]]:
        """List what a connection that watches these tubes has to watch, and after that what it has to ignore."""
        old, new = set(tubes), set(self.tubes)
        return [tube for tube in self.tubes if tube not in old], [tube for tube in tubes if tube not in new]
