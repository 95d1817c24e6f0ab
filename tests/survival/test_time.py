"""A job's time to run: handlers that outlive it, those that are kept alive, and those whose time is limited."""

from __future__ import annotations

import itertools
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.monkey import get_original

import gstalk
from gstalk.testing import FaultProxy
from tests.faults.programs.running import Program
from tests.servers import wait_until
from tests.survival.work import WORKER, Worker

pytestmark = [pytest.mark.real, pytest.mark.slow]

block = get_original("time", "sleep")  # the whole hub, patched or not


# -- auto_touch ----------------------------------------------------------------------------------------------------


@pytest.mark.soak
def test_auto_touch_keeps_jobs_through_many_times_their_ttr_and_ends_with_their_handlers(
    own_server, connect, many, figures
):
    conn, times = connect(own_server.uri), many(4, 10)

    def handler(job: gstalk.Job) -> None:
        gevent.sleep(times)
        job.delete()

    with Worker(own_server.uri, "t", handler, num_greenlets=50, auto_touch=True) as worker:
        ids = conn.put_many("t", [b""] * 50, ttr=1)
        wait_until(lambda: conn.stats().cmd_delete == 50, 20)
        touches = conn.stats().cmd_touch
        gevent.sleep(1)
        after = conn.stats()
        assert after.cmd_touch == touches
    assert worker.told == []
    assert worker.runs == dict.fromkeys(ids, 1)
    assert (after.job_timeouts, after.current_jobs_ready) == (0, 0)
    assert 50 * times * 2 <= (touches or 0) <= 50 * (times * 3 + 1)  # at each third of the ttr
    figures |= {"jobs": 50, "touches": touches, "timeouts": after.job_timeouts}


def test_auto_touch_that_comes_too_late_marks_the_job_lost(own_server, connect):
    """A handler that blocks the hub stops the touches, too. Another worker, in its own process, has the job then."""
    conn = connect(own_server.uri)
    lost: list[gstalk.Job] = []
    saved: list[gstalk.Job] = []
    gate = Event()

    def handler(job: gstalk.Job) -> None:
        gate.wait()
        block(2.5)
        gevent.sleep(0.5)  # the next touch comes unasked
        if not job.is_lost:
            saved.append(job)
            job.delete()
            return
        for call in (job.delete, job.touch, job.release, job.bury):
            with pytest.raises(gstalk.JobLostError, match="nothing was sent"):
                call()
        lost.append(job)
        gevent.sleep(30)

    for _ in range(8):  # one time in ten the server forgets to look at the clock, and the touch saves the job (S31)
        gate.clear()
        with Worker(own_server.uri, "t", handler, auto_touch=True, num_greenlets=1) as worker:
            job_id = conn.put("t", b"", ttr=1)
            wait_until(lambda: worker.runs)
            with Program(WORKER, "quick", own_server.uri, "t") as program:
                assert program.read() == "begins"
                wait_until(lambda: conn.stats().current_waiting == 1)
                gate.set()
                wait_until(lambda: lost or saved)
                program.process.send_signal(signal.SIGTERM)
                code, said, _ = program.end()
            worker.consumer.stop(0)
        assert (code, said[-1][0], conn.peek(job_id)) == (0, "returned", None)
        assert worker.told == []
        if lost:
            break
        saved.clear()
    assert lost


# -- time_limit ----------------------------------------------------------------------------------------------------


@pytest.mark.soak
def test_time_limit_is_raised_in_handlers_that_catch_exception_and_is_a_failure(server, conn, tube, many, figures):
    swallowed: list[Exception] = []
    jobs = many(100, 1000)

    def handler(job: gstalk.Job) -> None:
        while True:
            try:
                gevent.sleep(30)
            except Exception as error:
                swallowed.append(error)

    began = monotonic()
    retry = gstalk.RetryPolicy(max_attempts=2, first_delay=0)
    with Worker(server.uri, tube, handler, num_greenlets=20, time_limit=0.05, retry=retry) as worker:
        ids = conn.put_many(tube, [b""] * jobs)
        wait_until(lambda: conn.stats_tube(tube).current_jobs_buried == jobs, 50)
    assert swallowed == []
    assert worker.runs == dict.fromkeys(ids, 2)
    assert Counter(type(error) for error, _ in worker.told) == {gstalk.TimeLimitExceeded: 2 * jobs}
    assert all(f"its handler failed, attempt {n}" in "".join(text for _, text in worker.told) for n in (1, 2))
    figures |= {"limits": len(worker.told), "seconds": f"{monotonic() - began:.1f}"}
    conn.kick(tube, jobs)


def test_time_limit_is_over_with_its_handler(server, conn, tube):
    """It hits neither the next handler of the greenlet nor its wait for a job."""

    def handler(job: gstalk.Job) -> None:
        gevent.sleep(0.1)
        job.delete()

    with Worker(server.uri, tube, handler, num_greenlets=1, time_limit=0.6) as worker:
        for _ in range(3):
            conn.put_many(tube, [b""] * 2)
            wait_until(
                lambda: conn.stats_tube(tube).current_jobs_reserved == 0 == conn.stats_tube(tube).current_jobs_ready
            )
            gevent.sleep(0.3)
    assert worker.told == []
    assert worker.runs.total() == 6


# -- past its time -------------------------------------------------------------------------------------------------


@pytest.mark.soak
def test_job_past_its_ttr_that_another_worker_has_is_lost_and_the_others_reservation_untouched(
    own_server, connect, many, figures
):
    other = connect(own_server.uri)
    other.watch("t")
    jobs = many(50, 1000)
    refused: Counter[str] = Counter()
    stolen: dict[int, gstalk.Job] = {}
    taken = Event()

    def handler(job: gstalk.Job) -> None:
        taken.wait()
        name = ("delete", "release", "bury", "touch")[job.id % 4]
        with pytest.raises(gstalk.JobLostError):
            getattr(job, name)()
        refused[name] += 1
        assert job.is_lost
        with pytest.raises(gstalk.JobLostError, match="nothing was sent"):
            job.delete()
        raise ValueError

    with Worker(own_server.uri, "t", handler, num_greenlets=jobs) as worker:
        ids = other.put_many("t", [b""] * jobs, ttr=1)
        wait_until(lambda: len(worker.runs) == jobs)
        while len(stolen) < jobs:
            try:
                job = other.reserve()
                stolen[job.id] = job
            except gstalk.DeadlineSoonError:
                for job in stolen.values():
                    job.touch()
        before = other.stats()
        taken.set()
        wait_until(lambda: len(worker.told) == jobs)
        assert {type(error) for error, _ in worker.told} == {ValueError}
        assert all(
            "its handler failed, attempt 1; the server has taken the job back" in text for _, text in worker.told
        )
        for job in stolen.values():
            job.touch()  # ours
        after = other.stats()
        assert after.current_jobs_reserved == jobs
        assert (after.cmd_delete or 0) - (before.cmd_delete or 0) == refused["delete"]  # the second one was not sent
        for job in stolen.values():
            job.delete()
    assert worker.runs == dict.fromkeys(ids, 1)
    figures |= {"lost": refused.total(), **refused}


@pytest.mark.soak
@pytest.mark.limit(240)
def test_job_reserved_again_by_the_same_connection_the_stale_delete_is_not_sent(own_server, connect, many, figures):
    """To the server both are the same reservation (S16)."""
    conn, other = connect(own_server.uri), connect(own_server.uri)
    conn.watch("t")
    rounds, jobs = many(1, 20), many(200, 500)
    for number in range(rounds):
        ids = conn.put_many("t", [b""] * jobs, ttr=2)
        stale = [conn.reserve() for _ in ids]
        again: dict[int, gstalk.Job] = {}
        while len(again) < jobs:
            try:
                job = conn.reserve()
            except gstalk.DeadlineSoonError:
                continue
            again[job.id] = job
        for job in stale:
            for call in (job.delete, job.release, job.bury, job.touch):
                with pytest.raises(gstalk.JobLostError):
                    call()
        stats = other.stats()
        assert (stats.cmd_delete, stats.cmd_release, stats.cmd_bury) == (number * jobs, 0, 0)
        for job in again.values():
            job.delete()
    figures |= {"reserved again": rounds * jobs, "stale deletes sent": 0}


def test_job_reserved_again_between_the_two_steps_of_a_release_it_is_not_sent(play):
    """A release that keeps the job's priority asks for it first; when that is answered, the job may be another's."""
    asked, gate = Event(), Event()

    def reserve(line: bytes) -> bytes:
        asked.set()
        gate.wait()
        return b"RESERVED 7 1\r\nx\r\n"

    played = play({"reserve-job": b"RESERVED 7 1\r\nx\r\n", "reserve-with-timeout": reserve})
    with gstalk.dial(played.uri) as conn:
        stale = conn.reserve_job(7)
        reserving = gevent.spawn(conn.reserve_with_timeout, 0)
        assert asked.wait(5)
        releasing = gevent.spawn(stale.release)
        gevent.sleep(0.02)  # its first step is on its way
        gate.set()
        job: Any = reserving.get(timeout=5)
        with pytest.raises(gstalk.JobLostError, match=r"release 7 at .*: the server has taken the job back"):
            releasing.get(timeout=5)
        assert played.count("release") == 0
        assert stale.is_lost
        job.delete()
        assert job.is_finished


# -- DEADLINE_SOON -------------------------------------------------------------------------------------------------


class Counting(FaultProxy):
    """A proxy that counts the reserves that pass."""

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream, on_data=self._count)
        self.reserves = 0

    def _count(self, direction: str, data: bytes, _: int) -> None:
        if direction == "up":
            self.reserves += data.count(b"reserve")


def reserves_of_a_conn(uri: str, tube: str, greenlets: int, timeout: float | None) -> int | None:
    """How many reserves a Conn makes in three quarters of the last second of a job that it holds.

    `None`: the machine was so busy that the second was over before that.
    """
    proxy = Counting(uri)
    with proxy, gstalk.dial(proxy.uri) as conn:
        conn.watch(tube)
        conn.put(tube, b"", ttr=2)
        since = monotonic()
        held = conn.reserve()
        raised: list[gstalk.DeadlineSoonError] = []

        def is_over() -> bool:
            return held.is_finished or held.is_lost

        def reserve() -> None:
            while not is_over():
                try:
                    job = conn.reserve() if timeout is None else conn.reserve_with_timeout(timeout)
                    assert job is None or is_over()
                except gstalk.DeadlineSoonError as error:
                    raised.append(error)
                if timeout == 0:
                    gevent.sleep(0.001)

        gevent.sleep(0.95)
        reserving = [gevent.spawn(reserve) for _ in range(greenlets)]
        wait_until(lambda: raised)
        before = proxy.reserves
        gevent.sleep(0.75)
        made = proxy.reserves - before if monotonic() < since + 2 else None
        with suppress(gstalk.JobLostError):
            held.delete()
        with gstalk.dial(uri) as other:
            other.put_many(tube, [b""] * greenlets)
        gevent.joinall(reserving, raise_error=True)
    return made


def reserves_of_a_consumer(uri: str, tube: str, handlers: int, multiply: int) -> int | None:
    """The same of a Consumer all of whose handlers but one hold such jobs."""
    gate = Event()

    def handler(job: gstalk.Job) -> None:
        gate.wait()
        job.delete()

    proxy = Counting(uri)
    with proxy, gstalk.dial(uri) as conn:
        with Worker(proxy.uri, tube, handler, num_greenlets=handlers, multiply=multiply) as worker:
            since = monotonic()
            conn.put_many(tube, [b""] * (handlers - 1), ttr=2)
            wait_until(lambda: len(worker.runs) == handlers - 1)
            gevent.sleep(1.05)
            before = proxy.reserves
            gevent.sleep(0.8)
            made = proxy.reserves - before if monotonic() < since + 2 else None
            gate.set()
            wait_until(lambda: conn.stats_tube(tube).current_jobs_reserved == 0)
        assert {type(error) for error, _ in worker.told} <= {gstalk.JobLostError}  # of deletes that came too late
    return made


def made_by(count: Callable[..., int | None], uri: str, tube: str, *args: Any) -> int:
    for number in range(5):
        if (made := count(uri, f"{tube}-{number}", *args)) is not None:
            return made
    raise AssertionError("each second was over before it was measured")


def test_deadline_soon_makes_at_most_ten_reserves_in_its_second(server, tube, figures):
    """The server would say it thousands of times (S18)."""
    cases: list[tuple[Any, ...]] = [
        *((reserves_of_a_conn, *args) for args in itertools.product([1, 50], [None, 0.3, 0])),
        *((reserves_of_a_consumer, *args) for args in itertools.product([2, 10], [1, 3])),
    ]
    counting: list[Any] = [
        gevent.spawn(made_by, count, server.uri, f"{tube}-{number}", *args)
        for number, (count, *args) in enumerate(cases)
    ]
    gevent.joinall(counting, raise_error=True)
    made = {f"{count.__name__}{tuple(args)}": each.value for (count, *args), each in zip(cases, counting, strict=True)}
    figures |= made
    assert 1 <= max(made.values()) <= 10
