"""What happens to one job in a Consumer: the handler's call, and the job's fate when that has ended, however it did.

The dispatcher owns the job, not the handler: whatever a handler raises or forgets ends here, but for two things that
pass on after the job has been given back, a kill of the greenlet and Ctrl-C.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import Context, copy_context
from dataclasses import replace
from functools import partial
from typing import Any

import gevent
from gevent import GreenletExit
from gevent.pool import Group

from gstalk.config import Config, Plain
from gstalk.connection.clock import monotonic
from gstalk.connection.connection import Connection
from gstalk.connection.hooks import Hooks
from gstalk.connection.interrupts import ENDS, STOPS, calls_handlers
from gstalk.connection.loop import InHub
from gstalk.errors import (
    BuriedError,
    Bury,
    DisconnectedError,
    GstalkError,
    InvalidArgumentError,
    JobFinishedError,
    JobLostError,
    JobNotFinishedError,
    RetriesExhaustedError,
    Retry,
)
from gstalk.job import Job, state_of
from gstalk.pool.chance import chance
from gstalk.protocol import checks, commands
from gstalk.protocol.request import Request
from gstalk.protocol.stats import JobStats
from gstalk.retry import Fate, RetryPolicy, judged
from gstalk.traces import keep_last

__all__ = ["Handler", "Handling", "TimeLimitExceeded"]

MOST_INTERRUPTIONS = 3  # of the decision about one job; after the last of them it is simply released
PAUSE = 1.0  # seconds before a job goes back whose release or bury the server has refused: it would run at once again
NOT_DONE = {commands.DELETE: "not deleted", commands.RELEASE: "not released", commands.BURY: "not buried"}

Handler = Callable[[Job], Plain]


class TimeLimitExceeded(gevent.Timeout):
    """A handler ran longer than `Config.time_limit`; raised in it."""

    def __reduce__(self) -> tuple[type[TimeLimitExceeded], tuple[float | None]]:
        return type(self), (self.seconds,)  # without the timer, which belongs to a loop


class Handling:
    """Handlers, and what their Config says about jobs.

    Args:
        handler: One for all jobs, or a mapping from tube to handler.
        tubes: The tubes watched, each of which needs a handler.
        given: Handlers of tubes that `Consumer.watch` was given, and that such a mapping need not name.

    Raises:
        TypeError: A handler can't be called with one argument, or a call of it would run nothing.
        InvalidArgumentError: A tube has no handler, or one of its own beside the one for all.
    """

    def __init__(
        self,
        handler: Handler | Mapping[str, Handler],
        tubes: Sequence[str],
        given: Mapping[str, Handler],
        config: Config,
        hooks: Hooks,
    ) -> None:
        self._config = config
        self._hooks = hooks
        self._named: Mapping[str, Handler] = {}  # by the mapping: they stay when their tube is ignored
        self._by_tube: Mapping[str, Handler] | None = None
        self._handler: Handler | None = None
        if isinstance(handler, Mapping):
            self._named = checks.by_tube(handler)
            self._by_tube = by_tube = {**given, **self._named}
            missing = [tube for tube in tubes if tube not in by_tube]
            if missing:
                raise InvalidArgumentError(f"no handler for tube {missing[0]!r}")
        else:
            self._handler = handler
            for tube in given:
                raise InvalidArgumentError(_two_kinds(tube))
        for each in [self._handler] if self._by_tube is None else self._by_tube.values():
            checks.check_callable("handler", each, 1)
        self.is_copy = False  # a forked child's: the jobs are the parent's, and what ends a handler ends it as it likes
        self.is_killing = False  # from here on a kill comes from `stop`, and is no failure of the handler's
        self.aside = Group()  # greenlets that see to jobs which their handlers have left

    def names(self, tube: str) -> bool:
        """Whether there is a mapping from tube to handler that names this tube."""
        return tube in self._named

    def watch(self, tube: str, handler: Handler | None) -> None:
        """Take the handler for a tube's jobs that come from now on; `None`: the one that the mapping names.

        Raises:
            InvalidArgumentError: There is none, or one of its own beside the one for all.
        """
        if self._by_tube is None:
            if handler is not None:
                raise InvalidArgumentError(_two_kinds(tube))
            return
        handler = handler or self._named.get(tube)
        if handler is None:
            raise InvalidArgumentError(f"no handler for tube {tube!r}")
        self._by_tube = {**self._by_tube, tube: handler}  # another mapping: jobs in hand keep theirs

    def forget(self, tube: str) -> None:
        """Let go of the handler of a tube that no more jobs come from."""
        if self._by_tube is not None:
            self._by_tube = {name: handler for name, handler in self._by_tube.items() if name != tube}

    @calls_handlers
    def handle(self, connection: Connection, job: Job, look: bool) -> None:
        """Run the handler, and see that the job has a fate.

        Args:
            look: Ask first whether the job was lost with its worker too often.

        Raises:
            GreenletExit, KeyboardInterrupt: They hit the handler; the job has been given back.
        """
        config = self._config
        touching = _Touching(connection, job) if config.auto_touch else None
        telling = _Telling(self._hooks, job) if self._hooks.listens else None
        by_tube = self._by_tube  # as it is now: the tube may be ignored while the server is asked for its name
        stats: JobStats | None = None
        fate: Fate | None = None
        is_called = False
        try:
            if look or (by_tube is not None and job.tube is None):
                stats = job.stats()
                fate = self._looked(stats, look, telling)
                if fate is not None:
                    raise _lost_too_often(job, stats)
            handler = self._handler if by_tube is None else _find(by_tube, job)
            # `_state`, not `state_of`, here and below: it is cheaper, and this is for every job.
            if (telling is not None or job._state != "held") and not self._begin(job, telling):
                return
            is_called = True
            if config.time_limit is None:
                result = handler(job)  # type: ignore[misc]  # `None` where there is a mapping
            else:
                with TimeLimitExceeded(config.time_limit):
                    result = handler(job)  # type: ignore[misc]
            if (result is not None or job._state != "finished") and not self.is_copy:
                self._returned(connection, job, result)
        except BaseException as error:
            keep_last(error)  # handlers may raise one object for all of their jobs
            if telling is not None:
                telling.error = error
            what = "its handler failed" if is_called else "" if fate else "it could not be looked at"
            self._failed(_Failure(connection, job, error, what, stats, fate, is_called), is_called, telling)
            if isinstance(error, STOPS):
                raise
        finally:
            if job._state == "settling":  # an automatic delete, or one whose caller was interrupted: nobody waits
                connection.reserved.unattended[job] = partial(self._left, connection, job, copy_context())
            if touching is not None:
                touching.stop()
            if telling is not None and not self.is_copy:
                telling.end()

    def _looked(self, stats: JobStats, look: bool, telling: _Telling | None) -> Fate | None:
        """The server has told of a job before its handler: `None` if that is to run."""
        if telling is not None:
            telling.stats = stats
        return Fate.of_reserved(self._config.retry, stats) if look else None

    def _begin(self, job: Job, telling: _Telling | None) -> bool:
        """Tell that the handler begins, unless the job is lost; `False` if it must not run, though nobody failed."""
        if telling is not None and state_of(job) == "held":
            telling.begin()
        if self.is_copy:  # somebody has forked, and the job is the parent's
            return False
        if state_of(job) == "held":
            return True
        if telling is not None:  # lost while it waited for its handler, or for the hook
            telling.error = JobLostError(f"the server has taken job {job.id} back before its handler ran")
        return False

    def _returned(self, connection: Connection, job: Job, result: object) -> None:
        """The handler has returned: it has failed if the job isn't finished, or is somebody else's by now."""
        if result is not None:
            checks.check_returned("handler", result)
        state = state_of(job)
        if state == "held":
            if not self._config.auto_delete:
                raise JobNotFinishedError(f"the handler returned without finishing job {job.id}")
            connection.delete_unwaited(job)
        elif state == "lost":
            raise JobLostError(f"the server has taken job {job.id} back while its handler ran")

    def _failed(self, failure: _Failure, is_called: bool, telling: _Telling | None) -> None:
        """The handler, or what comes before it, has ended with an exception."""
        job, error = failure.job, failure.error
        if self.is_copy:
            self._end_copy(job, error)
        elif isinstance(error, KeyboardInterrupt):
            failure.connection.return_job(job)
        elif is_called or not job.is_lost or not isinstance(error, GstalkError):  # else nobody has failed
            self._settle(failure, telling)

    def _end_copy(self, job: Job, error: BaseException) -> None:
        """In a forked child: the job is the parent's, and so are all errors that come of that."""
        if isinstance(error, ENDS):
            raise error
        if not isinstance(error, (Retry, Bury, JobLostError, DisconnectedError)):
            message = f"job {job.id} of {job.uri}: its handler failed in a forked child"
            self._hooks.error(error, message, **_known(job, None, None))

    def _settle(self, failure: _Failure, telling: _Telling | None) -> None:
        """Give a job its fate, and tell. A timeout that the handler forgot, or another kill, may hit us meanwhile."""
        connection, job = failure.connection, failure.job
        if self.is_killing and isinstance(failure.error, (GreenletExit, JobFinishedError)):
            connection.return_job(job)  # as `stop` does with all of them; that is no failure of the handler's
            return
        killed: BaseException | None = None
        interruptions = 0
        done = ""
        while not done:
            try:
                done = failure.settle(self._config.retry, self._give_up)
            except BaseException as hit:
                if self.is_copy and isinstance(hit, ENDS):  # a hook has forked
                    raise
                interruptions += 1
                if isinstance(hit, STOPS):
                    killed = hit
                else:
                    self._hooks.error(hit, failure.message("hit while its fate was decided"), **failure.known)
                if self.is_killing or isinstance(hit, KeyboardInterrupt) or interruptions == MOST_INTERRUPTIONS:
                    connection.return_job(job)
                    failure.outcome = done = "released"
        if self.is_copy:  # `given_up_func` has forked: the job is the parent's, who tells of it
            return
        if telling is not None:
            telling.stats = failure.stats
        try:
            if failure.is_given_up:
                _tell(self._hooks, "given_up", job, failure.stats, failure.raised, None)
            if not isinstance(failure.error, (Retry, Bury)):
                self._hooks.error(failure.error, failure.message(failure.what, done), **failure.known)
            if state_of(job) == "held" and killed is None and connection.is_connected:  # the server has refused it
                self._pause(failure)
        finally:
            connection.return_job(job)
        if killed is not None:
            try:
                raise killed
            finally:
                del killed  # the traceback would hold the frame, and the frame the error

    def _give_up(self, failure: _Failure) -> bool:
        """Call `given_up_func`; returns whether it has done its work."""
        is_done = self._hooks.given_up(failure.job, failure.raised, **failure.known)
        if self.is_killing:  # `stop` has given the job back, whatever the function made of its kill
            raise GreenletExit
        return is_done

    def _pause(self, failure: _Failure) -> None:
        try:
            gevent.sleep(PAUSE)
        except STOPS:
            raise
        except BaseException as hit:
            self._hooks.error(hit, failure.message("hit before it was given back"), **failure.known)

    def _left(self, connection: Connection, job: Job, context: Context, request: Request) -> None:
        """In the hub: a delete, release or bury has failed after the job's handler had ended."""
        assert request.error is not None
        failure = _Failure(connection, job, request.error, NOT_DONE[request.command], None)
        failure.lost = "it may run again"
        self.aside.spawn(context.run, self._settle, failure, None)


def _find(by_tube: Mapping[str, Handler], job: Job) -> Handler:
    """Find the handler of the job's tube."""
    handler = by_tube.get(str(job.tube))
    if handler is None:
        raise InvalidArgumentError(f"no handler for tube {job.tube!r}")
    return handler


def _lost_too_often(job: Job, stats: JobStats) -> RetriesExhaustedError:
    attempts = stats.reserves or 0
    return RetriesExhaustedError(
        f"job {job.id} was lost with its worker too often: {attempts} attempts", job.id, attempts
    )


def _two_kinds(tube: str) -> str:
    return f"a handler for tube {tube!r} alone, and one for all tubes: give receive a mapping from tube to handler"


class _Failure:
    """A job that its handler has not finished, and what is known of it.

    Attributes:
        connection: The connection that holds it.
        job: The job.
        error: What is told, unless it is a `Retry` or a `Bury`.
        raised: What `given_up_func` gets: the handler's own exception, unless that is a wrong `Retry` or `Bury`.
        what: What has failed, in words.
        stats: The job's, if known.
        has_run: Whether its handler was called.
        lost: What is said of a job that the server has taken back.
        outcome: What became of the job, in a word that docs/logging.md has; `None`: not yet known.
    """

    __slots__ = (
        "_fate",
        "_is_carried_out",
        "_is_told",
        "connection",
        "error",
        "has_run",
        "job",
        "lost",
        "outcome",
        "raised",
        "stats",
        "what",
    )

    def __init__(
        self,
        connection: Connection,
        job: Job,
        error: BaseException,
        what: str,
        stats: JobStats | None,
        fate: Fate | None = None,
        has_run: bool = True,
    ) -> None:
        self.connection = connection
        self.job = job
        self.error = judged(error)
        self.raised = error if isinstance(self.error, (Retry, Bury)) else self.error
        self.what = what
        self.stats = stats
        self.lost = "the server has taken the job back"
        self.outcome: str | None = None
        self.has_run = has_run
        self._fate = fate
        self._is_told = False  # `given_up_func` was called
        self._is_carried_out = False  # what the fate says was called

    @property
    def is_given_up(self) -> bool:
        """Whether the job's attempts are used up, and it is settled: not given back, nor lost, in spite of that."""
        is_settled = self.outcome in ("buried", "deleted", "finished")
        return is_settled and self._fate is not None and self._fate.is_given_up

    def settle(self, policy: RetryPolicy, give_up: Callable[[_Failure], bool]) -> str:
        """Decide what becomes of the job, and carry it out: the one place that does.

        The job's state tells what came of it, whoever's exception ends a wait here. It is still held afterwards if the
        server has refused: then it has to go back. May be called again after an interruption.

        Args:
            policy: Says what the fate is.
            give_up: Called, once, before a job is given up, which it may finish; returns whether it has done its work.

        Returns:
            What was done, in words.
        """
        job = self.job
        was = state_of(job)
        try:
            if self.stats is None and was != "held":
                self.stats = self._ask()
            if state_of(job) == "held":
                stats = self.stats = self.stats or job.stats()
            if state_of(job) == "held":
                self._fate = self._fate or Fate.of_failed(policy, stats, self.error, chance(), self.has_run)
                if self._fate.is_given_up and not self._is_told:
                    self._give_up(self._fate, give_up)
            if self._is_told and state_of(job) == "settling" and not self._is_carried_out:
                self._ask()  # `given_up_func` was interrupted in a delete, release or bury: the server may refuse it
            if state_of(job) == "held" and self._fate is not None:
                self._carry_out(self._fate)
        except GstalkError as refusal:
            if state_of(job) == "settling":
                raise  # not the server's
            if state_of(job) == "held" or isinstance(refusal, BuriedError):
                self.outcome = "released" if state_of(job) == "held" else "buried"
                done = "released" if state_of(job) == "held" else "buried by the server"
                if isinstance(self.error, (Retry, Bury)):
                    # Without its traceback, which holds this frame, and so us.
                    self.error, self.what = refusal.with_traceback(None), "could not be retried or buried"
                    return done
                return f"{done}, since it could not be retried: {refusal}"
        if state_of(job) == "lost":
            self.outcome = "lost"
            return self.lost if was == "lost" else "the job goes back by itself"
        if self._fate is not None and self._is_carried_out:
            self.outcome = self._fate.outcome
            return str(self._fate)
        self.outcome = "finished"
        return "given up, and finished by given_up_func" if self._is_told else "the job was finished"

    def _give_up(self, fate: Fate, give_up: Callable[[_Failure], bool]) -> None:
        """Have `given_up_func` called. Where that hasn't done its work, the job is buried, never deleted."""
        self._is_told = True
        self._fate = replace(fate, command="bury")  # for whatever interrupts it
        if give_up(self):
            self._fate = fate

    def _ask(self) -> JobStats | None:
        """Ask about a job that isn't in our hands; `None` if the server can't tell our attempt any more."""
        try:
            stats = self.job.stats()
        except GstalkError:
            return None
        return None if stats.state == "reserved" else stats

    def _carry_out(self, fate: Fate) -> None:
        self._is_carried_out = True
        if fate.command == "release":
            self.job.release(fate.priority, fate.delay)
        elif fate.command == "bury":
            self.job.bury(fate.priority)
        else:
            self.job.delete()

    @property
    def known(self) -> dict[str, Any]:
        """What a log record tells of it for machines."""
        return _known(self.job, None if self.stats is None else self.stats.reserves, self.outcome)

    def message(self, what: str, done: str = "") -> str:
        """Name the job, its server and its attempt."""
        known = None if self.stats is None else self.stats.reserves
        attempt = f"attempt {'unknown' if known is None else known}"
        words = f"{what}, {attempt}" if what else attempt
        return f"job {self.job.id} of {self.job.uri}: {words}" + (f"; {done}" if done else "")


class _Telling:
    """The events of a job in a handler: for each `handling` one `handled`, however the handler ends."""

    __slots__ = ("_began", "_hooks", "_job", "error", "stats")

    def __init__(self, hooks: Hooks, job: Job) -> None:
        self._hooks = hooks
        self._job = job
        self._began: float | None = None
        self.error: BaseException | None = None
        self.stats: JobStats | None = None

    def begin(self) -> None:
        self._began = monotonic()
        wait = None if self.stats is None else _wait(self.stats)
        _tell(self._hooks, "handling", self._job, self.stats, None, wait)

    def end(self) -> None:
        if self._began is not None:
            error, self.error = self.error, None  # its traceback holds us
            _tell(self._hooks, "handled", self._job, self.stats, error, monotonic() - self._began)


def _tell(
    hooks: Hooks, kind: str, job: Job, stats: JobStats | None, error: BaseException | None, duration: float | None
) -> None:
    """Tell of a job's event."""
    hooks.event(
        kind,
        uri=job.uri,
        tube=job.tube,
        job_id=job.id,
        attempt=None if stats is None else stats.reserves,
        exception=error,
        duration=duration,
    )


def _wait(stats: JobStats) -> float | None:
    """Find how long a job was ready before it was reserved; the server can tell that of the first attempt only."""
    if stats.reserves != 1 or stats.age is None:
        return None
    return float(max(stats.age - _count(stats.delay), 0))


class _Touching(InHub):
    """Touches a job at a third of its ttr for as long as it is held; all of it in the hub, without a greenlet."""

    def __init__(self, connection: Connection, job: Job) -> None:
        self._connection = connection
        self.hub, self.section = connection.hub, connection.section
        self._job = job
        self._timer: Any = None
        self._stopped = False
        request = connection.pipe.request(commands.STATS_JOB, job.id, self._told)
        connection.append(commands.by_id(commands.STATS_JOB, job.id), request)

    def _told(self, request: Request) -> None:
        if not self._stopped and not isinstance(request.error, DisconnectedError):
            # A server that won't tell is told of the job as if its time was the shortest.
            third = (1 if request.error is not None else max(_count(request.result.ttr), 1)) / 3
            self._timer = self.hub.loop.timer(third, third, ref=False)
            self._timer.start(self.run, self._touch)

    def struck(self, error: BaseException) -> None:
        """A signal's exception: the next time comes before the job's time is over."""

    def _touch(self) -> None:
        state = state_of(self._job)
        if state == "held":
            self._connection.touch_unwaited(self._job)
        elif state != "settling":  # that may be refused, and the job is held again
            self.stop()

    def stop(self) -> None:
        self._stopped = True
        if self._timer is not None:
            self._timer.close()
            self._timer = None


def _known(job: Job, attempt: int | None, outcome: str | None) -> dict[str, Any]:
    """Collect what a log record tells of a job beside its sentence; `duration`: the seconds since it was reserved."""
    since = None if job.reserved_at is None else monotonic() - job.reserved_at
    known = {"uri": job.uri, "tube": job.tube, "job_id": job.id}
    return {**known, "attempt": attempt, "outcome": outcome, "duration": since}


def _count(value: int | None) -> int:
    return value or 0
