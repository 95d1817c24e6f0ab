"""The greenlets of a Consumer: how many run, and that those which die are replaced."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.local import local

import gstalk
from gstalk.connection.critical import section_of
from gstalk.connection.hooks import Hooks
from gstalk.connection.loop import wake
from gstalk.pool.crew import Crew, JobSource
from gstalk.protocol.request import Outcome
from tests.io.striking import Strike
from tests.servers import wait_until

pytestmark = pytest.mark.real


def test_handlers_no_more_run_and_no_more_jobs_are_reserved_than_num_greenlets(work, conn, tube):
    running = most = 0
    reserved = []

    def handler(job):
        nonlocal running, most
        running += 1
        most = max(most, running)
        reserved.append(conn.stats_tube(tube).current_jobs_reserved)
        gevent.sleep(0.002)
        running -= 1
        job.delete()

    conn.put_many(tube, [b""] * 200)
    work(handler, num_greenlets=7, multiply=3)
    wait_until(lambda: len(reserved) == 200)
    assert most == 7
    assert max(reserved) <= 7


def test_handler_runs_in_greenlets_beside_each_other(work, conn, tube):
    here, gate = [], Event()

    def handler(job):
        here.append(job.id)
        gate.wait()
        job.delete()

    work(handler)
    conn.put_many(tube, [b""] * 10)
    wait_until(lambda: len(here) == 10)
    gate.set()


def test_handlers_greenlet_serves_many_jobs_and_keeps_its_local_data(work, conn, tube):
    mine = local()
    counts: list[int] = []

    def handler(job):
        mine.jobs = getattr(mine, "jobs", 0) + 1
        counts.append(mine.jobs)

    work(handler, num_greenlets=1, auto_delete=True)
    conn.put_many(tube, [b""] * 3)
    wait_until(lambda: counts == [1, 2, 3])


def test_handlers_that_die_cost_no_concurrency(work, conn, tube):
    running: list[int] = []
    gate = Event()
    me: Callable[[], Any] = gevent.getcurrent

    def handler(job):
        job.delete()
        match job.body:
            case b"kill":
                me().kill()
            case b"exit":
                sys.exit(1)
            case b"swallow":
                try:
                    me().kill()
                except BaseException:
                    pass
            case b"wait":
                running.append(job.id)
                gate.wait()

    work(handler, num_greenlets=5)
    conn.put_many(tube, [b"kill", b"exit", b"swallow", b"raise"] * 25)
    conn.put_many(tube, [b"wait"] * 5)
    wait_until(lambda: len(running) == 5)
    gate.set()


def test_handlers_greenlets_killed_while_they_wait_are_replaced(work, conn, tube):
    running: list[int] = []
    gate = Event()

    def handler(job):
        running.append(job.id)
        gate.wait()
        job.delete()

    worker = work(handler, num_greenlets=5)
    assert worker.consumer.wait_connected(5)
    greenlets = worker.consumer._run._crew._greenlets
    wait_until(lambda: len(worker.consumer._run._crew._idle) == 5)
    gevent.killall(list(greenlets), block=False)
    ids = conn.put_many(tube, [b""] * 3)  # handed to some of those that are about to die
    ids += conn.put_many(tube, [b""] * 2)
    wait_until(lambda: sorted(running) == ids)
    gate.set()


def test_greenlet_whose_handler_fails_goes_on_and_one_whose_handler_is_killed_is_replaced(work, conn, tube):
    seen: list[Any] = []

    def handler(job):
        seen.append(gevent.getcurrent())
        if job.body == b"fail":
            raise ValueError
        if job.body == b"kill":
            seen[-1].kill()
        job.delete()

    work(handler, num_greenlets=1, retry=gstalk.RetryPolicy(max_attempts=1))
    conn.put_many(tube, [b"fail", b"kill", b"succeed"])
    wait_until(lambda: len(seen) == 3)
    assert seen[0] is seen[1]
    assert seen[1] is not seen[2]


# -- alone, with jobs that the test hands over ---------------------------------------------------------------------


class Handed:
    """A Crew, whose handler waits at a gate, and a connection of which only what a Crew asks for is there."""

    def __init__(self, greenlets: int = 1) -> None:
        self.gate = Event()
        self.handled: list[Any] = []
        self.looks: list[bool] = []
        self.given_back: list[Any] = []
        self.returned: list[Any] = []
        self.late: list[Any] = []  # begun though they had their fate
        self.told: list[BaseException] = []
        self.interruptions: list[BaseException] = []
        self.is_killing = False
        config = gstalk.Config(num_greenlets=greenlets, error_func=lambda error, message: self.told.append(error))
        me: Any = self
        self.crew = Crew(config, Hooks(config), me, self.refill, self.interruptions.append)
        self.source = JobSource("server", me, (), 0)
        self.pipe = self
        self.give_back = partial(self.end_job, self.given_back)
        self.return_job = partial(self.end_job, self.returned)
        self.crew.fill()
        gevent.sleep(0)

    @property
    def ended(self) -> list[Any]:
        return self.handled + self.given_back + self.returned

    def end_job(self, how: list[Any], job: Any) -> None:
        """As a connection, which does nothing about a job that has its fate."""
        if job not in self.ended:
            how.append(job)

    def refill(self) -> None:
        self.crew.fill()

    def complete(self, call: Outcome) -> None:
        """As a pipeline wakes who waits."""
        hub = gevent.get_hub()
        hub.loop.run_callback(wake, section_of(hub), call)

    def handle(self, connection: Any, job: Any, look: bool) -> None:
        self.looks.append(look)
        if isinstance(job, BaseException):
            raise job
        if job in self.ended:
            self.late.append(job)
        self.gate.wait()
        self.end_job(self.handled, job)

    def offer(self, *jobs: Any) -> None:
        for job in jobs:
            self.crew.offer(self.source, job)

    @property
    def greenlets(self) -> list[Any]:
        return list(self.crew._greenlets)

    def end(self) -> None:
        self.gate.set()
        self.crew.dismiss()
        wait_until(lambda: len(self.crew) == 0)


def test_job_is_behind_until_a_greenlet_has_begun_to_look_at_it():
    handed = Handed(2)
    crew = handed.crew
    assert (crew.running, crew.is_behind) == (0, False)
    handed.offer(1, 2, 3)
    assert (crew.running, crew.is_behind) == (3, True)
    wait_until(lambda: len(crew.working) == 2)
    assert (crew.running, crew.is_behind) == (3, True)  # nobody is free for the third
    handed.gate.set()
    wait_until(lambda: sorted(handed.handled) == [1, 2, 3])
    assert (crew.running, crew.is_behind) == (0, False)
    handed.end()


def test_job_handed_to_a_greenlet_that_is_killed_before_it_wakes_goes_to_the_next():
    handed = Handed()
    first = handed.greenlets[0]
    first.kill(block=False)  # it comes before he is woken
    handed.offer(1)
    handed.gate.set()
    wait_until(lambda: handed.handled == [1])
    assert first.dead
    assert handed.given_back == []
    handed.end()


def test_greenlet_hit_while_it_waits_tells_and_goes_on_with_the_job_that_it_was_handed():
    handed = Handed()
    hit = ValueError("left behind")
    me = handed.greenlets[0]
    gevent.get_hub().loop.run_callback(me.throw, hit)
    wait_until(lambda: handed.told == [hit])
    gevent.get_hub().loop.run_callback(me.throw, hit)  # it comes before he is woken
    handed.offer(1)
    handed.gate.set()
    wait_until(lambda: handed.handled == [1])
    assert handed.told == [hit, hit]
    assert handed.greenlets == [me]
    handed.end()


def test_job_that_no_greenlet_is_left_for_is_given_back():
    handed = Handed()
    handed.offer(1)
    wait_until(lambda: len(handed.crew.working) == 1)
    handed.offer(2)
    handed.crew.dismiss()
    handed.crew.kill()
    wait_until(lambda: len(handed.crew) == 0)
    assert (handed.handled, handed.returned, handed.given_back) == ([], [1], [2])
    assert handed.is_killing


def test_dismissed_crew_ends_when_its_handlers_have_ended_and_is_not_filled_again():
    handed = Handed(3)
    handed.offer(1)
    wait_until(lambda: len(handed.crew.working) == 1)
    handed.crew.dismiss()
    wait_until(lambda: len(handed.crew) == 1)
    handed.gate.set()
    wait_until(lambda: len(handed.crew) == 0)
    assert handed.handled == [1]


def test_looks_at_jobs_are_as_many_as_their_connection_has():
    handed = Handed()
    handed.source.looks = 2
    handed.gate.set()
    handed.offer(1, 2, 3)
    wait_until(lambda: len(handed.handled) == 3)
    assert (handed.looks, handed.source.looks) == ([True, True, False], 0)
    handed.end()


def test_interruption_that_leaves_a_handler_is_told_and_its_greenlet_goes_on():
    handed = Handed()
    hit = KeyboardInterrupt()
    freed: list[int] = []
    handed.crew.on_free = lambda: freed.append(len(handed.crew.working))
    me = handed.greenlets[0]
    handed.gate.set()
    handed.offer(hit, 1)
    wait_until(lambda: handed.handled == [1])
    assert handed.interruptions == [hit]
    assert freed == [0, 0]
    assert handed.greenlets == [me]
    handed.end()


def test_greenlet_that_a_signal_has_left_in_line_though_it_works_is_passed_over():
    handed = Handed()
    handed.crew._idle.append(Outcome())
    handed.gate.set()
    handed.offer(1)
    wait_until(lambda: handed.handled == [1])
    handed.end()


@pytest.mark.parametrize("function", [Crew._work, Crew._wait])
def test_greenlet_that_a_signal_strikes_at_any_line_loses_no_job_and_is_replaced(monkeypatch, function):
    """The job is handled, or given back, or another greenlet takes it."""
    work = Crew._work
    for number in range(1, 50):
        strike = Strike(function, number)

        def struck(crew: Crew, strike: Strike = strike) -> None:
            sys.settrace(strike.trace)
            with suppress(Strike):
                work(crew)

        with monkeypatch.context() as patch:
            patch.setattr(Crew, "_work", struck)
            handed = Handed()
        handed.gate.set()
        handed.offer(1, 2)  # one to a greenlet that waits, and one that it finds when it has done with that
        wait_until(lambda: sorted(handed.ended) == [1, 2])  # noqa: B023
        wait_until(lambda: handed.crew.running == 0)  # noqa: B023
        handed.end()
        assert handed.late == []
        if strike.lines_left > 0:
            break
    assert 5 < number < 50


def test_offer_that_a_signal_strikes_at_any_line_leaves_nobody_at_work_for_ever():
    for number in range(1, 30):
        handed, strike = Handed(), Strike(Crew.offer, number)
        handed.gate.set()
        sys.settrace(strike.trace)
        try:
            handed.offer(1)
        except Strike:
            pass
        finally:
            sys.settrace(None)
        wait_until(lambda: handed.crew.running == 0)  # noqa: B023
        handed.offer(2)
        wait_until(lambda: 2 in handed.handled)  # noqa: B023
        assert handed.crew.running == 0
        handed.end()
        if strike.lines_left > 0:
            break
    assert 5 < number < 29
