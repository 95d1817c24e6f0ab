"""Conn and Job: what `api.md` says of each method, shown against the real beanstalkd, or a played one where it must."""

from __future__ import annotations

import contextlib
import datetime
import functools
import gc
import itertools
import os
import random
import threading
import time
import warnings
import weakref
from typing import Any

import gevent
import pytest
from gevent import hub

import gstalk
from gstalk.protocol import checks
from tests.faults.hub import silent_hub
from tests.servers import CUT, ok, wait_until

pytestmark = pytest.mark.real


def held(conn, tube, body=b"body", **params):
    """Put a job and reserve it."""
    job_id = conn.put(tube, body, **params)
    job = conn.reserve_with_timeout(5)
    assert job is not None
    assert job.id == job_id
    return job


def call(method, *args, **keywords):
    """Start a call in a greenlet, and let it get as far as it can without a reply."""
    greenlet = gevent.spawn(method, *args, **keywords)
    gevent.sleep(0)
    return greenlet


def interrupt(method, error):
    """Call something, and interrupt its wait; returns what it raised."""
    caught = []

    def run():
        try:
            method()
        except BaseException as raised:
            caught.append(raised)

    call(run).kill(error)
    return caught[0] if caught else None


# -- dial --------------------------------------------------------------------------------------------------------


def test_dial_first_command_is_stats(play, connect):
    played = play()
    connect(played.uri)
    assert played.lines[0] == b"stats"


def test_dial_options_override_config(server, connect):
    conn = connect(server.uri, config=gstalk.Config(conn_timeout=3), conn_timeout=2)
    assert conn._link.config.conn_timeout == 2


def test_dial_unknown_option_raises_type_error(server):
    with pytest.raises(TypeError):
        gstalk.dial(server.uri, con_timeout=2)  # type: ignore[call-arg]  # misspelt on purpose


def test_dial_context_manager_closes(server):
    with gstalk.dial(server.uri) as conn:
        assert conn.is_connected
    assert not conn.is_connected


def test_dial_uri_is_canonical(server, connect):
    assert connect(f"127.0.0.1:{server.port}").uri == server.uri


def test_dial_refused_raises_connect_error_sent_no(own_server):
    own_server.kill()
    with pytest.raises(gstalk.ConnectError) as caught:
        gstalk.dial(own_server.uri)
    assert caught.value.sent == "no"
    assert own_server.uri in str(caught.value)
    assert isinstance(caught.value, ConnectionError)


def test_dial_unknown_name_raises_connect_error():
    with pytest.raises(gstalk.ConnectError) as caught:
        gstalk.dial("beanstalk://no-such-host.invalid", conn_timeout=5)
    assert "no-such-host.invalid" in str(caught.value)


@pytest.mark.slow
def test_dial_server_that_accepts_but_is_silent_raises_connect_error_in_time(own_server):
    own_server.pause()
    try:
        began = time.monotonic()
        with pytest.raises(gstalk.ConnectError, match=r"no answer within 0\.3 s"):
            gstalk.dial(own_server.uri, conn_timeout=0.3)
        assert 0.25 < time.monotonic() - began < 5
    finally:
        own_server.resume()


def test_dial_not_a_beanstalkd_raises_connect_error(play):
    with pytest.raises(gstalk.ConnectError):
        gstalk.dial(play({"stats": b"HTTP/1.1 400 Bad Request\r\n\r\n"}).uri)


def test_dial_server_closes_at_once_raises_connect_error(play):
    with pytest.raises(gstalk.ConnectError):
        gstalk.dial(play({"stats": CUT}).uri)


def test_dial_malformed_uri_raises_invalid_argument():
    with pytest.raises(gstalk.InvalidArgumentError):
        gstalk.dial("redis://localhost")


# -- put ---------------------------------------------------------------------------------------------------------


def test_put_returns_id_and_stores_bytes(conn, tube):
    body = bytes(range(256)) + b"\r\ndelete 1\r\n"
    job_id = conn.put(tube, body)
    assert type(job_id) is int
    assert conn.peek(job_id).body == body


@pytest.mark.parametrize("body", [b"x", bytearray(b"x"), memoryview(b"x")], ids=lambda body: type(body).__name__)
def test_put_body_of_each_bytes_type_is_taken(conn, tube, body):
    assert conn.peek(conn.put(tube, body)).body == b"x"


def test_put_memoryview_of_wider_items_is_taken_as_its_bytes(conn, tube):
    view = memoryview(b"12345678").cast("I")
    assert conn.peek(conn.put(tube, view)).body == b"12345678"


def test_put_bytearray_changed_after_append_sends_what_it_was(conn, tube):
    body = bytearray(b"before")
    putter = call(conn.put, tube, body)
    body[:] = b"after!"
    assert conn.peek(putter.get()).body == b"before"


def test_put_empty_body_is_stored(conn, tube):
    assert conn.peek(conn.put(tube, b"")).body == b""


def test_put_defaults_are_1024_0_60(conn, tube):
    stats = conn.stats_job(conn.put(tube, b""))
    assert (stats.pri, stats.delay, stats.ttr, stats.state) == (1024, 0, 60, "ready")


def test_put_keywords_override_params(conn, tube):
    params = gstalk.PutParams(priority=1, delay=100, ttr=30)
    stats = conn.stats_job(conn.put(tube, b"", params, priority=2, ttr=40))
    assert (stats.pri, stats.delay, stats.ttr) == (2, 100, 40)


def test_put_params_are_used_again(conn, tube):
    params = gstalk.PutParams(priority=1, delay=100, ttr=30)
    for _ in range(2):
        stats = conn.stats_job(conn.put(tube, b"", params))
        assert (stats.pri, stats.delay, stats.ttr) == (1, 100, 30)


def test_put_zero_keywords_override_params(conn, tube):
    params = gstalk.PutParams(priority=5, delay=100)
    stats = conn.stats_job(conn.put(tube, b"", params, priority=0, delay=0))
    assert (stats.pri, stats.delay) == (0, 0)


@pytest.mark.parametrize(
    ("given", "whole"), [(0.2, 1), (1.5, 2), (datetime.timedelta(seconds=2, microseconds=1), 3), (4.0, 4)]
)
def test_put_fractions_are_rounded_up(conn, tube, given, whole):
    stats = conn.stats_job(conn.put(tube, b"", delay=given, ttr=given))
    assert (stats.delay, stats.ttr) == (whole, whole)


@pytest.mark.parametrize("priority", [0, 2**32 - 1])
def test_put_priority_at_its_limits_is_taken(conn, tube, priority):
    assert conn.stats_job(conn.put(tube, b"", priority=priority)).pri == priority


PUTS: list[tuple[type[Exception], dict[str, Any]]] = [
    (TypeError, {"body": "text"}),
    (TypeError, {"body": None}),
    (TypeError, {"body": 5}),
    (TypeError, {"tube": b"bytes"}),
    (TypeError, {"tube": None}),
    (TypeError, {"priority": True}),
    (TypeError, {"priority": 1.0}),
    (TypeError, {"priority": "1"}),
    (TypeError, {"delay": True}),
    (TypeError, {"delay": "1"}),
    (TypeError, {"ttr": "1"}),
    (TypeError, {"params": 5}),
    (gstalk.InvalidArgumentError, {"tube": ""}),
    (gstalk.InvalidArgumentError, {"tube": "-tube"}),
    (gstalk.InvalidArgumentError, {"tube": "a b"}),
    (gstalk.InvalidArgumentError, {"tube": "a\r\nquit"}),
    (gstalk.InvalidArgumentError, {"tube": "a\n"}),
    (gstalk.InvalidArgumentError, {"tube": "t" * 201}),
    (gstalk.InvalidArgumentError, {"tube": "tübe"}),
    (gstalk.InvalidArgumentError, {"priority": -1}),
    (gstalk.InvalidArgumentError, {"priority": 2**32}),
    (gstalk.InvalidArgumentError, {"delay": -0.1}),
    (gstalk.InvalidArgumentError, {"delay": float("nan")}),
    (gstalk.InvalidArgumentError, {"delay": float("inf")}),
    (gstalk.InvalidArgumentError, {"delay": 2**32}),
    (gstalk.InvalidArgumentError, {"delay": datetime.timedelta(seconds=-1)}),
    (gstalk.InvalidArgumentError, {"ttr": 0}),
    (gstalk.InvalidArgumentError, {"ttr": 2**32}),
]


def test_put_wrong_argument_is_refused_and_sends_nothing(play, connect):
    played = play()
    conn = connect(played.uri)
    before = list(played.lines)
    for kind, wrong in PUTS:
        with pytest.raises(kind) as caught:
            conn.put(**{"tube": "t", "body": b"", **wrong})
        assert type(caught.value) is kind, wrong
    conn.list_tube_used()
    assert played.lines == [*before, b"list-tube-used"]


def test_put_bytes_larger_than_beanstalkd_can_hold_are_refused(play, connect, monkeypatch):
    monkeypatch.setattr(checks, "MAX_BODY", 10)
    played = play()
    conn = connect(played.uri)
    for body in (bytes(11), bytearray(11), memoryview(bytes(11))):
        with pytest.raises(gstalk.InvalidArgumentError, match="11 bytes"):
            conn.put("default", body)
    assert played.count("put") == 0


def test_number_of_thousands_of_digits_is_refused(play, connect):
    conn = connect(play().uri)
    huge = 10**5000
    for method in (
        lambda: conn.put("default", b"", priority=huge),
        lambda: conn.put("default", b"", ttr=huge),
        lambda: conn.put("default", b"", delay=-huge),
        lambda: conn.reserve_with_timeout(huge),
        lambda: conn.reserve_with_timeout(-huge),
        lambda: conn.peek(huge),
        lambda: conn.kick("default", huge),
        lambda: gstalk.Config(conn_timeout=huge),
    ):
        with pytest.raises(gstalk.InvalidArgumentError, match="a number of 1661[01] bits"):
            method()


def test_put_str_body_message_says_how_to_encode(conn, tube):
    with pytest.raises(TypeError) as caught:
        conn.put(tube, "text")
    assert str(caught.value) == 'body must be bytes, got str; encode it first: body.encode("utf-8")'


def test_put_tube_of_200_bytes_is_taken(conn):
    tube = "t" * 200
    conn.delete(conn.put(tube, b""))


def test_put_largest_body_is_taken_and_a_larger_one_raises_too_big(conn, tube):
    most = conn.stats().max_job_size
    conn.put(tube, b"x" * most)
    with pytest.raises(gstalk.JobTooBigError) as caught:
        conn.put(tube, b"x" * (most + 1))
    assert conn.uri in str(caught.value)
    assert conn.peek(conn.put(tube, b"in step")).body == b"in step"


def test_put_draining_server_raises_draining_and_the_rest_works(own_server, connect):
    conn = connect(own_server.uri)
    job_id = conn.put("t", b"")
    own_server.drain()
    wait_until(lambda: conn.stats().draining)
    with pytest.raises(gstalk.DrainingError):
        conn.put("t", b"")
    conn.delete(job_id)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [(b"OUT_OF_MEMORY\r\n", gstalk.OutOfMemoryError), (b"INTERNAL_ERROR\r\n", gstalk.InternalError)],
)
def test_put_server_in_trouble_raises_and_stays_in_step(play, connect, reply, kind):
    conn = connect(play({"put": [reply, b"INSERTED 7\r\n"]}).uri)
    with pytest.raises(kind):
        conn.put("default", b"")
    assert conn.put("default", b"") == 7


def test_put_buried_raises_with_job_id(play, connect):
    conn = connect(play({"put": b"BURIED 12\r\n"}).uri)
    with pytest.raises(gstalk.BuriedError) as caught:
        conn.put("default", b"")
    assert caught.value.job_id == 12
    assert conn.is_connected


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (b"BAD_FORMAT\r\n", gstalk.BadFormatError),
        (b"UNKNOWN_COMMAND\r\n", gstalk.UnknownCommandError),
        (b"EXPECTED_CRLF\r\n", gstalk.ExpectedCrlfError),
        (b"DELETED\r\n", gstalk.ProtocolError),
        (b"INSERTED\r\n", gstalk.ProtocolError),
        (b"INSERTED +1\r\n", gstalk.ProtocolError),
        (b"INSERTED 0\r\n", gstalk.ProtocolError),
        (b"INSERTED 1 2\r\n", gstalk.ProtocolError),
        (b"\xff\x00garbage\r\n", gstalk.ProtocolError),
        (b"\r\n", gstalk.ProtocolError),
        (b"x" * 5000, gstalk.ProtocolError),
    ],
)
def test_put_reply_that_breaks_the_protocol_closes_the_connection(play, connect, reply, kind):
    conn = connect(play({"put": reply}).uri)
    with pytest.raises(kind) as caught:
        conn.put("default", b"")
    assert conn.uri in str(caught.value)
    assert not conn.is_connected
    with pytest.raises(gstalk.ConnectionLostError):
        conn.put("default", b"")


def test_put_use_is_sent_in_the_same_write_when_the_tube_changes(play, connect):
    played = play()
    conn = connect(played.uri)
    played.reads.clear()
    for tube in ("default", "a", "a", "b"):
        conn.put(tube, b"x")
    put = b"put 1024 0 60 1\r\nx\r\n"
    assert played.reads == [put, b"use a\r\n" + put, put, b"use b\r\n" + put]


@pytest.mark.parametrize("reply", [b"OUT_OF_MEMORY\r\n", b"INTERNAL_ERROR\r\n"])
def test_put_use_that_fails_raises_its_error_and_deletes_the_misplaced_job(play, connect, reply):
    played = play({"use": [reply, None]})
    conn = connect(played.uri)
    with pytest.raises(gstalk.ServerError):
        conn.put("a", b"x")
    assert conn.put("a", b"x") == 2
    put = b"put 1024 0 60 1"
    assert [line for line in played.lines if line != b"stats" and not line.startswith(b"watch")] == [
        b"use a", put, b"delete 1", b"use a", put
    ]  # fmt: skip


def test_put_buried_behind_a_use_that_failed_does_not_stay_in_the_wrong_tube(play, connect):
    played = play({"use": [b"OUT_OF_MEMORY\r\n", None], "put": b"BURIED 7\r\n"})
    conn = connect(played.uri)
    with pytest.raises(gstalk.OutOfMemoryError):
        conn.put("a", b"x")
    conn.list_tube_used()
    assert played.lines[-2] == b"delete 7"


def test_empty_tube_name_is_refused_after_a_use_that_failed(play, connect):
    """Which tube is in use then is unknown, and no name stands for that."""
    played = play({"use": [b"OUT_OF_MEMORY\r\n", None]})
    conn = connect(played.uri)
    with pytest.raises(gstalk.OutOfMemoryError):
        conn.put("a", b"x")
    before = played.count("put")
    with pytest.raises(gstalk.InvalidArgumentError):
        conn.put("", b"x")
    assert conn.is_connected
    conn.list_tube_used()
    assert played.count("put") == before


def test_put_use_that_fails_before_puts_to_other_tubes_spoils_none_of_them(play, connect):
    played = play({"use": [b"OUT_OF_MEMORY\r\n", None]})
    conn = connect(played.uri)
    putters = [gevent.spawn(conn.put, tube, b"x") for tube in ("a", "a", "b")]
    gevent.joinall(putters)
    assert [type(putter.exception) for putter in putters[:2]] == [gstalk.OutOfMemoryError] * 2
    assert putters[2].value == 3
    conn.list_tube_used()
    assert [line for line in played.lines if line.startswith(b"delete")] == [b"delete 1", b"delete 2"]


def test_put_use_echoes_another_tube_is_protocol_error(play, connect):
    conn = connect(play({"use": b"USING other\r\n"}).uri)
    others: list[Any] = [gevent.spawn(conn.put, "a", b"y"), gevent.spawn(conn.stats)]
    with pytest.raises(gstalk.ProtocolError, match="expected USING, got 'USING other'") as caught:
        conn.put("a", b"x")
    assert caught.value.sent == "maybe"
    assert not conn.is_connected
    gevent.joinall(others, timeout=5)
    assert all(isinstance(each.exception, gstalk.DisconnectedError) for each in others)


def test_producer_put_use_echoes_another_tube_is_asked_once(play):
    """A server that has broken the protocol for a put is not asked again by it."""
    played = play({"use": b"USING other\r\n"})
    with gstalk.Producer(played.uri, reconnect_timeout=0.1, info_func=lambda message: None) as producer:
        with pytest.raises(gstalk.ProtocolError):
            producer.put("a", b"x", timeout=5)
        assert played.count("put") == 1


# -- many greenlets ----------------------------------------------------------------------------------------------


def test_many_greenlets_each_gets_its_own_reply(conn, tube):
    def work(number):
        for turn in range(20):
            body = b"%d-%d" % (number, turn)
            job_id = conn.put(f"{tube}-{number % 5}", body)
            job = conn.peek(job_id)
            assert (job.id, job.body) == (job_id, body)
            stats = conn.stats_job(job_id)
            assert (stats.id, stats.tube) == (job_id, f"{tube}-{number % 5}")
            conn.delete(job_id)
            assert conn.peek(job_id) is None

    greenlets = [gevent.spawn(work, number) for number in range(50)]
    gevent.joinall(greenlets, raise_error=True)


def test_many_greenlets_more_than_fit_in_flight_all_put(conn, tube):
    greenlets = [gevent.spawn(conn.put, tube, b"%d" % number) for number in range(3000)]
    gevent.joinall(greenlets, raise_error=True)
    ids = [greenlet.value for greenlet in greenlets]
    assert len(set(ids)) == 3000
    assert conn.peek(ids[1234]).body == b"1234"
    assert conn.stats_tube(tube).current_jobs_ready == 3000


def test_many_greenlets_large_bodies_back_pressure_and_all_arrive(conn, tube):
    bodies = {number: bytes([number]) * 60000 for number in range(100)}
    greenlets = {number: gevent.spawn(conn.put, tube, body) for number, body in bodies.items()}
    gevent.joinall(list(greenlets.values()), raise_error=True)
    for number, greenlet in greenlets.items():
        assert conn.peek(greenlet.value).body == bodies[number]
        conn.delete(greenlet.value)


# -- put_many ----------------------------------------------------------------------------------------------------


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
    wait_until(lambda: conn.stats_tube(tube).current_jobs_ready == 2)


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
    wait_until(lambda: conn._link.pipe.clear is room and len(conn._link.pipe.requests) > 2)
    greenlet.kill(error, block=False)
    conn._link.pipe.fail(gstalk.ConnectionLostError, "cut by the test")
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


# -- reserve_job, delete, release, bury, touch, kick ---------------------------------------------------------------


def test_reserve_job_ready_delayed_or_buried_is_reserved(conn, other, tube):
    ready, delayed = conn.put(tube, b"ready"), conn.put(tube, b"delayed", delay=100)
    held(conn, tube, b"buried", priority=0).bury()
    buried = conn.peek_buried(tube).id
    for job_id, body in ((ready, b"ready"), (delayed, b"delayed"), (buried, b"buried")):
        job = other.reserve_job(job_id)
        assert (job.id, job.body) == (job_id, body)
        assert job.stats().state == "reserved"


def test_reserve_job_missing_or_reserved_raises_not_found(conn, other, tube):
    with pytest.raises(gstalk.NotFoundError):
        conn.reserve_job(2**63)
    job = held(conn, tube)
    with pytest.raises(gstalk.NotFoundError):
        other.reserve_job(job.id)


BY_ID = ["delete", "touch", "kick_job", "release", "bury", "stats_job", "reserve_job"]


@pytest.mark.parametrize("name", [*BY_ID, "peek"])
def test_job_id_wrong_is_refused(conn, name):
    for value in (0, -1, 2**64):
        with pytest.raises(gstalk.InvalidArgumentError):
            getattr(conn, name)(value)
    for wrong in (True, "1", 1.0, None, b"1"):
        with pytest.raises(TypeError):
            getattr(conn, name)(wrong)
    assert conn.is_connected


@pytest.mark.parametrize("name", BY_ID)
def test_job_id_unknown_raises_not_found(conn, name):
    with pytest.raises(gstalk.NotFoundError):
        getattr(conn, name)(2**64 - 1)
    assert conn.is_connected


@pytest.mark.parametrize("name", ["delete", "release", "bury"])
def test_settle_by_conn_is_the_jobs_own_method(conn, tube, name):
    job = held(conn, tube)
    getattr(conn, name)(job)
    assert job.is_finished
    with pytest.raises(gstalk.JobFinishedError):
        getattr(conn, name)(job)


@pytest.mark.parametrize("name", ["delete", "release", "bury"])
def test_settle_by_id_finishes_the_held_job(conn, tube, name):
    job = held(conn, tube)
    getattr(conn, name)(job.id)
    assert job.is_finished
    with pytest.raises(gstalk.JobFinishedError):
        job.delete()


@pytest.mark.parametrize("name", ["delete", "release", "bury"])
def test_settle_by_peeked_job_finishes_the_held_one(conn, tube, name):
    job = held(conn, tube)
    peeked = conn.peek(job.id)
    getattr(conn, name)(peeked)
    assert job.is_finished


@pytest.mark.parametrize("name", ["delete", "touch", "kick_job", "release", "bury"])
def test_settle_job_that_another_connection_reserved_is_refused(conn, other, tube, name):
    job = held(conn, tube)
    with pytest.raises(gstalk.InvalidArgumentError):
        getattr(other, name)(job)
    assert job.stats().state == "reserved"
    assert not job.is_finished


def test_stats_job_of_a_job_that_another_connection_reserved_is_refused(play, connect, conn):
    """Their servers may be different ones, where the same id means another job, or none."""
    job = connect(play({"reserve-with-timeout": b"RESERVED 987654321 1\r\nx\r\n"}).uri).reserve_with_timeout(0)
    with pytest.raises(gstalk.InvalidArgumentError):
        conn.stats_job(job)
    assert not job.is_lost


def test_delete_peeked_job_of_another_connection_is_sent_as_it_is(conn, other, tube):
    peeked = conn.peek(conn.put(tube, b""))
    other.delete(peeked)
    assert conn.peek(peeked.id) is None


def test_delete_peeked_job_reserved_by_another_raises_not_found(conn, other, tube):
    job = held(conn, tube)
    peeked = other.peek(job.id)
    with pytest.raises(gstalk.NotFoundError):
        peeked.delete()
    with pytest.raises(gstalk.NotFoundError):
        other.delete(job.id)
    job.delete()


@pytest.mark.parametrize("by_id", [False, True])
def test_release_without_priority_keeps_the_jobs_own(conn, tube, by_id):
    job = held(conn, tube, priority=77)
    conn.release(job.id if by_id else job, delay=50)
    stats = conn.stats_job(job.id)
    assert (stats.pri, stats.delay, stats.state, stats.releases) == (77, 50, "delayed", 1)


def test_release_with_priority_and_fraction_of_delay(conn, tube):
    job = held(conn, tube, priority=77)
    job.release(5, 1.01)
    stats = job.stats()
    assert (stats.pri, stats.delay, stats.state) == (5, 2, "delayed")


@pytest.mark.parametrize("by_id", [False, True])
def test_bury_without_priority_keeps_the_jobs_own(conn, tube, by_id):
    job = held(conn, tube, priority=77)
    conn.bury(job.id if by_id else job)
    stats = conn.stats_job(job.id)
    assert (stats.pri, stats.state) == (77, "buried")


def test_bury_with_priority(conn, tube):
    job = held(conn, tube)
    job.bury(0)
    assert job.stats().pri == 0


@pytest.mark.parametrize(
    ("method", "args", "kind"),
    [
        ("release", (-1,), gstalk.InvalidArgumentError),
        ("release", (2**32,), gstalk.InvalidArgumentError),
        ("release", (1.5,), TypeError),
        ("release", (1, float("nan")), gstalk.InvalidArgumentError),
        ("release", (None, -1), gstalk.InvalidArgumentError),
        ("release", (None, "1"), TypeError),
        ("bury", (-1,), gstalk.InvalidArgumentError),
        ("bury", (True,), TypeError),
    ],
)
def test_settle_wrong_argument_leaves_the_job_unfinished(conn, tube, method, args, kind):
    job = held(conn, tube)
    with pytest.raises(kind):
        getattr(job, method)(*args)
    assert not job.is_finished
    assert not job.is_lost
    job.delete()


def test_touch_starts_the_time_to_run_anew(conn, tube):
    job = held(conn, tube, ttr=10)
    wait_until(lambda: job.time_left() < 9)
    job.touch()
    assert job.time_left() >= 9
    conn.touch(job)
    conn.touch(job.id)


def test_kick_makes_buried_jobs_ready_and_returns_how_many(conn, tube):
    for _ in range(3):
        held(conn, tube).bury()
    assert conn.kick(tube, 2) == 2
    assert conn.kick(tube, 5) == 1
    assert conn.kick(tube, 5) == 0
    assert conn.stats_tube(tube).current_jobs_ready == 3


def test_kick_without_buried_jobs_makes_delayed_ones_ready(conn, tube):
    conn.put(tube, b"", delay=100)
    assert conn.kick(tube, 1) == 1
    assert conn.peek_ready(tube) is not None


def test_kick_wrong_bound_is_refused(conn, tube):
    for bound in (-1, 2**32):
        with pytest.raises(gstalk.InvalidArgumentError):
            conn.kick(tube, bound)
    for wrong in (True, "1", 1.5):
        with pytest.raises(TypeError):
            conn.kick(tube, wrong)


def test_kick_job_by_id_by_job_and_by_its_own_method(conn, tube):
    for kick in (lambda job: conn.kick_job(job.id), conn.kick_job, gstalk.Job.kick):
        job = held(conn, tube, priority=0)
        job.bury()
        kick(job)
        assert job.stats().state == "ready"
        conn.delete(job.id)


def test_kick_job_ready_raises_not_found(conn, tube):
    with pytest.raises(gstalk.NotFoundError):
        conn.kick_job(conn.put(tube, b""))


# -- peek, tubes, statistics -------------------------------------------------------------------------------------


def test_peek_finds_a_job_in_any_state_and_none_otherwise(conn, tube):
    job_id = conn.put(tube, b"x")
    job = conn.peek(job_id)
    assert (job.id, job.body, job.tube, job.reserved_at, job.uri) == (job_id, b"x", None, None, conn.uri)
    conn.delete(job_id)
    assert conn.peek(job_id) is None


def test_peek_by_state_finds_the_next_job_of_the_tube(conn, tube):
    assert [peek(tube) for peek in (conn.peek_ready, conn.peek_delayed, conn.peek_buried)] == [None, None, None]
    held(conn, tube, b"buried").bury()
    conn.put(tube, b"ready")
    conn.put(tube, b"delayed", delay=100)
    for state in ("ready", "delayed", "buried"):
        job = getattr(conn, f"peek_{state}")(tube)
        assert (job.body, job.tube, job.reserved_at) == (state.encode(), tube, None)


def test_peek_ready_of_another_tube_than_the_used_one(conn, tube):
    conn.put(tube, b"x")
    conn.use("default")
    assert conn.peek_ready(tube).body == b"x"
    assert conn.list_tube_used() == tube


def test_use_sets_the_used_tube(conn, tube):
    assert conn.use(tube) is None
    assert conn.list_tube_used() == tube


def test_watch_and_ignore_return_how_many_are_watched(conn, tube):
    assert conn.watch("another") == 2
    assert conn.watch("another") == 2
    assert sorted(conn.list_tubes_watched()) == sorted([tube, "another"])
    assert conn.ignore("another") == 1
    assert conn.ignore("never-watched") == 1


def test_ignore_the_last_tube_raises_not_ignored(conn, tube):
    with pytest.raises(gstalk.NotIgnoredError):
        conn.ignore(tube)
    assert conn.list_tubes_watched() == [tube]


@pytest.mark.parametrize("name", ["null", "true", "1e5", "0x1F", "1_000", "2001-01-01", ".inf", "123", "+$;()/._"])
def test_tubes_with_names_that_yaml_changes_keep_them(conn, name):
    job_id = conn.put(name, b"")
    assert name in conn.list_tubes()
    assert conn.stats_tube(name).name == name
    assert conn.stats_job(job_id).tube == name
    conn.watch(name)
    assert name in conn.list_tubes_watched()
    conn.delete(job_id)


def test_stats_have_the_servers_values_in_right_types(conn, server):
    stats = conn.stats()
    assert type(stats) is gstalk.ServerStats
    assert stats.pid == server.pid
    assert isinstance(stats.version, str)
    assert isinstance(stats.rusage_utime, float)
    assert stats.draining is False
    assert isinstance(stats.id, str)
    assert isinstance(stats.total_jobs, int)
    assert str(stats.os).startswith("#")


def test_stats_are_frozen(conn):
    with pytest.raises(AttributeError):
        conn.stats().pid = 1


def test_stats_tube_counts(conn, tube):
    conn.put_many(tube, [b""] * 3, priority=5)
    stats = conn.stats_tube(tube)
    assert (stats.name, stats.current_jobs_ready, stats.current_jobs_urgent, stats.total_jobs) == (tube, 3, 3, 3)
    assert stats.current_watching == 1


def test_stats_tube_unknown_raises_not_found(conn):
    with pytest.raises(gstalk.NotFoundError):
        conn.stats_tube("no-such-tube")


def test_stats_of_113_with_quotes_and_unknown_fields(play, connect):
    text = '---\nid: "8a3f"\nversion: "1.13"\nos: "#1 SMP \\"x\\""\ndraining: true\npid: 7\nnew-field: "some"\n'
    stats = connect(play({"stats": ok(text)}).uri).stats()
    assert (stats.id, stats.version, stats.os, stats.draining, stats.pid) == ("8a3f", "1.13", '#1 SMP "x"', True, 7)
    assert stats.extra == {"new-field": "some"}
    assert stats.cmd_put is None


def test_stats_that_are_none_are_a_protocol_error(play, connect):
    conn = connect(play({"stats-tube": ok("pid: 7\n")}).uri)
    with pytest.raises(gstalk.ProtocolError):
        conn.stats_tube("default")
    assert not conn.is_connected


def test_pause_tube_keeps_jobs_back_until_resumed(conn, tube):
    conn.put(tube, b"")
    conn.pause_tube(tube, 99.5)
    assert conn.stats_tube(tube).pause == 100
    assert conn.reserve_with_timeout(0) is None
    conn.pause_tube(tube, 0)
    assert conn.reserve_with_timeout(5) is not None


def test_pause_tube_unknown_raises_not_found(conn):
    with pytest.raises(gstalk.NotFoundError):
        conn.pause_tube("no-such-tube", 1)


# -- replies of others, garbage, silence ---------------------------------------------------------------------------


def test_protocol_error_goes_to_its_command_and_lost_to_the_others(play, connect):
    conn = connect(play({"peek": b"FOUND 8 1\r\nx\r\n", "put": b""}).uri)
    peeker: Any = gevent.spawn(conn.peek, 7)
    putters: list[Any] = [gevent.spawn(conn.put, "default", b"") for _ in range(2)]
    gevent.joinall([peeker, *putters])
    assert type(peeker.exception) is gstalk.ProtocolError
    for putter in putters:
        assert type(putter.exception) is gstalk.ConnectionLostError
        assert putter.exception.sent == "maybe"


@pytest.mark.parametrize(
    ("word", "reply", "method", "args"),
    [
        ("peek", b"FOUND 8 1\r\nx\r\n", "peek", (7,)),
        ("peek", b"RESERVED 7 1\r\nx\r\n", "peek", (7,)),
        ("reserve-job", b"RESERVED 8 1\r\nx\r\n", "reserve_job", (7,)),
        ("reserve-with-timeout", b"RESERVED 8\r\n12345678\r\n", "reserve_with_timeout", (0,)),
        pytest.param("reserve-with-timeout", b"RESERVED 8 x 2\r\nab\r\n", "reserve_with_timeout", (0,)),
        pytest.param("peek", b"FOUND 7 1 1\r\nx\r\n", "peek", (7,)),
        ("list-tubes", b"OK x 4\r\n---\n\r\n", "list_tubes", ()),
        ("reserve-with-timeout", b"RESERVED 8 2\r\nxyz\r\n", "reserve_with_timeout", (0,)),
        ("reserve-with-timeout", b"RESERVED 8 1073741825\r\n", "reserve_with_timeout", (0,)),
        ("delete", b"RELEASED\r\n", "delete", (7,)),
        ("kick", b"KICKED -1\r\n", "kick", ("default", 1)),
        ("kick", b"KICKED\r\n", "kick", ("default", 1)),
        ("watch", b"WATCHING x\r\n", "watch", ("a",)),
        ("list-tubes", ok("---\n-x\n"), "list_tubes", ()),
        ("list-tubes", b"OK 5\r\n---\n-too long", "list_tubes", ()),
        ("stats-job", ok("---\nid: x\n"), "stats_job", (7,)),
        ("touch", b"TOUCHED 7\r\n", "touch", (7,)),
    ],
)
def test_reply_that_is_not_this_commands_is_a_protocol_error(play, connect, word, reply, method, args):
    conn = connect(play({word: reply}).uri)
    with pytest.raises(gstalk.ProtocolError):
        getattr(conn, method)(*args)
    assert not conn.is_connected


def test_reply_without_a_command_closes_the_connection(play, connect):
    conn = connect(play({"put": b"INSERTED 1\r\nINSERTED 2\r\n"}).uri)
    assert conn.put("default", b"") == 1
    wait_until(lambda: not conn.is_connected)
    with pytest.raises(gstalk.ConnectionLostError):
        conn.put("default", b"")


@pytest.mark.slow
def test_silent_server_raises_command_timeout_and_closes(play, connect):
    conn = connect(play({"put": b""}).uri, conn_timeout=0.3)
    began = time.monotonic()
    with pytest.raises(gstalk.CommandTimeoutError) as caught:
        conn.put("default", b"")
    assert 0.25 < time.monotonic() - began < 5
    assert caught.value.sent == "maybe"
    assert isinstance(caught.value, TimeoutError)
    assert not conn.is_connected


@pytest.mark.slow
def test_stalled_server_raises_command_timeout_for_a_body_that_does_not_fit(own_server, connect):
    conn = connect(own_server.uri, conn_timeout=0.3)
    own_server.pause()
    try:
        putters: list[Any] = [gevent.spawn(conn.put, "default", b"x" * 2**23) for _ in range(3)]
        gevent.joinall(putters)
    finally:
        own_server.resume()
    assert [type(putter.exception) for putter in putters] == [gstalk.CommandTimeoutError] * 3
    assert [putter.exception.sent for putter in putters] == ["no"] * 3


@pytest.mark.slow
def test_dripping_reply_is_no_progress(play, connect):
    def drip(line):
        gevent.sleep(0.1)
        return b"INSERT"

    played = play({"put": drip, "list-tube-used": drip})
    conn = connect(played.uri, conn_timeout=0.3)
    with pytest.raises(gstalk.CommandTimeoutError):
        conn.put("default", b"")


def test_connection_cut_raises_lost_with_sent_maybe_and_then_no(play, connect):
    conn = connect(play({"put": CUT}).uri)
    with pytest.raises(gstalk.ConnectionLostError) as caught:
        conn.put("default", b"")
    assert caught.value.sent == "maybe"
    with pytest.raises(gstalk.ConnectionLostError) as caught:
        conn.put("default", b"")
    assert caught.value.sent == "no"


def test_connection_cut_while_idle_is_noticed(own_server, connect):
    conn = connect(own_server.uri)
    own_server.kill()
    wait_until(lambda: not conn.is_connected)
    with pytest.raises(gstalk.ConnectionLostError) as caught:
        conn.put("default", b"")
    assert caught.value.sent == "no"


METHODS: list[tuple[str, tuple[Any, ...]]] = [
    ("put", ("t", b"")),
    ("put", ("a b", 5)),
    ("put_many", ("t", [])),
    ("put_many", ("a b", 5)),
    ("reserve", ()),
    ("reserve_with_timeout", (0,)),
    ("reserve_with_timeout", ("x",)),
    ("reserve_job", (1,)),
    ("reserve_job", ("x",)),
    ("delete", (1,)),
    ("delete", ("x",)),
    ("touch", (1,)),
    ("touch", ("x",)),
    ("kick_job", (1,)),
    ("kick_job", ("x",)),
    ("release", (1,)),
    ("release", ("x", "y", "z")),
    ("bury", (1,)),
    ("bury", ("x", "y")),
    ("kick", ("t", 1)),
    ("kick", ("a b", "x")),
    ("peek", (1,)),
    ("peek", ("x",)),
    ("peek_ready", ("t",)),
    ("peek_ready", (5,)),
    ("peek_delayed", ("t",)),
    ("peek_buried", ("t",)),
    ("use", ("t",)),
    ("use", (5,)),
    ("watch", ("t",)),
    ("watch", (5,)),
    ("ignore", ("t",)),
    ("ignore", (5,)),
    ("list_tubes", ()),
    ("list_tubes_watched", ()),
    ("list_tube_used", ()),
    ("stats", ()),
    ("stats_tube", ("t",)),
    ("stats_tube", (5,)),
    ("stats_job", (1,)),
    ("stats_job", ("x",)),
    ("pause_tube", ("t", 0)),
    ("pause_tube", (5, "x")),
]


def test_closed_conn_raises_connection_closed_whatever_the_argument(conn):
    conn.close()
    for name, args in METHODS:
        with pytest.raises(gstalk.ConnectionClosedError) as caught:
            getattr(conn, name)(*args)
        assert caught.value.sent == "no"


def test_broken_conn_raises_disconnected_whatever_the_argument(play, connect):
    played = play()
    conn = connect(played.uri)
    played.close()
    wait_until(lambda: not conn.is_connected)
    for name, args in METHODS:
        with pytest.raises(gstalk.ConnectionLostError) as caught:
            getattr(conn, name)(*args)
        assert caught.value.sent == "no"


@pytest.mark.parametrize("name", ["delete", "release", "bury", "touch", "kick", "stats", "time_left"])
def test_peeked_job_of_a_closed_conn_raises_connection_closed(conn, tube, name):
    job = conn.peek(conn.put(tube, b""))
    conn.close()
    with pytest.raises(gstalk.ConnectionClosedError):
        getattr(job, name)()


def in_thread(*methods):
    """Call things in another thread; returns what each raised, or `None`."""
    raised: list[BaseException | None] = []

    def run():
        for method in methods:
            try:
                method()
                raised.append(None)
            except BaseException as error:
                raised.append(error)
        hub.get_hub().destroy(destroy_loop=True)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: not thread.is_alive())
    return raised


def test_other_threads_hub_raises_wrong_hub_and_sends_nothing(play, connect):
    played = play()
    conn = connect(played.uri)
    before = list(played.lines)
    raised = in_thread(*(functools.partial(getattr(conn, name), *args) for name, args in METHODS), conn.close)
    assert [type(error) for error in raised] == [gstalk.WrongHubError] * (len(METHODS) + 1)
    conn.list_tube_used()
    assert played.lines == [*before, b"list-tube-used"]


def test_job_from_another_threads_hub_raises_wrong_hub(conn, tube):
    job = held(conn, tube)
    names = ["delete", "release", "bury", "touch", "kick", "stats", "time_left"]
    raised = in_thread(*(getattr(job, name) for name in names))
    assert [type(error) for error in raised] == [gstalk.WrongHubError] * len(names)
    job.delete()


# -- close -------------------------------------------------------------------------------------------------------


def test_close_is_idempotent_and_disconnects(conn):
    assert conn.is_connected
    conn.close()
    conn.close()
    assert not conn.is_connected


@pytest.mark.parametrize("name", ["delete", "release", "bury"])
def test_close_waits_for_settling_calls(conn, other, tube, name):
    job = held(conn, tube, priority=66)
    settler = call(getattr(job, name))
    conn.close()
    settler.get()
    assert job.is_finished
    if name == "delete":
        assert other.peek(job.id) is None
    else:
        stats = other.stats_job(job.id)
        assert (stats.state, stats.pri) == ("ready" if name == "release" else "buried", 66)


def test_close_many_deletes_all_are_carried_out(conn, other, tube):
    conn.put_many(tube, [b""] * 200)
    jobs = [conn.reserve_with_timeout(0) for _ in range(200)]
    deleters = [gevent.spawn(job.delete) for job in jobs]
    gevent.sleep(0)
    conn.close()
    gevent.joinall(deleters, raise_error=True)
    assert all(job.is_finished for job in jobs)
    assert other.stats_tube(tube).current_jobs_reserved == 0
    assert other.stats_tube(tube).current_jobs_ready == 0


def test_close_other_calls_in_flight_raise_closed_with_sent(play, connect):
    conn = connect(play({"put": b""}).uri)
    putter = call(conn.put, "default", b"")
    conn.close()
    with pytest.raises(gstalk.ConnectionClosedError) as caught:
        putter.get()
    assert caught.value.sent == "maybe"


def test_close_ends_reserves(conn, connect):
    reservers = [call(conn.reserve) for _ in range(3)]
    conn.close()
    for reserver in reservers:
        with pytest.raises(gstalk.ConnectionClosedError):
            reserver.get()


def test_close_ends_reserves_at_once_while_it_waits_for_a_delete(play, connect):
    def late(line):
        gevent.sleep(1.5)
        return b"DELETED\r\n"

    conn = connect(play({"delete": late}).uri)
    conn._line._may_wait = False
    reservers = [call(conn.reserve) for _ in range(3)]
    gevent.sleep(0.1)  # none of their asks is in flight
    deleter = call(conn.delete, 5)
    closer = call(conn.close)
    gevent.joinall(reservers, timeout=1)
    assert all(isinstance(reserver.exception, gstalk.ConnectionClosedError) for reserver in reservers)
    assert not closer.ready()
    assert conn._line._timer is None
    gevent.joinall([closer, deleter], raise_error=True)


def test_close_gives_jobs_back_and_loses_them(conn, other, tube):
    job = held(conn, tube, priority=12)
    conn.close()
    assert job.is_lost
    wait_until(lambda: other.stats_job(job.id).state == "ready")
    assert other.stats_job(job.id).pri == 12


@pytest.mark.slow
def test_close_silent_server_waits_at_most_conn_timeout(play, connect):
    conn = connect(play({"delete": b"", "list-tube-used": b""}).uri, conn_timeout=0.3)
    deleter = call(conn.delete, 7)
    began = time.monotonic()
    conn.close()
    assert 0.2 < time.monotonic() - began < 5
    with pytest.raises(gstalk.DisconnectedError) as caught:
        deleter.get()
    assert caught.value.sent == "maybe"


@pytest.mark.parametrize("interruption", [gevent.Timeout(60), gevent.GreenletExit(), KeyboardInterrupt(), ValueError()])
def test_close_interrupted_closes_at_once(play, connect, interruption):
    conn = connect(play({"delete": b"", "list-tube-used": b""}).uri, conn_timeout=30)
    deleter = call(conn.delete, 7)
    assert interrupt(conn.close, interruption) is interruption
    with pytest.raises(gstalk.ConnectionClosedError):
        deleter.get(timeout=5)


def test_close_while_another_greenlet_closes_returns(play, connect):
    conn = connect(play({"delete": b"", "list-tube-used": b""}).uri, conn_timeout=0.3)
    deleter = call(conn.delete, 7)
    closers = [call(conn.close) for _ in range(2)]
    gevent.joinall([deleter, *closers])
    assert all(closer.successful() for closer in closers)


def test_dropped_conn_closes_its_socket_with_a_warning(own_server):
    watching = gstalk.dial(own_server.uri)
    dropped = gstalk.dial(own_server.uri)
    assert watching.stats().current_connections == 2
    dropped.put("default", b"x")
    with pytest.warns(ResourceWarning, match="unclosed connection to"):
        del dropped  # at once: no collector is needed
    wait_until(lambda: watching.stats().current_connections == 1)
    watching.close()


def test_dropped_conn_that_holds_jobs_gives_them_back_at_once(connect, server, tube):
    """A job holds its connection, and is not held by it: no collector has to find out that both are gone."""
    other = connect()
    conn = gstalk.dial(server.uri)
    conn.watch(tube)
    ids = other.put_many(tube, [b"x"] * 3, ttr=3600)
    job, _ = conn.reserve(), conn.reserve()
    conn.reserve()  # nobody refers to this one, and it is reserved all the same
    assert other.stats_tube(tube).current_jobs_reserved == 3
    gc.disable()
    try:
        del conn
        assert job.stats().state == "reserved"
        with pytest.warns(ResourceWarning, match="unclosed connection to"):
            del job, _
            gevent.sleep(0)  # the read that woke us is over
        wait_until(lambda: other.stats_tube(tube).current_jobs_ready == len(ids))
    finally:
        gc.enable()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_dropped_conn_closes_its_socket_also_where_warnings_are_errors(play):
    dropped = gstalk.dial(play().uri)
    pipe = dropped._link.pipe
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del dropped
    assert pipe.failure is not None


def test_dropped_conn_is_held_by_its_jobs(server, tube, connect):
    conn = gstalk.dial(server.uri)
    conn.watch(tube)
    job = held(conn, tube)
    owner = conn
    del conn
    gc.collect()
    assert job.stats().state == "reserved"
    job.delete()
    owner.close()


def test_call_in_the_hub_is_refused_and_sends_nothing(play, connect):
    played = play()
    conn = connect(played.uri)
    caught = []

    def in_hub():
        for name, args in (("put", ("a", b"")), ("reserve", ()), ("delete", (1,)), ("stats", ())):
            try:
                getattr(conn, name)(*args)
            except BaseException as error:
                caught.append(type(error))

    hub.get_hub().loop.run_callback(in_hub)
    gevent.sleep(0.01)
    assert caught == [gevent.exceptions.BlockingSwitchOutError] * 4
    conn.list_tube_used()
    assert not any(line.startswith((b"put", b"reserve", b"delete")) for line in played.lines)


# -- cancellation ------------------------------------------------------------------------------------------------

INTERRUPTIONS = [lambda: gevent.Timeout(60), gevent.GreenletExit, KeyboardInterrupt, lambda: ValueError("own")]


@pytest.mark.parametrize("make", INTERRUPTIONS)
def test_interrupted_put_is_carried_out_and_the_next_reply_is_its_own(conn, tube, make):
    error = make()
    assert interrupt(lambda: conn.put(tube, b"interrupted"), error) is error
    job_id = conn.put(tube, b"next")
    assert conn.peek(job_id).body == b"next"
    assert conn.stats_tube(tube).current_jobs_ready == 2


@pytest.mark.parametrize("make", INTERRUPTIONS)
@pytest.mark.parametrize("name", ["delete", "release", "bury"])
def test_interrupted_settling_is_carried_out(conn, other, tube, name, make):
    job = held(conn, tube, priority=55)
    error = make()
    assert interrupt(getattr(job, name), error) is error
    wait_until(lambda: job.is_finished)
    if name == "delete":
        assert other.peek(job.id) is None
    else:
        assert other.stats_job(job.id).pri == 55


def test_interrupted_call_passes_the_exception_unchanged(conn, tube):
    timeout = gevent.Timeout(0)
    with pytest.raises(gevent.Timeout) as caught:
        with timeout:
            while True:
                conn.put(tube, b"")
    assert caught.value is timeout


def test_interrupted_reserve_job_goes_back_with_its_own_priority(conn, other, tube):
    job_id = other.put(tube, b"", priority=44)
    error = gevent.GreenletExit()
    assert interrupt(lambda: conn.reserve_job(job_id), error) is error
    wait_until(lambda: other.stats_job(job_id).releases == 1, 5)
    stats = other.stats_job(job_id)
    assert (stats.state, stats.pri) == ("ready", 44)


@pytest.mark.parametrize("name", ["reserve", "reserve_job"])
def test_interrupted_between_a_reserves_reply_and_its_return_the_job_goes_back(play, connect, name):
    """Both replies come in one read, and whoever is woken by the first throws into the one whose job has come."""
    word = "reserve-job" if name == "reserve_job" else "reserve-with-timeout"
    played = play({"list-tubes": b"", word: ok("---\n- default\n") + b"RESERVED 7 1\r\nx\r\n"})
    conn = connect(played.uri)
    error = ValueError("the caller's own")
    raised = []

    def reserve():
        try:
            conn.reserve_job(7) if name == "reserve_job" else conn.reserve_with_timeout(0)
        except BaseException as caught:
            raised.append(caught)

    def strike():
        conn.list_tubes()
        gevent.get_hub().loop.run_callback(gevent.getcurrent().switch)
        reserver.throw(error)

    striker = call(strike)
    reserver = call(reserve)
    striker.get()
    assert raised == [error]
    wait_until(lambda: played.lines[-1] == b"release 7 9 0")
    assert conn.is_connected


@pytest.mark.parametrize("word", ["release", "stats-job"])
def test_job_that_the_server_does_not_take_back_goes_with_the_connection(play, connect, word):
    """It would stay reserved for its ttr, and nobody would know of it."""
    played = play({"reserve-with-timeout": b"RESERVED 7 1\r\nx\r\n", word: b"INTERNAL_ERROR\r\n"})
    conn = connect(played.uri)
    with gevent.Timeout(5, AssertionError("it waits for ever")):
        reserver = call(conn.reserve_with_timeout, 0)
        reserver.kill(block=False)
        gevent.joinall([reserver])
    wait_until(lambda: not conn.is_connected)
    with pytest.raises(gstalk.ConnectionLostError) as caught:
        conn.stats()
    assert f"job 7 could not be given back: {word} 7 at {conn.uri}: a bug in the server" in str(caught.value)


@pytest.mark.parametrize("seed", range(3))
def test_interrupted_at_random_no_reply_goes_astray(conn, tube, seed):
    chance = random.Random(seed)
    wrong = []

    def work(number):
        for turn in range(10):
            body = b"%d-%d" % (number, turn)
            job_id = None
            with contextlib.suppress(gevent.Timeout), gevent.Timeout(chance.random() * 0.003):
                job_id = conn.put(f"{tube}-{number % 3}", body)
                if conn.peek(job_id).body != body:
                    wrong.append(body)
                conn.delete(job_id)

    gevent.joinall([gevent.spawn(work, number) for number in range(50)], raise_error=True)
    assert wrong == []
    assert conn.is_connected
    job_id = conn.put(tube, b"end")
    assert conn.peek(job_id).body == b"end"


# -- Job ---------------------------------------------------------------------------------------------------------


def test_job_fields_after_a_reserve(conn, tube):
    before = time.monotonic()
    job = held(conn, tube, b"body")
    assert (job.body, job.tube, job.uri) == (b"body", tube, conn.uri)
    assert before <= job.reserved_at <= time.monotonic()
    assert (job.is_finished, job.is_lost) == (False, False)


def test_job_tube_is_unknown_with_several_watched_until_stats(conn, tube):
    conn.watch("another")
    job = held(conn, tube)
    assert job.tube is None
    assert job.stats().tube == tube
    assert job.tube == tube


def test_job_tube_after_reserve_job_is_unknown(conn, other, tube):
    job = conn.reserve_job(other.put("elsewhere", b""))
    assert job.tube is None
    job.delete()


SETTLING = ["delete", "release", "bury"]


@pytest.mark.parametrize("first", SETTLING)
def test_job_finished_refuses_another_and_sends_nothing(play, connect, first):
    played = play({"reserve-with-timeout": b"RESERVED 7 1\r\nx\r\n"})
    job = connect(played.uri).reserve_with_timeout(0)
    getattr(job, first)()
    before = list(played.lines)
    for second in (*SETTLING, "touch"):
        with pytest.raises(gstalk.JobFinishedError):
            getattr(job, second)()
    assert played.lines == before


@pytest.mark.parametrize("first", SETTLING)
def test_job_while_one_is_under_way_refuses_another(conn, tube, first):
    job = held(conn, tube)
    settler = call(getattr(job, first))
    for second in (*SETTLING, "touch"):
        with pytest.raises(gstalk.JobFinishedError):
            getattr(job, second)()
    settler.get()
    assert job.is_finished


@pytest.mark.parametrize(
    ("name", "args"), [("delete", ()), ("release", (5,)), ("release", ()), ("bury", (5,)), ("bury", ())]
)
@pytest.mark.parametrize("reply", [b"INTERNAL_ERROR\r\n", b"OUT_OF_MEMORY\r\n"])
def test_job_settling_that_failed_is_unfinished_again(play, connect, name, args, reply):
    played = play({"reserve-with-timeout": b"RESERVED 7 1\r\nx\r\n", name: [reply, None]})
    job = connect(played.uri).reserve_with_timeout(0)
    with pytest.raises(gstalk.ServerError):
        getattr(job, name)(*args)
    assert (job.is_finished, job.is_lost) == (False, False)
    getattr(job, name)(*args)
    assert job.is_finished


def test_job_release_whose_priority_cannot_be_asked_is_unfinished_again(play, connect):
    played = play({"reserve-with-timeout": b"RESERVED 7 1\r\nx\r\n", "stats-job": [b"OUT_OF_MEMORY\r\n", None]})
    job = connect(played.uri).reserve_with_timeout(0)
    with pytest.raises(gstalk.OutOfMemoryError):
        job.release()
    assert (job.is_finished, job.is_lost) == (False, False)
    job.release()
    assert played.lines[-1] == b"release 7 9 0"


@pytest.mark.parametrize("pri", ["", "pri: -5\n", "pri: 4294967296\n"])
def test_job_release_whose_priority_cannot_be_is_a_protocol_error(play, connect, pri):
    told = ok(f"---\nid: 1\ntube: default\nstate: reserved\n{pri}")
    played = play({"reserve-with-timeout": b"RESERVED 1 1\r\nx\r\n", "stats-job": told})
    conn = connect(played.uri)
    job = conn.reserve_with_timeout(0)
    with silent_hub():
        with pytest.raises(gstalk.ProtocolError, match="pri is"):
            job.release()
        assert job.is_lost
        assert not conn.is_connected


def test_job_release_answered_buried_raises_buried_and_is_finished(play, connect):
    played = play({"reserve-with-timeout": b"RESERVED 7 1\r\nx\r\n", "release": b"BURIED\r\n"})
    job = connect(played.uri).reserve_with_timeout(0)
    with pytest.raises(gstalk.BuriedError) as caught:
        job.release()
    assert caught.value.job_id == 7
    assert job.is_finished


@pytest.mark.parametrize("name", ["delete", "release", "bury", "touch"])
def test_job_not_found_by_the_server_is_lost(play, connect, name):
    played = play({"reserve-with-timeout": b"RESERVED 7 1\r\nx\r\n", name: b"NOT_FOUND\r\n"})
    job = connect(played.uri).reserve_with_timeout(0)
    with pytest.raises(gstalk.JobLostError):
        getattr(job, name)()
    assert (job.is_finished, job.is_lost) == (False, True)
    before = list(played.lines)
    for each in ("delete", "release", "bury", "touch"):
        with pytest.raises(gstalk.JobLostError):
            getattr(job, each)()
    assert played.lines == before


@pytest.mark.parametrize("name", ["stats", "time_left", "kick"])
def test_job_stats_not_found(play, connect, name):
    replies = {"stats-job": b"NOT_FOUND\r\n", "kick-job": b"NOT_FOUND\r\n"}
    job = connect(play({"reserve-with-timeout": b"RESERVED 7 1\r\nx\r\n", **replies}).uri).reserve_with_timeout(0)
    with pytest.raises(gstalk.NotFoundError if name == "kick" else gstalk.JobLostError):
        getattr(job, name)()


@pytest.mark.parametrize("name", ["delete", "release", "bury", "touch"])
def test_job_by_id_not_found_raises_not_found_and_loses_the_held_one(play, connect, name):
    played = play({"reserve-with-timeout": b"RESERVED 7 1\r\nx\r\n", name: b"NOT_FOUND\r\n"})
    conn = connect(played.uri)
    job = conn.reserve_with_timeout(0)
    with pytest.raises(gstalk.NotFoundError):
        getattr(conn, name)(7)
    assert job.is_lost


@pytest.mark.slow
def test_job_whose_time_is_over_is_lost(conn, other, tube):
    job = held(conn, tube, ttr=1)
    wait_until(lambda: (conn.list_tube_used(), other.stats_job(job.id).state)[1] == "ready")
    taken = other.reserve_with_timeout(5)
    assert taken.id == job.id
    with pytest.raises(gstalk.JobLostError):
        job.delete()
    assert job.is_lost
    taken.delete()


@pytest.mark.slow
def test_job_reserved_again_by_the_same_connection_the_older_is_lost_and_its_delete_not_sent(conn, other, tube):
    stale = held(conn, tube, ttr=1)
    wait_until(lambda: (conn.list_tube_used(), other.stats_job(stale.id).state)[1] == "ready")
    again = conn.reserve_with_timeout(5)
    assert again.id == stale.id
    assert stale.is_lost
    for name in ("delete", "release", "bury", "touch"):
        with pytest.raises(gstalk.JobLostError):
            getattr(stale, name)()
    assert again.stats().state == "reserved"
    again.delete()
    assert not stale.is_finished


@pytest.mark.parametrize("reply", [b"DELETED\r\n", b"NOT_FOUND\r\n", b"INTERNAL_ERROR\r\n"])
def test_job_reserved_again_before_its_delete_is_answered_the_answer_decides(play, connect, reply):
    """So it is after a process was stopped for longer than its job's time to run."""
    played = play({"reserve-with-timeout": b"RESERVED 7 1\r\nx\r\n", "delete": reply})
    conn = connect(played.uri)
    job = conn.reserve_with_timeout(0)
    reserver, deleter = call(conn.reserve_with_timeout, 0), call(job.delete)
    gevent.joinall([reserver, deleter])
    assert played.lines[-2:] == [b"reserve-with-timeout 0", b"delete 7"]
    again = reserver.get()
    if reply == b"DELETED\r\n":
        assert deleter.successful()
        assert (job.is_finished, job.is_lost, again.is_finished, again.is_lost) == (True, False, True, False)
        with pytest.raises(gstalk.JobFinishedError):
            again.delete()
    else:
        assert type(deleter.exception) is (gstalk.JobLostError if b"NOT" in reply else gstalk.InternalError)
        assert (job.is_finished, job.is_lost, again.is_finished, again.is_lost) == (False, True, False, False)


def test_job_whose_touch_finds_it_gone_while_its_delete_is_under_way_is_finished_if_that_succeeds(play, connect):
    """The server deletes a job whose time is over, though it refuses to touch it, as long as nobody else has it."""
    conn = connect(play({"reserve-with-timeout": b"RESERVED 7 1\r\nx\r\n", "touch": b"NOT_FOUND\r\n"}).uri)
    job = conn.reserve_with_timeout(0)
    toucher, deleter = call(job.touch), call(job.delete)
    gevent.joinall([toucher, deleter])
    assert type(toucher.exception) is gstalk.JobLostError
    assert deleter.successful()
    assert (job.is_finished, job.is_lost) == (True, False)


def test_job_connection_gone_is_lost_and_sends_nothing(conn, other, tube):
    job, done = held(conn, tube), held(conn, tube)
    done.delete()
    conn.close()
    assert (job.is_lost, done.is_lost, done.is_finished) == (True, False, True)
    for name in ("delete", "release", "bury", "touch"):
        with pytest.raises(gstalk.JobLostError) as caught:
            getattr(job, name)()
        gone = "lost with its connection (you closed it); nothing was sent"
        assert str(caught.value) == f"{name} {job.id} at {conn.uri}: {gone}"
        with pytest.raises(gstalk.JobFinishedError):
            getattr(done, name)()


def test_job_connection_lost_while_it_is_deleted_raises_disconnected_and_is_lost(play, connect):
    conn = connect(play({"reserve-with-timeout": b"RESERVED 7 1\r\nx\r\n", "delete": CUT}).uri)
    job = conn.reserve_with_timeout(0)
    with pytest.raises(gstalk.ConnectionLostError) as caught:
        job.delete()
    assert caught.value.sent == "maybe"
    assert job.is_lost


def test_job_kick_and_stats_work_whatever_became_of_it(conn, tube):
    job = held(conn, tube)
    job.bury()
    assert job.stats().state == "buried"
    job.kick()
    assert job.stats().state == "ready"
    assert job.is_finished


def test_job_stats_are_job_stats(conn, tube):
    stats = held(conn, tube, priority=5, ttr=70).stats()
    assert isinstance(stats, gstalk.JobStats)
    assert (stats.tube, stats.state, stats.pri, stats.ttr, stats.reserves) == (tube, "reserved", 5, 70, 1)


def test_job_time_left_of_reserved_and_of_other_jobs(conn, tube):
    job = held(conn, tube, ttr=50)
    assert 45 <= job.time_left() <= 50
    assert isinstance(job.time_left(), float)
    job.release(delay=100)
    assert job.time_left() == 0


def test_job_repr_shows_no_body(conn, tube):
    assert "secret" not in repr(held(conn, tube, b"secret"))


# -- fork --------------------------------------------------------------------------------------------------------


def test_forked_child_conn_raises_closed_and_its_jobs_lost_and_the_parent_goes_on(conn, other, tube):
    job = held(conn, tube)
    read, write = os.pipe()
    child = gevent.os.fork()
    if not child:
        said = []
        for method in (conn.stats, job.delete, conn.reserve):
            try:
                method()
            except BaseException as error:
                said.append(type(error).__name__)
        os.write(write, ",".join(said).encode())
        os._exit(0)
    os.close(write)
    gevent.os.waitpid(child, 0)
    answer = os.read(read, 1000)
    os.close(read)
    assert answer == b"ConnectionClosedError,JobLostError,ConnectionClosedError"
    assert other.stats_job(job.id).state == "reserved"
    job.delete()
    assert conn.stats_tube(tube).current_jobs_reserved == 0
