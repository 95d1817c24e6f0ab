"""Worker processes that are started anew when they die: every way to end, and what follows. The test ends them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
from gevent.event import AsyncResult

from gstalk.cli import _generation
from gstalk.cli._generation import LONG, Generation, Plan
from gstalk.cli._load import WRONG
from gstalk.cli._worker import AGAIN
from tests.servers import wait_until

PAUSES = (0.0, 0.001, 0.002, 0.003)  # as short as shows the order


class Process:
    """Stands in for a `Child`."""

    def __init__(self, pid: int, on_loaded: Callable[[bool], object], on_ready: Callable[[], object]) -> None:
        self.pid = pid
        self.loaded = on_loaded
        self.ready = on_ready
        self.is_loaded = True
        self.signals: list[int] = []
        self._code: AsyncResult[int] = AsyncResult()

    def send_signal(self, number: int) -> None:
        self.signals.append(number)

    def wait(self) -> int:
        code: Any = self._code.get()  # its stubs allow for None
        assert isinstance(code, int)
        return code

    def end(self, code: int) -> None:
        self._code.set(code)


class World:
    """A generation, the processes that it has started, and a clock."""

    def __init__(self, number: int, burst: bool, is_trial: bool, grace: float) -> None:
        self.now = 0.0
        self.started: list[Process] = []
        self.said: list[str] = []
        self.on_start: Callable[[], object] = lambda: None
        plan = Plan(["command"], number, burst, grace)
        self.generation = Generation(plan, 0.5, self.said.append, lambda is_patched: None, is_trial)
        self.running = gevent.spawn(self.generation.run)

    def start(self, command: Any, period: float, on_loaded: Any, on_ready: Any) -> Process:
        assert (command, period) == (["command"], 0.5)
        self.on_start()
        self.started.append(Process(len(self.started) + 1, on_loaded, on_ready))
        return self.started[-1]

    def wait_started(self, number: int) -> Process:
        wait_until(lambda: len(self.started) == number)
        return self.started[-1]

    def settle(self) -> None:
        """Let all greenlets do what they can do now."""
        for _ in range(5):
            gevent.sleep(0)


Make = Callable[..., World]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    worlds: list[World] = []

    def begin(number: int = 1, burst: bool = False, is_trial: bool = False, grace: float = 1000) -> World:
        world = World(number, burst, is_trial, grace)
        monkeypatch.setattr(_generation, "Child", world.start)
        monkeypatch.setattr(_generation, "monotonic", lambda: world.now)
        monkeypatch.setattr(_generation, "PAUSES", PAUSES)
        worlds.append(world)
        return world

    with killing_timers():
        yield begin
        for world in worlds:
            world.generation.stop()
            for process in world.started:
                process.end(0)
            world.running.join(timeout=5)
            assert world.running.ready()


@contextmanager
def killing_timers() -> Iterator[None]:
    """Those that would kill what still runs after its grace: no test waits for so long."""
    spawned: list[Any] = []
    later = gevent.spawn_later

    def note(*args: Any) -> Any:
        spawned.append(later(*args))
        return spawned[-1]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gevent, "spawn_later", note)
        yield
        gevent.killall(spawned)


def test_process_that_dies_is_started_anew_after_pauses_that_grow(make, capfd):
    world = make()
    for number, code in enumerate((-9, 0, 1, 3), 1):
        world.wait_started(number).end(code)
    last = world.wait_started(5)
    world.now += LONG  # it is still a part of the series
    last.end(0)
    last = world.wait_started(6)
    world.now += LONG + 1
    last.end(0)
    world.wait_started(7).end(0)
    world.wait_started(8)
    assert capfd.readouterr().err.splitlines() == [
        "gstalk: process 1 was killed by signal 9; the next one starts in 0.001 s",
        "gstalk: process 2 ended with 0; the next one starts in 0.002 s",
        "gstalk: process 3 ended with 1; the next one starts in 0.003 s",
        "gstalk: process 4 ended with 3; the next one starts in 0.003 s",
        "gstalk: process 5 ended with 0; the next one starts in 0.003 s",
        "gstalk: process 6 ended with 0; the next one starts in 0 s",
        "gstalk: process 7 ended with 0; the next one starts in 0.001 s",
    ]
    assert world.said == [f"process {number} started" for number in range(1, 9)]
    assert (world.generation.codes, len(world.generation.children)) == ([], 1)


def test_pause_is_over_when_all_are_to_stop(make, monkeypatch):
    world = make()
    monkeypatch.setattr(_generation, "PAUSES", (0.0, 1000.0))
    world.wait_started(1).end(1)
    world.settle()
    world.generation.stop()
    world.running.join(timeout=5)
    assert world.running.ready()
    assert len(world.started) == 1


def test_process_that_wants_to_be_started_anew_is_so_at_once_and_counts_as_ready(make, capfd):
    world = make()
    for number in range(1, 6):
        world.wait_started(number).end(AGAIN)
    world.wait_started(6)
    assert world.generation.until_ready()
    assert capfd.readouterr().err == ""


def test_process_that_can_not_be_started_is_tried_again(make, capfd):
    world = make()
    world.on_start = lambda: None if world.started or world.said else fail()

    def fail() -> None:
        world.said.append("no")
        raise OSError(12, "Cannot allocate memory")

    world.wait_started(1)
    told = "a process that could not be started (Cannot allocate memory) ended with 1; the next one starts in 0.001 s"
    assert capfd.readouterr().err == f"gstalk: {told}\n"


def test_process_that_was_started_wrongly_stops_all(make):
    world = make(2)
    world.wait_started(2)
    other, wrong = world.started
    wrong.end(WRONG)
    wait_until(lambda: other.signals)
    assert other.signals == [signal.SIGTERM]
    other.end(0)
    world.running.join(timeout=5)
    assert (world.generation.codes, len(world.started)) == ([WRONG, 0], 2)


def test_burst_ends_when_each_process_has_ended_by_itself(make):
    world = make(3, burst=True)
    world.wait_started(3)
    world.started[0].end(0)
    world.started[1].end(1)
    world.started[2].end(-signal.SIGKILL)
    world.wait_started(4).end(0)
    world.running.join(timeout=5)
    assert (world.generation.codes, len(world.started)) == ([0, 1, 0], 4)
    assert world.generation.until_ready()  # each has done its part


@pytest.mark.parametrize(("code", "kept"), [(0, 0), (AGAIN, 0), (-signal.SIGTERM, 0), (1, 1), (3, 1), (-9, 1)])
def test_code_of_a_process_that_was_told_to_stop_says_whether_it_did(make, capfd, code, kept):
    world = make()
    process = world.wait_started(1)
    assert not world.generation.is_stopping
    world.generation.stop()
    assert world.generation.is_stopping
    process.end(code)
    world.running.join(timeout=5)
    assert (world.generation.codes, len(world.started)) == ([kept], 1)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("code", "kept"), [(1, 0), (-signal.SIGTERM, 0), (-9, 1)])
def test_process_that_was_told_to_stop_before_it_had_begun_has_failed_only_where_it_had_to_be_killed(make, code, kept):
    """Who hears a signal before there is a worker ends with 1: "interrupted", as each command does."""
    world = make()
    process = world.wait_started(1)
    process.is_loaded = False
    world.generation.stop()
    process.end(code)
    world.running.join(timeout=5)
    assert world.generation.codes == [kept]


def test_process_that_fails_before_it_has_begun_has_failed_where_nobody_told_it_to_stop(make):
    world = make(burst=True)
    process = world.wait_started(1)
    process.is_loaded = False
    process.end(1)
    world.running.join(timeout=5)
    assert world.generation.codes == [1]


def test_fault_of_ours_is_not_kept_back(make):
    world = make()

    def fail() -> None:
        raise ValueError

    world.on_start = fail
    with pytest.raises(ValueError):
        world.running.get(timeout=5)


def test_all_are_sent_a_signal(make):
    world = make(2)
    world.wait_started(2)
    world.generation.send(signal.SIGUSR1)
    assert [process.signals for process in world.started] == [[signal.SIGUSR1]] * 2


def test_what_still_runs_after_its_grace_is_killed(make, monkeypatch):
    world = make(grace=0.01)
    process = world.wait_started(1)
    world.generation.stop()
    assert process.signals == [signal.SIGTERM]
    wait_until(lambda: len(process.signals) > 1)
    assert process.signals == [signal.SIGTERM, signal.SIGKILL]
    monkeypatch.setattr(_generation, "AT_ONCE", 0.01)
    world.generation.end()
    wait_until(lambda: len(process.signals) > 3)
    assert process.signals[2:] == [signal.SIGQUIT, signal.SIGKILL]


def test_process_that_is_being_started_when_all_are_to_stop_is_told(make):
    world = make()
    world.on_start = world.generation.stop  # it is no process yet, and hears nothing of that
    process = world.wait_started(1)
    wait_until(lambda: process.signals)
    assert process.signals == [signal.SIGTERM]


def test_until_ready_waits_for_every_place(make):
    world = make(2)
    waiting = gevent.spawn(world.generation.until_ready)
    world.wait_started(2)
    world.started[0].ready()
    world.started[0].ready()
    world.settle()
    assert not waiting.ready()
    world.started[1].end(1)  # one that isn't an attempt may fail: the next one may be ready
    last = world.wait_started(3)
    world.settle()
    assert not waiting.ready()
    last.ready()
    assert waiting.get(timeout=5) is True


def test_until_ready_is_in_vain_when_all_are_to_stop(make):
    world = make()
    waiting = gevent.spawn(world.generation.until_ready)
    world.wait_started(1)
    world.generation.stop()
    assert waiting.get(timeout=5) is False


def test_attempt_has_failed_as_soon_as_a_process_fails(make, capfd):
    world = make(2, is_trial=True)
    waiting = gevent.spawn(world.generation.until_ready)
    world.wait_started(2)
    world.started[0].end(0)  # that is no failure
    world.wait_started(3)
    world.settle()
    assert not waiting.ready()
    world.started[1].end(3)
    assert waiting.get(timeout=5) is False
    world.settle()
    assert capfd.readouterr().err.splitlines()[1:] == ["gstalk: process 2 ended with 3"]
    assert len(world.started) == 3


def test_attempt_that_somebody_is_content_with_is_one_no_more(make):
    world = make(is_trial=True)
    process = world.wait_started(1)
    process.ready()
    assert world.generation.until_ready()
    world.generation.is_trial = False
    process.end(3)
    world.wait_started(2)
