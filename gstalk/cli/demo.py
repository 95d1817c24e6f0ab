"""`gstalk demo`: a Producer and a Consumer at work."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import click
import gevent
from gevent.lock import Semaphore

import gstalk
from gstalk.cli._output import plural, progress, table, tell
from gstalk.cli._servers import Servers
from gstalk.cli._sweep import count_jobs, sweep
from gstalk.protocol import commands
from gstalk.testing import Server

__all__ = ["demo"]

PACED = 300  # jobs put one by one to an idle Consumer, to measure the latency
GREENLETS = 30
CONNECTIONS = 3
AHEAD = 500  # jobs at most that are put and not yet worked off: what a Ctrl-C has to clear away


@click.command()
@click.option("--jobs", default=20_000, show_default=True, type=click.IntRange(100), help="How many to put.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def demo(servers: Servers, jobs: int, as_json: bool) -> None:
    """Put and work off jobs with a Producer and a Consumer.

    On the embedded server in this process, unless --uri or $BEANSTALKD_URI names another. Ctrl-C ends it as it ends a
    worker.
    """
    with contextlib.ExitStack() as stack:
        where = servers.uri if servers.named else stack.enter_context(Server()).uri
        gstalk.dial(where).close()  # no server: say so at once
        result = _Demo(where, jobs, where if servers.named else "the embedded server").run()
    if as_json:
        click.echo(json.dumps(result))
    else:
        table(("gstalk demo", ""), [(name.replace("_", " "), value) for name, value in result.items()])


class _Demo:
    """The demo's run: some jobs fail once and are retried, a few are buried, and all are accounted for.

    Args:
        place: What the server is called.
    """

    def __init__(self, uri: str, jobs: int, place: str) -> None:
        self._uri = uri
        self._jobs = jobs
        self._place = place
        self._tube = f"gstalk-demo-{os.getpid()}-{time.time_ns()}"
        self._room = Semaphore(AHEAD)
        self._tried: set[bytes] = set()
        self._count = {"done": 0, "retried": 0, "buried": 0}
        self._latencies: list[float] = []

    def run(self) -> dict[str, Any]:
        config = gstalk.Config(num_greenlets=GREENLETS, multiply=CONNECTIONS)
        self._say_what_is_shown()
        try:
            with gstalk.Producer(self._uri, config) as producer:
                seconds = self._put_and_work_off(producer, config)
                tell(f"now {PACED} jobs one by one, to a Consumer that has nothing else to do")
                self._measure_latency(producer)
        except KeyboardInterrupt:
            tell(
                "stopped as a worker stops: no more jobs were reserved, running handlers ended\n"
                f"  {self._ended:,} of {self._jobs:,} jobs were worked off; the rest of those put is deleted"
            )
            raise
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

    @property
    def _ended(self) -> int:
        return self._count["done"] + self._count["buried"]

    def _say_what_is_shown(self) -> None:
        kinds = Counter(_kind(number) for number in range(self._jobs))
        tell(
            f"{plural(self._jobs, 'job')} on {self._place}\n"
            f"  a Producer puts them, a Consumer works them off in {GREENLETS} greenlets\n"
            f"  {kinds[b'retry']:,} are made to fail once, and are tried again\n"
            f"  {kinds[b'bury']:,} are made to fail for good, and end buried"
        )

    def _put_and_work_off(self, producer: gstalk.Producer, config: gstalk.Config) -> float:
        """Returns the seconds that it took."""
        consumer = gstalk.Consumer(self._uri, self._tube, config)
        with self._progress() as advance:

            def handler(job: gstalk.Job) -> None:
                kind = job.body.split()[0]
                if kind == b"retry" and job.body not in self._tried:
                    self._tried.add(job.body)
                    self._count["retried"] += 1
                    raise gstalk.Retry(delay=0)
                if kind != b"bury":
                    job.delete()
                self._count["buried" if kind == b"bury" else "done"] += 1
                self._room.release()
                advance(self._ended)
                if self._ended == self._jobs:
                    consumer.stop()
                if kind == b"bury":
                    raise gstalk.Bury

            began = time.perf_counter()
            putting = gevent.spawn(producer.put_many, self._tube, self._bodies())
            try:
                consumer.receive(handler)  # Ctrl-C stops it: when it raises, all handlers have finished
                putting.get()
            finally:
                putting.kill()
            return time.perf_counter() - began

    def _bodies(self) -> Iterator[bytes]:
        for number in range(self._jobs):
            self._room.acquire()
            yield b"%s %d" % (_kind(number), number)

    def _measure_latency(self, producer: gstalk.Producer) -> None:
        """Put jobs one by one to a Consumer that has nothing else to do."""
        consumer = gstalk.Consumer(self._uri, self._tube, auto_delete=True)

        def handler(job: gstalk.Job) -> None:
            self._latencies.append(time.perf_counter() - float(job.body))
            if len(self._latencies) == PACED:
                consumer.stop()

        receiving = gevent.spawn(consumer.receive, handler)
        try:
            consumer.wait_connected(10)
            for _ in range(PACED):
                gevent.sleep(0.003)
                producer.put(self._tube, b"%.9f" % time.perf_counter())
            receiving.get()
        finally:
            consumer.stop()
            receiving.join()

    def _clean_up(self) -> None:
        with gstalk.dial(self._uri) as conn:
            for state, bound in count_jobs(conn, self._tube).items():
                sweep(conn, self._tube, state, commands.DELETE, bound, lambda count: None)

    @contextlib.contextmanager
    def _progress(self) -> Iterator[Callable[[int], None]]:
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
            quarter = max(self._jobs // 4, 1)
            yield lambda done: None if done % quarter else tell(f"{done:,} of {self._jobs:,} jobs worked off")


def _kind(number: int) -> bytes:
    """What becomes of the job with this number."""
    return b"bury" if number % 1000 == 999 else b"retry" if number % 100 == 50 else b"work"
