"""What may not grow: ``bounds.py SCENARIO URI ROUNDS [PID OF THE SERVER]``.

It prints one JSON value with what it measured, in a process whose memory is nobody else's.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from collections.abc import Iterator
from functools import partial
from time import monotonic
from typing import Any

import gevent
from gevent.event import Event

import gstalk

SCENARIO, URI, ROUNDS = sys.argv[1], sys.argv[2], int(sys.argv[3])
HANDLERS = 100
BODY = b"x" * 1024
AHEAD = 5000  # jobs that the producer may be ahead, so that the server stays small


def megabytes() -> float:
    """Resident memory."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


class Flood:
    """Jobs by the thousand through one Producer and one Consumer."""

    def __init__(self) -> None:
        self.done = self.held = self.most = 0
        self.open = Event()  # the gate that holds all handlers while a sample is taken
        self.open.set()
        self.consumer = gstalk.Consumer(URI, "flood", num_greenlets=HANDLERS)
        self.conn = gstalk.dial(URI)

    def handle(self, job: gstalk.Job) -> None:
        self.held += 1
        self.open.wait()
        self.held -= 1
        job.delete()
        self.done += 1
        if self.done == ROUNDS:
            self.consumer.stop()

    def bodies(self) -> Iterator[bytes]:
        for number in range(ROUNDS):
            while number - self.done > AHEAD:
                gevent.sleep(0.001)
            yield BODY

    def reserved(self) -> int:
        return self.conn.stats_tube("flood").current_jobs_reserved or 0

    def watch(self, told: dict[str, Any]) -> None:
        """Take samples: never more reserved than there are handlers; and of those none that has no handler."""
        self.conn.watch("flood")
        while self.done < ROUNDS:
            gevent.sleep(0.01)
            self.most = max(self.most, self.reserved())
            told["samples"] += 1
            if told["samples"] % 10 == 0 and ROUNDS - self.done > 2 * HANDLERS:
                self.open.clear()
                end = monotonic() + 5
                while self.held < HANDLERS and monotonic() < end:
                    gevent.sleep(0.001)  # those that were on their way, or whose deletes are, are to come to the gate
                told["reserved but not running"] += abs(self.reserved() - self.held)
                told["held samples"] += 1
                self.open.set()

    def run(self) -> dict[str, Any]:
        told: dict[str, Any] = {"samples": 0, "held samples": 0, "reserved but not running": 0}
        began = monotonic()
        receiving = gevent.spawn(self.consumer.receive, self.handle)
        watching = gevent.spawn(self.watch, told)
        with gstalk.Producer(URI) as producer:
            putting = gevent.spawn(producer.put_many, "flood", self.bodies())
            while self.done < min(ROUNDS / 10, 50_000):
                gevent.sleep(0.01)
            before = megabytes()
            putting.get()
        receiving.get()
        watching.get()
        told |= {"jobs": self.done, "most reserved": self.most, "MB at first": round(before, 1)}
        del putting  # its result, a million ids, is what was asked for
        return told | {"MB grown": round(megabytes() - before, 1), "seconds": round(monotonic() - began, 1)}


def flood() -> dict[str, Any]:
    return Flood().run()


def pressed() -> dict[str, Any]:
    """Greenlets that put and put, 60 kB each time, and one that puts without end, while the server takes nothing."""
    body = b"x" * 60_000
    begun = ended = taken = 0
    longest = 0.0

    def bodies() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield body

    def put() -> None:
        nonlocal begun, ended, longest
        while True:
            begun += 1
            start = monotonic()
            try:
                producer.put("pressed", body, timeout=1)
            except gstalk.PutTimeoutError:
                longest = max(longest, monotonic() - start)
            ended += 1

    with gstalk.Producer(URI, info_func=lambda message: None, conn_timeout=60, multiply=2) as producer:
        producer.put("pressed", b"warm")
        os.kill(int(sys.argv[4]), signal.SIGSTOP)
        try:
            before = megabytes()
            putting: list[Any] = [gevent.spawn(put) for _ in range(ROUNDS)]
            putting.append(gevent.spawn(partial(producer.put_many, timeout=60), "pressed", bodies()))
            gevent.sleep(2.5)
            told: dict[str, Any] = {
                "greenlets": ROUNDS,
                "puts under way": begun - ended,
                "taken ahead by put_many": taken,
            }
            told |= {"MB grown": round(megabytes() - before, 1), "puts": begun, "longest": round(longest, 2)}
            gevent.killall(putting)
            producer.stop(0)
        finally:
            os.kill(int(sys.argv[4]), signal.SIGCONT)
    return told


print(json.dumps(globals()[SCENARIO]()), flush=True)
