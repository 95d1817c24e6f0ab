"""Thousands of cancellations at random, on shared connections, over a line that slices, delays and breaks."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from time import perf_counter

import gevent
import pytest

import gstalk
from gstalk.testing import Beanstalkd, FaultProxy
from tests.faults.hub import silent_hub
from tests.servers import wait_until

pytestmark = [pytest.mark.real, pytest.mark.soak, pytest.mark.limit(3600)]

TUBES = ["storm-a", "storm-b", "storm-c"]
SLICES = [1, 5, 40, 300, None, None]
CONNS, WORKERS = 4, 40
PATIENCE = [0.001, 0.004, 0.05]  # seconds: mean times before a call is cancelled
TTR = 3600  # longer than a storm: a job that is lost was lost with its connection, or by a fault


def make_body(tube: str, owner: int, number: int, size: int) -> bytes:
    """A body that says what it is, to its last byte."""
    return b"%b %d %d %d\n%b" % (tube.encode(), owner, number, size, bytes([97 + number % 26]) * size)


def head_of(body: bytes) -> bytes:
    """What a body says it is; none if it isn't."""
    head, _, _ = body.partition(b"\n")
    with suppress(ValueError):
        tube, *numbers = head.decode().split(" ")
        if body == make_body(tube, *map(int, numbers)):
            return head
    return b""


def drained(conn: gstalk.Conn, tube: str) -> Iterator[gstalk.Job]:
    """Take all ready jobs out of a tube, without reserving them."""
    while (job := conn.peek_ready(tube)) is not None:
        yield job
        job.delete()


class Ledger:
    """What is known of each body, by the first line of it, and what was found wrong."""

    def __init__(self) -> None:
        self.wrong: list[object] = []
        self.tried: set[bytes] = set()
        self.acknowledged: set[bytes] = set()
        self.unsent: set[bytes] = set()
        self.deleted: set[bytes] = set()
        self.heads: dict[int, bytes] = {}  # by id, whoever said so: the reply to a put, a reserve or a peek
        self.figures: Counter[str] = Counter()

    def verify(self, holds: bool, *what: object) -> None:
        if not holds:
            self.wrong.append(what)

    def seen(self, job_id: int, body: bytes) -> bytes:
        """A job has come, or an id for one: it is what everybody was told it is."""
        head = head_of(body)
        self.verify(head in self.tried, "a body that nobody put", job_id, body[:80])
        self.verify(self.heads.setdefault(job_id, head) == head, "an id of another job", job_id, head)
        return head

    def put(self, conn: gstalk.Conn, tube: str, body: bytes) -> None:
        head = head_of(body)
        self.tried.add(head)
        try:
            job_id = conn.put(tube, body, ttr=TTR)
        except gstalk.DisconnectedError as error:
            self.figures[f"puts {error.sent}"] += 1
            if error.sent == "no":
                self.unsent.add(head)
            raise
        self.figures["puts acknowledged"] += 1
        self.acknowledged.add(head)
        self.seen(job_id, body)

    def balance(self, found: Counter[bytes], uncertain: set[bytes]) -> None:
        """Hold what was said against what the server has."""
        assert self.wrong == []
        assert set(found) - self.tried == set()
        assert self.acknowledged - set(found) - self.deleted - uncertain == set()  # lost
        assert self.unsent & (set(found) | self.deleted | uncertain) == set()  # reported as unsent, and stored
        assert self.deleted & set(found) == set()  # come back
        assert [head for head, times in found.items() if times > 1] == []


class Storm(Ledger):
    """Connections, each shared by workers that call something, verify the reply, and are cancelled meanwhile."""

    def __init__(self, uri: str, rng: random.Random) -> None:
        super().__init__()
        self.uri, self.rng = uri, rng
        self.conns = [self.dial() for _ in range(CONNS)]
        self.held: dict[int, gstalk.Conn] = {}  # where a job is held whose delete or release nobody has called yet
        self.taken: list[tuple[gstalk.Job, gstalk.Conn]] = []  # reserved while another connection held it
        self.settling: list[tuple[str, gstalk.Job, gstalk.Conn]] = []  # those whose delete or release was called
        self.number = 0

    def dial(self) -> gstalk.Conn:
        conn = gstalk.dial(self.uri, conn_timeout=30)
        try:
            for tube in TUBES:
                conn.watch(tube)
            conn.ignore("default")
        except gstalk.DisconnectedError:
            conn.close()
            raise
        return conn

    def connected(self, place: int) -> gstalk.Conn:
        """The connection of a place; the first worker that has dialed another one replaces it when it is cut."""
        conn = self.conns[place]
        if not conn.is_connected:
            fresh = self.dial()
            if self.conns[place] is not conn:
                fresh.close()  # somebody was faster
            else:
                self.figures["cuts"] += 1
                self.conns[place] = fresh
        return self.conns[place]

    def work(self, owner: int, goal: int) -> None:
        worker = Worker(self, owner)
        while self.figures["cancelled in a wait"] < goal or not self.figures["cuts"]:  # there may be none by then
            with suppress(gstalk.DisconnectedError):
                conn = self.connected(owner % CONNS)
                name = self.rng.choice(list(worker.operations))
                self.cancelled(name, conn, worker.operations[name])
        worker.let_go()

    def cancelled(self, name: str, conn: gstalk.Conn, operation: Callable[[gstalk.Conn], None]) -> None:
        """Call something, for a random time at most: ended by a Timeout, or by a kill of the greenlet."""
        patience = self.rng.expovariate(1 / self.rng.choice(PATIENCE))
        begun = False

        def run() -> None:
            nonlocal begun
            begun = True
            try:
                operation(conn)
            except (gstalk.DisconnectedError, gstalk.JobLostError) as error:
                self.verify(not conn.is_connected, "a connection that nobody cut", name, error)
            except gstalk.NotFoundError as error:
                self.verify(name == "stats", "not found", name, error)
            except Exception as error:
                self.wrong.append((name, error))

        if self.rng.random() < 0.5:
            mine = gevent.Timeout(patience)
            try:
                with mine:
                    run()
                return
            except gevent.Timeout as error:
                self.verify(error is mine, "another's timeout", name, error)
        else:
            greenlet = gevent.spawn(run)
            if self.rng.random() < 0.95:
                greenlet.join(patience)
            if greenlet.dead:
                return
            greenlet.kill()
        self.figures["cancellations"] += 1
        if begun:  # then it can only have been hit where it had switched to the hub
            self.figures["cancelled in a wait"] += 1
            self.figures[f"in {name}"] += 1

    def hold(self, job: gstalk.Job, conn: gstalk.Conn) -> None:
        other = self.held.get(job.id)
        self.verify(other is not conn, "reserved twice", job)
        if other is not None:  # then that one is cut, which the server may know before we do
            self.taken.append((job, other))
        self.held[job.id] = conn

    def unhold(self, job: gstalk.Job, conn: gstalk.Conn) -> None:
        """It is about to be settled: from then on others may get it."""
        if self.held.get(job.id) is conn:
            del self.held[job.id]

    def carried_out(self) -> bool:
        """Every delete and release that was called has succeeded, if its connection lives."""
        return all(job.is_finished or not conn.is_connected for _, job, conn in self.settling)


class Worker:
    """One greenlet's part of the storm: a few jobs that it holds, and what it does next."""

    def __init__(self, storm: Storm, owner: int) -> None:
        self.storm, self.rng, self.owner = storm, storm.rng, owner
        self.mine: list[tuple[gstalk.Job, gstalk.Conn]] = []
        self.operations: dict[str, Callable[[gstalk.Conn], None]] = {
            "put": self.put,
            "reserve": self.reserve,
            "delete": lambda conn: self.settle("delete"),
            "release": lambda conn: self.settle("release"),
            "touch": self.touch,
            "peek": self.peek,
            "stats": self.stats,
        }

    def put(self, conn: gstalk.Conn) -> None:
        self.storm.number += 1
        tube, size = self.rng.choice(TUBES), self.rng.choice([0, 10, 100, 1000, 3000])
        self.storm.put(conn, tube, make_body(tube, self.owner, self.storm.number, size))

    def reserve(self, conn: gstalk.Conn) -> None:
        if len(self.mine) < 5:
            job = conn.reserve_with_timeout(self.rng.choice([0, 0.003, 30]))
            if job is not None:
                self.mine.append((job, conn))
                self.storm.seen(job.id, job.body)
                self.storm.hold(job, conn)

    def one_of_mine(self) -> tuple[gstalk.Job, gstalk.Conn] | None:
        for job, conn in self.mine:
            self.storm.verify(not job.is_lost or not conn.is_connected, "a held job is gone", job)
        self.mine = [(job, conn) for job, conn in self.mine if not job.is_lost]
        return self.rng.choice(self.mine) if self.mine else None

    def settle(self, how: str) -> None:
        if (chosen := self.one_of_mine()) is None:
            return
        job, conn = chosen
        self.mine.remove(chosen)
        self.storm.unhold(job, conn)
        entry = (how, job, conn)
        self.storm.settling.append(entry)
        try:
            getattr(job, how)()
        except gstalk.JobLostError:  # its connection was cut before
            self.storm.settling.remove(entry)
            raise
        except gstalk.DisconnectedError as error:
            if error.sent == "no":
                self.storm.settling.remove(entry)
            raise
        self.storm.verify(job.is_finished, "settled, and not finished", how, job)

    def touch(self, conn: gstalk.Conn) -> None:
        if (chosen := self.one_of_mine()) is not None:
            chosen[0].touch()

    def peek(self, conn: gstalk.Conn) -> None:
        storm, tube = self.storm, self.rng.choice(TUBES)
        if storm.heads and self.rng.random() < 0.5:
            job_id = self.rng.choice(list(storm.heads)[-50:])
            job = conn.peek(job_id)
            storm.verify(job is None or job.id == job_id, "another job's peek", job, job_id)
        else:
            job = conn.peek_ready(tube)
            storm.verify(job is None or job.body.startswith(tube.encode()), "another tube's peek", job, tube)
        if job is not None:
            storm.seen(job.id, job.body)

    def stats(self, conn: gstalk.Conn) -> None:
        storm, tube = self.storm, self.rng.choice(TUBES)
        if storm.heads and self.rng.random() < 0.5:
            job_id = self.rng.choice(list(storm.heads)[-50:])
            told = conn.stats_job(job_id)
            storm.verify((told.id, told.ttr) == (job_id, TTR), "another job's stats", told)
            storm.verify(storm.heads[job_id].startswith(str(told.tube).encode()), "another tube's job", told)
        else:
            storm.verify(conn.stats_tube(tube).name == tube, "another tube's stats", tube)

    def let_go(self) -> None:
        """Nobody cancels this: what was held to the end is still ours."""
        while (chosen := self.one_of_mine()) is not None:
            self.storm.unhold(*chosen)  # workers that aren't done yet may get it
            with suppress(gstalk.JobLostError, gstalk.DisconnectedError):
                chosen[0].release()
                self.storm.verify(chosen[0].is_finished, "released, and not finished", chosen[0])
            self.storm.verify(chosen[0].is_finished or not chosen[1].is_connected, "a held job is gone", chosen[0])
            self.mine.remove(chosen)


def weather(proxy: FaultProxy, rng: random.Random) -> None:
    """Every 20 ms another one, and now and then a connection is cut."""
    while True:
        proxy.slice(rng.choice(SLICES), rng.choice(["up", "down"]))
        proxy.delay(rng.choice([0, 0, 0.001, 0.003]), rng.choice(["up", "down"]))
        if rng.random() < 0.1:
            proxy.cut(rng.randrange(500), rng.choice(["up", "down"]), reset=rng.random() < 0.5)
        gevent.sleep(0.02)


def test_storm_of_cancellations_harms_nobody(own_server: Beanstalkd, connect, rng, many, figures):
    goal = many(1500, 20_000)
    start = perf_counter()
    watcher = connect(own_server.uri)
    with FaultProxy(own_server.uri) as proxy, silent_hub():
        storm = Storm(proxy.uri, rng)
        for tube in TUBES:  # so that the tubes are there
            storm.put(watcher, tube, make_body(tube, WORKERS, 0, 0))
            watcher.watch(tube)
        blowing = gevent.spawn(weather, proxy, rng)
        workers = [gevent.spawn(storm.work, owner, goal) for owner in range(WORKERS)]
        try:
            gevent.joinall(workers, raise_error=True)
        finally:
            blowing.kill()
            gevent.killall(workers)
        proxy.slice(None)
        proxy.delay(0)
        # With all connections still open: what nobody got went back at once, what was called was carried out.
        wait_until(lambda: watcher.stats().current_jobs_reserved == 0 and storm.carried_out(), 1)
        assert [job for job, other in storm.taken if other.is_connected] == []
        for conn in storm.conns:
            conn.close()

    found: Counter[bytes] = Counter()
    for tube in TUBES:
        for job in drained(watcher, tube):
            found[storm.seen(job.id, job.body)] += 1
            storm.verify(job.body.startswith(tube.encode()), "put into another tube", tube, job)
    assert watcher.stats().current_jobs_ready == 0
    deletes = [(head_of(job.body), job) for how, job, _ in storm.settling if how == "delete"]
    storm.deleted.update(head for head, job in deletes if job.is_finished)
    uncertain = {head for head, job in deletes if not job.is_finished}  # the line broke before the answer came
    figures |= {"seconds": round(perf_counter() - start, 1), **storm.figures}
    figures |= {"deleted": len(storm.deleted), "uncertain": len(uncertain), "found": len(found)}
    storm.balance(found, uncertain)
    assert storm.figures["cancelled in a wait"] >= goal
    assert storm.figures["cuts"] > 0
    for name in ("put", "reserve", "delete", "release", "touch", "peek", "stats"):
        assert storm.figures[f"in {name}"] > goal / 200


def test_puts_into_a_full_line_that_is_cut_say_truly_what_was_sent(own_server: Beanstalkd, connect, rng, many, figures):
    """More than the kernel takes is put while the line stalls; then it flows again, and is cut."""
    ledger = Ledger()
    found: Counter[bytes] = Counter()
    watcher = connect(own_server.uri)
    rounds = many(20, 300)

    def put(conn: gstalk.Conn, body: bytes) -> None:
        with suppress(gstalk.DisconnectedError):
            ledger.put(conn, "storm-a", body)

    with FaultProxy(own_server.uri) as proxy, silent_hub():
        for n in range(rounds):
            with gstalk.dial(proxy.uri, conn_timeout=30) as conn:
                proxy.stall("up")
                puts = [gevent.spawn(put, conn, make_body("storm-a", n, number, 60_000)) for number in range(200)]
                gevent.sleep(0.001)
                gevent.killall(rng.sample(puts, 50), timeout=10)
                proxy.cut(rng.randrange(8_000_000), "up", reset=rng.random() < 0.5)
                proxy.resume("up")
                gevent.joinall(puts, raise_error=True)
            for job in drained(watcher, "storm-a"):
                found[ledger.seen(job.id, job.body)] += 1
    figures |= ledger.figures
    ledger.balance(found, set())
    assert min(ledger.figures[f"puts {what}"] for what in ("acknowledged", "maybe", "no")) > rounds / 2
