"""A dial: what it sends first, in how much time it ends, and what it says when it fails."""

from __future__ import annotations

import time

import gevent
import pytest

import gstalk
from tests.servers import CUT, wait_until

pytestmark = pytest.mark.real


def test_dial_first_command_is_stats(play, connect):
    played = play()
    connect(played.uri)
    assert played.lines[0] == b"stats"


def test_dial_options_override_config(server, connect):
    conn = connect(server.uri, config=gstalk.Config(conn_timeout=3), conn_timeout=2)
    assert conn._connection.config.conn_timeout == 2


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


def test_connect_to_a_server_that_does_not_watch_what_it_was_told_to_fails(play):
    played = play({"watch": b"WATCHING 7\r\n"})
    told: list[str] = []
    consumer = gstalk.Consumer(
        played.uri, "mail", error_func=lambda error, message: told.append(str(error)), info_func=told.append
    )
    receiving = gevent.spawn(consumer.receive, lambda job: None)
    wait_until(lambda: told)
    consumer.stop(0)
    receiving.join(timeout=5)
    assert any("watches" in each and "tubes instead of 1" in each for each in told), told
