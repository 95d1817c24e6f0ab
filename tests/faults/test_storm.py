"""Thousands of cancellations at random, on shared connections, over a line that slices, delays and breaks."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import gevent
import pytest

import gstalk
from gstalk.testing import Beanstalkd, FaultProxy
from tests.servers import wait_until

pytestmark = [pytest.mark.real, pytest.mark.soak, pytest.mark.limit(3600)]

TUBES = ["storm-a", "storm-b", "storm-c"]
SLICES = [1, 5, 40, 300, None]
CONNS, WORKERS = 4, 40
PATIENCE = [0.001, 0.004, 0.05]  # seconds: mean times before a call is cancelled


class Storm:
    """Connections shared by workers that verify each reply, and what is known of every body that was put."""

    def __init__(self, uri: str, rng: random.Random, figures: Counter[str]) -> None:
        self.uri, self.rng, self.figures = uri, rng, figures
        self.conns = [self.dial() for _ in range(CONNS)]
        self.acknowledged: dict[int, bytes] = {}
        self.unsent: set[bytes] = set()
        self.deleted: set[bytes] = set()
        self.doomed: list[gstalk.Job] = []  # those whose delete was called, whatever came of it
        self.wrong: list[object] = []
        self.number = 0

    def dial(self) -> gstalk.Conn:
        conn = gstalk.dial(self.uri)
        try:
            for tube in TUBES:
                conn.watch(tube)
            conn.ignore("default")
        except gstalk.DisconnectedError:
            conn.close()
            raise
        return conn

    def verify(self, holds: bool, *what: object) -> None:
        if not holds:
            self.wrong.append(what)

    def work(self, place: int, goal: int) -> None:
        held: list[gstalk.Job] = []
        while self.figures["cancellations"] < goal:
            operation = self.rng.choice(
                [self.put, self.put, self.reserve, self.reserve, self.settle, self.settle, self.touch, self.look]
            )
            held = [job for job in held if not (job.is_finished or job.is_lost)]
            job = self.rng.choice(held) if held else None
            with suppress(gstalk.DisconnectedError):
                self.cancelled(partial(operation, self.connected(place), job, held))
        for job in held:
            with suppress(gstalk.JobLostError, gstalk.DisconnectedError):
                job.release()

    def connected(self, place: int) -> gstalk.Conn:
        """The connection of a place; the first worker that finds it cut dials another one."""
        conn = self.conns[place]
        if not conn.is_connected:
            fresh = self.dial()
            if self.conns[place] is not conn:
                fresh.close()  # somebody was faster
            else:
                self.figures["cuts"] += 1
                self.conns[place] = fresh
        return self.conns[place]

    def cancelled(self, operation: Callable[[], Any]) -> None:
        """Call something, for a random time at most: ended by a Timeout, or by a kill of the greenlet."""
        patience = self.rng.expovariate(1 / self.rng.choice(PATIENCE))
        try:
            if self.rng.random() < 0.5:
                with gevent.Timeout(patience) as mine:
                    try:
                        operation()
                    except gevent.Timeout as error:
                        self.verify(error is mine, "another's timeout", error)
                        raise
            else:
                greenlet = gevent.Greenlet(self.quietly, operation)
                greenlet.start()
                greenlet.join(patience)
                if not greenlet.dead:
                    greenlet.kill()
                    raise gevent.GreenletExit
        except (gevent.Timeout, gevent.GreenletExit):
            self.figures["cancellations"] += 1
        except gstalk.GstalkError as error:
            self.figures[type(error).__name__] += 1

    def quietly(self, operation: Callable[[], Any]) -> None:
        try:
            operation()
        except gstalk.GstalkError as error:
            self.figures[type(error).__name__] += 1

    # -- operations ------------------------------------------------------------------------------------------------

    def put(self, conn: gstalk.Conn, job: gstalk.Job | None, held: list[gstalk.Job]) -> None:
        tube = self.rng.choice(TUBES)
        self.number += 1
        body = b"%b %d %b" % (tube.encode(), self.number, b"x" * self.rng.choice([0, 10, 2000]))
        try:
            job_id = conn.put(tube, body)
        except gstalk.DisconnectedError as error:
            self.figures[f"puts unsent: {error.sent}"] += 1
            if error.sent == "no":
                self.unsent.add(body)
            raise
        self.verify(self.acknowledged.setdefault(job_id, body) is body, "an id twice", job_id)

    def reserve(self, conn: gstalk.Conn, job: gstalk.Job | None, held: list[gstalk.Job]) -> None:
        if len(held) < 5:
            got = conn.reserve_with_timeout(self.rng.choice([0, 0.003, 30]))
            if got is not None:
                held.append(got)
                self.verify(self.acknowledged.get(got.id, got.body) == got.body, "a job's body", got)

    def settle(self, conn: gstalk.Conn, job: gstalk.Job | None, held: list[gstalk.Job]) -> None:
        if job is not None and self.rng.random() < 0.5:
            held.remove(job)
            self.doomed.append(job)
            job.delete()
            self.verify(job.is_finished, "a delete that returned", job)
            self.deleted.add(job.body)
        elif job is not None:
            held.remove(job)
            job.release()

    def touch(self, conn: gstalk.Conn, job: gstalk.Job | None, held: list[gstalk.Job]) -> None:
        if job is not None:
            job.touch()

    def look(self, conn: gstalk.Conn, job: gstalk.Job | None, held: list[gstalk.Job]) -> None:
        tube = self.rng.choice(TUBES)
        match self.rng.randrange(4):
            case 0:
                self.verify(conn.stats_tube(tube).name == tube, "a tube's stats", tube)
            case 1:
                ready = conn.peek_ready(tube)
                self.verify(ready is None or ready.body.startswith(tube.encode()), "a peeked job's tube", ready)
            case 2 if self.acknowledged:
                job_id, body = self.rng.choice(list(self.acknowledged.items())[-50:])
                peeked = conn.peek(job_id)
                self.verify(peeked is None or (peeked.id, peeked.body) == (job_id, body), "a peeked job", peeked)
            case 3 if self.acknowledged:
                job_id = self.rng.choice(list(self.acknowledged)[-50:])
                self.verify(conn.stats_job(job_id).id == job_id, "a job's stats", job_id)


def test_storm_of_cancellations_harms_nobody(own_server: Beanstalkd, connect, rng, many, figures):
    goal = many(10_000, 100_000)
    counts: Counter[str] = Counter()
    watcher = connect(own_server.uri)
    for tube in TUBES:
        watcher.put(tube, tube.encode() + b" 0")  # so that the tubes are there
    with FaultProxy(own_server.uri) as proxy:
        storm = Storm(proxy.uri, rng, counts)
        weather = gevent.spawn(change, proxy, rng)
        workers = [gevent.spawn(storm.work, n % CONNS, goal) for n in range(WORKERS)]
        try:
            gevent.joinall(workers, raise_error=True)
        finally:
            weather.kill()
            gevent.killall(workers)
        proxy.slice(None)
        proxy.delay(0)
        # With all connections still open: what nobody got went back at once, what was called was carried out.
        wait_until(lambda: watcher.stats().current_jobs_reserved == 0, 1)
        for conn in storm.conns:
            conn.close()

    found: Counter[bytes] = Counter()
    for tube in TUBES:
        while (job := watcher.peek_ready(tube)) is not None:
            found[job.body] += 1
            job.delete()
    storm.deleted.update(job.body for job in storm.doomed if job.is_finished)
    uncertain = {job.body for job in storm.doomed} - storm.deleted  # the line broke before the answer came
    acknowledged = set(storm.acknowledged.values())
    figures |= dict(counts) | {"acknowledged": len(acknowledged), "unsent": len(storm.unsent), "found": len(found)}
    assert storm.wrong == []
    assert acknowledged - set(found) - storm.deleted - uncertain == set()  # lost
    assert storm.unsent & set(found) == set()  # reported unsent, and found
    assert storm.deleted & set(found) == set()  # resurrected
    assert [body for body, times in found.items() if times > 1] == []
    assert counts["cuts"] > 0
    assert counts["cancellations"] >= goal


def change(proxy: FaultProxy, rng: random.Random) -> None:
    """The weather: every 20 ms another one, and now and then a connection is cut."""
    while True:
        proxy.slice(rng.choice(SLICES), rng.choice(["up", "down"]))
        proxy.delay(rng.choice([0, 0, 0.001, 0.003]), rng.choice(["up", "down"]))
        if rng.random() < 0.1:
            proxy.cut(rng.randrange(500), rng.choice(["up", "down"]), reset=rng.random() < 0.5)
        gevent.sleep(0.02)
