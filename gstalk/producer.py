"""A pool to put with: a put takes a connection from the queue, and where it fails another one.

`pool.hubs` has the connections of each thread, `pool.put_queue` the queue of them, `pool.puts` what becomes of a put
that failed. Nothing is buffered: a returned id is the only success.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from gevent import getcurrent
from gevent.exceptions import BlockingSwitchOutError
from gevent.hub import Hub

from gstalk.config import DEFAULT_PARAMS, LEFT_OUT, Config, Options, PutParams, Unpack, configure, put_params
from gstalk.connection.calls import join
from gstalk.connection.clock import monotonic
from gstalk.connection.forks import look, under_way
from gstalk.connection.hooks import Hooks
from gstalk.connection.threads import get_hub_if_exists
from gstalk.errors import ConnectionClosedError, GstalkError, PutManyError
from gstalk.job import Seconds
from gstalk.pool.hubs import Hubs
from gstalk.pool.put_queue import NEVER, PutQueue, Try
from gstalk.pool.puts import MOST, Batch, Put, go_on, run
from gstalk.protocol import checks, commands
from gstalk.protocol.checks import Body
from gstalk.traces import forget, forgetful
from gstalk.uri import validate_uris

__all__ = ["Producer"]


@forgetful(but=("put",))
class Producer:
    """A pool of connections to put jobs with. Also a context manager, which stops it.

    May be used from any thread: each has connections of its own, made at its first put (or `wait_connected`), and
    closed when the thread has ended. One that nobody refers to any more closes its connections, with a
    `ResourceWarning`.

    Args:
        uris: The servers, or one.
        config: What to start from.
        **options: Fields of `Config`, which override it.

    Raises:
        TypeError, InvalidArgumentError: A URI or an option.

    Blocks:
        Never: it connects in the background, and a put made at once waits for the first connection.
    """

    def __init__(self, uris: str | Iterable[str], config: Config | None = None, **options: Unpack[Options]) -> None:
        self._config = configure(config, options)
        self._hooks = Hooks(self._config)
        self._hubs = Hubs(validate_uris(uris), self._config, self._hooks)
        self._queue = self._hubs.enter()  # those of one hub, which are looked at first
        self._tube = "default"  # the last one that was put to: it need not be checked again
        self._finalizer = weakref.finalize(self, Hubs.drop, self._hubs)
        self._finalizer.atexit = False

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def is_connected(self) -> bool:
        """Whether at least one connection of this thread's is usable."""
        queue = self._hubs.find()
        if queue is None or not queue.is_ready:
            return False
        queue.look()
        return queue.pool.is_connected

    def wait_connected(self, timeout: Seconds | None = None) -> bool:
        """Wait until a connection of this thread's is usable; it makes them, if there are none.

        Args:
            timeout: Seconds; `None`: for ever.

        Returns:
            Whether one is; `False` when the time is over, or when the Producer is stopped meanwhile.
        """
        pool = self._check("wait_connected").pool
        limit = _limit(timeout)
        deadline = None if limit is None else monotonic() + limit
        while not self.is_connected and not self._hubs.is_over and not pool.is_stopped:
            left = None if deadline is None else deadline - monotonic()
            if (left is not None and left <= 0) or not pool.wait_change(left):
                break
        return self.is_connected

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
            timeout: Seconds for the whole call, waiting for a connection included; looked at 20 times a second, so it
                may end 50 ms late. Left out: `Config.put_timeout`; `None`: no limit; 0: a connection that is usable
                now, and no second try.

        Returns:
            The job's id, on the server that took it.

        Raises:
            TypeError, InvalidArgumentError: An argument; nothing was sent.
            PutTimeoutError: The time is over; `sent` is "maybe" if any try may have stored the job, `causes` has the
                last exception of each server.
            DrainingError, OutOfMemoryError: No server takes jobs.
            JobTooBigError: The server takes no body of this size.
            BuriedError: The job is stored, but buried.
            DisconnectedError, InternalError, ProtocolError: Three tries may have stored the job, or one with
                `retry_ambiguous=False` or `timeout=0`; `sent` is "maybe". Also if all servers broke the protocol.
            ConnectionClosedError: The Producer was stopped.

        Blocks:
            Until a server has the job, at most `timeout` seconds; with 0 until the only try is answered, or its
            connection is given up (`Config.conn_timeout`).

        Protocol:
            As `Conn.put`.
        """
        try:
            queue = self._queue
            # Most greenlets have the hub as their parent: such a one is of this hub's thread, and not the hub itself.
            me = getcurrent()
            if (me.parent is not queue.hub and _is_elsewhere(queue.hub)) or not queue.is_ready or under_way:
                queue = self._check("put")
            if params is None and priority is None and delay is None and ttr is None:
                params = DEFAULT_PARAMS
            else:
                params = put_params(params, priority, delay, ttr)
            data = commands.put(body, params.head)
            if tube is not self._tube:
                tube = self._tube = checks.check_tube(tube)
            limit = self._config.put_timeout if timeout is LEFT_OUT else _limit(timeout)
            now = monotonic()
            deadline = now + limit if limit else NEVER
            if self._hooks.listens:
                outcome = _run_telling(Put(queue, tube, data, deadline, limit == 0, now))
            else:
                request = Try(deadline)
                queue.puts += 1
                try:
                    if not queue.send(request, tube, data, me, now):
                        queue.stand(request, tube, data, limit == 0)
                    join(queue.hub, request)
                    job_id: int | None = request.result
                    if request.error is None and job_id is not None:
                        return job_id
                    outcome = go_on(Put(queue, tube, data, deadline, limit == 0, now), request)
                finally:
                    queue.puts -= 1
                    queue.done(request)
            if isinstance(outcome, int):
                return outcome
            raise outcome
        except BaseException as error:
            forget(error)
            self = queue = me = request = body = data = outcome = None  # type: ignore[assignment]
            raise

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

        While no server takes jobs, the bodies are taken one after the other, and each waits its whole `timeout` for a
        server. With the default of 15 seconds, a hundred bodies then fail after 25 minutes. Where that is too long, ask
        first (`wait_connected(5)`), give a short `timeout`, or bound the whole call with a `gevent.Timeout`. Beside
        other greenlets that wait for a connection, each body takes its turn as one of them.

        Args:
            tube, bodies, params, priority, delay, ttr: As in `Conn.put_many`.
            timeout: As in `put`, for each body from when it is taken: it doesn't bound the whole call. With 0 a body
                fails at once where no server can take it.

        Returns:
            The ids, in order. They are of different servers where there are several.

        Raises:
            PutManyError: Some failed; `results` has an id or an exception for each body taken, in order.
            TypeError, InvalidArgumentError: An argument other than a body; nothing was sent.
            Exception: Whatever the iterable raised, unchanged, once the bodies taken before it are put or have failed.

        Blocks:
            Until all are put or have failed: without a server, `timeout` seconds for each body.

        Protocol:
            As `Conn.put`.
        """
        queue = self._check("put_many")
        params = put_params(params, priority, delay, ttr)
        tube = checks.check_tube(tube)
        checks.check_bodies(bodies)
        limit = self._config.put_timeout if timeout is LEFT_OUT else _limit(timeout)
        iterator = iter(bodies)
        batch = Batch(queue, tube, limit == 0)
        try:
            while True:
                if batch.under_way >= MOST:
                    batch.wait_room()
                try:
                    body = next(iterator)
                except StopIteration:
                    break
                except Exception:
                    batch.end()
                    raise
                if queue.pool.is_stopped:
                    batch.refuse(ConnectionClosedError("put: this Producer is stopped", "no"))
                    break
                try:
                    data = commands.put(body, params.head)
                except Exception as error:  # whatever is wrong with a body is wrong with it alone
                    batch.refuse(error)
                    continue
                now = monotonic()
                batch.add(data, now, now + limit if limit else NEVER)
            batch.end()
        finally:
            batch.leave()
        results = batch.results
        if batch.failures:
            raise PutManyError(f"put_many to {tube!r}: {batch.failures} of {len(results)} failed", results)
        return results

    def _check(self, what: str) -> PutQueue:
        if self._hubs.is_over:
            raise ConnectionClosedError(f"{what}: this Producer is stopped")
        if under_way:
            look()
        queue = self._hubs.enter()
        if self._hubs.is_over:  # in another thread, before it could know of these
            if queue.puts <= 0:  # else it knows of them: puts that began before it may finish
                queue.close()
            raise ConnectionClosedError(f"{what}: this Producer is stopped")
        if not self._queue.is_ready or self._queue.hub.loop is None:  # forked, or that thread has ended
            self._queue = queue
        if getcurrent() is queue.hub:
            raise BlockingSwitchOutError("gstalk can't wait in the hub: spawn a greenlet for it")
        if queue.section.owner is not None:
            queue.section.wait()
        return queue

    def stop(self, timeout: Seconds | None = LEFT_OUT) -> None:
        """Let puts under way finish, and close the connections, those of all threads, from whichever it is called.

        Idempotent; later puts raise `ConnectionClosedError`.

        Args:
            timeout: Seconds that puts under way may take. Left out: `Config.stop_timeout`; `None`: no limit.

        Blocks:
            Until they have finished, at most `timeout` seconds.
        """
        limit = self._config.stop_timeout if timeout is LEFT_OUT else timeout
        seconds = None if limit is None else checks.seconds("timeout", limit)
        if self._hubs.is_over:
            return
        if under_way:
            look()
        self._hubs.end(seconds)
        self._finalizer.detach()


def _limit(timeout: Any) -> float | None:
    """The seconds that a put may take; `None`: no limit."""
    return None if timeout is None else checks.seconds("timeout", timeout)


def _is_elsewhere(hub: Hub) -> bool:
    """This greenlet is of another thread's hub, or is the hub itself."""
    return getcurrent() is hub or get_hub_if_exists() is not hub


def _run_telling(put: Put) -> int | GstalkError:
    """Put, and tell of the end."""
    put.queue.puts += 1
    try:
        try:
            outcome = run(put)
        except BaseException as error:
            put.tell(error)
            raise
        put.tell(outcome)
        return outcome
    finally:
        put.queue.leave()
