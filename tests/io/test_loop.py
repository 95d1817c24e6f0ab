"""What runs in the hub: when, once or again, and what becomes of it when an exception strikes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent import get_hub, getcurrent, socket

from gstalk.connection.critical import critical, section_of
from gstalk.connection.loop import InHub, fail_stop, wake
from gstalk.protocol.request import Outcome
from tests.servers import wait_until


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What leaves callbacks, which gevent would print."""
    errors: list[Any] = []
    monkeypatch.setattr(get_hub(), "print_exception", lambda context, kind, error, trace: errors.append(error))
    return errors


@pytest.fixture
def room() -> Iterator[Room]:
    room = Room()
    yield room
    for each in room.ends:
        each.close()


class Room(InHub):
    """Something with callbacks, and a descriptor that is ready."""

    def __init__(self) -> None:
        self.ends = socket.socketpair()
        self.ends[1].send(b"x")
        self.hub = get_hub()
        self.section = section_of(self.hub)
        self.errors: list[BaseException] = []
        self.called: list[Any] = []

    def struck(self, error: BaseException) -> None:
        self.errors.append(error)

    def note(self, *what: Any) -> None:
        self.called.append((getcurrent() is self.hub, self.section.is_hub_inside, *what))

    @fail_stop
    def break_down(self) -> None:
        raise KeyboardInterrupt


def begin(room: Room, way: str, callback: Callable[[], object]) -> None:
    """Have it called in a way, once: whatever would call it again is closed by it."""
    handles: list[Any] = []

    def call() -> None:
        for handle in handles:
            handle.close()
        callback()

    if way == "soon":
        room.soon(call)
    elif way == "once":
        handles.append(room.once(0.001, call))
    else:
        handles.append(room.hub.loop.io(room.ends[0].fileno(), 1, ref=False))
        handles[0].start(room.run, call)


WAYS = ["soon", "once", "watch"]


@pytest.mark.parametrize("way", WAYS)
def test_callback_runs_in_the_hub_and_is_known_to_be_under_way(way, room):
    begin(room, way, room.note)
    wait_until(lambda: room.called)
    gevent.sleep(0.01)
    assert room.called == [(True, True)]
    assert not room.section.is_hub_inside


@pytest.mark.parametrize("way", WAYS)
def test_callback_is_put_off_while_a_greenlet_is_inside_the_section(way, room):
    @critical
    def inside() -> None:
        with room.section:
            begin(room, way, room.note)
            gevent.sleep(0.01)  # as a signal handler may, in the middle of our lines
            assert room.called == []

    gevent.spawn(inside).get()
    wait_until(lambda: room.called)
    assert room.called == [(True, True)]


@pytest.mark.parametrize("way", WAYS)
def test_exception_that_strikes_a_callback_ends_what_it_belongs_to(way, room, told):
    error = ValueError("struck")

    def callback() -> None:
        raise error

    begin(room, way, callback)
    wait_until(lambda: room.errors)
    assert room.errors == told == [error]
    assert not room.section.is_hub_inside


def test_timer_that_nobody_closes_comes_once(room):
    room.once(0.001, room.note, "once")
    wait_until(lambda: room.called)
    gevent.sleep(0.01)
    assert room.called == [(True, True, "once")]


def test_timer_that_is_closed_does_not_come(room):
    room.once(0.001, room.note).close()
    gevent.sleep(0.01)
    assert room.called == []


def test_timer_that_is_struck_before_its_first_line_comes_again(room, told, monkeypatch):
    run = Room.run
    strikes = [KeyboardInterrupt()]

    def struck(self: Room, *args: Any) -> None:
        if strikes:
            raise strikes.pop()
        run(self, *args)

    monkeypatch.setattr(Room, "run", struck)
    monkeypatch.setattr(get_hub(), "handle_error", lambda context, kind, error, trace: told.append(error))
    room.once(0.001, room.note)
    wait_until(lambda: room.called)
    assert room.called == [(True, True)]
    assert [type(error) for error in told] == [KeyboardInterrupt]


def test_fail_stop_tells_whom_an_exception_has_struck_and_lets_it_pass(room):
    with pytest.raises(KeyboardInterrupt):
        room.break_down()
    assert [type(error) for error in room.errors] == [KeyboardInterrupt]


def test_wake_is_over_for_the_hub_where_the_greenlet_goes_on_and_until_it_waits_again(room):
    outcome = Outcome()
    seen: list[bool] = []

    def waiter() -> None:
        outcome.waiter = getcurrent()
        get_hub().switch()
        seen.append(room.section.is_hub_inside)

    greenlet = gevent.spawn(waiter)
    gevent.sleep(0)

    def callback() -> None:
        wake(room.section, outcome)
        room.note()

    room.soon(callback)
    greenlet.join()
    wait_until(lambda: room.called)
    assert seen == [False]
    assert room.called == [(True, True)]
