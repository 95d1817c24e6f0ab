"""Which connections a Consumer asks for jobs, and how often: several servers, idleness, DEADLINE_SOON."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from inspect import unwrap
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent import get_hub, getcurrent
from gevent.event import Event
from gevent.pool import Group

import gstalk
from gstalk.config import Config
from gstalk.connection.hooks import Hooks
from gstalk.pool.asking import Asker
from gstalk.pool.permits import NEVER, Asking, Decision
from gstalk.pool.schedule import WatchList
from gstalk.testing import Beanstalkd
from tests.io.striking import Strike
from tests.servers import wait_until

pytestmark = pytest.mark.real


def test_deadline_soon_is_no_error_and_asks_little(own_server, work, connect):
    conn = connect(own_server.uri)
    done = []

    def handler(job):
        gevent.sleep(0.9)
        job.delete()
        done.append(job.id)

    conn.put("t", b"", ttr=1)
    worker = work(handler, own_server.uri, "t")
    wait_until(lambda: done)
    assert worker.errors == []
    assert int(conn.stats().cmd_reserve_with_timeout or 0) < 60


@pytest.mark.parametrize("refusal", [b"OUT_OF_MEMORY\r\n", b"INTERNAL_ERROR\r\n"])
def test_server_that_refuses_to_reserve_is_not_asked_without_a_pause(play, work, refusal):
    """Each refusal is told of, and one that comes at once would be told of a thousand times a second."""
    played = play({"reserve-with-timeout": refusal})
    worker = work(lambda job: job.delete(), played.uri, "default")
    wait_until(lambda: len(worker.errors) >= 3)
    gevent.sleep(0.5)
    assert len(worker.errors) <= 8


def test_job_whose_connection_is_held_comes_through_another(work, conn, tube):
    """While a handler holds a job on the only connection, other jobs are still taken quickly."""
    gate, quick = Event(), []

    def handler(job):
        if job.body == b"slow":
            gate.wait()
        else:
            quick.append(time.monotonic())
        job.delete()

    work(handler)
    conn.put(tube, b"slow")
    wait_until(lambda: conn.stats_tube(tube).current_jobs_reserved == 1)
    gevent.sleep(0.3)
    began = time.monotonic()
    conn.put(tube, b"quick")
    wait_until(lambda: quick)
    assert quick[0] - began < 0.05 + 1
    gate.set()


def test_several_servers_all_are_worked_off_one_of_them_down(work, own_server, server, conn, tube):
    with Beanstalkd() as third:
        own_server.kill()
        got = []

        def handler(job):
            job.delete()
            got.append(job.uri)

        work(handler, [server.uri, own_server.uri, third.uri])
        with gstalk.dial(third.uri) as other:
            conn.put_many(tube, [b""] * 50)
            other.put_many(tube, [b""] * 50)
            wait_until(lambda: len(got) == 100)
            assert got.count(server.uri) == 50


@pytest.mark.slow
def test_several_servers_one_busy_does_not_starve_the_other(work, own_server, server, connect, conn, tube):
    other = connect(own_server.uri)
    got: list[tuple[str, float]] = []

    def handler(job):
        gevent.sleep(0.02)
        job.delete()
        got.append((job.uri, time.monotonic()))

    conn.put_many(tube, [b""] * 600)
    work(handler, [server.uri, own_server.uri], num_greenlets=4)
    wait_until(lambda: len(got) > 20)
    began = time.monotonic()
    other.put(tube, b"")
    wait_until(lambda: own_server.uri in [uri for uri, _ in got])
    assert next(when for uri, when in got if uri == own_server.uri) - began < 1.5


@pytest.mark.slow
def test_one_busy_handler_leaves_other_servers_their_waits(work, connect):
    """With as many handlers as servers: two are asked in turn with the permit that is left, and costs one dial."""
    with ExitStack() as stack:
        conns = [connect(stack.enter_context(Beanstalkd()).uri) for _ in range(4)]
        gate = Event()

        def handler(job):
            gate.wait()
            job.delete()

        def total(name: str) -> int:
            return sum(getattr(conn.stats(), name) for conn in conns)

        worker = work(handler, [conn.uri for conn in conns], "t", num_greenlets=4)
        wait_until(lambda: total("current_waiting") == 4)
        before = total("total_connections")
        conns[0].put("t", b"")
        wait_until(lambda: total("current_waiting") == 2)
        asked = total("cmd_reserve_with_timeout")
        for _ in range(10):
            gevent.sleep(0.1)  # nothing is to happen: there is no event to wait for
            assert total("current_waiting") == 2
        assert total("cmd_reserve_with_timeout") - asked < 60
        assert total("total_connections") - before == 1
        gate.set()
        wait_until(lambda: total("current_jobs_reserved") == 0)
        assert worker.errors == []
        worker.stop()


@pytest.mark.slow
def test_timer_rings_20_times_a_second_while_one_handler_is_busy(work, connect, monkeypatch):
    """What is due about the same time is done in one wake: asks of several servers, a look at silent connections."""
    rings, on_timer = 0, Asker._on_timer

    def count(self: Asker) -> None:
        nonlocal rings
        rings += 1
        on_timer(self)

    monkeypatch.setattr(Asker, "_on_timer", count)
    with ExitStack() as stack:
        conns = [connect(stack.enter_context(Beanstalkd()).uri) for _ in range(3)]
        gate = Event()
        work(lambda job: gate.wait(), [conn.uri for conn in conns], "t", num_greenlets=3, auto_delete=True)
        wait_until(lambda: all(conn.stats().current_waiting for conn in conns))
        conns[0].put("t", b"")
        wait_until(lambda: sum(conn.stats().current_waiting for conn in conns) == 1)
        gevent.sleep(0.2)  # until they are asked as seldom as ever
        asked, before = rings, sum(conn.stats().cmd_reserve_with_timeout for conn in conns)
        gevent.sleep(2)
        assert rings - asked <= 20 * 2 + 3
        assert sum(conn.stats().cmd_reserve_with_timeout for conn in conns) - before > 20
        gate.set()


@pytest.mark.slow
@pytest.mark.parametrize("multiply", [1, 3])
def test_idle_consumer_sends_nothing(own_server, work, connect, multiply):
    conn = connect(own_server.uri)
    worker = work(lambda job: job.delete(), own_server.uri, "t", multiply=multiply)
    wait_until(lambda: conn.stats().current_connections == multiply + 1 and conn.stats().current_waiting)
    conn.put("t", b"")
    wait_until(lambda: conn.stats().current_jobs_ready == conn.stats().current_jobs_reserved == 0)
    gevent.sleep(0.2)
    before = conn.stats()
    gevent.sleep(2)  # nothing is to happen: there is no event to wait for
    after = conn.stats()
    changed = {
        name: (value, getattr(after, name))
        for name, value in vars(before).items()
        if name.startswith("cmd_") and getattr(after, name) != value
    }
    assert changed == {"cmd_stats": (before.cmd_stats, int(before.cmd_stats or 0) + 1)}
    assert after.total_connections == before.total_connections
    assert worker.errors == []


@pytest.mark.timing
@pytest.mark.slow
def test_idle_consumer_gets_a_job_at_once(own_server, work, connect):
    conn = connect(own_server.uri)
    times: list[float] = []
    handled = Event()
    began = 0.0

    def handler(job):
        times.append(time.monotonic() - began)
        job.delete()
        handled.set()

    work(handler, own_server.uri, "t")
    wait_until(lambda: conn.stats().current_waiting == 1)
    for _ in range(50):
        handled.clear()
        began = time.monotonic()
        conn.put("t", b"")
        assert handled.wait(5)
        wait_until(lambda: conn.stats().current_waiting == 1)
    assert sorted(times)[25] < 0.02


@pytest.mark.slow
def test_idle_longer_than_reserve_timeout_goes_on(own_server, work, connect):
    conn = connect(own_server.uri)
    got: list[gstalk.Job] = []
    worker = work(got.append, own_server.uri, "t", reserve_timeout=1, auto_delete=True)
    wait_until(lambda: int(conn.stats().cmd_reserve_with_timeout or 0) >= 3)
    conn.put("t", b"")
    wait_until(lambda: got)
    assert worker.errors == []


@pytest.mark.parametrize("where", ["once", "stop_timer", "_on_timer"])
def test_signal_that_strikes_beside_the_timer_leaves_no_server_unasked(
    where, work, own_server, server, connect, monkeypatch
):
    """The asking begins anew, its timer too: else servers without a wait would not have their turn any more."""
    error, step = ValueError("a signal's"), getattr(Asker, where)
    strikes: list[BaseException] = []
    told: list[BaseException] = []
    got: list[str | None] = []

    def struck(self: Asker, *args: Any, **options: Any) -> Any:
        if strikes:
            raise strikes.pop()
        return step(self, *args, **options)

    monkeypatch.setattr(Asker, where, struck)
    monkeypatch.setattr(get_hub(), "handle_error", lambda context, kind, error, trace: told.append(error))
    other, conn = connect(own_server.uri), connect(server.uri)

    def handler(job: gstalk.Job) -> None:
        job.delete()
        got.append(job.uri)

    worker = work(handler, [server.uri, own_server.uri], "struck", num_greenlets=1)
    wait_until(lambda: worker.consumer.is_connected)
    gevent.sleep(0.3)
    strikes.append(error)
    wait_until(lambda: told)
    assert told == [error]
    gevent.sleep(1)  # both are connected again, and were asked
    for each in (other, conn):
        each.put("struck", b"")
    wait_until(lambda: len(got) == 2)


def test_signal_that_strikes_where_a_handler_has_ended_leaves_its_permit_in_use(work, conn, tube, monkeypatch):
    """Its greenlet dies and is replaced; the servers must be asked for the new one."""
    look_soon = Asker.look_soon
    strikes: list[BaseException] = []
    got: list[bytes] = []

    def struck(self: Asker) -> None:
        if strikes and getcurrent() is not self.hub:
            raise strikes.pop()
        look_soon(self)

    monkeypatch.setattr(Asker, "look_soon", struck)

    def handler(job: gstalk.Job) -> None:
        job.delete()
        got.append(job.body)
        if job.body == b"1":
            gevent.sleep(1.2)  # until nothing else, as the connection that has held it, makes the Consumer look
            strikes.append(ValueError("a signal's"))

    work(handler, num_greenlets=1)
    conn.put(tube, b"1")
    wait_until(lambda: got)
    conn.put(tube, b"2")
    wait_until(lambda: len(got) == 2)
    assert strikes == []


@pytest.mark.parametrize("function", [Asker._recall, Asker._end_wait, Asking.recalled, Asking._end_ask])
def test_signal_that_strikes_a_command_as_it_recalls_a_wait_costs_no_permit(work, conn, tube, function):
    """It comes out in the greenlet that gave the command; whoever waited is asked, or dialed, anew."""
    done: list[gstalk.Job] = []

    def handler(job: gstalk.Job) -> None:
        job.delete()
        done.append(job)

    work(handler, num_greenlets=1, reconnect_timeout=0.01)
    for number in range(1, 30):
        conn.put(tube, b"")
        wait_until(lambda: len(done) == number)  # noqa: B023
        wait_until(lambda: conn.stats().current_waiting == 1)
        strike = Strike(unwrap(function), number)
        sys.settrace(strike.trace)
        with suppress(Strike, gstalk.GstalkError):
            done[-1].stats()
        sys.settrace(None)
        if strike.lines_left > 0:
            break
    assert 3 < number < 30


class Strikes:
    """Ctrl-C before each of these lines, counted over all that run of the Asker."""

    def __init__(self, *lines: int) -> None:
        self.lines = lines
        self.ran = 0

    def trace(self, frame: Any, event: str, _: object) -> Any:
        if event == "line" and frame.f_code.co_filename.endswith("gstalk/pool/asking.py"):
            self.ran += 1
            if self.ran in self.lines:
                raise KeyboardInterrupt  # and Python traces no more
        return self.trace

    def call(self, function: Callable[..., object], *args: object) -> None:
        sys.settrace(self.trace)
        try:
            function(*args)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)


def make_asker(config: Config) -> Asker:
    crew: Any = SimpleNamespace(running=0)
    return Asker(config, Hooks(config), crew, WatchList(("t",)), Group(), lambda _: None)


def test_consumers_do_not_ask_at_the_same_moments():
    """Those of other processes on this machine, which has one clock."""
    config = Config()
    moments = [make_asker(config)._asking.common_moment(100.0, 0.05) for _ in range(2)]
    assert moments[0] != moments[1]


def test_next_look_has_its_timer_wherever_signals_strike(monkeypatch):
    """Also a second one, while what the first one has struck begins anew."""
    config = Config(error_func=lambda *_: None, info_func=lambda _: None)
    begin_anew = Asker.struck

    def trial(*lines: int) -> int:
        strikes = Strikes(*lines)
        asker = make_asker(config)
        asker._asking.decide = lambda now: Decision([], 60.0)  # type: ignore[method-assign]
        asker._due = True
        asker._look()
        timer = asker._timer
        assert timer.active
        monkeypatch.setattr(Asker, "struck", lambda self, error: strikes.call(begin_anew, self, error))
        strikes.call(asker.run, asker._on_timer)
        assert asker._rings_at == NEVER or asker._timer.active, lines
        asker.is_over = True
        asker.stop_timer()
        timer.close()
        return strikes.ran

    most = trial()
    assert most > 10
    for first in range(1, most + 1):
        for second in range(first + 1, trial(first) + 1):
            trial(first, second)
