"""Taking jobs out of a tube: each is reserved, handed over, and deleted when it has arrived.

So a crash at any moment may double a job, and loses none. The price is that up to `IN_FLIGHT` jobs are reserved at
a time. Their state is put back whenever the program still can; when it is killed, the server makes all of them
ready, those that were delayed or buried too.

Ready jobs are reserved as a worker does it, many at a time. Delayed and buried ones, and those of a tube that is
paused, only a peek can find: they are reserved by their id, one after the other. What a job was before, `stats-job`
tells, in the same write.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import gevent
from gevent.pool import Pool

import gstalk
from gstalk.cli._lines import MAX_JOB_SIZE, params_of
from gstalk.cli._sweep import State, peek
from gstalk.conn import connection_of
from gstalk.connection.two_in_one import look_and_reserve

__all__ = ["Drain", "Taken"]

IN_FLIGHT = 64
MOST_BYTES = 1 << 26  # that the jobs in flight may have together
LAST_SECONDS = 2.0  # after an interruption: time in which what is under way may end


@dataclass
class Taken:
    """A job that we have reserved, and what it was before; `stats` is `None` until the server has told."""

    job: gstalk.Job
    state: State
    stats: gstalk.JobStats | None

    @property
    def params(self) -> gstalk.PutParams:
        """What to put it with elsewhere, so that it is the same there."""
        return params_of(self.stats or gstalk.JobStats())

    @property
    def ttr(self) -> int:
        """Seconds until the server takes it back."""
        return (self.stats and self.stats.ttr) or 1

    def put_back(self) -> None:
        """Make it again what it was."""
        priority = None if self.stats is None else self.params.priority
        with contextlib.suppress(gstalk.GstalkError):  # finished, or lost: then the server has put it back
            if self.state == "buried":
                self.job.bury(priority)
            else:
                self.job.release(priority, self.params.delay)


class Drain:
    """Takes the jobs of one tube out, and hands them over to `deliver`, in their order, several at a time.

    Args:
        conn: A connection that nobody else uses; it watches nothing but the tube from now on.
        deliver: Called for each job, in a greenlet that others don't wait for; deletes it, or raises.
    """

    def __init__(self, conn: gstalk.Conn, tube: str, deliver: Callable[[Taken], None]) -> None:
        self._conn = conn
        self._tube = tube
        self._deliver = deliver
        self._held: dict[int, Taken] = {}
        largest = conn.stats().max_job_size or MAX_JOB_SIZE
        self._pool = Pool(min(max(MOST_BYTES // largest, 1), IN_FLIGHT))
        self._failure: BaseException | None = None
        conn.watch(tube)
        for other in conn.list_tubes_watched():
            if other != tube:
                conn.ignore(other)

    def run(self, bounds: dict[State, int]) -> None:
        """Take as many jobs of each state as `bounds` says, or fewer if there are no more.

        Raises:
            Exception: The first that `deliver` raised. All jobs that it had not dealt with are put back.
        """
        try:
            late = self._take("delayed", bounds["delayed"])
            # Those that have become ready since they were counted are found here.
            self._take("ready", self._take_ready(bounds["ready"] + late))
            self._take("buried", bounds["buried"])
            self._pool.join()
        except BaseException as error:
            self._failure = self._failure or error  # those who take see it, and end
            self._pool.join(LAST_SECONDS)
        finally:
            self._pool.kill()
            for taken in list(self._held.values()):
                taken.put_back()
        if self._failure is not None:
            raise self._failure

    def _take_ready(self, bound: int) -> int:
        """Reserve many at a time, as a worker would; returns how many are still to be taken."""

        def work() -> None:
            nonlocal bound
            while bound and self._failure is None:
                bound -= 1
                try:
                    job = self._conn.reserve_with_timeout(0)
                except gstalk.DeadlineSoonError:
                    job = None
                if job is None:  # there are no more, or the tube is paused
                    bound += 1
                    return
                self._held[job.id] = taken = Taken(job, "ready", None)
                taken.stats = job.stats()
                self._hand_over(taken)

        for _ in range(min(self._pool.size or 0, bound)):
            self._pool.spawn(self._noting_failure, work)
        self._pool.join()
        return bound

    def _take(self, state: State, bound: int) -> int:
        """Take jobs one by one, each by its id; returns how many there were too few."""
        job = peek(self._conn, self._tube, state) if bound else None
        while job is not None and bound:
            self._pool.wait_available()  # a job that is reserved has somebody who touches it
            if self._failure is not None:
                return 0
            bound -= 1
            job_id = job.id
            job = self._reserve_and_peek(job_id, state)
            if job_id in self._held:
                self._pool.spawn(self._noting_failure, self._hand_over, self._held[job_id])
        return bound

    def _reserve_and_peek(self, job_id: int, state: State) -> gstalk.Job | None:
        """Ask what a job is and reserve it, in one write, and peek at the next one right behind it."""

        def reserved(job: gstalk.Job, stats: gstalk.JobStats | None) -> None:
            self._held[job_id] = Taken(job, getattr(stats, "state", state), stats)

        look_and_reserve(connection_of(self._conn), job_id, reserved)
        return peek(self._conn, self._tube, state)  # replies come in order: with this one the others are there

    def _hand_over(self, taken: Taken) -> None:
        self._deliver(taken)
        del self._held[taken.job.id]

    def _noting_failure(self, act: Callable[..., None], *args: Taken) -> None:
        try:
            act(*args)
        except gevent.GreenletExit:
            raise
        except BaseException as error:
            self._failure = self._failure or error
