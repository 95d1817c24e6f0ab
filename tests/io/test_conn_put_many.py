"""Conn.put_many: ids in order, bodies that fail, the iterable that it takes them from, interruptions."""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import gevent
import pytest

import gstalk
from tests.io.calling import call
from tests.servers import CUT, wait_until

pytestmark = pytest.mark.real


def test_put_many_returns_ids_in_order(conn, tube):
    bodies = [b"%d" % number for number in range(2500)]
    ids = conn.put_many(tube, bodies, priority=3)
    assert ids == sorted(ids)
    assert [conn.peek(ids[n]).body for n in (0, 1, 1499, 2499)] == [b"0", b"1", b"1499", b"2499"]
    assert conn.stats_job(ids[0]).pri == 3


def test_put_many_of_nothing_returns_nothing(conn, tube):
    assert conn.put_many(tube, []) == []


@pytest.mark.parametrize("bodies", ["text", b"bytes", bytearray(b"b"), memoryview(b"b"), 5])
def test_put_many_one_body_instead_of_an_iterable_is_refused(conn, tube, bodies):
    with pytest.raises(TypeError):
        conn.put_many(tube, bodies)


def test_put_many_wrong_tube_or_priority_takes_no_body(conn, tube):
    bodies = iter([b"x"])
    for keywords in ({"tube": "a b"}, {"tube": tube, "priority": -1}):
        with pytest.raises(gstalk.InvalidArgumentError):
            conn.put_many(bodies=bodies, **keywords)
    assert list(bodies) == [b"x"]


def test_put_many_bad_and_refused_bodies_do_not_stop_the_others(conn, tube):
    too_big = b"x" * (conn.stats().max_job_size + 1)
    with pytest.raises(gstalk.PutManyError) as caught:
        conn.put_many(tube, [b"a", "text", b"b", too_big, None, b"c"])
    results = caught.value.results
    assert [type(result) for result in results] == [int, TypeError, int, gstalk.JobTooBigError, TypeError, int]
    assert [conn.peek(results[n]).body for n in (0, 2, 5)] == [b"a", b"b", b"c"]
    assert str(caught.value) == f"put_many to {tube!r} at {conn.uri}: 3 of 6 failed"


def test_put_many_buried_is_in_results_with_its_id(play, connect):
    conn = connect(play({"put": [b"INSERTED 1\r\n", b"BURIED 2\r\n", b"INSERTED 3\r\n"]}).uri)
    with pytest.raises(gstalk.PutManyError) as caught:
        conn.put_many("default", [b"", b"", b""])
    first, second, third = list[Any](caught.value.results)
    assert (first, second.job_id, third) == (1, 2, 3)


def test_put_many_holds_no_more_of_the_iterable_than_is_in_flight(conn, tube):
    class Body(bytearray):
        pass

    alive: list[weakref.ref[Body]] = []
    most = 0

    def bodies():
        nonlocal most
        for number in range(5000):
            body = Body(b"%d" % number)
            alive.append(weakref.ref(body))
            if number % 500 == 0:
                most = max(most, sum(each() is not None for each in alive))
            yield body

    conn.put_many(tube, bodies())
    assert most <= 1100


def test_put_many_iterable_that_waits_lets_others_put(conn, tube):
    gate = gevent.event.Event()

    def bodies():
        yield b"first"
        gate.wait()
        yield b"second"

    putter = call(conn.put_many, tube, bodies())
    conn.put(tube, b"other's")
    wait_until(lambda: conn.stats_tube(tube).current_jobs_ready == 2)
    gate.set()
    assert len(putter.get()) == 2


def test_put_many_iterable_uses_the_same_conn(conn, tube):
    ids = conn.put_many(tube, (b"%d" % conn.put(tube + "-inner", b"") for _ in range(10)))
    assert len(ids) == 10
    assert conn.stats_tube(tube).current_jobs_ready == 10


def test_put_many_iterable_raises_it_passes_unchanged_and_taken_bodies_are_put(conn, tube):
    own = RuntimeError("own")

    def bodies():
        yield b"a"
        yield b"b"
        raise own

    with pytest.raises(RuntimeError) as caught:
        conn.put_many(tube, bodies())
    assert caught.value is own
    assert conn.stats_tube(tube).current_jobs_ready == 2


def test_put_many_iterable_raises_in_a_with_block_that_closes_the_conn_taken_bodies_are_put(server, conn, tube):
    def bodies():
        yield from (b"%d" % number for number in range(25))
        raise RuntimeError

    with pytest.raises(RuntimeError), gstalk.dial(server.uri) as closed:
        closed.put_many(tube, bodies())
    assert conn.stats_tube(tube).current_jobs_ready == 25


def test_put_many_interrupted_while_the_bodies_before_an_exception_are_put_ends_at_once(play, connect):
    conn = connect(play({"put": b""}).uri)

    def bodies():
        yield b"a"
        raise RuntimeError

    with pytest.raises(gevent.Timeout) as caught, gevent.Timeout(0.01) as own:
        conn.put_many("default", bodies())
    assert caught.value is own


@pytest.mark.parametrize("kind", [gstalk.ConnectionLostError, gstalk.InvalidArgumentError, TypeError])
def test_put_many_iterable_raises_one_of_our_kinds_it_still_passes(conn, tube, kind):
    own = kind("own")

    def bodies():
        yield b"a"
        raise own

    with pytest.raises(kind) as caught:
        conn.put_many(tube, bodies())
    assert caught.value is own


@pytest.mark.parametrize("room", [True, False], ids=["waiting for a reply", "waiting for room"])
@pytest.mark.parametrize(
    "kind", [gstalk.ConnectionLostError, gstalk.ConnectionClosedError, gstalk.InternalError, OSError]
)
def test_put_many_own_error_that_strikes_as_the_connection_breaks_passes_unchanged(play, connect, kind, room):
    """Whose an exception is is told by who it is, never by its class."""
    conn = connect(play({"put": b""}).uri)
    error = kind("the caller's own")
    raised = []

    def run():
        try:
            conn.put_many("default", [b"x"] * (3 if room else 2000))
        except BaseException as caught:
            raised.append(caught)

    greenlet = call(run)
    wait_until(lambda: conn._connection.pipe.clear is room and len(conn._connection.pipe.requests) > 2)
    greenlet.kill(error, block=False)
    conn._connection.pipe.fail(gstalk.ConnectionLostError, "cut by the test")
    greenlet.get()
    assert raised == [error]


def test_put_many_lost_connection_stops_the_taking(play, connect):
    conn = connect(play({"put": [b"INSERTED 1\r\n", b"INSERTED 2\r\n", CUT]}).uri)
    taken = 0

    def bodies():
        nonlocal taken
        for _ in itertools.count():
            taken += 1
            gevent.sleep(0)
            yield b"x"

    with pytest.raises(gstalk.PutManyError) as caught:
        conn.put_many("default", bodies())
    results: list[Any] = list(caught.value.results)
    assert results[:2] == [1, 2]
    assert results[2].sent == "maybe"
    assert all(isinstance(result, gstalk.ConnectionLostError) for result in results[2:])
    assert len(results) == taken


def test_put_many_closed_conn_takes_nothing(conn, tube):
    conn.close()
    bodies = iter([b"x"])
    with pytest.raises(gstalk.ConnectionClosedError):
        conn.put_many(tube, bodies)
    assert list(bodies) == [b"x"]


def test_put_many_interrupted_bodies_taken_are_put_and_the_conn_is_whole(conn, tube):
    def bodies():
        yield b"a"
        yield b"b"
        gevent.sleep(30)

    with pytest.raises(gevent.Timeout):
        with gevent.Timeout(0.05):
            conn.put_many(tube, bodies())
    wait_until(lambda: conn.stats_tube(tube).current_jobs_ready == 2)
    assert conn.is_connected
