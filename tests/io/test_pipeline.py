"""What `connection.pipeline` promises to those who share a connection.

Room is passed on, everybody answered is wakened, and a connection counts as stuck neither too early nor too late.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, sleep
from typing import Any

import gevent
import greenlet
import pytest
from gevent.event import Event

import gstalk
from gstalk.connection import pipeline
from gstalk.protocol.request import Outcome
from gstalk.testing import FaultProxy


class Interruption(BaseException):
    pass


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


def test_callback_is_known_to_be_under_way_behind_the_greenlets_that_it_has_wakened(play, connect):
    """A close by a signal handler is put off there, too."""
    conn = connect(play().uri)
    pipe = conn._connection.pipe
    seen: list[bool] = []

    def wake_twice() -> None:
        for _ in range(2):
            call: Any = Outcome()
            call.waiter = gevent.spawn(lambda: seen.append(pipe.section.is_hub_inside))
            call.succeed()
            pipe.complete(call)
            pipe._wake()
            seen.append(pipe.section.is_hub_inside)

    pipe.soon(wake_twice)
    gevent.sleep(0.01)
    assert seen == [False, True] * 2
    assert not pipe.section.is_hub_inside


def test_caller_that_dies_of_its_reply_keeps_no_other_from_being_wakened(play, connect, monkeypatch):
    """A raw greenlet whose parent is the hub hands its exception to whoever wakes it."""
    told: list[type] = []
    hub = gevent.get_hub()
    monkeypatch.setattr(hub, "print_exception", lambda context, kind, value, trace: told.append(kind))
    conn = connect(play().uri)

    def put_and_die() -> None:
        conn.put("default", b"1")
        raise ValueError

    raw = greenlet.greenlet(put_and_die, hub)
    hub.loop.run_callback(raw.switch)
    others = [gevent.spawn(conn.put, "default", b"%d" % n) for n in range(3)]
    gevent.joinall(others, timeout=5, raise_error=True)
    assert sorted(int(each.value or 0) for each in others) == [2, 3, 4]
    assert told == [ValueError]


@pytest.mark.timing
def test_large_body_whose_reply_never_comes_is_late_from_when_it_had_arrived(play, connect):
    """Not from when it was sent, which takes a while, nor from when something else was."""
    conn = connect(play({"put": b""}).uri, conn_timeout=1)
    began = monotonic()
    with pytest.raises(gstalk.CommandTimeoutError):
        conn.put("default", bytes(8_000_000))
    assert 1 <= monotonic() - began < 1.7


@pytest.mark.timing
def test_large_body_that_stays_in_the_kernel_is_late_from_its_last_byte_that_got_through(server, connect):
    """The kernel has taken all of it, which is no progress when the other side reads nothing."""
    with FaultProxy(server.uri) as proxy:
        conn = connect(proxy.uri, conn_timeout=1)
        proxy.stall("up")
        began = monotonic()
        with pytest.raises(gstalk.CommandTimeoutError):
            conn.put("default", bytes(600_000))
        assert 1 <= monotonic() - began < 1.7


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
    conn = connect(server.uri, conn_timeout=0.1)
    conn.watch(tube)
    for _ in range(5):
        conn.put(tube, b"x")
        job = conn.reserve()
        sleep(0.15)  # not gevent's
        CALLS[call](conn, job, tube)
        if not job.is_finished:
            job.delete()


# -- waking ----------------------------------------------------------------------------------------------------------


def test_raw_greenlet_that_dies_of_its_reply_keeps_no_other_from_theirs(monkeypatch):
    hub = gevent.get_hub()
    pipe = pipeline.Pipeline("beanstalk://here:11300", hub, None)
    first, second = Outcome(), Outcome()
    told: list[BaseException] = []
    monkeypatch.setattr(hub, "handle_error", lambda context, kind, error, traceback: told.append(error))

    def die() -> None:
        pipe.wait(first)
        raise ValueError

    hub.loop.run_callback(greenlet.greenlet(die, hub).switch)
    waiter = gevent.spawn(pipe.wait, second)
    gevent.sleep(0)
    first.succeed(1)
    second.succeed(2)
    pipe.complete(first)
    pipe.complete(second)
    assert waiter.get(timeout=5) == 2
    assert [type(error) for error in told] == [ValueError]


def test_signal_that_strikes_while_greenlets_are_woken_leaves_none_of_them_waiting(monkeypatch):
    hub = gevent.get_hub()
    pipe = pipeline.Pipeline("beanstalk://here:11300", hub, None)

    class Struck:
        def switch(self) -> None:
            raise ValueError

    def strike(*error: object) -> None:
        raise KeyboardInterrupt

    struck, call = Outcome(), Outcome()
    struck.waiter = Struck()
    waiter = gevent.spawn(pipe.wait, call)
    gevent.sleep(0)
    call.succeed(5)
    pipe.stream.done += [struck, call]
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(hub, "handle_error", strike)
        pipe._wake()
    struck.waiter = None
    assert waiter.get(timeout=5) == 5


def test_waiter_that_somebody_else_switches_to_goes_on_waiting():
    pipe = pipeline.Pipeline("beanstalk://here:11300", gevent.get_hub(), None)
    call = Outcome()
    waiter = gevent.spawn(pipe.wait, call)
    gevent.sleep(0)
    for _ in range(2):
        gevent.get_hub().loop.run_callback(waiter.switch)
        gevent.sleep(0)
    assert not waiter.ready()
    call.succeed(5)
    pipe.complete(call)
    assert waiter.get(timeout=5) == 5
    later = Outcome()
    waiter = gevent.spawn(pipe.wait, later)
    gevent.sleep(0)
    later.succeed(6)
    pipe.complete(later)
    assert waiter.get(timeout=5) == 6


def test_waiter_who_was_interrupted_is_not_switched_to():
    pipe = pipeline.Pipeline("beanstalk://here:11300", gevent.get_hub(), None)
    call = Outcome()
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
        pipe.wait(call)
    assert call.waiter is None
