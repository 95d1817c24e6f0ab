"""Consumers at work: in a greenlet of the test, or in a process of their own (`programs/worker.py`)."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import Event

import gstalk
from tests.conftest import DESCRIPTORS
from tests.servers import wait_until

__all__ = ["HANDLERS", "WORKER", "Worker", "left_open"]

WORKER = "tests.survival.programs.worker"
HANDLERS = 7


class Worker:
    """A Consumer at work in a greenlet of its own; `with` stops it.

    Attributes:
        runs: How often the handler was called with each job.
        told: What error_func was told.
    """

    def __init__(self, uri: str, tube: str, handler: Callable[[gstalk.Job], object], **given: Any) -> None:
        self.runs: Counter[int] = Counter()
        self.told: list[tuple[BaseException, str]] = []
        self.handler = handler
        options: dict[str, Any] = {"num_greenlets": HANDLERS, "info_func": lambda message: None} | given
        self.consumer = gstalk.Consumer(uri, tube, error_func=lambda *error: self.told.append(error), **options)
        self.receiver = gevent.spawn(self.consumer.receive, self.handle)
        self.inside, self.most = 0, 0
        self.gate = Event()

    def __enter__(self) -> Worker:
        assert self.consumer.wait_connected(5)
        return self

    def __exit__(self, *_: object) -> None:
        self.gate.set()
        self.consumer.stop(5)
        self.receiver.get(timeout=20)

    def handle(self, job: gstalk.Job) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            if job.body == b"gate":
                self.gate.wait()
                job.delete()
            else:
                self.runs[job.id] += 1
                self.handler(job)
        finally:
            self.inside -= 1

    def all_run(self, conn: gstalk.Conn, tube: str) -> None:
        """As many handlers as ever run at once."""
        conn.put_many(tube, [b"gate"] * 2 * HANDLERS, priority=2**30)
        wait_until(lambda: self.inside == HANDLERS)
        assert conn.stats_tube(tube).current_jobs_reserved == HANDLERS
        assert self.most == HANDLERS
        self.gate.set()
        wait_until(lambda: self.inside == 0 and conn.stats_tube(tube).current_jobs_reserved == 0)


def left_open() -> tuple[int, int]:
    """Descriptors and greenlets, with none of the patience that the suite's own look at them has."""
    gc.collect()
    greenlets = sum(isinstance(each, gevent.Greenlet) and not each.dead for each in gc.get_objects())
    return len(os.listdir(DESCRIPTORS)) if DESCRIPTORS else 0, greenlets
