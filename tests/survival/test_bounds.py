"""What stays small however much passes: memory, reservations, descriptors, greenlets, queues."""

from __future__ import annotations

from collections import Counter
from typing import Any

import gevent
import pytest

import gstalk
from gstalk.testing import FaultProxy
from tests.faults.hub import silent_hub
from tests.faults.programs.running import run
from tests.servers import wait_until
from tests.survival.work import left_open

pytestmark = [pytest.mark.real, pytest.mark.slow]

BOUNDS = "tests.survival.programs.bounds"
CONNECTIONS = 50  # of the Producer, and as many of the Consumer


@pytest.mark.soak
@pytest.mark.limit(240)
@pytest.mark.timing
def test_jobs_by_the_million_leave_memory_flat_and_none_is_reserved_that_does_not_run(own_server, many, figures):
    jobs = many(50_000, 1_000_000)
    (told,) = run(BOUNDS, "flood", own_server.uri, jobs, seconds=230)
    figures |= told
    assert told["jobs"] == jobs
    assert told["MB grown"] < 20
    assert told["most reserved"] <= 100
    assert told["reserved but not running"] == 0
    assert told["held samples"] >= 5


def test_producers_faster_than_the_server_are_pushed_back(own_server, figures):
    """Each greenlet has one put under way, and nothing is taken ahead; a put's time is bounded all the same."""
    (told,) = run(BOUNDS, "pressed", own_server.uri, 50, own_server.pid)
    figures |= told
    assert told["puts under way"] == 50
    assert told["taken ahead by put_many"] < 1000
    assert told["MB grown"] < 15
    assert 0.9 < told["longest"] < 1.6


@pytest.mark.soak
@pytest.mark.limit(240)
def test_reconnects_leave_no_descriptor_no_greenlet_and_no_queue_entry(own_server, rng, many, figures):
    """All connections at once are closed, reset, or cut in the middle of a reply; some find a closed door first."""
    rounds = many(6, 100)
    got: Counter[int] = Counter()
    put: set[int] = set()

    def handler(job: gstalk.Job) -> None:
        got[job.id] += 1
        job.delete()

    options: dict[str, Any] = {
        "multiply": CONNECTIONS,
        "reconnect_timeout": 0.05,
        "info_func": lambda message: None,
        "error_func": lambda error, message: None,
    }
    with silent_hub(), FaultProxy(own_server.uri) as proxy, gstalk.Producer(proxy.uri, **options) as producer:
        consumer = gstalk.Consumer(proxy.uri, "t", **options)
        receiving = gevent.spawn(consumer.receive, handler)
        queue, run = producer._queue, None

        def all_there() -> bool:
            return len(queue.pool.connections) == CONNECTIONS and len(consumer._run.pool.connections) == CONNECTIONS  # type: ignore[union-attr]

        def quiet() -> tuple[int, int, int]:
            asking: Any = consumer._run._asker._asking  # type: ignore[union-attr]
            return (
                sum(source.asks for source in asking.sources),
                sum(source.waiting for source in asking.sources),
                asking.running,
            )

        wait_until(all_there)
        run = consumer._run
        assert run is not None
        first, before = proxy.connections, None
        for _ in range(rounds):
            put.add(producer.put("t", b"x", timeout=20))
            wait_until(lambda: put <= set(got) and quiet() == (1, 1, 0))  # one that waits on the server
            wait_until(lambda: proxy.open_connections == 2 * CONNECTIONS)
            before = before or left_open()
            assert left_open() <= before
            assert not any(member.pipe.requests for member in queue._members.values())
            assert queue._queue.qsize() == len(queue._members) == CONNECTIONS
            assert len(run._asker._sources) == len(run._asker._asking.sources) == CONNECTIONS
            assert (len(run._crew), len(run._crew._jobs)) == (10, 0)
            old = {*queue.pool.connections, *run.pool.connections}
            if rng.random() < 0.3:
                proxy.refuse()
                gevent.spawn_later(rng.random() / 10, proxy.accept)
            if rng.random() < 0.5:
                proxy.reset()
            else:
                proxy.close_all()
            wait_until(lambda: all_there() and not old & {*queue.pool.connections, *run.pool.connections})  # noqa: B023
        reconnects = proxy.connections - first
        consumer.stop()
        receiving.get(timeout=20)
    figures |= {"reconnects": reconnects, "jobs": len(put)}
    assert reconnects >= rounds * 2 * CONNECTIONS
    assert set(got.values()) <= {1, 2}  # twice: cut between its reservation and its delete
