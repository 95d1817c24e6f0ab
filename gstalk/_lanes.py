"""The connections that a Producer puts on, in one process: a gevent queue in which each stands once.

A put takes the connection at the head of the queue, counts itself on it, and the connection goes to the tail, or
stays out while it is full. So the queue spreads the load, waits while nothing is connected, and pushes back when
everything is busy.

A put's time is looked at by one timer for all puts, 20 times a second, instead of one for each.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from gevent import get_hub
from gevent.event import Event
from gevent.queue import Empty, Queue

from gstalk import _forks
from gstalk._clock import monotonic
from gstalk._hooks import Hooks
from gstalk._link import Link
from gstalk.config import Config
from gstalk.errors import CommandTimeoutError, DrainingError, OutOfMemoryError, PutTimeoutError
from gstalk.pool import Pool, Server, Wanted
from gstalk.protocol import commands
from gstalk.protocol.session import Slot
from gstalk.schedule import ALONE, Health
from gstalk.uri import Address

__all__ = ["FULL", "TICK", "Lane", "Lanes"]

FULL = 512  # puts in flight on one connection: then others come first
TICK = 0.05  # seconds between two looks at the time of puts


class Lane:
    """A connection in the queue, and what is in flight on it."""

    __slots__ = ("health", "in_flight", "in_queue", "link", "server")

    def __init__(self, server: Server, health: Health, link: Link) -> None:
        self.server = server
        self.health = health
        self.link = link
        self.in_flight = 0
        self.in_queue = False


class Lanes:
    """All of a Producer's connections. A forked child gets new ones; copies of puts end with those they began with.

    Attributes:
        hub: The hub that they belong to.
        pool: What keeps them connected; once it is stopped, no put begins another try.
        health: How each server's URI is.
        puts: The number of puts under way.
    """

    def __init__(self, addresses: Iterable[Address], config: Config, hooks: Hooks) -> None:
        addresses = list(addresses)
        self.hub = get_hub()
        self.health = {str(address): Health() for address in addresses}
        self.puts = 0
        self._idle: Event | None = None
        self._queue: Queue[Lane | None] = Queue()
        self._getters = 0
        self._lanes: dict[Link, Lane] = {}
        self._last_refusal: DrainingError | OutOfMemoryError | None = None
        self._ticker: Any = None
        self.pool = Pool(addresses, config, (), hooks, self._up, self._down)

    # -- puts --------------------------------------------------------------------------------------------------

    def usable_now(self) -> Lane | None:
        """Take the connection at the head of the queue; it goes to the tail, unless it is full."""
        queue = self._queue
        wake_ups = 0
        found = None
        while found is None and queue.qsize():
            lane = queue.get_nowait()
            if lane is None:
                wake_ups += 1
            elif lane.link.pipe.clear and lane.health.is_usable:
                found = lane
            else:
                lane.in_queue = False
        for _ in range(min(wake_ups, self._getters)):  # they were for others, who have not run yet
            queue.put_nowait(None)
        if found is not None:
            found.in_flight += 1
            found.in_queue = found.in_flight < FULL
            if found.in_queue:
                queue.put_nowait(found)
        return found

    def usable_for(self, tried: set[str]) -> Lane | None:
        """As `usable_now`, but a connection to a server that wasn't tried yet if there is one."""
        second_best = None
        for _ in range(self._queue.qsize()):
            lane = self.usable_now()
            if lane is None:
                break
            if second_best is not None:
                self.done(second_best)
            if lane.server.uri not in tried:
                return lane
            second_best = lane
        return second_best

    def wait(self, left: float | None) -> None:
        """Wait until one may be usable, or there is another reason to look again; at most `left` seconds."""
        empty = not self._queue.qsize()
        for lane in self._lanes.values():
            if empty:  # a signal may have struck when it was taken out, before that was noted
                lane.in_queue = False
            self._enqueue(lane)
            if not lane.link.pipe.clear:  # busy with puts that nobody waits for any more: nobody tells when it isn't
                left = TICK if left is None else min(left, TICK)
        self._getters += 1
        try:
            with Wanted(self.pool):
                found = self._queue.get(timeout=left)
        except Empty:
            return
        finally:
            self._getters -= 1
        if found is not None:  # `usable_now` looks at it
            found.in_queue = False
            self._enqueue(found)

    def send(self, lane: Lane, tube: str, data: bytes, deadline: float | None) -> Slot:
        link = lane.link
        pipe = link.pipe
        slot = Slot(commands.PUT, pipe.session, None, None, deadline)
        if tube == link.used:
            pipe.append(data, slot)
        else:
            link.append_using(tube, data, slot)
        if self._ticker is None and deadline is not None:
            self._ticker = self.hub.loop.timer(TICK, TICK, ref=False)
            self._ticker.start(self._tick)
        return slot

    def done(self, lane: Lane) -> None:
        """A put has ended, well or not."""
        lane.in_flight -= 1
        if not lane.in_queue:
            self._enqueue(lane)

    def leave(self) -> None:
        """A put is no longer under way."""
        self.puts -= 1
        if self._idle is not None and not self.puts:
            self._idle.set()

    def wait_idle(self, seconds: float | None) -> None:
        """Wait until no put is under way."""
        if self.puts:
            self._idle = Event()
            self._idle.wait(seconds)

    def _enqueue(self, lane: Lane) -> None:
        if not lane.in_queue and lane.link in self._lanes and lane.link.pipe.clear and lane.health.is_usable:
            lane.in_queue = True
            self._queue.put_nowait(lane)

    def _enqueue_all(self, health: Health) -> None:
        for lane in self._lanes.values():
            if lane.health is health:
                self._enqueue(lane)

    def _wake_all(self) -> None:
        """Have those who wait for a connection look again: none will come."""
        for _ in range(self._getters):
            self._queue.put_nowait(None)

    def _tick(self) -> None:
        """In the hub: end the wait of puts whose time is over."""
        now = monotonic()
        any_left = False
        for lane in list(self._lanes.values()):
            pipe = lane.link.pipe
            if any(slot.extra is not None and slot.extra <= now and slot.error is None for slot in pipe.slots):
                pipe.catch_up()
            for slot in pipe.slots:
                if slot.extra is not None and slot.error is None:
                    if slot.extra <= now:
                        slot.error = PutTimeoutError(f"{slot}: no answer in time", "maybe")
                        pipe.complete(slot)
                    any_left = True
        if not any_left and not self.puts:
            self._stop_ticker()

    def _stop_ticker(self) -> None:
        if self._ticker is not None:
            self._ticker.close()
            self._ticker = None

    # -- servers -----------------------------------------------------------------------------------------------

    def _up(self, server: Server, link: Link) -> None:
        health = self.health[server.uri]
        health.stalled = False  # it has just answered
        self._lanes[link] = Lane(server, health, link)
        self._enqueue_all(health)

    def _down(self, server: Server, link: Link) -> None:
        failure = link.pipe.failure
        if failure is not None and failure[0] is CommandTimeoutError:
            self.health[server.uri].stalled = True
        self._lanes.pop(link, None)

    def leave_alone(self, health: Health, error: DrainingError | OutOfMemoryError) -> None:
        """Give a server that takes no jobs a rest."""
        if not health.refusal:
            timer = self.hub.loop.timer(ALONE, ref=False)
            timer.start(self._rested, health, timer)
        health.refusal = error
        self._last_refusal = error
        if self.refusal is not None:
            self._wake_all()

    def _rested(self, health: Health, timer: Any) -> None:
        timer.close()
        health.refusal = None
        self._enqueue_all(health)

    @property
    def refusal(self) -> DrainingError | OutOfMemoryError | None:
        """The last DRAINING or OUT_OF_MEMORY, if every server is left alone after one."""
        return self._last_refusal if all(health.refusal for health in self.health.values()) else None

    # -- the end -----------------------------------------------------------------------------------------------

    def close(self) -> None:
        self.pool.stop_dialing()
        with ExitStack() as stack:  # all of them, also if one is interrupted
            stack.callback(self._wake_all)
            for link in self._lanes:
                stack.callback(link.close)

    def forked(self) -> None:
        """In a child: these are the parent's."""
        if _forks.is_here(self.hub):
            self._wake_all()
            self._stop_ticker()
