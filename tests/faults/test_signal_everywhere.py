"""Ctrl-C is no switch: it may hit any line, also those that run in the hub. Nobody gets another's reply for that, and
nobody waits longer than `conn_timeout`.

A trace function raises where Python would raise from its signal handler: before a line, in whichever greenlet.
"""

from __future__ import annotations

import linecache
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent.event import Event

import gstalk
from gstalk.connection import pipeline
from gstalk.testing import Beanstalkd
from tests.servers import CUT, dial_in_time

pytestmark = [pytest.mark.real, pytest.mark.slow]

ROOMS = (
    "loop.py",
    "waking.py",
    "ending.py",
    "pipeline.py",
    "progress.py",
    "transport.py",
    "stream.py",
    "replies.py",
    "request.py",
    "channel.py",
    "connection.py",
    "reserving.py",
    "conn.py",
)


class Signal:
    """Raises KeyboardInterrupt before the line of that number, among those that gstalk runs in traced greenlets."""

    rooms: tuple[str, ...] = ROOMS

    def __init__(self, number: int) -> None:
        self.number = number
        self.lines = 0
        self.where = ""

    def trace(self, frame: Any, event: str, _: object) -> Any:
        path = frame.f_code.co_filename
        if "/gstalk/" not in path or not path.endswith(self.rooms):
            return None
        # Between a line's start and its call Python looks for no signal; here that would lose a switch.
        may_strike = linecache.getline(path, frame.f_lineno).strip() not in ("try:", "waiter.switch()")
        if event == "line" and may_strike and self.is_due(frame):
            self.where = f"{path.rpartition('/')[2]}:{frame.f_lineno} in {frame.f_code.co_name}"
            raise KeyboardInterrupt
        return self.trace

    def is_due(self, frame: Any) -> bool:
        """Whether the signal strikes before this line; counts it."""
        self.lines += 1
        return self.lines == self.number

    def run(self, calls: Sequence[Callable[[], object]]) -> list[Any]:
        """What each of these comes to, all called at the same time; the hub is traced, too."""
        in_hub(sys.settrace, self.trace)
        working: list[Any] = [gevent.spawn(self.watch, call) for call in calls]
        try:
            assert joined(working), f"somebody waits for ever after {self.where}"
        finally:
            in_hub(sys.settrace, None)
        return [greenlet.value for greenlet in working]

    def watch(self, function: Callable[..., object], *args: Any) -> object:
        """Call a function in a greenlet that is traced, to its end: `settrace(None)` ends that for all."""
        sys.settrace(self.trace)
        try:
            return function(*args)
        except (KeyboardInterrupt, gstalk.DisconnectedError, gstalk.ProtocolError, gstalk.JobLostError) as error:
            return error


def in_hub(function: Callable[..., object], *args: Any) -> None:
    """Call a function in the hub, and wait for that."""
    done = Event()
    loop = gevent.get_hub().loop
    loop.run_callback(function, *args)
    loop.run_callback(done.set)
    done.wait()


def joined(greenlets: list[Any]) -> bool:
    """Wait for all of them, though the signal may come out here: gevent throws what hits the hub into this greenlet.

    It then runs the hub's next callbacks at the next event, so there is a timer that makes one.
    """
    ticker = gevent.get_hub().loop.timer(0.005, 0.005)
    ticker.start(lambda: None)
    try:
        for _ in range(2):
            try:
                gevent.joinall(greenlets, timeout=5)
            except KeyboardInterrupt:
                continue
            break
    finally:
        ticker.close()
    return all(greenlet.ready() for greenlet in greenlets)


@pytest.fixture
def interrupted(server: Beanstalkd, rng: random.Random, many: Callable[[int, int], int]) -> Interrupted:
    return Interrupted(server.uri, lambda: many(rng.randrange(1, 40), 1))


class Interrupted:
    """Runs what greenlets do on a Conn again and again, with the signal at every line (every few, at random)."""

    def __init__(self, uri: str, step: Callable[[], int]) -> None:
        self.uri, self.step = uri, step
        self.lines = 0
        self.outcomes: Counter[str] = Counter()

    def runs(self, start: Callable[[gstalk.Conn], list[Callable[[], object]]]) -> Iterator[tuple[list[Any], str]]:
        """For each run: what each of the callables came to, which line was hit, and whether the Conn goes on."""
        while True:
            self.lines += self.step()
            signal = Signal(self.lines)
            with gstalk.dial(self.uri, conn_timeout=0.5) as conn:
                results = signal.run(start(conn))
                self.outcomes.update(type(result).__name__ for result in results)
                if conn.is_connected:
                    with gevent.Timeout(5, AssertionError(f"the connection is stuck after {signal.where}")):
                        assert conn.stats().current_connections
            yield results, signal.where
            if not signal.where:
                return


@pytest.mark.soak
def test_ctrl_c_at_any_line_of_puts_gives_nobody_anothers_id(interrupted, other, tube, figures):
    """Nor does anybody wait for ever, and the Conn goes on or is broken, but is never out of step."""

    def start(conn: gstalk.Conn) -> list[Callable[[], object]]:
        return [partial(conn.put, f"{tube}-{n % 2}", b"%d" % n) for n in range(8)]

    for results, where in interrupted.runs(start):
        for n, result in enumerate(results):
            if isinstance(result, int):
                assert other.peek(result).body == b"%d" % n, where
    figures |= {"lines": interrupted.lines, **interrupted.outcomes}


@pytest.mark.soak
def test_ctrl_c_at_any_line_of_releases_leaves_nobody_waiting(interrupted, other, tube, figures):
    """Each takes two steps, and the second one has no place in line while the first is answered."""
    jobs: list[gstalk.Job] = []

    def start(conn: gstalk.Conn) -> list[Callable[[], object]]:
        jobs[:] = []
        for _ in range(3):
            conn.put(tube, b"x")
        conn.watch(tube)
        conn.ignore("default")
        jobs.extend(conn.reserve() for _ in range(3))
        return [job.release for job in jobs]

    for results, where in interrupted.runs(start):
        for result, job in zip(results, jobs, strict=True):
            if not isinstance(result, KeyboardInterrupt):
                assert job.is_finished or job.is_lost, where
        while job := other.reserve_with_timeout(0):
            job.delete()
    figures |= {"lines": interrupted.lines, **interrupted.outcomes}


def test_job_goes_back_where_ctrl_c_strikes_a_reserve_as_it_returns(server, other, tube):
    """It has come, and its caller has been wakened, but nobody has it yet."""

    class AsItReturns(Signal):
        def is_due(self, frame: Any) -> bool:
            has_come = any(isinstance(getattr(each, "result", None), gstalk.Job) for each in frame.f_locals.values())
            return has_come and not self.where and gevent.getcurrent() is not gevent.get_hub()

    other.put(tube, b"x")
    other.watch(tube)
    with gstalk.dial(server.uri) as conn:
        conn.watch(tube)
        [result] = AsItReturns(0).run([partial(conn.reserve_with_timeout, 5)])
        assert isinstance(result, KeyboardInterrupt)
        assert other.reserve_with_timeout(5) is not None


def close_twice(conn: gstalk.Conn) -> None:
    """A close that Ctrl-C struck may have done nothing yet."""
    try:
        conn.close()
    finally:
        conn._connection.cut()


@pytest.mark.soak
@pytest.mark.parametrize("end", [CUT, b"WHAT\r\n", b""], ids=["cut", "broken protocol", "closed"])
def test_ctrl_c_at_any_line_of_a_connections_end_leaves_nobody_waiting(end, play, rng, many, figures, monkeypatch):
    """Those with commands in flight, in line for a job, and in line for room; no time limit would wake them."""
    monkeypatch.setattr(pipeline, "MAX_BYTES", 60)  # so the last ones wait for room
    seen: set[str] = set()
    lines = 0
    while True:
        lines += many(rng.randrange(1, 20), 1)
        signal = Signal(lines)
        answers = {"put": [b"INSERTED 1\r\n", b"INSERTED 2\r\n", end], "reserve-with-timeout": b"TIMED_OUT\r\n"}
        with gstalk.dial(play(answers).uri, conn_timeout=None) as conn:
            calls: list[Callable[[], object]] = [partial(conn.put, "t", b"%d" % n) for n in range(6)]
            calls += [conn.reserve, conn.reserve]
            if not end:  # the server says nothing
                calls.append(partial(close_twice, conn))
            signal.run(calls)
            assert not conn.is_connected, signal.where
        seen.add(signal.where.rpartition(" ")[2])
        if not signal.where:
            break
    assert lines > 300
    if many(0, 1):  # each line was struck
        assert {"_finish", "fail", "_failed", "end"} <= seen
    figures["lines"] = lines


def test_ctrl_c_in_the_look_at_progress_leaves_nobody_waiting(play):
    """It ends the connection; else nothing would look again."""
    looks = ("_on_timer", "_time_left", "time_left")

    class LookSignal(Signal):
        def trace(self, frame: Any, event: str, argument: object) -> Any:
            return super().trace(frame, event, argument) if frame.f_code.co_name in looks else None

    for number in range(1, 100):
        signal = LookSignal(number)
        with dial_in_time(play({"put": b""}).uri, 0.05) as conn:
            putting = gevent.spawn(signal.watch, conn.put, "t", b"x")
            in_hub(sys.settrace, signal.trace)
            try:
                assert joined([putting]), signal.where
            finally:
                in_hub(sys.settrace, None)
            assert isinstance(putting.value, gstalk.DisconnectedError), signal.where
        if not signal.where:
            break
    assert number > 10


@pytest.mark.timing
def test_reader_that_gevent_has_stopped_starts_again(server):
    """gevent stops a watcher whose callback raised, also where it was struck before the first line of ours."""
    with gstalk.dial(server.uri, conn_timeout=0.3) as conn:
        conn._connection.pipe._reader.stop()
        assert conn.put("default", b"x", delay=1000)  # read when it is nearly too late
        began = monotonic()
        for _ in range(10):
            assert conn.put("default", b"x", delay=1000)
        assert monotonic() - began < 0.25
