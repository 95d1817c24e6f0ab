"""What pools decide, without a clock, a socket or chance of their own: `now` and random numbers are arguments.

- `Backoff`: when a connection is dialed again.
- `Health`: whether puts may go to a server.
- `judge`: whether a put that failed may be tried again, and what its failure says of the server.
- `WatchList`: which tubes a Consumer watches.
- `Asking`: which connection of a Consumer asks for how many jobs, who waits on its server, and whose wait is recalled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

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
from gstalk.protocol.pauses import FIRST_PAUSE, LONGEST_PAUSE, QUIET, longer

__all__ = [
    "ALONE",
    "SILENT",
    "Action",
    "Asking",
    "Backoff",
    "Decision",
    "Health",
    "Judgement",
    "Source",
    "WatchList",
    "judge",
]

FIRST_RETRY = 0.5  # seconds: the first pauses after a loss are random parts of this, the next ones of more and more
SHORTEST = 0.1  # of a pause's longest: all but the first take at least so much
ALONE = 5.0  # seconds that a server which took no job is left alone
MOST_MAYBES = 3  # tries of one put that may have stored its job

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


class Source:
    """A Consumer's connection, as the schedule sees it: jobs come from it. `Asking` alone changes what isn't public.

    Attributes:
        server: Which server it goes to.
        held: Whether it holds jobs; the Consumer notes that.
        busy: Whether anything else is in flight on it; as `held`.
        asks: Reserves in flight, each of which holds a permit.
        waiting: Whether its one ask waits on the server.
        overdue: How many of the asks have gone unanswered for too long, and hold no permit any more.
        since: When it last answered, or was asked while nothing was unanswered.
        hot: Its last answer was a job.
        next_ask: Before this moment it is not asked.
        pause: Seconds until it is asked again when an ask has found nothing.
        starved_since: Since when it finds no permit; 0: it does, or wants none.
        asked_at: When it was asked last.
        recalled_at: When its wait was recalled last.
    """

    def __init__(self, server: str) -> None:
        self.server = server
        self.held = False
        self.busy = False
        self.asks = 0
        self.waiting = False
        self.overdue = 0
        self.since = 0.0
        self.hot = False
        self.next_ask = 0.0
        self.pause = FIRST_PAUSE
        self.starved_since = 0.0
        self.asked_at = 0.0
        self.recalled_at = -RECALL_EVERY

    def may_wait(self, now: float) -> bool:
        """Whether a wait on the server would stop nothing behind it, and hasn't just been recalled."""
        return not self.held and not self.busy and now >= self.recalled_at + LONGEST_PAUSE

    def is_late(self, now: float) -> bool:
        """Whether it owes an answer for too long, and that has not been noted yet."""
        return self.asks > self.overdue and not self.waiting and now >= self.since + OVERDUE


class Action(NamedTuple):
    """What a Consumer is to do: ask so many `times`, begin a wait, or recall one."""

    what: Literal["ask", "wait", "recall"]
    source: Source
    times: int = 1


class Decision:
    """What is to be done with so many free permits. Nothing but this object changes while it is made.

    Attributes:
        actions: What to do now.
        again: Seconds until the next decision; infinity: only when something happens.
        starved: Sources that want to ask and find no permit, though a wait has one.
        satisfied: Sources that have found jobs, and have all the permits that they can use.
    """

    __slots__ = ("_free", "_now", "_sources", "actions", "again", "satisfied", "starved")

    def __init__(self, sources: Sequence[Source], free: int, now: float) -> None:
        self.actions: list[Action] = []
        self.again = float("inf")
        self.starved: list[Source] = []
        self.satisfied: list[Source] = []
        self._sources = sources
        self._free = free
        self._now = now
        self._give_turns()
        self._share_the_rest()
        if self._free <= 0:
            self._await_late_ones()

    def _give_turns(self) -> None:
        """Servers that owe no answer come first, the longest neglected of them in front: a wait, or else an ask."""
        servers: dict[str, list[Source]] = {}
        for source in self._sources:
            servers.setdefault(source.server, []).append(source)
        now = self._now
        may_wait = self._free + sum(source.waiting for source in self._sources) >= len(servers)
        silent = [group for group in servers.values() if not any(source.asks for source in group)]
        for group in sorted(silent, key=lambda group: max(source.asked_at for source in group)):
            source = min(group, key=lambda source: (source.next_ask, source.held))
            idle = next((each for each in group if each.may_wait(now)), None)
            if may_wait and idle is not None and self._free > 0 and not any(each.hot for each in group):
                self._use("wait", idle)
            elif source.next_ask > now:
                self.again = min(self.again, source.next_ask - now)
            elif self._free > 0:
                self._use("ask", source)
            else:
                self._starve(source)

    def _share_the_rest(self) -> None:
        """Sources that find jobs get all that is left, in equal shares."""
        now = self._now
        hot = [
            each for each in self._sources if each.hot and not (each.waiting or each.overdue) and each.next_ask <= now
        ]
        for number, source in enumerate(hot):
            share = -(-self._free // (len(hot) - number))
            if share > 0:
                self._use("ask", source, share)
            if self._free > 0:
                self.satisfied.append(source)
            else:  # it has found jobs, and could use more permits than there are
                self._starve(source)

    def _await_late_ones(self) -> None:
        """A permit comes free when an ask that has one is overdue."""
        since = [each.since for each in self._sources if each.asks > each.overdue and not each.waiting]
        since += [self._now for action in self.actions if action.what == "ask"]
        if since:
            self.again = min(self.again, min(since) + OVERDUE - self._now)

    def _use(self, what: Literal["ask", "wait"], source: Source, permits: int = 1) -> None:
        self.actions.append(Action(what, source, permits))
        self._free -= permits

    def _starve(self, source: Source) -> None:
        """A source that wants to ask finds no permit; after a while it takes one from another server's wait."""
        victims = [each for each in self._sources if each.waiting and each.server != source.server]
        if not victims:
            return  # a handler must end first
        self.starved.append(source)
        now = self._now
        victim = min(victims, key=lambda each: each.recalled_at)
        due = max((source.starved_since or now) + STARVED, victim.recalled_at + RECALL_EVERY)
        self.again = min(self.again, due - now if now < due else STARVED)
        if now >= due and not any(action.source is victim for action in self.actions):
            self.actions.append(Action("recall", victim))


class Asking:
    """Shares the permits, one for each free handler, among the connections.

    A permit is held by a running handler, by an ask in flight, or lent to a reserve that waits on its server. So there
    are never more jobs than handlers. Every server has its turn at least every 50 ms; what is left over goes to the
    connections that find jobs; and while there are as many permits as servers, each server has a wait instead of a
    turn, which costs nothing and hands a job over at once.

    A server that stands still must not keep the others from being served: asks that are unanswered for a second hold
    their permits no longer, and that connection is asked nothing more until it answers. A job that comes so late is
    one too many if its permit is in use by then (`has_room` says so) and goes back at once.

    Attributes:
        permits: How many there are.
        running: Handlers at work, or about to be; whoever asks for a decision notes that.
        sources: The connections.
    """

    def __init__(self, permits: int) -> None:
        self.permits = permits
        self.running = 0
        self.sources: list[Source] = []

    def decide(self, now: float) -> Decision:
        """Say what is to be done now. Each of its actions is to be carried out, and `began` to be called before."""
        for source in self.sources:
            if source.is_late(now):
                source.overdue = source.asks
        decision = Decision(self.sources, self._free(), now)
        for source in decision.satisfied:
            source.starved_since = 0.0
        for source in decision.starved:
            source.starved_since = source.starved_since or now
        return decision

    def has_room(self) -> bool:
        """Tell whether a permit is free: whether a job that comes too late still finds a handler."""
        return self._free() > 0

    def _free(self) -> int:
        return self.permits - self.running - sum(source.asks - source.overdue for source in self.sources)

    # -- what happens to a source ------------------------------------------------------------------------------

    def began(self, action: Action, now: float) -> None:
        """An ask or a wait is about to be sent."""
        source = action.source
        source.asked_at = now
        if not source.asks:
            source.since = now
        if not source.hot:
            source.starved_since = 0.0
        source.asks += action.times
        source.waiting = action.what == "wait"

    def answered(self, source: Source, found: bool, now: float) -> None:
        """An ask was answered."""
        source.asks -= 1  # `_end_ask`, spelled out for the sake of the hot path
        source.waiting = False
        source.since = now
        if source.overdue:
            source.overdue -= 1
        source.hot = found
        if found:
            source.pause = FIRST_PAUSE
            source.next_ask = 0.0
        else:
            source.starved_since = 0.0
            source.next_ask = now + source.pause
            source.pause = longer(source.pause)

    def slice_over(self, source: Source, now: float) -> None:
        """A wait ended with nothing, in its time: it may be begun again at once."""
        self._end_ask(source, now)
        source.hot = False
        source.next_ask = 0.0

    def deadline_soon(self, source: Source, now: float) -> None:
        """The connection must ask nothing for a while."""
        self._end_ask(source, now)
        source.hot = False
        source.next_ask = now + QUIET

    def recalled(self, source: Source, now: float) -> None:
        """A wait was recalled, since its permit is needed elsewhere, or a command is to go out."""
        self._end_ask(source, now)
        source.recalled_at = now
        source.next_ask = now + LONGEST_PAUSE
        source.pause = LONGEST_PAUSE

    def watching_changed(self, source: Source, now: float) -> None:
        """A wait was recalled for the connection to watch other tubes. Jobs may be in them, so it asks at once."""
        self.recalled(source, now)
        source.next_ask = now
        source.pause = FIRST_PAUSE

    def _end_ask(self, source: Source, now: float) -> None:
        source.asks -= 1
        source.waiting = False
        source.since = now
        if source.overdue:  # answers come in order: the overdue ones first
            source.overdue -= 1
