"""Producers that put and a Consumer that works off, while a test breaks what is between them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import gevent

import gstalk
from tests.servers import wait_until
from tests.survival.record import Record, make_body

__all__ = ["SIZES", "TTR", "TUBE", "Load"]

TUBE = "survival"
TTR = 3600  # longer than any test: a job that runs twice was lost with its connection
PATIENCE = 15
SIZES = [0, 20, 200, 2000]


class Cancelled(BaseException):
    """Somebody doesn't want to wait any longer."""


class Load:
    """Greenlets that put, over Producers that try again what may be stored and over those that don't, and a Consumer.

    Args:
        record: What to note.
        rng: Chance.
        putters: How many greenlets put on each Producer.
        mishap: Called with each job's handler's chance before the delete; may raise.
        **options: For all of them.
    """

    def __init__(
        self,
        record: Record,
        rng: random.Random,
        *,
        putters: int = 8,
        mishap: Callable[[gstalk.Job], None] = lambda job: None,
        **options: Any,
    ) -> None:
        self.record, self.rng = record, rng
        self.errors: list[tuple[BaseException, str]] = []
        self._putters = putters
        self._mishap = mishap
        self._options = {
            "multiply": 2,
            "num_greenlets": 20,
            "info_func": lambda message: None,
            "error_func": lambda error, message: self.errors.append((error, message)),
            **options,
        }
        self.uris = list(record.witnesses)
        self.consumer = gstalk.Consumer(self.uris, TUBE, self.config())
        self.greenlets: list[gevent.Greenlet[..., Any]] = []
        self._stopped = False

    def config(self, **options: Any) -> gstalk.Config:
        return gstalk.Config(**{**self._options, **options})

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run within the block; at its end the puts come to theirs, and the Consumer stops."""
        producers = [gstalk.Producer(self.uris, self.config(retry_ambiguous=again)) for again in (True, False)]
        for producer, once in zip(producers, (False, True), strict=True):
            self.greenlets += [gevent.spawn(self._put, producer, once) for _ in range(self._putters)]
        receiver = gevent.spawn(self._receive)
        try:
            wait_until(lambda: self.record.deleted)
            yield
            self._stopped = True
            gevent.joinall(self.greenlets, timeout=60, raise_error=True)
            self.consumer.stop()
            receiver.get(timeout=40)
        finally:
            gevent.killall([*self.greenlets, receiver])
            for producer in producers:
                producer.stop(0)

    def _receive(self) -> None:
        while not self._stopped:  # somebody may stop it, and not for good
            self.consumer.receive(self._handle)

    def _put(self, producer: gstalk.Producer, once: bool) -> None:
        while not self._stopped:
            with suppress(Cancelled):
                if self.record.backlog > 1000:
                    gevent.sleep(0.005)
                else:
                    self.put(producer, once)

    def cancel(self) -> None:
        """Interrupt one of those that put, whatever he waits for just now."""
        self.rng.choice(self.greenlets).kill(Cancelled, block=False)

    def put(self, producer: gstalk.Producer, once: bool) -> None:
        """Put one job, or some."""
        chance = self.rng.random()
        if chance < 0.05:
            self._put_many(producer, once, self.rng.randrange(100))
            return
        head = self.record.begun(body := make_body(self.rng.choice(SIZES)), once)
        outcome: object = None  # where a kill leaves it
        try:
            outcome = producer.put(TUBE, body, ttr=TTR, timeout=0 if chance < 0.1 else PATIENCE)
        except gstalk.GstalkError as error:
            outcome = error
        finally:
            self.record.ended(head, outcome)
        if not isinstance(outcome, int):
            gevent.sleep(0.005)  # it may be refused at once for as long as nothing is connected

    def _put_many(self, producer: gstalk.Producer, once: bool, count: int) -> None:
        heads: list[bytes] = []

        def bodies() -> Iterator[bytes]:
            for _ in range(count):
                heads.append(self.record.begun(body := make_body(self.rng.choice(SIZES)), once))
                yield body

        outcomes: list[Any] = []
        try:
            outcomes = list(producer.put_many(TUBE, bodies(), ttr=TTR, timeout=PATIENCE))
        except gstalk.PutManyError as error:
            outcomes = list(error.results)
        finally:
            assert len(outcomes) <= len(heads)
            for head, outcome in itertools.zip_longest(heads, outcomes):
                self.record.ended(head, outcome)

    def _handle(self, job: gstalk.Job) -> None:
        copy = self.record.ran(job)
        self._mishap(job)
        self.record.delete(job, copy)
