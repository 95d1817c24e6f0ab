"""One connection to one server, in beanstalkd's own words.

All greenlets of a hub may use one `Conn` at the same time: commands are pipelined, and each greenlet gets its own
reply. How that is done stands in `connection.pipeline`, what becomes of jobs in `connection.reserved`, and how reserves
go beside other commands in `connection.reserving`. Here are the commands.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from gevent import get_hub, getcurrent, sleep

from gstalk.config import DEFAULT_PARAMS, Config, Options, PutParams, Unpack, configure, put_params
from gstalk.connection.calls import join
from gstalk.connection.clock import monotonic
from gstalk.connection.connection import Connection
from gstalk.connection.critical import critical
from gstalk.connection.reserving import Caller, ReserveLine
from gstalk.errors import PutManyError
from gstalk.job import Job, Seconds
from gstalk.protocol import checks, commands
from gstalk.protocol.checks import Body
from gstalk.protocol.commands import Command
from gstalk.protocol.request import PENDING, PutRequest, Request
from gstalk.protocol.stats import JobStats, ServerStats, TubeStats
from gstalk.traces import forget, forgetful
from gstalk.uri import parse_uri

__all__ = ["Conn", "connection_of", "dial"]

BREATH = 0.01  # seconds of bad bodies, which cost no wait, after which others have their turn


def dial(uri: str, config: Config | None = None, **options: Unpack[Options]) -> Conn:
    """Connect to one server.

    Args:
        uri: As `parse_uri` takes it.
        config: What to start from.
        **options: Fields of `Config`, which override it.

    Raises:
        InvalidArgumentError: The URI or an option.
        ConnectError: No connection, or no answer on it.

    Blocks:
        At most `Config.conn_timeout` seconds: look-up, TCP, TLS, and the answer to a first ``stats``.
    """
    return Conn(Connection(parse_uri(uri), configure(config, options)))


@forgetful(but=("put",))
class Conn:
    """A connection; made by `dial`. Also a context manager, which closes it.

    Every method may raise a `DisconnectedError` (broken or closed: whatever its argument), a `WrongHubError` and, for
    a server in trouble, `OutOfMemoryError` or `InternalError`. Where "Blocks" says "until the reply", the server's
    silence ends it after `Config.conn_timeout` seconds without progress. A `gevent.Timeout` or a kill at any moment is
    safe: what was called is carried out, and its reply dropped.
    """

    __slots__ = ("__weakref__", "_connection", "_hub", "_line", "_section")

    def __init__(self, connection: Connection) -> None:
        if not isinstance(connection, Connection):
            raise TypeError(f"a Conn is made by gstalk.dial(uri), not by Conn({connection!r})")
        self._connection = connection
        self._hub = connection.hub
        self._section = connection.section
        self._line = ReserveLine(connection)
        # Weak: a connection closes as soon as nobody refers to it any more, not when the collector finds a cycle.
        line = weakref.ref(self._line)

        def ended() -> None:
            if (mine := line()) is not None:
                mine.end()

        connection.on_failure = connection.on_closing = ended

    def __repr__(self) -> str:
        return f"<Conn {self.uri}, {'connected' if self.is_connected else 'not connected'}>"

    def __enter__(self) -> Conn:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def uri(self) -> str:
        """The server's canonical URI."""
        return self._connection.uri

    @property
    def is_connected(self) -> bool:
        """Whether commands can be sent; it is neither closed nor broken then."""
        return self._connection.is_connected

    # -- putting -----------------------------------------------------------------------------------------------

    @critical
    def put(
        self,
        tube: str,
        body: Body,
        params: PutParams | None = None,
        *,
        priority: int | None = None,
        delay: Seconds | None = None,
        ttr: Seconds | None = None,
    ) -> int:
        """Put a job into a tube.

        Args:
            tube: 1 to 200 characters of ``A-Za-z0-9-+/;.$_()``, not beginning with ``-``.
            body: At most the server's max-job-size, 65,535 bytes by default.
            params: Priority, delay and ttr, to be used again; the keywords override it.
            priority: 0 to 4294967295, 0 the most urgent.
            delay: Seconds until the job is ready, rounded up to whole ones.
            ttr: Seconds that whoever reserves it may take, at least 1, rounded up to whole ones.

        Returns:
            The job's id.

        Raises:
            TypeError, InvalidArgumentError: An argument; nothing was sent.
            BuriedError: The server was out of memory: the job is stored, but buried; `job_id` names it.
            JobTooBigError, DrainingError, OutOfMemoryError: Refused; it was not stored.

        Blocks:
            Until the reply.

        Protocol:
            ``put <pri> <delay> <ttr> <bytes>`` -> ``INSERTED``, ``BURIED``, ``JOB_TOO_BIG``, ``DRAINING``, behind a
            ``use <tube>`` in the same write where the tube changes; doc/protocol.txt, "Producer Commands".
        """
        connection = self._connection
        section = self._section
        me = getcurrent()
        try:
            # Most greenlets have the hub as their parent: such a one is of this hub's thread, and not the hub itself.
            if (
                (me.parent is not self._hub and (me is self._hub or get_hub() is not self._hub))
                or section.owner is not None
                or not connection.pipe.clear
            ):
                connection.check("put")
            if params is None and priority is None and delay is None and ttr is None:
                params = DEFAULT_PARAMS
            else:
                params = put_params(params, priority, delay, ttr)
            data = commands.put(body, params.head)
            if type(tube) is not str:
                tube = checks.check_tube(tube)
            if not connection.pipe.clear:
                checks.check_tube(tube)
                connection.clear("put")
            try:  # as `Connection.send`, spelled out for the sake of the hot path
                section.owner = me
                pipe = connection.pipe
                request = Request(commands.PUT, pipe.uri)
                if tube == connection.used:
                    pipe.append(data, request)
                else:
                    connection.append_using(tube, data, request)
            finally:
                section.owner = None
            job_id: int = pipe.wait(request) if connection.outcomes is None else connection.outcomes.wait(request, tube)
            return job_id
        except BaseException as error:
            forget(error)
            self = connection = me = section = pipe = body = data = request = None  # type: ignore[assignment]
            raise

    @critical
    def put_many(
        self,
        tube: str,
        bodies: Iterable[Body],
        params: PutParams | None = None,
        *,
        priority: int | None = None,
        delay: Seconds | None = None,
        ttr: Seconds | None = None,
    ) -> list[int]:
        """Put many jobs in one pipelined stream.

        A body that is bad or refused doesn't stop the others; a lost connection stops the taking. No more of the
        iterable is held than is in flight.

        Args:
            bodies: Any iterable of bodies; it may wait for more.
            tube, params, priority, delay, ttr: As in `put`, the same for all.

        Returns:
            The ids, in order.

        Raises:
            PutManyError: Some failed; `results` has an id or an exception for each body taken, in order.
            TypeError, InvalidArgumentError: An argument other than a body; nothing was sent.
            Exception: Whatever the iterable raised, unchanged, once the bodies taken before it are put or have failed.

        Blocks:
            Until all replies are there.

        Protocol:
            As `put`.
        """
        connection = self._connection
        section = self._section
        me = getcurrent()
        connection.check("put_many")
        params = put_params(params, priority, delay, ttr)
        tube = checks.check_tube(tube)
        checks.check_bodies(bodies)
        head = params.head
        results: list[int | BaseException] = []
        pending: deque[PutRequest | BaseException] = deque()
        failed = 0
        breath = monotonic() + BREATH
        body: Any = None
        try:
            for body in bodies:
                try:
                    data = commands.put(body, head)
                except Exception as error:  # whatever is wrong with a body is wrong with it alone
                    pending.append(error.with_traceback(None))  # it holds this frame, and this frame holds it
                    if monotonic() > breath:
                        failed += self._harvest(pending, results, tube)
                        sleep(1e-6)  # after a sleep of 0 the loop may come back before it has looked at any socket
                        breath = monotonic() + BREATH
                    body = None
                    continue
                if not connection.pipe.clear:
                    failed += self._harvest(pending, results, tube)
                    while not connection.pipe.clear and connection.is_connected:
                        connection.wait_room()
                    if not connection.is_connected:
                        pending.append(connection.gone("put_many"))
                        break
                if section.owner is not None:
                    section.wait()
                try:  # as `Connection.send`
                    section.owner = me
                    pipe = connection.pipe
                    began = 0.0 if connection.outcomes is None else monotonic()
                    request = PutRequest(commands.PUT, pipe.uri, None, None, began)
                    if tube == connection.used:
                        pipe.append(data, request)
                    else:
                        connection.append_using(tube, data, request)
                finally:
                    section.owner = None
                pending.append(request)
                body = None  # it is handed over; what is raised from here on is the iterable's
        except Exception:
            if body is None:  # before that passes: a Conn that is closed behind it would drop what was taken
                self._end(pending, results, tube)
            raise
        failed += self._end(pending, results, tube)
        if failed:
            raise PutManyError(f"put_many to {tube!r} at {self.uri}: {failed} of {len(results)} failed", results)
        return results  # type: ignore[return-value]

    def _end(self, pending: deque[PutRequest | BaseException], results: list[int | BaseException], tube: str) -> int:
        """Wait for the replies of a `put_many`, and harvest them."""
        # They come in order: when the last one is there, all are.
        last = next((entry for entry in reversed(pending) if isinstance(entry, PutRequest)), None)
        if last is not None:
            join(self._hub, last)
        return self._harvest(pending, results, tube)

    def _harvest(
        self, pending: deque[PutRequest | BaseException], results: list[int | BaseException], tube: str
    ) -> int:
        """Move what is answered from the front of `pending` to the results; tell how many failed."""
        failed = 0
        while pending:
            entry = pending[0]
            if isinstance(entry, PutRequest):
                if entry.error is not None:
                    results.append(entry.error)
                    failed += 1
                elif entry.result is PENDING:
                    break
                else:
                    results.append(entry.result)
                if self._connection.outcomes is not None:
                    self._connection.outcomes.tell(entry, tube, entry.began, entry.error)
            else:
                results.append(entry)
                failed += 1
            pending.popleft()
        return failed

    # -- reserving ---------------------------------------------------------------------------------------------

    def reserve(self) -> Job:
        """Wait for a job of the tubes watched, and reserve it.

        Raises:
            DeadlineSoonError: A job that this connection holds is about to run out. Touch or finish it; for a
                quarter of a second no further reserve is asked.

        Blocks:
            Until there is a job.

        Protocol:
            ``reserve-with-timeout <seconds>`` -> ``RESERVED``, ``TIMED_OUT`` (asked again), ``DEADLINE_SOON``;
            doc/protocol.txt, "Worker Commands".
        """
        job = self._reserve("reserve", None)
        assert job is not None
        return job

    def reserve_with_timeout(self, timeout: Seconds) -> Job | None:
        """Reserve a job, if there is one in time.

        Args:
            timeout: Seconds to wait, fractions included; 0: the server is asked once.

        Returns:
            The job; `None` when the time is over.

        Raises:
            DeadlineSoonError: As `reserve`.

        Blocks:
            At most `timeout` seconds, and the server's last answer.

        Protocol:
            As `reserve`.
        """
        return self._reserve("reserve-with-timeout", timeout)

    @critical
    def _reserve(self, what: str, timeout: Seconds | None) -> Job | None:
        connection = self._connection
        section = self._section
        connection.check(what)  # not only where the pipe isn't clear, as in `put`: a close that waits begins with jobs
        seconds = None if timeout is None else checks.seconds("timeout", timeout)
        while not connection.pipe.clear and not self._line.is_waiting:
            connection.clear(what)
        caller = None
        if section.owner is not None:
            section.wait()
        try:
            try:  # `with section`, spelled out for the sake of the hot path
                section.owner = getcurrent()
                caller = self._line.join(seconds)
            finally:
                section.owner = None
            job: Job | None = connection.pipe.wait(caller)
        except BaseException as error:
            if caller is None:  # a signal's exception has hit the line: who stands in it, nobody knows
                connection.pipe.struck(error)
            else:
                self._leave(caller)
            raise
        return job

    @critical
    def _leave(self, caller: Caller) -> None:
        with self._section:
            self._line.leave(caller)

    def reserve_job(self, job_id: int) -> Job:
        """Reserve the job of this id, be it ready, delayed or buried.

        Raises:
            NotFoundError: No such job, or somebody has reserved it.

        Blocks:
            Until the reply.

        Protocol:
            ``reserve-job <id>`` -> ``RESERVED``, ``NOT_FOUND``; "Worker Commands"; from beanstalkd 1.12.
        """
        self._connection.check("reserve-job")
        return self._line.reserve_job(checks.check_job_id(job_id))

    # -- finishing ---------------------------------------------------------------------------------------------

    def delete(self, job: Job | int) -> None:
        """Remove a job: `Job.delete`, or by id whatever is ready, delayed, buried or reserved here.

        Raises:
            NotFoundError: By id: no such job, or another connection has reserved it.
            InvalidArgumentError: A Job that another connection has reserved.
            JobFinishedError, JobLostError: As `Job.delete`.

        Blocks:
            Until the reply; interrupted, it is carried out all the same.

        Protocol:
            ``delete <id>`` -> ``DELETED``, ``NOT_FOUND``; "Worker Commands".
        """
        self._connection.check("delete")
        self._connection.delete(job)

    def release(self, job: Job | int, priority: int | None = None, delay: Seconds = 0) -> None:
        """Give a reserved job back: `Job.release`, or by id. Raises and blocks as `delete`.

        Args:
            priority: `None` keeps the job's own.
            delay: Seconds until it is ready again, rounded up.

        Protocol:
            ``release <id> <pri> <delay>`` -> ``RELEASED``, ``BURIED``, ``NOT_FOUND``; "Worker Commands".
        """
        self._connection.check("release")
        self._connection.release(job, priority, delay)

    def bury(self, job: Job | int, priority: int | None = None) -> None:
        """Put a reserved job aside: `Job.bury`, or by id. Raises and blocks as `delete`.

        Protocol:
            ``bury <id> <pri>`` -> ``BURIED``, ``NOT_FOUND``; "Worker Commands".
        """
        self._connection.check("bury")
        self._connection.bury(job, priority)

    def touch(self, job: Job | int) -> None:
        """Start a reserved job's time to run anew: `Job.touch`, or by id.

        Raises:
            NotFoundError, InvalidArgumentError, JobFinishedError, JobLostError: As `delete`.

        Blocks:
            Until the reply.

        Protocol:
            ``touch <id>`` -> ``TOUCHED``, ``NOT_FOUND``; "Worker Commands".
        """
        self._connection.check("touch")
        self._connection.touch(job)

    # -- looking and kicking -----------------------------------------------------------------------------------

    def kick(self, tube: str, bound: int) -> int:
        """Make buried jobs of a tube ready, or if it has none, delayed ones.

        Args:
            bound: How many at most, 0 to 4294967295.

        Returns:
            How many.

        Blocks:
            Until the reply.

        Protocol:
            ``kick <bound>`` -> ``KICKED``; "Other Commands".
        """
        self._connection.check("kick")
        kicked: int = self._using(checks.check_tube(tube), commands.KICK, commands.kick(bound))
        return kicked

    def kick_job(self, job: Job | int) -> None:
        """Make one buried or delayed job ready.

        Raises:
            NotFoundError: No such job, or neither buried nor delayed.

        Blocks:
            Until the reply.

        Protocol:
            ``kick-job <id>`` -> ``KICKED``, ``NOT_FOUND``; "Other Commands".
        """
        self._connection.kick_job(job)

    def peek(self, job_id: int) -> Job | None:
        """Look at a job without reserving it; `None` if there is none of this id.

        Blocks:
            Until the reply.

        Protocol:
            ``peek <id>`` -> ``FOUND``, ``NOT_FOUND``; "Other Commands".
        """
        self._connection.check("peek")
        job_id = checks.check_job_id(job_id)
        found = self._connection.call(commands.PEEK, commands.by_id(commands.PEEK, job_id), job_id)
        return self._connection.peeked(found, None)

    def peek_ready(self, tube: str) -> Job | None:
        """Look at a tube's next ready job; as `peek`. Protocol: ``peek-ready``."""
        return self._peek(tube, commands.PEEK_READY)

    def peek_delayed(self, tube: str) -> Job | None:
        """Look at a tube's delayed job with the shortest delay left; as `peek`. Protocol: ``peek-delayed``."""
        return self._peek(tube, commands.PEEK_DELAYED)

    def peek_buried(self, tube: str) -> Job | None:
        """Look at a tube's buried job that would be kicked first; as `peek`. Protocol: ``peek-buried``."""
        return self._peek(tube, commands.PEEK_BURIED)

    def _peek(self, tube: str, command: Command) -> Job | None:
        self._connection.check(command.name)
        tube = checks.check_tube(tube)
        return self._connection.peeked(self._using(tube, command, commands.plain(command)), tube)

    def _using(self, tube: str, command: Command, data: bytes) -> Any:
        request = Request(command, self._connection.pipe.uri)
        return self._connection.send(data, request, tube).wait(request)

    # -- tubes and statistics ----------------------------------------------------------------------------------

    def use(self, tube: str) -> None:
        """Use a tube. Never needed: put, kick and the peeks name their tube.

        Blocks:
            Until the reply.

        Protocol:
            ``use <tube>`` -> ``USING``; "Producer Commands".
        """
        self._connection.check("use")
        self._connection.use(checks.check_tube(tube))

    def watch(self, tube: str) -> int:
        """Reserve from this tube too; returns how many are watched.

        Blocks:
            Until the reply.

        Protocol:
            ``watch <tube>`` -> ``WATCHING``; "Worker Commands".
        """
        self._connection.check("watch")
        return self._connection.watch(checks.check_tube(tube))

    def ignore(self, tube: str) -> int:
        """Reserve from this tube no longer; returns how many are watched.

        Raises:
            NotIgnoredError: It is the last one.

        Blocks:
            Until the reply.

        Protocol:
            ``ignore <tube>`` -> ``WATCHING``, ``NOT_IGNORED``; "Worker Commands".
        """
        self._connection.check("ignore")
        return self._connection.ignore(checks.check_tube(tube))

    def list_tubes(self) -> list[str]:
        """List all tubes of the server. Blocks until the reply. Protocol: ``list-tubes`` -> ``OK``."""
        return self._plain(commands.LIST_TUBES)  # type: ignore[no-any-return]

    def list_tubes_watched(self) -> list[str]:
        """List the tubes watched. Blocks until the reply. Protocol: ``list-tubes-watched`` -> ``OK``."""
        return self._plain(commands.LIST_TUBES_WATCHED)  # type: ignore[no-any-return]

    def list_tube_used(self) -> str:
        """Name the tube in use. Blocks until the reply. Protocol: ``list-tube-used`` -> ``USING``."""
        return self._plain(commands.LIST_TUBE_USED)  # type: ignore[no-any-return]

    def stats(self) -> ServerStats:
        """Ask for the server's statistics. Blocks until the reply. Protocol: ``stats`` -> ``OK``."""
        return self._plain(commands.STATS)  # type: ignore[no-any-return]

    def stats_tube(self, tube: str) -> TubeStats:
        """Ask for a tube's statistics.

        Raises:
            NotFoundError: There is no such tube now.

        Blocks:
            Until the reply.

        Protocol:
            ``stats-tube <tube>`` -> ``OK``, ``NOT_FOUND``; "Other Commands".
        """
        self._connection.check("stats-tube")
        name = checks.tube_bytes(tube)
        stats: TubeStats = self._connection.call(commands.STATS_TUBE, commands.by_tube(commands.STATS_TUBE, tube), name)
        return stats

    def stats_job(self, job: Job | int) -> JobStats:
        """Ask for a job's statistics: `Job.stats`, or by id.

        Raises:
            NotFoundError: There is no such job.

        Blocks:
            Until the reply.

        Protocol:
            ``stats-job <id>`` -> ``OK``, ``NOT_FOUND``; "Other Commands".
        """
        return self._connection.stats_job(job)

    def pause_tube(self, tube: str, delay: Seconds) -> None:
        """Have no job of a tube reserved for a while.

        Args:
            delay: Seconds, rounded up to whole ones; 0 resumes.

        Raises:
            NotFoundError: There is no such tube now.

        Blocks:
            Until the reply.

        Protocol:
            ``pause-tube <tube> <delay>`` -> ``PAUSED``, ``NOT_FOUND``; "Other Commands".
        """
        self._connection.check("pause-tube")
        data = commands.pause_tube(tube, delay)
        self._connection.call(commands.PAUSE_TUBE, data, checks.tube_bytes(tube))

    def _plain(self, command: Command) -> Any:
        self._connection.check(command.name)
        return self._connection.call(command, commands.plain(command))

    def close(self) -> None:
        """Close the connection. Idempotent; afterwards every method raises `ConnectionClosedError`.

        Other calls in flight raise `ConnectionClosedError` at once. Jobs that are still held go back to their tubes.

        Blocks:
            Until the deletes, releases and buries that were called before it are answered, at most
            `Config.conn_timeout` seconds; interrupted meanwhile, it closes at once.
        """
        self._connection.close()


def connection_of(conn: Conn) -> Connection:
    """Hand out what is behind a Conn, for the package alone: its command line sends two commands in one write."""
    return conn._connection
