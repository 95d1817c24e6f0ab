"""What many servers cost: python -m benchmarks.scale [SERVERS/HANDLERS ...].

For each shape, beside real servers on this machine:

cpu a job   of the Consumer's process, while it works off jobs that are spread over all servers
idle, asks  CPU time and reserves a second, when there is nothing to do
p50         from a put on a random server, one at a time, to its handler
busy        the same three while one handler is at work all the time
redials     connections a second, with 3 jobs a second that take 0.3 s each
decide      microseconds of one decision about one connection, of so many (no server is asked for that)
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import gevent
import gevent.event

import gstalk
from benchmarks.meter import percentiles
from gstalk.testing import Beanstalkd

SHAPES = ["1/64", "10/64", "100/64", "300/20", "100x3/100", "10/10"]
JOBS = 20_000
IDLE = 3.0  # seconds
LATENCIES = 200


class Bed:
    """A connection to each server that puts and counts, and a Consumer."""

    def __init__(self, uris: list[str], handlers: int, multiply: int) -> None:
        self.conns = [gstalk.dial(uri) for uri in uris]
        self.times: list[float] = []
        self.done = 0
        self.gate = gevent.event.Event()
        quiet: dict[str, Any] = {"info_func": lambda message: None, "auto_delete": True}
        self.consumer = gstalk.Consumer(uris, "scale", num_greenlets=handlers, multiply=multiply, **quiet)

    @contextmanager
    def receiving(self) -> Iterator[None]:
        before = self._total("curr_connections")
        running = gevent.spawn(self.consumer.receive, self._handle)
        want = before + len(self.conns) * self.consumer._config.multiply
        while self._total("curr_connections") < want:
            gevent.sleep(0.05)
        yield
        self.gate.set()
        self.consumer.stop()
        running.get()

    def _handle(self, job: gstalk.Job) -> None:
        if job.body == b"gate":
            self.gate.wait()
        elif job.body == b"slow":
            gevent.sleep(0.3)
        elif job.body:
            self.times.append(time.perf_counter() - float(job.body))
        self.done += 1

    def _total(self, name: str) -> int:
        name = {"curr_connections": "current_connections"}.get(name, name)
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
        for number in range(1, LATENCIES + 1):
            chance.choice(self.conns).put("scale", b"%.9f" % time.perf_counter())
            until = time.perf_counter() + 10
            while len(self.times) < number and time.perf_counter() < until:
                gevent.sleep(0.002)
            gevent.sleep(chance.random() * 0.02)
        return percentiles(self.times)["p50"]

    def redials(self, seconds: float) -> float:
        chance = random.Random(2)
        before = self._total("total_connections")
        for _ in range(int(seconds * 3)):
            chance.choice(self.conns).put("scale", b"slow")
            gevent.sleep(1 / 3)
        return (self._total("total_connections") - before) / seconds


def measure(uris: list[str], handlers: int, multiply: int) -> dict[str, float]:
    found: dict[str, float] = {}
    bed = Bed(uris, handlers, multiply)
    with bed.receiving():
        gevent.sleep(1)
        found["idle %"], found["asks/s"] = bed.idle()
        found["p50 ms"] = bed.latency()
        bed.conns[0].put("scale", b"gate")
        gevent.sleep(1)
        found["busy: idle %"], found["busy: asks/s"] = bed.idle()
        found["busy: p50 ms"] = bed.latency()
        bed.gate.set()
        gevent.sleep(0.5)
        found["redials/s"] = bed.redials(10)
    bed = Bed(uris, handlers, multiply)
    found["cpu us a job"] = bed.job(JOBS) * 1e6
    found["jobs/s"] = bed.rate
    return found


def main(shapes: list[str]) -> None:
    for shape in shapes or SHAPES:
        servers, _, handlers = shape.partition("/")
        count, _, multiply = servers.partition("x")
        with ExitStack() as stack:
            uris = [stack.enter_context(Beanstalkd()).uri for _ in range(int(count))]
            child = os.fork()
            if not child:
                found = measure(uris, int(handlers), int(multiply or 1))
                print(shape, *(f"{name} {value:.4g}" for name, value in found.items()), sep=", ", flush=True)
                os._exit(0)
            os.waitpid(child, 0)


if __name__ == "__main__":
    main(sys.argv[1:])
