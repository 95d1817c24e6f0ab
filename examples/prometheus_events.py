"""Counts and times for Prometheus, as a `Config.event_func`.

How many jobs wait in the tubes, the server knows: `gstalk exporter` asks it.

Run: python examples/prometheus_events.py [URI [PORT]]
"""

import sys
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, start_http_server

import gstalk


def prometheus(registry: CollectorRegistry) -> Callable[[gstalk.Event], None]:
    """Make an `event_func`; once for each registry."""
    labels = ["kind", "tube", "error"]  # never a job's id: each value of a label is a time series for ever
    events = Counter("gstalk_events", "What happened: docs/events.md has the kinds.", labels, registry=registry)
    seconds = Histogram("gstalk_seconds", "How long it took.", ["kind", "tube"], registry=registry)
    wait = Histogram("gstalk_job_wait_seconds", "How long jobs were ready.", ["tube"], registry=registry)
    in_flight = Gauge("gstalk_jobs_in_flight", "Jobs that handlers work at.", registry=registry)

    def tell(event: gstalk.Event) -> None:
        tube = event.tube or ""
        events.labels(event.kind, tube, type(event.exception).__name__ if event.exception else "").inc()
        if event.kind in ("handling", "handled"):
            in_flight.inc(1 if event.kind == "handling" else -1)
        if event.duration is not None:
            (wait.labels(tube) if event.kind == "handling" else seconds.labels(event.kind, tube)).observe(
                event.duration
            )

    return tell


def main(uri: str = "localhost:11300", port: str | int = 0) -> None:
    registry = CollectorRegistry()
    if port:
        start_http_server(int(port), "127.0.0.1", registry)
    config = gstalk.Config(event_func=prometheus(registry), auto_delete=True)
    with gstalk.Producer(uri, config) as producer:
        producer.put_many("counted", [b"well", b"badly"])
    consumer = gstalk.Consumer(uri, "counted", config, num_greenlets=1, error_func=lambda error, message: None)

    def handler(job: gstalk.Job) -> None:
        if job.body == b"badly":
            consumer.stop()
            raise ValueError("no")

    consumer.receive(handler)
    for line in generate_latest(registry).decode().splitlines():
        if line.startswith(("gstalk_events_total", "gstalk_jobs_in_flight", "gstalk_seconds_count")):
            print(line)


if __name__ == "__main__":
    main(*sys.argv[1:])
