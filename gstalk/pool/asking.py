"""Connections that reserve for a crew.

`Asking` in `permits` decides which of them asks for how many jobs, who waits on its server, and who is recalled; here
that is carried out, in the hub.

The tubes that they watch may change meanwhile. Each connection is told in the stream of its commands, so every reserve
behind that is one for the new tubes; a reserve that waits on the server is recalled first. A connection that is being
dialed at that time is told before its first reserve.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from gevent import get_hub
from gevent.pool import Group

from gstalk.config import Config
from gstalk.connection import threads
from gstalk.connection.clock import monotonic
from gstalk.connection.connection import Connection
from gstalk.connection.critical import section_of
from gstalk.connection.damaged_job import bury_ruined
from gstalk.connection.hooks import Hooks
from gstalk.connection.loop import InHub, fail_stop
from gstalk.errors import ConnectionLostError, DeadlineSoonError, DisconnectedError, ProtocolError
from gstalk.job import Job
from gstalk.pool.crew import Crew, JobSource
from gstalk.pool.keeper import Server
from gstalk.pool.permits import NEVER, SILENT, Action, Asking
from gstalk.pool.schedule import WatchList
from gstalk.protocol import commands
from gstalk.protocol.commands import Command
from gstalk.protocol.request import Request

__all__ = ["Asker"]


class Asker(InHub):
    """Asks the servers for jobs, as many as a crew has room for.

    Args:
        config: Of the Consumer.
        hooks: Told of reserves that fail.
        crew: Who gets the jobs.
        watch_list: What the connections watch from their next reserve on, whenever it changes.
        aside: Where greenlets that tell are kept.
        on_change: Called when the first connection has come, with `True`, or the last one has gone, with `False`.

    Attributes:
        is_over: No more jobs are asked for; one that still comes goes back.
    """

    def __init__(
        self,
        config: Config,
        hooks: Hooks,
        crew: Crew,
        watch_list: WatchList,
        aside: Group,
        on_change: Callable[[bool], object],
    ) -> None:
        self.is_over = False
        self._watch_list = watch_list
        self._config = config
        self._hooks = hooks
        self._crew = crew
        self._aside = aside
        self._on_change = on_change
        self.hub = get_hub()
        self.section = section_of(self.hub)
        self._asking = Asking(config.num_greenlets, monotonic())
        self._sources: dict[Connection, JobSource] = {}
        self._tubes = watch_list.tubes  # what all connections were told to watch, but for those that have just come
        self._holding: dict[JobSource, None] = {}  # may hold jobs
        self._speak_at = 0.0  # when those that do are to be looked at
        self._due = False  # a look at what to ask
        self._timer: Any = None
        self._rings_at = NEVER

    # -- connections -------------------------------------------------------------------------------------------

    def up(self, server: Server, connection: Connection) -> None:
        """A connection is there."""
        dialed, tubes = tuple(connection.watched), self._watch_list.tubes
        if dialed != tubes:  # they have changed meanwhile: it is told in `_tell_all`
            tubes = dialed
        # Jobs that were lost with their worker come first when there is a new one: those are asked about.
        looks = 0 if self._config.retry.max_attempts is None else self._config.num_greenlets
        self._sources[connection] = source = JobSource(server.uri, connection, tubes, looks)
        self._asking.add(source)
        connection.reserved.on_settled = partial(self._settled, source)
        if source.tubes is not self._watch_list.tubes:
            self._tubes = ()  # so that it is told in the next look
        self._on_change(True)
        self.look_soon()

    def down(self, server: Server, connection: Connection) -> None:
        """A connection is gone."""
        source = self._sources.get(connection)
        if source is not None:  # else a signal has struck here before
            self._asking.remove(source)
            self._holding.pop(source, None)
            self._sources.pop(connection, None)
        if not self._sources:
            self._on_change(False)
        self.look_soon()

    def end(self) -> None:
        """Ask for no more jobs: waits leave at once, and an ask that still finds one gives it back."""
        self.is_over = True
        self.stop_timer()
        for source in list(self._sources.values()):
            if source.wait is not None:
                source.wait.then = None
                source.wait = None
                source.connection.leave_wait()

    # -- what to watch -----------------------------------------------------------------------------------------

    @fail_stop
    def follow(self, before: tuple[str, ...]) -> list[Request]:
        """Tell all connections that the watch list has changed; in a greenlet, inside the section.

        Args:
            before: What was watched until now.

        Returns:
            Requests: when they are answered, so is all that was sent.
        """
        requests: list[Request] = []
        if self.is_over:
            return requests
        watch, ignore = self._watch_list.since(before)
        for source in list(self._sources.values()):  # a send that fails takes its connection out
            if source.tubes is not before:
                continue  # it has just come, and is told in `_tell_all`
            if watch or ignore:
                requests += self._tell_tubes(source, watch, ignore)
            elif source.wait is None:  # somebody's change of the same kind may be under way
                requests.append(_fence(source.connection))
        return requests

    def _tell_tubes(self, source: JobSource, watch: list[str], ignore: list[str]) -> list[Request]:
        """Tell a connection what to watch, and what no longer."""
        if self._end_wait(source):
            self._asking.watching_changed(source, monotonic())
        source.tubes = self._watch_list.tubes
        # Watches go first: one tube must remain at each moment, or the server refuses an ignore.
        requests = [_tell_tube(source.connection, commands.WATCH, tube) for tube in watch]
        return requests + [_tell_tube(source.connection, commands.IGNORE, tube) for tube in ignore]

    # -- what to ask -------------------------------------------------------------------------------------------

    def look_soon(self) -> None:
        """Look once in this turn of the loop at what to ask, however many handlers have ended in it."""
        if not self._due:
            for _ in range(2):  # a signal may strike the first one before its first line
                self.soon(self._look)
            self._due = True

    def struck(self, error: BaseException) -> None:
        """A signal's exception has hit the asking: its counts can't be trusted, so every connection begins anew."""
        self._due = False
        self.stop_timer()  # it may have come, or not have been set: no other would be while it counts as the next one
        for connection in list(self._sources):
            connection.pipe.struck(error)
        self.look_soon()

    def _look(self) -> None:
        if not self._due:
            return
        self._due = False
        if self.is_over:
            return
        now = monotonic()
        if self._tubes is not self._watch_list.tubes:
            self._tell_all()
        for source in self._asking.late(now):  # or so it seems: the hub may have been blocked, and the answer be there
            assert isinstance(source, JobSource)
            source.connection.pipe.catch_up()
        self._asking.running = self._crew.running
        decision = self._asking.decide(now)
        for action in decision.actions:
            self._carry_out(action)
        at = now + decision.again
        if self._holding:
            if now >= self._speak_at:
                self._speak(now)
            at = min(at, self._speak_at)
        if at < self._rings_at:
            self.stop_timer()
            if at < NEVER:
                self._timer = self.once(max(at - now, 0.0), self._on_timer)
                self._rings_at = at

    def _carry_out(self, action: Action) -> None:
        what, source, times = action
        assert isinstance(source, JobSource)
        if what == "recall":
            self._recall(source)
        elif what == "wait":
            seconds = int(self._config.reserve_timeout)
            got, end_wait = partial(self._got, source), partial(self._recall, source)
            source.wait = source.connection.begin_wait(seconds, got, end_wait)
        else:
            source.connection.ask(partial(self._got, source), times)

    def _tell_all(self) -> None:
        """Tell each connection what to watch that watches something else."""
        self._tubes = self._watch_list.tubes
        for source in list(self._sources.values()):  # a send that fails takes its connection out
            if source.tubes is not self._watch_list.tubes:
                self._tell_tubes(source, *self._watch_list.since(source.tubes))

    def _speak(self, now: float) -> None:
        """Say something on connections that hold jobs and were silent.

        The server forgets to expire a job while its connection is silent; and a dead line shows itself.
        """
        self._speak_at = self._asking.common_moment(now, SILENT / 2)
        for source in list(self._holding):
            pipe = source.connection.pipe
            if not source.connection.reserved.by_id:
                self._holding.pop(source, None)
            elif pipe.attached and not pipe.requests and now - pipe.read_at > SILENT:
                _fence(source.connection)

    def _settled(self, source: JobSource) -> None:
        """A job was settled. A connection that holds none any more may wait on its server."""
        if not source.connection.reserved.by_id:
            self._asking.changed(source)
        if not self._due:
            self.look_soon()

    def _on_timer(self) -> None:
        self.stop_timer()
        self._due = True
        self._look()

    def stop_timer(self) -> None:
        self._rings_at = NEVER  # first: a moment without its timer would keep the next one from being set
        if self._timer is not None:
            self._timer.close()
            self._timer = None

    def abandon(self) -> None:
        """The thread has ended, and with it the loop."""
        self.is_over = True
        threads.close_watchers(self.hub, [] if self._timer is None else [self._timer])

    @fail_stop
    def _recall(self, source: JobSource) -> None:
        """End a wait: its permit is needed elsewhere, or a command is to go out on its connection."""
        if self._end_wait(source):
            self._asking.recalled(source, monotonic())
            self.look_soon()

    def _end_wait(self, source: JobSource) -> bool:
        """Tell whether there was one; a job that still comes of it goes back by itself."""
        if source.wait is None:
            return False
        source.wait.then = None
        source.wait = None
        source.connection.recall()
        return True

    # -- answers -----------------------------------------------------------------------------------------------

    def _got(self, source: JobSource, request: Request) -> None:
        """In the hub: the answer to an ask."""
        now = source.connection.pipe.read_at
        waited, source.wait = source.waiting, None
        if request.error is not None:
            if isinstance(request.error, DeadlineSoonError):
                self._asking.deadline_soon(source, now)
            else:
                self._asking.failed(source, now)
                if not isinstance(request.error, DisconnectedError):
                    self._aside.spawn(self._tell_failure, source, request.error)
        elif request.result is None:
            if waited:
                self._asking.slice_over(source, now)
            else:
                self._asking.answered(source, False, now)
        else:
            was_overdue = source.overdue > 0
            self._asking.answered(source, True, now)
            job: Job = request.result
            self._holding[source] = None
            if self.is_over:
                source.connection.give_back(job)
                return
            if was_overdue:
                self._asking.running = self._crew.running
            if was_overdue and not self._asking.has_room():  # its permit has been used elsewhere
                source.connection.give_back(job)
            else:
                self._crew.offer(source, job)
        if not self._due:
            self.look_soon()

    def _tell_failure(self, source: JobSource, error: BaseException) -> None:
        """Tell; and put a job that the server has ruined out of the way, or nobody would get beyond it."""
        if self._crew.is_copy:
            return
        message = f"reserve at {source.server} failed"
        known: dict[str, Any] = {"uri": source.server}
        if isinstance(error, ProtocolError) and error.job_id is not None:
            connection, job_id = source.connection, error.job_id
            if bury_ruined(self.hub, connection.address, self._config, connection.server.id, job_id):
                message += f"; job {job_id} has no end, the server has ruined it: buried"
                known |= {"job_id": job_id, "outcome": "buried"}
        self._hooks.error(error, message, **known)


def _tell_tube(connection: Connection, command: Command, tube: str) -> Request:
    """Send a watch or an ignore. If the server refuses, the connection ends: it would go on with the wrong tubes."""

    def answered(request: Request) -> None:
        connection.watching(request)
        # Not where it was told that the connection is being closed: deletes behind it still wait for their answers.
        if request.error is not None and not isinstance(request.error, DisconnectedError):
            connection.pipe.fail(ConnectionLostError, str(request.error), request.error)

    request = connection.pipe.request(command, tube.encode("ascii"), answered, tube)
    connection.pipe.append(commands.by_tube(command, tube), request)
    return request


def _fence(connection: Connection) -> Request:
    """Send a command that changes nothing. Replies come in order: when it is answered, so is all that went before."""
    request = connection.pipe.request(commands.LIST_TUBE_USED)
    connection.pipe.append(commands.plain(commands.LIST_TUBE_USED), request)
    return request
