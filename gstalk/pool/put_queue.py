"""The connections that a Producer puts on, in one process: a gevent queue in which each stands once.

A put takes the connection at the head of the queue, counts itself on it, and the connection goes to the tail, or
stays out while it is full. So the queue spreads the load. Puts that come at the same time follow each other on one
connection, some at a time: they share its sends and reads, each of which costs more than a put. One that comes a
millisecond later takes the next connection, so that it doesn't wait with the others for a server that is slow.

A put that finds the queue empty stands in line, and those that come later behind it. When a connection joins the queue,
the hub sends the puts in line, the oldest first and some at a time: the work grows with their number alone, and nobody
holds the hub for long. Their greenlets sleep on until the answer is there: to be wakened for each step on the way would
make such a put twice as dear. Whoever is interrupted in line has sent nothing. This is why nobody waits in the queue's
own `get`: it can end a wait only by an item, or by a timer for each.

A timer looks at everything else 20 times a second, while any put is under way: at the time of puts, at connections
that have room again though nobody has said so, and at what a signal's exception has left half done.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

import gevent
from gevent import getcurrent
from gevent.event import Event
from gevent.queue import Queue

from gstalk.config import Config
from gstalk.connection import forks, threads
from gstalk.connection.clock import monotonic
from gstalk.connection.connection import Connection
from gstalk.connection.critical import critical, section_of
from gstalk.connection.hooks import Hooks
from gstalk.connection.loop import InHub, wake
from gstalk.connection.pipeline import Pipeline
from gstalk.errors import PutTimeoutError, TakesNoJobs
from gstalk.pool.keeper import Pool, Server
from gstalk.pool.schedule import ALONE, Health
from gstalk.protocol import commands
from gstalk.protocol.request import PENDING, PutRequest, Then
from gstalk.traces import bare
from gstalk.uri import Address

__all__ = ["FULL", "MOST_TOGETHER", "NEVER", "TICK", "TOGETHER", "Member", "PutQueue", "Try"]

FULL = 512  # puts in flight on one connection: all may be answered in one read, and are wakened in one go then
MOST_TOGETHER = 32  # puts that follow each other on one connection before the next one has its turn
TOGETHER = 0.001  # seconds after which it has it all the same
FEW = 32  # puts in flight on a connection; with more of them the next answer comes soon, and finds that it has room
TICK = 0.05  # seconds between two looks at the time of puts
AT_A_TIME = 64  # how many of those in line are sent, or look again, before others have their turn
SILENT = 0.001  # seconds without a reply after which a connection is looked at before the only put is sent there
BREATH = 0.01  # seconds that puts may end without a wait before others have their turn
NEVER = float("inf")


class Member:
    """A connection in the queue, and what is in flight on it.

    Attributes:
        pipe: The connection's; it never has another one, for only a reserve is recalled.
        in_flight: Puts whose callers wait for their answers here.
        earliest: No put in flight on it has to end before this; while it is not `NEVER`, the queue's timer runs.
    """

    __slots__ = ("connection", "earliest", "health", "in_flight", "in_queue", "pipe", "server")

    def __init__(self, server: Server, connection: Connection) -> None:
        self.server = server
        self.health: Health = server.health
        self.connection = connection
        self.pipe = connection.pipe
        self.in_flight = 0
        self.in_queue = False
        self.earliest = NEVER


class Try(PutRequest):
    """A put's try on a connection, or its place in the line for one. `None` as its result: look again what is next.

    Attributes:
        member: The connection; `None`: it has not been sent.
        tube, data: In line: what the hub is to send when its turn comes; no data: it only looks again then.
    """

    __slots__ = ("data", "member", "tube")
    deadline: float
    tube: str
    data: bytes

    def __init__(self, deadline: float, then: Then | None = None) -> None:
        self.result = PENDING  # as in Request, without a call
        self.error = None
        self.waiter = None
        self.command = commands.PUT
        self.key = None
        self.then = then
        self.subject = None
        self.end = 0
        self.deadline = deadline
        self.member: Member | None = None  # `uri` comes with it


class PutQueue(InHub):
    """A Producer's connections in one hub. A forked child gets new ones; copies of puts end with those they began with.

    Attributes:
        hub: The hub that they belong to.
        section: Its critical section; greenlets take, send on and give back connections inside of it alone.
        config, hooks: The Producer's.
        pool: What keeps them connected; once it is stopped, no put begins another try.
        puts: The number of puts under way.
        is_ending: The Producer was told to stop: puts under way finish.
        idle: Set when no put is under way; `None`: nobody waits for that.
        is_ready: The one flag that a put looks at: not stopped, and not a parent's.

    Args:
        outages: The servers that are known to be down, in all hubs.
    """

    def __init__(self, addresses: Iterable[Address], config: Config, hooks: Hooks, outages: set[str]) -> None:
        self.hub = threads.enter()
        self.section = section_of(self.hub)
        self.config, self.hooks = config, hooks
        self.puts = 0
        self.is_ending = False
        self.is_ready = True
        self.idle: Event | None = None
        self._queue: Queue[Member] = Queue()
        self._members: dict[Connection, Member] = {}
        self._members_of: dict[Server, dict[Connection, Member]] = {}
        # The connection that was taken from the queue last. Puts follow each other there until it has so many in
        # flight, or that moment has come.
        self._latest: Member | None = None
        self._most = 0
        self._until = 0.0
        self._line: OrderedDict[Try, None] = OrderedDict()
        self._wanted = False  # the pool knows that somebody stands in line
        self._earliest = NEVER  # nobody in line has to leave it before this
        self._serving = False  # those in line are about to be served
        self._looking = False  # connections are about to be looked at, whether they have room for more bytes
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

    @critical
    def send(self, put: Try, tube: str, data: bytes, me: Any, now: float, member: Member | None = None) -> bool:
        """Send a put on the connection whose turn it is, and tell whether there was one.

        That is the one that the last put has taken a moment ago, or that at the head of the queue. None is taken while
        others stand in line, who come first.

        Args:
            me: The greenlet that calls, which is inside of the section meanwhile; `None`: in the hub.
            member: The connection, if one has been taken for it already.
        """
        section = self.section
        if section.owner is not None:
            section.wait()
        try:
            section.owner = me
            if member is None:
                if self._line:
                    return False
                member = self._latest
                if (
                    member is not None
                    and 0 < member.in_flight < self._most  # with none it has answered: a lone greenlet's puts go round
                    and now < self._until
                    and member.pipe.clear
                ):
                    member.in_flight += 1
                elif (member := self._take_head(now)) is None:
                    return False
            connection, pipe = member.connection, member.pipe
            put.member = member
            put.uri = pipe.uri
            if put.deadline <= member.earliest:  # those without one, too: they are all `NEVER`
                member.earliest = put.deadline
                self._start_ticker()
            if tube == connection.used:
                pipe.append(data, put)
            else:
                connection.append_using(tube, data, put)
        finally:
            section.owner = None
        return True

    def _take_head(self, now: float) -> Member | None:
        """Take the first usable connection of the queue; those that are not leave it."""
        queue = self._queue
        while queue.qsize():
            member = queue.get_nowait()
            pipe = member.pipe
            # The only call under way in this hub, with nothing in flight: its loop may not have turned since the last
            # one, and what the server said meanwhile, perhaps the connection's end, is still to be read.
            if self.puts == 1 and not pipe.requests and now - pipe.read_at > SILENT:
                pipe.look()
            if pipe.clear and member.health.is_usable:
                # With one more than so many it would have to leave the queue, and is not to be followed any more.
                most = min(member.in_flight + MOST_TOGETHER, FULL - 1)
                self._latest, self._most, self._until = member, most, now + TOGETHER
                member.in_flight += 1
                if member.in_flight < FULL:
                    queue.put_nowait(member)
                else:
                    member.in_queue = False
                return member
            member.in_queue = False
        return None

    def take_other(self, tried: frozenset[str]) -> Member | None:
        """Take the next connection in the queue that goes to a server which wasn't tried; looks at those that were."""
        now = monotonic()
        for _ in range(self._queue.qsize()):
            member = self._take_head(now)
            if member is None or member.server.uri not in tried:
                return member
            self.give_back(member)
        return None

    def done(self, put: Try) -> None:
        """A put's wait is over: it has ended well or not, has left the line, or was interrupted."""
        member = put.member
        if member is None:
            self._line.pop(put, None)
            self._line_changed()
        else:
            member.in_flight -= 1  # no section is needed: no signal handler can run in the middle of this
            if not member.in_queue:
                inside = self.section.owner  # a kill wakes us also while another greenlet is: it stays inside
                self.section.owner = getcurrent()
                self._enqueue(member)
                self.section.owner = inside
        if self.idle is not None and self.puts <= 0:
            self.idle.set()

    def give_back(self, member: Member) -> None:
        """Nothing is in flight there any more of what it was taken for. Never switches."""
        member.in_flight -= 1
        if not member.in_queue:
            self._enqueue(member)

    def _enqueue(self, member: Member) -> None:
        may_join = not member.in_queue and member.in_flight < FULL and member.health.is_usable
        if may_join and member.pipe.clear:
            member.in_queue = True
            self._queue.put_nowait(member)
            self._serve_soon()
        elif may_join and self._line and member.in_flight < FEW and not self._looking:
            self._looking = True
            self.soon(self._look_for_room)  # there may be room for more bytes when the read is over

    def _look_for_room(self) -> None:
        self._looking = False
        for member in [each for each in self._members.values() if each.pipe.clear]:
            self._enqueue(member)

    def _enqueue_all(self, server: Server) -> None:
        for member in self._members_of.get(server, {}).values():
            self._enqueue(member)

    # -- those in line -----------------------------------------------------------------------------------------

    @critical
    def stand(self, put: Try, tube: str = "", data: bytes = b"", once: bool = False) -> None:
        """Have a put stand in line: when its turn comes the hub sends it; or, with no data, has it look again.

        Args:
            once: It doesn't wait for that, but looks again at once.
        """
        if once or self.is_hopeless:
            put.succeed()
            return
        put.tube, put.data = tube, data
        with self.section:
            self._line[put] = None
            self._earliest = min(self._earliest, put.deadline)
            self._start_ticker()
            self._line_changed()

    def _line_changed(self) -> None:
        """Pauses between dials keep the process alive while somebody stands in line."""
        if self._wanted is not bool(self._line):
            self.pool.want("those in line", not self._wanted)
            self._wanted = not self._wanted

    def _serve_soon(self) -> None:
        if self._line and not self._serving:
            self._serving = True
            self.soon(self._serve)

    def _serve(self) -> None:
        """In the hub: send those in line, or have them look again, some at a time, while there is a reason to."""
        self._serving = False
        now = monotonic()
        for _ in range(AT_A_TIME):
            put = next(iter(self._line), None)
            if put is None or not self._serve_one(put, now):
                break
            self._line.pop(put, None)  # last: a signal that strikes before loses nobody
            if self.section.owner is not None:  # a signal handler sleeps in the middle of what was wakened
                self._serve_soon()
                break
        else:
            self._serve_soon()
        self._line_changed()

    def _serve_one(self, put: Try, now: float) -> bool:
        """Send the first in line, or have it look again; tell whether there was a reason to."""
        if put.member is not None:  # a signal has struck when it had been sent and was about to leave the line
            return True
        # Nobody waits where a signal has struck here before, or in `done`, or a handler sleeps before the wait begins.
        if put.waiter is None or put.deadline <= now or self.is_hopeless or (not put.data and self._queue.qsize()):
            put.succeed()
            wake(self.section, put)
            return True
        member = self._take_head(now) if put.data else None
        if member is None:
            return False
        try:
            self.send(put, put.tube, put.data, None, now, member)
        except BaseException:  # a signal's: it stays in line if nothing of it has gone
            if not put.is_settled and put not in member.pipe.requests:
                put.member = None
                member.in_flight -= 1
            raise
        return True

    @property
    def is_hopeless(self) -> bool:
        """No connection will come: all servers are left alone, or this is the end."""
        return len(self._resting) == len(self.pool.servers) or self.pool.is_stopped

    def breathe(self) -> None:
        """Have others run now and then, where puts end without a wait. Who is interrupted here has ended his put."""
        if self._held_since is None:
            self._held_since = monotonic()
            self.soon(partial(setattr, self, "_held_since", None))
        elif monotonic() - self._held_since > BREATH:
            gevent.sleep(1e-6)  # after a sleep of 0 the loop may come back before it has looked at any socket

    # -- puts under way ----------------------------------------------------------------------------------------

    def leave(self) -> None:
        """A put is no longer under way."""
        self.puts -= 1
        if self.idle is not None and self.puts <= 0:
            self.idle.set()

    def wait_idle(self, seconds: float | None) -> None:
        """Wait until no put is under way."""
        deadline = None if seconds is None else monotonic() + seconds
        self.idle = Event()
        while self.puts > 0:
            left = None if deadline is None else deadline - monotonic()
            if (left is not None and left <= 0) or not self.idle.wait(left):
                return
            self.idle.clear()

    def _start_ticker(self) -> None:
        if self._ticker is None:
            self._ticker = self.hub.loop.timer(TICK, TICK, ref=False)
            self._ticker.start(self.run, self._tick)

    def _stop_ticker(self) -> None:
        if self._ticker is not None:
            self._ticker.close()
            self._ticker = None
        for member in self._members.values():
            member.earliest = NEVER  # the next put starts it again

    def _tick(self) -> None:
        """In the hub: end the wait of puts whose time is over, and mend what a signal has left."""
        now = monotonic()
        members = list(self._members.values())
        for member in members:
            if member.earliest <= now:
                member.earliest = _end_late(member.pipe, now)
        if self._queue.qsize() != sum(member.in_queue for member in members if member.health.is_usable):
            self._fill_queue(members)
        for member in members:
            if not member.in_queue:  # it may have room again, once puts are answered that nobody waits for any more
                self._enqueue(member)
        if self._earliest <= now:
            self._end_late_in_line(now)
        if self._line:
            self._serving = self._looking = False
            self._serve_soon()
        elif self.puts <= 0:
            self._stop_ticker()
        if self.is_ending and not (members or self._line):  # a signal may have left a put counted for ever
            self._stop_ticker()

    def _fill_queue(self, members: list[Member]) -> None:
        """Begin the queue anew: it holds what it should not, or a signal struck when a connection was between."""
        while self._queue.qsize():
            self._queue.get_nowait()
        for member in members:
            member.in_queue = False

    def _end_late_in_line(self, now: float) -> None:
        """Have those whose time is over come first."""
        self._earliest = min((put.deadline for put in self._line if put.deadline > now), default=NEVER)
        for put in [put for put in reversed(self._line) if put.deadline <= now]:
            self._line.move_to_end(put, last=False)

    # -- servers -----------------------------------------------------------------------------------------------

    def _up(self, server: Server, connection: Connection) -> None:
        self._members[connection] = self._members_of.setdefault(server, {})[connection] = Member(server, connection)
        self._enqueue_all(server)

    def _down(self, server: Server, connection: Connection) -> None:
        self._members.pop(connection, None)
        self._latest = None  # it, or its server, may be of no use any more
        self._members_of.get(server, {}).pop(connection, None)

    def leave_alone(self, server: Server, error: TakesNoJobs) -> None:
        """Give a server that takes no jobs a rest. Answers that were on their way then don't make it longer."""
        if server.uri not in self._resting and not self.pool.is_stopped:
            timer = self.hub.loop.timer(ALONE, ALONE, ref=False)  # repeated: a signal may strike before the first line
            self._resting[server.uri] = timer
            timer.start(self._rested, server, timer)
        self._last_refusal = bare(error)
        server.health.refuse(self._last_refusal)
        self._latest = None
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
