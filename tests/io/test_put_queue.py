"""A Producer's connections: who waits for one, who is served when, and that nobody holds the hub for long."""

from __future__ import annotations

import collections
import gc
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent.event import Event
from greenlet import settrace

import gstalk
from gstalk.connection.clock import monotonic
from gstalk.connection.pipeline import Pipeline
from gstalk.pool import put_queue
from gstalk.pool.put_queue import FULL, MOST_TOGETHER, NEVER, TOGETHER, PutQueue, Try
from gstalk.pool.puts import Put
from gstalk.testing import Beanstalkd
from tests.io.striking import Strike
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

    for name in ("send", "_serve_one", "enqueue", "stand", "done"):
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
        queue.enqueue(member)
        puts[0].kill(block=False)  # in the turn in which it would have been served
        gevent.joinall(puts, timeout=2)
        assert [each.value for each in puts[2:]] == [1, 2] or [each.value for each in puts[2:]] == [2, 3]
        assert not queue._line


def test_put_in_line_is_sent_by_the_hub_and_its_greenlet_wakes_up_when_the_answer_is_there(play, monkeypatch):
    monkeypatch.setattr(put_queue, "FULL", 2)
    played = play()
    with gstalk.Producer(played.uri) as producer:
        connected(producer, 1)
        ended, puts = outcomes(producer, 7)
        wakened: collections.Counter[Any] = collections.Counter()

        def note(event: str, greenlets: tuple[Any, Any]) -> None:
            wakened[greenlets[1]] += 1

        before = settrace(note)
        try:
            gevent.joinall(puts)
        finally:
            settrace(before)
        assert ended == {"id": 7}
        assert [wakened[put] for put in puts] == [2] * 7  # to begin, and to end
    assert played.count("put") == 7


def test_put_interrupted_in_line_has_sent_nothing_and_one_whose_bytes_have_gone_has(play, monkeypatch):
    monkeypatch.setattr(put_queue, "FULL", 1)
    answer = Event()

    def late(_: bytes) -> bytes:
        answer.wait()
        answer.clear()
        return b"INSERTED 1\r\n"

    played = play({"put": late})
    with gstalk.Producer(played.uri, conn_timeout=60) as producer:
        connected(producer, 1)
        queue = producer._queue
        (member,) = queue._members.values()
        first, second, third = puts = outcomes(producer, 3)[1]
        wait_until(lambda: played.count("put") == 1 and len(queue._line) == 2, 5)
        second.kill()
        first.kill()
        assert (len(queue._line), len(member.pipe.requests)) == (1, 1)  # the server works at it, whoever waits
        answer.set()  # its place on the connection is free: the hub sends the third one
        wait_until(lambda: played.count("put") == 2, 5)
        assert (len(queue._line), len(member.pipe.requests), third.ready()) == (0, 1, False)
        third.kill()
        assert (queue.puts, member.in_queue) == (0, False)
        answer.set()
        wait_until(lambda: member.in_queue and not member.pipe.requests, 5)  # though nobody puts
        assert played.count("put") == 2
        assert all(put.ready() for put in puts)


def test_connection_lost_from_the_queue_by_a_signal_is_found_again(play):
    """As if Ctrl-C had struck between taking it out and putting it back, with another connection still there."""
    with gstalk.Producer(play().uri, multiply=2) as producer:
        connected(producer, 2)
        queue = producer._queue
        producer.put("default", b"x")
        queue._queue.get_nowait()
        assert producer.put("default", b"x")
        wait_until(lambda: queue._queue.qsize() == 2, 2)


def test_put_that_a_signal_left_counted_keeps_no_timer_when_the_producer_has_stopped(play):
    """As if Ctrl-C had struck between counting it and the rest: it would ring 20 times a second for ever."""
    producer = gstalk.Producer(play().uri)
    producer.put("default", b"x")
    queue = producer._queue
    queue.puts += 1
    assert queue._ticker is not None
    producer.stop(0)
    wait_until(lambda: queue._ticker is None)


# -- the queue by itself -----------------------------------------------------------------------------------------


@pytest.fixture
def start(play: Callable[..., Played], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., PutQueue]]:
    """The queue of a Producer with so many connections to each of these servers; nothing of it ticks."""
    monkeypatch.setattr(put_queue, "TICK", 3600.0)
    with ExitStack() as stack:

        def connect(*servers: dict[str, Any], multiply: int = 1) -> PutQueue:
            played = [play(replies) for replies in servers or ({},)]
            producer = gstalk.Producer([each.uri for each in played], multiply=multiply, **QUIET)
            stack.callback(producer.stop, 0)
            connected(producer, multiply * len(played))
            return producer._queue

        yield connect


PUT = b"put 0 0 60 0\r\n\r\n"


def take(queue: PutQueue) -> Any:
    """Send a put; tells on which connection."""
    put = Try(NEVER)
    queue.send(put, "default", PUT, gevent.getcurrent(), monotonic())
    return put.member


def places(queue: PutQueue, *deadlines: float, data: bytes = b"") -> list[Try]:
    """Have so many stand in line, for somebody who does nothing when he is wakened."""
    made = [Try(deadline) for deadline in deadlines]
    for put in made:
        put.waiter = SimpleNamespace(switch=lambda: None)
        queue.stand(put, "default", data)
        assert not put.is_settled
    return made


def leave(queue: PutQueue) -> None:
    for put in list(queue._line):
        queue.done(put)


def test_connection_with_as_many_puts_as_it_may_have_is_out_of_the_queue_until_one_has_ended(start):
    queue = start()
    taken = [take(queue) for _ in range(FULL)]
    (member,) = queue._members.values()
    requests = member.pipe.requests
    assert set(taken) == {member}
    assert (len(requests), member.in_queue, queue._queue.qsize(), take(queue)) == (FULL, False, 0, None)
    queue.enqueue(member)
    assert not member.in_queue
    for _ in range(2):
        queue.done(requests.popleft())
        assert (member.in_queue, queue._queue.qsize()) == (True, 1)
    assert take(queue) is member


@pytest.mark.parametrize("function", [PutQueue.send, PutQueue._take_head, PutQueue.done, PutQueue.enqueue])
def test_signal_that_strikes_at_any_line_of_a_put_costs_its_connection_no_place(start, monkeypatch, function):
    monkeypatch.setattr(put_queue, "FULL", 2)
    queue = start({"put": b""})
    (member,) = queue._members.values()
    for number in range(1, 50):
        put, strike = Try(NEVER), Strike(function, number)
        take(queue)  # with the next one the connection leaves the queue
        sys.settrace(strike.trace)
        try:
            queue.send(put, "default", PUT, gevent.getcurrent(), monotonic())
            member.pipe.requests.clear()  # as if they had been answered
            queue.done(put)
        except Strike:
            member.pipe.requests.clear()
        finally:
            sys.settrace(None)
        queue._tick()
        assert [take(queue), take(queue), take(queue)] == [member, member, None]
        member.pipe.requests.clear()
        queue._tick()
        if strike.lines_left > 0:
            break
    assert 5 < number < 49


@pytest.fixture
def alone(monkeypatch):
    """No put follows another on its connection."""
    monkeypatch.setattr(put_queue, "MOST_TOGETHER", 1)


@pytest.mark.usefixtures("alone")
def test_connections_are_taken_in_turn(start):
    queue = start(multiply=3)
    order = [take(queue) for _ in range(6)]
    assert order[:3] == order[3:]
    assert set(order) == set(queue._members.values())


@pytest.mark.usefixtures("alone")
def test_connection_that_has_no_room_or_whose_server_is_not_usable_is_passed_over(start):
    queue = start(multiply=3)
    stuck, good, last = queue._members.values()
    stuck.connection.pipe.clear = False
    assert {take(queue), take(queue)} == {good, last}
    assert not stuck.in_queue
    queue.enqueue(stuck)
    assert not stuck.in_queue  # it has no room yet
    stuck.connection.pipe.clear = True
    queue.enqueue(stuck)
    good.health.stall()
    assert take(queue) is None
    queue.enqueue(good)
    assert [member.in_queue for member in (stuck, good, last)] == [False] * 3
    good.health.answer()


def test_put_that_is_alone_looks_at_a_connection_that_was_silent_before_it_takes_it(start, monkeypatch):
    queue, looked = start(), []
    (member,) = queue._members.values()
    monkeypatch.setattr(Pipeline, "look", lambda pipe: looked.append(pipe))
    for puts, age in ((1, 1.0), (2, 1.0), (1, 0.0)):
        queue.puts, member.connection.pipe.read_at = puts, monotonic() - age
        take(queue)
    queue.puts = 0
    assert looked == [member.connection.pipe]


def test_those_in_line_come_before_whoever_comes_later(start):
    queue = start()
    assert not queue.has_line
    places(queue, NEVER)
    assert (queue.has_line, take(queue)) == (True, None)
    assert queue.take_other(frozenset()) is not None
    leave(queue)


def test_connection_to_another_server_is_looked_for_among_all_and_the_others_stay_in_the_queue(start):
    queue = start({}, {}, multiply=2)
    first, second = (server.uri for server in queue.pool.servers)
    for _ in range(3):
        member = queue.take_other(frozenset([first]))
        assert member.server.uri == second
    assert queue.take_other(frozenset([first, second])) is None
    assert queue._queue.qsize() == 4


def test_put_that_stands_in_line_is_looked_after_and_leaves_it_when_it_is_interrupted(start):
    queue = start()
    waiting = [gevent.spawn(Put(queue, "default", PUT, deadline, False, 0.0).wait) for deadline in (NEVER, 7e9, 5e9)]
    gevent.sleep(0)
    assert [place.deadline for place in queue._line] == [NEVER, 7e9, 5e9]
    assert (queue._earliest, queue._ticker.active) == (5e9, True)
    waiting[1].kill()
    assert [place.deadline for place in queue._line] == [NEVER, 5e9]
    gevent.killall(waiting)
    assert not queue.has_line


def test_puts_in_line_whose_time_is_over_come_first_in_their_order(start):
    queue = start()
    never, late, soon, latest, later = places(queue, NEVER, 8.0, 12.0, 10.0, 30.0)
    queue._end_late_in_line(10.0)
    assert list(queue._line) == [late, latest, never, soon, later]
    assert queue._earliest == 12.0
    queue._end_late_in_line(40.0)
    assert (list(queue._line), queue._earliest) == ([late, latest, soon, later, never], float("inf"))
    leave(queue)


def test_line_is_served_some_at_a_time_while_there_is_a_connection(start, monkeypatch):
    monkeypatch.setattr(put_queue, "AT_A_TIME", 2)
    queue = start()
    waiting = places(queue, *[NEVER] * 5)
    served: list[tuple[int, bool]] = []
    for _ in range(3):
        queue._serve()
        served.append((sum(place.is_settled for place in waiting), queue._serving))
        queue._serving = True  # else the hub would go on by itself
    assert served == [(2, True), (4, True), (5, False)]
    queue._queue.get_nowait()
    monkeypatch.setattr(put_queue, "monotonic", lambda: 10.0)
    (blocked, late) = places(queue, NEVER, 10.0)
    queue._serve()
    assert not blocked.is_settled  # there is nothing to see for him
    queue._line.move_to_end(late, last=False)
    queue._serve()
    assert (late.is_settled, blocked.is_settled) == (True, False)
    leave(queue)


@pytest.mark.parametrize("appended", [False, True])
def test_put_in_line_that_a_signal_strikes_when_it_is_sent_is_sent_once(start, monkeypatch, appended):
    queue = start({"put": b""})
    (member,) = queue._members.values()
    (put,) = places(queue, NEVER, data=PUT)
    append = Pipeline.append

    def struck(pipe: Pipeline, *args: Any) -> None:
        if appended:
            append(pipe, *args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "append", struck)
        with pytest.raises(KeyboardInterrupt):
            queue._serve()
    assert (len(queue._line), len(member.pipe.requests)) == (1, appended)
    queue._serve()
    assert (len(queue._line), list(member.pipe.requests)) == (0, [put])


def test_puts_in_line_wait_while_a_signal_handler_sleeps_in_the_middle_of_one_that_was_wakened(start):
    queue = start()
    first, second = places(queue, 0.0, 0.0)
    queue.section.owner = gevent.getcurrent()
    queue._serve()
    assert (first.is_settled, second.is_settled, queue._serving) == (True, False, True)
    wait_until(lambda: second.is_settled, 5)


class Ticker:
    """Stands in for the timer; `strikes`: a signal strikes in the middle of what sets `ref`."""

    def __init__(self, strikes: bool = False) -> None:
        self.seen = [False]
        self.strikes = strikes

    @property
    def ref(self) -> bool:
        return self.seen[-1]

    @ref.setter
    def ref(self, value: bool) -> None:
        if self.strikes:
            raise KeyboardInterrupt
        self.seen.append(value)

    def close(self) -> None:
        pass


def test_ticker_keeps_the_process_alive_while_somebody_stands_in_line(start):
    queue = start()
    (first,) = places(queue, NEVER)
    assert queue._ticker.ref
    queue.done(first)
    assert not queue._ticker.ref
    queue._stop_ticker()
    queue._ticker = ticker = Ticker()
    first, second = places(queue, NEVER, NEVER)
    queue.done(first)
    assert ticker.seen == [False, True]
    queue.done(second)
    assert ticker.seen == [False, True, False]
    places(queue, NEVER)
    queue._serve()
    assert ticker.seen == [False, True, False, True, False]


def test_signal_that_strikes_as_the_ticker_is_told_of_the_line_has_it_told_again(start):
    queue = start()
    queue._ticker = Ticker(strikes=True)
    with pytest.raises(KeyboardInterrupt):
        places(queue, NEVER)
    queue._ticker = ticker = Ticker()
    (last,) = places(queue, NEVER)
    assert ticker.seen == [False, True]
    for put in list(queue._line):
        queue.done(put)
    assert ticker.seen == [False, True, False], last


def test_put_that_nobody_waits_for_any_more_is_not_sent(start):
    """Its greenlet was interrupted, and a signal struck as it left the line; or it has been answered, and goes on."""
    queue = start({"put": b""})
    (member,) = queue._members.values()
    (put,) = places(queue, NEVER, data=PUT)
    put.waiter = None
    queue._serve()
    assert (put.is_settled, put.result, put.member) == (True, None, None)  # it would look again
    assert (len(queue._line), list(member.pipe.requests)) == (0, [])


@pytest.mark.usefixtures("alone")
def test_server_that_takes_no_jobs_is_left_alone_and_comes_back(start, monkeypatch):
    monkeypatch.setattr(put_queue, "ALONE", 0.05)
    queue = start({}, {})
    first, second = queue.pool.servers
    error = gstalk.DrainingError("put: draining")
    queue.leave_alone(first, error)
    assert (first.health.is_usable, second.health.is_usable, queue.refusal_of_all) == (False, True, None)
    timer = queue._resting[first.uri]
    queue.leave_alone(first, error)
    assert queue._resting == {first.uri: timer}  # it is not left alone for longer
    queue.leave_alone(second, gstalk.OutOfMemoryError("put: no room"))
    assert (str(queue.refusal_of_all), queue.is_hopeless, take(queue)) == ("put: no room", True, None)
    waiting = gevent.spawn(queue.pool.wait_change, 5)
    wait_until(lambda: not queue._resting, 5)
    assert waiting.get() is True  # whoever waits for a server that is usable is told
    assert (first.health.is_usable, queue.refusal_of_all, queue.is_hopeless) == (True, None, False)
    assert {take(queue).server, take(queue).server} == {first, second}


def test_end_waits_for_puts_under_way_no_longer_than_it_is_told(start):
    queue = start()
    queue.wait_idle(None)  # there is none
    queue.puts = 2
    waiting = gevent.spawn(queue.wait_idle, None)
    gevent.sleep(0)
    queue.leave()
    gevent.sleep(0.01)
    assert not waiting.ready()
    queue.leave()
    waiting.join(5)
    assert waiting.ready()
    queue.puts = 1
    for seconds in (0.0, 0.01):
        queue.wait_idle(seconds)
    queue.leave()
    assert queue.puts == 0


def test_end_that_begins_is_told_to_whoever_waits_for_a_server(start):
    queue = start()
    waiting = gevent.spawn(queue.pool.wait_change, 5)
    gevent.sleep(0)
    queue.begin_end()
    assert (waiting.get(), queue.is_ending, queue.is_ready) == (True, True, True)


def test_copy_in_a_child_is_the_parents_and_wakes_whoever_stands_in_line(start):
    queue = start()
    places(queue, NEVER)
    queue._start_ticker()
    assert (queue.is_ready, queue.is_parents) == (True, False)
    queue._forked()
    assert (queue.is_ready, queue.is_parents, queue._serving, queue._ticker) == (False, True, True, None)
    gevent.sleep(0)
    assert not queue.has_line
    queue.is_ending = True
    assert not queue.is_parents


def test_queue_whose_thread_has_ended_is_abandoned(start):
    queue = start({}, {})
    queue._start_ticker()
    queue.leave_alone(queue.pool.servers[0], gstalk.DrainingError("put: draining"))
    timers = [queue._ticker, *queue._resting.values()]
    assert not queue.is_abandoned
    for greenlet in queue.abandon():
        greenlet.kill()
    queue.leave_alone(queue.pool.servers[1], gstalk.DrainingError("put: draining"))  # an answer that was read before
    assert len(queue._resting) == 1
    assert (queue.is_ready, queue.is_ending, queue.is_abandoned) == (False, True, True)
    assert [timer.active for timer in timers] == [False, False]


def test_put_that_is_sent_is_looked_after_until_its_time_is_over(start, monkeypatch):
    queue = start({"put": b""})
    now = monotonic()
    monkeypatch.setattr(put_queue, "monotonic", lambda: now)
    requests = [Try(deadline) for deadline in (NEVER, now + 60, now, now + 30)]
    for put in requests:
        assert queue.send(put, "default", PUT, gevent.getcurrent(), now)
    (member,) = queue._members.values()
    pipe = member.connection.pipe
    assert list(pipe.requests) == requests
    assert member.earliest == requests[2].deadline
    assert queue._ticker.active
    queue.puts = 1
    queue._tick()
    assert [type(request.error) for request in requests] == [type(None)] * 2 + [gstalk.PutTimeoutError, type(None)]
    assert str(requests[2].error) == f"put at {pipe.uri}: no answer in time"
    assert (member.earliest, getattr(requests[2].error, "sent", "")) == (requests[3].deadline, "maybe")
    error, member.earliest = requests[2].error, now
    queue._tick()
    assert requests[2].error is error  # it is told once
    queue.puts = 0
    queue._tick()
    assert queue._ticker is None  # nobody puts any more
    assert queue.send(Try(now + 90), "default", PUT, gevent.getcurrent(), now)
    assert (member.earliest, queue._ticker is None) == (now + 90, False)


def test_put_to_another_tube_has_a_use_before_it(start):
    queue = start()
    (member,) = queue._members.values()
    puts = {Try(NEVER): tube for tube in ("default", "mail", "mail")}
    for put, tube in puts.items():
        assert queue.send(put, tube, PUT, gevent.getcurrent(), monotonic())
    assert [member.pipe.wait(put) for put in puts] == [1, 2, 3]
    assert member.connection.used == "mail"
    mine = Try(NEVER)
    assert queue.take_other(frozenset()) is member
    assert queue.send(mine, "mail", PUT, gevent.getcurrent(), 0.0, member)
    assert (mine.member, member.pipe.wait(mine)) == (member, 4)


@pytest.mark.usefixtures("alone")
def test_tick_mends_a_queue_that_holds_what_it_should_not(start):
    queue = start(multiply=2)
    first, second = queue._members.values()
    queue._queue.get_nowait()
    queue._queue.put_nowait(second)  # twice, and the other one not at all
    queue._queue.put_nowait(second)
    queue._tick()
    assert queue._queue.qsize() == 2
    assert {take(queue), take(queue)} == {first, second}


def test_connection_that_has_gone_is_a_member_no_more(start):
    queue = start(multiply=2)
    first, second = list(queue._members.values())
    queue._down(first.server, first.connection)
    queue._down(first.server, first.connection)  # a signal may have struck the first time
    assert list(queue._members.values()) == [second]
    assert queue._members_of[first.server] == {second.connection: second}
    first.connection.cut()


@pytest.mark.parametrize("puts", [0, 1])
def test_queue_that_another_thread_closes_is_severed_there_unless_puts_are_under_way_and_ends_in_its_own_hub(
    start, monkeypatch, puts
):
    queue, severed = start({}, {}), []
    monkeypatch.setattr(Pipeline, "sever", lambda pipe: severed.append(pipe))
    pipes = [member.connection.pipe for member in queue._members.values()]
    queue.leave_alone(queue.pool.servers[0], gstalk.DrainingError("put: draining"))
    (timer,) = queue._resting.values()
    queue.puts = puts
    queue.hub.threadpool.apply(queue.close_from_outside)
    assert (queue.is_ready, queue.is_ending) == (False, True)
    assert sorted(map(id, severed)) == ([] if puts else sorted(map(id, pipes)))
    wait_until(lambda: all(pipe.failure is not None for pipe in pipes), 5)
    assert not timer.active
    queue.puts = 0


def test_puts_that_end_without_a_wait_have_others_run_after_a_while(start, monkeypatch):
    queue = start()
    turns: list[int] = []

    def others_run(seconds: float) -> bool:
        monkeypatch.setattr(put_queue, "BREATH", seconds)
        turns.clear()
        queue.hub.loop.run_callback(turns.append, 1)
        queue.breathe()
        return bool(turns)

    assert not others_run(60.0)  # from here on
    assert queue._held_since is not None
    assert not others_run(60.0)
    assert others_run(-1.0)
    gevent.sleep(0)
    assert queue._held_since is None  # the hub has run: a new while


def test_look_at_all_connections_is_none_where_a_read_may_be_under_way(start, monkeypatch):
    queue, looked = start(multiply=2), []
    monkeypatch.setattr(Pipeline, "look", lambda pipe: looked.append((pipe, queue.section.owner)))
    queue.look()
    assert {pipe for pipe, _ in looked} == {member.connection.pipe for member in queue._members.values()}
    assert {owner for _, owner in looked} == {gevent.getcurrent()}
    looked.clear()
    with queue.section:
        queue.look()
    assert looked == []


def test_large_bodies_of_put_many_wait_for_the_connections_room_and_not_for_the_next_tick(monkeypatch):
    """A megabyte waits to be sent at most; whether there is room is seen behind the read that brought an answer."""
    monkeypatch.setattr(put_queue, "TICK", 5)
    with Beanstalkd("-z", "2000000") as server, gstalk.Producer(server.uri) as producer:
        assert producer.wait_connected(5)
        began = time.monotonic()
        assert len(producer.put_many("large", [b"x" * 1_100_000] * 5)) == 5
        assert time.monotonic() - began < 5
