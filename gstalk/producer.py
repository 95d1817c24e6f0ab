"""A pool to put with: one gevent queue of usable connections, and another try where a put failed.

A put takes the connection at the head of the queue, counts itself on it, and the connection goes to the tail, or
stays out while it is full. So the queue spreads the load, waits while nothing is connected, and pushes back when
everything is busy. Nothing is buffered: a returned id is the only success.

What becomes of a put that failed:

    not sent: no connection, or lost before its last byte was handed over    another connection
    sent, no reply; INTERNAL_ERROR; the server broke the protocol            another, unless retry_ambiguous=False
    DRAINING, OUT_OF_MEMORY                                                  another server; this one rests for 5 s
    BAD_FORMAT, UNKNOWN_COMMAND, EXPECTED_CRLF; JOB_TOO_BIG; BURIED          raised at once

A put's time is looked at by one timer for all puts, 20 times a second, instead of one for each.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Iterable
from time import monotonic
from typing import Any

import gevent
from gevent import get_hub, getcurrent
from gevent.event import Event
from gevent.exceptions import BlockingSwitchOutError
from gevent.queue import Empty, Queue

from gstalk._hooks import Hooks
from gstalk._link import Link
from gstalk.config import LEFT_OUT, Config, PutParams
from gstalk.conn import merge
from gstalk.errors import (
    BadFormatError,
    BuriedError,
    CommandTimeoutError,
    ConnectionClosedError,
    DisconnectedError,
    DrainingError,
    ExpectedCrlfError,
    GstalkError,
    InvalidArgumentError,
    JobTooBigError,
    OutOfMemoryError,
    PutManyError,
    PutTimeoutError,
    Sent,
    UnknownCommandError,
    WrongHubError,
)
from gstalk.job import Seconds
from gstalk.pool import Pool, Server, Wanted
from gstalk.protocol import checks, commands
from gstalk.protocol.checks import Body
from gstalk.protocol.session import PENDING, Slot
from gstalk.schedule import ALONE, Health
from gstalk.uri import validate_uris

__all__ = ["Producer"]

FULL = 512  # puts in flight on one connection: then others come first
TICK = 0.05  # seconds between two looks at the time of puts
_FINAL = (BadFormatError, UnknownCommandError, ExpectedCrlfError, JobTooBigError, BuriedError)
_DEFAULTS = PutParams()


class _Lane:
    """A connection in the queue, and what is in flight on it."""

    __slots__ = ("health", "in_flight", "in_queue", "link", "server")

    def __init__(self, server: Server, health: Health, link: Link) -> None:
        self.server = server
        self.health = health
        self.link = link
        self.in_flight = 0
        self.in_queue = False


class _Attempt:
    """One put on its way through its tries."""

    __slots__ = ("causes", "data", "deadline", "sent", "tried", "tries", "tube")

    def __init__(self, tube: str, data: bytes, deadline: float | None) -> None:
        self.tube = tube
        self.data = data
        self.deadline = deadline
        self.tried: set[str] = set()
        self.tries = 0
        self.sent: Sent = "no"
        self.causes: dict[str, BaseException] = {}


class Producer:
    """A pool of connections to put jobs with. Also a context manager, which stops it.

    Args:
        uris: The servers, or one.
        config: What to start from.
        **options: Fields of `Config`, which override it.

    Raises:
        InvalidArgumentError: A URI is malformed, or an option out of range.

    Blocks:
        Never: it connects in the background, and a put made at once waits for the first connection.
    """

    def __init__(self, uris: str | Iterable[str], config: Config | None = None, **options: Any) -> None:
        self._config = (config or Config()).replace(**options)
        self._addresses = validate_uris(uris)
        self._hooks = Hooks(self._config)
        self._active = 0  # puts under way
        self._stopped = False
        self._idle: Event | None = None
        self._start()
        _producers.add(self)

    def _start(self) -> None:
        self._hub = get_hub()
        self._ready = True  # the one flag that the hot path looks at: not stopped, not forked
        self._queue: Queue[_Lane | None] = Queue()
        self._getters = 0
        self._lanes: dict[Link, _Lane] = {}
        self._health = {str(address): Health() for address in self._addresses}
        self._last_refusal: BaseException | None = None
        self._ticker: Any = None
        self._pool = Pool(self._addresses, self._config, (), self._hooks, self._up, self._down)

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def is_connected(self) -> bool:
        """Whether at least one connection is usable."""
        return self._ready and self._pool.is_connected

    def wait_connected(self, timeout: Seconds | None = None) -> bool:
        """Wait until a connection is usable.

        Args:
            timeout: Seconds; `None`: for ever.

        Returns:
            Whether one is.
        """
        self._check("wait_connected")
        return self._pool.wait_connected(None if timeout is None else checks.seconds("timeout", timeout))

    # -- putting -----------------------------------------------------------------------------------------------

    def put(
        self,
        tube: str,
        body: Body,
        params: PutParams | None = None,
        *,
        priority: int | None = None,
        delay: Seconds | None = None,
        ttr: Seconds | None = None,
        timeout: Seconds | None = LEFT_OUT,
    ) -> int:
        """Put a job into a tube, on any of the servers; where that fails, on another connection.

        Args:
            tube, body, params, priority, delay, ttr: As in `Conn.put`.
            timeout: Seconds for the whole call, waiting for a connection included. Left out: `Config.put_timeout`;
                `None`: no limit; 0: a connection that is usable now, and no second try.

        Returns:
            The job's id, on the server that took it.

        Raises:
            TypeError, InvalidArgumentError: An argument; nothing was sent.
            PutTimeoutError: The time is over; `sent` is "maybe" if any try may have stored the job, `causes` has the
                last exception of each server.
            DrainingError, OutOfMemoryError: No server takes jobs.
            JobTooBigError: The server takes no body of this size.
            BuriedError: The job is stored, but buried.
            DisconnectedError, InternalError, ProtocolError: With `retry_ambiguous=False`, or `timeout=0`.
            ConnectionClosedError: The Producer was stopped.

        Blocks:
            Until a server has the job, at most `timeout` seconds.

        Protocol:
            As `Conn.put`.
        """
        if not self._ready or get_hub() is not self._hub or getcurrent() is self._hub:
            self._check("put")
        if params is None and priority is None and delay is None and ttr is None:
            params = _DEFAULTS
        else:
            params = merge(params, priority, delay, ttr)
        data = commands.put(body, params.priority, params.delay, params.ttr)
        checks.check_tube(tube)
        limit = self._limit(timeout)
        self._active += 1
        lane = None
        try:
            deadline = None if not limit else monotonic() + limit
            lane = self._usable_now()
            if lane is None:
                return self._try_again(_Attempt(tube, data, deadline), limit == 0)
            slot = self._send(lane, tube, data, deadline)
            try:
                job_id: int = lane.link.pipe.wait(slot)
                return job_id
            except GstalkError as error:
                if error is not slot.error:  # it is the caller's own, and hit his wait
                    raise
            finally:
                self._done(lane)
            attempt = _Attempt(tube, data, deadline)
            self._judge(attempt, lane, slot, limit == 0)
            return self._try_again(attempt, False)
        finally:
            self._active -= 1
            if self._idle is not None and not self._active:
                self._idle.set()

    def put_many(
        self,
        tube: str,
        bodies: Iterable[Body],
        params: PutParams | None = None,
        *,
        priority: int | None = None,
        delay: Seconds | None = None,
        ttr: Seconds | None = None,
        timeout: Seconds | None = LEFT_OUT,
    ) -> list[int]:
        """Put many jobs in pipelined streams over all connections; each body is retried on its own.

        Args:
            tube, bodies, params, priority, delay, ttr: As in `Conn.put_many`.
            timeout: As in `put`, for each body from when it is taken.

        Returns:
            The ids, in order. They are of different servers where there are several.

        Raises:
            PutManyError: Some failed; `results` has an id or an exception for each body taken, in order.
            TypeError, InvalidArgumentError: An argument other than a body; nothing was sent.
            Exception: Whatever the iterable raised, unchanged; the bodies taken before it are on their way.

        Blocks:
            Until all are put or have failed.

        Protocol:
            As `Conn.put`.
        """
        self._check("put_many")
        params = merge(params, priority, delay, ttr)
        checks.check_tube(tube)
        if isinstance(bodies, (str, bytes, bytearray, memoryview)):
            raise TypeError(f"bodies must be an iterable of bytes, got {type(bodies).__name__}")
        limit = self._limit(timeout)
        results: list[int | BaseException] = []
        pending: deque[tuple[_Attempt, _Lane, Slot]] = deque()
        self._active += 1
        try:
            for body in bodies:
                try:
                    data = commands.put(body, params.priority, params.delay, params.ttr)
                except (TypeError, InvalidArgumentError) as error:
                    self._collect(pending, results, True, limit == 0)
                    results.append(error)
                    continue
                attempt = _Attempt(tube, data, None if not limit else monotonic() + limit)
                lane = self._usable_now()
                if lane is None:
                    self._collect(pending, results, True, limit == 0)
                    try:
                        results.append(self._try_again(attempt, limit == 0))
                    except GstalkError as error:
                        results.append(error)
                    continue
                pending.append((attempt, lane, self._send(lane, tube, data, attempt.deadline)))
                if len(pending) >= FULL:
                    self._collect(pending, results, False, limit == 0)
            self._collect(pending, results, True, limit == 0)
        finally:
            for _, lane, _ in pending:
                self._done(lane)
            self._active -= 1
            if self._idle is not None and not self._active:
                self._idle.set()
        wrong = sum(isinstance(result, BaseException) for result in results)
        if wrong:
            raise PutManyError(f"put_many to {tube!r}: {wrong} of {len(results)} failed", results)
        return results  # type: ignore[return-value]

    def _collect(
        self,
        pending: deque[tuple[_Attempt, _Lane, Slot]],
        results: list[int | BaseException],
        everything: bool,
        once: bool,
    ) -> None:
        """Move answered puts to the results, oldest first; failed ones are tried again on the way."""
        while pending:
            attempt, lane, slot = pending[0]
            if slot.result is PENDING and slot.error is None and not everything and len(pending) < FULL:
                return
            try:
                results.append(lane.link.pipe.wait(slot))
            except GstalkError as error:
                if error is not slot.error:
                    raise
                pending.popleft()
                self._done(lane)
                try:
                    self._judge(attempt, lane, slot, once)
                    results.append(self._try_again(attempt, False))
                except GstalkError as final:
                    results.append(final)
            else:
                pending.popleft()
                self._done(lane)

    # -- one try -----------------------------------------------------------------------------------------------

    def _usable_now(self) -> _Lane | None:
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

    def _send(self, lane: _Lane, tube: str, data: bytes, deadline: float | None) -> Slot:
        link = lane.link
        pipe = link.pipe
        slot = Slot(commands.PUT, pipe.session, None, None, deadline)
        if tube == link.used:
            pipe.append(data, slot)
        else:
            link.append_using(tube, data, slot)
        if self._ticker is None and deadline is not None:
            self._ticker = self._hub.loop.timer(TICK, TICK, ref=False)
            self._ticker.start(self._tick)
        return slot

    def _done(self, lane: _Lane) -> None:
        lane.in_flight -= 1
        if not lane.in_queue:
            self._enqueue(lane)

    def _enqueue(self, lane: _Lane) -> None:
        if not lane.in_queue and lane.link in self._lanes and lane.link.pipe.clear and lane.health.is_usable:
            lane.in_queue = True
            self._queue.put_nowait(lane)

    def _tick(self) -> None:
        """In the hub: end the wait of puts whose time is over."""
        now = monotonic()
        any_left = False
        for lane in list(self._lanes.values()):
            pipe = lane.link.pipe
            for slot in pipe.slots:
                if slot.extra is not None and slot.error is None:
                    if slot.extra <= now:
                        slot.error = PutTimeoutError(f"{slot}: no answer in time", "maybe")
                        pipe.complete(slot)
                    any_left = True
        if not any_left and not self._active:
            self._ticker.close()
            self._ticker = None

    # -- more tries --------------------------------------------------------------------------------------------

    def _judge(self, attempt: _Attempt, lane: _Lane, slot: Slot, once: bool) -> None:
        """Look at why a try failed: return if there is to be another, else raise."""
        error = slot.error
        assert error is not None
        attempt.tried.add(lane.server.uri)
        attempt.tries += 1
        if isinstance(error, PutTimeoutError):
            if slot.end <= lane.link.pipe.sent:
                attempt.sent = "maybe"
            attempt.causes.setdefault(lane.server.uri, error)
            raise self._time_over(attempt)
        attempt.causes[lane.server.uri] = error
        if isinstance(error, _FINAL):
            raise error
        if isinstance(error, (DrainingError, OutOfMemoryError)):
            self._leave_alone(lane.health, error)
            if once:
                raise error
        else:
            if isinstance(error, CommandTimeoutError):
                lane.health.stalled = True
            if not isinstance(error, DisconnectedError) or error.sent == "maybe":
                attempt.sent = "maybe"
                if not self._config.retry_ambiguous:
                    raise error
            if once or self._stopped:
                raise error
        fields = {"uri": lane.server.uri, "tube": attempt.tube, "attempt": attempt.tries, "exception": error}
        self._hooks.event("put_retry", passing=True, **fields)

    def _try_again(self, attempt: _Attempt, once: bool) -> int:
        """Put on whatever connection can be had, until it is done, refused, or the time is over."""
        while True:
            lane = self._take(attempt, once)
            slot = self._send(lane, attempt.tube, attempt.data, attempt.deadline)
            try:
                job_id: int = lane.link.pipe.wait(slot)
                return job_id
            except GstalkError as error:
                if error is not slot.error:
                    raise
            finally:
                self._done(lane)
            self._judge(attempt, lane, slot, once)

    def _take(self, attempt: _Attempt, once: bool) -> _Lane:
        """Get a connection, to a server not yet tried while one is usable; wait for one if need be."""
        while True:
            tried = None
            for _ in range(self._queue.qsize()):
                lane = self._usable_now()
                if lane is None:
                    break
                if tried is not None:
                    self._done(tried)
                if lane.server.uri not in attempt.tried:
                    return lane
                tried = lane
            if tried is not None:
                # All usable servers have failed once: go round again, but not as fast as a server can say no.
                attempt.tried.clear()
                if attempt.tries >= len(self._health):
                    self._done(tried)
                    self._pause(attempt)
                    continue
                return tried
            self._wait(attempt, once)

    def _wait(self, attempt: _Attempt, once: bool) -> None:
        now = monotonic()
        if (refusal := self._refusal()) is not None:
            raise refusal
        if self._stopped and not self._pool.is_connected:
            raise ConnectionClosedError("put: this Producer is stopped")
        left = None if attempt.deadline is None else attempt.deadline - now
        if once or (left is not None and left <= 0):
            raise self._time_over(attempt)
        for lane in self._lanes.values():
            self._enqueue(lane)
            if not lane.link.pipe.clear:  # busy with puts that nobody waits for any more: nobody tells when it isn't
                left = TICK if left is None else min(left, TICK)
        self._getters += 1
        try:
            with Wanted(self._pool):
                found = self._queue.get(timeout=left)
        except Empty:
            return
        finally:
            self._getters -= 1
        if found is not None:  # `_usable_now` looks at it
            found.in_queue = False
            self._enqueue(found)

    def _pause(self, attempt: _Attempt) -> None:
        pause = min(TICK * 2.0 ** min(attempt.tries, 5), 1.0)
        if attempt.deadline is not None:
            left = attempt.deadline - monotonic()
            if left <= 0:
                raise self._time_over(attempt)
            pause = min(pause, left)
        gevent.sleep(pause)

    def _time_over(self, attempt: _Attempt) -> PutTimeoutError:
        causes = dict(attempt.causes)
        for server in self._pool.servers:
            if server.error is not None and server.is_down:
                causes.setdefault(server.uri, server.error)
        count = len(self._pool.servers)
        last = f"; last error: {list(causes.values())[-1]}" if causes else "; all connections were busy"
        stored = "; the job may have been stored" if attempt.sent == "maybe" else ""
        return PutTimeoutError(
            f"put to {attempt.tube!r}: no success with any of {count} server{'s' * (count > 1)} in time{last}{stored}",
            attempt.sent,
            causes,
        )

    # -- connections -------------------------------------------------------------------------------------------

    def _up(self, server: Server, link: Link) -> None:
        health = self._health[server.uri]
        health.stalled = False  # it has just answered
        self._lanes[link] = _Lane(server, health, link)
        for lane in self._lanes.values():
            if lane.health is health:
                self._enqueue(lane)

    def _down(self, server: Server, link: Link) -> None:
        failure = link.pipe.failure
        if failure is not None and failure[0] is CommandTimeoutError:
            self._health[server.uri].stalled = True
        self._lanes.pop(link, None)

    def _leave_alone(self, health: Health, error: BaseException) -> None:
        """Give a server that takes no jobs a rest."""
        if not health.refusal:
            timer = self._hub.loop.timer(ALONE, ref=False)
            timer.start(self._rested, health, timer)
        health.refusal = error
        self._last_refusal = error
        if self._refusal() is not None:
            for _ in range(self._getters):  # nobody is to wait for what won't come
                self._queue.put_nowait(None)

    def _rested(self, health: Health, timer: Any) -> None:
        timer.close()
        health.refusal = None
        for lane in self._lanes.values():
            if lane.health is health:
                self._enqueue(lane)

    def _refusal(self) -> BaseException | None:
        """The last DRAINING or OUT_OF_MEMORY, if every server is left alone after one."""
        return self._last_refusal if all(health.refusal for health in self._health.values()) else None

    def _limit(self, timeout: Any) -> float | None:
        """The seconds that a put may take; `None`: no limit."""
        if timeout is LEFT_OUT:
            return self._config.put_timeout  # type: ignore[return-value]
        return None if timeout is None else checks.seconds("timeout", timeout)

    def _check(self, what: str) -> None:
        if self._stopped:
            raise ConnectionClosedError(f"{what}: this Producer is stopped")
        if not self._ready:  # forked: the parent's connections are not ours
            self._active = 0
            self._start()
        if get_hub() is not self._hub:
            raise WrongHubError(f"{what}: this Producer belongs to another thread's hub")
        if getcurrent() is self._hub:
            raise BlockingSwitchOutError("gstalk can't wait in the hub: spawn a greenlet for it")

    def stop(self, timeout: Seconds | None = LEFT_OUT) -> None:
        """Let puts under way finish, and close the connections. Idempotent; later puts raise `ConnectionClosedError`.

        Args:
            timeout: Seconds that puts under way may take. Left out: `Config.stop_timeout`; `None`: no limit.

        Blocks:
            Until they have finished, at most `timeout` seconds.
        """
        limit = self._config.stop_timeout if timeout is LEFT_OUT else timeout
        seconds = None if limit is None else checks.seconds("timeout", limit)
        if get_hub() is not self._hub:
            raise WrongHubError("stop: this Producer belongs to another thread's hub")
        if self._stopped:
            return
        self._stopped = True
        forked, self._ready = not self._ready, False
        try:
            if self._active and not forked:
                self._idle = Event()
                self._idle.wait(seconds)
        finally:
            self._pool.stop_dialing()
            for link in list(self._lanes):
                link.close()
            for _ in range(self._getters):
                self._queue.put_nowait(None)


_producers: weakref.WeakSet[Producer] = weakref.WeakSet()


def _after_fork() -> None:
    for producer in list(_producers):
        producer._ready = False
        if producer._ticker is not None:
            producer._ticker.close()
            producer._ticker = None


os.register_at_fork(after_in_child=_after_fork)
