"""Connections kept alive, by a Producer or a Consumer: their dials, the pauses between them, when they count."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from types import CodeType
from typing import Any

import gevent
import pytest

import gstalk
from gstalk.connection.connection import Connection
from gstalk.pool import keeper
from gstalk.pool.keeper import Pool, Server
from gstalk.testing import Beanstalkd
from tests.io.striking import Strike
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


def test_connection_whose_dial_ends_behind_its_thread_is_closed_and_no_hub_is_asked_for(server, monkeypatch):
    """gevent would make another hub for the thread that is over, and nobody would end that."""
    made: list[Connection] = []

    def dial_and_be_abandoned(*args: Any) -> Any:
        made.append(connection := Connection(*args))
        producer._queue.pool.is_stopped = True
        monkeypatch.setattr("gstalk.connection.channel.get_hub", pytest.fail)
        return connection

    monkeypatch.setattr("gstalk.pool.keeper.Connection", dial_and_be_abandoned)
    producer = gstalk.Producer(server.uri)
    wait_until(lambda: made and made[0].pipe.failure is not None)
    assert producer._queue.pool.keepers == []
    monkeypatch.undo()
    producer.stop(0)


def settled(pool: Pool, other: gstalk.Conn) -> None:
    """One keeper has one connection, and counts no other."""
    wait_until(lambda: pool.is_connected and len(pool.connections) == len(pool.keepers) == 1)
    assert [len(server.connections) for server in pool.servers] == [1]
    wait_until(lambda: other.stats().current_connections == 2)


@pytest.mark.filterwarnings("ignore:unclosed connection:ResourceWarning")
def test_keeper_that_a_signal_strikes_as_it_hands_over_leaves_no_connection_behind(own_server, connect, monkeypatch):
    monkeypatch.setattr(keeper, "REPLACEMENT", 0.001)
    monkeypatch.setattr(gevent.get_hub(), "print_exception", lambda *_: None)
    other, keep = connect(own_server.uri), Pool._keep
    for number in range(1, 50):
        strike = Strike(Pool._serve, number)

        def struck(pool: Pool, server: Server, strike: Strike = strike) -> None:
            if strike.lines_left == strike.number:
                sys.settrace(strike.trace)
            try:
                keep(pool, server)
            except Strike:
                raise strike.with_traceback(None) from None  # it would keep the connection

        with monkeypatch.context() as patch:
            patch.setattr(Pool, "_keep", struck)
            with gstalk.Producer(own_server.uri, reconnect_timeout=0.01, **QUIET) as producer:
                settled(producer._queue.pool, other)
        if strike.lines_left > 0:
            break
    assert 10 < number < 50


def inner(function: Callable[..., object], name: str) -> CodeType:
    """The code of a function within another one."""
    return next(each for each in function.__code__.co_consts if isinstance(each, CodeType) and each.co_name == name)


@pytest.mark.parametrize("code", [inner(Pool._new_keeper, "ended"), Pool._new_keeper.__code__], ids=["old", "new"])
def test_keeper_whose_replacement_a_signal_strikes_has_one_all_the_same(own_server, connect, monkeypatch, code):
    monkeypatch.setattr(keeper, "REPLACEMENT", 0.001)
    hub, other = gevent.get_hub(), connect(own_server.uri)
    monkeypatch.setattr(hub, "print_exception", lambda *_: None)
    with gstalk.Producer(own_server.uri, reconnect_timeout=0.01, **QUIET) as producer:
        pool = producer._queue.pool
        for number in range(1, 50):
            strike = Strike(code, number)
            hub.loop.run_callback(sys.settrace, strike.trace)
            gevent.killall(pool.keepers)
            gevent.sleep(0.01)
            hub.loop.run_callback(sys.settrace, None)
            if strike.lines_left > 0:
                break
            settled(pool, other)
    assert 3 < number < 50


def test_end_of_a_connection_that_a_signal_strikes_is_noted_once(own_server, connect):
    failed = inner(Pool._serve, "failed")
    other = connect(own_server.uri)
    with gstalk.Producer(own_server.uri, reconnect_timeout=0.01, **QUIET) as producer:
        pool = producer._queue.pool
        for number in range(1, 50):
            settled(pool, other)
            strike = Strike(failed, number)
            sys.settrace(strike.trace)
            with suppress(Strike):
                pool.connections[0].cut()
            sys.settrace(None)
            if strike.lines_left > 0:
                break
        settled(pool, other)
    assert 5 < number < 50


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

    def keep(pool: Pool, server: Server) -> None:
        begun.append(server.uri)
        gevent.sleep(60)

    monkeypatch.setattr(Pool, "_keep", keep)
    with gstalk.Producer(["beanstalk://a", "beanstalk://b", "beanstalk://b"], multiply=2):
        gevent.sleep(0)
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
