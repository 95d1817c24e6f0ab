"""The connections that a Producer puts on, in one process: a gevent queue in which each stands once.

A put takes the connection at the head of the queue, counts itself on it, and the connection goes to the tail, or
stays out while it is full. So the queue spreads the load.

Who finds the queue empty stands in line (`Place`), and those that come later behind him. When a connection joins the
queue, or there is nothing to wait for any more, the hub has those in line look again, the oldest first and some at a
time: the work grows with their number alone, and nobody holds the hub for long. This is why nobody waits in the
queue's own `get`: it can end a wait only by an item, or by a timer for each.

A timer looks at everything else 20 times a second, while any put is under way: at the time of puts, at connections
that have room again though nobody has said so, and at what a signal's exception has left half done.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import gevent
from gevent.event import Event
from gevent.queue import Queue

from gstalk.config import Config
from gstalk.connection import forks, threads
from gstalk.connection.calls import join
from gstalk.connection.clock import monotonic
from gstalk.connection.connection import Connection
from gstalk.connection.critical import critical, section_of
from gstalk.connection.hooks import Hooks
from gstalk.connection.loop import InHub, wake
from gstalk.connection.pipeline import Pipeline
from gstalk.errors import PutTimeoutError, TakesNoJobs
from gstalk.pool.keeper import Pool, Server, Wanted
from gstalk.pool.schedule import ALONE, Health
from gstalk.protocol import commands
from gstalk.protocol.request import Outcome, PutRequest, Request
from gstalk.traces import bare
from gstalk.uri import Address

__all__ = ["FULL", "TICK", "Member", "PutQueue"]

FULL = 512  # puts in flight on one connection: all may be answered in one read, and are wakened in one go then
TICK = 0.05  # seconds between two looks at the time of puts
AT_A_TIME = 64  # how many of those in line look again before others have their turn
SILENT = 0.001  # seconds without a reply after which a connection is looked at before the only put is sent there
BREATH = 0.01  # seconds that puts may end without a wait before others have their turn
NEVER = float("inf")


class Member:
    """A connection in the queue, and what is in flight on it.

    Attributes:
        earliest: No put in flight on it has to end before this.
    """

    __slots__ = ("connection", "earliest", "health", "in_flight", "in_queue", "server")

    def __init__(self, server: Server, connection: Connection) -> None:
        self.server = server
        self.health: Health = server.health
        self.connection = connection
        self.in_flight = 0
        self.in_queue = False
        self.earliest = NEVER


class Place(Outcome):
    """A put's place in the line for a connection; settled when it is to look again."""

    __slots__ = ("deadline",)

    def __init__(self, deadline: float | None) -> None:
        super().__init__()
        self.deadline = NEVER if deadline is None else deadline


class PutQueue(InHub):
    """A Producer's connections in one hub. A forked child gets new ones; copies of puts end with those they began with.

    Attributes:
        hub: The hub that they belong to.
        section: Its critical section; greenlets take, send on and give back connections inside of it alone.
        config, hooks: The Producer's.
        pool: What keeps them connected; once it is stopped, no put begins another try.
        puts: The number of puts under way.
        is_ending: The Producer was told to stop: puts under way finish.
        is_ready: The one flag that a put looks at: not stopped, and not a parent's.

    Args:
        outages: The servers that are known to be down, in all hubs.
    """

    def __init__(self, addresses: Iterable[Address], config: Config, hooks: Hooks, outages: set[str]) -> None:
        self.hub = threads.enter()
        self.section = section_of(self.hub)
        self.config = config
        self.hooks = hooks
        self.puts = 0
        self.is_ending = False
        self.is_ready = True
        self._idle: Event | None = None
        self._queue: Queue[Member] = Queue()
        self._members: dict[Connection, Member] = {}
        self._members_of: dict[Server, dict[Connection, Member]] = {}
        self._line: OrderedDict[Place, None] = OrderedDict()
        self._earliest = NEVER  # nobody in line has to leave it before this
        self._serving = False  # those in line are about to be served
        self._resting: dict[str, Any] = {}  # the servers that are left alone, and what ends that
        self._last_refusal: TakesNoJobs | None = None  # the last one
        self._held_since: float | None = None  # since when puts have ended without a wait
        self._ticker: Any = None
        self.pool = Pool(list(addresses), config, (), hooks, self._up, self._down, outages)
        forks.register("put queue", self, PutQueue._forked)

    def struck(self, error: BaseException) -> None:
        """A signal's exception has hit a callback: the next tick mends what that has left half done."""

    # -- taking a connection -----------------------------------------------------------------------------------

    @property
    def has_line(self) -> bool:
        """Others wait for a connection."""
        return bool(self._line)

    def take(self, in_turn: bool = False) -> Member | None:
        """Take the connection at the head of the queue; it goes to the tail, unless it is full.

        Args:
            in_turn: Whether the caller's turn has come; else those in line come first.
        """
        if self._line and not in_turn:
            return None
        queue = self._queue
        while size := queue.qsize():
            member = queue.peek_nowait()
            pipe = member.connection.pipe
            # The only put under way in this hub: its loop may not have turned since the last one, and what the server
            # said meanwhile, perhaps the connection's end, is still to be read.
            if self.puts == 1 and monotonic() - pipe.read_at > SILENT:
                pipe.look()
            if pipe.clear and member.health.is_usable:
                member.in_flight += 1
                if member.in_flight >= FULL:
                    member.in_queue = False
                    queue.get_nowait()
                elif size > 1:  # one that is alone stands at the tail already: to move it would cost a tenth of a put
                    queue.put_nowait(queue.get_nowait())
                return member
            member.in_queue = False
            queue.get_nowait()
        return None

    def take_other(self, tried: frozenset[str]) -> Member | None:
        """As `take` in turn, but only a connection to a server that wasn't tried; looks at all of those that were."""
        for _ in range(self._queue.qsize()):
            member = self.take(True)
            if member is None or member.server.uri not in tried:
                return member
            self.done(member)
        return None

    @critical
    def wait(self, deadline: float | None) -> None:
        """Stand in line until a connection may be had, or there is another reason to look again."""
        place = Place(deadline)
        with self.section:
            self._line[place] = None
            self._earliest = min(self._earliest, place.deadline)
            self._start_ticker()
        try:
            with Wanted(self.pool):
                join(self.hub, place)
        finally:
            self._line.pop(place, None)

    def send(
        self, member: Member, tube: str, data: bytes, deadline: float | None, request: Request | None = None
    ) -> Request:
        """Send a put; `request` is where the answer goes, if it has been made already."""
        connection = member.connection
        pipe = connection.pipe
        if request is None:
            request = PutRequest(commands.PUT, pipe.uri, None, deadline, 0.0)
        if deadline is not None and deadline < member.earliest:
            member.earliest = deadline
        if tube == connection.used:
            pipe.append(data, request)
        else:
            connection.append_using(tube, data, request)
        if self._ticker is None:
            self._start_ticker()
        return request

    def done(self, member: Member) -> None:
        """A put has ended on this connection, well or not."""
        member.in_flight -= 1
        if not member.in_queue:
            self._enqueue(member)

    def _enqueue(self, member: Member) -> None:
        if not member.in_queue and member.in_flight < FULL and member.connection.pipe.clear and member.health.is_usable:
            member.in_queue = True
            self._queue.put_nowait(member)
            if self._line:
                self._serve_soon()

    def _enqueue_all(self, server: Server) -> None:
        for member in self._members_of.get(server, {}).values():
            self._enqueue(member)

    # -- those in line -----------------------------------------------------------------------------------------

    def _serve_soon(self) -> None:
        if not self._serving:
            self._serving = True
            self.soon(self._serve)

    def _serve(self) -> None:
        """In the hub: have those in line look again, some at a time, while there is anything to see for them."""
        self._serving = False
        now = monotonic()
        for _ in range(AT_A_TIME):
            place = next(iter(self._line), None)
            if place is None or not (self._queue.qsize() or self.is_hopeless or place.deadline <= now):
                return
            place.succeed()
            wake(self.section, place)
            self._line.pop(place, None)  # last: a signal that strikes before loses nobody
        self._serve_soon()

    @property
    def is_hopeless(self) -> bool:
        """No connection will come: all servers are left alone, or this is the end."""
        return len(self._resting) == len(self.pool.servers) or self.pool.is_stopped

    def breathe(self) -> None:
        """Have others run now and then, where puts end without a wait. Who is interrupted here has ended his put."""
        if self._held_since is None:
            self._held_since = monotonic()
            self.soon(self._breathed)
        elif monotonic() - self._held_since > BREATH:
            gevent.sleep(1e-6)  # after a sleep of 0 the loop may come back before it has looked at any socket

    def _breathed(self) -> None:
        self._held_since = None

    # -- puts under way ----------------------------------------------------------------------------------------

    def leave(self, puts: int = 1) -> None:
        """A put is no longer under way, or so many."""
        self.puts -= puts
        if self._idle is not None and self.puts <= 0:
            self._idle.set()

    def wait_idle(self, seconds: float | None) -> None:
        """Wait until no put is under way."""
        deadline = None if seconds is None else monotonic() + seconds
        self._idle = Event()
        while self.puts > 0:
            left = None if deadline is None else deadline - monotonic()
            if (left is not None and left <= 0) or not self._idle.wait(left):
                return
            self._idle.clear()

    def _start_ticker(self) -> None:
        if self._ticker is None:
            self._ticker = self.hub.loop.timer(TICK, TICK, ref=False)
            self._ticker.start(self.run, self._tick)

    def _stop_ticker(self) -> None:
        if self._ticker is not None:
            self._ticker.close()
            self._ticker = None

    def _tick(self) -> None:
        """In the hub: end the wait of puts whose time is over, and mend what a signal has left."""
        now = monotonic()
        members = list(self._members.values())
        for member in members:
            if member.earliest <= now:
                member.earliest = _end_late(member.connection.pipe, now)
        if self._queue.qsize() != sum(member.in_queue for member in members if member.health.is_usable):
            self._fill_queue(members)
        for member in members:
            self._enqueue(member)  # it may have room again, once puts are answered that nobody waits for any more
        if self._earliest <= now:
            self._end_late_in_line(now)
        if self._line:
            self._serving = False
            self._serve_soon()
        elif self.puts <= 0:
            self._stop_ticker()

    def _fill_queue(self, members: list[Member]) -> None:
        """Begin the queue anew: it holds what it should not, or a signal struck when a connection was between."""
        while self._queue.qsize():
            self._queue.get_nowait()
        for member in members:
            member.in_queue = False

    def _end_late_in_line(self, now: float) -> None:
        """Have those whose time is over come first."""
        self._earliest = min((place.deadline for place in self._line if place.deadline > now), default=NEVER)
        for place in [place for place in reversed(self._line) if place.deadline <= now]:
            self._line.move_to_end(place, last=False)

    # -- servers -----------------------------------------------------------------------------------------------

    def _up(self, server: Server, connection: Connection) -> None:
        self._members[connection] = self._members_of.setdefault(server, {})[connection] = Member(server, connection)
        self._enqueue_all(server)

    def _down(self, server: Server, connection: Connection) -> None:
        self._members.pop(connection, None)
        self._members_of.get(server, {}).pop(connection, None)

    def leave_alone(self, server: Server, error: TakesNoJobs) -> None:
        """Give a server that takes no jobs a rest. Answers that were on their way then don't make it longer."""
        if server.uri not in self._resting and not self.pool.is_stopped:
            timer = self.hub.loop.timer(ALONE, ALONE, ref=False)  # repeated: a signal may strike before the first line
            self._resting[server.uri] = timer
            timer.start(self._rested, server, timer)
        self._last_refusal = bare(error)
        server.health.refuse(self._last_refusal)
        self.pool.changed()
        if self.is_hopeless and self._line:
            self._serve_soon()

    def _rested(self, server: Server, timer: Any) -> None:
        server.health.rest()
        self._resting.pop(server.uri, None)
        self._enqueue_all(server)
        self.pool.changed()
        timer.close()

    @property
    def refusal_of_all(self) -> TakesNoJobs | None:
        """The last DRAINING or OUT_OF_MEMORY, if every server is left alone after one."""
        return self._last_refusal if len(self._resting) == len(self.pool.servers) else None

    # -- the end -----------------------------------------------------------------------------------------------

    def begin_end(self) -> None:
        """Puts under way finish; nobody waits for a connection any more but they."""
        self.is_ending = True
        self.pool.changed()

    def close(self) -> None:
        self.is_ending = True
        self.pool.stop_dialing()
        for timer in self._resting.values():
            timer.close()
        with ExitStack() as stack:  # all of them, also if one is interrupted
            stack.callback(self._serve_soon)
            for connection in self._members:
                stack.callback(connection.close)

    @critical
    def look(self) -> None:
        """See what has become of the connections while the loop had no turn. Never switches."""
        if self.section.owner is None and not self.section.is_interrupted:  # else a read may be under way
            with self.section:
                for connection in list(self._members):
                    connection.pipe.look()

    def close_from_outside(self) -> None:
        """In another thread: have the servers see the end now, and this hub do the rest when its loop turns."""
        self.is_ready, self.is_ending = False, True
        threads.call(self.hub, self.close)
        if self.puts <= 0:  # else the loop turns, and those who wait are told why
            self.pool.sever()

    def abandon(self) -> list[gevent.Greenlet[..., Any]]:
        """The thread has ended, and with it whoever put; returns the greenlets that nobody wakes again."""
        self.is_ready, self.is_ending = False, True
        timers = [*self._resting.values(), *([] if self._ticker is None else [self._ticker])]
        threads.close_watchers(self.hub, timers)
        return self.pool.abandon()

    @property
    def is_abandoned(self) -> bool:
        """The thread has ended, or its hub: nobody goes on with what is under way."""
        return self.pool.is_stopped or self.hub.loop is None

    @property
    def is_parents(self) -> bool:
        """This is a forked child's copy."""
        return not (self.is_ready or self.is_ending)

    def _forked(self) -> None:
        """In the child: these are the parent's."""
        self.is_ready = False
        if forks.is_here(self.hub):
            self.pool.changed()
            self._serving = False
            self._serve_soon()
            self._stop_ticker()


def _end_late(pipe: Pipeline, now: float) -> float:
    """End the wait of a connection's puts whose time is over; tell when the next one's is."""
    if any(
        request.deadline is not None and request.deadline <= now and request.error is None for request in pipe.requests
    ):
        pipe.catch_up()
    earliest = NEVER
    for request in pipe.requests:
        if request.deadline is not None and request.error is None:
            if request.deadline > now:
                earliest = min(earliest, request.deadline)
                continue
            request.fail(PutTimeoutError(f"{request}: no answer in time", "maybe"))
            if request.then is not None:
                request.then(request)
            pipe.complete(request)
    return earliest
