"""A `use` before a put: what comes of the put, and of its job, where the `use` fails."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

import gstalk

pytestmark = pytest.mark.real


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
