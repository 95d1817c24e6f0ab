"""`gstalk demo`: a Producer and a Consumer at work."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import click
import gevent
from rich.console import Console
from rich.table import Table

import gstalk
from gstalk.cli._output import progress
from gstalk.cli._servers import Servers
from gstalk.testing import Server

__all__ = ["demo"]

PACED = 300  # jobs put one by one to an idle Consumer, to measure the latency
GREENLETS = 30


@click.command()
@click.option("--jobs", default=20_000, show_default=True, type=click.IntRange(100), help="How many to put.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def demo(servers: Servers, jobs: int, as_json: bool) -> None:
    """Put and work off jobs with a Producer and a Consumer.

    On the embedded server in this process, unless --uri or $BEANSTALKD_URI names another.
    """
    with contextlib.ExitStack() as stack:
        where = servers.uri if servers.named else stack.enter_context(Server()).uri
        gstalk.dial(where).close()  # no server: say so at once
        result = _Demo(where, jobs).run()
    if as_json:
        click.echo(json.dumps(result))
        return
    table = Table(title=f"gstalk demo on {where if servers.named else 'the embedded server'}", show_header=False)
    for name, value in result.items():
        table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
    Console().print(table)


class _Demo:
    """The demo's run: some jobs fail once and are retried, a few are buried, and all are accounted for."""

    def __init__(self, uri: str, jobs: int) -> None:
        self._uri = uri
        self._jobs = jobs
        self._tube = f"gstalk-demo-{os.getpid()}-{time.time_ns()}"
        self._tried: set[bytes] = set()
        self._count = {"done": 0, "retried": 0, "buried": 0}
        self._latencies: list[float] = []

    def run(self) -> dict[str, Any]:
        config = gstalk.Config(num_greenlets=GREENLETS, multiply=3)
        consumer = gstalk.Consumer(self._uri, self._tube, config)
        try:
            with gstalk.Producer(self._uri, config) as producer, self._progress() as advance:
                began = time.perf_counter()
                putting = gevent.spawn(
                    producer.put_many, self._tube, (self._body(number) for number in range(self._jobs))
                )

                def handler(job: gstalk.Job) -> None:
                    self._handle(job)
                    advance(self._count["done"] + self._count["buried"])
                    if self._count["done"] + self._count["buried"] == self._jobs:
                        consumer.stop()

                consumer.receive(handler)
                putting.get()
                seconds = time.perf_counter() - began
                self._measure_latency(producer)
        finally:
            self._clean_up()
        ordered = sorted(self._latencies)
        return {
            "jobs_put": self._jobs,
            "jobs_done": self._count["done"],
            "jobs_retried": self._count["retried"],
            "jobs_buried": self._count["buried"],
            "jobs_per_second": round(self._jobs / seconds),
            "put_to_handler_p50_ms": round(ordered[len(ordered) // 2] * 1000, 3),
            "put_to_handler_p99_ms": round(ordered[len(ordered) * 99 // 100] * 1000, 3),
        }

    @staticmethod
    def _body(number: int) -> bytes:
        kind = "bury" if number % 1000 == 999 else "retry" if number % 100 == 50 else "work"
        return f"{kind} {number}".encode()

    def _handle(self, job: gstalk.Job) -> None:
        kind = job.body.split()[0]
        if kind == b"bury":
            self._count["buried"] += 1
            raise gstalk.Bury
        if kind == b"retry" and job.body not in self._tried:
            self._tried.add(job.body)
            self._count["retried"] += 1
            raise gstalk.Retry(delay=0)
        job.delete()
        self._count["done"] += 1

    def _measure_latency(self, producer: gstalk.Producer) -> None:
        """Put jobs one by one to a Consumer that has nothing else to do."""
        consumer = gstalk.Consumer(self._uri, self._tube, auto_delete=True)

        def handler(job: gstalk.Job) -> None:
            self._latencies.append(time.perf_counter() - float(job.body))
            if len(self._latencies) == PACED:
                consumer.stop()

        receiving = gevent.spawn(consumer.receive, handler)
        consumer.wait_connected(10)
        for _ in range(PACED):
            gevent.sleep(0.003)
            producer.put(self._tube, b"%.9f" % time.perf_counter())
        receiving.get()

    def _clean_up(self) -> None:
        with gstalk.dial(self._uri) as conn:
            for peek in (conn.peek_ready, conn.peek_delayed, conn.peek_buried):
                while (job := peek(self._tube)) is not None:
                    with contextlib.suppress(gstalk.NotFoundError):
                        job.delete()

    @contextlib.contextmanager
    def _progress(self) -> Iterator[Any]:
        """Show how far it is, on standard error: a bar on a terminal, a line a quarter elsewhere."""
        if sys.stderr.isatty():
            with progress("working off", self._jobs) as advance:
                shown = 0

                def show(done: int) -> None:
                    nonlocal shown
                    advance(done - shown)
                    shown = done

                yield show
        else:

            def tell(done: int) -> None:
                if done % max(self._jobs // 4, 1) == 0:
                    print(f"{done:,} of {self._jobs:,} jobs worked off", file=sys.stderr)

            yield tell
