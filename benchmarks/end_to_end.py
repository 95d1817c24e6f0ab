"""The main job, measured: python benchmarks/end_to_end.py (needs beanstalkd; greenstalk for the comparison).

1. 100,000 jobs put by 50 greenlets through a Producer with two servers and three connections each, worked off by a
   Consumer with 30 greenlets: every job seen, none twice, none left reserved.
2. Put-to-handler latency of an idle Consumer.
3. One Conn with 64 greenlets beside one greenstalk connection, interleaved, medians of five.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import gevent

import gstalk
from gstalk.testing import Beanstalkd

JOBS = 100_000
BODY = b"hello world"


def spread(count: int, greenlets: int, do: Callable[[int], Any]) -> float:
    """Have `greenlets` greenlets do 0 to count - 1 between them; returns how many a second."""
    numbers = iter(range(count))

    def work() -> None:
        for number in numbers:
            do(number)

    began = time.perf_counter()
    gevent.joinall([gevent.spawn(work) for _ in range(greenlets)], raise_error=True)
    return count / (time.perf_counter() - began)


def all_jobs_once() -> None:
    with Beanstalkd() as one, Beanstalkd() as two:
        uris = [one.uri, two.uri]
        seen: dict[bytes, int] = {}
        with gstalk.Producer(uris, multiply=3) as producer:
            rate = spread(JOBS, 50, lambda number: producer.put("work", b"%d" % number))
        consumer = gstalk.Consumer(uris, "work", multiply=3, num_greenlets=30)

        def handler(job: gstalk.Job) -> None:
            seen[job.body] = seen.get(job.body, 0) + 1
            job.delete()
            if len(seen) == JOBS:
                consumer.stop()

        began = time.perf_counter()
        consumer.receive(handler)
        worked = JOBS / (time.perf_counter() - began)
        reserved = 0
        for uri in uris:
            with gstalk.dial(uri) as conn:
                reserved += conn.stats().current_jobs_reserved or 0
        twice = sum(count > 1 for count in seen.values())
        print(f"jobs: {len(seen)} of {JOBS} seen, {twice} twice, {reserved} left reserved")
        print(f"      put at {rate:,.0f}/s by 50 greenlets, worked off at {worked:,.0f}/s by 30")


def latency() -> None:
    with Beanstalkd() as server, gstalk.dial(server.uri) as conn:
        times: list[float] = []
        trips: list[float] = []
        consumer = gstalk.Consumer(server.uri, "idle", auto_delete=True)
        running = gevent.spawn(consumer.receive, lambda job: times.append(time.perf_counter() - float(job.body)))
        consumer.wait_connected()
        for _ in range(1000):
            gevent.sleep(0.003)
            began = time.perf_counter()
            conn.put("idle", b"%.9f" % began)
            trips.append(time.perf_counter() - began)
        gevent.sleep(0.1)
        consumer.stop()
        running.join()
        for name, values in (("put to handler", times), ("put, round trip", trips)):
            values.sort()
            p50, p99 = values[len(values) // 2], values[len(values) * 99 // 100]
            print(f"idle: {name}: p50 {p50 * 1000:.2f} ms, p99 {p99 * 1000:.2f} ms ({len(values)} jobs)")


def beside_greenstalk() -> None:
    try:
        import greenstalk
    except ImportError:
        print("greenstalk is not installed: no comparison")
        return
    rates: dict[str, list[float]] = {"put": [], "reserve+delete": [], "greenstalk put": [], "greenstalk r+d": []}
    count = 20_000
    with Beanstalkd() as server:
        for _ in range(5):
            with gstalk.dial(server.uri) as conn:
                conn.watch("a")
                conn.ignore("default")
                rates["put"].append(spread(count * 3, 64, lambda _, c=conn: c.put("a", BODY)))
                rates["reserve+delete"].append(spread(count * 3, 64, lambda _, c=conn: c.reserve().delete()))
            with greenstalk.Client(("127.0.0.1", server.port), encoding=None, use="b", watch="b") as client:
                rates["greenstalk put"].append(spread(count, 1, lambda _, c=client: c.put(BODY)))
                rates["greenstalk r+d"].append(spread(count, 1, lambda _, c=client: c.delete(c.reserve())))
    for name, values in rates.items():
        print(f"{name}: {statistics.median(values):,.0f}/s")
    ratio = statistics.median(rates["put"]) / statistics.median(rates["greenstalk put"])
    ratio_rd = statistics.median(rates["reserve+delete"]) / statistics.median(rates["greenstalk r+d"])
    print(f"one Conn, 64 greenlets, beside greenstalk: put {ratio:.1f} times, reserve+delete {ratio_rd:.1f} times")


if __name__ == "__main__":
    all_jobs_once()
    latency()
    beside_greenstalk()
