"""Who is inside of a hub's section, who is refused, who waits; and that nobody stays inside who is not any more.

That no step of gstalk is entered twice is for `tests/faults/test_entered_twice.py`.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent import get_hub, getcurrent
from gevent.event import Event
from gevent.exceptions import BlockingSwitchOutError

from gstalk.connection import critical as room
from gstalk.connection.critical import CriticalSection, critical, refusal, section_of
from tests.servers import wait_until


@pytest.fixture
def section() -> Iterator[CriticalSection]:
    """The hub's own, as everybody finds it."""
    section = section_of(get_hub())
    yield section
    assert (section.owner, section.is_hub_inside) == (None, False)


@critical
def inside(section: CriticalSection, call: Callable[[], object]) -> object:
    """A step that is interrupted by a call."""
    with section:
        return call()


# What a call of gstalk's looks like: a function of its own, critical or not, that waits until nobody is inside.
SOURCE = """
def enter(section):
    with section:
        return section.owner

def look(section):
    return section.is_free
"""


def gstalks(name: str, is_critical: bool = False) -> Callable[..., Any]:
    namespace: dict[str, Any] = {"__name__": "gstalk.pretended"}
    exec(SOURCE, namespace)
    return critical(namespace[name]) if is_critical else namespace[name]


# -- in and out --------------------------------------------------------------------------------------------------------


def test_greenlet_is_inside_until_it_leaves_also_by_an_exception(section):
    with section:
        assert section.owner is getcurrent()
    assert section.owner is None
    with pytest.raises(ValueError), section:
        raise ValueError
    assert section.owner is None


def test_hub_has_one_section_and_another_hub_another_one(section):
    assert section_of(get_hub()) is section
    others: list[CriticalSection] = []

    def in_thread() -> None:
        others.append(section_of(get_hub()))
        get_hub().destroy(destroy_loop=True)

    get_hub().threadpool.apply(in_thread)
    assert others[0] is not section


def test_section_does_not_keep_a_hub_that_has_ended():
    """Programs start and end threads by the thousand, each with a hub of its own."""

    class Hub:
        pass

    hub: Any = Hub()
    gone = weakref.ref(hub)
    section_of(hub)
    del hub
    gc.collect()
    assert gone() is None


def test_function_that_is_marked_is_the_same():
    def function() -> int:
        return 7

    assert critical(function) is function
    assert function() == 7


# -- the same greenlet -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_critical", [True, False])
def test_call_in_the_middle_of_a_step_is_refused_whether_it_is_a_step_itself_or_not(section, is_critical):
    """The frames on top are those of the call; behind them stand the program's, and behind those the step."""
    enter = gstalks("enter", is_critical)
    refused: list[BaseException] = []

    def handler() -> None:
        with pytest.raises(BlockingSwitchOutError) as caught:
            enter(section)
        refused.append(caught.value)

    inside(section, handler)
    assert [str(error) for error in refused] == [str(refusal())]
    assert enter(section) is getcurrent()  # and then it works


def test_refusal_says_what_to_do():
    assert str(refusal()) == (
        "gstalk was interrupted in the middle of a step, perhaps by a signal handler, and can't be called "
        "from there: spawn a greenlet for it"
    )


@pytest.mark.parametrize("is_critical", [True, False])
def test_greenlet_that_an_exception_struck_where_it_left_is_found_not_to_be_inside(section, is_critical):
    """The call that finds it out is a step itself, and does not take itself for the one that was struck."""
    section.owner = getcurrent()
    assert gstalks("enter", is_critical)(section) is getcurrent()
    assert section.owner is None


def test_handler_that_looks_in_the_middle_of_a_step_finds_somebody_inside(section):
    look = gstalks("look", True)
    assert inside(section, lambda: look(section)) is False
    assert look(section) is True


# -- others ------------------------------------------------------------------------------------------------------------


def sleeping_inside(section: CriticalSection) -> tuple[Any, Event]:
    """A greenlet whose signal handler sleeps in the middle of a step, and what wakes it."""
    event = Event()
    greenlet = gevent.spawn(inside, section, event.wait)
    gevent.sleep(0)
    assert section.owner is greenlet
    return greenlet, event


def test_greenlet_that_comes_while_another_one_is_inside_waits_until_it_has_left(section):
    sleeper, event = sleeping_inside(section)
    comer = gevent.spawn(gstalks("enter", True), section)
    gevent.sleep(0.01)
    assert (comer.ready(), section.is_free, section.owner) == (False, False, sleeper)
    event.set()
    assert comer.get(timeout=5) is comer
    sleeper.get(timeout=5)


def test_greenlet_that_is_interrupted_while_it_waits_leaves_the_one_inside_alone(section):
    sleeper, event = sleeping_inside(section)
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
        section.wait()
    assert section.owner is sleeper
    event.set()
    sleeper.get(timeout=5)


def test_greenlet_waits_with_one_timer_at_a_time_which_it_closes(section, monkeypatch):
    monkeypatch.setattr(room, "AGAIN", 0.001)
    hub = get_hub()
    timers: list[Any] = []

    class Loop:
        def timer(self, seconds: float) -> Any:
            assert all(timer.closed for timer in timers)
            timers.append(Timer(hub.loop.timer(seconds)))
            return timers[-1]

    class Timer:
        def __init__(self, timer: Any) -> None:
            self.timer, self.closed = timer, False

        def close(self) -> None:
            self.closed = True
            self.timer.close()

    class Hub:
        loop = Loop()

        def wait(self, timer: Timer) -> None:
            hub.wait(timer.timer)

    sleeper, event = sleeping_inside(section)
    monkeypatch.setattr(room, "get_hub", Hub)
    waiting = gevent.spawn(section.wait)
    wait_until(lambda: len(timers) > 2)
    waiting.kill()
    assert all(timer.closed for timer in timers)
    event.set()
    sleeper.get(timeout=5)


@pytest.mark.parametrize("kind", ["dead", "not begun", "elsewhere"])
def test_greenlet_that_has_left_without_saying_so_keeps_nobody_out(section, kind):
    owner = gevent.spawn(gevent.sleep, 60 if kind == "elsewhere" else 0)
    if kind != "not begun":
        gevent.sleep(0)
    if kind == "dead":
        owner.join()
    section.owner = owner
    assert section.is_free
    assert section.owner is None
    section.owner = owner
    with section:
        assert section.owner is getcurrent()
    owner.kill()


# -- the hub -----------------------------------------------------------------------------------------------------------


def test_interrupted_is_what_runs_in_the_middle_of_a_callback_in_the_hub_alone(section):
    seen: list[bool] = []

    def in_hub() -> None:
        seen.append(section.is_interrupted)
        section.is_hub_inside = True
        seen.append(section.is_interrupted)
        section.is_hub_inside = False

    get_hub().loop.run_callback(in_hub)
    gevent.sleep(0)
    section.is_hub_inside = True
    seen.append(section.is_interrupted)  # a greenlet that the callback has switched to
    section.is_hub_inside = False
    assert seen == [False, True, False]


def test_callback_in_the_hub_finds_a_greenlet_inside_and_that_it_has_left(section):
    sleeper, event = sleeping_inside(section)
    seen: list[bool] = []
    for _ in range(2):
        get_hub().loop.run_callback(lambda: seen.append(section.is_free))
        gevent.sleep(0)
        event.set()
        sleeper.join()
    assert seen == [False, True]
