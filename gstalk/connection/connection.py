"""A connection with the jobs that it holds: how they are reserved, settled, and given back.

`Conn` and `Consumer` stand on it; both reserve, each in its own way, and a `Job` refers to it. Which promises are
kept here:

- What settles a job is carried out, both steps of it where the job's own priority has to be asked for first. What
  becomes of the job stands in `connection.reserved`.
- A reservation that nobody wants goes back with the job's own priority (`give_back`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gevent import getcurrent

from gstalk.connection.channel import Channel
from gstalk.connection.clock import monotonic
from gstalk.connection.critical import critical
from gstalk.errors import (
    ConnectionLostError,
    InvalidArgumentError,
    JobFinishedError,
    JobLostError,
    ProtocolError,
)
from gstalk.job import Job, Seconds, state_of
from gstalk.protocol import checks, commands
from gstalk.protocol.commands import Command
from gstalk.protocol.request import Request, ReserveRequest, Then, TwoStepRequest
from gstalk.protocol.stats import JobStats

__all__ = ["Connection"]

RESERVE_NOW = commands.reserve(0)
Line = Callable[[int], bytes]  # a command, once the job's own priority is known


class Connection(Channel):
    """One connection, and what it does about jobs."""

    __slots__ = ()

    # -- jobs --------------------------------------------------------------------------------------------------

    def ask(self, got: Callable[[Request], None], times: int = 1) -> None:
        """Send reserves that the server answers at once.

        Args:
            got: Called with each one's request, whose result is a `Job` or `None`.
            times: How many.
        """
        pipe, then = self.pipe, self._reserved
        requests: list[Request] = []
        end = 0
        for _ in range(times):
            request = ReserveRequest(commands.RESERVE, pipe.uri, None, then)
            request.got, request.patience = got, 0
            request.end = end = end + len(RESERVE_NOW)
            requests.append(request)
        last = requests.pop()
        pipe.append(RESERVE_NOW * times, last, requests)

    def begin_wait(self, seconds: int, got: Callable[[Request], None], end_wait: Callable[[], None]) -> Request:
        """Send a reserve that waits on the server, where nothing else is in flight.

        Args:
            seconds: How long it may.
            got: As in `ask`.
            end_wait: How to end that wait, when another command is to go out.
        """
        pipe = self.pipe
        request = ReserveRequest(commands.RESERVE, pipe.uri, None, self._reserved)
        request.got, request.patience = got, seconds
        self._end_wait = end_wait
        pipe.append(commands.reserve(seconds), request)
        if pipe.failure is None:
            pipe.hold_back(True)
        return request

    def _reserved(self, request: Any) -> None:
        if self._end_wait is not None:
            self._end_wait = None
            if self.pipe.failure is None:
                self.pipe.hold_back(False)
        if request.error is None and request.result is not None:
            job_id, body = request.result
            request.result = self.hold(job_id, body)  # `succeed`, without a call
        request.got(request)

    def hold(self, job_id: int, body: bytes) -> Job:
        """Make the Job of a reply that has reserved one."""
        tube = self.watched[0] if len(self.watched) == 1 else None
        job = Job(self, job_id, body, tube, self.pipe.read_at, "held")
        self.reserved.add(job)
        return job

    def peeked(self, found: tuple[int, bytes] | None, tube: str | None) -> Job | None:
        """Make the Job of a peek's reply: it is held by nobody here."""
        return None if found is None else Job(self, found[0], found[1], tube, None, "peeked")

    @critical
    def return_job(self, job: Job) -> None:
        """`give_back`, in a greenlet."""
        with self.section:
            try:
                self.give_back(job)
            except BaseException as error:
                self._struck(job, error)
                raise

    def give_back(self, job: Job) -> None:
        """Release a job that nobody wants, with its own priority; in the hub, or inside the section.

        Never switches; nobody waits for it.
        """
        if state_of(job) == "held" and self.pipe.failure is None:
            self._settle_later(job, job.id, commands.RELEASE, lambda p: commands.release(job.id, p, 0), True)

    def _given_back(self, request: Request) -> None:
        """If the server does not take a job back, the connection's end makes it: else it would keep it for its ttr."""
        self.reserved.unattended.pop(request.subject, None)  # so it is attended to
        self.reserved.settled(request)
        if state_of(request.subject) == "held":
            self.pipe.fail(
                ConnectionLostError, f"job {request.key} could not be given back: {request.error}", request.error
            )

    @critical
    def delete(self, job: Job | int) -> None:
        request = None
        if type(job) is Job and job._owner is self and job._state == "held":
            # The usual case, in as few steps as can be.
            section = self.section
            me = getcurrent()
            if me.parent is not self.hub or section.owner is not None or self._closed or self.pipe.failure is not None:
                self.check("delete")  # a greenlet whose parent is the hub is of its thread, and not the hub itself
            try:
                section.owner = me
                if job._state == "held":  # still: a signal handler may have come between
                    pipe = self.pipe
                    self.reserved.settle(job)
                    request = Request(commands.DELETE, pipe.uri, job.id, self.reserved.settled, job)
                    pipe.append(b"delete %d\r\n" % job.id, request)
            except BaseException as error:
                self._struck(job, error)
                raise
            finally:
                section.owner = None
            if request is not None:
                (self.outcomes or pipe).wait(request)
                return
        job_id, ours = self._whose(job, "delete")
        data = commands.by_id(commands.DELETE, job_id)
        self._settle(job_id, ours, commands.DELETE, lambda: self._settle_now(ours, job_id, commands.DELETE, data))

    @critical
    def delete_unwaited(self, job: Job) -> None:
        """Delete a job that we hold; nobody waits for the reply."""
        then = self._settled if self.outcomes is None else self.outcomes.later(self._settled)
        section = self.section
        if section.owner is not None:
            section.wait()
        try:
            section.owner = getcurrent()
            if job._state == "held":
                self.reserved.settle(job)
                self.pipe.append(b"delete %d\r\n" % job.id, self.pipe.request(commands.DELETE, job.id, then, job))
        except BaseException as error:
            self._struck(job, error)
            raise
        finally:
            section.owner = None

    def release(self, job: Job | int, priority: int | None = None, delay: Seconds = 0) -> None:
        job_id, ours = self._whose(job, "release")
        seconds = checks.check_delay(delay)
        self._settle_with(job_id, ours, commands.RELEASE, priority, lambda p: commands.release(job_id, p, seconds))

    def bury(self, job: Job | int, priority: int | None = None) -> None:
        job_id, ours = self._whose(job, "bury")
        self._settle_with(job_id, ours, commands.BURY, priority, lambda p: commands.bury(job_id, p))

    def _settle_with(self, job_id: int, job: Job | None, command: Command, priority: int | None, line: Line) -> None:
        """Settle with this priority, or `None`: the job's own."""
        if priority is None:
            self._settle(job_id, job, command, lambda: self._settle_later(job, job_id, command, line))
        else:
            data = line(priority)
            self._settle(job_id, job, command, lambda: self._settle_now(job, job_id, command, data))

    @critical
    def touch(self, job: Job | int) -> None:
        job_id, ours = self._whose(job, "touch")
        self.clear("touch")
        with self.section:
            if ours is not None:
                self._refuse_finished(ours, "touch")  # as in `_settle`
            pipe = self.pipe
            request = pipe.request(commands.TOUCH, job_id, self._touched, ours)
            pipe.append(commands.by_id(commands.TOUCH, job_id), request)
        pipe.wait(request)

    def touch_unwaited(self, job: Job) -> None:
        """Touch a job that we hold; nobody waits for the reply, but the job learns if it is lost."""
        request = self.pipe.request(commands.TOUCH, job.id, self._touched, job)
        self.pipe.append(commands.by_id(commands.TOUCH, job.id), request)

    def kick_job(self, job: Job | int) -> None:
        job_id = self._id_of(job, "kick-job")
        self.call(commands.KICK_JOB, commands.by_id(commands.KICK_JOB, job_id), job_id)

    def stats_job(self, job: Job | int) -> JobStats:
        job_id = self._id_of(job, "stats-job")
        ours = job if isinstance(job, Job) and state_of(job) in ("held", "settling") else None
        data = commands.by_id(commands.STATS_JOB, job_id)
        stats: JobStats = self.call(commands.STATS_JOB, data, job_id, self._looked, ours)
        if isinstance(job, Job):
            job.tube = stats.tube
        return stats

    def _id_of(self, job: Job | int, what: str) -> int:
        self.check(what)
        self._check_owner(job, what)
        return job.id if isinstance(job, Job) else checks.check_job_id(job)

    def _check_owner(self, job: Job | int, what: str) -> None:
        if isinstance(job, Job) and job._owner is not self and state_of(job) != "peeked":
            why = "another connection has reserved this job; use the job's own method"
            raise InvalidArgumentError(f"{what} {job.id} at {self.uri}: {why}")

    def _whose(self, job: Job | int, what: str) -> tuple[int, Job | None]:
        """Check a job that is to be settled or touched: its id, and the Job if it is one that we reserved."""
        if not isinstance(job, Job):
            self.check(what)
            return checks.check_job_id(job), None
        self._check_owner(job, what)
        ours = job if state_of(job) == "held" else None
        self._refuse_finished(job, what)
        self.check(what)
        return job.id, ours

    def _refuse_finished(self, job: Job, what: str) -> None:
        state = state_of(job)
        if state in ("settling", "finished"):
            raise JobFinishedError(f"{what} {job.id} at {self.uri}: the job is finished, or being finished now")
        if state == "lost":
            why = f"lost with its connection ({by[1]})" if (by := self.pipe.failure) else "the server has taken it back"
            raise JobLostError(f"{what} {job.id} at {self.uri}: {why}; nothing was sent")

    @critical
    def _settle(self, job_id: int, job: Job | None, command: Command, send: Callable[[], Request]) -> None:
        if job is None:
            self.clear(command.name)
        with self.section:
            if job is not None:
                self._refuse_finished(job, command.name)  # once more: a signal handler may have come between
            try:
                request = send()
            except BaseException as error:
                self._struck(job, error)
                raise
        (self.outcomes or self.pipe).wait(request)

    def _settle_now(self, job: Job | None, job_id: int, command: Command, data: bytes) -> Request:
        request = self.pipe.request(command, job_id, self._settled, job)
        if job is not None:
            self.reserved.settle(job)
        self.pipe.append(data, request)
        return request

    def _struck(self, job: Job | None, error: BaseException) -> None:
        """A signal's exception has hit a settling: the job may be marked with nothing sent, so the connection ends."""
        if job is not None and state_of(job) == "settling":
            self.pipe.struck(error)

    def _settle_later(self, job: Job | None, job_id: int, command: Command, line: Line, alone: bool = False) -> Request:
        """Settle with the job's own priority, once the server has told it; returns the request of the second step."""
        pipe = self.pipe
        then: Then = self._given_back if alone else self._settled
        if alone and self.outcomes is not None:
            then = self.outcomes.later(then)
        last = pipe.request(command, job_id, then, job)
        if job is not None:
            self.reserved.settle(job)
        holds = self.reserved.holds

        def go_on(first: Request) -> None:
            error = first.error
            if job is not None and error is None and not holds(job):  # reserved again: another's, by now
                error = JobLostError(f"{last}: the server has taken the job back; nothing was sent")
            if error is None:
                try:
                    pipe.append(line(first.result.pri), last)
                    return
                except (TypeError, InvalidArgumentError):  # in the hub, where nothing may be raised
                    error = ProtocolError(f"{first}: pri is {first.result.pri}; connection closed")
            last.fail(error)
            then(last)
            pipe.complete(last)
            if isinstance(error, ProtocolError):
                pipe.fail(ConnectionLostError, f"the server broke the protocol: {error}", error)

        first = TwoStepRequest(commands.STATS_JOB, pipe.uri, job_id, go_on)
        first.second = last
        pipe.append(commands.by_id(commands.STATS_JOB, job_id), first)
        return last

    def look_after_jobs(self) -> None:
        """Ask the server about jobs whose time to run may be over. Never switches; nobody waits for the replies."""
        for job_id in self.reserved.doubtful(monotonic()):
            request = self.pipe.request(commands.STATS_JOB, job_id, self._told)
            self.pipe.append(commands.by_id(commands.STATS_JOB, job_id), request)

    # What these commands have in `then`; a bound method keeps the connection until its answer is there.

    def _settled(self, request: Request) -> None:
        self.reserved.settled(request)

    def _touched(self, request: Request) -> None:
        self.reserved.touched(request, self.pipe.read_at)

    def _looked(self, request: Request) -> None:
        self.reserved.looked(request)

    def _told(self, request: Request) -> None:
        self.reserved.told(request, self.pipe.read_at)
