"""Ctrl-C at any line, and at any instant, of a busy Consumer: no handler loses its job, and no connection ends.

A trace function calls the handler of SIGINT that is in place, with the frame that is about to run, as Python would.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import greenlet
import pytest

import gstalk
from gstalk.connection import interrupts
from tests.cli.terminal import Terminal
from tests.faults.programs.running import Program
from tests.servers import wait_until
from tests.survival.work import WORKER

pytestmark = [pytest.mark.real, pytest.mark.slow]

GSTALK = str(Path(gstalk.__file__).parent)
JOBS = 12
PROGRAM = "tests.faults.programs.interrupted"


class Strikes:
    """Ctrl-C before the lines of these numbers, among those that gstalk runs in any greenlet while it receives."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers
        self.lines = 0
        self.where: list[str] = []
        self.raised: list[str] = []

    def trace(self, frame: Any, event: str, _: object) -> Any:
        path = frame.f_code.co_filename
        if not path.startswith(GSTALK) or path.startswith(f"{GSTALK}/testing/"):
            return None
        if event == "line" and (press := self.handler()) is not None:
            self.lines += 1
            if self.lines in self.numbers:
                self.where.append(f"{path.removeprefix(GSTALK)}:{frame.f_lineno} in {frame.f_code.co_name}")
                try:
                    press(signal.SIGINT, frame)
                except KeyboardInterrupt:
                    self.raised.append(self.where[-1])
        return self.trace

    def handler(self) -> Any:
        """What Ctrl-C calls, while that is gstalk's and for somebody; else it is Python's matter."""
        return signal.getsignal(signal.SIGINT) if interrupts._receiving else None

    @contextmanager
    def in_all_greenlets(self) -> Iterator[None]:
        """Tracing is each greenlet's own matter before Python 3.12, and each frame's: so at each switch it is set."""

        def switched(event: str, greenlets: object) -> None:
            frame: Any = sys._getframe()
            while frame is not None:
                if frame.f_code.co_filename.startswith(GSTALK):
                    frame.f_trace = self.trace
                frame = frame.f_back
            sys.settrace(self.trace)

        before = greenlet.settrace(switched)
        sys.settrace(self.trace)
        try:
            yield
        finally:
            greenlet.settrace(before)
            sys.settrace(None)
            done = gevent.event.Event()  # the hub's own end of tracing
            gevent.get_hub().loop.run_callback(sys.settrace, None)
            gevent.get_hub().loop.run_callback(done.set)
            done.wait()


class Busy:
    """A Consumer at work at a few jobs, struck at some of its lines."""

    def __init__(self, uri: str, strikes: Strikes, nap: float = 0, **options: Any) -> None:
        self.strikes, self.nap = strikes, nap
        self.began, self.ended = 0, 0
        self.told: list[object] = []
        given: dict[str, Any] = {"num_greenlets": 3, "info_func": self.told.append, "stop_timeout": 5}
        given["retry"] = gstalk.RetryPolicy(max_attempts=10**6)  # the first jobs see a stop again and again
        given["error_func"] = lambda error, message: self.told.append((error, message))
        self.consumer = gstalk.Consumer(uri, "t", **{**given, **options})

    def handle(self, job: gstalk.Job) -> None:
        self.began += 1
        if job.id % 3 == 0:
            gevent.sleep(self.nap)
        elif job.id % 3 == 1:
            job.touch()
        job.delete()
        self.ended += 1
        if self.ended == JOBS:
            self.consumer.stop()

    def receive(self) -> BaseException | None:
        try:
            self.consumer.receive(self.handle)
        except BaseException as error:
            return error
        return None

    def run(self) -> BaseException | None:
        with self.strikes.in_all_greenlets():
            receiving = gevent.spawn(self.receive)
            result: BaseException | None = receiving.get(timeout=10)
        return result


def fill(conn: gstalk.Conn, jobs: int) -> int:
    """Have so many jobs ready; how many that took."""
    return len(conn.put_many("t", [b""] * (jobs - (conn.stats().current_jobs_ready or 0))))


@pytest.mark.soak
@pytest.mark.limit(1200)
@pytest.mark.parametrize("listens", [False, True], ids=["silent", "with events"])
def test_ctrl_c_at_any_line_of_a_busy_consumer_costs_no_handler_its_job(
    own_server, connect, rng, many, figures, listens
):
    """It stops: what has begun ends well, all else is ready, and nothing is told of."""
    conn = connect(own_server.uri)
    options: dict[str, Any] = {"event_func": lambda event: None} if listens else {}
    line, runs, deleted = 0, 0, 0
    while True:
        line += rng.randrange(1, many(320, 12))
        runs += 1
        fill(conn, JOBS)
        strikes = Strikes(line)
        busy = Busy(own_server.uri, strikes, **options)
        result = busy.run()
        where = strikes.where
        assert strikes.raised == []
        assert isinstance(result, KeyboardInterrupt) == bool(where), where
        assert busy.began == busy.ended, where
        assert busy.told == [], where
        stats = conn.stats()
        deleted += busy.ended
        assert stats.cmd_delete == deleted, where
        assert (stats.current_jobs_reserved, stats.current_jobs_ready) == (0, JOBS - busy.ended), where
        assert (stats.current_jobs_delayed, stats.current_jobs_buried) == (0, 0), where
        if not where:
            break
    assert line > 1000
    figures |= {"lines": line, "runs": runs}


@pytest.mark.soak
@pytest.mark.limit(1200)
def test_second_ctrl_c_at_any_line_gives_back_what_handlers_have_not_finished(own_server, connect, rng, many, figures):
    """Some are killed where they wait, and nothing is told of: each job is deleted or ready."""
    conn = connect(own_server.uri)
    put, killed = 0, 0
    for _ in range(many(30, 1000)):
        put += fill(conn, JOBS)
        first = rng.randrange(1, 7000)
        strikes = Strikes(first, first + rng.randrange(1, 600))
        busy = Busy(own_server.uri, strikes, nap=rng.choice([0, 0.01, 0.5]), stop_timeout=None)
        result = busy.run()
        where = strikes.where
        assert strikes.raised == []
        assert isinstance(result, KeyboardInterrupt) == bool(where), where
        assert busy.told == [], where
        killed += busy.began - busy.ended
        stats = conn.stats()
        assert (stats.current_jobs_reserved, stats.current_jobs_delayed, stats.current_jobs_buried) == (0, 0, 0), where
        assert (stats.current_jobs_ready or 0) + (stats.cmd_delete or 0) == put, where
    assert killed
    figures |= {"jobs": put, "handlers killed": killed}


# -- real signals, real processes ----------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.limit(300)
@pytest.mark.parametrize("part", range(5))  # of the rounds: each ends within the time that a test may take
def test_ctrl_c_at_random_instants_under_full_load_costs_no_handler_its_job(
    own_server, connect, rng, many, figures, part
):
    """Each delete that was called is carried out, no handler hears of a loss, and each job is deleted or ready."""
    conn = connect(own_server.uri)
    rounds, put, longest = many(1, 100), 0, 0.0
    for _ in range(rounds):
        put += fill(conn, 5000)
        with Program(WORKER, "quick", own_server.uri, "t", "stop_timeout=5", "max_attempts=null") as program:
            assert program.read() == "begins"
            wait_until(lambda: conn.stats().current_jobs_reserved)
            gevent.sleep(rng.random() * 0.05)
            began = monotonic()
            program.process.send_signal(signal.SIGINT)
            assert program.read() == ["KeyboardInterrupt", 0, 0]  # anything else would be an error that a handler met
            longest = max(longest, monotonic() - began)
            assert program.end() == (0, [], "")
        stats = conn.stats()
        assert (stats.current_jobs_delayed, stats.current_jobs_buried) == (0, 0)
        assert (stats.cmd_delete or 0) + (stats.current_jobs_ready or 0) == put
    figures |= {"rounds": rounds, "jobs": put, "longest": f"{longest:.2f} s"}


@pytest.mark.parametrize("handler", ["idle", "waits", "computes"])
@pytest.mark.parametrize("flags", [(), ("-X", "faulthandler"), ("-O", "-X", "dev"), ("-c",)], ids=" ".join)
def test_ctrl_c_from_a_keyboard_ends_a_program_as_python_does(own_server, connect, handler, flags):
    """With the traceback of a KeyboardInterrupt, and by the signal, as shells expect it."""
    conn = connect(own_server.uri)
    job_id = None if handler == "idle" else conn.put("t", b"", priority=7)
    start = ["-c", f"import {PROGRAM}"] if flags == ("-c",) else [*flags, "-m", PROGRAM]
    with Terminal([sys.executable, *start, handler, own_server.uri], lines=60, columns=200) as terminal:
        terminal.wait_for("begins" if handler == "idle" else handler)
        terminal.type("\x03")
        if handler == "waits":
            terminal.wait_for("^C")
            gevent.sleep(0.2)
            assert terminal.process.poll() is None  # it stops politely
            terminal.type("\x03")
        assert terminal.finish() == -signal.SIGINT
        said = terminal.picture.text
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert said.count("Traceback") == 1
    assert "hub" not in said.rpartition("Traceback")[0]  # nothing was struck there, and gevent complains of nothing
    stats = conn.stats()
    assert (stats.current_jobs_reserved, stats.current_jobs_ready) == (0, int(job_id is not None))
    if job_id is not None:
        assert (conn.stats_job(job_id).pri, conn.stats_job(job_id).releases) == (7, 1)
