"""A Conn whose server says what it should not, or nothing, or whose connection ends; and calls that come too late."""

from __future__ import annotations

import functools
import time
from typing import Any

import gevent
import pytest

import gstalk
from tests.io.calling import held, in_thread
from tests.servers import CUT, ok, wait_until

pytestmark = pytest.mark.real


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
