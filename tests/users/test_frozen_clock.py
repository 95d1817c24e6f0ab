"""Programs whose tests freeze the clock: what waits must end all the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import freezegun
import gevent
import pytest
from gevent import get_hub

import gstalk
from gstalk.testing import Server

QUIET: dict[str, Any] = {"error_func": lambda error, message: None, "info_func": lambda message: None}
NOBODY = "127.0.0.1:1"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


def took(call: Callable[[], object]) -> float:
    """Seconds by the loop's own clock, which nobody freezes; what is raised is a result, too."""
    loop = get_hub().loop
    loop.update_now()
    began = loop.now()
    try:
        with gevent.Timeout(20, AssertionError("never ends")):
            call()
    except gstalk.GstalkError:
        pass
    loop.update_now()
    return float(loop.now() - began)


@pytest.mark.slow
@pytest.mark.parametrize("tick", [False, True])
def test_waits_end_in_their_time_while_the_clock_stands(play, tick):
    silent = play({"put": b""}).uri
    with freezegun.freeze_time("2020-01-01", tick=tick):
        stands = time.monotonic()
        absent = gstalk.Producer(NOBODY, **QUIET)
        assert 0.25 < took(lambda: absent.put("t", b"x", timeout=0.3)) < 5
        assert 0.25 < took(lambda: absent.put_many("t", [b"x"], timeout=0.3)) < 5
        assert 0.25 < took(lambda: absent.wait_connected(0.3)) < 5
        assert took(lambda: absent.stop(1)) < 5
        producer = gstalk.Producer(silent, conn_timeout=30, **QUIET)
        assert producer.wait_connected(5)
        assert 0.25 < took(lambda: producer.put("default", b"x", timeout=0.3)) < 5
        putting = gevent.spawn(producer.put, "default", b"x", timeout=30)
        gevent.sleep(0)
        assert 0.25 < took(lambda: producer.stop(0.3)) < 5
        with pytest.raises(gstalk.DisconnectedError):
            putting.get(timeout=5)
        assert tick or time.monotonic() == stands


@pytest.mark.slow
def test_connection_without_progress_is_closed_while_the_clock_stands(play):
    uri = play({"put": b""}).uri
    with freezegun.freeze_time("2020-01-01"), gstalk.dial(uri, conn_timeout=0.5) as conn:
        with pytest.raises(gstalk.CommandTimeoutError):
            assert took(lambda: conn.put("default", b"x")) < 5
            conn.put("default", b"x")


def test_reserve_and_consumer_end_in_their_time_while_the_clock_stands(server):
    with freezegun.freeze_time("2020-01-01"):
        with gstalk.dial(server.uri) as conn:
            assert 0.2 < took(lambda: conn.reserve_with_timeout(0.3)) < 5
            conn.put("t", b"x")
        done: list[bytes] = []
        consumer = gstalk.Consumer(server.uri, "t", auto_delete=True, **QUIET)

        def handler(job: gstalk.Job) -> None:
            done.append(job.body)
            consumer.stop(1)

        assert took(lambda: consumer.receive(handler)) < 10
        assert done == [b"x"]


def test_servers_left_alone_are_asked_again_while_the_clock_stands(play, monkeypatch):
    monkeypatch.setattr("gstalk.pool.put_queue.ALONE", 0.2)
    with freezegun.freeze_time("2020-01-01"):
        with gstalk.Producer(play({"put": [b"DRAINING\r\n", None]}).uri, **QUIET) as producer:
            assert producer.wait_connected(5)
            with pytest.raises(gstalk.DrainingError):
                producer.put("default", b"x")
            assert producer.wait_connected(5)
            assert producer.put("default", b"x") == 1
