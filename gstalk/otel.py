"""Traces and metrics through OpenTelemetry's API, from the extra `gstalk[otel]`: one function for `Config.event_func`.

    config = gstalk.Config(event_func=gstalk.otel.event_func())

A put, delete, release or bury becomes a span when it has ended, below the caller's current span. A handler's span is
begun before the handler and ended after its job has its fate, in the handler's greenlet: it is the current span there.
It begins a trace of its own, since a body is bytes and has no room for the trace of whoever put it. Names are those of
the semantic conventions for messaging; nothing else in gstalk imports this.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar, Token

try:
    from opentelemetry import context, metrics, trace
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider
except ImportError as missing:
    raise ImportError(
        "gstalk.otel needs opentelemetry-api, which isn't installed: pip install 'gstalk[otel]'", name=missing.name
    ) from None

from gstalk import __version__
from gstalk.config import Event
from gstalk.errors import Bury, Retry
from gstalk.uri import parse_uri

__all__ = ["event_func"]

Attributes = dict[str, str | int]

SCHEMA = "https://opentelemetry.io/schemas/1.36.0"  # the semantic conventions from which the names are taken
OPERATIONS = {"put": "send", "delete": "settle", "release": "settle", "bury": "settle"}
BUCKETS = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300]


class _Run:
    """A handler that runs: its span, and how to get back to the context before it."""

    __slots__ = ("attributes", "before", "span", "token")

    def __init__(self, span: Span, attributes: Attributes) -> None:
        self.span = span
        self.attributes = attributes
        self.before = context.attach(trace.set_span_in_context(span))
        self.token: Token[_Run | None] = _running.set(self)

    def end(self) -> None:
        context.detach(self.before)
        _running.reset(self.token)


_running: ContextVar[_Run | None] = ContextVar("gstalk.otel", default=None)  # each greenlet has its own


def event_func(
    tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
) -> Callable[[Event], None]:
    """Make an `event_func` that tells OpenTelemetry.

    Args:
        tracer_provider: Whose spans to make; `None`: the global one.
        meter_provider: Whose instruments to use; `None`: the global one.

    Returns:
        What `Config.event_func` takes; one may serve several Producers, Consumers and Conns.
    """
    return _Telemetry(tracer_provider, meter_provider)


class _Telemetry:
    """Turns events into spans and measurements."""

    def __init__(self, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None) -> None:
        self._tracer = trace.get_tracer("gstalk", __version__, tracer_provider, SCHEMA)
        meter = metrics.get_meter("gstalk", __version__, meter_provider, SCHEMA)
        self._servers: dict[str | None, Attributes] = {None: {}}

        def seconds(name: str, description: str) -> metrics.Histogram:
            return meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=BUCKETS)

        self._operations = seconds("messaging.client.operation.duration", "How long puts and settling took")
        self._processed = seconds("messaging.process.duration", "How long handlers took")
        self._waits = seconds("gstalk.job.wait", "How long jobs were ready before their first attempt, where known")
        self._sent = meter.create_counter("messaging.client.sent.messages", "{message}", "Puts")
        self._consumed = meter.create_counter("messaging.client.consumed.messages", "{message}", "Jobs for handlers")
        self._retries = meter.create_counter("gstalk.put.retries", "{retry}", "Tries of puts that failed")
        self._in_flight = meter.create_up_down_counter("gstalk.jobs.in_flight", "{job}", "Jobs that handlers work at")
        self._given_up = meter.create_counter("gstalk.jobs.given_up", "{job}", "Jobs whose attempts were used up")
        self._reconnects = meter.create_counter("gstalk.reconnects", "{connection}", "Connections made again")

    def __call__(self, event: Event) -> None:
        kind = event.kind
        if kind in OPERATIONS:
            self._operation(event)
        elif kind == "handling":
            self._handling(event)
        elif kind == "handled":
            self._handled(event)
        elif kind == "put_retry":
            self._retries.add(1, self._attributes(event, "put", "send"))
        elif kind == "given_up":
            self._given_up.add(1, self._attributes(event, "process", "process"))
        elif kind == "connect" and event.attempt is not None and event.attempt > 1:
            self._reconnects.add(1, self._server(event.uri))

    def _operation(self, event: Event) -> None:
        attributes = self._attributes(event, event.kind, OPERATIONS[event.kind])
        duration = event.duration or 0.0
        now = time.time_ns()
        span = self._tracer.start_span(
            _named(event.kind, event.tube),
            kind=SpanKind.PRODUCER if event.kind == "put" else SpanKind.CLIENT,
            attributes=_of_job(attributes, event),
            start_time=now - int(duration * 1e9),
        )
        _fail(span, event.exception)
        span.end(now)
        self._operations.record(duration, attributes)
        if event.kind == "put":
            self._sent.add(1, attributes)

    def _handling(self, event: Event) -> None:
        attributes = self._attributes(event, "process", "process")
        self._in_flight.add(1, attributes)
        self._consumed.add(1, attributes)
        if event.duration is not None:
            self._waits.record(event.duration, attributes)
        span = self._tracer.start_span(
            _named("process", event.tube),
            context.Context(),
            kind=SpanKind.CONSUMER,
            attributes=_of_job(attributes, event),
        )
        _Run(span, attributes)

    def _handled(self, event: Event) -> None:
        run = _running.get()
        if run is None:
            return
        run.end()
        self._in_flight.add(-1, run.attributes)
        error = None if isinstance(event.exception, Retry | Bury) else event.exception
        ending = run.attributes if error is None else {**run.attributes, "error.type": _type(error)}
        self._processed.record(event.duration or 0.0, ending)
        run.span.set_attributes(_of_job(ending, event))
        _fail(run.span, error)
        run.span.end()

    def _attributes(self, event: Event, name: str, operation: str) -> Attributes:
        """Build what spans and measurements share: few values each."""
        attributes = {
            "messaging.system": "beanstalkd",
            "messaging.operation.name": name,
            "messaging.operation.type": operation,
            **self._server(event.uri),
        }
        if event.tube is not None:
            attributes["messaging.destination.name"] = event.tube
        if event.exception is not None:
            attributes["error.type"] = _type(event.exception)
        return attributes

    def _server(self, uri: str | None) -> Attributes:
        if uri not in self._servers:
            address = parse_uri(str(uri))
            named: Attributes = {"server.address": address.path or address.host or ""}
            if address.port is not None:
                named["server.port"] = address.port
            self._servers[uri] = named
        return self._servers[uri]


def _named(operation: str, tube: str | None) -> str:
    return operation if tube is None else f"{operation} {tube}"


def _of_job(attributes: Attributes, event: Event) -> Attributes:
    """Add what is a span's alone: it differs from job to job."""
    attributes = dict(attributes)
    if event.tube is not None:
        attributes["messaging.destination.name"] = event.tube
    if event.job_id is not None:
        attributes["messaging.message.id"] = str(event.job_id)
    if event.attempt is not None:
        attributes["gstalk.attempt"] = event.attempt
    return attributes


def _fail(span: Span, error: BaseException | None) -> None:
    if error is not None:
        span.record_exception(error)
        span.set_status(Status(StatusCode.ERROR, str(error)))


def _type(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
