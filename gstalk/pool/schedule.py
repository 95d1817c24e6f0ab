"""What pools decide, without a clock, a socket or chance of their own: `now` and random numbers are arguments.

- `Backoff`: when a connection is dialed again.
- `Health`: whether puts may go to a server.
- `judge`: whether a put that failed may be tried again, and what its failure says of the server.
- `WatchList`: which tubes a Consumer watches.
- `Asking`: which connection of a Consumer asks for how many jobs, who waits on its server, and who is called back.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from gstalk.errors import (
    BadFormatError,
    BuriedError,
    DisconnectedError,
    DrainingError,
    ExpectedCrlfError,
    GstalkError,
    JobTooBigError,
    NotIgnoredError,
    OutOfMemoryError,
    ProtocolError,
    PutTimeoutError,
    UnknownCommandError,
)

__all__ = ["ALONE", "SILENT", "Action", "Asking", "Backoff", "Health", "Judgement", "Lane", "WatchList", "judge"]

FIRST_RETRY = 0.5  # seconds: the first pauses after a loss are random parts of this, the next ones of more and more
SHORTEST = 0.1  # of a pause's longest: all but the first take at least so much
ALONE = 5.0  # seconds that a server which took no job is left alone
MOST_MAYBES = 3  # tries of one put that may have stored its job

FIRST_PAUSE, LONGEST_PAUSE = 0.001, 0.05  # between asks that found nothing
QUIET = 0.25  # seconds without a reserve after DEADLINE_SOON
STARVED = 0.03  # seconds without a permit after which one is taken from a wait
RECALL_EVERY = 1.0  # seconds between two recalls of one connection: each costs a dial
OVERDUE = 1.0  # seconds without an answer after which the permits of a connection's asks are used elsewhere
SILENT = 1.0  # a connection that holds jobs says something so often


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
        self.refusal: DrainingError | OutOfMemoryError | None = None
        self.is_usable = True

    def stall(self) -> None:
        self.is_stalled = True
        self.is_usable = False

    def answer(self) -> None:
        """It has answered on a new connection."""
        self.is_stalled = False
        self.is_usable = self.refusal is None

    def refuse(self, error: DrainingError | OutOfMemoryError) -> None:
        self.refusal = error
        self.is_usable = False

    def rest(self) -> None:
        """It was left alone for long enough."""
        self.refusal = None
        self.is_usable = not self.is_stalled


class Judgement(NamedTuple):
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
    if isinstance(error, (DrainingError, OutOfMemoryError)):
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


class Lane:
    """A Consumer's connection, as the schedule sees it. The Consumer keeps `held`, `busy`, `asks` and `waiting`.

    Attributes:
        server: Which server it goes to.
        held: Whether it holds jobs.
        busy: Whether anything else is in flight on it.
        asks: Reserves in flight, each of which holds a permit.
        waiting: Whether its one ask waits on the server.
        overdue: How many of the asks have gone unanswered for too long, and hold no permit any more.
    """

    def __init__(self, server: str) -> None:
        self.server = server
        self.held = False
        self.busy = False
        self.asks = 0
        self.waiting = False
        self.overdue = 0
        self.since = 0.0  # when it last answered, or was asked while nothing was unanswered
        self.hot = False  # its last answer was a job
        self.next_ask = 0.0
        self.pause = FIRST_PAUSE
        self.starved_since = 0.0
        self.asked_at = 0.0
        self.recalled_at = -RECALL_EVERY

    def may_wait(self, now: float) -> bool:
        """Whether a wait on the server would stop nothing behind it, and hasn't just been called back."""
        return not self.held and not self.busy and now >= self.recalled_at + LONGEST_PAUSE

    def is_late(self, now: float) -> bool:
        """Whether it owes an answer for too long, and that has not been noted yet."""
        return self.asks > self.overdue and not self.waiting and now >= self.since + OVERDUE


class Action(NamedTuple):
    """What a Consumer is to do: ask so many `times`, begin a wait, or call a wait back."""

    what: Literal["ask", "wait", "recall"]
    lane: Lane
    times: int = 1


class Asking:
    """Shares the permits, one for each free handler, among the connections.

    A permit is held by a running handler, by an ask in flight, or lent to a reserve that waits on its server. So there
    are never more jobs than handlers. Every server has its turn at least every 50 ms; what is left over goes to the
    connections that find jobs; and while there are as many permits as servers, each server has a wait instead of a
    turn, which costs nothing and hands a job over at once.

    A server that stands still must not keep the others from being served: asks that are unanswered for a second hold
    their permits no longer, and that connection is asked nothing more until it answers. A job that comes so late is
    one too many if its permit is in use by then (`has_room` says so) and goes back at once.
    """

    def __init__(self, permits: int) -> None:
        self.permits = permits
        self.running = 0  # handlers at work, or about to be
        self.lanes: list[Lane] = []

    def decide(self, now: float) -> tuple[list[Action], float]:
        """Say what to do now, and in how many seconds to ask again (infinity: only when something happens)."""
        lanes = self.lanes
        for lane in lanes:
            if lane.is_late(now):
                lane.overdue = lane.asks
        free = self._free()
        actions: list[Action] = []
        again = float("inf")
        servers: dict[str, list[Lane]] = {}
        for lane in lanes:
            servers.setdefault(lane.server, []).append(lane)
        lent = sum(lane.waiting for lane in lanes)
        may_wait = free + lent >= len(servers)

        # Servers without any ask under way come first, the longest neglected of them in front.
        silent = [group for group in servers.values() if not any(lane.asks for lane in group)]
        for group in sorted(silent, key=lambda group: max(lane.asked_at for lane in group)):
            lane = min(group, key=lambda lane: (lane.next_ask, lane.held))
            hot = any(each.hot for each in group)
            idle = next((each for each in group if each.may_wait(now)), None)
            if may_wait and idle is not None and not hot and free > 0:
                actions.append(Action("wait", idle))
                free -= 1
                self._fed(idle, now)
            elif lane.next_ask > now:
                again = min(again, lane.next_ask - now)
            elif free > 0:
                actions.append(Action("ask", lane))
                free -= 1
                self._fed(lane, now)
            else:
                again = min(again, self._starve(lane, now, actions))

        # Then the connections that find jobs get all the others, in equal shares.
        hot_lanes = [lane for lane in lanes if lane.hot and not (lane.waiting or lane.overdue) and lane.next_ask <= now]
        for number, lane in enumerate(hot_lanes):
            share = -(-free // (len(hot_lanes) - number))
            if share > 0:
                actions.append(Action("ask", lane, share))
                free -= share
                self._fed(lane, now)
            if free > 0:
                lane.starved_since = 0.0
            else:  # it has found jobs, and could use more permits than there are
                again = min(again, self._starve(lane, now, actions))
        if free <= 0:  # somebody's may come free
            since = [lane.since for lane in lanes if lane.asks > lane.overdue and not lane.waiting]
            since += [now for action in actions if action.what == "ask"]
            if since:
                again = min(again, min(since) + OVERDUE - now)
        return actions, again

    def has_room(self) -> bool:
        """Tell whether a permit is free: whether a job that comes too late still finds a handler."""
        return self._free() > 0

    def _free(self) -> int:
        return self.permits - self.running - sum(lane.asks - lane.overdue for lane in self.lanes)

    def answered(self, lane: Lane, found: bool, now: float) -> None:
        """Take note of an answer to an ask of this connection."""
        lane.asks -= 1  # `_end_ask`, spelled out for the sake of the hot path
        lane.waiting = False
        lane.since = now
        if lane.overdue:
            lane.overdue -= 1
        lane.hot = found
        if found:
            lane.pause = FIRST_PAUSE
            lane.next_ask = 0.0
        else:
            lane.starved_since = 0.0
            lane.next_ask = now + lane.pause
            lane.pause = min(lane.pause * 2, LONGEST_PAUSE)

    def slice_over(self, lane: Lane, now: float) -> None:
        """A wait ended with nothing, in its time: it may be begun again at once."""
        self._end_ask(lane, now)
        lane.hot = False
        lane.next_ask = 0.0

    def deadline_soon(self, lane: Lane, now: float) -> None:
        """The connection must ask nothing for a while."""
        self._end_ask(lane, now)
        lane.hot = False
        lane.next_ask = now + QUIET

    def watching_changed(self, lane: Lane, now: float) -> None:
        """A wait was called back for its connection to watch other tubes, where jobs may be: it asks at once."""
        self.recalled(lane, now)
        lane.next_ask = now
        lane.pause = FIRST_PAUSE

    def recalled(self, lane: Lane, now: float) -> None:
        """A wait was called back."""
        self._end_ask(lane, now)
        lane.recalled_at = now
        lane.next_ask = now + LONGEST_PAUSE
        lane.pause = LONGEST_PAUSE

    def _end_ask(self, lane: Lane, now: float) -> None:
        lane.asks -= 1
        lane.waiting = False
        lane.since = now
        if lane.overdue:  # answers come in order: the overdue ones first
            lane.overdue -= 1

    def _fed(self, lane: Lane, now: float) -> None:
        lane.asked_at = now
        if not lane.asks:
            lane.since = now
        if not lane.hot:
            lane.starved_since = 0.0

    def _starve(self, lane: Lane, now: float, actions: list[Action]) -> float:
        """A connection that wants to ask finds no permit; after a while it takes one from another server's wait."""
        victims = [each for each in self.lanes if each.waiting and each.server != lane.server]
        if not victims:
            return float("inf")  # a handler must end first
        lane.starved_since = lane.starved_since or now
        victim = min(victims, key=lambda each: each.recalled_at)
        due = max(lane.starved_since + STARVED, victim.recalled_at + RECALL_EVERY)
        if now < due:
            return due - now
        if not any(action.lane is victim for action in actions):
            actions.append(Action("recall", victim))
        return STARVED
