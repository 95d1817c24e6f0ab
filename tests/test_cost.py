"""What a put, a job and an import cost, counted, not timed: the same on every machine, and broken by a careless change.

The server is the embedded one, in this process and on this hub, so that who runs when doesn't depend on how fast the
machine is.
"""

from __future__ import annotations

import collections
import gc
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from time import process_time
from typing import Any

import gevent
import pytest
from gevent import socket

import gstalk
from benchmarks.footprint import NEEDED
from gstalk.connection import pipeline
from gstalk.connection.pipeline import Pipeline
from gstalk.connection.transport import Transport
from gstalk.errors import DrainingError
from gstalk.pool import put_queue
from gstalk.pool.permits import Asking, Source
from gstalk.protocol import commands
from gstalk.protocol.request import Outcome, Request
from gstalk.protocol.stream import Stream
from gstalk.testing import Server
from tests.servers import wait_until
from tests.test_layers import ROOT, room

pytestmark = pytest.mark.timing  # how many answers come at a time depends on what else runs

HOUSE = str(Path(gstalk.__file__).parent)
WING = str(Path(HOUSE, "testing"))


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


def spread(count: int, greenlets: int, do: Callable[[], object], prepare: Callable[[], object] = int) -> None:
    """Have greenlets do something so many times between them."""
    numbers = iter(range(count))

    def work() -> None:
        prepare()
        for _ in numbers:
            do()

    gevent.joinall([gevent.spawn(work) for _ in range(greenlets)], raise_error=True)


class Calls:
    """Counts the calls that gstalk makes, of its own functions and of others, C's included; not the server's."""

    def __init__(self) -> None:
        self.seen: collections.Counter[str] = collections.Counter()

    def note(self, frame: Any, event: str, argument: Any) -> None:
        caller = frame.f_back if event == "call" else frame
        if caller is None or not event.endswith("call"):
            return
        place = caller.f_code.co_filename
        if place.startswith(HOUSE) and not place.startswith(WING):
            name = frame.f_code.co_name if event == "call" else argument.__name__
            self.seen[f"{Path(place).name}: {caller.f_code.co_name} -> {name}"] += 1

    def watch(self) -> None:
        """Begin to count in this greenlet: each has a profile function of its own, the hub too."""
        sys.setprofile(self.note)

    def each(self, count: int) -> float:
        """How many for each of so many times."""
        gevent.get_hub().loop.run_callback(sys.setprofile, None)
        gevent.sleep(0)
        sys.setprofile(None)
        print(sum(self.seen.values()) / count)
        print(*(f"{number / count:8.3f} {name}" for name, number in self.seen.most_common()), sep="\n")
        return sum(self.seen.values()) / count


def calls(count: int, greenlets: int, do: Callable[[], object]) -> float:
    """How many calls gstalk makes for each time that something is done."""
    counted = Calls()
    spread(2 * greenlets, greenlets, do)
    gevent.get_hub().loop.run_callback(counted.watch)
    spread(count, greenlets, do, counted.watch)
    return counted.each(count)


def work_off(uri: str, jobs: int, begin: Callable[[int], object] = int, end: Callable[[int], object] = int) -> None:
    """Have a Consumer delete so many jobs; `begin` and `end` are told the number of each."""
    consumer = gstalk.Consumer(uri, "work", num_greenlets=64)
    done = 0

    def handler(job: gstalk.Job) -> None:
        nonlocal done
        number = done = done + 1
        begin(number)
        job.delete()
        end(number)
        if number == jobs:
            consumer.stop()

    consumer.receive(handler)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[collections.Counter[str]]:
    """Count the sends and reads of all connections, the system's own calls."""
    seen: collections.Counter[str] = collections.Counter()
    read, send = Transport.read, Transport._send

    def counting_read(self: Transport) -> bytes | None:
        seen["read"] += 1
        return read(self)

    def counting_send(self: Transport, data: bytes | memoryview) -> int:
        seen["send"] += 1
        return send(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Transport, "read", counting_read)
        patch.setattr(Transport, "_send", counting_send)
        yield seen


# The bounds leave room for less than one call more: a look at something else, a log line, a sorted list.


def test_put_many_greenlets_makes_few_calls(server):
    with gstalk.dial(server.uri) as conn:
        assert calls(2000, 64, lambda: conn.put("default", b"hello world")) < 19


def test_producer_put_many_greenlets_makes_few_calls(server):
    with gstalk.Producer(server.uri) as producer:
        producer.wait_connected()
        assert calls(2000, 64, lambda: producer.put("default", b"hello world")) < 21.5


def test_producer_put_that_stands_in_line_makes_few_calls(server):
    """More greenlets than one connection takes: each is wakened once, by its answer."""
    with gstalk.Producer(server.uri) as producer:
        producer.wait_connected()
        assert calls(6000, 1500, lambda: producer.put("default", b"hello world")) < 36.7


def test_producer_put_many_makes_few_calls(server):
    counted = Calls()
    with gstalk.Producer(server.uri) as producer:
        producer.wait_connected()
        gevent.get_hub().loop.run_callback(counted.watch)
        spread(1, 1, lambda: producer.put_many("default", [b"hello world"] * 1000), counted.watch)
        assert counted.each(1000) < 24.3


def test_producer_put_costs_the_same_with_many_connections(server, monkeypatch):
    """Puts share reads and sends, each of which costs more than a put."""
    monkeypatch.setattr(put_queue, "TOGETHER", 60)  # a millisecond is short for a process that is being counted
    monkeypatch.setattr(put_queue, "TICK", 60)  # and its ticks are many

    def cost(connections: int) -> tuple[float, int]:
        with gstalk.Producer(server.uri, multiply=connections) as producer:
            wait_until(lambda: len(producer._queue.pool.connections) == connections, 20)
            with counted(monkeypatch) as seen:
                number = calls(2000, 64, lambda: producer.put("default", b"hello world"))
            return number, sum(seen.values())

    (few, _), (many, shared) = cost(1), cost(100)
    assert many < few * 1.2
    assert shared < 600


@pytest.mark.parametrize("connections", [1, 100])
@pytest.mark.parametrize("waiting", [10, 3000])
def test_looks_of_a_producer_at_its_connections_cost_the_same_however_many_puts_wait(server, connections, waiting):
    with gstalk.Producer(server.uri, multiply=connections) as producer:
        queue = producer._queue
        wait_until(lambda: len(queue.pool.connections) == connections, 20)
        (place,) = queue.pool.servers
        place.health.stall()
        puts = [gevent.spawn(producer.put, "default", b"x") for _ in range(waiting)]
        gevent.sleep(0)
        assert len(queue._line) == waiting
        for look, most in (
            (queue._tick, 3 * connections),
            (lambda: queue.leave_alone(place, DrainingError("full")), 0),
        ):
            counted = Calls()
            counted.watch()
            look()
            sys.setprofile(None)
            assert sum(counted.seen.values()) <= most + 30
        gevent.killall(puts)


def test_put_one_greenlet_makes_few_calls(server):
    with gstalk.dial(server.uri) as conn:
        assert calls(500, 1, lambda: conn.put("default", b"hello world")) < 37.9


def test_reserve_and_delete_one_greenlet_makes_few_calls(server):
    with gstalk.dial(server.uri) as conn:
        conn.put_many("default", [b"hello world"] * 600)
        assert calls(500, 1, lambda: conn.reserve().delete()) < 104.9


def test_put_many_makes_few_calls(server):
    counted = Calls()
    with gstalk.dial(server.uri) as conn:
        gevent.get_hub().loop.run_callback(counted.watch)
        spread(1, 1, lambda: conn.put_many("default", [b"hello world"] * 1000), counted.watch)
        assert counted.each(1000) < 18.8


def test_consumer_job_makes_few_calls(server):
    """Its reserve, its handler's run and its delete."""
    counted = Calls()
    with gstalk.dial(server.uri) as conn:
        conn.put_many("work", [b"hello world"] * 3000)

    def begin(number: int) -> None:
        if number > 1000:
            counted.watch()

    def end(number: int) -> None:
        if number == 1000:
            gevent.get_hub().loop.run_callback(counted.watch)

    work_off(server.uri, 3000, begin, end)
    assert counted.each(2000) < 55.4


@pytest.mark.parametrize("found", [False, True])
def test_decision_whom_to_ask_looks_at_few_of_many_servers(found):
    schedule, now, asked = Asking(20), 100.0, collections.deque[Source]()
    for number in range(1000):
        schedule.add(Source(str(number)))
    counted = Calls()
    for number in range(1000):
        now += 0.0005
        if number == 500:
            counted.watch()
        if asked and schedule.running < 19:
            schedule.running += found
            schedule.answered(asked.popleft(), found, now)
        elif schedule.running:
            schedule.running -= 1
        for what, source, times in schedule.decide(now).actions:
            if what == "recall":
                schedule.recalled(source, now)
            elif what == "ask":
                asked.extend([source] * times)
    assert counted.each(500) < 50


def test_reserve_and_delete_many_greenlets_cost_no_more_for_being_many(server):
    """What is done for each reply must not look at everybody in line."""
    with gstalk.dial(server.uri) as conn:
        conn.put_many("default", [b"hello world"] * 9000)
        few, many = (calls(3000, greenlets, lambda: conn.reserve().delete()) for greenlets in (16, 512))
        assert many < few * 1.2


def test_puts_of_many_greenlets_share_sends_and_reads(server, monkeypatch):
    with gstalk.dial(server.uri) as conn, counted(monkeypatch) as seen:
        spread(1000, 64, lambda: conn.put("default", b"hello world"))
    print(seen)
    assert seen["send"] < 25
    assert seen["read"] < 25


def test_put_many_shares_sends_and_reads(server, monkeypatch):
    with gstalk.dial(server.uri) as conn, counted(monkeypatch) as seen:
        conn.put_many("default", [b"hello world"] * 1000)
    print(seen)
    assert seen["send"] < 4
    assert seen["read"] < 8


def test_consumer_jobs_share_sends_and_reads(server, monkeypatch):
    """Deletes, and the reserves that their end makes room for, go out together."""
    with gstalk.dial(server.uri) as conn:
        conn.put_many("work", [b"hello world"] * 1000)
    with counted(monkeypatch) as seen:
        work_off(server.uri, 1000)
    print(seen)
    assert seen["send"] < 100
    assert seen["read"] < 60


@pytest.mark.parametrize("what", ["put", "reserve and delete"])
def test_hot_path_leaves_nothing_to_the_collector(server, what):
    """No cycles, which would have the collector stop everybody now and then, and nothing that stays."""
    with gstalk.dial(server.uri) as conn:

        def do() -> None:
            conn.put("default", b"hello world")
            if what != "put":
                conn.reserve().delete()

        spread(500, 16, do)
        gc.collect()
        gc.disable()
        try:
            spread(2000, 16, do)
            unreachable = gc.collect()
        finally:
            gc.enable()
    assert unreachable < 150  # what gevent's own greenlets leave when they end


def test_answered_commands_leave_no_memory_behind(server):
    with gstalk.dial(server.uri) as conn:

        def do() -> None:
            conn.put("default", b"hello world")
            conn.reserve().delete()

        blocks = []
        for _ in range(9):
            spread(500, 16, do)
            gc.collect()
            blocks.append(sys.getallocatedblocks())
    # The embedded server forgets deleted jobs some at a time, and so what is allocated goes up and down.
    assert min(blocks[5:]) - min(blocks[1:5]) < 100


def test_put_on_an_idle_connection_is_sent_before_anything_else_runs(server, monkeypatch):
    sent = []
    wait = Pipeline.wait

    def noting_wait(self: Pipeline, request: Outcome) -> Any:
        sent.append(seen["send"])
        return wait(self, request)

    monkeypatch.setattr(Pipeline, "wait", noting_wait)
    with gstalk.dial(server.uri) as conn, counted(monkeypatch) as seen:
        for _ in range(3):
            conn.put("default", b"hello world")
            gevent.sleep(0)  # the read that brought the reply is over: the connection is idle
    assert sent == [1, 2, 3]


def test_reply_costs_the_same_however_many_are_awaited():
    """Whatever is done for each, also in C, must not look at all that is in flight."""

    def seconds(requests: int) -> float:
        stream = Stream("here")
        stream.requests.extend(Request(commands.PUT, stream.uri) for _ in range(requests))
        replies = [b"INSERTED %d\r\n" % number for number in range(1, requests + 1)]
        began = process_time()
        for reply in replies:
            stream.receive(reply)
        return (process_time() - began) / requests

    pairs = [(seconds(2000), seconds(50)) for _ in range(15)]  # in turns: a busy neighbour slows both
    assert min(many for many, _ in pairs) < min(few for _, few in pairs) * 1.5


def test_command_costs_the_same_however_many_are_in_flight():
    def seconds(requests: int) -> float:
        taken = []
        for _ in range(7):
            pipe = Pipeline("here", gevent.get_hub(), None)  # it gathers: nothing is sent
            made = [pipe.request(commands.PUT) for _ in range(requests)]
            began = process_time()
            for request in made:
                pipe.append(b"put 0 0 60 1\r\nx\r\n", request)
            taken.append((process_time() - began) / requests)
        return min(taken)

    assert seconds(2000) < seconds(50) * 1.5


def test_put_lone_greenlet_sends_once(server, monkeypatch):
    """A put isn't sent in two pieces with its `use`."""
    with gstalk.dial(server.uri) as conn, counted(monkeypatch) as seen:
        for number in range(100):
            conn.put(f"tube{number % 2}", b"hello world")
    print(seen)
    assert seen["send"] == 100
    assert seen["read"] < 210  # `use` and `put` are answered one after the other


def test_puts_that_are_answered_one_by_one_share_sends(play, monkeypatch):
    """Commands gather while the server has enough to do: beanstalkd answers each in a packet of its own."""
    assert pipeline.HOLD == 0.001  # less keeps nothing, more is felt
    monkeypatch.setattr(pipeline, "HOLD", 30.0)  # a millisecond is too short for this process, which plays both parts
    ids = iter(range(1, 2000))

    def answer(line: bytes) -> bytes:
        gevent.sleep(1e-5)  # a timer: the client reads in between
        return b"INSERTED %d\r\n" % next(ids)

    played = play({"put": answer})
    with gstalk.dial(played.uri) as conn, counted(monkeypatch) as seen:
        spread(1000, 64, lambda: conn.put("default", b"hello world"))
    print(seen)
    assert seen["read"] > 20  # a busy machine reads several answers at a time
    assert seen["send"] < 50


def test_put_that_waits_for_company_is_sent_when_none_comes():
    """The server answers one of eight puts and then nothing: the next put goes out all the same."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        dialing = gevent.spawn(gstalk.dial, f"127.0.0.1:{listener.getsockname()[1]}")
        sock, _ = listener.accept()
        with sock:
            assert sock.recv(1000) == b"stats\r\n"
            sock.sendall(b"OK 7\r\n---\na:1\r\n")
            with dialing.get() as conn:
                putting = [
                    gevent.spawn(lambda: (conn.put("default", b"1"), conn.put("default", b"2"))) for _ in range(8)
                ]
                got = b""
                while got.count(b"put") < 8:
                    got += sock.recv(1000)
                sock.sendall(b"INSERTED 1\r\n")
                sock.settimeout(5)
                assert sock.recv(1000) == b"put 1024 0 60 1\r\n2\r\n"
                gevent.killall(putting)


IMPORT = f"""
{NEEDED}
import collections, json, sys
before = set(sys.modules)
calls = collections.Counter()

def note(frame, event, argument):
    file = frame.f_code.co_filename
    if event.endswith("call") and not file.startswith("<frozen importlib") and "site-packages" not in file:
        calls[file.split("/")[-1] + ": " + (frame.f_code.co_name if event == "call" else argument.__name__)] += 1

sys.setprofile(note)
import gstalk
sys.setprofile(None)
print(json.dumps([sorted(set(sys.modules) - before), calls]))
"""


def test_import_makes_few_calls_compiles_nothing_and_brings_little():
    """What it costs beyond gevent; in instructions and in time it is in docs/performance.md."""
    done = subprocess.run([sys.executable, "-c", IMPORT], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    modules, calls = json.loads(done.stdout)
    print(*(f"{number:8} {name}" for name, number in sorted(calls.items(), key=itemgetter(1))), sep="\n")
    ours = {name for name in modules if name.partition(".")[0] == "gstalk"}
    assert set(modules) - ours <= {"_contextvars", "_datetime", "contextvars", "datetime", "termios"}
    assert not {name for name in ours if room(name) in ("cli", "otel", "testing")}
    assert len(ours) < 57  # a module costs 0.3 million instructions before it has a line
    # `TypedDict` compiles the types of `gstalk.config.Options`; dataclasses, named tuples and patterns would be others.
    assert {name for name in calls if name.split()[-1] in ("compile", "eval", "exec")} <= {"typing.py: compile"}
    assert sum(calls.values()) < 4000  # 3,000 to 3,500 on Python 3.10 to 3.13; a dataclass of ten fields adds 400
