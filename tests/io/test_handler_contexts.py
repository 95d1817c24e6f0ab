"""The context variables that a handler sees: those of whoever called `receive`, afresh for each job."""

from __future__ import annotations

import contextvars
import sys
from collections.abc import Callable
from typing import Any

import gevent
import pytest

import gstalk
from tests.io.working import NEVER, end_by_sleep, raising, refuse_automatic_delete, tag
from tests.servers import wait_until

pytestmark = pytest.mark.real


def end_well(job: gstalk.Job) -> None:
    job.delete()


ENDS: dict[str, Callable[[gstalk.Job], object]] = {
    "returns": end_well,
    "raises": raising(ValueError()),
    "exits": lambda job: sys.exit(1),
    "dies": raising(gevent.GreenletExit()),
    "is too slow": end_by_sleep,
    "retries": raising(gstalk.Retry()),
}


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("greenlets", [1, 3])
def test_each_job_has_a_fresh_copy_of_the_context_that_receive_was_called_in(server, conn, tube, how, greenlets):
    seen: list[str] = []
    told: list[tuple[str, str]] = []

    def handler(job: gstalk.Job) -> None:
        seen.append(tag.get())
        tag.set(f"job {job.id}")
        gevent.sleep(0.001)
        assert tag.get() == f"job {job.id}"
        if job.body == b"last":
            job.delete()
            consumer.stop()
        else:
            ENDS[how](job)

    consumer = gstalk.Consumer(
        server.uri,
        tube,
        num_greenlets=greenlets,
        time_limit=0.1,
        error_func=lambda error, message: told.append((message.partition(" of ")[0], tag.get())),
        retry=gstalk.RetryPolicy(first_delay=100),
    )

    def receive() -> None:
        tag.set("receive")
        consumer.receive(handler)
        assert tag.get() == "receive"

    conn.put_many(tube, [b"x"] * 6)
    conn.put(tube, b"last", priority=4000)
    gevent.spawn(contextvars.copy_context().run, receive).get(timeout=20)
    assert seen == ["receive"] * 7
    assert [context for _, context in told] == [job for job, _ in told]  # a hook sees what the job has set
    assert tag.get() == "none"


def test_context_of_a_job_is_not_kept_by_its_idle_greenlet(work, conn, tube):
    """What an application binds there (a request, a session) is gone with the job."""
    seen: list[Any] = []
    worker = work(lambda job: (tag.set("bound"), job.delete())[1], num_greenlets=1)
    conn.put(tube, b"")
    wait_until(lambda: conn.stats_tube(tube).cmd_delete == 1)
    (greenlet,) = worker.consumer._run._crew._greenlets
    wait_until(lambda: worker.consumer._run._crew._idle)
    seen.append(greenlet.gr_context.get(tag))
    assert seen == [None]


def test_automatic_delete_refused_is_told_in_the_jobs_context(play, work):
    told: list[str] = []
    refuse_automatic_delete(play, work, retry=NEVER, error_func=lambda error, message: told.append(tag.get()))
    wait_until(lambda: told)
    assert told == ["job 7"]
