"""Conn.put: what is stored and what is refused, the `use` before it, and many greenlets that put at a time."""

from __future__ import annotations

import datetime
from typing import Any

import gevent
import pytest

import gstalk
from gstalk.protocol import checks
from tests.io.calling import call
from tests.servers import wait_until

pytestmark = pytest.mark.real


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
