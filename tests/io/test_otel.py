"""`gstalk.otel`, looked at through the SDK's in-memory exporters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any

import gevent
import gevent.event
import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import messaging_attributes as attributes_names
from opentelemetry.semconv._incubating.metrics import messaging_metrics as metrics_names
from opentelemetry.semconv.schemas import Schemas
from opentelemetry.trace import SpanKind, StatusCode

import gstalk
from gstalk import otel
from gstalk.testing import Beanstalkd
from tests.servers import CUT, wait_until

pytestmark = pytest.mark.real


class Telemetry:
    """What was exported: finished spans, and measurements."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        traces = TracerProvider(shutdown_on_exit=False)
        traces.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = traces.get_tracer("test")
        self.event_func = otel.event_func(traces, MeterProvider([self._reader], shutdown_on_exit=False))

    def spans(self, name: str) -> list[ReadableSpan]:
        """Those whose name begins so, in order of their end."""
        return [span for span in self._exporter.get_finished_spans() if span.name.startswith(name)]

    def points(self, name: str) -> list[Any]:
        data = self._reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else [])
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def total(self, name: str) -> Any:
        return sum(getattr(point, "value", None) or getattr(point, "count", 0) for point in self.points(name))


def attributes(span: Any) -> dict[str, Any]:
    return dict(span.attributes)


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


@pytest.fixture
def work(server: Beanstalkd, tube: str, telemetry: Telemetry) -> Iterator[Callable[..., None]]:
    """Have a Consumer handle the test's tube until so many jobs have been handled."""
    running: list[tuple[Any, gstalk.Consumer]] = []

    def start(handler: Any, jobs: int = 1, **options: Any) -> None:
        options.setdefault("error_func", lambda error, message: None)
        consumer = gstalk.Consumer(server.uri, tube, event_func=telemetry.event_func, **options)
        running.append((gevent.spawn(consumer.receive, handler), consumer))
        wait_until(lambda: len(telemetry.spans("process")) >= jobs)

    yield start
    for receiver, consumer in running:
        consumer.stop()
        receiver.get(timeout=20)


# -- spans -------------------------------------------------------------------------------------------------------


def test_put_is_a_span_below_the_callers(connect, server, tube, telemetry):
    conn = connect(server.uri, event_func=telemetry.event_func)
    with telemetry.tracer.start_as_current_span("request") as request:
        job_id = conn.put(tube, b"x")
    (put,) = telemetry.spans("put")
    assert put.name == f"put {tube}"
    assert put.kind is SpanKind.PRODUCER
    assert put.parent is not None
    assert put.parent.span_id == request.get_span_context().span_id
    assert put.status.status_code is StatusCode.UNSET
    assert attributes(put) == {
        "messaging.system": "beanstalkd",
        "messaging.operation.name": "put",
        "messaging.operation.type": "send",
        "messaging.destination.name": tube,
        "messaging.message.id": str(job_id),
        "server.address": "127.0.0.1",
        "server.port": server.port,
    }
    (outer,) = telemetry.spans("request")
    assert outer.start_time <= put.start_time <= put.end_time <= outer.end_time


def test_puts_of_many_greenlets_are_each_below_their_own(server, tube, telemetry):
    with gstalk.Producer(server.uri, event_func=telemetry.event_func) as producer:

        def request(number: int) -> None:
            with telemetry.tracer.start_as_current_span(f"request {number}"):
                for _ in range(3):
                    producer.put(tube, b"x")

        gevent.joinall([gevent.spawn(request, number) for number in range(20)], raise_error=True)
    by_id = {span.context.span_id: span.name for span in telemetry.spans("request")}
    assert sorted(by_id[put.parent.span_id] for put in telemetry.spans("put")) == sorted([*by_id.values()] * 3)


def test_put_that_fails_is_a_span_with_its_error(connect, server, tube, telemetry):
    conn = connect(server.uri, event_func=telemetry.event_func)
    with pytest.raises(gstalk.JobTooBigError) as caught:
        conn.put(tube, b"x" * 70_000)
    (put,) = telemetry.spans("put")
    assert attributes(put)["error.type"] == "gstalk.errors.JobTooBigError"
    assert (put.status.status_code, put.status.description) == (StatusCode.ERROR, str(caught.value))
    assert [event.name for event in put.events] == ["exception"]


def test_producer_put_tells_how_many_tries_it_took(play, telemetry):
    with gstalk.Producer(play({"put": [CUT, None]}).uri, event_func=telemetry.event_func, info_func=print) as producer:
        producer.put("default", b"", timeout=10)
        wait_until(lambda: telemetry.total("gstalk.reconnects"))
    (put,) = telemetry.spans("put")
    assert attributes(put)["gstalk.attempt"] == 2
    (retries,) = telemetry.points("gstalk.put.retries")
    assert (retries.value, retries.attributes["error.type"]) == (1, "gstalk.errors.ConnectionLostError")
    assert telemetry.total("gstalk.reconnects") == 1


def test_handler_runs_in_a_span_of_its_own_and_settles_below_it(work, conn, server, tube, telemetry):
    inside = []

    def handler(job: gstalk.Job) -> None:
        inside.append(trace.get_current_span())
        with telemetry.tracer.start_as_current_span("handler's own"):
            # gevent begins each greenlet with an empty context.
            mine = copy_context()
            gevent.spawn(mine.run, lambda: telemetry.tracer.start_span("its greenlet's").end()).join()
        job.delete()

    job_id = conn.put(tube, b"x")
    with telemetry.tracer.start_as_current_span("around receive"):  # no trace may have all jobs
        work(handler)
    (process,) = telemetry.spans("process")
    assert process.name == f"process {tube}"
    assert process.kind is SpanKind.CONSUMER
    assert process.parent is None
    assert inside[0].get_span_context() == process.context
    assert attributes(process) == {
        "messaging.system": "beanstalkd",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": tube,
        "messaging.message.id": str(job_id),
        "server.address": "127.0.0.1",
        "server.port": server.port,
        "gstalk.attempt": 1,
    }
    (delete,) = telemetry.spans("delete")
    (own,) = telemetry.spans("handler's")
    (its,) = telemetry.spans("its")
    assert delete.kind is SpanKind.CLIENT
    assert attributes(delete)["messaging.operation.type"] == "settle"
    assert [delete.parent, own.parent] == [process.context] * 2
    assert its.parent == own.context


@pytest.mark.parametrize(
    ("error", "settled", "told"),
    [
        (ValueError("wrong"), "release", "ValueError"),
        (gstalk.Retry(delay=100), "release", None),
        (gstalk.Bury(), "bury", None),
        (gevent.Timeout(0.01), "release", "gevent.timeout.Timeout"),
    ],
    ids=["error", "retry", "bury", "timeout"],
)
def test_handler_that_fails_is_a_span_with_its_error_and_the_jobs_fate(
    work, conn, tube, telemetry, error, settled, told
):
    def handler(job: gstalk.Job) -> None:
        raise error

    conn.put(tube, b"x")
    work(handler, retry=gstalk.RetryPolicy(first_delay=100))
    (process,) = telemetry.spans("process")
    (fate,) = telemetry.spans(settled)
    assert fate.parent == process.context
    assert attributes(process).get("error.type") == told
    assert (process.status.status_code is StatusCode.ERROR) == (told is not None)


def test_automatic_delete_is_a_span_below_its_handlers(work, conn, tube, telemetry):
    ids = conn.put_many(tube, [b"x"] * 20)
    work(lambda job: None, jobs=20, auto_delete=True)
    wait_until(lambda: len(telemetry.spans("delete")) == 20)
    processes = {attributes(span)["messaging.message.id"]: span.context for span in telemetry.spans("process")}
    assert set(processes) == {str(job_id) for job_id in ids}
    for delete in telemetry.spans("delete"):
        assert delete.parent == processes[attributes(delete)["messaging.message.id"]]


def test_greenlet_that_serves_many_jobs_keeps_no_span(work, conn, tube, telemetry):
    current = []

    def handler(job: gstalk.Job) -> None:
        current.append(trace.get_current_span().get_span_context().span_id)
        if job.body == b"bad":
            raise gstalk.Bury
        job.delete()

    conn.put_many(tube, [b"good", b"bad"] * 5)
    work(handler, jobs=10, num_greenlets=1)
    assert len(set(current)) == 10
    assert [span.parent for span in telemetry.spans("process")] == [None] * 10


def test_unix_socket_is_an_address_without_a_port(telemetry, tmp_path):
    with Beanstalkd(unix=True) as server, gstalk.dial(server.uri, event_func=telemetry.event_func) as conn:
        conn.put("default", b"")
    (put,) = telemetry.spans("put")
    assert attributes(put)["server.address"] == server.uri.removeprefix("unix://")
    assert "server.port" not in attributes(put)


# -- measurements ------------------------------------------------------------------------------------------------


def test_puts_and_settling_are_measured(connect, server, tube, telemetry):
    conn = connect(server.uri, event_func=telemetry.event_func)
    conn.watch(tube)
    conn.put_many(tube, [b"x"] * 3)
    with pytest.raises(gstalk.JobTooBigError):
        conn.put(tube, b"x" * 70_000)
    conn.reserve().delete()
    conn.reserve().bury()
    sent = {
        point.attributes.get("error.type"): point.value for point in telemetry.points("messaging.client.sent.messages")
    }
    assert sent == {None: 3, "gstalk.errors.JobTooBigError": 1}
    durations = telemetry.points("messaging.client.operation.duration")
    counts = [(point.attributes["messaging.operation.name"], point.count) for point in durations]
    assert sorted(counts) == [("bury", 1), ("delete", 1), ("put", 1), ("put", 3)]
    assert all(0 < point.sum < 10 for point in durations)
    assert max(durations[0].explicit_bounds) == 300  # seconds, not the SDK's default of milliseconds
    assert all("messaging.message.id" not in point.attributes for point in durations)


def test_jobs_in_flight_are_counted(work, conn, tube, telemetry):
    running: list[gstalk.Job] = []
    during: list[int] = []

    def handler(job: gstalk.Job) -> None:
        job.stats()  # from now on the tube is known, if it wasn't
        running.append(job)
        if len(running) == 3:
            gate.set()
        gate.wait()
        during.append(telemetry.total("gstalk.jobs.in_flight"))
        if job.body == b"bad":
            raise ValueError
        job.delete()

    gate = gevent.event.Event()
    conn.put_many(tube, [b"good", b"bad", b"good"])
    work(handler, jobs=3, num_greenlets=3, retry=gstalk.RetryPolicy(max_attempts=1))
    assert during[0] == 3
    assert telemetry.total("gstalk.jobs.in_flight") == 0
    assert telemetry.total("messaging.client.consumed.messages") == 3
    durations = {p.attributes.get("error.type"): p.count for p in telemetry.points("messaging.process.duration")}
    assert durations == {None: 2, "ValueError": 1}
    assert telemetry.total("gstalk.job.wait") == 3


def test_without_an_sdk_nothing_happens(server, tube):
    """What an application gets that has the API alone: no spans, no measurements, no harm."""
    with gstalk.Producer(server.uri, event_func=otel.event_func()) as producer:
        producer.put(tube, b"x")
    consumer = gstalk.Consumer(server.uri, tube, event_func=otel.event_func(), auto_delete=True)
    consumer.receive(lambda job: consumer.stop())


def test_job_given_up_is_counted_with_what_failed(work, connect, server, tube, telemetry):
    connect(server.uri).put(tube, b"x")

    def handler(job: gstalk.Job) -> None:
        raise KeyError

    work(handler, retry=gstalk.RetryPolicy(max_attempts=1))
    assert telemetry.total("gstalk.jobs.given_up") == 1
    (point,) = telemetry.points("gstalk.jobs.given_up")
    assert attributes(point)["error.type"] == "KeyError"
    assert attributes(point)["messaging.destination.name"] == tube


def test_scope_has_its_version_and_the_schema_of_its_names(server, tube, telemetry):
    with gstalk.dial(server.uri, event_func=telemetry.event_func) as conn:
        conn.put(tube, b"x")
    (span,) = telemetry.spans("put")
    data = telemetry._reader.get_metrics_data()
    (metrics,) = [scope for resource in data.resource_metrics for scope in resource.scope_metrics]
    for scope in (span.instrumentation_scope, metrics.scope):
        assert (scope.name, scope.version) == ("gstalk", gstalk.__version__)
        assert scope.schema_url == otel.SCHEMA
    assert otel.SCHEMA in {each.value for each in Schemas}


def test_names_are_those_of_the_conventions():
    """What is not in the package's list of names is gstalk's own, and says so."""
    known = {
        value
        for module in (metrics_names, attributes_names)
        for value in vars(module).values()
        if isinstance(value, str)
    }
    used = set(re.findall(r'"(messaging\.[\w.]+)"', Path(otel.__file__).read_text("utf-8")))
    assert len(used) > 8
    assert used - known == set()
