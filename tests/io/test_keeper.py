"""Connections kept alive, by a Producer or a Consumer: their dials, the pauses between them, when they count."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

import gstalk
from gstalk.connection.connection import Connection
from gstalk.pool.keeper import Pool
from gstalk.testing import Beanstalkd
from tests.servers import wait_until

pytestmark = pytest.mark.real

QUIET: dict[str, Any] = {"info_func": lambda message: None, "error_func": lambda error, message: None}


def test_connection_whose_dial_ends_while_the_producer_stops_is_closed(server, monkeypatch):
    made = []

    def dial_and_be_stopped(*args: Any) -> Any:
        made.append(connection := Connection(*args))
        producer._queue.close()
        return connection

    monkeypatch.setattr("gstalk.pool.keeper.Connection", dial_and_be_stopped)
    producer = gstalk.Producer(server.uri)
    wait_until(lambda: made)
    assert not made[0].is_connected


def test_pauses_between_dials_begin_anew_after_a_connection(monkeypatch):
    """A server that was down for long, came back, and was cut: the first pause is short again."""
    pauses: list[float] = []
    monkeypatch.setattr("gstalk.pool.keeper.chance", lambda: 0.999)

    def pause(pool: Pool, seconds: float) -> None:
        pauses.append(seconds)
        gevent.sleep(0.01)

    monkeypatch.setattr(Pool, "_pause", pause)
    server = Beanstalkd()
    server.start()
    server.kill()
    with server, gstalk.Producer(server.uri, reconnect_timeout=60, **QUIET) as producer:
        server.kill()
        wait_until(lambda: len(pauses) > 6 and max(pauses) > 10)
        server.start()
        assert producer.wait_connected(10)
        before = len(pauses)
        server.kill()
        wait_until(lambda: len(pauses) > before + 1)
        assert max(pauses[before : before + 2]) < 0.5
        assert pauses[before - 1] > 10


def test_servers_are_dialed_in_turn(monkeypatch):
    """And so their connections stand in a Producer's queue: a burst that takes a few of them takes several servers."""
    begun: list[str] = []
    monkeypatch.setattr(Pool, "_begin", lambda pool, server: begun.append(server.uri))
    with gstalk.Producer(["beanstalk://a", "beanstalk://b", "beanstalk://b"], multiply=2):
        assert begun == [f"beanstalk://{name}:11300" for name in "ababbb"]


def test_want_of_many_touches_the_timers_once():
    class Timer:
        changes = 0

        def __setattr__(self, name: str, value: object) -> None:
            type(self).changes += 1

    with gstalk.Producer("127.0.0.1:1", **QUIET) as producer:
        pool = producer._queue.pool
        timer = Timer()
        pool._timers.add(timer)
        for who, wants in ((1, True), (2, True), (2, True), (1, False), (3, True), (3, False), (3, False), (2, False)):
            pool.want(who, wants)
        pool._timers.discard(timer)
        assert Timer.changes == 2


@pytest.mark.slow
def test_consumer_stalled_is_not_connected_though_a_connection_is_left(own_server):
    consumer = gstalk.Consumer(own_server.uri, "t", multiply=2, reserve_timeout=1, conn_timeout=0.5, **QUIET)
    receiving = gevent.spawn(consumer.receive, lambda job: None)
    assert consumer.wait_connected(5)
    run: Any = consumer._run
    wait_until(lambda: len(run.pool.connections) == 2)
    own_server.pause()
    try:
        wait_until(lambda: len(run.pool.connections) == 1)
        assert not consumer.is_connected
        assert not consumer.wait_connected(0.1)
    finally:
        own_server.resume()
    assert consumer.wait_connected(5)
    consumer.stop(0)
    receiving.join(10)
