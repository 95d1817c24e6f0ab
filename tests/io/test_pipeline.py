"""What `connection.pipeline` promises to those who share a connection.

Room is passed on, and a connection counts as stuck neither too early nor too late.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from time import monotonic, sleep
from typing import Any

import gevent
import pytest
from gevent.event import Event

import gstalk
from gstalk.connection import pipeline
from gstalk.connection.pipeline import Pipeline
from gstalk.connection.transport import Transport
from gstalk.protocol import commands
from gstalk.testing import FaultProxy
from tests.io.striking import Strike


class Interruption(BaseException):
    pass


class Hub:
    """The hub, which notes the watchers of descriptors that its loop makes."""

    def __init__(self) -> None:
        self.loop = self
        self.watchers: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(gevent.get_hub().loop, name)

    def io(self, *args: Any, **options: Any) -> Any:
        self.watchers.append(watcher := gevent.get_hub().loop.io(*args, **options))
        return watcher


@pytest.mark.parametrize("function", [Pipeline.attach, Pipeline._flush])
def test_connection_that_a_signal_strikes_at_any_line_leaves_no_watcher_on_its_descriptor(function):
    """Once that is closed, libev would end the process for it."""
    for number in range(1, 50):
        ends = socket.socketpair()
        ends[0].setblocking(False)
        pipe, transport = Pipeline("here", gevent.get_hub(), 5), Transport(ends[0])
        hub: Any = Hub()
        pipe.hub = hub
        strike = Strike(function, number)
        sys.settrace(strike.trace)
        with suppress(Strike):
            pipe.attach(transport)
            pipe.append(bytes(1 << 20), pipe.request(commands.PUT))  # more than the kernel takes
        sys.settrace(None)
        pipe.fail(gstalk.ConnectionLostError, "struck")
        left = [watcher.active for watcher in hub.watchers]
        for each in (*hub.watchers, *ends):
            each.close()
        assert not any(left), number
        if strike.lines_left > 0:
            break
    assert len(left) == 2
    assert 5 < number < 50


def test_room_offered_to_callers_who_were_interrupted_is_offered_to_the_next(play, connect, monkeypatch):
    """Four commands are the most here, and room is offered to two at a time. Both of these are interrupted in the very
    turn in which it was offered, and nothing is in flight then whose reply would bring another offer."""
    monkeypatch.setattr(pipeline, "MAX_REQUESTS", 4)
    answer = Event()

    def wait_and_answer(line: bytes) -> bytes:
        answer.wait()
        return b"INSERTED 1\r\nINSERTED 2\r\nINSERTED 3\r\nINSERTED 4\r\n"

    conn = connect(play({"put": [wait_and_answer, b"", b"", b"", b"INSERTED 5\r\n"]}).uri)

    def interrupt(other: Any) -> None:
        gevent.get_hub().loop.run_callback(gevent.getcurrent().switch)  # when the other one ends, the hub goes on
        other.throw(Interruption())

    def put_then_interrupt() -> None:
        conn.put("default", b"4")
        interrupt(first)

    def interrupted_interrupts() -> None:
        try:
            conn.put("default", b"never sent")
        except Interruption:
            interrupt(second)

    flying: list[Any] = [gevent.spawn(conn.put, "default", b"%d" % n) for n in range(3)]
    flying.append(gevent.spawn(put_then_interrupt))
    gevent.sleep(0)
    first = gevent.spawn(interrupted_interrupts)
    second = gevent.spawn(conn.put, "default", b"never sent")
    last = gevent.spawn(conn.put, "default", b"5")
    gevent.sleep(0)
    answer.set()
    assert last.get(timeout=5) == 5
    assert isinstance(second.exception, Interruption)


def assert_late_in_time(late: Callable[[], float]) -> None:
    """Never too early; a busy machine may make it later, so that one of three tries has to be in time."""
    for _ in range(3):
        took = late()
        assert took >= 1
        if took < 1.7:
            return
    pytest.fail(f"late after {took} seconds only")


@pytest.mark.timing
def test_large_body_whose_reply_never_comes_is_late_from_when_it_had_arrived(play, connect):
    """Not from when it was sent, which takes a while, nor from when something else was."""

    def late() -> float:
        conn = connect(play({"put": b""}).uri, conn_timeout=1)
        began = monotonic()
        with pytest.raises(gstalk.CommandTimeoutError):
            conn.put("default", bytes(8_000_000))
        return monotonic() - began

    assert_late_in_time(late)


@pytest.mark.timing
def test_large_body_that_stays_in_the_kernel_is_late_from_its_last_byte_that_got_through(server, connect):
    """The kernel has taken all of it, which is no progress when the other side reads nothing."""

    def late() -> float:
        with FaultProxy(server.uri) as proxy:
            conn = connect(proxy.uri, conn_timeout=1)
            proxy.stall("up")
            began = monotonic()
            with pytest.raises(gstalk.CommandTimeoutError):
                conn.put("default", bytes(600_000))
            return monotonic() - began

    assert_late_in_time(late)


CALLS: dict[str, Callable[[gstalk.Conn, gstalk.Job, str], object]] = {
    "put": lambda conn, job, tube: conn.put(tube, b"x"),
    "put_many": lambda conn, job, tube: conn.put_many(tube, [b"x", b"y"]),
    "delete": lambda conn, job, tube: job.delete(),
    "release": lambda conn, job, tube: job.release(),
    "stats": lambda conn, job, tube: conn.stats(),
}


@pytest.mark.parametrize("call", CALLS)
def test_call_after_a_greenlet_has_blocked_the_hub_for_longer_than_the_limit_is_not_late(call, server, connect, tube):
    """It blocks in the very turn in which a reply has woken it; what it sends then is due from that moment on."""
    conn = connect(server.uri, conn_timeout=0.25)  # on a busy machine the server, too, may be kept waiting
    conn.watch(tube)
    for _ in range(3):
        conn.put(tube, b"x")
        job = conn.reserve()
        sleep(0.3)  # not gevent's
        CALLS[call](conn, job, tube)
        if not job.is_finished:
            job.delete()
