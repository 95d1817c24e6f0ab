"""The greenlets of a Consumer: how many run, and that those which die are replaced."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.local import local

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
