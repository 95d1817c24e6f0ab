"""What a Consumer of many servers costs: python -m benchmarks.shapes, with a JSON order on standard input.

A shape is the number of servers, of connections to each, and of handlers: 100x3/100. For each, beside real servers on
this machine; CPU is that of the Consumer's process:

CPU us a job   while it works off jobs that are spread over all servers
idle %, asks/s CPU time of one core, and reserves a second, when there is nothing to do
p50 ms         from a put on a random server to its handler, with forty jobs a second
busy: ...      the same three while one handler is at work all the time
dials/s        with 3 jobs a second that take 0.3 s each
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import gevent
import gevent.event

import gstalk
from benchmarks.meter import percentiles

JOBS = 40_000  # many: the first ones are handled while the connections are still being made, and do not count
IDLE = 2.0  # seconds
LATENCIES = 160
DIALS = 10.0  # seconds


class Load:
    """A connection to each server that puts and counts, and a Consumer."""

    def __init__(self, uris: list[str], handlers: int, multiply: int) -> None:
        self.conns = [gstalk.dial(uri) for uri in uris]
        self.times: list[float] = []
        self.multiply = multiply
        self.done = 0
        self.rate = 0.0
        self.gate = gevent.event.Event()
        quiet: dict[str, Any] = {"info_func": lambda message: None, "auto_delete": True}
        self.consumer = gstalk.Consumer(uris, "scale", num_greenlets=handlers, multiply=multiply, **quiet)

    @contextmanager
    def receiving(self) -> Iterator[None]:
        wanted = self._total("current_connections") + len(self.conns) * self.multiply
        running = gevent.spawn(self.consumer.receive, self._handle)
        while self._total("current_connections") < wanted:
            gevent.sleep(0.05)
        yield
        self.gate.set()
        self.consumer.stop()
        running.get()

    def close(self) -> None:
        for conn in self.conns:
            conn.close()

    def _handle(self, job: gstalk.Job) -> None:
        if job.body == b"gate":
            self.gate.wait()
        elif job.body == b"slow":
            gevent.sleep(0.3)
        elif job.body:
            self.times.append(time.perf_counter() - float(job.body))
        self.done += 1

    def _total(self, name: str) -> int:
        return sum(getattr(conn.stats(), name) or 0 for conn in self.conns)

    def job(self, count: int) -> float:
        """CPU seconds of a job; the jobs are there before anybody asks for them."""
        for number, conn in enumerate(self.conns):
            conn.put_many("scale", [b""] * (count // len(self.conns) + (number < count % len(self.conns))))
        with self.receiving():
            first, cpu, began = self.done, time.process_time(), time.perf_counter()
            while self.done < count:
                gevent.sleep(0.01)
            took = time.process_time() - cpu
            self.rate = (self.done - first) / (time.perf_counter() - began)
            return took / max(self.done - first, 1)

    def idle(self) -> tuple[float, float]:
        """Percent of a core, and reserves a second."""
        asks = self._total("cmd_reserve_with_timeout")
        cpu, began = time.process_time(), time.perf_counter()
        gevent.sleep(IDLE)
        used, seconds = time.process_time() - cpu, time.perf_counter() - began
        return 100 * used / seconds, (self._total("cmd_reserve_with_timeout") - asks) / seconds

    def latency(self) -> float:
        self.times.clear()
        chance = random.Random(1)
        for _ in range(LATENCIES):
            chance.choice(self.conns).put("scale", b"%.9f" % time.perf_counter())
            gevent.sleep(0.015 + chance.random() * 0.02)
        until = time.perf_counter() + 10
        while len(self.times) < LATENCIES and time.perf_counter() < until:
            gevent.sleep(0.01)
        return percentiles(self.times)["p50"]

    def dials(self) -> float:
        chance = random.Random(2)
        before = self._total("total_connections")
        for _ in range(int(DIALS * 3)):
            chance.choice(self.conns).put("scale", b"slow")
            gevent.sleep(1 / 3)
        return (self._total("total_connections") - before) / DIALS


def measure(uris: list[str], handlers: int, multiply: int) -> dict[str, float]:
    """In a process of its own: what this shape costs."""
    found: dict[str, float] = {}
    with closing(Load(uris, handlers, multiply)) as load:
        found["CPU us a job"] = load.job(JOBS) * 1e6
        found["jobs/s"] = load.rate
    with closing(Load(uris, handlers, multiply)) as load, load.receiving():
        gevent.sleep(1)
        found["idle %"], found["asks/s"] = load.idle()
        found["p50 ms"] = load.latency()
        load.conns[0].put("scale", b"gate", ttr=3600)
        gevent.sleep(1)
        found["busy: idle %"], found["busy: asks/s"] = load.idle()
        found["busy: p50 ms"] = load.latency()
        load.gate.set()
        gevent.sleep(0.5)
        found["dials/s"] = load.dials()
    return found


if __name__ == "__main__":
    print(json.dumps(measure(*json.load(sys.stdin))))
