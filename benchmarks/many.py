"""What an operation costs with many of one thing: python -m benchmarks.many, with a JSON order on standard input.

CPU is that of the client's process, for one operation, while 64 greenlets are at work. KB is its resident memory for
each of the many.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import gevent
import gevent.event

import gstalk
from benchmarks.footprint import resident

__all__ = ["MANY"]

AT_WORK = 64
PUTS = 20_000
JOBS = 10_000
SPARSE = 200
FILLING = 10_000
TUBE = "bench0"
BODY = b"x" * 11
QUIET: dict[str, Any] = {"info_func": lambda message: None}


class Clock:
    """Counts what is done, and takes the CPU time of so much of it, after a warm-up."""

    def __init__(self, first: int, count: int) -> None:
        self.first = first
        self.count = count
        self.done = 0
        self.began = (0.0, 0.0)
        self.cpu = self.rate = 0.0

    @property
    def total(self) -> int:
        return self.first + self.count

    def tick(self) -> None:
        self.done += 1
        if self.done == self.first:
            self.began = (time.process_time(), time.perf_counter())
        elif self.done == self.total:
            self.cpu = (time.process_time() - self.began[0]) / self.count * 1e6
            self.rate = self.count / (time.perf_counter() - self.began[1])


def cost(do: Callable[[], object], count: int, greenlets: int = AT_WORK) -> Clock:
    """Have greenlets do something between them."""
    clock = Clock(2 * greenlets, count)
    numbers = iter(range(clock.total))

    def work() -> None:
        for _ in numbers:
            do()
            clock.tick()

    gevent.joinall([gevent.spawn(work) for _ in range(greenlets)], raise_error=True)
    return clock


@contextmanager
def growth(found: dict[str, float], name: str, number: int) -> Iterator[None]:
    """Note how much memory each of so many takes; of a few that would be chance."""
    gc.collect()
    before = resident()
    yield
    gc.collect()
    if number >= 100:
        found[name] = (resident() - before) / number / 1024


def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not true():
        if time.monotonic() > until:
            raise TimeoutError("it never came to that")
        gevent.sleep(0.01)


def fill(conn: gstalk.Conn, tube: str, count: int) -> None:
    """Put so many jobs; some at a time, or their ids would count as memory."""
    for at in range(0, count, FILLING):
        conn.put_many(tube, [BODY] * min(FILLING, count - at))


@contextmanager
def receiving(
    conn: gstalk.Conn, uri: str, tubes: list[str], handler: Callable[[gstalk.Job], Any], **options: Any
) -> Iterator[None]:
    before = conn.stats().current_connections or 0
    # Else the first jobs of a connection, as many as it has handlers, are asked about.
    policy = gstalk.RetryPolicy(max_attempts=None)
    consumer = gstalk.Consumer(uri, tubes, auto_delete=True, retry=policy, **QUIET, **options)
    running = gevent.spawn(consumer.receive, handler)
    wait_until(lambda: (conn.stats().current_connections or 0) >= before + options.get("multiply", 1))
    yield
    consumer.stop()
    running.get()


def server_cpu(conn: gstalk.Conn) -> float:
    stats = conn.stats()
    return (stats.rusage_utime or 0) + (stats.rusage_stime or 0)


def consume(
    uri: str,
    tubes: list[str],
    number: int = 0,
    handlers: int = AT_WORK,
    multiply: int = 1,
    now_and_then: bool = True,
) -> dict[str, float]:
    """What a job costs a Consumer, and the server, while there are many, and while there is one now and then."""
    found: dict[str, float] = {}
    options = {"num_greenlets": handlers, "multiply": multiply}
    clock = Clock(2 * handlers, JOBS)
    ended = gevent.event.Event()
    with gstalk.dial(uri) as conn:
        with ExitStack() as stack:
            with growth(found, "Consumer: KB each", number):
                stack.enter_context(receiving(conn, uri, tubes, lambda job: ended.set(), **options))
                gevent.sleep(0.1)
            if now_and_then:
                before = time.process_time()
                for _ in range(SPARSE):
                    ended.clear()
                    conn.put(tubes[0], BODY)
                    ended.wait()
                found["Consumer: a job now and then"] = (time.process_time() - before) / SPARSE * 1e6
        fill(conn, tubes[0], clock.total)
        before = server_cpu(conn)
        with receiving(conn, uri, tubes, lambda job: clock.tick(), **options):
            wait_until(lambda: clock.done >= clock.total)
        found = {"Consumer: a job": clock.cpu, "the server: a job": 0.0, **found}
        found["the server: a job"] = (server_cpu(conn) - before) / clock.done * 1e6
    return found


def produce(uris: list[str], number: int = 0, multiply: int = 1) -> dict[str, float]:
    """What a put costs a Producer."""
    found: dict[str, float] = {}
    count = len(uris) * multiply
    with ExitStack() as stack:
        conns = [stack.enter_context(gstalk.dial(uri)) for uri in uris]
        with growth(found, "Producer: KB each", number):
            producer = stack.enter_context(gstalk.Producer(uris, multiply=multiply, **QUIET))
            wait_until(lambda: sum(conn.stats().current_connections or 0 for conn in conns) >= len(conns) + count)
        clock = cost(lambda: producer.put("puts", BODY), PUTS)
        before = time.process_time()
        producer.put_many("puts", [BODY] * PUTS)
        many = (time.process_time() - before) / PUTS * 1e6
    return {"Producer: a put": clock.cpu, "Producer: a put of put_many": many, "Producer: puts/s": clock.rate, **found}


def greenlets(uris: list[str], number: int) -> dict[str, float]:
    """So many greenlets wait beside those at work; or, in what `all` says, are at work themselves."""
    found: dict[str, float] = {}
    everybody = AT_WORK + number
    with gstalk.dial(uris[0]) as conn:
        conn.watch("empty")
        conn.ignore("default")
        with growth(found, "Conn: KB each", number):
            waiting = [gevent.spawn(conn.reserve) for _ in range(number)]
            gevent.sleep(0.01)
        found = {"Conn: a put": cost(lambda: conn.put("puts", BODY), PUTS).cpu, **found}
        fill(conn, "empty", number)
        gevent.joinall(waiting, raise_error=True)
        del waiting
    with gstalk.dial(uris[0]) as conn:
        conn.watch("jobs")
        fill(conn, "jobs", JOBS + 2 * everybody)
        found["Conn, all: a reserve and delete"] = cost(lambda: conn.reserve().delete(), JOBS, everybody).cpu
    with gstalk.Producer(uris, **QUIET) as producer:
        found["Producer, all: a put"] = cost(lambda: producer.put("puts", BODY), PUTS, everybody).cpu
    for name, value in consume(uris[0], [TUBE], number, handlers=everybody).items():
        found["Consumer, all: a job" if name == "Consumer: a job" else name] = value
    return found


def connections(uris: list[str], number: int) -> dict[str, float]:
    """So many connections to the server."""
    return produce(uris, number, multiply=number) | consume(uris[0], [TUBE], number, multiply=number)


def tubes(uris: list[str], number: int) -> dict[str, float]:
    """So many tubes are watched."""
    return consume(uris[0], [f"bench{each}" for each in range(number)], number)


def jobs(uris: list[str], number: int) -> dict[str, float]:
    """So many jobs are in the tube."""
    with gstalk.dial(uris[0]) as conn:
        fill(conn, TUBE, number)
        clock = cost(lambda: conn.put(TUBE, BODY), PUTS)
    return {"Conn: a put": clock.cpu, **consume(uris[0], [TUBE], now_and_then=False)}


def servers(uris: list[str], number: int) -> dict[str, float]:
    """So many servers."""
    return produce(uris)


MANY = {"servers": servers, "greenlets": greenlets, "connections": connections, "tubes": tubes, "jobs": jobs}

if __name__ == "__main__":
    what, uris, number = json.load(sys.stdin)
    print(json.dumps(MANY[what](uris, number)))
