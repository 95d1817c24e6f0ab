"""Greenlets that wait for what a connection answers: they are woken in the hub, none keeps another from its turn."""

from __future__ import annotations

from typing import Any

import gevent
import greenlet
import pytest
from gevent import get_hub
from gevent.exceptions import HubDestroyed

from gstalk.connection.waking import Waking
from gstalk.errors import NotFoundError
from gstalk.protocol.request import Outcome


def test_raw_greenlet_that_dies_of_its_reply_keeps_no_other_from_theirs(monkeypatch):
    hub = get_hub()
    pipe = Waking("beanstalk://here:11300", hub)
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


@pytest.mark.parametrize("kind", [KeyboardInterrupt, gevent.GreenletExit])
def test_signal_that_strikes_while_greenlets_are_woken_leaves_none_of_them_waiting(monkeypatch, kind):
    hub = get_hub()
    pipe = Waking("beanstalk://here:11300", hub)

    class Struck:
        def switch(self) -> None:
            raise ValueError

    def strike(*error: object) -> None:
        raise kind

    struck, call = Outcome(), Outcome()
    struck.waiter = Struck()
    waiter = gevent.spawn(pipe.wait, call)
    gevent.sleep(0)
    call.succeed(5)
    pipe.stream.done += [struck, call]
    with monkeypatch.context() as patched, pytest.raises(kind):
        patched.setattr(hub, "handle_error", strike)
        pipe._wake()
    struck.waiter = None
    assert waiter.get(timeout=5) == 5


def test_waiter_that_somebody_else_switches_to_goes_on_waiting():
    pipe = Waking("beanstalk://here:11300", get_hub())
    call = Outcome()
    waiter = gevent.spawn(pipe.wait, call)
    gevent.sleep(0)
    for _ in range(2):
        get_hub().loop.run_callback(waiter.switch)
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
    pipe = Waking("beanstalk://here:11300", get_hub())
    call = Outcome()
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
        pipe.wait(call)
    assert call.waiter is None


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
    hub = get_hub()
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


def waiting(pipe: Waking, call: Outcome) -> Any:
    """A greenlet that waits for it."""
    greenlet = gevent.spawn(pipe.wait, call)
    gevent.sleep(0)
    return greenlet


def test_wait_returns_a_result_that_is_there_already_without_a_switch():
    pipe, call = Waking("beanstalk://here:11300", get_hub()), Outcome()
    call.succeed(7)
    switched: list[bool] = []
    get_hub().loop.run_callback(switched.append, True)
    assert (pipe.wait(call), call.waiter, switched) == (7, None, [])


def test_wait_raises_the_error_once_and_the_call_keeps_it_not():
    pipe, call = Waking("beanstalk://here:11300", get_hub()), Outcome()
    waiter = waiting(pipe, call)
    error = NotFoundError("delete 7: no such job")
    call.fail(error)
    pipe.complete(call)
    with pytest.raises(NotFoundError) as caught:
        waiter.get(timeout=5)
    assert caught.value is error
    assert (call.error, call.waiter) == (None, None)


def test_what_is_completed_wakes_in_this_turn_of_the_loop_and_all_of_it_in_order():
    pipe, calls = Waking("beanstalk://here:11300", get_hub()), [Outcome() for _ in range(3)]
    woken: list[int] = []

    def wait(number: int) -> None:
        woken.append(pipe.wait(calls[number]))

    greenlets = [gevent.spawn(wait, number) for number in range(3)]
    gevent.sleep(0)
    for number in (2, 0, 1):
        calls[number].succeed(number)
        pipe.complete(calls[number])
    assert (woken, pipe._wake_due) == ([], True)  # not from here: whoever completes them is not to be switched away
    gevent.sleep(0)
    assert (woken, pipe._wake_due, pipe.stream.done) == ([2, 0, 1], False, [])
    gevent.joinall(greenlets, raise_error=True)


def test_what_is_completed_by_one_who_was_woken_is_woken_in_the_same_go():
    pipe, first, second = Waking("beanstalk://here:11300", get_hub()), Outcome(), Outcome()
    second_waiter = waiting(pipe, second)

    def wait_and_complete() -> None:
        pipe.wait(first)
        second.succeed("second")
        pipe.stream.done.append(second)

    first_waiter = gevent.spawn(wait_and_complete)
    gevent.sleep(0)
    first.succeed()
    pipe.stream.done.append(first)
    get_hub().loop.run_callback(pipe._wake)
    gevent.sleep(0)
    assert (first_waiter.ready(), second_waiter.value) == (True, "second")


def test_wake_that_is_due_already_is_not_asked_for_again(monkeypatch):
    pipe, asked = Waking("beanstalk://here:11300", get_hub()), []
    monkeypatch.setattr(Waking, "_wake", lambda self: asked.append(self))
    pipe._wake_soon()
    gevent.sleep(0)
    assert (asked, pipe._wake_due) == ([], False)  # there is nobody to tell
    for _ in range(3):
        pipe.complete(Outcome())
    gevent.sleep(0)
    assert asked == [pipe, pipe]  # twice: a signal may strike the first one before its first line


def test_end_of_the_hub_that_comes_while_greenlets_are_woken_is_its_own(monkeypatch):
    """Nobody is woken any more."""
    hub = get_hub()
    pipe, call = Waking("beanstalk://here:11300", hub), Outcome()

    class Struck:
        def switch(self) -> None:
            raise HubDestroyed(True)

    def strike(context: object, kind: object, error: BaseException, trace: object) -> None:
        raise error

    call.waiter = Struck()
    pipe.stream.done.append(call)
    with monkeypatch.context() as patched, pytest.raises(HubDestroyed):
        patched.setattr(hub, "handle_error", strike)
        pipe._wake()
    assert (pipe.stream.done, pipe._wake_due) == ([], False)
