"""A pool to put with: a put takes a connection from the queue, and where it fails another one. `_lanes` has the queue.

Nothing is buffered: a returned id is the only success. What becomes of a put that failed:

    not sent: no connection, or lost before its last byte was handed over    another connection
    sent, no reply; INTERNAL_ERROR; the server broke the protocol            another, unless retry_ambiguous=False
    DRAINING, OUT_OF_MEMORY                                                  another server; this one rests for 5 s
    BAD_FORMAT, UNKNOWN_COMMAND, EXPECTED_CRLF; JOB_TOO_BIG; BURIED          raised at once
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import gevent
from gevent import get_hub, getcurrent
from gevent.exceptions import BlockingSwitchOutError

from gstalk import _forks
from gstalk._clock import monotonic
from gstalk._forks import look, under_way
from gstalk._hooks import Hooks
from gstalk._lanes import FULL, TICK, Lane, Lanes
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
from gstalk.protocol import checks, commands
from gstalk.protocol.checks import Body
from gstalk.protocol.session import PENDING, Slot
from gstalk.uri import validate_uris

__all__ = ["Producer"]

_FINAL = (BadFormatError, UnknownCommandError, ExpectedCrlfError, JobTooBigError, BuriedError)
_DEFAULTS = PutParams()


class _Attempt:
    """One put on its way through its tries."""

    __slots__ = ("began", "causes", "data", "deadline", "lanes", "refused", "sent", "tried", "tries", "tube", "uri")

    def __init__(self, lanes: Lanes, tube: str, data: bytes, began: float, deadline: float | None) -> None:
        self.began = began
        self.uri: str | None = None  # the server of the last try
        self.lanes = lanes
        self.tube = tube
        self.data = data
        self.deadline = deadline
        self.tried: set[str] = set()
        self.tries = 0
        self.refused = False  # the last try was answered: its connection goes on, and could say the same at once
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
        self._stopped = False
        self._start()
        _forks.register("producer", self, Producer._forked)

    def _start(self) -> None:
        self._lanes = Lanes(self._addresses, self._config, self._hooks)
        self._ready = True  # the one flag that the hot path looks at: not stopped, not forked

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def is_connected(self) -> bool:
        """Whether at least one connection is usable."""
        return self._ready and self._lanes.pool.is_connected

    def wait_connected(self, timeout: Seconds | None = None) -> bool:
        """Wait until a connection is usable.

        Args:
            timeout: Seconds; `None`: for ever.

        Returns:
            Whether one is.
        """
        self._check("wait_connected")
        return self._lanes.pool.wait_connected(None if timeout is None else checks.seconds("timeout", timeout))

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
        lanes = self._lanes
        if not self._ready or under_way or get_hub() is not lanes.hub or getcurrent() is lanes.hub:
            lanes = self._check("put")
        if params is None and priority is None and delay is None and ttr is None:
            params = _DEFAULTS
        else:
            params = merge(params, priority, delay, ttr)
        data = commands.put(body, params.priority, params.delay, params.ttr)
        checks.check_tube(tube)
        limit = self._limit(timeout)
        lanes.puts += 1
        try:
            now = monotonic()
            deadline = None if not limit else now + limit
            if self._hooks.listens:
                return self._put_telling(_Attempt(lanes, tube, data, now, deadline), limit == 0)
            lane = lanes.usable_now()
            if lane is None:
                return self._try_again(_Attempt(lanes, tube, data, now, deadline), limit == 0)
            slot = lanes.send(lane, tube, data, deadline)
            try:
                job_id: int = lane.link.pipe.wait(slot)
                return job_id
            except GstalkError as error:
                if error is not slot.error:  # it is the caller's own, and hit his wait
                    raise
            finally:
                lanes.done(lane)
            attempt = _Attempt(lanes, tube, data, now, deadline)
            self._judge(attempt, lane, slot, limit == 0)
            return self._try_again(attempt, False)
        finally:
            lanes.leave()

    def _put_telling(self, attempt: _Attempt, once: bool) -> int:
        """Put, and tell of the end."""
        try:
            job_id = self._try_again(attempt, once)
        except BaseException as error:
            self._tell(attempt, error)
            raise
        self._tell(attempt, job_id)
        return job_id

    def _tell(self, attempt: _Attempt, result: int | BaseException) -> None:
        error = result if isinstance(result, BaseException) else None
        self._hooks.event(
            "put",
            passing=True,
            uri=attempt.uri,
            tube=attempt.tube,
            job_id=getattr(error, "job_id", None) if isinstance(result, BaseException) else result,
            attempt=attempt.tries + (error is None) or None,
            exception=error,
            duration=monotonic() - attempt.began,
        )

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
        lanes = self._check("put_many")
        params = merge(params, priority, delay, ttr)
        checks.check_tube(tube)
        if isinstance(bodies, (str, bytes, bytearray, memoryview)):
            raise TypeError(f"bodies must be an iterable of bytes, got {type(bodies).__name__}")
        limit = self._limit(timeout)
        results: list[int | BaseException] = []
        pending: deque[tuple[_Attempt, Lane, Slot]] = deque()
        lanes.puts += 1
        try:
            for body in bodies:
                if lanes.pool.is_stopped:
                    results.append(self._ended("no"))
                    break
                try:
                    data = commands.put(body, params.priority, params.delay, params.ttr)
                except (TypeError, InvalidArgumentError) as error:
                    self._collect(pending, results, True, limit == 0)
                    results.append(error)
                    continue
                now = monotonic()
                attempt = _Attempt(lanes, tube, data, now, None if not limit else now + limit)
                lane = lanes.usable_now()
                if lane is None:
                    self._collect(pending, results, True, limit == 0)
                    result: int | BaseException
                    try:
                        result = self._try_again(attempt, limit == 0)
                    except GstalkError as error:
                        result = error
                    results.append(result)
                    if self._hooks.listens:
                        self._tell(attempt, result)
                    continue
                attempt.uri = lane.server.uri
                pending.append((attempt, lane, lanes.send(lane, tube, data, attempt.deadline)))
                if len(pending) >= FULL:
                    self._collect(pending, results, False, limit == 0)
            self._collect(pending, results, True, limit == 0)
        finally:
            for _, lane, _ in pending:
                lanes.done(lane)
            lanes.leave()
        wrong = sum(isinstance(result, BaseException) for result in results)
        if wrong:
            raise PutManyError(f"put_many to {tube!r}: {wrong} of {len(results)} failed", results)
        return results  # type: ignore[return-value]

    def _collect(
        self,
        pending: deque[tuple[_Attempt, Lane, Slot]],
        results: list[int | BaseException],
        everything: bool,
        once: bool,
    ) -> None:
        """Move answered puts to the results, oldest first; failed ones are tried again on the way."""
        while pending:
            attempt, lane, slot = pending[0]
            lanes = attempt.lanes
            if slot.result is PENDING and slot.error is None and not everything and len(pending) < FULL:
                return
            result: int | BaseException
            try:
                result = lane.link.pipe.wait(slot)
            except GstalkError as error:
                if error is not slot.error:
                    raise
                pending.popleft()
                lanes.done(lane)
                try:
                    self._judge(attempt, lane, slot, once)
                    result = self._try_again(attempt, False)
                except GstalkError as final:
                    result = final
            else:
                pending.popleft()
                lanes.done(lane)
            results.append(result)
            if self._hooks.listens:
                self._tell(attempt, result)

    # -- more tries --------------------------------------------------------------------------------------------

    def _judge(self, attempt: _Attempt, lane: Lane, slot: Slot, once: bool) -> None:
        """Look at why a try failed: return if there is to be another, else raise."""
        error = slot.error
        assert error is not None
        attempt.tried.add(lane.server.uri)
        attempt.tries += 1
        attempt.refused = not isinstance(error, DisconnectedError)
        if isinstance(error, PutTimeoutError):
            attempt.sent = "maybe"  # also where the kernel has not taken it yet: what is in line goes out when it can
            attempt.causes.setdefault(lane.server.uri, error)
            raise self._time_over(attempt)
        attempt.causes[lane.server.uri] = error
        if isinstance(error, _FINAL):
            raise error
        if isinstance(error, (DrainingError, OutOfMemoryError)):
            attempt.lanes.leave_alone(lane.health, error)
            if once:
                raise error
        else:
            if isinstance(error, CommandTimeoutError):
                lane.health.stalled = True
            if not isinstance(error, DisconnectedError) or error.sent == "maybe":
                attempt.sent = "maybe"
                if not self._config.retry_ambiguous:
                    raise error
            if once or attempt.lanes.pool.is_stopped:
                raise error
        fields = {"uri": lane.server.uri, "tube": attempt.tube, "attempt": attempt.tries, "exception": error}
        self._hooks.event("put_retry", passing=True, **fields)

    def _try_again(self, attempt: _Attempt, once: bool) -> int:
        """Put on whatever connection can be had, until it is done, refused, or the time is over."""
        lanes = attempt.lanes
        while True:
            lane = self._take(attempt, once)
            attempt.uri = lane.server.uri
            slot = lanes.send(lane, attempt.tube, attempt.data, attempt.deadline)
            try:
                job_id: int = lane.link.pipe.wait(slot)
                return job_id
            except GstalkError as error:
                if error is not slot.error:
                    raise
            finally:
                lanes.done(lane)
            self._judge(attempt, lane, slot, once)

    def _take(self, attempt: _Attempt, once: bool) -> Lane:
        """Get a connection, to a server not yet tried while one is usable; wait for one if need be."""
        lanes = attempt.lanes
        while True:
            if lanes.pool.is_stopped:
                raise self._ended(attempt.sent)
            lane = lanes.usable_for(attempt.tried)
            if lane is None:
                self._wait(attempt, once)
                continue
            if lane.server.uri in attempt.tried:
                # All usable servers have failed once: go round again, but not as fast as a server can say no. (A lost
                # connection takes its time to come back by itself.)
                attempt.tried.clear()
                if attempt.refused and attempt.tries >= len(lanes.health):
                    lanes.done(lane)
                    self._pause(attempt)
                    continue
            return lane

    def _wait(self, attempt: _Attempt, once: bool) -> None:
        lanes = attempt.lanes
        if (refusal := lanes.refusal) is not None:
            if attempt.sent == "maybe":
                earlier = type(refusal)(f"{refusal}; an earlier try may have stored the job")
                earlier.sent = "maybe"
                raise earlier from refusal
            raise refusal
        if self._stopped and not lanes.pool.is_connected:
            raise self._ended(attempt.sent)
        left = None if attempt.deadline is None else attempt.deadline - monotonic()
        if once or (left is not None and left <= 0):
            raise self._time_over(attempt)
        lanes.wait(left)

    def _ended(self, sent: Sent) -> ConnectionClosedError:
        if self._stopped:
            return ConnectionClosedError("put: this Producer is stopped", sent)
        return ConnectionClosedError("put: it began in the parent process, which goes on with it", "maybe")

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
        for server in attempt.lanes.pool.servers:
            if server.error is not None and server.is_down:
                causes.setdefault(server.uri, server.error)
        count = len(attempt.lanes.pool.servers)
        last = f"; last error: {list(causes.values())[-1]}" if causes else "; all connections were busy"
        stored = "; the job may have been stored" if attempt.sent == "maybe" else ""
        return PutTimeoutError(
            f"put to {attempt.tube!r}: no success with any of {count} server{'s' * (count > 1)} in time{last}{stored}",
            attempt.sent,
            causes,
        )

    def _limit(self, timeout: Any) -> float | None:
        """The seconds that a put may take; `None`: no limit."""
        if timeout is LEFT_OUT:
            return self._config.put_timeout  # type: ignore[return-value]
        return None if timeout is None else checks.seconds("timeout", timeout)

    def _check(self, what: str) -> Lanes:
        if self._stopped:
            raise ConnectionClosedError(f"{what}: this Producer is stopped")
        if under_way:
            look()
        if not self._ready:  # forked: the parent's connections are not ours
            self._start()
        hub = self._lanes.hub
        if get_hub() is not hub:
            raise WrongHubError(f"{what}: this Producer belongs to another thread's hub")
        if getcurrent() is hub:
            raise BlockingSwitchOutError("gstalk can't wait in the hub: spawn a greenlet for it")
        return self._lanes

    def stop(self, timeout: Seconds | None = LEFT_OUT) -> None:
        """Let puts under way finish, and close the connections. Idempotent; later puts raise `ConnectionClosedError`.

        Args:
            timeout: Seconds that puts under way may take. Left out: `Config.stop_timeout`; `None`: no limit.

        Blocks:
            Until they have finished, at most `timeout` seconds.
        """
        limit = self._config.stop_timeout if timeout is LEFT_OUT else timeout
        seconds = None if limit is None else checks.seconds("timeout", limit)
        lanes = self._lanes
        if get_hub() is not lanes.hub:
            raise WrongHubError("stop: this Producer belongs to another thread's hub")
        if self._stopped:
            return
        self._stopped = True
        forked, self._ready = not self._ready, False
        try:
            if not forked:
                lanes.wait_idle(seconds)
        finally:
            lanes.close()

    def _forked(self) -> None:
        """In a child: the next put begins with connections of its own."""
        self._ready = False
        self._lanes.forked()
