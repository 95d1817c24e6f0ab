"""One server of three is sick, or all are dead: what the others' callers notice of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import gevent
import pytest

import gstalk
from gstalk.testing import Beanstalkd
from tests.servers import wait_until

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timing]

CONN_TIMEOUT = 2.0  # seconds; the default is a longer wait for the same
SLOW = 1.5  # seconds; on an idle machine it would be some milliseconds


class Three:
    """Three servers, greenlets that put all the time, and a Consumer."""

    def __init__(self, servers: list[Beanstalkd]) -> None:
        self.servers = servers
        self.uris = [server.uri for server in servers]
        self.puts: list[tuple[float, float]] = []  # when each began, and what it took
        self.handled: dict[str, float] = {}  # by server: when it gave us a job last
        self.stalled_at = float("inf")
        config = gstalk.Config(
            conn_timeout=CONN_TIMEOUT, info_func=lambda message: None, error_func=lambda error, message: None
        )
        self.producer = gstalk.Producer(self.uris, config, event_func=self._event)
        self.consumer = gstalk.Consumer(self.uris, "three", config)
        self.receiver = gevent.spawn(self.consumer.receive, self._handle)
        self.putters = [gevent.spawn(self._put) for _ in range(10)]
        self.stopped = False

    def _event(self, event: gstalk.Event) -> None:
        if isinstance(event.exception, gstalk.CommandTimeoutError):
            self.stalled_at = min(self.stalled_at, monotonic())

    def _put(self) -> None:
        while not self.stopped:
            began = monotonic()
            self.producer.put("three", b"x")
            self.puts.append((began, monotonic() - began))
            gevent.sleep(0.005)

    def _handle(self, job: gstalk.Job) -> None:
        self.handled[job.uri] = monotonic()
        job.delete()

    def serves(self, uris: list[str], seconds: float = 10) -> None:
        """Wait until each of these has given us another job."""
        since = monotonic()
        wait_until(lambda: all(self.handled.get(uri, 0) > since for uri in uris), seconds)

    def stop(self) -> None:
        self.stopped = True
        try:
            gevent.joinall(self.putters, timeout=20, raise_error=True)  # no put has failed
        finally:
            self.consumer.stop(0)
            self.producer.stop(0)
            self.receiver.get(timeout=20)


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Three]:
    with ExitStack() as stack:
        servers = []
        for number in range(3):
            (tmp_path / str(number)).mkdir()
            # Small files: without its directory a server soon can't begin another one.
            server = Beanstalkd("-s", "4096", binlog=str(tmp_path / str(number)))
            servers.append(stack.enter_context(server))
        load = Three(servers)
        stack.callback(load.stop)
        load.serves(load.uris)
        yield load


def test_one_server_dead_puts_and_jobs_go_on_at_the_others(three):
    sick = three.servers[0]
    sick.kill()
    began = monotonic()
    three.serves(three.uris[1:])
    gevent.sleep(0.5)
    assert max(took for when, took in three.puts if when > began) < SLOW
    sick.start()
    three.serves(three.uris)


@pytest.mark.limit(120)
def test_one_server_stopped_costs_a_put_conn_timeout_once_and_nobody_after_that(three):
    sick = three.servers[0]
    sick.pause()
    try:
        stopped = monotonic()
        while monotonic() < stopped + CONN_TIMEOUT + 2:
            three.serves(three.uris[1:])  # all the while
        assert three.stalled_at < stopped + CONN_TIMEOUT + SLOW
        before = [took for when, took in three.puts if stopped <= when < three.stalled_at]
        after = [took for when, took in three.puts if when >= three.stalled_at]
        assert len(after) > 50
        assert max(after) < SLOW
        assert CONN_TIMEOUT * 0.8 < max(before) < CONN_TIMEOUT + SLOW
    finally:
        sick.resume()
    three.serves(three.uris, 20)


def test_one_server_drains_puts_go_to_the_others_and_its_jobs_are_worked_off(three):
    sick = three.servers[0]
    with gstalk.dial(sick.uri) as conn:
        left = conn.put_many("three", [b"left"] * 100, delay=1)
        sick.drain()
        with pytest.raises(gstalk.DrainingError):
            conn.put("three", b"")
        began = monotonic()
        three.serves(three.uris[1:])
        wait_until(lambda: conn.peek(left[-1]) is None)
        assert conn.stats_tube("three").current_jobs_ready == 0
        three.serves(three.uris[1:])
        assert max(took for when, took in three.puts if when > began) < SLOW
        assert conn.stats().draining


def test_one_server_out_of_binlog_space_puts_go_to_the_others_until_it_has_some_again(three, tmp_path):
    sick, place = three.servers[0], tmp_path / "0"
    refused = [0]
    with gstalk.dial(sick.uri) as conn:
        shutil.rmtree(place)

        def is_full() -> bool:
            try:
                conn.put("filling", bytes(100))
            except gstalk.OutOfMemoryError:
                refused[0] += 1
            return refused[0] > 3

        wait_until(is_full)
        began = monotonic()
        three.serves(three.uris[1:])
        gevent.sleep(0.5)
        three.serves(three.uris[1:])
        assert max(took for when, took in three.puts if when > began) < SLOW
        place.mkdir()
        wait_until(lambda: conn.put("filling", b""))
    three.serves(three.uris)


def test_all_servers_dead_a_put_times_out_with_the_causes():
    with Beanstalkd() as one, Beanstalkd() as two, Beanstalkd() as three:
        servers = [one, two, three]
        uris = [server.uri for server in servers]
        quiet: dict[str, Any] = {"info_func": lambda message: None, "error_func": lambda error, message: None}
        with gstalk.Producer(uris, put_timeout=1, **quiet) as producer:
            producer.put("t", b"")
            for server in servers:
                server.kill()
            wait_until(lambda: not producer.is_connected)

            def put() -> tuple[BaseException | None, float]:
                began = monotonic()
                try:
                    producer.put("t", b"")
                except gstalk.PutTimeoutError as error:
                    return error, monotonic() - began
                return None, 0

            puts = [gevent.spawn(put) for _ in range(50)]
            for error, took in [each.get() for each in puts]:
                assert isinstance(error, gstalk.PutTimeoutError)
                assert error.sent == "no"
                assert set(error.causes) == set(uris)
                assert 1 <= took < 1 + 0.1 + SLOW / 3  # promised is a tenth; the rest is for a busy machine


# -- whose turn it is --------------------------------------------------------------------------------------------


@pytest.fixture
def many_servers() -> Iterator[Callable[[int], list[Beanstalkd]]]:
    with ExitStack() as stack:
        yield lambda count: [stack.enter_context(Beanstalkd()) for _ in range(count)]


@pytest.mark.parametrize("others", ["empty", "full", "stopped"])
def test_one_handler_serves_each_of_three_servers_whatever_the_others_hold(many_servers, others):
    servers = many_servers(3)
    served: dict[str, int] = dict.fromkeys((server.uri for server in servers), 0)
    if others == "full":
        for server in servers:
            with gstalk.dial(server.uri) as conn:
                conn.put_many("t", [b""] * 3000)
    consumer = gstalk.Consumer(list(served), "t", num_greenlets=1, conn_timeout=0.5, info_func=lambda message: None)

    def handle(job: gstalk.Job) -> None:
        gevent.sleep(0.001)
        job.delete()
        served[job.uri] += 1

    receiver = gevent.spawn(consumer.receive, handle)
    try:
        assert consumer.wait_connected(10)
        wait_until(lambda: consumer._run and len(consumer._run.pool.connections) == 3)
        if others == "stopped":
            for server in servers[1:]:
                server.pause()
        uris = [servers[0].uri] if others == "stopped" else list(served)
        for uri in uris:
            with gstalk.dial(uri) as conn:
                for _ in range(3):
                    before = served[uri]
                    conn.put("t", b"", priority=0)
                    wait_until(lambda: served[uri] > before, 5)  # noqa: B023  # awaited here
    finally:
        for server in servers:
            server.resume()
        consumer.stop(0)
        receiver.get(timeout=20)


def test_ten_handlers_go_to_the_only_one_of_ten_servers_with_jobs(many_servers):
    servers = many_servers(10)
    running = most = 0

    def handle(job: gstalk.Job) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        gevent.sleep(0.1)
        running -= 1

    consumer = gstalk.Consumer([server.uri for server in servers], "t", num_greenlets=10, auto_delete=True)
    receiver = gevent.spawn(consumer.receive, handle)
    try:
        with gstalk.dial(servers[3].uri) as conn:
            conn.put_many("t", [b""] * 300)
            wait_until(lambda: most == 10, 20)
            wait_until(lambda: running == 10)
        assert most == 10
    finally:
        consumer.stop(0)
        receiver.get(timeout=20)


def holding(
    servers: list[Beanstalkd], handle: Callable[[gstalk.Job], None], handlers: int, error_func: Any = None
) -> tuple[Any, Any]:
    """A Consumer that has connections to all of them."""
    options: dict[str, Any] = {
        "conn_timeout": CONN_TIMEOUT,
        "info_func": lambda message: None,
        "error_func": error_func,
    }
    consumer = gstalk.Consumer([server.uri for server in servers], "t", num_greenlets=handlers, **options)
    receiver = gevent.spawn(consumer.receive, handle)
    wait_until(lambda: consumer._run and len(consumer._run.pool.connections) == len(servers))
    return consumer, receiver


def is_asked_in_turn(consumer: Any, server: Beanstalkd) -> bool:
    """Whether no wait is begun there any more, as it is while the other server isn't connected yet."""
    sources = [source for source in consumer._run._asker._asking.sources if source.server == server.uri]
    return all(source.connection.pipe.attached and not source.waiting for source in sources)


def owes(consumer: Any, server: Beanstalkd) -> bool:
    """Whether a server has been asked for a job, and says nothing; not even what it said before it stopped."""
    sources = [source for source in consumer._run._asker._asking.sources if source.server == server.uri]
    return any(source.asks and monotonic() - source.asked_at > 0.3 for source in sources)


def test_one_handler_and_a_server_that_stands_still_serves_the_other_after_a_second(many_servers):
    good, sick = servers = many_servers(2)
    handled: list[float] = []

    def handle(job: gstalk.Job) -> None:
        handled.append(monotonic())
        job.delete()

    consumer, receiver = holding(servers, handle, 1)
    try:
        sick.pause()
        handled.append(monotonic())
        with gstalk.dial(good.uri) as conn:
            while monotonic() < handled[0] + CONN_TIMEOUT + 1:  # until that connection has been given up, and beyond
                conn.put("t", b"")
                gevent.sleep(0.01)
        longest = max(then - now for now, then in pairwise(handled))
        assert 0.5 < longest < 1.5
    finally:
        sick.resume()
        consumer.stop(0)
        receiver.get(timeout=20)


@pytest.mark.parametrize("held", [False, True], ids=["holds nothing", "holds a job"])
def test_job_that_comes_late_goes_back_while_all_handlers_are_at_work(many_servers, held):
    """The connection that owes it may hold others, whose handlers run: they keep them."""
    good, sick = servers = many_servers(2)
    gate = gevent.event.Event()
    running: list[gstalk.Job] = []
    told: list[object] = []

    def handle(job: gstalk.Job) -> None:
        running.append(job)
        if job.body == b"gate":
            gate.wait()
        job.delete()

    with gstalk.dial(good.uri) as conn, gstalk.dial(sick.uri) as watcher:
        consumer, receiver = holding(servers, handle, 1 + held, lambda *error: told.append(error))
        try:
            if held:
                watcher.put("t", b"gate")
                wait_until(lambda: len(running) == 1)
            late = watcher.put("t", b"late", delay=1, priority=7)
            wait_until(lambda: is_asked_in_turn(consumer, sick))
            sick.pause()
            wait_until(lambda: owes(consumer, sick))
            conn.put("t", b"gate")
            wait_until(lambda: len(running) == 1 + held, 3)
            gevent.sleep(0.5)  # the late one is ready by now, and the ask that will find it is on its way
            sick.resume()
            wait_until(lambda: (watcher.stats_job(late).releases or 0) == 1)
            stats = watcher.stats_job(late)
            assert (stats.state, stats.pri, stats.reserves) == ("ready", 7, 1)
            assert len(running) == 1 + held
            gate.set()
            wait_until(lambda: watcher.peek(late) is None)
            assert [job.body for job in running] == [b"gate"] * (1 + held) + [b"late"]
            assert told == []
        finally:
            sick.resume()
            gate.set()
            consumer.stop(0)
            receiver.get(timeout=20)


def test_hub_that_was_blocked_takes_no_answer_for_late(many_servers):
    """What has come meanwhile is read before a permit is used elsewhere: else jobs would go back for nothing."""
    servers = many_servers(2)
    releases: list[int | None] = []

    def handle(job: gstalk.Job) -> None:
        releases.append(job.stats().releases)
        job.delete()

    consumer, receiver = holding(servers, handle, 1)
    conns = [gstalk.dial(server.uri) for server in servers]
    try:
        for number in range(1, 4):
            wait_until(lambda: all(is_asked_in_turn(consumer, server) for server in servers))
            for conn in conns:
                conn.put_many("t", [b""] * 10)
            wait_until(lambda: any(source.asks for source in consumer._run._asker._asking.sources))
            sleep(1.1)
            wait_until(lambda: len(releases) == 20 * number)  # noqa: B023
        assert set(releases) == {0}
    finally:
        for conn in conns:
            conn.close()
        consumer.stop(0)
        receiver.get(timeout=20)
