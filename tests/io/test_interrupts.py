"""Ctrl-C while a Consumer receives: raised in a handler that computes, nowhere else; and what SIGINT had comes back."""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any

import gevent
import pytest

import gstalk
from gstalk.connection import interrupts
from gstalk.testing import Server
from tests.faults.programs.running import run
from tests.servers import wait_until

DEFAULT = signal.default_int_handler


@pytest.fixture(autouse=True)
def pythons_handler() -> Iterator[None]:
    assert signal.getsignal(signal.SIGINT) is DEFAULT
    yield
    found = signal.signal(signal.SIGINT, DEFAULT)
    assert found is DEFAULT


@pytest.fixture
def embedded() -> Iterator[Server]:
    with Server() as server:
        yield server


def press() -> bool:
    """Ctrl-C, here and now; what it returns has an expression go on."""
    signal.raise_signal(signal.SIGINT)
    return False


class Receiver:
    """A `receive` in a greenlet of its own, and what came out of it: gevent would throw Ctrl-C into the test."""

    def __init__(self, uri: str, handler: Any, tube: str = "t", **options: Any) -> None:
        self.errors: list[BaseException] = []
        given: dict[str, Any] = {"info_func": lambda message: None, "stop_timeout": 10}
        given["error_func"] = lambda error, message: self.errors.append(error)
        self.consumer = gstalk.Consumer(uri, tube, **{**given, **options})
        self._greenlet = gevent.spawn(self._receive, handler)
        assert self.consumer.wait_connected(5)

    def _receive(self, handler: Any) -> BaseException | None:
        try:
            self.consumer.receive(handler)
        except BaseException as error:
            return error
        return None

    def result(self, seconds: float = 5) -> BaseException | None:
        """What `receive` raised."""
        found: BaseException | None = self._greenlet.get(timeout=seconds)
        return found

    @property
    def is_over(self) -> bool:
        return bool(self._greenlet.ready())


def reserved_and_ready(uri: str) -> tuple[int | None, int | None]:
    with gstalk.dial(uri) as conn:
        stats = conn.stats()
        return stats.current_jobs_reserved, stats.current_jobs_ready


def put(uri: str, *bodies: bytes, priority: int = 1024) -> list[int]:
    with gstalk.dial(uri) as conn:
        return conn.put_many("t", bodies, priority=priority)


# -- where it strikes ----------------------------------------------------------------------------------------------


def generate() -> Iterator[None]:
    press()
    yield


class Pressing:
    def __init__(self) -> None:
        press()


def executed() -> None:
    """In code whose globals say nothing of a module."""
    exec("press()", {"press": signal.raise_signal, "SIGINT": signal.SIGINT} | {"press": press})


def killed() -> bool:
    os.kill(os.getpid(), signal.SIGINT)
    return False


COMPUTING: dict[str, Callable[[], object]] = {
    "function": press,
    "lambda": lambda: press(),
    "generator": lambda: list(generate()),
    "comprehension": lambda: [press() for _ in range(1)],
    "constructor": Pressing,
    "code without a module": executed,
    "called by a library": lambda: re.sub("x", lambda match: str(press()), "x"),
    "called by C": lambda: sorted([1, 2], key=lambda each: press() or each),
    "called by gevent": lambda: gevent.with_timeout(5, press),
    "sent by the system": lambda: killed() or sum(1 for _ in range(100000)),
}


@pytest.mark.parametrize("compute", COMPUTING.values(), ids=COMPUTING)
def test_ctrl_c_in_a_handler_that_computes_is_raised_there_and_its_job_is_released(embedded, compute):
    (job_id,) = put(embedded.uri, b"x", priority=7)
    hit: list[BaseException] = []

    def handler(job: gstalk.Job) -> None:
        try:
            compute()
        except BaseException as error:
            hit.append(error)
            raise
        job.delete()

    receiver = Receiver(embedded.uri, handler)
    result = receiver.result()
    assert [type(error) for error in hit] == [KeyboardInterrupt]
    assert result is hit[0]
    assert receiver.errors == []
    with gstalk.dial(embedded.uri) as conn:
        stats = conn.stats_job(job_id)
        assert (stats.state, stats.pri, stats.releases) == ("ready", 7, 1)


def put_some(job: gstalk.Job, uri: str) -> None:
    """The iterable is the program's, and is called in the middle of gstalk's work."""
    with gstalk.dial(uri) as conn:
        assert len(conn.put_many("other", (b"xy"[press() :] for _ in range(1)))) == 1


@pytest.mark.parametrize(
    "where",
    ["bodies", "event_func", "error_func", "given_up_func", "greenlet", "hub", "signal handler", "finalizer"],
)
def test_ctrl_c_elsewhere_is_raised_nowhere_and_stops_receive(embedded, where):
    """Handlers go on; and what was struck, too."""
    pressed: list[str] = []

    def press_once(*told: object) -> None:
        if not pressed and getattr(told[0] if told else None, "kind", "handling") == "handling":
            pressed.append(where)
            press()
            pressed.append("goes on")

    def handler(job: gstalk.Job) -> None:
        started.set()
        if job.body == b"fails":
            job.delete()
            raise ValueError
        if where == "given_up_func":
            raise gstalk.Retry  # no error; its job is then deleted, as the others
        go_on.wait()
        if where == "bodies":
            put_some(job, embedded.uri)
        job.delete()

    started, go_on = gevent.event.Event(), gevent.event.Event()
    put(embedded.uri, *[b"x", b"fails"][: 1 + (where == "error_func")])
    hooks: dict[str, Any] = {where: press_once} if where.endswith("func") else {}
    policy = gstalk.RetryPolicy(max_attempts=1, exhausted="delete")
    receiver = Receiver(embedded.uri, handler, retry=policy, **hooks)
    started.wait()
    if where == "greenlet":
        gevent.spawn(press_once).join()
    elif where == "hub":
        gevent.get_hub().loop.run_callback(press_once)
    elif where == "signal handler":
        before = signal.signal(signal.SIGUSR2, press_once)
        signal.raise_signal(signal.SIGUSR2)
        signal.signal(signal.SIGUSR2, before)
    elif where == "finalizer":
        Finalized(press_once)
    go_on.set()
    assert isinstance(receiver.result(), KeyboardInterrupt)
    assert pressed == ([] if where == "bodies" else [where, "goes on"])
    assert receiver.errors == []
    reserved, ready = reserved_and_ready(embedded.uri)
    assert (reserved, ready) == (0, 1 if where == "bodies" else 0)


class Finalized:
    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function

    def __del__(self) -> None:
        self.function()


def test_handler_that_swallows_everything_swallows_no_ctrl_c(embedded):
    def handler(job: gstalk.Job) -> None:
        with suppress(BaseException):
            press()
        job.delete()

    put(embedded.uri, b"x")
    receiver = Receiver(embedded.uri, handler)
    assert isinstance(receiver.result(), KeyboardInterrupt)
    assert (receiver.errors, reserved_and_ready(embedded.uri)) == ([], (0, 0))


def test_second_ctrl_c_ends_handlers_at_once_and_the_first_is_raised(embedded):
    """One that waits is killed; one that computes is hit."""
    first: list[BaseException] = []

    def handler(job: gstalk.Job) -> None:
        waiting.append(job)
        if job.body == b"computes":
            wait_until(lambda: len(waiting) == 2)
            try:
                press()
            except KeyboardInterrupt as error:
                first.append(error)
                raise
        gevent.sleep(60)

    waiting: list[gstalk.Job] = []
    put(embedded.uri, b"waits", b"computes", priority=7)
    receiver = Receiver(embedded.uri, handler, stop_timeout=None)
    wait_until(lambda: first)
    gevent.sleep(0.05)
    assert not receiver.is_over
    assert reserved_and_ready(embedded.uri) == (1, 1)
    press()
    assert receiver.result() is first[0]
    assert (receiver.errors, reserved_and_ready(embedded.uri)) == ([], (0, 2))


def test_second_ctrl_c_is_counted_also_where_both_hit_handlers(embedded):
    """The first handler's waits for nothing, and neither does the second's; a third one waits for ever."""
    hit: list[BaseException] = []
    running: list[gstalk.Job] = []

    def handler(job: gstalk.Job) -> None:
        running.append(job)
        wait_until(lambda: len(running) == 3)
        if job.body == b"waits":
            gevent.sleep(60)
        try:
            press()
        except KeyboardInterrupt as error:
            hit.append(error)
            raise

    put(embedded.uri, b"computes", b"computes", b"waits")
    receiver = Receiver(embedded.uri, handler, stop_timeout=None)
    assert receiver.result() is hit[0]
    assert len(hit) == 2
    assert (receiver.errors, reserved_and_ready(embedded.uri)) == ([], (0, 3))


def test_keyboard_interrupt_of_a_handlers_own_counts_as_ctrl_c_twice_too(embedded):
    def handler(job: gstalk.Job) -> None:
        running.append(job)
        wait_until(lambda: len(running) == 3)
        if job.body == b"waits":
            gevent.sleep(60)
        raise KeyboardInterrupt

    running: list[gstalk.Job] = []
    put(embedded.uri, b"raises", b"raises", b"waits")
    receiver = Receiver(embedded.uri, handler, stop_timeout=None)
    assert isinstance(receiver.result(), KeyboardInterrupt)
    assert (receiver.errors, reserved_and_ready(embedded.uri)) == ([], (0, 3))


@pytest.mark.timing
def test_idle_consumer_ends_within_milliseconds_of_ctrl_c(embedded):
    receiver = Receiver(embedded.uri, lambda job: None)
    gevent.sleep(0.1)
    began = monotonic()
    press()
    assert isinstance(receiver.result(), KeyboardInterrupt)
    assert monotonic() - began < 0.1


# -- programs that hold the hub ------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["greenlet", "event_func"])
def test_program_that_holds_the_hub_is_hit_by_a_ctrl_c_after_one_that_nobody_could_look_at(
    embedded, monkeypatch, where
):
    monkeypatch.setattr(interrupts, "HELD", 0.1)
    pressed: list[str] = []

    def hold(*_: object) -> None:
        if pressed:
            return
        press()
        press()  # in quick succession these may be one
        pressed.append("twice")
        end = monotonic() + 0.2
        while monotonic() < end:
            pass
        with pytest.raises(KeyboardInterrupt):
            press()
        pressed.append("raised")

    hooks: dict[str, Any] = {where: hold} if where == "event_func" else {}
    receiver = Receiver(embedded.uri, lambda job: job.delete(), **hooks)
    if where == "greenlet":
        gevent.spawn(hold).join()
    assert isinstance(receiver.result(), KeyboardInterrupt)
    assert pressed == ["twice", "raised"]


# -- whose handler is in place -------------------------------------------------------------------------------------


def test_pythons_handler_is_back_when_receive_is_over(embedded):
    receiver = Receiver(embedded.uri, lambda job: None)
    assert signal.getsignal(signal.SIGINT) is not DEFAULT
    receiver.consumer.stop()
    assert receiver.result() is None
    assert signal.getsignal(signal.SIGINT) is DEFAULT
    with pytest.raises(KeyboardInterrupt):
        press()


def test_several_receives_all_stop_and_the_last_one_restores(embedded):
    go_on = gevent.event.Event()

    def handler(job: gstalk.Job) -> None:
        go_on.wait()
        job.delete()

    put(embedded.uri, b"x")
    slow = Receiver(embedded.uri, handler)
    wait_until(lambda: reserved_and_ready(embedded.uri) == (1, 0))
    idle, stopped = (Receiver(embedded.uri, handler) for _ in range(2))
    stopped.consumer.stop()
    assert stopped.result() is None
    press()
    first = idle.result()
    assert isinstance(first, KeyboardInterrupt)
    assert not slow.is_over
    assert signal.getsignal(signal.SIGINT) is not DEFAULT
    go_on.set()
    second = slow.result()
    assert isinstance(second, KeyboardInterrupt)
    assert first is not second
    assert reserved_and_ready(embedded.uri) == (0, 0)


def test_ctrl_c_in_a_handler_stops_the_other_receives_too(embedded):
    idle = Receiver(embedded.uri, lambda job: None, "elsewhere")
    put(embedded.uri, b"x")
    hit = Receiver(embedded.uri, lambda job: press())
    results = hit.result(), idle.result()
    assert [type(result) for result in results] == [KeyboardInterrupt] * 2
    assert results[0] is not results[1]


def own(number: int, frame: object) -> None:
    """A program's own handler."""
    handled.append(number)


handled: list[int] = []


@contextmanager
def set_for_now(handler: Any) -> Iterator[None]:
    """A program's own handler of Ctrl-C; Python's is back afterwards."""
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, DEFAULT)


def ends_and_leaves(receiver: Receiver, handler: object) -> None:
    receiver.consumer.stop()
    assert receiver.result() is None
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("before", [own, signal.SIG_IGN, signal.SIG_DFL])
def test_other_handlers_are_left_alone(embedded, before):
    with set_for_now(before):
        receiver = Receiver(embedded.uri, lambda job: None)
        assert signal.getsignal(signal.SIGINT) is before
        handled.clear()
        if before is not signal.SIG_DFL:
            press()
        assert handled == [signal.SIGINT] * (before is own)
        gevent.sleep(0.05)
        assert not receiver.is_over
        ends_and_leaves(receiver, before)


def test_handler_that_is_set_while_receive_runs_stays(embedded):
    receiver = Receiver(embedded.uri, lambda job: None)
    with set_for_now(own):
        ends_and_leaves(receiver, own)


def test_program_that_puts_ours_back_when_receive_is_over_has_pythons_again(embedded):
    """As a debugger does, or a prompt: it keeps what it found, and sets it again later."""
    receiver = Receiver(embedded.uri, lambda job: None)
    found = signal.signal(signal.SIGINT, own)
    receiver.consumer.stop()
    assert receiver.result() is None
    signal.signal(signal.SIGINT, found)
    again = Receiver(embedded.uri, lambda job: None)
    press()
    assert isinstance(again.result(), KeyboardInterrupt)
    assert signal.getsignal(signal.SIGINT) is DEFAULT
    signal.signal(signal.SIGINT, found)
    with pytest.raises(KeyboardInterrupt):
        press()
    assert signal.getsignal(signal.SIGINT) is DEFAULT


def test_handler_that_passes_on_to_ours_works(embedded):
    """Some programs do their own, and then call what they found."""
    receiver = Receiver(embedded.uri, lambda job: None)
    found: Any = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, lambda number, frame: found(number, frame))
    try:
        press()
        assert isinstance(receiver.result(), KeyboardInterrupt)
    finally:
        signal.signal(signal.SIGINT, DEFAULT)


@pytest.mark.parametrize("when", ["before", "during"])
def test_handlers_of_gevent_are_left_alone(embedded, when):
    """`getsignal` knows nothing of them. In a process of its own: one process has one loop that hears of a signal."""
    assert run("gevent_handler", when, embedded.uri) == [{"heard": 3, "over": [False, False, True]}]


def test_receive_in_another_thread_touches_no_signals(embedded):
    seen: list[object] = []

    def in_thread(uri: str) -> None:
        consumer = gstalk.Consumer(uri, "t", info_func=lambda message: None)
        gevent.spawn_later(0.1, consumer.stop)
        gevent.spawn(lambda: seen.append(signal.getsignal(signal.SIGINT)))
        consumer.receive(lambda job: None)
        gevent.get_hub().destroy(destroy_loop=True)

    alone = threading.Thread(target=in_thread, args=(embedded.uri,))
    alone.start()
    wait_until(lambda: not alone.is_alive())
    assert seen == [DEFAULT]
    receiver = Receiver(embedded.uri, lambda job: None)
    beside = threading.Thread(target=in_thread, args=(embedded.uri,))
    beside.start()
    wait_until(lambda: not beside.is_alive())
    assert seen == [DEFAULT, signal.getsignal(signal.SIGINT)]
    assert len(interrupts._receiving) == 1
    press()
    assert isinstance(receiver.result(), KeyboardInterrupt)


def test_wakeup_descriptor_is_written_to(embedded):
    receiver = Receiver(embedded.uri, lambda job: None)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer)
    try:
        press()
        assert os.read(reader, 10) == bytes([signal.SIGINT])
    finally:
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)
    assert isinstance(receiver.result(), KeyboardInterrupt)


@contextmanager
def struck(number: int, *names: str) -> Iterator[list[str]]:
    """Ctrl-C before the nth line of these functions in the room about it."""
    where: list[str] = []
    count = 0

    def trace(frame: Any, event: str, _: object) -> Any:
        nonlocal count
        if frame.f_code.co_filename != interrupts.__file__ or frame.f_code.co_name not in names:
            return None
        if event == "line":
            count += 1
            if count == number:
                where.append(f"{frame.f_code.co_name}:{frame.f_lineno}")
                press()
        return trace

    sys.settrace(trace)
    try:
        yield where
    finally:
        sys.settrace(None)


def test_ctrl_c_at_any_line_of_the_exchange_itself_is_raised_and_pythons_handler_is_back():
    for number in range(1, 50):
        with struck(number, "__enter__", "__exit__", "_restore", "_is_pythons") as where:
            try:
                with interrupts.CtrlC():
                    pass
            except KeyboardInterrupt:
                assert where
            else:
                assert not where
        assert interrupts._receiving == []
        if signal.getsignal(signal.SIGINT) is not DEFAULT:  # it stands for Python's, and gives way
            with pytest.raises(KeyboardInterrupt):
                press()
        assert signal.getsignal(signal.SIGINT) is DEFAULT, where
        if not where:
            break
    assert number > 8


def test_ctrl_c_that_came_when_nobody_looked_any_more_is_raised():
    with pytest.raises(KeyboardInterrupt), interrupts.CtrlC():
        press()


def test_ctrl_c_that_is_over_is_in_no_cycle(embedded):
    """Its traceback holds frames, and these whatever they hold: it goes at once, without the collector."""

    def receive() -> None:
        with suppress(KeyboardInterrupt):
            gstalk.Consumer(embedded.uri, "t", info_func=lambda message: None).receive(lambda job: press())

    def left() -> int:
        return sum(type(each) is KeyboardInterrupt for each in gc.get_objects())

    put(embedded.uri, b"x")
    before = left()
    gc.disable()
    try:
        gevent.spawn(receive).join()
        gevent.sleep(0.01)
        assert left() == before
    finally:
        gc.enable()


# -- processes -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_child_forked_in_a_handler_has_pythons_handler(embedded):
    assert run("interrupted_child", embedded.uri) == ["hook: KeyboardInterrupt", "child: KeyboardInterrupt", "parent"]
