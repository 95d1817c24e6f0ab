"""What happens to one job in a Consumer: the handler's call, and the job's fate when that has ended, however it did.

The dispatcher owns the job, not the handler: whatever a handler raises or forgets ends here, but for two things that
pass on after the job has been given back, a kill of the greenlet and Ctrl-C.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import random
from typing import Any

import gevent
from gevent import GreenletExit

from gstalk._clock import monotonic
from gstalk._hooks import Hooks
from gstalk._interrupts import calls_handlers
from gstalk._link import Link
from gstalk.config import Config
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
from gstalk.job import Job
from gstalk.protocol import checks, commands
from gstalk.protocol.session import Slot
from gstalk.protocol.stats import JobStats

__all__ = ["Handler", "Handling", "TimeLimitExceeded"]

BLOWS = 3  # that may hit the decision about one job, before it is just released

Handler = Callable[[Job], object]


class TimeLimitExceeded(gevent.Timeout):
    """A handler ran longer than `Config.time_limit`; raised in it."""

    def __reduce__(self) -> tuple[type[TimeLimitExceeded], tuple[float | None]]:
        return type(self), (self.seconds,)  # without the timer, which belongs to a loop


class Handling:
    """Handlers, and what their Config says about jobs.

    Args:
        handler: One for all jobs, or a mapping from tube to handler.
        tubes: The tubes watched, each of which such a mapping must name.

    Raises:
        TypeError, InvalidArgumentError: The handler isn't callable, or a tube has none.
    """

    def __init__(
        self, handler: Handler | Mapping[str, Handler], tubes: Sequence[str], config: Config, hooks: Hooks
    ) -> None:
        self._config = config
        self._hooks = hooks
        self._by_tube: Mapping[str, Handler] | None = None
        self._handler: Handler | None = None
        if isinstance(handler, Mapping):
            missing = [tube for tube in tubes if tube not in handler]
            if missing:
                raise InvalidArgumentError(f"no handler for tube {missing[0]!r}")
            self._by_tube = dict(handler)
        else:
            self._handler = handler
        for each in [self._handler] if self._by_tube is None else self._by_tube.values():
            if not callable(each):
                raise TypeError(f"handler must be callable, got {type(each).__name__}")
        self.is_killing = False  # from here on a kill comes from `stop`, and is no failure of the handler's

    @calls_handlers
    def handle(self, link: Link, job: Job, look: bool) -> None:
        """Run the handler, and see that the job has a fate.

        Args:
            link: The connection that holds the job.
            look: Whether to ask first if the job has been lost with its worker too often.

        Raises:
            GreenletExit, KeyboardInterrupt: They hit the handler; the job has been given back.
        """
        touching = _Touching(link, job) if self._config.auto_touch else None
        telling = _Telling(self._hooks, job) if self._hooks.listens else None
        what = "it could not be looked at"
        try:
            try:
                handler = self._choose(job, look, telling)
            except (JobLostError, DisconnectedError):
                return  # it goes back by itself, and nobody has failed
            if handler is None:
                return
            what = "its handler failed"
            if telling is not None:
                telling.begin()
            if self._config.time_limit is None:
                handler(job)
            else:
                with TimeLimitExceeded(self._config.time_limit):  # type: ignore[arg-type]  # checked: no timedelta
                    handler(job)
            if job._state == "held":
                if not self._config.auto_delete:
                    raise JobNotFinishedError(f"the handler returned without finishing job {job.id}")
                link.delete_unwaited(job, self._not_deleted)
            elif job._state == "lost":
                raise JobLostError(f"the server has taken job {job.id} back while its handler ran")
        except BaseException as error:
            if telling is not None:
                telling.error = error
            if isinstance(error, KeyboardInterrupt):
                link.give_back(job)
            else:
                self._decide(link, job, error, what, telling)
            if isinstance(error, (KeyboardInterrupt, GreenletExit)):
                raise
        finally:
            if touching is not None:
                touching.stop()
            if telling is not None:
                telling.end()

    def _choose(self, job: Job, look: bool, telling: _Telling | None) -> Handler | None:
        """Find the job's handler; `None` if it is not to run."""
        look = look and self._config.retry.max_attempts is not None
        if look or (self._by_tube is not None and job.tube is None):
            stats = job.stats()
            if telling is not None:
                telling.stats = stats
            if look and self._lost_too_often(stats):
                attempts = _count(stats.reserves)
                error = RetriesExhaustedError(
                    f"job {job.id} was lost with its worker too often: {attempts} attempts", job.id, attempts
                )
                self._hooks.error(error, f"job {job.id} of {job.uri}: attempt {attempts}; {self._exhaust(job, stats)}")
                return None
        if self._by_tube is None:
            return self._handler
        handler = self._by_tube.get(str(job.tube))
        if handler is None:
            raise InvalidArgumentError(f"no handler for tube {job.tube!r}")
        return handler

    def _lost_too_often(self, stats: JobStats) -> bool:
        return self._config.retry.is_exhausted_by_losses(
            _count(stats.reserves),
            _count(stats.releases),
            _count(stats.timeouts),
            _count(stats.buries),
            _count(stats.kicks),
        )

    def _decide(self, link: Link, job: Job, error: BaseException, what: str, telling: _Telling | None) -> None:
        """Give a job its fate. A timeout that the handler forgot, or another kill, may hit this greenlet meanwhile."""
        if self.is_killing and isinstance(error, (GreenletExit, JobFinishedError)):
            link.give_back(job)  # as `stop` does with all of them; that is no failure of the handler's
            return
        killed: GreenletExit | None = None
        blows = 0
        while True:
            try:
                self._give_fate(job, error, what, telling)
                break
            except BaseException as blow:
                blows += 1
                if isinstance(blow, GreenletExit):
                    killed = blow
                elif not isinstance(blow, KeyboardInterrupt):
                    self._hooks.error(blow, f"job {job.id} of {job.uri}: hit while its fate was decided")
                if self.is_killing or isinstance(blow, KeyboardInterrupt) or blows == BLOWS:
                    link.give_back(job)
                    if not _asked_for(error):
                        self._hooks.error(error, f"job {job.id} of {job.uri}: {what}; released")
                    if isinstance(blow, KeyboardInterrupt):
                        raise
                    break
        if killed is not None:
            raise killed

    def _give_fate(self, job: Job, error: BaseException, what: str, telling: _Telling | None) -> None:
        """Release, bury or delete a job that isn't finished, and tell of the error."""
        told = None if _asked_for(error) else error
        try:
            if job._state == "lost":
                what += "; the server has taken the job back"
            elif job._state != "held":
                what += "; the job was finished"
            elif isinstance(error, Bury):
                job.bury(error.priority)
            else:
                stats = job.stats()
                if telling is not None:
                    telling.stats = stats
                what += f", attempt {stats.reserves}"
                what += f"; {self._retry(job, stats, error)}"
        except (JobLostError, DisconnectedError):
            what += "; the job goes back by itself"
        except (GstalkError, TypeError) as wrong:  # the handler's delay or priority, or the server in trouble
            link: Any = job._owner
            link.give_back(job)
            fate = "buried by the server" if isinstance(wrong, BuriedError) else "released"
            if told is None:
                told, what = wrong, f"could not be retried or buried; {fate}"
            else:
                what += f"; {fate}, since it could not be retried: {wrong}"
        if told is not None:
            self._hooks.error(told, f"job {job.id} of {job.uri}: {what}")

    def _retry(self, job: Job, stats: JobStats, error: BaseException) -> str:
        """Release a failed job, or give it up; returns what was done, in words."""
        policy = self._config.retry
        attempt = _count(stats.reserves)
        if policy.is_exhausted(attempt, _count(stats.kicks)):
            return self._exhaust(job, stats)
        delay: Any = policy.delay(attempt, random())
        priority = stats.pri
        if isinstance(error, Retry):
            delay = delay if error.delay is None else error.delay
            priority = priority if error.priority is None else error.priority
        seconds = checks.check_delay(delay)
        job.release(priority, seconds)
        return f"released, with a delay of {seconds} s"

    def _exhaust(self, job: Job, stats: JobStats) -> str:
        if self._config.retry.exhausted == "delete":
            job.delete()
            return "given up and deleted"
        job.bury(stats.pri)
        return "given up and buried"

    def _not_deleted(self, slot: Slot) -> None:
        """In the hub: an automatic delete failed."""
        assert slot.error is not None
        gevent.spawn(
            self._hooks.error, slot.error, f"job {slot.key} of {slot.session.uri}: not deleted; it may run again"
        )


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
        self._tell("handling", None, None if self.stats is None else _wait(self.stats))

    def end(self) -> None:
        if self._began is not None:
            error, self.error = self.error, None  # its traceback holds us
            self._tell("handled", error, monotonic() - self._began)

    def _tell(self, kind: str, error: BaseException | None, duration: float | None) -> None:
        job = self._job
        self._hooks.event(
            kind,
            uri=job.uri,
            tube=job.tube,
            job_id=job.id,
            attempt=None if self.stats is None else self.stats.reserves,
            exception=error,
            duration=duration,
        )


def _wait(stats: JobStats) -> float | None:
    """Find how long a job was ready before it was reserved; the server can tell that of the first attempt only."""
    if stats.reserves != 1 or stats.age is None:
        return None
    return float(max(stats.age - _count(stats.delay), 0))


class _Touching:
    """Touches a job at a third of its ttr for as long as it is held; all of it in the hub, without a greenlet."""

    def __init__(self, link: Link, job: Job) -> None:
        self._link = link
        self._job = job
        self._timer: Any = None
        self._stopped = False
        slot = link.pipe.slot(commands.STATS_JOB, job.id, self._told)
        link.pipe.append(commands.by_id(commands.STATS_JOB, job.id), slot)

    def _told(self, slot: Slot) -> None:
        if slot.error is None and not self._stopped:
            third = max(_count(slot.result.ttr), 1) / 3
            self._timer = self._link.hub.loop.timer(third, third, ref=False)
            self._timer.start(self._touch)

    def _touch(self) -> None:
        if self._job._state == "held":
            self._link.touch_unwaited(self._job)
        else:
            self.stop()

    def stop(self) -> None:
        self._stopped = True
        if self._timer is not None:
            self._timer.close()
            self._timer = None


def _asked_for(error: BaseException) -> bool:
    return isinstance(error, (Retry, Bury))


def _count(value: int | None) -> int:
    return value or 0
