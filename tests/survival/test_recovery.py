"""How soon everything is back after an outage, and how gently it asks meanwhile."""

from __future__ import annotations

import _socket
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.server import StreamServer

import gstalk
from gstalk.pool.schedule import Backoff
from gstalk.testing import Beanstalkd, FaultProxy
from tests.servers import wait_until

pytestmark = [pytest.mark.real, pytest.mark.limit(600)]

SLACK = 0.5  # seconds beyond `reconnect_timeout`, as promised


class Client:
    """A Producer and a Consumer with a tube of their own, and when each of them connected last."""

    def __init__(self, uri: str | list[str], tube: str, **options: Any) -> None:
        self.tube = tube
        self.errors: list[BaseException] = []
        self.connected: dict[str, float] = {}
        self.handled: list[bytes] = []
        config = gstalk.Config(
            info_func=lambda message: None, error_func=lambda error, message: self.errors.append(error), **options
        )
        self.producer = gstalk.Producer(uri, config, event_func=self.note("producer"))
        self.consumer = gstalk.Consumer(uri, tube, config, event_func=self.note("consumer"))
        self.receiver = gevent.spawn(self.consumer.receive, self.handle)

    def note(self, who: str) -> Callable[[gstalk.Event], None]:
        def event(event: gstalk.Event) -> None:
            if event.kind == "connect":
                self.connected[who] = monotonic()

        return event

    def handle(self, job: gstalk.Job) -> None:
        job.delete()
        self.handled.append(job.body)

    def stop(self) -> None:
        self.consumer.stop(0)
        self.producer.stop(0)
        self.receiver.get(timeout=20)


@contextmanager
def clients(uri: str, count: int, **options: Any) -> Iterator[list[Client]]:
    """So many of them, connected."""
    with ExitStack() as stack:
        some = [Client(uri, f"client-{number}", **options) for number in range(count)]
        for client in some:
            stack.callback(client.stop)
        wait_until(lambda: all(len(client.connected) == 2 for client in some))
        yield some


def watched(conn: gstalk.Conn, some: list[Client]) -> bool:
    """Whether the server says that each client's Consumer watches its tube."""
    tubes = set(conn.list_tubes())
    return all(client.tube in tubes and conn.stats_tube(client.tube).current_watching for client in some)


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(int(len(values) * part), len(values) - 1)]


# -- how soon ----------------------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timing
def test_restart_after_an_outage_all_are_back_in_time(own_server: Beanstalkd, connect, many, figures):
    """Puts that wait meanwhile succeed, and each Consumer watches its tube again."""
    count, rounds, pause = many(20, 100), many(1, 5), many(1, 3)
    puts: list[float] = []
    back: list[float] = []

    def put(client: Client) -> float:
        client.producer.put(client.tube, b"waited", timeout=60)
        return monotonic()

    with clients(own_server.uri, count, reconnect_timeout=pause) as some:
        for _ in range(rounds):
            for client in some:
                client.connected.clear()
                client.handled.clear()
            own_server.kill()
            waiting = [gevent.spawn(put, client) for client in some]
            gevent.sleep(2.5 * pause)
            own_server.start()
            up = monotonic()
            puts += [each.get(timeout=60) - up for each in waiting]
            wait_until(lambda: all(len(client.connected) == 2 and client.handled for client in some))
            assert watched(connect(own_server.uri), some)
            back += [client.connected["consumer"] - up for client in some]
            assert all(client.handled == [b"waited"] for client in some)
    figures |= {"clients": count, "outages": rounds, "reconnect_timeout": pause}
    for name, values in (("put", puts), ("consumer", back)):
        figures |= {f"{name} p{round(part * 100)}": round(percentile(values, part), 2) for part in (0.5, 0.99, 1)}
        assert percentile(values, 0.99) < pause + SLACK


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timing
def test_restart_at_once_all_are_back_within_a_second(own_server: Beanstalkd, many, figures):
    """With the defaults; over and over again, and idle Consumers too, which hear nothing between two restarts."""
    rounds, count = many(5, 50), 20
    back: list[float] = []
    outages: list[float] = []
    restarts = 0
    with clients(own_server.uri, count) as some:
        while restarts < rounds or (
            len(outages) <= rounds / 2 and restarts < 5 * rounds
        ):  # a busy machine has long ones
            restarts += 1
            for client in some:
                client.connected.clear()
            down = monotonic()
            own_server.restart()
            up = monotonic()
            wait_until(lambda: all(len(client.connected) == 2 for client in some))
            if up - down < 0.2:
                outages.append(up - down)
                back += [when - up for client in some for when in client.connected.values()]
    if len(outages) <= rounds / 2:
        pytest.skip("so slow a machine that a server takes long to restart")
    figures |= {"restarts": restarts, "longest outage": round(max(outages), 3)}
    figures |= {f"back p{round(part * 100)}": round(percentile(back, part), 2) for part in (0.5, 0.99, 1)}
    assert max(back) < 1


def test_clean_restart_of_idle_pools_makes_no_put_ambiguous(own_server: Beanstalkd, many, figures):
    rounds = many(5, 50)
    options: dict[str, Any] = {
        "multiply": 5,
        "reconnect_timeout": 0.1,
        "retry_ambiguous": False,
        "info_func": lambda message: None,
    }
    options["error_func"] = lambda error, message: None
    producers = [gstalk.Producer(own_server.uri, **options) for _ in range(5)]
    try:
        for _ in range(rounds):
            wait_until(lambda: all(len(producer._queue.pool.connections) == 5 for producer in producers), 20)
            os.kill(own_server.pid, signal.SIGTERM)
            own_server.restart()
            puts = [gevent.spawn(each.put, "default", b"", timeout=20) for each in producers for _ in range(10)]
            gevent.joinall(puts, raise_error=True)
    finally:
        for producer in producers:
            producer.stop(0)
    figures |= {"restarts": rounds, "puts": rounds * 50, "ambiguous": 0}


def test_idle_cut_is_no_error_and_loses_nothing(own_server: Beanstalkd):
    """Proxies cut idle connections all day."""
    with FaultProxy(own_server.uri) as proxy, clients(proxy.uri, 1) as (client,):
        for number in range(3):
            client.connected.clear()
            proxy.close_all()
            wait_until(lambda: len(client.connected) == 2)
            client.producer.put(client.tube, b"%d" % number)
            wait_until(lambda: client.handled[-1:] == [b"%d" % number])  # noqa: B023  # awaited here
        assert client.errors == []
        assert len(client.handled) == 3


# -- how gently --------------------------------------------------------------------------------------------------


def attempts(rng: random.Random, clients: int, longest: float, seconds: float) -> list[float]:
    """When simulated clients, which lost their server at 0, dial it in vain."""
    when = []
    for _ in range(clients):
        backoff, now = Backoff(longest), 0.0
        while (now := now + backoff.pause(rng.random())) < seconds:
            when.append(now)
    return sorted(when)


@pytest.mark.parametrize("seconds", [5, 20, 60])
def test_thousand_clients_that_lost_their_server_do_not_come_in_waves(rng, seconds, figures):
    """From one second after the loss on, no 100 ms see more than three times the mean number of attempts."""
    late = [when for when in attempts(rng, 1000, 3, seconds) if when >= 1]
    mean = len(late) / (seconds - 1) / 10
    first = most = 0
    for number, when in enumerate(late):
        while late[first] <= when - 0.1:
            first += 1
        most = max(most, number - first + 1)
    figures |= {"attempts in 100 ms": f"mean {mean:.0f}, most {most}"}
    assert most <= 3 * mean


@pytest.mark.slow
@pytest.mark.timing
def test_server_that_closes_at_once_is_dialed_less_than_ten_times_a_second():
    """By each connection; also one that answers a connection's first commands, and closes then."""
    dials: dict[bytes, list[float]] = {b"": [], b"OK 10\r\n---\nid: 4a\n\r\nWATCHING 2\r\nWATCHING 1\r\n": []}
    with ExitStack() as stack:
        for says, when in dials.items():

            def serve(sock: socket.socket, address: object, says: bytes = says, when: list[float] = when) -> None:
                when.append(monotonic())
                if says:
                    sock.recv(1000)
                    sock.sendall(says)

            server = StreamServer(("127.0.0.1", 0), serve)
            server.start()
            stack.callback(server.stop)
            stack.callback(Client(f"127.0.0.1:{server.server_port}", "t").stop)
        gevent.sleep(2.5)
    for when in dials.values():
        assert len(when) >= 2 * 3  # they do try
        assert max(sum(first <= each < first + 1 for each in when) for first in when) <= 2 * 10


# -- names -------------------------------------------------------------------------------------------------------


def test_name_is_resolved_anew_at_each_dial(own_server: Beanstalkd, monkeypatch):
    """A server that fails over to another address is found there."""
    asked: list[str] = []

    def look_up(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        # Nobody listens at the second address.
        place = "127.0.0.2" if len(asked) in (3, 4, 5, 6) else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (place, port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with clients(f"queue.example:{own_server.port}", 1, reconnect_timeout=0.1) as (client,):
        known = len(asked)
        client.connected.clear()
        own_server.restart()
        wait_until(lambda: len(client.connected) == 2)
        assert known <= 2  # one look-up may serve two that dial at the same time
        assert len(asked) > known + 2
        client.producer.put(client.tube, b"found")
        wait_until(lambda: client.handled == [b"found"])


@pytest.mark.slow
def test_resolver_that_hangs_blocks_nobody_else(own_server: Beanstalkd, monkeypatch):
    """Look-ups run in gevent's threads, of which there are ten: clients of one dead name must not take them all."""
    answers = threading.Event()
    hanging: list[str] = []
    native = _socket.getaddrinfo

    def look_up(host: Any, *args: Any) -> Any:
        if host in ("dead.example", b"dead.example"):
            hanging.append(host)
            answers.wait(30)
            return []
        return native(host, *args)

    monkeypatch.setattr(_socket, "getaddrinfo", look_up)
    with ExitStack() as stack:
        stack.callback(answers.set)
        uris = ["dead.example", f"localhost:{own_server.port}"]
        some = [Client(uris, f"client-{n}", conn_timeout=0.2, reconnect_timeout=0.1) for n in range(20)]
        for client in some:
            stack.callback(client.stop)
        wait_until(lambda: all(len(client.connected) == 2 for client in some))
        for _ in range(5):
            gevent.sleep(0.2)  # meanwhile they all give up on the dead name, and try again
            began = time.monotonic()
            assert socket.getaddrinfo("localhost", 80)
            assert client.producer.put(client.tube, b"")
            assert time.monotonic() - began < 5  # those of the dead name hang for half a minute
        wait_until(lambda: len(client.handled) == 5)
        assert len(hanging) == 1
