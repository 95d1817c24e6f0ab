"""What `Config.event_func` costs: python -m benchmarks.telemetry (needs beanstalkd and gstalk[otel]; the SDK if there).

Puts from 64 greenlets through one Conn and a Producer, and jobs worked off by a Consumer with 64 handlers, each with
nobody listening, a hook that counts, OpenTelemetry's API alone, and its SDK with exporters that drop everything.
Interleaved; medians of five.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import gevent

import gstalk
from benchmarks.clients import spread
from benchmarks.meter import Meter
from gstalk import otel
from gstalk.testing import Beanstalkd

JOBS = 20_000
ROUNDS = 5
BODY = b"hello world"


def with_sdk() -> Callable[[gstalk.Event], object] | None:
    try:
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace import TracerProvider
    except ImportError:
        return None
    return otel.event_func(TracerProvider(), MeterProvider([InMemoryMetricReader()]))


def puts(do: Callable[[int], object]) -> float:
    began = time.perf_counter()
    spread(JOBS, 64, do, Meter([]))
    return JOBS / (time.perf_counter() - began)


def consume(uri: str, listener: Any) -> float:
    left = JOBS
    consumer = gstalk.Consumer(uri, "work", num_greenlets=64, event_func=listener)

    def handler(job: gstalk.Job) -> None:
        nonlocal left
        job.delete()
        left -= 1
        if not left:
            consumer.stop()

    began = time.perf_counter()
    consumer.receive(handler)
    return JOBS / (time.perf_counter() - began)


def main() -> None:
    counts: dict[str, int] = {}

    def count(event: gstalk.Event) -> None:
        counts[event.kind] = counts.get(event.kind, 0) + 1

    listeners = {"nobody": None, "a counter": count, "OpenTelemetry, API alone": otel.event_func()}
    if (sdk := with_sdk()) is not None:
        listeners["OpenTelemetry, SDK"] = sdk
    rates: dict[str, dict[str, list[float]]] = {name: {} for name in listeners}
    with Beanstalkd() as server:
        for _ in range(ROUNDS):
            for name, listener in listeners.items():
                with gstalk.dial(server.uri, event_func=listener) as conn:
                    rate = puts(lambda _, c=conn: c.put("work", BODY))
                    rates[name].setdefault("Conn.put", []).append(rate)
                rates[name].setdefault("Consumer", []).append(consume(server.uri, listener))
                with gstalk.Producer(server.uri, event_func=listener) as producer:
                    producer.wait_connected()
                    rate = puts(lambda _, p=producer: p.put("work", BODY))
                    rates[name].setdefault("Producer.put", []).append(rate)
                consume(server.uri, None)
                gevent.sleep(0)
    for name, each in rates.items():
        medians = {what: statistics.median(values) for what, values in each.items()}
        shares = {what: value / statistics.median(rates["nobody"][what]) for what, value in medians.items()}
        print(f"{name}: " + ", ".join(f"{w} {v:,.0f}/s ({shares[w]:.2f})" for w, v in medians.items()))


if __name__ == "__main__":
    main()
