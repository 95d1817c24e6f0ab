"""Which connection of a Consumer asks for how many jobs, which waits on its server, and whose wait is recalled.

A permit stands for a free handler. An ask in flight holds one, and a reserve that waits on its server borrows one, so
there are never more jobs than handlers. With `now` passed in, all of this is a function of what has happened.

What each server gets, by what is known of it:

    found empty, permits for all servers    a wait: it costs nothing, and hands a job over at once
    found empty, fewer permits              a wait while one can be lent, else an ask when its turn has come
    its last answer was a job               the permits that are free, in turn with the others that find jobs: two at
                                            first, one more with each job, until it has nothing
    owes an answer for a second             nothing until it answers; its permits are used elsewhere. Another
                                            connection to it is asked: the line may be dead, and not the server

The bound for each server. Let S be the servers, and W those that have a wait: all of them while the free handlers are
at least as many, else as many as there are free handlers but one. That one is for asking the others, among them those
whose connections all hold jobs, and can't wait. Each of the W hands its job over at once. Each of the others is asked
once in 50 ms, or where S - W is above 15, once in (S - W) / 300 seconds and 50 ms: 280 servers without a wait have
their turn each second, and a process asks 300 times a second at most, however many servers there are. Turns come at the
same moments for all, 20 times a second: what wakes a process costs more than an ask. To this comes the time until a
handler is free; where other servers find jobs, every other permit goes to those whose turn it is. The asks before it
take their time, too: where one has been in line for 0.3 s, since some servers are slow, it gets the permit of a wait,
and in the end as many are asked at a time as there are free handlers. Where a job was found, the next ask goes out at
once. If it finds no permit for 30 ms, it gets that of another server's wait, and one more after each job that is found
with that: a server with many jobs soon has all handlers that are free. Of H servers with many jobs each has its turn
after permits were handed out H times.

A recall costs a dial, so after each of them one permit more is kept from waits (W is less then); half of those are lent
again after each `CALM` seconds without a recall. A wait whose slice is over goes to the server that has had a job last
and has no wait.

Nothing here looks at all servers. What has happened to a server is noted (`_changed`), and it is then put where it
belongs: among those that find jobs, those whose turn has come, those that could wait, or into the heap of those whose
turn comes later. Only when a connection is gone is everything counted anew.
"""

from __future__ import annotations

from collections import OrderedDict
from heapq import heappop, heappush
from itertools import count
from math import ceil
from typing import Literal

from gstalk.protocol.pauses import FIRST_PAUSE, LONGEST_PAUSE, QUIET, REST, longer

__all__ = ["SILENT", "Action", "Asking", "Decision", "Source"]

STARVED = 0.03  # seconds without a permit after which one is taken from a wait
PATIENCE = 0.3  # the same while other asks are in flight, whose permits soon come back
RECALL_EVERY = 1.0  # seconds between two recalls of one connection: each costs a dial
CALM = 10.0  # seconds without a recall after which half of the permits that were kept are lent again
OVERDUE = 1.0  # seconds without an answer after which the permits of a connection's asks are used elsewhere
LATE_EVERY = 0.1  # seconds between two looks for such connections
SILENT = 1.0  # a connection that holds jobs says something so often
RATE = 300.0  # asks a second, of servers that were found empty
BATCH = 16  # permits that are not divided: what is asked for in one write is also answered and deleted together
NEVER = float("inf")


class Source:
    """A Consumer's connection: jobs come from it. `Asking` alone changes what isn't said to be noted by others.

    Attributes:
        server: Which server it goes to.
        held: Whether it holds jobs; others note that. A `JobSource` looks at its connection instead, in `is_idle`.
        busy: Whether anything else is in flight on it; as `held`.
        asks: Reserves in flight, each of which holds a permit.
        waiting: Whether its one ask waits on the server.
        overdue: How many of the asks have gone unanswered for too long, and hold no permit any more.
        since: When it last answered, or was asked while nothing was unanswered.
        hot: Its last answer was a job.
        next_ask: Before this moment it is not asked, whatever its server's turn is.
        asked_at: When it was asked last.
        recalled_at: When its wait was recalled last.
        failed_at: When the server refused a reserve last.
        group: All connections to its server; `None`: it is gone.
        is_lendable: Whether it stands among those whose wait may be recalled.
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
        self.asked_at = 0.0
        self.recalled_at = -RECALL_EVERY
        self.failed_at = -QUIET
        self.group: Group | None = None
        self.is_lendable = False

    @property
    def is_idle(self) -> bool:
        """Whether a wait on the server would stop nothing behind it."""
        return not (self.held or self.busy)

    def may_wait(self, now: float) -> bool:
        """Whether it is idle, and has not just been recalled or refused."""
        has_rested = now >= self.recalled_at + REST and now >= self.failed_at + QUIET
        return has_rested and self.is_idle and not self.asks

    def is_late(self, now: float) -> bool:
        """Whether it owes an answer for too long, and that has not been noted yet."""
        return self.asks > self.overdue and not self.waiting and now >= self.since + OVERDUE


class Group:
    """The connections to one server.

    Attributes:
        sources: The connections.
        asks: Reserves in flight on all of them.
        hot: The connection whose last answer was a job, if there is one.
        has_had_job: Since it was given a wait.
        next_ask: Before this moment it is not its turn.
        pause: Seconds until its next turn when an ask has found nothing.
        reach: So many asks may be in flight on the connection that finds jobs. One more with each job: else one that
            comes now and then to a thousand free handlers would be followed by a thousand asks that find nothing. No
            limit until it was first found empty: a Consumer that begins finds what has gathered.
        look_at: When it is to be looked at though nothing happens to it.
    """

    __slots__ = ("asks", "has_had_job", "hot", "look_at", "next_ask", "pause", "reach", "sources")

    def __init__(self) -> None:
        self.sources: dict[Source, None] = {}
        self.asks = 0
        self.hot: Source | None = None
        self.has_had_job = False
        self.next_ask = 0.0
        self.pause = FIRST_PAUSE
        self.reach = NEVER
        self.look_at = NEVER

    def begin_anew(self) -> None:
        """No connections yet; what is known of the server stays."""
        self.sources.clear()
        self.asks = 0
        self.hot = None
        self.look_at = NEVER

    def add(self, source: Source) -> None:
        source.group = self
        self.sources[source] = None
        self.asks += source.asks
        if source.hot:
            self.hot = source

    def who_may_wait(self, now: float) -> Source | None:
        """Look at each: nobody tells when one that was being dialed anew, or was told of other tubes, is idle again."""
        return next((source for source in reversed(self.sources) if source.may_wait(now)), None)

    def has_way_round(self) -> bool:
        """Whether all asks are overdue, perhaps on a dead line, and there is a connection that has none."""
        sources = self.sources
        return (
            len(sources) > 1
            and all(each.asks == each.overdue for each in sources)
            and not all(each.asks for each in sources)
        )

    def who_asks(self, now: float) -> Source:
        """The connection for the next ask: an idle one if there is one."""
        if len(self.sources) > 1:
            found = self.who_may_wait(now)
            return found or min(self.sources, key=lambda each: (each.asks > 0, each.next_ask, not each.is_idle))
        return next(iter(self.sources))


#: What a Consumer is to do: ask there so many times, begin a wait, or recall one.
Action = tuple[Literal["ask", "wait", "recall"], Source, int]


class Decision:
    """What is to be done now, and in how many seconds the next decision is due; infinity: when something happens."""

    __slots__ = ("actions", "again")

    def __init__(self, actions: list[Action], again: float) -> None:
        self.actions = actions
        self.again = again


class Asking:
    """Shares the permits among the connections.

    Args:
        began: Turns come at moments that are counted from this one: processes on one machine have different ones.

    Attributes:
        permits: How many there are.
        running: Handlers at work, or about to be; whoever asks for a decision notes that.
        sources: The connections.
    """

    def __init__(self, permits: int, began: float = 0.0) -> None:
        self.permits = permits
        self._began = began
        self.running = 0
        self.sources: dict[Source, None] = {}
        self._groups: dict[str, Group] = {}
        self._is_whole = True  # what follows is what the sources say
        self._asked = 0  # permits that asks hold, and waits
        self._waits = 0
        self._changed: dict[Group, None] = {}
        self._hot: dict[Group, None] = {}  # find jobs; who was served longest ago comes first
        self._sated: dict[Group, None] = {}  # find jobs, and ask for as many as they may: answers are on their way
        self._turns: dict[Group, float] = {}  # are to be asked now, and since when; the longest neglected comes first
        self._could_wait: OrderedDict[Group, None] = OrderedDict()  # who has had a job last comes first
        self._later: list[tuple[float, int, Group]] = []  # a heap: to be looked at then
        self._waiting: list[tuple[float, int, Source]] = []  # a heap of those whose wait may be recalled
        self._number = count()  # what is equal in a heap is in the order of its coming
        self._turn_at = 0.0  # when a server was asked last whose turn it was
        self._turn_before = False  # whether the last permit, of which both were in need, went to one whose turn it was
        self._kept = 0  # permits kept from waits
        self._calm_at = 0.0
        self._hot_since = 0.0  # since when those that find jobs find no more permits; 0: they do
        self._helped_at = 0.0  # when a wait was recalled for those whose turn it is
        self._late_at = NEVER  # nobody is late before this

    def add(self, source: Source) -> None:
        """A connection is there."""
        group = self._groups.get(source.server)
        if group is None:
            group = self._groups[source.server] = Group()
        group.add(source)
        self.sources[source] = self._changed[group] = None

    def remove(self, source: Source) -> None:
        """It is gone; all is counted anew before the next decision."""
        self._is_whole = False
        self.sources.pop(source, None)
        source.group = None

    def changed(self, source: Source) -> None:
        """It may be idle now, or has another time."""
        group = source.group
        if group is not None:
            self._changed[group] = None

    def has_room(self) -> bool:
        """Tell whether a permit is free: whether a job that comes too late still finds a handler."""
        return self._free() > 0

    def _free(self) -> int:
        if not self._is_whole:
            self._count_anew()
        return self.permits - self.running - self._asked

    def _count_anew(self) -> None:
        for queue in (self._changed, self._hot, self._sated, self._turns, self._could_wait, self._later, self._waiting):
            queue.clear()
        self._asked = self._waits = 0
        self._late_at = 0.0
        groups, self._groups = self._groups, {}
        for source in sorted(self.sources, key=lambda source: source.asked_at):
            group = self._groups.get(source.server)
            if group is None:
                group = self._groups[source.server] = groups.get(source.server) or Group()
                group.begin_anew()
            group.add(source)
            self._changed[group] = None
            self._asked += source.asks - source.overdue
            self._waits += source.waiting
            source.is_lendable = False
            if source.waiting:
                self._lend(source)
        self._is_whole = True

    # -- a decision --------------------------------------------------------------------------------------------

    def late(self, now: float) -> list[Source]:
        """List those that owe an answer for too long, or so it seems: it may be there, and not have been read."""
        return [source for source in self.sources if source.is_late(now)] if now >= self._late_at else []

    def decide(self, now: float) -> Decision:
        """Say what is to be done now. Each of the actions counts as begun; a recall is done when `recalled` is told."""
        actions: list[Action] = []
        if not self._is_whole:
            self._count_anew()
        if now >= self._late_at:
            self._note_late_ones(now)
        while self._later and self._later[0][0] <= now:
            when, _, group = heappop(self._later)
            if group.look_at == when:
                group.look_at = NEVER
                self._place(group, now)
        if self._changed:
            for group in self._changed:
                self._place(group, now)
            self._changed.clear()
        free = self.permits - self.running - self._asked
        if self._could_wait and free > 0:
            free = self._lend_permits(actions, free, now)
        if self._turns and free > 0:
            free = self._give_turns(actions, free, now)
        if self._hot and free > 0:
            free = self._share_out(actions, free, now)
        if not self._hot:
            self._hot_since = 0.0
        while self._later and self._later[0][2].look_at != self._later[0][0]:
            heappop(self._later)  # it has another time now, or none
        again = self._later[0][0] - now if self._later else NEVER
        if self._turns and free > 0 and not (self._hot or self._sated):
            again = 0.0  # they go out in the next turn of the loop
        if free <= 0 and self._waits and (self._hot or self._turns):
            again = min(again, self._look_for_permit(actions, now))
        # Who is late is to be noted in time where its permits are wanted, or another connection to its server can ask.
        if free <= 0 or self._turns or len(self.sources) > len(self._groups):
            again = min(again, self._late_at - now)
        return Decision(actions, again)

    def _place(self, group: Group, now: float) -> None:
        """Put a server where it belongs; where it is already, it keeps its place in the line."""
        hot = group.hot
        if hot is not None and not (hot.waiting or hot.overdue) and hot.next_ask <= now:
            line = self._hot if hot.asks < group.reach else self._sated
            if group not in line:
                self._leave_queues(group)
                line[group] = None
            return
        if group.asks and not group.has_way_round():
            self._leave_queues(group)
            return
        self._hot.pop(group, None)
        self._sated.pop(group, None)
        if group.asks:
            self._could_wait.pop(group, None)
        elif hot is None and group not in self._could_wait:
            self._could_wait[group] = None
            if group.has_had_job:
                self._could_wait.move_to_end(group, last=False)
        at = max(group.next_ask, group.who_asks(now).next_ask)
        if at <= now:
            if group not in self._turns:
                self._turns[group] = now
        else:
            self._turns.pop(group, None)
            if group.look_at != at:
                group.look_at = at
                heappush(self._later, (at, next(self._number), group))

    def _leave_queues(self, group: Group) -> None:
        self._hot.pop(group, None)
        self._sated.pop(group, None)
        self._turns.pop(group, None)
        self._could_wait.pop(group, None)

    def _lend_permits(self, actions: list[Action], free: int, now: float) -> int:
        """Begin as many waits as permits allow; returns how many are free after that."""
        total = free + self._waits
        for_all = total >= len(self._groups)
        while self._kept and now >= self._calm_at:
            self._kept //= 2
            self._calm_at += CALM
        if (self._hot or self._sated) and not for_all:
            return free  # they need them more
        keep = max(self._kept, 0 if for_all else 1)
        while free > keep and self._could_wait:
            group, _ = self._could_wait.popitem(last=False)
            source = group.who_may_wait(now)
            if source is not None:  # else it comes back with its next answer
                group.has_had_job = False
                self._turns.pop(group, None)
                self._begin(actions, "wait", source, 1, now)
                free -= 1
        return free

    def _give_turns(self, actions: list[Action], free: int, now: float) -> int:
        """One ask for each server whose turn has come; where others find jobs, these have every other permit."""
        if self._hot or self._sated:
            # The last one is theirs where the others may ask for no more until they are answered.
            self._turn_before = not (self._turn_before and self._hot)
            most = (free + self._turn_before) // 2
        else:
            most = free
        most = min(most, BATCH)  # so that hundreds don't go out in one turn of the loop
        while self._turns and most > 0:
            group = next(iter(self._turns))
            self._turn_at = now
            del self._turns[group]  # it stays among those that could wait, in its place
            self._begin(actions, "ask", group.who_asks(now), 1, now)
            free -= 1
            most -= 1
        return free

    def _share_out(self, actions: list[Action], free: int, now: float) -> int:
        """Those that find jobs get what is left, in turn, as far as they reach."""
        left = max(1, min(len(self._hot), free // BATCH))
        while self._hot and free > 0:
            group = next(iter(self._hot))
            hot = group.hot
            assert hot is not None
            share = -(-free // max(left, 1))
            if share >= group.reach - hot.asks:
                share = int(group.reach) - hot.asks
                del self._hot[group]
                self._sated[group] = None
            elif len(self._hot) > 1:
                del self._hot[group]
                self._hot[group] = None
            self._begin(actions, "ask", hot, share, now)
            free -= share
            left -= 1
        return free

    def _begin(
        self, actions: list[Action], what: Literal["ask", "wait"], source: Source, times: int, now: float
    ) -> None:
        actions.append((what, source, times))
        source.asked_at = now
        if not source.asks:
            source.since = now
        source.asks += times
        assert source.group is not None
        source.group.asks += times
        source.group.look_at = NEVER
        self._asked += times
        if what == "wait":
            source.waiting = True
            source.group.reach = 1
            self._waits += 1
            self._lend(source)
        elif self._late_at == NEVER:
            self._late_at = now + OVERDUE

    def _lend(self, source: Source) -> None:
        if not source.is_lendable:
            source.is_lendable = True
            heappush(self._waiting, (source.recalled_at, next(self._number), source))

    def _note_late_ones(self, now: float) -> None:
        since = NEVER
        for source in self.sources:
            if source.is_late(now):
                self._asked -= source.asks - source.overdue
                source.overdue = source.asks
                if source.group is not None:
                    self._changed[source.group] = None
            elif source.asks > source.overdue and not source.waiting:
                since = min(since, source.since)
        self._late_at = max(since + OVERDUE, now + LATE_EVERY) if since < NEVER else NEVER

    # -- recalls -----------------------------------------------------------------------------------------------

    def _look_for_permit(self, actions: list[Action], now: float) -> float:
        """Servers that are to ask find no permit; after a while they take that of another server's wait.

        Returns:
            Seconds until that is to be looked at again.
        """
        due, needy = NEVER, []
        if self._hot:
            group = next(iter(self._hot))
            self._hot_since = self._hot_since or now
            assert group.hot is not None
            due = self._hot_since + (PATIENCE if group.hot.asks else STARVED)
            needy.append(group)
        if self._turns:
            group = next(iter(self._turns))
            since = max(self._turns[group], self._helped_at)
            due = min(due, since + PATIENCE if self._asked > self._waits else max(since, self._turn_at) + STARVED)
            needy.append(group)
        victim = self._whose_wait_may_end(needy[0] if len(self._hot) + len(self._turns) == 1 else None)
        if victim is None:
            return NEVER  # a handler must end first
        due = max(due, victim.recalled_at + RECALL_EVERY)
        if now < due:
            return due - now
        actions.append(("recall", victim, 1))
        self._kept += 1
        self._calm_at = now + CALM
        self._helped_at = now
        return STARVED

    def _whose_wait_may_end(self, but: Group | None) -> Source | None:
        """The waiting connection that was recalled longest ago, not one to this server: that would gain nothing."""
        heap, aside = self._waiting, None
        found: Source | None = None
        while heap:
            recalled_at, _, source = heap[0]
            if not source.waiting or source.group is None:
                heappop(heap)
                source.is_lendable = False
            elif source.recalled_at != recalled_at:
                heappop(heap)
                source.is_lendable = False
                self._lend(source)
            elif source.group is but and aside is None:
                aside = heappop(heap)
            else:
                found = source if source.group is not but else None
                break
        if aside is not None:
            heappush(heap, aside)
        return found

    # -- what happens to a source ------------------------------------------------------------------------------

    def answered(self, source: Source, found: bool, now: float) -> None:
        """An ask was answered."""
        group = source.group
        if group is None or source.waiting or source.overdue:
            self._end_ask(source, now)
        else:  # the same, spelled out for the sake of the hot path
            source.asks -= 1
            source.since = now
            self._asked -= 1
            group.asks -= 1
            self._changed[group] = None
        source.hot = found
        if group is None:
            return
        if found:
            group.hot = source
            group.has_had_job = True
            group.reach += 1
            group.pause = FIRST_PAUSE
            group.next_ask = 0.0
        else:
            if group.hot is source:
                group.hot = None
            group.reach = 1
            pause = max(group.pause, (len(self._groups) - self._waits - 1) / RATE)
            group.next_ask = now + pause
            if pause >= LONGEST_PAUSE:
                group.next_ask = self.common_moment(now, pause)
            group.pause = longer(group.pause)

    def common_moment(self, now: float, seconds: float) -> float:
        """In so many seconds, counted from the beginning of these 50 ms: when others are due, too, so in one wake."""
        per_second = 1 / LONGEST_PAUSE
        return self._began + ((now - self._began) * per_second // 1 + ceil(seconds * per_second)) / per_second

    def slice_over(self, source: Source, now: float) -> None:
        """A wait ended with nothing, in its time: one may be begun again at once."""
        group = self._end_ask(source, now)
        if group is not None:
            group.next_ask = 0.0

    def deadline_soon(self, source: Source, now: float) -> None:
        """The connection must ask nothing for a while."""
        group = self._end_ask(source, now)
        source.hot = False
        source.next_ask = now + QUIET
        if group is not None and group.hot is source:
            group.hot = None

    def failed(self, source: Source, now: float) -> None:
        """The server refused an ask, or a wait, and would refuse the next one as fast."""
        self.deadline_soon(source, now)
        source.failed_at = now

    def recalled(self, source: Source, now: float) -> None:
        """A wait was recalled, since its permit is needed elsewhere, or a command is to go out."""
        group = self._end_ask(source, now)
        source.recalled_at = now
        source.next_ask = now + REST
        if group is not None:
            group.pause = LONGEST_PAUSE

    def watching_changed(self, source: Source, now: float) -> None:
        """A wait was recalled for the connection to watch other tubes. Jobs may be in them, so it asks at once."""
        self.recalled(source, now)
        source.next_ask = now
        if source.group is not None:
            source.group.next_ask = now
            source.group.pause = FIRST_PAUSE

    def _end_ask(self, source: Source, now: float) -> Group | None:
        group = source.group
        source.asks -= 1
        source.since = now
        if source.overdue:  # answers come in order: the overdue ones first
            source.overdue -= 1
        elif group is not None:
            self._asked -= 1
        if group is not None:
            group.asks -= 1
            self._changed[group] = None
            if source.waiting:
                self._waits -= 1
        source.waiting = False
        return group
