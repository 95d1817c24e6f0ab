"""Stopping a Consumer: at any moment, from anywhere, in every way. What was reserved is finished or goes back."""

from __future__ import annotations

import random
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from time import monotonic
from typing import Any

import gevent
import pytest

import gstalk
from gstalk.testing import Beanstalkd, FaultProxy
from tests.faults.hub import silent_hub
from tests.faults.programs.running import Program
from tests.servers import wait_until
from tests.survival.work import WORKER, left_open

pytestmark = [pytest.mark.real, pytest.mark.slow]

GRACE = 2.0  # seconds beyond `stop_timeout` in which `receive` returns


# -- at random instants, under load --------------------------------------------------------------------------------


class Interrupt(Exception):
    """What a program of somebody else's throws into `receive`."""


class Load:
    """Jobs at some servers, a Consumer that works at them, and what became of each job."""

    def __init__(self, watchers: list[gstalk.Conn], rng: random.Random) -> None:
        self.watchers = watchers
        self.rng = rng
        self.put: set[tuple[str, int]] = set()
        self.deletes: Counter[tuple[str, int]] = Counter()
        self.called: list[
            gstalk.Job
        ] = []  # on which a delete was called: it is carried out, whoever is killed meanwhile
        self.handlers = 0  # that are in their work
        self.errors: list[tuple[BaseException, str]] = []

    def fill(self, jobs: int) -> None:
        """As many ready jobs at each server, with different priorities; for the priority is to survive, too."""
        for watcher in self.watchers:
            for _ in range(jobs - (watcher.stats().current_jobs_ready or 0)):
                self.put.add((watcher.uri, watcher.put("t", b"x" * self.rng.randrange(50), priority=len(self.put) % 7)))

    def handle(self, job: gstalk.Job) -> None:
        self.handlers += 1
        try:
            chance = self.rng.random()
            if chance < 0.3:
                gevent.sleep(0)
            elif chance < 0.5:
                gevent.sleep(self.rng.random() / 100)
            elif chance < 0.52:
                gevent.sleep(self.rng.random() * 3)
            if chance < 0.9:
                self.called.append(job)
                try:
                    job.delete()
                except (gstalk.JobFinishedError, gstalk.JobLostError):  # nothing was sent
                    self.called.remove(job)
                    raise
            elif chance < 0.95:
                job.release()
            else:
                raise gstalk.Retry(delay=0)
        finally:
            self.handlers -= 1

    def check(self) -> None:
        """Each job was deleted once or is ready; nothing is reserved, and nobody but us is connected."""
        self.deletes.update((job.uri, job.id) for job in self.called if job.is_finished)
        self.called.clear()
        ready = 0
        for watcher in self.watchers:
            stats = watcher.stats()
            assert (stats.current_jobs_reserved, stats.current_waiting) == (0, 0)
            assert (stats.current_jobs_buried, stats.current_jobs_delayed) == (0, 0)
            ready += stats.current_jobs_ready or 0
            wait_until(lambda: watcher.stats().current_connections == 1, 2)  # noqa: B023  # one may see a dial's end late
        assert self.handlers == 0
        assert set(self.deletes.values()) <= {1}
        assert ready == len(self.put) - len(self.deletes)


class Stop:
    """One `receive`, and how it was told to end."""

    def __init__(self, consumer: gstalk.Consumer, load: Load, longest: float) -> None:
        self.consumer, self.load, self.rng = consumer, load, load.rng
        self.timeout = self.rng.choice([0, 0.05, 0.5])
        self.limit = longest + GRACE
        self.told = False
        self.ways: dict[str, Callable[[], object]] = {
            "greenlet": self.stop,
            "hub": lambda: gevent.get_hub().loop.run_callback(self.stop),
            "signal handler": self.from_signal,
            "thread": lambda: threading.Thread(target=self.stop).start(),
            "twice": lambda: [self.consumer.stop(30), self.stop()],  # type: ignore[func-returns-value]
            "kill": lambda: self.receiver.kill(block=False),
            "timeout": lambda: self.receiver.kill(gevent.Timeout(60), block=False),
            "ctrl-c": lambda: self.receiver.kill(KeyboardInterrupt, block=False),
            "exception": lambda: self.receiver.kill(Interrupt, block=False),
        }
        self.receiver: Any = gevent.spawn(self.receive)

    def receive(self) -> None:
        with suppress(BaseException):  # what was thrown in comes out
            self.consumer.receive(self.handle)

    def handle(self, job: gstalk.Job) -> None:
        if self.told and self.rng.random() < 0.2:
            self.consumer.stop(0)
        self.load.handle(job)

    def stop(self) -> None:
        self.consumer.stop(self.timeout)

    def from_signal(self) -> None:
        before = signal.signal(signal.SIGUSR2, lambda *_: self.stop())
        signal.raise_signal(signal.SIGUSR2)
        signal.signal(signal.SIGUSR2, before)

    def run(self) -> tuple[str, float]:
        """Have it work for a moment, and end it. Returns in which way, and how long that took."""
        gevent.sleep(self.rng.choice([0, 0.001, 0.02, 0.1]) * self.rng.random())
        way = self.rng.choice(list(self.ways))
        self.told = True
        began = monotonic()
        self.ways[way]()
        if self.rng.random() < 0.3:
            gevent.sleep(self.rng.random() / 50)
            self.rng.choice(list(self.ways.values()))()
        self.receiver.get(timeout=30)
        took = monotonic() - began
        assert took < max(self.timeout, self.limit) + GRACE
        return way, took


@pytest.mark.soak
@pytest.mark.limit(240)
def test_stops_at_random_instants_under_load_leave_nothing(connect, rng, many, figures):
    """From another greenlet, a handler, the hub, a signal handler, a thread; by a kill, a Timeout and Ctrl-C; twice."""
    ways: Counter[str] = Counter()
    longest = 0.0
    with ExitStack() as stack, silent_hub():
        servers = [stack.enter_context(Beanstalkd()) for _ in range(3)]
        load = Load([connect(server.uri) for server in servers], rng)
        consumer: gstalk.Consumer | None = None
        for number in range(many(100, 1000)):
            load.fill(rng.choice([0, 5, 60]))
            if consumer is None or rng.random() < 0.5:  # else the second, third ... receive of the last one
                consumer = gstalk.Consumer(
                    [server.uri for server in rng.sample(servers, rng.choice([1, 2, 3]))],
                    "t",
                    multiply=rng.choice([1, 1, 3]),
                    num_greenlets=rng.choice([1, 2, 5, 20]),
                    auto_touch=rng.random() < 0.3,
                    stop_timeout=rng.choice([0, 0.3]),
                    info_func=lambda message: None,
                )
            before = left_open()
            stop = Stop(consumer, load, 0.3)
            way, took = stop.run()
            load.check()
            del stop
            assert left_open() <= before, (number, way)
            ways[way] += 1
            longest = max(longest, took)
        figures |= {"stops": ways.total(), **ways, "jobs": len(load.put), "longest": f"{longest:.2f} s"}


# -- at every line of its beginning --------------------------------------------------------------------------------


class Tracer:
    """Calls a function before one of the lines that gstalk runs in this greenlet, as a signal might.

    Args:
        number: Which line, counted from where `begin` is entered.
        begin: A function's name.
    """

    def __init__(self, number: int, begin: str, function: Callable[[], object]) -> None:
        self.number, self.begin, self.function = number, begin, function
        self.lines = 0
        self.begun = False

    def __enter__(self) -> None:
        sys.settrace(self.trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def trace(self, frame: Any, event: str, _: object) -> Any:
        if "/gstalk/" not in frame.f_code.co_filename:
            return None
        self.begun = self.begun or frame.f_code.co_name == self.begin
        if event == "line" and self.begun:
            self.lines += 1
            if self.lines == self.number:
                self.function()
        return self.trace


@pytest.mark.parametrize("turn", ["first", "second"])
def test_stop_at_any_line_of_receive_before_it_waits_ends_it(server, tube, turn):
    """A signal may come at any of them, and is not to be lost."""
    number, waits = 0, False
    while not waits:
        number += 1
        consumer = gstalk.Consumer(server.uri, tube)
        if turn == "second":
            gevent.spawn_later(0, consumer.stop)
            consumer.receive(lambda job: None)
        stopped = False

        def stop(consumer=consumer):
            nonlocal stopped
            stopped = True
            consumer.stop()

        def receive(consumer=consumer, number=number, stop=stop):
            # In a second one, a stop counts from where the last one's are forgotten.
            with Tracer(number, "receive" if turn == "first" else "__init__", stop):
                consumer.receive(lambda job: None)

        receiver = gevent.spawn(receive)
        gevent.sleep(0)
        waits = not stopped
        if waits:
            consumer.stop()
        receiver.get(timeout=5)
    assert number > 50


# -- servers and networks that are in trouble ----------------------------------------------------------------------


def holding(uris: Any, tube: str, **options: Any) -> tuple[gstalk.Consumer, Any, list[gstalk.Job]]:
    """A Consumer whose handlers hold what they get until they are killed; its `receive`; its jobs."""
    jobs: list[gstalk.Job] = []
    consumer = gstalk.Consumer(uris, tube, info_func=lambda message: None, **options)

    def handler(job: gstalk.Job) -> None:
        jobs.append(job)
        gevent.sleep(60)

    return consumer, gevent.spawn(consumer.receive, handler), jobs


@pytest.mark.timing
@pytest.mark.parametrize("where", ["handler", "idle"])
def test_stop_on_a_server_that_stalls_returns_within_its_time(own_server, connect, where):
    watcher = connect(own_server.uri)
    consumer, receiver, jobs = holding(own_server.uri, "t")
    assert consumer.wait_connected(5)
    if where == "handler":
        watcher.put("t", b"")
        wait_until(lambda: jobs)
    before = left_open()
    own_server.pause()
    try:
        began = monotonic()
        consumer.stop(0.3)
        receiver.get(timeout=10)
        assert monotonic() - began < 0.3 + GRACE
        now = left_open()
        assert now[0] < before[0]  # with its connection
        assert now[1] < before[1]
    finally:
        own_server.resume()
    wait_until(lambda: watcher.stats().current_jobs_reserved == 0)


def test_receive_interrupted_twice_while_a_server_stalls_leaves_nothing(own_server):
    consumer, receiver, _ = holding(own_server.uri, "t", conn_timeout=30)
    before = left_open()
    assert consumer.wait_connected(5)
    own_server.pause()
    try:
        for _ in range(2):
            receiver.kill(Interrupt, block=False)
            gevent.sleep(0.1)
        receiver.join(timeout=5)
        now = left_open()
        assert now[0] <= before[0]
        assert now[1] < before[1]
    finally:
        own_server.resume()


@pytest.mark.parametrize("handler", ["kept", "ended"])
def test_stop_while_a_wait_is_called_back_returns_when_the_server_has_let_go(
    connect, server, own_server, tube, handler
):
    """A job that the wait won on its way to the end is reserved until that is reached."""
    with FaultProxy(own_server.uri) as proxy:
        watcher, other = connect(), connect(own_server.uri)
        consumer, receiver, _ = holding([server.uri, proxy.uri], tube, num_greenlets=2)
        wait_until(lambda: watcher.stats_tube(tube).current_waiting and other.stats().current_waiting)
        proxy.stall()
        other.put(tube, b"won by the wait")
        assert other.stats().current_jobs_reserved == 1
        watcher.put(tube, b"starves for the other's permit")
        run: Any = consumer._run
        wait_until(lambda: any(source.recalled_at > 0 for source in run._asker._asking.sources))
        gevent.spawn_later(0.3, proxy.resume)
        before = left_open()
        consumer.stop(0 if handler == "ended" else 0.1)
        receiver.get(timeout=5)
        assert (watcher.stats_tube(tube).current_jobs_reserved, other.stats().current_jobs_reserved) == (0, 0)
        assert left_open()[1] <= before[1] - 2


# -- real signals, real processes ----------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.limit(240)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_at_random_instants_under_load_end_a_worker_and_leave_nothing(
    own_server, connect, rng, many, figures, number
):
    """SIGTERM is the program's own handler, which calls `stop`; SIGINT is gstalk's, which does so, too."""
    conn = connect(own_server.uri)
    rounds, put, longest = many(10, 200), 0, 0.0
    complaints: list[list[str]] = []
    for _ in range(rounds):
        put += len(conn.put_many("t", [b""] * rng.choice([10, 3000])))
        with Program(WORKER, "quick", own_server.uri, "t", "stop_timeout=1", "max_attempts=null") as program:
            assert program.read() == "begins"
            gevent.sleep(rng.random() * rng.choice([0.01, 0.2]))
            began = monotonic()
            program.process.send_signal(number)
            while (how := program.read())[0] not in ("KeyboardInterrupt", "returned"):
                complaints.append(how)
            longest = max(longest, monotonic() - began)
            code, said, errors = program.end()
        assert how == ["KeyboardInterrupt" if number == signal.SIGINT else "returned", 0, 0]
        assert (code, said, errors) == (0, [], "")
        stats = conn.stats()
        assert (stats.current_jobs_delayed, stats.current_jobs_buried) == (0, 0)
        assert (stats.cmd_delete or 0) + (stats.current_jobs_ready or 0) == put
    assert longest < 1 + GRACE
    assert complaints == []
    figures |= {"signals": rounds, "jobs": put, "longest": f"{longest:.2f} s"}
