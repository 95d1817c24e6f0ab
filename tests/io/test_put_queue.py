"""A Producer's connections: who waits for one, who is served when, and that nobody holds the hub for long."""

from __future__ import annotations

import collections
import gc
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import gevent
import pytest

import gstalk
from gstalk.pool.put_queue import FULL, MOST_TOGETHER, TOGETHER, PutQueue
from gstalk.pool.puts import Put
from tests.servers import Played, wait_until
from tests.speed import slowness

pytestmark = [pytest.mark.real, pytest.mark.slow]

QUIET: dict[str, Any] = {"error_func": lambda error, message: None, "info_func": lambda message: None}
LONGEST = 0.05  # seconds of this process's own time for which the hub may be held, on a machine as fast as ours


class Hub:
    """Measures for how long the hub is held; in the thread's own time, so that others on the machine don't count."""

    def __init__(self) -> None:
        self.longest = 0.0
        self.turns = 0
        self.bound = LONGEST * slowness()

    def run(self) -> None:
        last = time.thread_time()
        while True:
            gevent.sleep(0.001)
            now = time.thread_time()
            self.longest = max(self.longest, now - last)
            self.turns += 1
            last = now


@contextmanager
def watched() -> Iterator[Hub]:
    """The collector's own pauses grow with what the test keeps; they are not gstalk's."""
    hub = Hub()
    gc.collect()
    gc.disable()
    ticking = gevent.spawn(hub.run)
    gevent.sleep(0.01)
    hub.longest = 0.0
    try:
        yield hub
    finally:
        ticking.kill()
        gc.enable()


def quickest(look: Callable[[], Hub]) -> Hub:
    """One of three looks counts: a process that had no processor for a while finds more to do at once."""
    for _ in range(2):
        if (hub := look()).longest < hub.bound:
            return hub
    return look()


@pytest.fixture
def counted(monkeypatch) -> collections.Counter[str]:
    """How often a put looks for a connection, and those in line are looked at."""
    seen: collections.Counter[str] = collections.Counter()

    def count(kind: type, name: str) -> None:
        method = getattr(kind, name)

        def counting(*args: Any, **kwargs: Any) -> Any:
            seen[name] += 1
            return method(*args, **kwargs)

        monkeypatch.setattr(kind, name, counting)

    for name in ("take", "_enqueue", "wait", "done"):
        count(PutQueue, name)
    count(Put, "choose")
    return seen


def connected(producer: gstalk.Producer, count: int) -> None:
    wait_until(lambda: len(producer._queue.pool.connections) == count, 20)


def outcomes(producer: gstalk.Producer, count: int, timeout: float = 30) -> tuple[collections.Counter[str], list[Any]]:
    """Have so many greenlets put one job each."""
    ended: collections.Counter[str] = collections.Counter()

    def put() -> None:
        try:
            producer.put("default", b"x", timeout=timeout)
        except gstalk.GstalkError as error:
            ended[type(error).__name__] += 1
        else:
            ended["id"] += 1

    return ended, [gevent.spawn(put) for _ in range(count)]


# -- the hub -----------------------------------------------------------------------------------------------------


def test_put_many_of_a_million_bodies_that_are_refused_does_not_hold_the_hub(play):
    with gstalk.Producer(play({"put": b"DRAINING\r\n"}).uri, **QUIET) as producer:
        with pytest.raises(gstalk.DrainingError):
            producer.put("default", b"x")
        with watched() as hub, pytest.raises(gstalk.PutManyError) as caught:
            producer.put_many("default", itertools.repeat(b"x", 300_000))
    assert len(caught.value.results) == 300_000
    assert hub.turns > 50
    assert hub.longest < hub.bound


@pytest.mark.parametrize("kind", ["producer", "conn"])
def test_put_many_of_bad_bodies_does_not_hold_the_hub(server, kind):
    with ExitStack() as stack:
        putter: Any = stack.enter_context(
            gstalk.Producer(server.uri) if kind == "producer" else gstalk.dial(server.uri)
        )
        with watched() as hub, pytest.raises(gstalk.PutManyError) as caught:
            putter.put_many("default", itertools.repeat("text", 100_000))
    assert len(caught.value.results) == 100_000
    assert hub.turns > 5
    assert hub.longest < hub.bound


def test_put_many_of_bodies_without_end_can_be_interrupted(play):
    with gstalk.Producer(play({"put": b"DRAINING\r\n"}).uri, **QUIET) as producer:
        with pytest.raises(gstalk.DrainingError):
            producer.put("default", b"x")
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.2):
            producer.put_many("default", itertools.repeat(b"x"))
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.2):
            producer.put_many("default", itertools.repeat(b"x"), timeout=0)


@pytest.mark.parametrize("timeout", [0, 5])
def test_puts_that_are_refused_one_after_the_other_do_not_hold_the_hub(play, timeout):
    with gstalk.Producer(play({"put": b"DRAINING\r\n"}).uri, **QUIET) as producer:
        with pytest.raises(gstalk.DrainingError):
            producer.put("default", b"x")
        with watched() as hub:
            for _ in range(20_000):
                with suppress(gstalk.DrainingError):
                    producer.put("default", b"x", timeout=timeout)
    assert hub.turns > 5
    assert hub.longest < hub.bound


@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("count", [4000, 16_000])
def test_puts_when_all_servers_begin_to_drain_do_not_hold_the_hub(play, count, servers):
    def look() -> Hub:
        held: list[Any] = []

        def late(line: bytes) -> bytes:
            if not held:
                gevent.sleep(0.3 + count / 10_000)  # until all stand in line
                held.append(line)
            return b"DRAINING\r\n"

        played = [play({"put": late}) for _ in range(servers)]
        with gstalk.Producer([each.uri for each in played], **QUIET) as producer:
            connected(producer, servers)
            ended, puts = outcomes(producer, count)
            with watched() as hub:
                gevent.joinall(puts)
        assert ended == {"DrainingError": count}
        return hub

    hub = quickest(look)
    assert hub.longest < hub.bound


@pytest.mark.parametrize("silent", [False, True])
def test_puts_whose_time_is_over_together_do_not_hold_the_hub(play, silent):
    uri = play({"put": b""}).uri if silent else "127.0.0.1:1"

    def look() -> Hub:
        with gstalk.Producer(uri, conn_timeout=60, **QUIET) as producer:
            if silent:
                connected(producer, 1)
            ended, puts = outcomes(producer, 8000, timeout=2)
            with watched() as hub:
                gevent.joinall(puts)
        assert ended == {"PutTimeoutError": 8000}
        return hub

    hub = quickest(look)
    assert hub.longest < hub.bound


def test_puts_with_many_servers_that_are_down_do_not_hold_the_hub(tmp_path):
    uris = [f"unix://{tmp_path}/{number}" for number in range(300)]
    with gstalk.Producer(uris, **QUIET) as producer:
        gevent.sleep(0.5)  # each was dialed once
        ended, puts = outcomes(producer, 3000, timeout=2)
        with watched() as hub:
            gevent.joinall(puts)
        with pytest.raises(gstalk.PutTimeoutError) as caught:
            producer.put("t", b"", timeout=0)
    assert ended == {"PutTimeoutError": 3000}
    assert set(caught.value.causes) == set(uris)
    assert hub.longest < hub.bound


# -- the work ----------------------------------------------------------------------------------------------------


def steps(play: Callable[..., Played], counted: collections.Counter[str], count: int, multiply: int) -> float:
    """How many for each put, when a server begins to drain."""
    held: list[Any] = []

    def late(line: bytes) -> bytes:
        if not held:
            gevent.sleep(0.5)
            held.append(line)
        return b"DRAINING\r\n"

    with gstalk.Producer(play({"put": late}).uri, multiply=multiply, **QUIET) as producer:
        connected(producer, multiply)
        counted.clear()
        ended, puts = outcomes(producer, count)
        gevent.joinall(puts)
        assert ended == {"DrainingError": count}
        return sum(counted.values()) / count


def test_work_of_a_put_that_is_refused_does_not_grow_with_those_in_line(play, counted):
    few, many = steps(play, counted, 2000, 1), steps(play, counted, 8000, 1)
    assert many < few * 1.2 < 12


def test_work_of_a_put_that_is_refused_does_not_grow_with_the_connections(play, counted):
    few, many = steps(play, counted, 3000, 1), steps(play, counted, 3000, 30)
    assert many < few * 1.2


# -- the load ----------------------------------------------------------------------------------------------------


def test_puts_one_after_the_other_go_to_each_connection_in_turn(play):
    played = [play() for _ in range(4)]
    with gstalk.Producer([each.uri for each in played]) as producer:
        connected(producer, 4)
        for _ in range(12):
            producer.put("default", b"x")
    assert [each.count("put") for each in played] == [3] * 4


@pytest.mark.parametrize("servers", [2, 4])
def test_puts_at_the_same_time_share_a_connection_some_at_a_time(play, monkeypatch, servers):
    monkeypatch.setattr("gstalk.pool.put_queue.TOGETHER", 60)  # a busy machine needs longer than a millisecond
    played = [play() for _ in range(4)]
    with gstalk.Producer([each.uri for each in played]) as producer:
        connected(producer, 4)
        ended, puts = outcomes(producer, servers * MOST_TOGETHER)
        gevent.joinall(puts)
        assert ended == {"id": servers * MOST_TOGETHER}
    assert sorted(each.count("put") for each in played) == [0] * (4 - servers) + [MOST_TOGETHER] * servers
    for each in played:
        assert len([data for data in each.reads if b"put " in data]) <= 2  # the first one goes out at once


def test_put_does_not_follow_another_that_has_waited_for_its_answer(play):
    """Its server may be slow; the others have nothing to do."""
    played = [play({"put": b""}), play(), play()]
    with gstalk.Producer([each.uri for each in played]) as producer:
        connected(producer, 3)
        waiting: list[Any] = []
        while not played[0].count("put"):
            waiting.append(gevent.spawn(producer.put, "default", b"x"))
            gevent.sleep(2 * TOGETHER)
        for _ in range(2):
            assert producer.put("default", b"x", timeout=5)
        assert played[0].count("put") == 1
        gevent.killall(waiting)


def test_put_tried_again_does_not_follow_others_to_a_server_that_has_failed_it(play, monkeypatch):
    """While another put that came at the same time is still under way there."""
    monkeypatch.setattr("gstalk.pool.put_queue.TOGETHER", 60)
    said = iter([b"INTERNAL_ERROR\r\n"])
    bad, good = play({"put": lambda line: next(said, b"")}), play()
    with gstalk.Producer([bad.uri, good.uri]) as producer:
        connected(producer, 2)
        if producer._queue._queue.queue[0].server.uri != bad.uri:
            producer.put("default", b"x")
        puts = [gevent.spawn(producer.put, "default", b"x") for _ in range(2)]
        assert puts[0].get(timeout=5)
        assert (bad.count("put"), puts[1].ready()) == (2, False)
        gevent.killall(puts)


# -- the line ----------------------------------------------------------------------------------------------------


def test_puts_in_line_are_served_in_order_and_those_that_come_later_after_them(play):
    """More greenlets than a connection takes, each of which puts again at once."""
    ids = itertools.count(1)

    def answer(line: bytes) -> bytes:
        if next(ids) % 100 == 0:
            gevent.sleep(0)
        return b"INSERTED 1\r\n"

    with gstalk.Producer(play({"put": answer}).uri) as producer:
        connected(producer, 1)
        counts: collections.Counter[int] = collections.Counter()

        def put(number: int) -> None:
            for _ in range(8):
                producer.put("default", b"x")
                counts[number] += 1
                assert counts[number] - min(counts[other] for other in (0, FULL, FULL + 499)) <= 3

        gevent.joinall([gevent.spawn(put, number) for number in range(FULL + 500)], raise_error=True)


def test_put_interrupted_in_line_leaves_its_place_to_the_next(play, monkeypatch):
    monkeypatch.setattr(PutQueue, "_tick", lambda self: None)  # which would help, later
    with gstalk.Producer(play().uri) as producer:
        connected(producer, 1)
        queue = producer._queue
        (member,) = queue._members.values()
        member.health.stall()
        puts = [gevent.spawn(producer.put, "default", b"x", timeout=10) for _ in range(4)]
        gevent.sleep(0)
        assert len(queue._line) == 4
        puts[1].kill()
        member.health.answer()
        queue._enqueue(member)
        puts[0].kill(block=False)  # in the turn in which it would have been served
        gevent.joinall(puts, timeout=2)
        assert [each.value for each in puts[2:]] == [1, 2] or [each.value for each in puts[2:]] == [2, 3]
        assert not queue._line


def test_connection_lost_from_the_queue_by_a_signal_is_found_again(play):
    """As if Ctrl-C had struck between taking it out and putting it back, with another connection still there."""
    with gstalk.Producer(play().uri, multiply=2) as producer:
        connected(producer, 2)
        queue = producer._queue
        producer.put("default", b"x")
        queue._queue.get_nowait()
        assert producer.put("default", b"x")
        wait_until(lambda: queue._queue.qsize() == 2, 2)
