"""What stops a Consumer, how soon, and what the server has let go of when `receive` returns."""

from __future__ import annotations

import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import gevent
import pytest
from gevent.event import Event

import gstalk
from gstalk.consumer import _Run
from gstalk.testing import FaultProxy
from tests.io.striking import Strike
from tests.io.working import Worker, state
from tests.servers import wait_until

pytestmark = pytest.mark.real


def nothing_left(conn, count=1):
    """At `receive`'s return the server has let go of all: of the connections and of the jobs."""
    stats = conn.stats()
    assert (stats.current_connections, stats.current_jobs_reserved, stats.current_waiting) == (count, 0, 0)


@pytest.mark.parametrize("multiply", [1, 3])
def test_stop_idle_returns_at_once_and_the_server_has_let_go(own_server, work, connect, multiply):
    conn = connect(own_server.uri)
    worker = work(lambda job: None, own_server.uri, "t", multiply=multiply)
    wait_until(lambda: conn.stats().current_connections == multiply + 1)
    began = time.monotonic()
    worker.stop()
    nothing_left(conn)
    assert time.monotonic() - began < 3


def test_stop_lets_handlers_finish_their_jobs(own_server, work, connect):
    conn = connect(own_server.uri)
    here, gate = [], Event()

    def handler(job):
        here.append(job.id)
        gate.wait()
        job.touch()
        job.delete()

    worker = work(handler, own_server.uri, "t", num_greenlets=3)
    conn.put_many("t", [b""] * 10)
    wait_until(lambda: len(here) == 3)
    worker.consumer.stop()
    gevent.sleep(0.05)
    assert not worker.receiver.ready()
    gate.set()
    worker.receiver.get(timeout=5)
    assert worker.errors == []
    assert conn.stats_tube("t").current_jobs_ready == 7
    nothing_left(conn)


@pytest.mark.parametrize("where", ["handler", "greenlet", "hub", "thread", "signal"])
def test_stop_from_anywhere_returns_at_once_and_ends_receive(server, conn, tube, where):
    consumer = gstalk.Consumer(server.uri, tube)
    took = []

    def stop(*_):
        began = time.monotonic()
        consumer.stop()
        took.append(time.monotonic() - began)

    def handler(job):
        job.delete()
        if where == "handler":
            stop()
        elif where == "greenlet":
            gevent.spawn(stop)
        elif where == "hub":
            gevent.get_hub().loop.run_callback(stop)
        elif where == "thread":
            threading.Thread(target=stop).start()
        else:
            signal.raise_signal(signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, stop)
    try:
        conn.put(tube, b"")
        consumer.receive(handler)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert max(took) < 1
    assert conn.stats_tube(tube).current_jobs_reserved == 0


@pytest.mark.parametrize("auto_touch", [False, True])
def test_stop_after_its_timeout_kills_handlers_and_releases_their_jobs(own_server, work, connect, auto_touch):
    conn = connect(own_server.uri)
    ended: list[str] = []
    here: list[int] = []

    def handler(job):
        here.append(job.id)
        try:
            gevent.sleep(30)
        except gevent.GreenletExit:
            ended.append("killed")
            raise

    worker = work(handler, own_server.uri, "t", auto_touch=auto_touch)
    ids = [conn.put("t", b"", priority=number) for number in range(5)]
    wait_until(lambda: len(here) == 5)
    began = time.monotonic()
    worker.stop(0.2)
    assert 0.15 < time.monotonic() - began < 2.2
    assert ended == ["killed"] * 5
    for number, job_id in enumerate(ids):
        stats = conn.stats_job(job_id)
        assert (stats.state, stats.pri, stats.delay) == ("ready", number, 0)
    assert worker.errors == []
    nothing_left(conn)


@pytest.mark.parametrize(("config", "argument", "killed"), [(0.1, (), True), (0.1, (None,), False), (None, (), False)])
def test_stop_time_left_out_is_configs_and_none_kills_nobody(work, conn, tube, config, argument, killed):
    here = Event()
    ended: list[bool] = []

    def handler(job):
        here.set()
        try:
            gevent.sleep(0.5)
        except gevent.GreenletExit:
            ended.append(True)
            raise
        job.delete()
        ended.append(False)

    worker = work(handler, stop_timeout=config)
    job_id = conn.put(tube, b"")
    assert here.wait(5)
    worker.stop(*argument)
    assert ended == [killed]
    assert state(conn, job_id) == ("ready" if killed else None)


def test_stop_handler_that_swallows_the_kill_is_left_and_its_job_released(own_server, work, connect):
    conn = connect(own_server.uri)
    gate, here = Event(), []

    def handler(job):
        here.append(job)
        while not gate.is_set():
            try:
                gate.wait()
            except BaseException:
                pass

    worker = work(handler, own_server.uri, "t")
    job_id = conn.put("t", b"")
    wait_until(lambda: here)
    worker.stop(0)
    assert state(conn, job_id) == "ready"
    nothing_left(conn)
    with pytest.raises((gstalk.JobLostError, gstalk.JobFinishedError)):
        here[0].delete()
    gate.set()


@pytest.mark.slow
def test_stop_again_with_a_shorter_time_wins_and_a_longer_one_does_not(work, conn, tube):
    for times in ((None, 0.2), (0.2, None), (20, 0.2), (0.2, 20)):
        started = Event()

        def handler(job, started=started):
            started.set()
            gevent.sleep(10)

        worker = work(handler)
        conn.put(tube, b"")
        assert started.wait(5)
        began = time.monotonic()
        for timeout in times:
            worker.consumer.stop(timeout)
        worker.receiver.get(timeout=5)
        assert time.monotonic() - began < 3
        conn.delete(conn.peek_ready(tube))


def test_stop_before_the_first_receive_makes_that_return_and_only_that(server, conn, tube):
    consumer = gstalk.Consumer(server.uri, tube)
    consumer.stop()
    consumer.receive(lambda job: None)
    conn.put(tube, b"")

    def handler(job):
        job.delete()
        consumer.stop()

    consumer.receive(handler)
    consumer.stop()
    conn.put(tube, b"")
    consumer.receive(handler)
    assert conn.stats_tube(tube).current_jobs_ready == 0


def test_stop_wrong_timeout_is_refused(server, tube):
    consumer = gstalk.Consumer(server.uri, tube)
    with pytest.raises(gstalk.InvalidArgumentError):
        consumer.stop(-1)
    with pytest.raises(TypeError):
        consumer.stop("1")  # type: ignore[arg-type]


def test_stop_in_an_outage_returns_soon(own_server, work):
    worker = work(lambda job: None, own_server.uri, "t")
    assert worker.consumer.wait_connected(5)
    own_server.kill()
    wait_until(lambda: not worker.consumer.is_connected)
    began = time.monotonic()
    worker.stop()
    assert time.monotonic() - began < 2


@pytest.mark.slow
def test_stop_on_a_server_that_stalls_returns_within_conn_timeout(own_server, work):
    worker = work(lambda job: None, own_server.uri, "t", conn_timeout=0.5)
    assert worker.consumer.wait_connected(5)
    gevent.sleep(0.1)
    own_server.pause()
    try:
        began = time.monotonic()
        worker.stop()
        assert time.monotonic() - began < 3
    finally:
        own_server.resume()


@pytest.mark.slow
def test_stop_on_a_server_that_stalls_interrupted_returns_at_once(own_server, work):
    worker = work(lambda job: None, own_server.uri, "t", conn_timeout=30)
    assert worker.consumer.wait_connected(5)
    gevent.sleep(0.1)
    own_server.pause()
    try:
        worker.consumer.stop()
        gevent.sleep(0.1)
        assert not worker.receiver.ready()
        errors = [ValueError("first"), ValueError("second")]
        for error in errors:
            worker.receiver.kill(error, block=False)
            gevent.sleep(0.05)
        worker.receiver.join(timeout=2)
        assert worker.raised is errors[0]
    finally:
        own_server.resume()


def test_stop_interrupted_while_a_stalled_server_is_left_closes_its_connections(own_server, work):
    worker = work(lambda job: None, own_server.uri, "t", conn_timeout=30)
    assert worker.consumer.wait_connected(5)
    gevent.sleep(0.1)
    pipe = worker.consumer._run.pool.connections[0].pipe
    own_server.pause()
    try:
        worker.consumer.stop()
        for error in (ValueError("mine"), ValueError("at once")):
            gevent.sleep(0.1)
            worker.receiver.kill(error, block=False)
        worker.receiver.join(timeout=5)
        assert str(worker.raised) == "mine"
        assert pipe.failure is not None
    finally:
        own_server.resume()


def test_stop_handler_that_asks_on_a_connection_taking_leave_is_told_so(own_server, work, connect):
    """Its wait can't be recalled any more; to try for ever would block the hub."""
    told: list[gstalk.DisconnectedError] = []

    def handler(job: gstalk.Job) -> None:
        connection: Any = job._owner
        job.delete()
        wait_until(lambda: connection._end_wait is not None)
        own_server.pause()
        worker.consumer.stop()
        wait_until(lambda: connection.pipe._on_end is not None)
        signal.setitimer(signal.ITIMER_REAL, 5)
        try:
            job.stats()
        except gstalk.ConnectionClosedError as error:
            told.append(error)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            own_server.resume()

    def blocked(*_: object) -> None:
        raise AssertionError("the hub is blocked")

    before = signal.signal(signal.SIGALRM, blocked)
    try:
        connect(own_server.uri).put("t", b"x")
        worker = work(handler, own_server.uri, "t")
        worker.receiver.join(timeout=20)
        assert worker.receiver.ready()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert [error.sent for error in told] == ["no"]
    assert worker.errors == []


@pytest.mark.slow
def test_stop_while_error_func_never_returns_ends_receive_all_the_same(play, work):
    entered = Event()

    def error_func(error: BaseException, message: str) -> None:
        entered.set()
        gevent.sleep(1000)

    played = play({"reserve-with-timeout": [b"INTERNAL_ERROR\r\n", b"TIMED_OUT\r\n"]})
    worker = work(lambda job: None, played.uri, error_func=error_func)
    assert entered.wait(5)
    worker.consumer.stop(0)
    worker.receiver.join(timeout=10)
    assert worker.receiver.ready()


def test_stop_while_a_wait_is_called_back_the_server_has_let_go_of_what_that_won(own_server, work, connect):
    with FaultProxy(own_server.uri) as proxy:
        conn = connect(own_server.uri)
        worker = work(lambda job: None, proxy.uri, "t")
        wait_until(lambda: conn.stats().current_waiting == 1)
        proxy.delay(0.3, "up")
        [source] = worker.consumer._run._asker._sources.values()
        worker.consumer._run._asker._recall(source)
        conn.put("t", b"x")
        assert conn.stats().current_jobs_reserved == 1
        worker.stop()
        assert conn.stats().current_jobs_reserved == 0


@pytest.mark.slow
def test_stop_at_any_moment_under_load_every_job_is_deleted_or_ready(own_server, connect):
    conn = connect(own_server.uri)
    deleted: set[int] = set()

    def handler(job):
        gevent.sleep(0)
        job.delete()
        deleted.add(job.id)

    ids: set[int] = set()
    for turn in range(20):
        ids |= set(conn.put_many("t", [b""] * 50))
        worker = Worker(own_server.uri, "t", handler, multiply=2)
        gevent.sleep(0.003 * turn)
        worker.stop()
        stats = conn.stats()
        assert (stats.current_jobs_reserved, stats.current_waiting) == (0, 0)
        # A connection that was being dialed holds nothing; it is closed, and what the server makes of that not awaited.
        wait_until(lambda: conn.stats().current_connections == 1)
        stats = conn.stats_tube("t")
        assert stats.current_jobs_ready == len(ids - deleted)
        assert (stats.current_jobs_buried, stats.current_jobs_delayed) == (0, 0)
        assert worker.errors == []


INTERRUPTIONS = [lambda: gevent.Timeout(60), gevent.GreenletExit, KeyboardInterrupt, lambda: ValueError("own")]


@pytest.mark.parametrize("make", INTERRUPTIONS)
def test_receive_interrupted_is_a_stop_and_the_exception_goes_on(own_server, work, connect, make):
    conn = connect(own_server.uri)
    here, gate = [], Event()

    def handler(job):
        here.append(job.id)
        gate.wait()
        job.delete()

    worker = work(handler, own_server.uri, "t")
    conn.put("t", b"")
    wait_until(lambda: here)
    error = make()
    worker.receiver.kill(error, block=False)
    gevent.sleep(0.05)
    assert not worker.receiver.ready()
    gate.set()
    worker.receiver.join(timeout=5)
    assert worker.raised is error
    assert conn.stats_tube("t").total_jobs == 1
    assert conn.stats().cmd_delete == 1
    nothing_left(conn)


@pytest.mark.parametrize(
    "name", ["_has_ended", "_until_stopped", "_until_finished", "_until_gone", "_on_request", "_stop_within"]
)
def test_receive_that_a_signal_strikes_at_any_line_is_stopped(own_server, connect, monkeypatch, name):
    """In the hub the exception is gevent's to print; elsewhere it counts as a stop, and goes on."""
    conn, hub = connect(own_server.uri), gevent.get_hub()
    monkeypatch.setattr(hub, "print_exception", lambda *_: None)
    for number in range(1, 50):
        consumer = gstalk.Consumer(own_server.uri, "t", info_func=lambda message: None)
        strike = Strike(getattr(_Run, name), number)

        def receive(consumer=consumer, strike=strike) -> None:
            sys.settrace(strike.trace)
            with suppress(Strike):
                consumer.receive(lambda job: job.delete())

        hub.loop.run_callback(sys.settrace, strike.trace)
        receiving = gevent.spawn(receive)
        gevent.spawn_later(0.03, consumer.stop)
        receiving.join(10)
        hub.loop.run_callback(sys.settrace, None)
        assert receiving.ready()
        wait_until(lambda: conn.stats().current_connections == 1)
        if strike.lines_left > 0:
            break
    assert 3 < number < 50


def test_receive_that_a_signal_strikes_outside_of_all_that_is_gone_through_again_lets_go(
    own_server, connect, monkeypatch
):
    conn = connect(own_server.uri)

    def strike(run: _Run) -> bool:
        wait_until(lambda: run.pool.is_connected)
        raise KeyboardInterrupt

    monkeypatch.setattr(_Run, "_has_ended", strike)
    with pytest.raises(KeyboardInterrupt):
        gstalk.Consumer(own_server.uri, "t", info_func=lambda message: None).receive(lambda job: None)
    wait_until(lambda: conn.stats().current_connections == 1)


def test_receive_interrupted_twice_stops_at_once_and_the_first_exception_goes_on(own_server, work, connect):
    conn = connect(own_server.uri)
    here = []

    def handler(job):
        here.append(job.id)
        gevent.sleep(30)

    worker = work(handler, own_server.uri, "t")
    job_id = conn.put("t", b"")
    wait_until(lambda: here)
    first, second = ValueError("first"), ValueError("second")
    worker.receiver.kill(first, block=False)
    gevent.sleep(0.05)
    worker.receiver.kill(second, block=False)
    worker.receiver.join(timeout=5)
    assert worker.raised is first
    assert state(conn, job_id) == "ready"
    nothing_left(conn)


def test_keyboard_interrupt_in_a_handler_releases_its_job_and_ends_receive(own_server, work, connect):
    conn = connect(own_server.uri)
    others: list[str] = []
    gate = Event()

    def handler(job):
        if job.body == b"ctrl-c":
            raise KeyboardInterrupt
        gate.wait()
        job.delete()
        others.append("finished")

    worker = work(handler, own_server.uri, "t")
    conn.put("t", b"other")
    wait_until(lambda: conn.stats().current_jobs_reserved == 1)
    job_id = conn.put("t", b"ctrl-c", priority=8)
    wait_until(lambda: worker.consumer._run is None or worker.consumer._run._stop_at is not None)
    gate.set()
    worker.receiver.join(timeout=5)
    assert isinstance(worker.raised, KeyboardInterrupt)
    assert others == ["finished"]
    assert (conn.stats_job(job_id).state, conn.stats_job(job_id).pri) == ("ready", 8)
    assert worker.errors == []
    nothing_left(conn)
