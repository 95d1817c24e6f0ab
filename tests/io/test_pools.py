"""Producer and Consumer on real servers: retries, outages, fairness, handlers' fates, stopping."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import gevent
import pytest

import gstalk
from gstalk.connection.connection import Link
from gstalk.pool.keeper import Pool
from gstalk.testing import Beanstalkd

pytestmark = pytest.mark.real


@pytest.fixture
def server() -> Iterator[Beanstalkd]:
    with Beanstalkd() as server:
        yield server


@pytest.fixture
def servers() -> Iterator[list[Beanstalkd]]:
    with Beanstalkd() as one, Beanstalkd() as two, Beanstalkd() as three:
        yield [one, two, three]


class Hooks:
    """What the hooks were told."""

    def __init__(self) -> None:
        self.errors: list[tuple[BaseException, str]] = []
        self.options: dict[str, Any] = {
            "info_func": lambda message: None,
            "error_func": lambda error, message: self.errors.append((error, message)),
        }


@pytest.fixture
def hooks() -> Hooks:
    return Hooks()


def wait_until(check: Any, seconds: float = 10) -> None:
    with gevent.Timeout(seconds):
        while not check():
            gevent.sleep(0.005)


def state(uri: str, job_id: int) -> tuple[str | None, int | None]:
    with gstalk.dial(uri) as conn:
        stats = conn.stats_job(job_id)
        return stats.state, stats.pri


# -- Producer ----------------------------------------------------------------------------------------------------


def test_connection_whose_dial_ends_while_the_producer_stops_is_closed(server, monkeypatch):
    made = []

    def dial_and_be_stopped(*args: Any) -> Any:
        made.append(link := Link(*args))
        producer._lanes.close()
        return link

    monkeypatch.setattr("gstalk.pool.keeper.Link", dial_and_be_stopped)
    producer = gstalk.Producer(server.uri)
    wait_until(lambda: made)
    assert not made[0].is_connected


def test_pauses_between_dials_begin_anew_after_a_connection(monkeypatch, hooks):
    """A server that was down for long, came back, and was cut: the first pause is short again."""
    pauses: list[float] = []
    monkeypatch.setattr("gstalk.pool.keeper.random", lambda: 0.999)

    def pause(pool: Pool, seconds: float) -> None:
        pauses.append(seconds)
        gevent.sleep(0.01)

    monkeypatch.setattr(Pool, "_pause", pause)
    server = Beanstalkd()
    server.start()
    server.kill()
    with server, gstalk.Producer(server.uri, reconnect_timeout=60, **hooks.options) as producer:
        server.kill()
        wait_until(lambda: len(pauses) > 6 and max(pauses) > 10)
        server.start()
        assert producer.wait_connected(10)
        before = len(pauses)
        server.kill()
        wait_until(lambda: len(pauses) > before + 1)
        assert max(pauses[before : before + 2]) < 0.5
        assert pauses[before - 1] > 10


def test_want_of_many_touches_the_timers_once(hooks):
    class Timer:
        changes = 0

        def __setattr__(self, name: str, value: object) -> None:
            type(self).changes += 1

    with gstalk.Producer("127.0.0.1:1", **hooks.options) as producer:
        pool = producer._lanes.pool
        timer = Timer()
        pool._timers.add(timer)
        for change in (1, 1, 1, -1, 1, -1, -1, -1):
            pool.want(change)
        pool._timers.discard(timer)
        assert Timer.changes == 2


@pytest.mark.slow
def test_consumer_stalled_is_not_connected_though_a_connection_is_left(server, hooks):
    consumer = gstalk.Consumer(server.uri, "t", multiply=2, reserve_timeout=1, conn_timeout=0.5, **hooks.options)
    receiving = gevent.spawn(consumer.receive, lambda job: None)
    assert consumer.wait_connected(5)
    run: Any = consumer._run
    wait_until(lambda: len(run.pool.links) == 2)
    server.pause()
    try:
        wait_until(lambda: len(run.pool.links) == 1)
        assert not consumer.is_connected
        assert not consumer.wait_connected(0.1)
    finally:
        server.resume()
    assert consumer.wait_connected(5)
    consumer.stop(0)
    receiving.join(10)


def test_put_made_at_once_waits_for_the_first_connection(server):
    with gstalk.Producer(server.uri) as producer:
        assert not producer.is_connected
        assert producer.put("t", b"x") == 1
        assert producer.is_connected


def test_put_many_returns_ids_in_order_and_names_what_failed(server):
    with gstalk.Producer(server.uri) as producer:
        assert producer.put_many("t", (b"%d" % n for n in range(3000))) == list(range(1, 3001))
        with pytest.raises(gstalk.PutManyError) as caught:
            producer.put_many("t", [b"a", "b", b"x" * 70000, b"c"])  # type: ignore[list-item]
        first, text, big, last = caught.value.results
        assert (first, last) == (3001, 3003) or (first, last) == (3001, 3002)
        assert isinstance(text, TypeError)
        assert isinstance(big, gstalk.JobTooBigError)


def test_put_without_a_server_times_out_with_causes(hooks):
    with gstalk.Producer("127.0.0.1:1", put_timeout=0.3, **hooks.options) as producer:
        began = time.monotonic()
        with pytest.raises(gstalk.PutTimeoutError) as caught:
            producer.put("t", b"x")
        assert 0.25 < time.monotonic() - began < 1
        assert caught.value.sent == "no"
        assert isinstance(caught.value.causes["beanstalk://127.0.0.1:1"], gstalk.ConnectError)
        with pytest.raises(gstalk.PutTimeoutError):
            producer.put("t", b"x", timeout=0)
    assert len(hooks.errors) == 1  # one line an outage, not one a try


def test_put_waits_for_a_server_that_comes_back(server, hooks):
    with gstalk.Producer(server.uri, **hooks.options) as producer:
        producer.put("t", b"x")
        server.kill()
        wait_until(lambda: not producer.is_connected)
        gevent.spawn_later(0.1, server.start)
        assert producer.put("t", b"y") == 1


def test_put_goes_to_another_server_while_one_drains_and_says_so_when_all_do(servers, hooks):
    with gstalk.Producer([each.uri for each in servers[:2]], **hooks.options) as producer:
        producer.wait_connected()
        servers[0].drain()
        gevent.sleep(0.1)
        assert len([producer.put("t", b"x") for _ in range(20)]) == 20
        servers[1].drain()
        gevent.sleep(0.1)
        with pytest.raises(gstalk.DrainingError):
            producer.put("t", b"x")


@pytest.mark.slow
def test_put_goes_to_another_server_while_one_is_stopped(servers, hooks):
    uris = [each.uri for each in servers[:2]]
    with gstalk.Producer(uris, conn_timeout=0.5, put_timeout=3, **hooks.options) as producer:
        wait_until(lambda: len(producer._lanes._lanes) == 2)
        servers[0].pause()
        try:
            times = []
            for _ in range(20):
                began = time.monotonic()
                producer.put("t", b"x")
                times.append(time.monotonic() - began)
        finally:
            servers[0].resume()
        assert sorted(times)[-1] < 1
        assert sorted(times)[-2] < 0.3  # one put finds out; those begun after it are quick


def test_put_ambiguous_is_raised_where_that_is_asked_for(server, hooks):
    with gstalk.Producer(server.uri, retry_ambiguous=False, put_timeout=5, **hooks.options) as producer:
        producer.put("t", b"x")
        server.pause()
        putting = gevent.spawn(producer.put, "t", b"y")
        gevent.sleep(0.05)
        server.kill()
        putting.join()
        assert isinstance(putting.exception, gstalk.DisconnectedError)
        assert putting.exception.sent == "maybe"


def test_producer_stop_is_idempotent_and_later_puts_are_refused(server):
    producer = gstalk.Producer(server.uri)
    producer.put("t", b"x")
    producer.stop()
    producer.stop()
    with pytest.raises(gstalk.ConnectionClosedError):
        producer.put("t", b"x")


def test_producer_bad_arguments_are_refused_and_harm_nothing(server):
    with pytest.raises(gstalk.InvalidArgumentError):
        gstalk.Producer("redis://x")
    with gstalk.Producer(server.uri) as producer:
        for arguments, error in (
            (("a b", b""), gstalk.InvalidArgumentError),
            (("t", "text"), TypeError),
            ((1, b""), TypeError),
        ):
            with pytest.raises(error):
                producer.put(*arguments)
        with pytest.raises(gstalk.InvalidArgumentError):
            producer.put("t", b"", priority=2**32)
        assert producer.put("t", b"") == 1


# -- Consumer: whose turn it is ------------------------------------------------------------------------------------


def test_consumer_with_one_handler_serves_three_servers(servers):
    uris = [each.uri for each in servers]
    for uri in uris:
        with gstalk.dial(uri) as conn:
            conn.put_many("t", [b"x"] * 10)
    served: list[str] = []
    consumer = gstalk.Consumer(uris, "t", num_greenlets=1)

    def handler(job):
        served.append(job.uri)
        job.delete()
        if len(served) == 30:
            consumer.stop()

    consumer.receive(handler)
    assert {served.count(uri) for uri in uris} == {10}


def test_consumer_gives_all_handlers_to_the_only_server_with_jobs(servers):
    with gstalk.dial(servers[0].uri) as conn:
        conn.put_many("t", [b"x"] * 60)
    running = most = done = 0
    consumer = gstalk.Consumer([each.uri for each in servers], "t", num_greenlets=3, auto_delete=True)

    def handler(job):
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        gevent.sleep(0.02)
        running -= 1
        done += 1
        if done == 60:
            consumer.stop()

    consumer.receive(handler)
    assert most == 3


def test_idle_consumer_asks_nothing_and_gets_a_job_at_once(server):
    with gstalk.dial(server.uri) as conn:
        times: list[float] = []
        consumer = gstalk.Consumer(server.uri, "t", auto_delete=True)
        receiving = gevent.spawn(consumer.receive, lambda job: times.append(time.monotonic() - float(job.body)))
        assert consumer.wait_connected(5)
        wait_until(lambda: conn.stats().current_waiting == 1)
        before = conn.stats().cmd_reserve_with_timeout
        gevent.sleep(0.5)
        assert conn.stats().cmd_reserve_with_timeout == before
        for _ in range(20):
            gevent.sleep(0.01)
            conn.put("t", b"%.6f" % time.monotonic())
        wait_until(lambda: len(times) == 20)
        consumer.stop()
        receiving.get()
        assert sorted(times)[10] < 0.05
        assert not consumer.is_connected


def test_consumer_comes_back_after_a_restart(server, hooks):
    done: list[bytes] = []
    consumer = gstalk.Consumer(server.uri, "t", auto_delete=True, **hooks.options)
    receiving = gevent.spawn(consumer.receive, lambda job: done.append(job.body))
    consumer.wait_connected(5)
    server.restart()
    with gstalk.dial(server.uri) as conn:
        conn.put("t", b"again")
        wait_until(lambda: done == [b"again"])
        assert conn.stats_tube("t").current_watching == 1
    consumer.stop()
    receiving.get()


# -- Consumer: handlers and their jobs -------------------------------------------------------------------------------


def run_one(server: Beanstalkd, handler: Any, hooks: Hooks, **options: Any) -> int:
    """Put one job with priority 7, have the handler called with it once, and return its id."""
    with gstalk.dial(server.uri) as conn:
        job_id = conn.put("t", b"x", priority=7, ttr=options.pop("ttr", 60))
    consumer = gstalk.Consumer(server.uri, "t", **options, **hooks.options)

    def once(job):
        consumer.stop()
        return handler(job)

    consumer.receive(once)
    return job_id


def raising(error: BaseException) -> Any:
    def handler(job):
        raise error

    return handler


@pytest.mark.parametrize(
    "error",
    [ValueError("no"), SystemExit(3), gevent.Timeout(9), gevent.GreenletExit()],
    ids=lambda error: type(error).__name__,  # the same in every process that collects it
)
def test_handler_that_raises_has_its_job_released_with_a_delay(server, hooks, error):
    job_id = run_one(server, raising(error), hooks)
    assert state(server.uri, job_id) == ("delayed", 7)
    assert [each for each, _ in hooks.errors] == [error]
    assert f"job {job_id}" in hooks.errors[0][1]
    assert "attempt 1" in hooks.errors[0][1]


def test_handler_that_forgets_its_job_has_failed(server, hooks):
    job_id = run_one(server, lambda job: None, hooks)
    assert state(server.uri, job_id)[0] == "delayed"
    assert isinstance(hooks.errors[0][0], gstalk.JobNotFinishedError)


def test_handler_auto_delete_deletes(server, hooks):
    job_id = run_one(server, lambda job: None, hooks, auto_delete=True)
    with pytest.raises(gstalk.NotFoundError):
        state(server.uri, job_id)


def test_handler_exhausted_job_is_buried_or_deleted(server, hooks):
    job_id = run_one(server, raising(ValueError()), hooks, retry=gstalk.RetryPolicy(max_attempts=1))
    assert state(server.uri, job_id) == ("buried", 7)
    once = gstalk.RetryPolicy(max_attempts=1, exhausted="delete")
    job_id = run_one(server, raising(ValueError()), hooks, retry=once)
    with pytest.raises(gstalk.NotFoundError):
        state(server.uri, job_id)


def test_handler_may_ask_for_retry_or_bury_and_that_is_no_error(server, hooks):
    assert state(server.uri, run_one(server, raising(gstalk.Retry(delay=100, priority=3)), hooks)) == ("delayed", 3)
    assert state(server.uri, run_one(server, raising(gstalk.Retry(delay=0)), hooks)) == ("ready", 7)
    with gstalk.dial(server.uri) as conn:
        conn.delete(2)
    assert state(server.uri, run_one(server, raising(gstalk.Bury(priority=4)), hooks)) == ("buried", 4)
    assert hooks.errors == []


def test_handler_with_a_wrong_retry_releases_the_job_and_tells(server, hooks):
    job_id = run_one(server, raising(gstalk.Retry(delay=-1)), hooks)
    wait_until(lambda: state(server.uri, job_id)[0] == "ready")
    assert isinstance(hooks.errors[0][0], gstalk.InvalidArgumentError)


def test_handlers_by_tube(server, hooks):
    seen: list[tuple[str, str | None]] = []
    consumer = gstalk.Consumer(server.uri, ["a", "b"], auto_delete=True, **hooks.options)
    with gstalk.dial(server.uri) as conn:
        conn.put("a", b"")
        conn.put("b", b"")

    def note(name):
        def handler(job):
            seen.append((name, job.tube))
            if len(seen) == 2:
                consumer.stop()

        return handler

    with pytest.raises(gstalk.InvalidArgumentError):
        consumer.receive({"a": note("a")})
    consumer.receive({"a": note("a"), "b": note("b")})
    assert sorted(seen) == [("a", "a"), ("b", "b")]


def test_handler_time_limit_hits_one_that_catches_exception(server, hooks):
    def handler(job):
        try:
            gevent.sleep(10)
        except Exception:
            pytest.fail("TimeLimitExceeded is no Exception")

    job_id = run_one(server, handler, hooks, time_limit=0.1)
    assert state(server.uri, job_id)[0] == "delayed"
    assert isinstance(hooks.errors[0][0], gstalk.TimeLimitExceeded)


@pytest.mark.slow
def test_auto_touch_keeps_a_job_beyond_its_time_to_run(server, hooks):
    def handler(job):
        gevent.sleep(2.5)
        job.delete()

    job_id = run_one(server, handler, hooks, auto_touch=True, ttr=1)
    assert hooks.errors == []
    with pytest.raises(gstalk.NotFoundError):
        state(server.uri, job_id)


def test_killed_handlers_cost_no_concurrency(server, hooks):
    consumer = gstalk.Consumer(server.uri, "t", num_greenlets=2, **hooks.options)
    done = 0
    with gstalk.dial(server.uri) as conn:
        conn.put_many("t", [b"die"] * 6 + [b"live"] * 4)

    def handler(job):
        nonlocal done
        if job.body == b"die":
            gevent.kill(gevent.getcurrent())
        job.delete()
        done += 1
        if done == 4:
            consumer.stop()

    consumer.receive(handler)
    assert len(hooks.errors) == 6


# -- Consumer: stopping ----------------------------------------------------------------------------------------------


def stopped_by(server: Beanstalkd, stop: Any) -> None:
    consumer = gstalk.Consumer(server.uri, "t", auto_delete=True)
    receiving = gevent.spawn(consumer.receive, lambda job: None)
    consumer.wait_connected(5)
    stop(consumer)
    with gevent.Timeout(5):
        receiving.get()
    with gstalk.dial(server.uri) as conn:
        assert conn.stats().current_connections == 1


def test_stop_from_anywhere(server):
    def from_thread(consumer):
        thread = threading.Thread(target=consumer.stop)
        thread.start()
        thread.join()

    def from_signal(consumer):
        before = signal.signal(signal.SIGUSR2, lambda number, frame: consumer.stop())
        try:
            signal.raise_signal(signal.SIGUSR2)
        finally:
            signal.signal(signal.SIGUSR2, before)

    for stop in (gstalk.Consumer.stop, from_thread, from_signal, lambda c: gevent.get_hub().loop.run_callback(c.stop)):
        stopped_by(server, stop)


def test_stop_kills_handlers_in_the_end_and_releases_their_jobs(server, hooks):
    with gstalk.dial(server.uri) as conn:
        conn.put_many("t", [b"x"] * 3, priority=9)
        consumer = gstalk.Consumer(server.uri, "t", **hooks.options)
        receiving = gevent.spawn(consumer.receive, lambda job: gevent.sleep(100))
        wait_until(lambda: conn.stats_tube("t").current_jobs_reserved == 3)
        began = time.monotonic()
        consumer.stop(0.2)
        receiving.get()
        assert 0.15 < time.monotonic() - began < 2.2
        stats = conn.stats_tube("t")
        assert (stats.current_jobs_reserved, stats.current_jobs_ready) == (0, 3)
        assert conn.stats_job(1).pri == 9
    assert hooks.errors == []


def test_stop_before_the_first_receive_makes_it_return_and_after_one_does_nothing(server):
    consumer = gstalk.Consumer(server.uri, "t")
    consumer.stop()
    consumer.receive(lambda job: None)
    consumer.stop()
    receiving = gevent.spawn(consumer.receive, lambda job: None)
    assert consumer.wait_connected(5)
    with pytest.raises(RuntimeError):
        consumer.receive(lambda job: None)
    consumer.stop()
    receiving.get()


def test_receive_interrupted_stops_and_passes_the_exception_on(server):
    consumer = gstalk.Consumer(server.uri, "t")
    with pytest.raises(gevent.Timeout):
        with gevent.Timeout(0.2):
            consumer.receive(lambda job: None)


def test_keyboard_interrupt_in_a_handler_ends_receive_with_it(server, hooks):
    consumer = gstalk.Consumer(server.uri, "t", **hooks.options)
    with gstalk.dial(server.uri) as conn:
        job_id = conn.put("t", b"x", priority=7)
        with pytest.raises(KeyboardInterrupt):
            consumer.receive(raising(KeyboardInterrupt()))
        assert (conn.stats_job(job_id).state, conn.stats_job(job_id).pri) == ("ready", 7)
